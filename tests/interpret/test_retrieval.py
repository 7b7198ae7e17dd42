"""Recall against counting by hand, and what ties, chance and same-patient keys do to it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrwear_jax.interpret import retrieval


@given(st.integers(1, 12), st.integers(1, 3), st.integers(0, 99))
@settings(max_examples=25)
def test_hits_are_the_share_of_tie_orders_that_hit(n, levels, seed):
    """Small integer vectors have many ties; the reference shuffles them."""
    rng = np.random.default_rng(seed)
    query, key = rng.integers(0, levels + 1, (2, n, 2)).astype(float)
    hits, _ = retrieval.hit_chance(query, key, ranks=(1, 3))
    similarity = query @ key.T
    draws = np.zeros((2, n))
    for _ in range(400):
        shuffled = np.argsort(-(similarity + 1e-6 * rng.random((n, n))), axis=1)
        place = np.argmax(shuffled == np.arange(n)[:, None], axis=1)
        draws += np.stack([place < 1, place < 3]) / 400
    np.testing.assert_allclose(np.stack([hits[1], hits[3]]), draws, atol=0.12)


def test_identical_orthogonal_and_collapsed_vectors():
    same = retrieval.recall(np.eye(20), np.eye(20) * 3)
    assert all(same[d][k].mean() == 1.0 for d in ("ehr_to_wear", "wear_to_ehr") for k in (1, 10))
    assert same["chance"] == pytest.approx({1: 1 / 20, 10: 0.5})
    collapsed = retrieval.recall(np.ones((20, 4)), np.ones((20, 4)))
    assert collapsed["ehr_to_wear"][1].mean() == pytest.approx(1 / 20)
    assert collapsed["wear_to_ehr"][10].mean() == pytest.approx(0.5)


def test_random_vectors_score_chance():
    rng = np.random.default_rng(0)
    found = retrieval.recall(*rng.normal(size=(2, 3000, 8)))
    assert abs(found["ehr_to_wear"][10].mean() - 10 / 3000) < 4 * np.sqrt(10) / 3000


def test_directions_differ():
    ehr = np.array([[1.0, 0.0], [0.9, np.sqrt(0.19)], [0.0, 1.0]])
    wear = np.array([[1.0, 0.0], [1.0, 0.1], [0.7, 0.7]])
    found = retrieval.recall(ehr, wear)
    assert found["ehr_to_wear"][1].mean() != found["wear_to_ehr"][1].mean()


def test_other_keys_of_the_same_patient_are_no_candidates():
    group = np.array([0, 0, 1, 2])
    vector = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    hits, chance = retrieval.hit_chance(vector, vector, (1,), group)
    assert list(hits[1]) == [1.0, 1.0, 1.0, 1.0]
    assert chance[1] == pytest.approx(np.mean([1 / 3, 1 / 3, 1 / 4, 1 / 4]))
    assert list(retrieval.hit_chance(vector, vector, (1,))[0][1]) == [0.5, 0.5, 1.0, 1.0]


def test_blocks_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 50, 5))
    whole = retrieval.hit_chance(x, y)
    monkeypatch.setattr(retrieval, "BLOCK", 7)
    parts = retrieval.hit_chance(x, y)
    assert all((whole[0][k] == parts[0][k]).all() for k in (1, 10)) and whole[1] == parts[1]


def test_rows_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        retrieval.hit_chance(np.ones((3, 2)), np.ones((4, 2)))
    with pytest.raises(ValueError, match="finite"):
        retrieval.hit_chance(np.ones((3, 2)), np.full((3, 2), np.nan))
