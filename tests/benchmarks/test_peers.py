"""The comparison with other tools: both are given the same people, ours is measured, and missing peers are named."""

import argparse
import json
import os
import sys

import polars as pl
import pytest

from ehrwear_jax.benchmarks import data_prepare, peers
from ehrwear_jax.data.formats import meds
from ehrwear_jax.models.joint import family


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """A small cohort, prepared."""
    root = tmp_path_factory.mktemp("peers")
    n = peers.write_cohort(root, 60)
    data_prepare._prepare("ehr", root, 1)
    return root, n


def test_the_cohort_is_sharded_by_split_and_everybody_has_a_static_event(cohort):
    root, n = cohort
    splits = dict(pl.read_parquet(meds.splits_path(root / "meds")).iter_rows())
    shards = meds.list_shards(root / "meds")
    assert {path.parent.name for path in shards} == set(splits.values()) and len(shards) == 3
    whole = pl.concat([meds.read_shard(path).with_columns(split=pl.lit(path.parent.name)) for path in shards])
    assert whole.height == n and whole["subject_id"].n_unique() == 60
    assert all(splits[s] == split for s, split in whole.select("subject_id", "split").unique().iter_rows())
    static = whole.filter(pl.col("time").is_null())
    assert sorted(static["subject_id"]) == list(range(1, 61)) and static["code"].n_unique() == 2


@pytest.mark.parametrize("cache_mib", [1, 0])
def test_the_loader_counts_tokens_and_keeps_nobody_where_it_is_told_to(cohort, cache_mib, monkeypatch):
    root, _ = cohort
    made = []
    examples = family.examples
    monkeypatch.setattr(family, "examples", lambda *a: made.append(examples(*a)) or made[-1])
    found = peers.load(root, 64, 0.05, cache_mib)
    assert found["rate"] > 100 and 0.8 < found["filled"] <= 1.0, "rows are packed"
    assert bool(made[0].people.cache.held) == bool(cache_mib)
    names = {term.name for term in made[0].people.terms}
    assert {"ehr_masked", "future_event", "future_codes", "ehr_history", "ehr_values", "next_value"} <= names


def test_labels_and_rates_come_from_processes_of_their_own(cohort, capsys):
    root, _ = cohort
    peers.main(["--run", json.dumps([str(root), "load", 64, 0.05, False])])
    assert json.loads(capsys.readouterr().out)["rate"] > 100
    peers.main(["--run", json.dumps([str(root), "labels"])])


def test_medians_of_turns(tmp_path, monkeypatch):
    """Ours and the peer's in turn, and the other way round in every second round."""
    asked, numbers = [], {"ours": [1.0, 5.0, 3.0], "peer": [2.0, 8.0, 4.0]}

    def measured(whose):
        def once():
            asked.append(whose)
            return numbers[whose].pop(0)

        return once

    monkeypatch.setattr(peers, "measurements", lambda *_: {"x": {w: measured(w) for w in ("ours", "peer")}})
    found = peers.measure(tmp_path, "", argparse.Namespace(rounds=3))
    assert found == {"x": {"ours": 3.0, "peer": 4.0, "ratio": 0.75}}
    assert asked == ["ours", "peer", "peer", "ours", "ours", "peer"]


def test_seconds_are_those_of_a_command_and_its_children(tmp_path):
    own = "sum(range(2_000_000)); print('used', sum(os.times()[:2]), flush=True)"
    inner = f"import os, subprocess, sys; subprocess.run([sys.executable, '-c', 'import os; ' + {own!r}]); {own}"
    log = tmp_path / "log"
    for _ in range(2):  # the second must not count the first again
        before = sum(os.times()[2:4])
        found = peers.processor_seconds([sys.executable, "-c", inner], log)
        said = [float(line.split()[1]) for line in log.read_text().splitlines()]
        assert len(said) == 2 and min(said) > 0.01
        # What each process says of itself leaves out its end; os.times counts in hundredths of a second.
        assert sum(said) - 0.03 <= found <= sum(os.times()[2:4]) - before + 0.03
    with pytest.raises(RuntimeError, match="no such thing"):
        peers.processor_seconds([sys.executable, "-c", "raise SystemExit('no such thing')"], log)


def test_missing_peers_are_named_with_what_to_do(capsys):
    with pytest.raises(SystemExit) as stopped:
        peers.main([f"--python={sys.executable}"])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and "meds_torchdata" in said and "ehrwear_jax[peers]" in said
