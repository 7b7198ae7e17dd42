"""What is hidden, and how often: rates per token within binomial bounds, runs of patches."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehrwear_jax.models.joint import masking


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


def mask_events(rng, token_N, *chances):
    """Which events are hidden, each by its own chance, as row.fill_rows draws it."""
    return rng.random(len(token_N)) < masking.mask_chances(token_N, *chances)


def test_temperature_zero_hides_all_codes_alike():
    np.testing.assert_allclose(masking.token_weights([7, 0, 123456], 0.0), [1.0, 0.0, 1.0])


@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0])
def test_each_token_is_hidden_at_its_own_rate(temperature):
    counts_V = np.array([0, 50, 2_000, 40_000, 158_000])
    weight_V = masking.token_weights(counts_V, temperature)
    token_N = np.repeat(np.arange(5), np.maximum(counts_V, 100))
    hidden_N = mask_events(np.random.default_rng(0), token_N, weight_V, 0.15)
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
    draws = [mask_events(np.random.default_rng(s), token_N, weight_V, 0.5) for s in (1, 1, 2)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert np.any(draws[0] != draws[2])
    assert mask_events(np.random.default_rng(0), token_N[:0], weight_V, 0.5).shape == (0,)


@given(seed=st.integers(0, 99), n_windows=st.integers(0, 12), n_patches=st.integers(1, 24), rate=st.floats(0.0, 1.0))
def test_patches_are_one_run_of_the_stated_length(seed, n_windows, n_patches, rate):
    mask_WxP = masking.mask_patches(np.random.default_rng(seed), n_windows, n_patches, rate)
    assert mask_WxP.shape == (n_windows, n_patches) and mask_WxP.dtype == bool
    for row in mask_WxP:
        at = np.nonzero(row)[0]
        assert abs(len(at) - rate * n_patches) < 1 and (not len(at) or at[-1] - at[0] + 1 == len(at))


def test_every_start_of_a_run_is_equally_likely():
    mask_WxP = masking.mask_patches(np.random.default_rng(0), 9_000, 12, 0.25)
    start_W = mask_WxP.argmax(axis=1)
    n_S = np.bincount(start_W, minlength=10)
    assert len(n_S) == 10, "a run of 3 in 12 patches starts at 0..9"
    assert np.all(np.abs(n_S - 900) < 5 * np.sqrt(900 * 0.9))


# ------------------------------------------------------------------------------------------ near events of interest


@given(
    counts=st.lists(st.integers(0, 10**5), min_size=2, max_size=10),
    scale=st.floats(0.0, 2.0),
    temperature=st.floats(0.0, 1.5),
)
def test_a_scale_lowers_a_code_against_the_others(counts, scale, temperature):
    scale_V = np.where(np.arange(len(counts)) % 2, scale, 1.0)
    weight_V, plain_V = masking.token_weights(counts, temperature, scale_V), masking.token_weights(counts, temperature)
    seen = np.nonzero(plain_V * scale_V)[0]
    if len(seen):
        np.testing.assert_allclose((weight_V * counts).sum() / sum(counts), 1.0, rtol=1e-9)
        ratio = weight_V[seen] / (plain_V * scale_V)[seen]
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-9)
    np.testing.assert_array_equal(masking.token_weights(counts, temperature, 1.0), plain_V)


@given(days=st.lists(st.integers(0, 60), max_size=20), seed=st.integers(0, 99), within=st.integers(0, 20))
def test_near_is_within_the_days_on_either_side(days, seed, within):
    day_us = 86_400_000_000
    time_N = np.sort(np.array(days, np.int64)) * day_us + 10**15
    interest_N = np.random.default_rng(seed).random(len(days)) < 0.2
    got = masking.near_events(time_N, interest_N, within)
    want = [bool(np.any(np.abs(time_N[interest_N] - t) <= within * day_us)) for t in time_N]
    assert got.dtype == bool and got.tolist() == want


boosted = st.tuples(
    st.integers(0, 999), st.integers(0, 40), st.floats(0.01, 1.0), st.floats(1.0, 50.0), st.floats(0.0, 1.5)
)


def draw_boosted(case):
    seed, n, rate, factor, temperature = case
    rng = np.random.default_rng(seed)
    weight_V = masking.token_weights([0, 3, 50, 1000, 20_000], temperature)
    token_N, near_N = rng.integers(0, 5, n), rng.random(n) < 0.3
    return token_N, weight_V, rate, near_N, np.where(near_N, factor, 1.0)


@given(boosted)
def test_a_boost_moves_chances_and_keeps_their_sum(case):
    token_N, weight_V, rate, near_N, boost_N = draw_boosted(case)
    plain_N = masking.mask_chances(token_N, weight_V, rate)
    chance_N = masking.mask_chances(token_N, weight_V, rate, boost_N)
    np.testing.assert_allclose(chance_N.sum(), plain_N.sum(), atol=1e-9)
    assert np.all(chance_N >= 0) and np.all(chance_N <= masking.MAX_CHANCE + 1e-12)
    assert not chance_N[weight_V[token_N] == 0].any()
    free_N = (chance_N < masking.MAX_CHANCE - 1e-9) & (chance_N > 0)
    ratio_N = chance_N[free_N] / (rate * weight_V[token_N] * boost_N)[free_N]
    if len(ratio_N):
        np.testing.assert_allclose(ratio_N, ratio_N[0], rtol=1e-9, err_msg="in proportion below the cap")
        capped_N = chance_N >= masking.MAX_CHANCE - 1e-9
        assert np.all((rate * weight_V[token_N] * boost_N)[capped_N] * ratio_N[0] >= masking.MAX_CHANCE - 1e-6)
    np.testing.assert_allclose(
        masking.mask_chances(token_N, weight_V, rate, np.full(len(token_N), 7.0)), plain_N, atol=1e-9
    )


def test_near_events_are_hidden_by_the_factor_more_and_the_share_stays():
    weight_V, n = np.ones(2), 40_000
    near_N = np.arange(10) < 2
    boost_N = np.where(near_N, 3.0, 1.0)
    rng = np.random.default_rng(0)
    hidden = np.stack([mask_events(rng, np.ones(10, int), weight_V, 0.15, boost_N) for _ in range(n)])
    assert abs(hidden.mean() - 0.15) < 5 * np.sqrt(0.15 * 0.85 / (10 * n))
    near, far = hidden[:, near_N].mean(), hidden[:, ~near_N].mean()
    for got, want in ((near, 0.15 * 3 / 1.4), (far, 0.15 / 1.4)):
        assert abs(got - want) < 5 * np.sqrt(want * (1 - want) / (2 * n))


# -------------------------------------------------------------------------------------- other masks of the windows


@given(seed=st.integers(0, 99), n_windows=st.integers(0, 12), n_patches=st.integers(1, 24), rate=st.floats(0.0, 1.0))
def test_each_kind_hides_what_it_says(seed, n_windows, n_patches, rate):
    rng = np.random.default_rng(seed)
    random_WxP = masking.mask_patches(rng, n_windows, n_patches, rate, "random")
    assert random_WxP.shape == (n_windows, n_patches) and random_WxP.dtype == bool
    assert np.all(np.abs(random_WxP.sum(axis=1) - rate * n_patches) < 1)
    window_WxP = masking.mask_patches(rng, n_windows, n_patches, rate, "window")
    assert window_WxP.shape == (n_windows, n_patches) and np.all(window_WxP == window_WxP[:, :1])
    assert abs(window_WxP[:, 0].sum() - rate * n_windows) < 1 + 1e-9
    channel_WxC = masking.mask_channels(rng, n_windows, 3, rate)
    assert channel_WxC.shape == (n_windows, 3) and channel_WxC.dtype == bool
    assert np.all(np.abs(channel_WxC.sum(axis=1) - 3 * rate) < 1 + 1e-9)


@pytest.mark.parametrize("rate", [0.25, 0.5])
def test_the_hidden_share_is_the_rate_and_every_part_is_as_likely(rate):
    n, rng = 20_000, np.random.default_rng(0)
    bound = 5 * np.sqrt(rate * (1 - rate) / n)
    for n_channels in (1, 2, 3):
        assert np.all(np.abs(masking.mask_channels(rng, n, n_channels, rate).mean(axis=0) - rate) < bound)
    assert np.all(np.abs(masking.mask_patches(rng, n, 8, rate, "random").mean(axis=0) - rate) < bound)
    whole = np.stack([masking.mask_patches(rng, 3, 2, rate, "window")[:, 0] for _ in range(n)])
    assert np.all(np.abs(whole.mean(axis=0) - rate) < bound)
    assert abs(masking.mask_patches(rng, n, 8, rate).mean() - rate) < 1e-12
    for kind in ("contiguous", "random"):
        assert abs(masking.mask_patches(rng, n, 6, rate, kind).mean() - rate) < bound, "6 patches: 1.5 in the mean"


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="no mask of patches is called 'diagonal'"):
        masking.mask_patches(np.random.default_rng(0), 1, 4, 0.25, "diagonal")
