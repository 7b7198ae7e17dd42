"""Words seed the same generators as the numbers that they are made of."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ehrwear_jax.data import random_streams


@given(st.lists(st.one_of(st.integers(0, 9), st.integers(0, 2**32), st.integers(0, 2**70)), min_size=1, max_size=6))
def test_words_seed_the_same_generator_as_the_key(key):
    for make in (np.random.PCG64, np.random.SFC64):
        one, two = (np.random.Generator(make(seed)) for seed in (key, random_streams.words(key)))
        np.testing.assert_array_equal(one.integers(0, 2**63, 4), two.integers(0, 2**63, 4))
