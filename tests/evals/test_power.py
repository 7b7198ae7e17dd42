"""The smallest difference that can be shown: the formula, its standard errors, and the power that it has."""

import math

import numpy as np
import pytest
from scipy.stats import norm
from statsmodels.stats.power import normal_power

from ehrwear_jax.evals import bootstrap, power, protocol
from ehrwear_jax.evals.classification import BinaryRanking, auroc
from ehrwear_jax.evals.estimates import Resampling, estimate


def test_the_formula_has_the_power_that_statsmodels_says():
    for alpha, wanted in ((0.05, 0.8), (0.01, 0.9)):
        smallest = power.smallest_difference(0.013, alpha=alpha, power=wanted)
        found = normal_power(smallest / 0.013, nobs=1, alpha=alpha, alternative="two-sided")
        assert found == pytest.approx(wanted, abs=1e-3)
    assert power.smallest_difference(1.0) == pytest.approx(norm.ppf(0.975) + norm.ppf(0.8))
    assert math.isnan(power.smallest_difference(math.nan)) and math.isnan(power.smallest_difference(0.0))
    with pytest.raises(ValueError, match="between 0 and 1"):
        power.smallest_difference(1.0, power=1.0)


def scores(rng, n_positive, n_negative, aurocs, correlation=0.5):
    """(labels, two scores of these AUROCs, correlated within the classes)."""
    y = np.repeat([1.0, 0.0], [n_positive, n_negative])
    noise = rng.multivariate_normal([0, 0], [[1, correlation], [correlation, 1]], len(y))
    return y, *(noise[:, k] + y * math.sqrt(2) * norm.ppf(a) for k, a in enumerate(aurocs))


def difference(y, first, second, n_resamples, seed):
    statistics = {"a": BinaryRanking(y, first, auprc=False), "b": BinaryRanking(y, second, auprc=False)}
    return estimate(statistics, np.arange(len(y)), Resampling(n_resamples, seed)).difference("a", "b", "auroc")


def test_a_difference_of_that_size_is_found_in_four_of_five_studies():
    """Models that truly differ by the smallest difference of such a study are told apart in 80% of them."""
    rng, shape, studies = np.random.default_rng(0), (70, 250), 600
    designs = [power.of_resamples(difference(*scores(rng, *shape, (0.75, 0.75)), 150, s)[1]) for s in range(60)]
    smallest = float(np.mean(designs))
    assert 0.08 < smallest < 0.11
    found = 0
    for study in range(studies):
        value, delta_B = difference(*scores(rng, *shape, (0.75 + smallest / 2, 0.75 - smallest / 2)), 150, study)
        found += abs(value) > norm.ppf(0.975) * delta_B.std(ddof=1)
    assert found / studies == pytest.approx(0.8, abs=0.05)  # three standard errors of such a share


def test_hanley_and_mcneil_s_error_is_the_spread_of_the_auroc():
    rng = np.random.default_rng(1)
    y = np.repeat([1.0, 0.0], [60, 200])
    # exact where scores are exponential, as the formula assumes: AUROC = ratio of the means, 4 / (4 + 1)
    values = [auroc(y, rng.exponential(np.where(y == 1, 4.0, 1.0))) for _ in range(1500)]
    assert power.auroc_standard_error(0.8, 60, 200) == pytest.approx(np.std(values), rel=0.06)
    # a table of the paper: 51 ill and 58 well, area .893, standard error .032
    assert power.auroc_standard_error(0.893, 51, 58) == pytest.approx(0.032, abs=0.001)
    assert math.isnan(power.auroc_standard_error(0.8, 0, 10))
    assert power.of_one_model(0.1, 0.5) == pytest.approx(power.smallest_difference(0.1))
    assert power.of_one_model(0.1, 0.0) == pytest.approx(power.smallest_difference(0.1 * math.sqrt(2)))


def records_of(predictions, y, reference):
    spec = protocol.TaskSpec("d", "t", reference, Resampling(100, seed=1))
    return {(r["model"], r["metric"]): r for r in protocol.score_binary(spec, predictions, y, np.arange(len(y)) // 2)}


def test_records_tell_it_for_every_comparison_of_candidates_or_else_for_each_model():
    rng = np.random.default_rng(2)
    y, first, second = scores(rng, 40, 120, (0.8, 0.7))
    p = {name: norm.cdf(s) for name, s in {"joint": first, "other": second, "oracle": first + y}.items()}
    found = records_of(p, y, "joint")
    weight = bootstrap.patient_weights(np.arange(len(y)) // 2, 100, seed=1)
    delta_B = auroc(y, p["joint"], weight) - auroc(y, p["other"], weight)
    expected = (norm.ppf(0.975) + norm.ppf(0.8)) * np.std(delta_B, ddof=1)
    assert found["joint - other", "auroc_difference_mdd"]["value"] == pytest.approx(expected)
    assert {k for k in found if k[1].endswith("mdd")} == {("joint - other", "auroc_difference_mdd")}
    for alone in ({"joint": p["joint"]}, {"joint": p["joint"], "oracle": p["oracle"]}):
        found = records_of(alone, y, "joint")
        assert {k for k in found if k[1].endswith("mdd")} == {("joint", "auroc_mdd")}
        error = power.auroc_standard_error(auroc(y, p["joint"]), 40, 120)
        assert found["joint", "auroc_mdd"]["value"] == pytest.approx(power.smallest_difference(error))
