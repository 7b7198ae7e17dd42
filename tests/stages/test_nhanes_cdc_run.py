"""From the files of the CDC to the report by one command, under the weights of the survey."""

import json
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from nhanes_survey import Survey
from repo import REPO

pytestmark = pytest.mark.long
# a network and a number of steps that show that it runs, and nothing else
SMALL = {
    "only": "('joint','gradient_boosting','linear_table')",
    "data.n_folds": 0,
    "train.steps": 4,
    "train.warmup_steps": 1,
    "train.batch_size": 4,
    "train.validate_every": 4,
    "train.checkpoint_every": 4,
    "joint.network.width": 16,
    "joint.network.n_layers": 1,
    "joint.network.mlp_width": 32,
    "joint.context.tokens": 48,
    "joint.context.context_tokens": 48,
    "joint.context.windows": 32,
    "evaluate.n_resamples": 50,
    "evaluate.label_fractions": "()",
    "evaluate.min_horizon_events": 1,
    "prepare.min_subjects": 5,
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nhanes_cdc_run")
    # a tenth of those labelled must have deaths among them to tune on
    source = Survey(600).write(folder / "source")
    command = [sys.executable, "-m", "ehrwear_jax.main", "--config=configs/nhanes.py:cdc+weighted"]
    command += [f"--workdir={folder / 'run'}", f"--config.data.source_dir={source}"]
    command += [f"--config.{name}={value}" for name, value in SMALL.items()]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "run"


def test_a_run_ends_with_a_report(workdir):
    (page,) = workdir.glob("reports/*/report.md")
    assert "all-cause mortality" in page.read_text()


def test_the_runs_numbers_are_those_of_the_weighted_people(workdir):
    """Against pairs counted one by one, by the weights that the adapter wrote from the survey's files."""
    (design,) = workdir.glob("raw/*/meds/metadata/subject_survey.parquet")
    (predictions,) = workdir.glob("reports/*/predictions/all_cause_mortality/gradient_boosting.parquet")
    (results,) = workdir.glob("reports/*/results.json")
    people = pl.read_parquet(predictions).join(pl.read_parquet(design), on="subject_id")
    columns = ("time_to_event_days", "event_observed", "predicted_log_hazard", "WTMEC2YR")
    time, event, risk, weight = (people[c].to_numpy() for c in columns)
    assert len(time) > 5 and weight.min() > 0
    comparable = concordant = 0.0
    for i in np.flatnonzero(event):
        for j in np.flatnonzero((time > time[i]) | ((time == time[i]) & ~event)):
            comparable += weight[i] * weight[j]
            concordant += weight[i] * weight[j] * (1.0 if risk[i] > risk[j] else 0.5 * (risk[i] == risk[j]))
    records = json.loads(results.read_text())
    found = [r for r in records if (r["model"], r["metric"]) == ("gradient_boosting", "c_index")]
    assert [r["value"] for r in found] == [pytest.approx(concordant / comparable)]
    (page,) = workdir.glob("reports/*/report.md")
    assert "people weigh by WTMEC2YR" in page.read_text()
