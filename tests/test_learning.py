"""On the simulated cohort each objective is learned, and the cross-modal ones shape z: validation, a subprocess each.

By hand, with more people and steps (figures in the report of a run): python tests/learning_run.py configs/tiny.py DIR
"""

import json
import os
import subprocess
import sys

import pytest
from conftest import REPO

from ehrwear_jax import losses

# penalties predict nothing; the alignment of sparse events takes more people than a short test has
TERMS = [t for t in losses.TERMS if t not in ("content_norm", "latent_kl", "contrast")]


def learn(folder, *size):
    script = [sys.executable, str(REPO / "tests" / "learning_run.py"), str(REPO / "configs" / "tiny.py"), str(folder)]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"PYTHONPATH": str(REPO)}
    done = subprocess.run([*script, *size], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((folder / "learning.json").read_text())


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    return learn(tmp_path_factory.mktemp("learning"), "400", "400")


@pytest.mark.slow
@pytest.mark.parametrize("term", TERMS)
def test_each_objective_falls_below_its_trivial_predictors(learned, term):
    for trivial in ("constant", "last_value"):
        assert learned["model"][term] < learned[trivial][term], trivial


@pytest.mark.slow
def test_physiology_is_predicted_worse_if_its_loss_does_not_shape_z(learned):
    assert learned["model"]["ehr_to_wear"] < learned["detached"]["ehr_to_wear"]
