"""The learning rate at its knots and between."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from ehrwear_jax.config.training import TrainConfig
from ehrwear_jax.training import schedules
from ehrwear_jax.training.optimizer import make_optimizer


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


def test_a_linear_decay_is_a_line_to_zero():
    rate = schedules.learning_rate(1e-3, 10, 110, "linear")
    np.testing.assert_allclose(rate(0), 1e-4, rtol=1e-6)
    for step, share in ((10, 1.0), (35, 0.75), (60, 0.5), (109, 0.01), (110, 0.0), (120, 0.0)):
        np.testing.assert_allclose(rate(step), 1e-3 * share, rtol=1e-4, atol=1e-10)
    with pytest.raises(ValueError, match="decay is 'step'; it can be cosine, linear"):
        TrainConfig(decay="step")


@pytest.mark.parametrize("decay", ["cosine", "linear"])
@pytest.mark.parametrize(("warmup", "total"), [(0, 10), (50, 10), (10, 10), (0, 1), (5, 1), (5, 2)])
def test_runs_shorter_than_their_warmup_have_a_rate(warmup, total, decay):
    rate = schedules.learning_rate(1e-3, warmup, total, decay)
    values = np.array([rate(step) for step in range(total)])
    assert np.isfinite(values).all() and np.all(values > 0) and values.max() <= 1e-3 * (1 + 1e-6)
    np.testing.assert_allclose(values.max(), 1e-3, rtol=1e-6)


@pytest.mark.parametrize(("rows", "meant", "times"), [(32, 0, 1.0), (256, 256, 1.0), (1024, 256, 2.0), (64, 256, 0.5)])
def test_the_peak_grows_with_the_root_of_the_batch(rows, meant, times):
    assert schedules.peak_rate(1e-4, rows, meant) == pytest.approx(times * 1e-4)


def test_the_optimizer_steps_by_the_rate_of_its_batch():
    """Adam's first step is the rate itself, in every entry."""
    params = {"table": jnp.zeros(3)}
    first = {}
    for rows in (64, 256):
        config = TrainConfig(steps=10, batch_size=rows, rate_rows=64, warmup_steps=1, peak_learning_rate=1e-3)
        optimizer = make_optimizer(config)
        updates, _ = optimizer.update({"table": jnp.ones(3)}, optimizer.init(params), params)
        first[rows] = float(jnp.abs(updates["table"]).max())
    assert first[64] == pytest.approx(1e-3, rel=1e-4) and first[256] == pytest.approx(2e-3, rel=1e-4)


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 1e-8), (10_000, 1e-4), (50_000, 5e-5 * (1 + math.cos(math.pi * 40 / 490))), (500_000, 0.0)],
)
def test_the_schedule_of_the_paper(step, rate):
    """Appendix A.4: 1e-4 after 10,000 steps of warmup, a cosine to 500,000."""
    config = TrainConfig()
    learning_rate = schedules.learning_rate(config.peak_learning_rate, config.warmup_steps, config.steps)
    np.testing.assert_allclose(learning_rate(step), rate, rtol=1e-5, atol=1e-11)
    assert (config.weight_decay, config.clip_norm, config.batch_size) == (0.01, 1.0, 32)
