"""Summaries of windows and epochs against loops."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ehrwear_jax.data.signals import summaries


def slow_summary(x):
    seen = [float(v) for v in x if math.isfinite(v)]
    steps = [abs(float(b) - float(a)) for a, b in zip(x, x[1:], strict=False) if math.isfinite(a) and math.isfinite(b)]
    mean = sum(seen) / len(seen) if seen else math.nan
    return {
        "mean": mean,
        "std": math.sqrt(sum((v - mean) ** 2 for v in seen) / len(seen)) if len(seen) > 1 else math.nan,
        "mean_abs_step": sum(steps) / len(steps) if steps else math.nan,
        "min": min(seen, default=math.nan),
        "max": max(seen, default=math.nan),
        "coverage": len(seen) / len(x),
    }


@given(seed=st.integers(0, 10**6), share=st.sampled_from([0.0, 0.3, 0.8, 1.0]), level=st.sampled_from([0.0, -5.0, 1e4]))
def test_summaries_equal_loops(seed, share, level):
    rng = np.random.default_rng(seed)
    values = rng.normal(level, 3.0, (3, 7, 2)).astype(np.float32)
    values[rng.random(values.shape) < share] = np.nan
    got = summaries.window_summaries(values)
    for m in range(3):
        for c in range(2):
            for name, want in slow_summary(values[m, :, c]).items():
                assert got[name].dtype == np.float32 and got[name].shape == (3, 2)
                np.testing.assert_allclose(got[name][m, c], want, rtol=1e-5, atol=1e-6, err_msg=name)


def test_summaries_of_no_windows_are_empty():
    assert {
        k: v.shape for k, v in summaries.window_summaries(np.zeros((0, 4, 3), np.float32)).items()
    } == dict.fromkeys(("mean", "std", "mean_abs_step", "min", "max", "coverage"), (0, 3))


def test_means_of_epochs_need_half_of_their_samples():
    x = [1.0, 3.0, np.nan, 5.0, np.nan, np.nan, 9.0]
    np.testing.assert_array_equal(summaries.epoch_mean(x, 2), [2.0, 5.0, np.nan])
    assert summaries.epoch_mean(np.random.default_rng(1).standard_normal((100, 3)), 5).shape == (20, 3)
