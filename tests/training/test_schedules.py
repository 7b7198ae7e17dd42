"""Learning rate and loss weights at their knots and between."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehrwear_jax import config as config_lib
from ehrwear_jax.training import schedules


def analytic_rate(step, peak, warmup, total):
    if step < warmup:
        return peak / warmup + (peak - peak / warmup) * step / warmup
    return peak * 0.5 * (1 + np.cos(np.pi * min(1.0, (step - warmup) / (total - warmup))))


@pytest.mark.parametrize(("warmup", "total"), [(10, 110), (1, 7), (10_000, 500_000)])
def test_learning_rate_at_its_knots(warmup, total):
    rate = schedules.learning_rate(1e-3, warmup, total)
    for step in {0, 1, warmup - 1, warmup, warmup + 1, (warmup + total) // 2, total - 1, total, total + 5}:
        np.testing.assert_allclose(rate(step), analytic_rate(step, 1e-3, warmup, total), rtol=1e-4, atol=1e-10)
    np.testing.assert_allclose(rate(warmup), 1e-3, rtol=1e-6)
    np.testing.assert_allclose(rate((warmup + total) / 2), 5e-4, rtol=1e-5)
    assert rate(0) > 0 and abs(rate(total)) < 1e-10


@pytest.mark.parametrize(("warmup", "total"), [(0, 10), (50, 10), (10, 10), (0, 1), (5, 1), (5, 2)])
def test_runs_shorter_than_their_warmup_have_a_rate(warmup, total):
    rate = schedules.learning_rate(1e-3, warmup, total)
    values = np.array([rate(step) for step in range(total)])
    assert np.isfinite(values).all() and np.all(values > 0) and values.max() <= 1e-3 * (1 + 1e-6)
    np.testing.assert_allclose(values.max(), 1e-3, rtol=1e-6)


@given(start=st.floats(0, 2), end=st.floats(0, 2), steps=st.integers(1, 50_000), step=st.integers(0, 100_000))
def test_ramp_is_linear_then_constant(start, end, steps, step):
    ramp = schedules.Ramp(start, end, steps)
    np.testing.assert_allclose(ramp(0), start, atol=1e-7)
    np.testing.assert_allclose(ramp(step), np.interp(step, [0, steps], [start, end]), atol=1e-6)


def test_ramp_without_steps_is_its_end_from_the_beginning():
    assert schedules.Ramp(0.2, 1.0)(0) == schedules.Ramp(0.2, 1.0, 0)(7) == 1.0


def test_ramp_runs_inside_a_jitted_step():
    ramp = schedules.Ramp(0.2, 1.0, 50_000)
    traced = jax.jit(ramp)
    for step, want in ((0, 0.2), (25_000, 0.6), (50_000, 1.0), (10**6, 1.0)):
        np.testing.assert_allclose(traced(jnp.int32(step)), want, rtol=1e-6)


def test_curriculum_leaves_out_terms_that_are_off_throughout():
    ramps = {
        "a": schedules.Ramp(0.0, 0.0),
        "b": schedules.Ramp(0.0, 1.0, 10),
        "c": schedules.Ramp(1.0, 0.0, 10),
        "d": schedules.Ramp(1.0, 1.0),
    }
    weights = schedules.curriculum(ramps, ["a", "b", "c"])
    assert {k: float(v) for k, v in weights(0).items()} == {"b": 0.0, "c": 1.0}
    assert {k: float(v) for k, v in weights(5).items()} == {"b": 0.5, "c": 0.5}


@pytest.mark.parametrize(
    ("step", "rate", "wear_to_ehr"),
    [
        (0, 1e-8, 0.2),
        (10_000, 1e-4, 0.36),
        (50_000, 5e-5 * (1 + math.cos(math.pi * 40 / 490)), 1.0),
        (500_000, 0.0, 1.0),
    ],
)
def test_the_schedules_of_the_paper(step, rate, wear_to_ehr):
    """Appendix A.4: 1e-4 after 10,000 steps of warmup, a cosine to 500,000; 0.2 to 1.0 over 50,000 steps."""
    config = config_lib.train_config(config_lib.base())
    learning_rate = schedules.learning_rate(config.peak_learning_rate, config.warmup_steps, config.steps)
    np.testing.assert_allclose(learning_rate(step), rate, rtol=1e-5, atol=1e-11)
    weights = schedules.curriculum(config.weights, config.weights)(step)
    np.testing.assert_allclose(weights.pop("wear_to_ehr"), wear_to_ehr, rtol=1e-6)
    np.testing.assert_allclose(weights.pop("ehr_to_wear"), 0.1, rtol=1e-6)
    assert all(w == 1.0 for w in weights.values()), "within a modality the weight is 1 throughout"
    assert (config.weight_decay, config.clip_norm, config.batch_size) == (0.01, 1.0, 32)
