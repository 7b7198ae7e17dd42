"""The entropy decomposition against closed forms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy as scipy_entropy

from ehrwear_jax.interpret import uncertainty


@given(st.integers(2, 6), st.integers(1, 5), st.integers(2, 5), st.integers(0, 99))
@settings(max_examples=30)
def test_parts_add_up_and_equal_their_definitions(members, rows, classes, seed):
    p = np.random.default_rng(seed).dirichlet(np.full(classes, 0.3), (members, rows))
    found = uncertainty.decompose(p)
    np.testing.assert_allclose(found.predictive_entropy_N, scipy_entropy(p.mean(0), axis=-1), atol=1e-12)
    np.testing.assert_allclose(found.expected_entropy_N, scipy_entropy(p, axis=-1).mean(0), atol=1e-12)
    # mutual information as the mean divergence of the members from their average
    divergence = np.mean([scipy_entropy(one, p.mean(0), axis=-1) for one in p], axis=0)
    np.testing.assert_allclose(found.mutual_information_N, divergence, atol=1e-9)


def test_agreement_is_all_expected_and_disagreement_all_mutual():
    agree = uncertainty.decompose(np.full((4, 3), 0.5))
    np.testing.assert_allclose(agree.predictive_entropy_N, np.log(2))
    np.testing.assert_allclose(agree.mutual_information_N, 0.0, atol=1e-15)
    split = uncertainty.decompose(np.array([[1.0], [0.0]]))
    np.testing.assert_allclose(split.mutual_information_N, np.log(2))
    np.testing.assert_allclose(split.expected_entropy_N, 0.0)
    np.testing.assert_allclose(split.mean_NxK, [[0.5, 0.5]])


def test_sample_stacks_members_in_order():
    stacked = uncertainty.sample(lambda member: np.full(3, member / 10), 4)
    np.testing.assert_allclose(stacked[:, 0], [0.0, 0.1, 0.2, 0.3])
    assert stacked.shape == (4, 3)


def test_what_is_no_distribution_is_refused():
    for p in (np.full((1, 3), 0.5), np.full((2, 3), 1.5), np.full((2, 3, 2), 0.2)):
        with pytest.raises(ValueError):
            uncertainty.decompose(p)
