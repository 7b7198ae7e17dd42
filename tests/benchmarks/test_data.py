"""The measuring of the data layer: its made-up cohort is valid, its report flat, its watch sees a process."""

import json
import subprocess
import sys

import polars as pl
import pytest
from meds_files import count_subjects

from ehrwear_jax.benchmarks import data as bench
from ehrwear_jax.benchmarks import data_cohort as bench_cohort
from ehrwear_jax.benchmarks import data_prepare as bench_prepare
from ehrwear_jax.data.formats import meds, wearable


def test_the_made_up_cohort_is_valid_and_of_the_stated_size(tmp_path):
    n = bench_cohort.write_events(tmp_path / "ehr", 30, 40, subjects_per_shard=20)
    events = pl.concat([meds.read_shard(p) for p in meds.list_shards(tmp_path / "ehr")])
    assert n == events.height > 600 and count_subjects(tmp_path / "ehr") == 30
    assert (events["code"] == meds.BIRTH_CODE).sum() == 30
    assert 0.05 < events["numeric_value"].is_not_null().mean() < 0.6
    assert bench_cohort.write_minutes(tmp_path / "wear", 3, 2, subjects_per_shard=2) == 6
    channels = wearable.read_channels(tmp_path / "wear" / "wearable")
    rows = pl.concat([wearable.read_shard(p, channels) for p in wearable.list_shards(tmp_path / "wear" / "wearable")])
    assert rows.height == 9 and (rows["values"].list.len() == 2880).all()
    assert count_subjects(tmp_path / "wear" / "meds") == 3


def test_the_command_writes_a_flat_mapping(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_prepare, "measure", lambda quick: {"prepare/a_per_s": 1234.5, "prepare/quick": quick})
    assert bench.main([f"--json={tmp_path / 'x.json'}", "--only=prepare", "--quick"]) == 0
    assert json.loads((tmp_path / "x.json").read_text()) == {"prepare/a_per_s": 1234.5, "prepare/quick": True}
    assert ["prepare/a_per_s", "1,234.5"] in [line.split() for line in capsys.readouterr().out.splitlines()]
    with pytest.raises(SystemExit):
        bench.main(["--only=training"])
    assert "there is no 'training'; there are prepare, examples" in capsys.readouterr().err


def test_the_watch_sees_memory_and_time_of_a_process_and_its_children():
    child = "x = bytearray(150_000_000)\nfor i in range(10**7): pass"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    process = subprocess.Popen([sys.executable, "-c", program])
    watch = bench_prepare.Watch(process.pid, every_s=0.01)
    assert process.wait() == 0
    watch.stop()
    assert 150e6 < watch.peak_bytes < 400e6 and watch.cpu_seconds > 0.1


@pytest.mark.slow
def test_prepare_is_measured(monkeypatch):
    monkeypatch.setattr(bench_prepare, "SIZES", {"ehr": (1200, 60), "wear": (30, 6)})
    found = bench_prepare.measure(quick=False)
    assert all(value > 0 for value in found.values())
    assert {"prepare/ehr_events_per_s", "prepare/patient_days_per_cpu_s", "prepare/wear_peak_rss_10x_mb"} <= set(found)
