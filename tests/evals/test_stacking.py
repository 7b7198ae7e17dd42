"""Weights of stacked predictions: against what is known of simulated members, and against another solver."""

import numpy as np
import pytest
from scipy import optimize
from sklearn.metrics import roc_auc_score

from ehrwear_jax.evals import stacking
from ehrwear_jax.evals.cox import PartialLikelihood

OBJECTIVES = ("binary", "survival", "regression")


def outcome(objective, truth_N, rng):
    """Labels with the log-odds, the log-hazard or the mean truth_N."""
    if objective == "binary":
        return (rng.random(len(truth_N)) < 1 / (1 + np.exp(-truth_N))).astype(float)
    if objective == "regression":
        return truth_N + rng.normal(size=len(truth_N))
    event, end = rng.exponential(np.exp(-truth_N)), rng.exponential(3.0, len(truth_N))
    return np.round(np.minimum(event, end), 2), event <= end  # with ties


def rows(target, part):
    return tuple(v[part] for v in target) if isinstance(target, tuple) else target[part]


def discrimination(objective, target, score_N):
    """AUROC of early or positive outcomes, correlation of values."""
    if objective == "regression":
        return np.corrcoef(target, score_N)[0, 1]
    return roc_auc_score(target[1] & (target[0] < 0.7) if objective == "survival" else target, score_N)


def simulated(objective, weight_K, sd_K, n=6000, seed=0):
    """(scores of the members, target, the best combination): independent members of which each knows a part."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, len(weight_K))) * sd_K
    return x, outcome(objective, x @ weight_K - 0.5, rng), x @ weight_K


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_members_that_know_different_things_are_added(objective):
    x, target, best = simulated(objective, [1.0, 0.7], [1.0, 1.2])
    tuning, held = slice(0, 2000), slice(2000, None)
    stack = stacking.fit_stack(objective, x[tuning], rows(target, tuning))
    np.testing.assert_allclose(stack.weight_K, [1.0, 0.7], atol=0.12)
    found, optimum, *alone = (discrimination(objective, rows(target, held), s[held]) for s in (stack(x), best, *x.T))
    assert found > max(alone) + 0.04 and found == pytest.approx(optimum, abs=0.003)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_member_of_noise_has_no_weight_and_a_useful_one_keeps_its_own(objective):
    x, target, best = simulated(objective, [0.0, 1.0, 0.0], [1.0, 1.0, 2.0])
    tuning, held = slice(0, 2000), slice(2000, None)
    stack = stacking.fit_stack(objective, x[tuning], rows(target, tuning))
    np.testing.assert_allclose(stack.weight_K, [0.0, 1.0, 0.0], atol=0.12)
    kept, alone = (discrimination(objective, rows(target, held), s[held]) for s in (stack(x), best))
    assert kept == pytest.approx(alone, abs=0.004)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_best_member_is_hardly_worse_for_company_in_a_small_tuning_split(objective):
    lost, gained = [], []
    for seed in range(20):
        for weights, out in (([1.2, 0.0], lost), ([0.9, 0.9], gained)):
            x, target, _ = simulated(objective, weights, [1.0, 1.0], n=2060, seed=seed)
            stack = stacking.fit_stack(objective, x[:60], rows(target, slice(60)))
            held = rows(target, slice(60, None))
            found, best = (discrimination(objective, held, s[60:]) for s in (stack(x), x[:, 0]))
            out.append(found - best)
    assert np.mean(lost) > -0.02 and np.min(lost) > -0.07
    assert np.mean(gained) > 0.06 and np.min(gained) > 0.0


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_weight_is_negative(objective):
    """The second member is the first one's noise, which a free fit would take away."""
    rng = np.random.default_rng(3)
    truth, noise = rng.normal(size=(2, 1500))
    x = np.stack([truth + noise, noise], axis=1)
    stack = stacking.fit_stack(objective, x, outcome(objective, truth, rng))
    assert stack.weight_K[1] == 0 and 0.3 < stack.weight_K[0] < 0.7


