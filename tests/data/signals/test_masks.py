"""Runs of True."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ehrwear_jax.data.signals.masks import runs


def test_runs_by_hand():
    assert runs([1, 1, 0, 1, 0, 0, 1]).tolist() == [[0, 2], [3, 4], [6, 7]]
    assert runs([]).shape == runs([0, 0]).shape == (0, 2)


@given(mask=st.lists(st.booleans(), max_size=40))
def test_runs_are_maximal_and_hold_every_true(mask):
    inside = np.zeros(len(mask), bool)
    for first, last in runs(mask):
        assert first < last and not inside[first:last].any()
        assert (first == 0 or not mask[first - 1]) and (last == len(mask) or not mask[last])
        inside[first:last] = True
    assert inside.tolist() == mask
