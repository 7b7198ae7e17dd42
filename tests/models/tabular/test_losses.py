"""What tabular models minimise, against plain sums, other libraries and finite differences."""

import numpy as np
import pytest
import statsmodels.api as sm
from sklearn.metrics import log_loss

from ehrwear_jax.models.tabular import losses


def cases(n=60, seed=0):
    """[(kind, target)]; times have ties."""
    rng = np.random.default_rng(seed)
    time_N, event_N = rng.integers(1, 15, n).astype(float), rng.random(n) < 0.4
    return [
        (losses.BINARY, (rng.random(n) < 0.3).astype(float)),
        (losses.SURVIVAL, (time_N, event_N)),
        (losses.REGRESSION, rng.normal(size=n)),
    ]


@pytest.mark.parametrize("kind, target", cases())
def test_derivatives_are_those_of_the_sum(kind, target):
    loss, score_N = losses.of(kind, target, "train"), np.random.default_rng(1).normal(size=60)
    first_N, second_N = loss.derivatives(score_N)
    for i, step in enumerate(np.eye(60) * 1e-4):
        up, here, down = (loss.n_terms * loss.mean(score_N + k * step) for k in (1, 0, -1))
        assert first_N[i] == pytest.approx((up - down) / 2e-4, abs=1e-5)
        assert second_N[i] == pytest.approx((up - 2 * here + down) / 1e-8, abs=1e-4)


def test_means_equal_other_libraries():
    (_, y_N), (_, (time_N, event_N)), (_, value_N) = cases()
    score_N = np.random.default_rng(2).normal(size=60)
    p_N = 1 / (1 + np.exp(-score_N))
    assert losses.of(losses.BINARY, y_N, "train").mean(score_N) == pytest.approx(log_loss(y_N, p_N))
    model = sm.PHReg(time_N, score_N[:, None], status=event_N, ties="breslow")
    cox = losses.of(losses.SURVIVAL, (time_N, event_N), "train")
    assert cox.mean(score_N) == pytest.approx(-model.loglike(np.ones(1)) / event_N.sum())
    assert losses.of(losses.REGRESSION, value_N, "train").mean(score_N) == pytest.approx(
        np.mean((value_N - score_N) ** 2) / 2
    )


@pytest.mark.parametrize(
    "kind, target, message",
    [
        (losses.BINARY, np.zeros(5), "train holds one class only"),
        (losses.BINARY, np.array([0.0, 2.0]), "labels other than 0 and 1"),
        (losses.SURVIVAL, (np.ones(4), np.zeros(4, bool)), "train: no event among 4 rows"),
        (losses.REGRESSION, np.array([1.0, np.nan]), "not finite"),
    ],
)
def test_targets_that_say_nothing_are_named(kind, target, message):
    with pytest.raises(ValueError, match=message):
        losses.of(kind, target, "train")
