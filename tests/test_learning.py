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

TERMS = [t for t in losses.TERMS if t not in ("content_norm", "latent_kl")]  # penalties predict nothing


def learn(folder, *size):
    script = [sys.executable, str(REPO / "tests" / "learning_run.py"), str(REPO / "configs" / "tiny.py"), str(folder)]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"PYTHONPATH": str(REPO)}
    done = subprocess.run([*script, *size], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((folder / "learning.json").read_text())


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    return learn(tmp_path_factory.mktemp("learning"), "400", "250")


@pytest.mark.slow
@pytest.mark.parametrize("term", TERMS)
def test_each_objective_falls_below_its_trivial_predictors(learned, term):
    for trivial in ("constant", "last_value"):
        assert learned["model"][term] < learned[trivial][term], trivial


@pytest.mark.slow
@pytest.mark.parametrize("term", ["wear_to_ehr", "ehr_to_wear", "contrast"])
def test_cross_modal_predictions_are_worse_if_their_losses_do_not_shape_z(learned, term):
    assert learned["model"][term] < learned["detached"][term]
