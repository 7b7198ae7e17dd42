"""Probes that are stored as arrays predict as the fitted ones do."""

import json

import numpy as np
import pytest

from ehrwear_jax.config.evaluation import EvaluateConfig
from ehrwear_jax.inference import bundle_files, stored_probes, write_bundle
from ehrwear_jax.inference.stored_probes import StoredProbe
from ehrwear_jax.stages import evaluate_fit
from ehrwear_jax.stages.tasks import BINARY, REGRESSION, SURVIVAL

TIMES = np.linspace(20.0, 400.0, 20)
SPLITS = {"train": 160, "tuning": 60, "held_out": 50}
PROBES = {"exact": EvaluateConfig(), "adam": EvaluateConfig(probe="adam", probe_hidden=3, probe_seeds=(0, 1))}


def problem(kind, seed=0):
    """({split: x}, {split: target}, {split: competing event}) of features that tell something."""
    rng = np.random.default_rng(seed)
    x = {s: rng.normal(size=(n, 4)).astype(np.float32) for s, n in SPLITS.items()}
    signal = {s: v[:, 0] + 0.5 * v[:, 1] for s, v in x.items()}
    if kind == BINARY:
        return x, {s: (v + rng.logistic(size=len(v)) > 0).astype(float) for s, v in signal.items()}, None
    if kind == REGRESSION:
        return x, {s: v + rng.normal(size=len(v)) for s, v in signal.items()}, None
    time = {s: np.round(rng.exponential(200 * np.exp(-v)) + 1) for s, v in signal.items()}
    cause = {s: rng.integers(0, 3, len(v)) for s, v in signal.items()}
    return x, {s: (time[s], cause[s] == 1) for s in x}, {s: cause[s] == 2 for s in x}


def stored(probe, tmp_path):
    """What is read of it after it was written."""
    arrays, about = stored_probes.to_arrays(probe)
    bundle_files.write_arrays(tmp_path / "x.npz", {"0": arrays})
    return stored_probes.of_arrays(bundle_files.read_arrays(tmp_path / "x.npz")["0"], json.loads(json.dumps(about)))


@pytest.mark.parametrize("config", ["exact", pytest.param("adam", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", [BINARY, SURVIVAL, REGRESSION])
def test_they_predict_what_the_evaluation_does(kind, config, tmp_path):
    x, target, competing = problem(kind)
    for others in (None, competing) if competing else (None,):
        want = evaluate_fit.probe(PROBES[config], kind, x, target, TIMES, others)
        other = evaluate_fit.competing_model(x, target, others) if kind == SURVIVAL else None
        probe = StoredProbe(kind, evaluate_fit.probe_model(PROBES[config], kind, x, target), other, TIMES, (200.0,))
        got = stored(write_bundle.on_grid(probe) if kind == SURVIVAL else probe, tmp_path)
        np.testing.assert_allclose(got.score(x["held_out"]), want.held_out, atol=1e-6)
        if kind == SURVIVAL:
            np.testing.assert_allclose(
                got.event_free(x["held_out"]),
                want.curve_NxT,
                atol=1e-6 if others is None else write_bundle.MOST_DIFFERENT_CURVE,
            )
            risk = got.predict(x["held_out"])["predicted_risk_200d"].to_numpy()
            np.testing.assert_allclose(risk, 1 - got.event_free(x["held_out"])[:, list(TIMES).index(200.0)])


def test_a_recalibration_is_that_of_the_tuning_split_and_nothing_is_said_without_data():
    x, target, _ = problem(BINARY)
    probe = StoredProbe(BINARY, evaluate_fit.probe_model(PROBES["exact"], BINARY, x, target))
    p = probe.score(x["tuning"])
    a, b = stored_probes.calibrate(target["tuning"], p**3)
    again = StoredProbe(BINARY, probe.model, calibration=(a, b)).recalibrated(p**3)
    assert abs(again.mean() - target["tuning"].mean()) < 1e-6, "the mean risk of a logistic line is right"
    assert stored_probes.calibrate(target["tuning"][:5], p[:5]) is None
    z = np.where(np.arange(50)[:, None] == 3, np.nan, x["held_out"])
    table = probe.predict(z)
    assert table["predicted_boolean_probability"].null_count() == 1 and table["calibrated_risk"].null_count() == 50
