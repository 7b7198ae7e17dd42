"""Normal scores of values, against another library's."""

import numpy as np
import pytest
from scipy import sparse
from scipy.special import ndtri
from sklearn.preprocessing import QuantileTransformer

from ehrwear_jax.models.tabular import family, losses
from ehrwear_jax.models.tabular.features import COUNT, VALUE
from ehrwear_jax.models.tabular.quantiles import NormalScores


def full(x):
    """A CSR whose zeros are stored."""
    at = np.indices(x.shape).reshape(2, -1)
    return sparse.csr_matrix((x.ravel().astype(np.float32), at), x.shape)


def test_scores_equal_sklearn_between_the_tails_and_with_ties():
    rng = np.random.default_rng(0)
    x = np.stack([rng.lognormal(size=900), rng.integers(0, 6, 900), np.abs(rng.normal(size=900)) ** 3], axis=1)
    other = x[rng.permutation(900)] + 0.3 * (rng.random((900, 3)) < 0.5)
    scores = NormalScores(full(x), [VALUE] * 3)
    oracle = QuantileTransformer(n_quantiles=128, output_distribution="normal", subsample=None).fit(x)
    for rows in (x, other):
        found, squares = (part.toarray() for part in scores(full(rows)))
        expected = np.clip(oracle.transform(np.float32(rows)), ndtri(0.005), ndtri(0.995))
        tied = np.isin(rows[:, 1], [0, 5])  # sklearn puts ties at an end at the tail, not at their middle
        expected[tied, 1] = found[tied, 1]
        np.testing.assert_allclose(found, expected, atol=2e-3)
        np.testing.assert_allclose(squares, found**2, rtol=1e-6)


def test_unknown_values_counts_and_new_columns_stay_as_they_are():
    x = sparse.csr_matrix(np.array([[3.0, 5.0, 0.0], [0.0, 2.0, 0.0], [9.0, 1.0, 0.0]], np.float32))
    scores = NormalScores(x.copy(), [VALUE, COUNT, VALUE])
    later = sparse.csr_matrix(np.array([[0.0, 7.0, 4.0], [6.0, 0.0, 0.0]], np.float32))
    found, squares = (part.toarray() for part in scores(later.copy()))
    np.testing.assert_allclose(found, [[0, 7, 4], [0, 0, 0]], atol=1e-6)  # 6 is the median
    assert not squares.any()


@pytest.mark.parametrize("known", [[2.0], [2.0, 4.0]])
def test_columns_of_few_values_have_small_scores(known):
    x = full(np.array(known)[:, None])
    found = NormalScores(x.copy(), [VALUE])(full(np.array([[-100.0], [100.0]])))[0].toarray()[:, 0]
    limit = ndtri(1 - 0.5 / len(known))
    np.testing.assert_allclose(found, [-limit, limit], atol=1e-6)


def test_a_linear_model_reads_risk_at_both_ends_of_a_skewed_value():
    rng = np.random.default_rng(1)
    latent = rng.normal(size=(3000, 4))
    y = (rng.random(3000) < 1 / (1 + np.exp(2 - latent[:, 0] ** 2))).astype(float)
    x = full(np.exp(2 * latent))
    parts = {"train": slice(0, 1500), "tuning": slice(1500, 2000), "held_out": slice(2000, 3000)}
    columns = family.pl.DataFrame({"name": [f"ehr__{k}" for k in range(4)], "kind": [VALUE] * 4})
    table = family.Table(columns, lambda split: x[parts[split]].copy())
    found = family.scores(
        family.Config(estimator="linear"), losses.BINARY, table, {s: y[parts[s]] for s in ("train", "tuning")}
    )["held_out"]
    truth = latent[parts["held_out"], 0] ** 2
    assert np.corrcoef(found, truth)[0, 1] > 0.9


def test_values_stay_in_standard_deviations_where_their_ranks_tell_less():
    rng = np.random.default_rng(1)
    value = np.where(rng.random(3000) < 0.02, 9.0, 1.0)[:, None] * rng.normal(size=(3000, 3))  # the tails matter
    y = value[:, 0] + 0.1 * rng.normal(size=3000)
    parts = {"train": slice(0, 1500), "tuning": slice(1500, 2000), "held_out": slice(2000, 3000)}
    columns = family.pl.DataFrame({"name": [f"ehr__{k}" for k in range(3)], "kind": [VALUE] * 3})
    table = family.Table(columns, lambda split: full(value[parts[split]]))
    found = family.scores(
        family.Config(estimator="linear"), losses.REGRESSION, table, {s: y[parts[s]] for s in ("train", "tuning")}
    )["held_out"]
    assert np.corrcoef(found, y[parts["held_out"]])[0, 1] > 0.98
