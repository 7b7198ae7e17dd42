"""From the files of the CDC to the report by one command, and the survey's weights on what was predicted."""

import re
import subprocess
import sys

import numpy as np
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
    command = [sys.executable, "-m", "ehrwear_jax.main", "--config=configs/nhanes.py:cdc"]
    command += [f"--workdir={folder / 'run'}", f"--config.data.source_dir={source}"]
    command += [f"--config.{name}={value}" for name, value in SMALL.items()]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "run"


def test_a_run_ends_with_a_report(workdir):
    (page,) = workdir.glob("reports/*/report.md")
    assert "all-cause mortality" in page.read_text()


def test_weights_of_the_survey_are_put_to_predictions_as_the_page_says(workdir):
    (code,) = re.findall(r"```python\n(.*?)```", (REPO / "docs" / "nhanes.md").read_text(), re.DOTALL)
    (metadata,) = workdir.glob("raw/*/meds/metadata")
    (predictions,) = workdir.glob("reports/*/predictions/all_cause_mortality/gradient_boosting.parquet")
    names = {"metadata": metadata, "predictions": predictions}
    exec(code, names)
    time, event, risk, weight = (names[name] for name in ("time", "event", "risk", "weights"))
    assert len(time) > 5 and weight.min() > 0
    comparable = concordant = 0.0
    for i in np.flatnonzero(event):
        for j in np.flatnonzero((time > time[i]) | ((time == time[i]) & ~event)):
            comparable += weight[i] * weight[j]
            concordant += weight[i] * weight[j] * (1.0 if risk[i] > risk[j] else 0.5 * (risk[i] == risk[j]))
    assert names["c_index"] == pytest.approx(concordant / comparable)
    assert len(names["resampled"]) == 1000
