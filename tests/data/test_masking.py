"""What is hidden, and how often: rates per token within binomial bounds, runs of patches."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehrwear_jax.data import masking


@given(
    counts=st.lists(st.integers(0, 10**7), min_size=1, max_size=30),
    temperature=st.floats(0.0, 1.5),
)
def test_weights_average_one_over_occurrences_and_follow_the_power_law(counts, temperature):
    counts_V = np.array(counts, np.float64)
    weight_V = masking.token_weights(counts, temperature)
    assert np.isfinite(weight_V).all() and not weight_V[counts_V == 0].any()
    seen = np.nonzero(counts_V)[0]
    if len(seen):
        np.testing.assert_allclose((weight_V * counts_V).sum() / counts_V.sum(), 1.0, rtol=1e-9)
        ratio = weight_V[seen] / weight_V[seen[0]]
        np.testing.assert_allclose(ratio, (counts_V[seen] / counts_V[seen[0]]) ** -temperature, rtol=1e-9)


def test_temperature_zero_hides_all_codes_alike():
    np.testing.assert_allclose(masking.token_weights([7, 0, 123456], 0.0), [1.0, 0.0, 1.0])


@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0])
def test_each_token_is_hidden_at_its_own_rate(temperature):
    counts_V = np.array([0, 50, 2_000, 40_000, 158_000])
    weight_V = masking.token_weights(counts_V, temperature)
    token_N = np.repeat(np.arange(5), np.maximum(counts_V, 100))
    hidden_N = masking.mask_events(np.random.default_rng(0), token_N, weight_V, 0.15)
    assert hidden_N.dtype == bool and hidden_N.shape == token_N.shape
    for token, weight in enumerate(weight_V):
        mine = hidden_N[token_N == token]
        chance = min(0.15 * weight, 0.9)
        assert abs(mine.mean() - chance) <= 5 * np.sqrt(chance * (1 - chance) / len(mine)), token
    if temperature == 0.0:
        assert abs(hidden_N[token_N > 0].mean() - 0.15) < 5 * np.sqrt(0.15 * 0.85 / 2e5)
    if temperature == 1.0:  # the rarest token would be hidden always; something of it must stay visible
        assert 0.15 * weight_V[1] > 0.9 and not hidden_N[token_N == 1].all()
    assert not hidden_N[token_N == 0].any(), "a token without training occurrences is no target"


def test_masks_are_a_function_of_the_generator():
    weight_V, token_N = np.ones(3), np.arange(3).repeat(50)
    draws = [masking.mask_events(np.random.default_rng(s), token_N, weight_V, 0.5) for s in (1, 1, 2)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert np.any(draws[0] != draws[2])
    assert masking.mask_events(np.random.default_rng(0), token_N[:0], weight_V, 0.5).shape == (0,)


@given(seed=st.integers(0, 99), n_windows=st.integers(0, 12), n_patches=st.integers(1, 24), rate=st.floats(0.0, 1.0))
def test_patches_are_one_run_of_the_stated_length(seed, n_windows, n_patches, rate):
    mask_WxP = masking.mask_patches(np.random.default_rng(seed), n_windows, n_patches, rate)
    assert mask_WxP.shape == (n_windows, n_patches) and mask_WxP.dtype == bool
    length = 0 if rate == 0 else min(n_patches, max(1, round(rate * n_patches)))
    for row in mask_WxP:
        at = np.nonzero(row)[0]
        assert len(at) == length and (length == 0 or at[-1] - at[0] + 1 == length)


def test_every_start_of_a_run_is_equally_likely():
    mask_WxP = masking.mask_patches(np.random.default_rng(0), 9_000, 12, 0.25)
    start_W = mask_WxP.argmax(axis=1)
    n_S = np.bincount(start_W, minlength=10)
    assert len(n_S) == 10, "a run of 3 in 12 patches starts at 0..9"
    assert np.all(np.abs(n_S - 900) < 5 * np.sqrt(900 * 0.9))
