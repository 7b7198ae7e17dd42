"""Changes of the signal: bounds that hold for every draw, rates and variances within statistical bounds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehrwear_jax.models.joint import augmentation as augment

seeds = st.integers(0, 10_000)


def windows(seed, n_windows=5, n_steps=36, n_channels=2, missing=0.2):
    rng = np.random.default_rng(seed)
    signal_MxLxC = rng.normal(size=(n_windows, n_steps, n_channels)).astype(np.float32)
    signal_MxLxC[rng.random(signal_MxLxC.shape) < missing] = np.nan
    return signal_MxLxC


CHANGES = {
    "time_warp": lambda rng, x: augment.time_warp(rng, x, 0.05),
    "add_noise": lambda rng, x: augment.add_noise(rng, x, 0.3, 8),
    "drop_channels": lambda rng, x: augment.drop_channels(rng, x, 0.4),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_a_function_of_its_generator_and_leaves_its_input_alone(name):
    signal = windows(0)
    kept = signal.copy()
    one, again, other = (CHANGES[name](np.random.default_rng(s), signal) for s in (1, 1, 2))
    np.testing.assert_array_equal(signal, kept)
    np.testing.assert_array_equal(one, again)
    assert one.shape == signal.shape and one.dtype == signal.dtype
    assert not np.array_equal(one, other, equal_nan=True) and not np.array_equal(one, signal, equal_nan=True)


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("shape", [(0, 12, 2), (3, 1, 2), (2, 12, 1), (2, 12, 0)])
def test_any_size_will_do(name, shape):
    assert CHANGES[name](np.random.default_rng(0), np.zeros(shape, np.float32)).shape == shape


@pytest.mark.parametrize("name", CHANGES)
def test_nothing_of_a_window_depends_on_another(name):
    signal = windows(3)
    other = signal.copy()
    other[2] = windows(4)[2]
    before, after = (CHANGES[name](np.random.default_rng(5), x) for x in (signal, other))
    same = np.arange(len(signal)) != 2
    np.testing.assert_array_equal(before[same], after[same])


# ------------------------------------------------------------------------------------------------------- time warp


@given(seed=seeds, n_steps=st.integers(2, 400), bound=st.floats(0.0, augment.MAX_WARP))
def test_warped_time_runs_forward_within_its_bound_from_end_to_end(seed, n_steps, bound):
    position_MxL = augment.warp_positions(np.random.default_rng(seed), 4, n_steps, bound)
    assert position_MxL.shape == (4, n_steps)
    assert np.all(position_MxL[:, 0] == 0) and np.all(position_MxL[:, -1] == n_steps - 1)
    slope = np.diff(position_MxL, axis=1)
    assert np.all(slope >= 1 - 3 * np.pi * bound - 1e-9) and np.all(slope > 0)
    moved = np.abs(position_MxL - np.arange(n_steps)) / (n_steps - 1)
    assert np.all(moved <= bound + 1e-12)
    # smooth: the second derivative of sum_k c_k sin(pi k u) is at most (3 pi)^2 sum_k |c_k|
    bend = np.abs(np.diff(slope, axis=1)) * (n_steps - 1)
    assert np.all(bend <= (3 * np.pi) ** 2 * bound + 1e-6)


def test_warps_use_their_bound():
    position_MxL = augment.warp_positions(np.random.default_rng(0), 2000, 200, 0.05)
    moved_M = np.abs(position_MxL - np.arange(200)).max(axis=1) / 199
    assert 0.04 < moved_M.max() <= 0.05 and 0.01 < moved_M.mean() < 0.03
    mean_L = (position_MxL - np.arange(200)).mean(axis=0) / 199
    assert np.abs(mean_L).max() < 0.002, "no direction is preferred"


@pytest.mark.parametrize("bound", [-0.01, 0.101, np.nan])
def test_a_warp_that_could_run_backwards_is_refused(bound):
    with pytest.raises(ValueError, match="time warp"):
        augment.warp_positions(np.random.default_rng(0), 1, 10, bound)


@given(seed=seeds, n_steps=st.integers(2, 60), missing=st.sampled_from([0.0, 0.3, 0.9, 1.0]))
def test_a_warp_interpolates_and_a_gap_stays_where_the_nearest_step_is_missing(seed, n_steps, missing):
    signal = windows(seed, 3, n_steps, 2, missing)
    position_MxL = augment.warp_positions(np.random.default_rng(seed), 3, n_steps, 0.05)
    got = augment.time_warp(np.random.default_rng(seed), signal, 0.05)
    for m, step, c in np.ndindex(got.shape):
        at = position_MxL[m, step]
        left = min(int(at), n_steps - 2)
        pair, share = signal[m, left : left + 2, c].astype(np.float64), at - left
        nearest = pair[int(share > 0.5)]
        if abs(share - 0.5) < 1e-5 and np.isnan(pair).any():
            continue
        want = (1 - share) * pair[0] + share * pair[1] if not np.isnan(pair).any() else nearest
        np.testing.assert_allclose(got[m, step, c], want, atol=1e-5)
    for end in (0, -1):
        np.testing.assert_allclose(got[:, end], signal[:, end], atol=1e-6)


def test_all_channels_of_a_window_are_warped_alike():
    signal = np.repeat(windows(0, n_channels=1, missing=0.0), 3, axis=2) * np.float32([1, 2, -1])
    got = augment.time_warp(np.random.default_rng(0), signal)
    np.testing.assert_allclose(got[..., 1], 2 * got[..., 0], atol=1e-5)
    np.testing.assert_allclose(got[..., 2], -got[..., 0], atol=1e-5)


# ------------------------------------------------------------------------------------------------------------ noise


@given(seed=seeds, span=st.integers(2, 12), n_steps=st.integers(1, 20))
def test_local_deviation_is_that_of_the_steps_around(seed, span, n_steps):
    signal = windows(seed, 2, n_steps, 2, 0.3) + 40.0
    got = augment.local_std(signal, span)
    for m, step, c in np.ndindex(got.shape):
        around = signal[m, max(step - span // 2, 0) : step + span - span // 2, c].astype(np.float64)
        around = around[np.isfinite(around)]
        np.testing.assert_allclose(got[m, step, c], np.std(around) if len(around) > 1 else 0.0, atol=1e-6)


@pytest.mark.parametrize("scale", [0.1, 0.5])
def test_noise_has_the_stated_variance_and_misses_what_is_missing(scale):
    n = 4000
    signal = np.repeat(windows(0, 1, 40, 2, 0.2), n, axis=0)
    noise = augment.add_noise(np.random.default_rng(0), signal, scale, 8).astype(np.float64) - signal
    seen = np.isfinite(signal[0])
    assert np.all(np.isnan(noise[:, ~seen])) and np.isfinite(noise[:, seen]).all()
    want = (scale * augment.local_std(signal[:1], 8)[0])[seen]
    ratio = noise[:, seen].var(axis=0) / np.maximum(want, 1e-9) ** 2
    assert np.all(np.abs(ratio[want > 0] - 1) < 6 * np.sqrt(2 / n))
    assert np.all(np.abs(noise[:, seen].mean(axis=0)) <= 6 * want / np.sqrt(n) + 1e-6)
    together = np.corrcoef(noise[:, seen].T)
    assert np.abs(together - np.eye(len(together))).max() < 6 / np.sqrt(n), "independent from step to step"


def test_noise_is_local():
    """No noise where the signal is still, ten times as much where it swings ten times as far."""
    signal = np.zeros((2000, 60, 1), np.float32)
    signal[:, 20:40, 0] = np.tile([1, -1], 10)
    signal[:, 40:, 0] = np.tile([10, -10], 10)
    noise = augment.add_noise(np.random.default_rng(0), signal, 0.1, 8) - signal
    assert not noise[:, :16].any()
    small, large = noise[:, 25:35].std(), noise[:, 45:55].std()
    np.testing.assert_allclose([small, large], [0.1, 1.0], rtol=0.02)


# --------------------------------------------------------------------------------------------------------- dropping


@given(seed=seeds, chance=st.floats(0.0, 1.0), n_channels=st.integers(1, 3), missing=st.sampled_from([0.0, 0.5, 0.95]))
def test_a_loss_is_one_run_and_never_all_that_was_seen(seed, chance, n_channels, missing):
    signal = windows(seed, 6, 12, n_channels, missing)
    got = augment.drop_channels(np.random.default_rng(seed), signal, chance)
    seen = np.isfinite(signal)
    left = np.isfinite(got)
    assert not np.any(left & ~seen)
    np.testing.assert_array_equal(got[left], signal[left])
    np.testing.assert_array_equal(left.any(axis=(1, 2)), seen.any(axis=(1, 2)))
    for m, c in np.ndindex(len(signal), n_channels):
        lost = np.nonzero(seen[m, :, c] & ~left[m, :, c])[0]
        if len(lost):
            assert not left[m, lost[0] : lost[-1] + 1, c].any(), "one run"
    if chance == 0:
        np.testing.assert_array_equal(got, signal)


def test_losses_have_the_stated_rate():
    n, chance = 20_000, 0.1
    lost = np.isnan(augment.drop_channels(np.random.default_rng(0), np.ones((n, 12, 3), np.float32), chance))
    rate = lost.any(axis=1).mean()
    bound = 5 * np.sqrt(chance * (1 - chance) / (3 * n))
    assert abs(rate - chance) < bound + chance**3, "a window that would lose all keeps all"
    whole = lost.all(axis=1).sum() / lost.any(axis=1).sum()
    assert abs(whole - (0.5 + 0.5 / 12)) < 0.04, "half of them, and the runs as long as the window"
    partial = lost.sum(axis=1)[lost.any(axis=1) & ~lost.all(axis=1)]
    counts = np.bincount(partial, minlength=12)[1:]
    assert np.all(np.abs(counts - counts.mean()) < 5 * np.sqrt(counts.mean())), "runs of all lengths alike"


@pytest.mark.parametrize("drop_ehr, drop_wear", [(0.1, 0.3), (0.0, 0.2), (0.5, 0.5), (0.0, 0.0)])
def test_modalities_are_dropped_at_their_rates_and_never_both(drop_ehr, drop_wear):
    rng, n = np.random.default_rng(0), 20_000
    kept = np.array([augment.drop_modality(rng, True, True, drop_ehr, drop_wear) for _ in range(n)])
    assert kept.any(axis=1).all()
    for got, chance in zip(1 - kept.mean(axis=0), (drop_ehr, drop_wear), strict=True):
        assert abs(got - chance) <= 5 * np.sqrt(chance * (1 - chance) / n)


@given(seed=seeds, drop_ehr=st.floats(0.0, 1.0))
def test_who_has_one_modality_keeps_it(seed, drop_ehr):
    for has in ((True, False), (False, True)):
        assert augment.drop_modality(np.random.default_rng(seed), *has, drop_ehr, 1 - drop_ehr) == has
