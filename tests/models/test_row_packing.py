"""Rows of examples against a slow greedy loop."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrwear_jax.models import row_packing


@settings(max_examples=60)
@given(
    needs=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 4)), min_size=1, max_size=60),
    limits=st.tuples(st.integers(9, 30), st.integers(4, 10)),
)
def test_rows_are_those_of_a_greedy_loop(needs, limits):
    bounds, used = [0], (0, 0)
    for i, need in enumerate(needs):
        total = (used[0] + need[0], used[1] + need[1])
        if total[0] > limits[0] or total[1] > limits[1]:
            bounds, total = [*bounds, i], need
        used = total
    got = row_packing.pack([np.array(x) for x in zip(*needs, strict=True)], limits)
    assert got.tolist() == [*bounds, len(needs)]


def test_rows_of_many_patients_cross_the_chunks_of_the_loop():
    got = row_packing.pack([np.full(150_001, 2)], (3,))
    np.testing.assert_array_equal(got, np.arange(150_002))
