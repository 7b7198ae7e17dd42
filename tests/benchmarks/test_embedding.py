"""The benchmark of embedding: the numbers are there and add up."""

import json

import polars as pl
import pytest

from ehrwear_jax.benchmarks import embedding


@pytest.mark.slow
def test_small(tmp_path, capsys):
    flags = [str(tmp_path), "--people=60,120", "--times=1,4", f"--json={tmp_path / 'found.json'}"]
    assert embedding.main(flags) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert [(one["people"], one["times"]) for one in found] == [(60, 1), (120, 1), (60, 4), (120, 4)]
    assert all(0.2 < one["tokens_filled"] <= 1 and one["processor_seconds"] > 0 for one in found)
    assert found[3]["rows"] < 4 * found[1]["rows"], "times of a person share a context"
    written = pl.read_parquet(tmp_path / "z-120-4-0" / "*.parquet")
    assert written.height == 480 and not written.select("subject_id", "prediction_time").is_duplicated().any()
    assert capsys.readouterr().out.splitlines()[-1].split()[-4] == "1.00"
