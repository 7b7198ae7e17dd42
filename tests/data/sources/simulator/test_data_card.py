"""The command writes a data set that validates, and a card whose numbers are those of the files."""

import re
import subprocess
import sys

import polars as pl
import pytest
from repo import REPO

from ehrwear_jax.data.formats import meds, wearable_validate
from ehrwear_jax.data.sources.simulator import __main__ as command
from ehrwear_jax.data.sources.simulator import code_book

ARGUMENTS = ["--people=14", "--seed=4", "--set", "years=2", "wear_days=3", "admission_per_year=0.4"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("set") / "new"
    assert command.main([str(root), *ARGUMENTS]) == 0
    return root


def tables(root):
    """{first head: rows} of the card."""
    found = {}
    for block in (root / "README.md").read_text().split("\n\n"):
        lines = [line.strip("| ").split(" | ") for line in block.splitlines() if line.startswith("|")]
        if lines:
            found[lines[0][0]] = lines[2:]
    return found


def test_the_set_validates(root, capsys):
    assert wearable_validate.main([str(root / "wearable")]) == 0
    assert meds.list_shards(root / "meds") and len(meds.read_labels(root / "labels" / "hospitalization_90d.parquet"))


def test_the_cards_numbers_are_those_of_the_files(root):
    found = tables(root)
    events = pl.concat([meds.read_shard(path) for path in meds.list_shards(root / "meds")])
    assert sum(int(row[1].replace(",", "")) for row in found["code"]) == events.height
    for code, n, people, _ in found["code"]:
        mine = events.filter(pl.col("code") == code.strip("`"))
        assert (int(n.replace(",", "")), int(people)) == (mine.height, mine["subject_id"].n_unique())
    assert {row[0]: int(row[1]) for row in found["split"]} == {"train": 10, "tuning": 1, "held_out": 3}
    assert [row[0] for row in found["task"]] == [f"hospitalization_{h}d" for h in (180, 30, 365, 90)]
    for task, times, _, positive in found["task"]:
        table = meds.read_labels(root / "labels" / f"{task}.parquet")
        assert (int(times), int(positive)) == (table.height, table["boolean_value"].sum())
    counts = {row[0]: int(row[1].replace(",", "")) for row in found["what"]}
    assert counts["people"] == 14 and counts["events"] == events.height
    described = set(code_book.code_table()["code"].to_list())
    assert {row[0].strip("`") for row in found["code"]} <= described, "each code is described"


def test_the_same_options_give_the_same_bytes_and_others_are_refused(root, tmp_path, capsys):
    assert command.main([str(tmp_path / "again"), *ARGUMENTS, "--workers=2"]) == 0
    some, others = ({p.relative_to(r): p.read_bytes() for p in r.rglob("*") if p.is_file()}
                    for r in (root, tmp_path / "again"))  # fmt: skip
    assert some == others
    with pytest.raises(SystemExit):
        command.main([str(root), "--people=9"])
    assert re.search("holds a cohort simulated with another .*n_subjects", capsys.readouterr().err)


@pytest.mark.parametrize("change, said", [("yeers=2", "config.simulate has no number 'yeers'"),
                                          ("years=two", "'two' is no number")])  # fmt: skip
def test_a_wrong_option_is_one_sentence(change, said, tmp_path, capsys):
    with pytest.raises(SystemExit):
        command.main([str(tmp_path / "x"), "--set", change])
    assert said in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_it_is_a_program():
    found = subprocess.run([sys.executable, "-m", "ehrwear_jax.data.sources.simulator", "--help"], cwd=REPO,
                           capture_output=True, text=True, check=False)  # fmt: skip
    assert found.returncode == 0 and "data card" in found.stdout