def posterior(objective, x, target, unit=1.0):
    """The negative log posterior of (weights, shift) as the module's docstring says it, written down plainly."""
    centre = x.mean(0)

    def of(theta):
        score = centre.mean() + unit * theta[-1] + (x - centre) @ theta[:-1]
        prior = np.sum((theta[:-1] - 1 / x.shape[1]) ** 2) / (2 * 0.5**2) + theta[-1] ** 2 / 2
        if objective == "binary":
            return prior + np.sum(np.log1p(np.exp(score)) - target * score)
        if objective == "regression":
            return prior + np.sum((score - target) ** 2) / (2 * unit**2)
        return prior - PartialLikelihood(*target).value(score)

    return of


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_fit_is_the_mode_of_the_posterior(objective):
    x, target, _ = simulated(objective, [0.8, 0.3, 0.1], [1.0, 0.5, 2.0], n=120, seed=4)
    unit = float(np.sqrt(np.mean((x.mean(1) - target) ** 2))) if objective == "regression" else 1.0
    stack, of = stacking.fit_stack(objective, x, target), posterior(objective, x, target, unit)
    bounds = [(0, None)] * 3 + [(None, None)]
    found = optimize.minimize(of, np.full(4, 0.2), method="SLSQP", bounds=bounds, options={"ftol": 1e-13}).x
    np.testing.assert_allclose(np.append(stack.weight_K, stack.shift / unit), found, atol=2e-4)


def test_values_are_in_their_unit_whatever_it_is():
    x, y, _ = simulated("regression", [1.0, 0.5], [1.0, 1.0], n=300)
    plain, scaled = stacking.fit_stack("regression", x, y), stacking.fit_stack("regression", 40 * x + 900, 40 * y + 900)
    np.testing.assert_allclose(scaled.weight_K, plain.weight_K, atol=1e-5)
    np.testing.assert_allclose(scaled(40 * x + 900), 40 * plain(x) + 900, atol=1e-2)


def test_with_next_to_nothing_known_it_is_the_mean_of_the_members():
    rng = np.random.default_rng(5)
    x = rng.normal(size=(3, 2))
    stack = stacking.fit_stack("binary", x, [0, 0, 0])  # one class is no error
    np.testing.assert_allclose(stack.weight_K, 0.5, atol=0.25)
    assert -2 < stack.shift < 0
    exact = stacking.fit_stack("regression", x, x.mean(1))
    np.testing.assert_array_equal(exact.weight_K, 0.5)
    np.testing.assert_allclose(exact(x), x.mean(1), atol=1e-12)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_plain_mean_is_that_of_the_scores(objective):
    x, _, _ = simulated(objective, [1.0, 0.5, 0.2], [1.0, 0.3, 2.0], n=50)
    np.testing.assert_allclose(stacking.mean_stack(objective, x[:20])(x), x.mean(1), atol=1e-12)


def test_scores_are_cut_where_they_would_decide_alone():
    np.testing.assert_allclose(stacking.log_odds([0.0, 0.5, 1.0]), [-np.log(1e6), 0, np.log(1e6)], atol=1e-6)
    np.testing.assert_allclose(stacking.log_odds([[0.2, 0.9]]), [[np.log(0.25), np.log(9)]], rtol=1e-12)
    x, target, _ = simulated("survival", [1.0, 0.5], [1.0, 1.0], n=400)
    stack = stacking.fit_stack("survival", x, target)
    highest = stack.centre_K + [1e4, 0]
    assert stack(highest[None]) - stack(stack.centre_K[None]) == pytest.approx(stack.weight_K[0] * np.log(1e6))


@pytest.mark.parametrize(
    ("objective", "target", "sentence"),
    [
        ("ranking", np.zeros(4), "the objective is 'ranking'; it can be binary, survival, regression"),
        ("binary", np.array([0, 1, 2, 0]), "labels is 2.0 in row 2, expected 0 or 1"),
        ("survival", (np.ones(4), np.zeros(4)), "no event among 4 rows"),
        ("survival", (np.ones(3), np.ones(3)), "scores of 4 rows, times of 3"),
        ("regression", np.array([0, 1, np.nan, 0]), r"values of shape \(4,\), expected finite ones of \(4,\)"),
    ],
)
def test_what_cannot_be_fitted_is_said(objective, target, sentence):
    with pytest.raises(ValueError, match=sentence):
        stacking.fit_stack(objective, np.eye(4), target)
