"""Non-wear and worn minutes against the published rules applied to the whole past of each window, and by hand."""

import numpy as np
import pytest

from ehrwear_jax.data.formats.stretches import Stretch
from ehrwear_jax.data.formats.times import DAY_US, HOUR_US, MINUTE_US
from ehrwear_jax.data.signals import accelerometry, grid, non_wear, rest_activity

UNITS = {"activity": "counts/min", "heart_rate": "bpm", "temperature": "degC", "worn": "1",
         "acc_x": "mg", "acc_y": "mg", "acc_z": "mg", "steps": "steps/min", "daily": "counts"}  # fmt: skip
LIMITS = {"heart_rate": (25.0, 230.0)}
COUNTS = non_wear.parse(("activity:counts",), UNITS)
START_US = 17_000 * DAY_US


def stretch(channel, values, start_minute=0.0, device="watch", rate_hz=1 / 60):
    values = np.asarray(values, np.float32)
    return Stretch(START_US + round(start_minute * MINUTE_US), rate_hz, channel, values, device)


def worn_minutes(rows, rules=COUNTS, hours=6):
    """{hour after START_US at which a window ends: minutes worn}."""
    window_us = hours * HOUR_US
    kept = non_wear.remove(rows, rules, window_us, LIMITS)
    recorded = non_wear.recorded_minutes(kept, rules, window_us, LIMITS)
    end_us = START_US + np.arange(1, 6 * 24 // hours + 1) * window_us
    n_M = non_wear.minutes_of_windows(recorded, end_us)
    assert n_M.dtype == np.int16 and n_M.sum() == recorded[1].sum()
    return {int((e - START_US) // HOUR_US): int(n) for e, n in zip(end_us, n_M, strict=True) if n}


def a_recording(rng, n):
    """Counts with runs of zeros of all lengths, spikes in some of them, minutes that are missing."""
    counts, at = np.zeros(n), 0
    while at < n:
        active, quiet = int(rng.integers(1, 60)), int(rng.integers(20, 300))
        counts[at : at + active] = rng.integers(1, 200, len(counts[at : at + active]))
        for _ in range(rng.integers(0, 3)):
            spike = at + active + int(rng.integers(0, quiet))
            counts[spike : spike + int(rng.integers(1, 4))] = 5
        at += active + quiet
    counts[rng.random(n) < 0.002] = np.nan
    return counts


# ---------------------------------------------------------------------------------------------------------- counts
@pytest.mark.parametrize(("hours", "seed"), [(1, 0), (6, 1), (6, 2), (24, 3)])
def test_a_window_is_judged_by_everything_known_at_its_end_and_by_nothing_else(hours, seed):
    counts = a_recording(np.random.default_rng(seed), 4 * 1440)
    (got,) = non_wear.remove([stretch("activity", counts)], COUNTS, hours * HOUR_US, LIMITS)
    want, step = counts.astype(np.float32), hours * 60
    for end in range(step, len(counts) + 1, step):
        off = rest_activity.non_wear_counts(counts[:end])[end - step :]
        want[end - step : end][off] = np.nan
    np.testing.assert_array_equal(got.values_N, want)
    share = np.isnan(want).mean()
    assert 0.2 < share < 0.8 and share != np.mean(rest_activity.non_wear_counts(counts) | np.isnan(counts))


@pytest.mark.parametrize("rules", [COUNTS, non_wear.parse(("auto",), UNITS)])
def test_nothing_after_a_windows_end_changes_it(rules):
    rng = np.random.default_rng(0)
    counts, cut = a_recording(rng, 2 * 1440), 1080
    other = np.where(np.arange(len(counts)) < cut, counts, a_recording(rng, len(counts)))
    still = np.where(rng.random(len(counts) // 60).repeat(60) < 0.5, 0.0, rng.normal(0, 60, (3, len(counts))))
    moved = np.where(np.arange(len(counts)) < cut, still, rng.normal(0, 60, still.shape))
    found = []
    for activity, acceleration in ((counts, still), (other, moved)):
        rows = [stretch(c, x) for c, x in zip(("acc_x", "acc_y", "acc_z"), acceleration, strict=True)]
        rows += [stretch("activity", activity), stretch("temperature", np.full(len(counts), 33.0))]
        found.append(non_wear.remove(rows, rules, 6 * HOUR_US, LIMITS))
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a.values_N[:cut], b.values_N[:cut])
    lost = [np.isnan(rows[-1].values_N[cut:]) for rows in found]
    assert np.isnan(found[0][-1].values_N[:cut]).any() and (lost[0] != lost[1]).any()


def test_a_run_that_ends_a_window_too_short_is_found_from_the_next_one_on():
    counts = np.r_[np.full(330, 9.0), np.zeros(100), np.full(290, 9.0)]  # 30 minutes before six o'clock, 70 after it
    assert worn_minutes([stretch("activity", counts)]) == {6: 360, 12: 290}


def test_spikes_at_the_ends_of_what_is_known_are_judged_by_what_there_is_of_the_quiet_around_them():
    counts = np.full(360, np.nan)
    counts[270:] = 0
    counts[[300, 301, 332, 333]] = 5  # ninety minutes, four of them in two spikes
    assert rest_activity.non_wear_counts(counts)[270:].all()
    assert worn_minutes([stretch("activity", counts)]) == {}


def test_a_device_in_a_drawer_is_not_worn():
    days = 3
    assert worn_minutes([stretch("activity", np.zeros(days * 1440))]) == {}
    half = worn_minutes([stretch("activity", np.zeros(days * 1440 + 17), start_minute=333.5)])
    assert half == {6: 26}, "the minutes that end before six o'clock may be worn for all that is known then"
    assert sum(worn_minutes([stretch("activity", np.zeros(1440))], non_wear.parse((), UNITS)).values()) == 1440


def test_a_heart_rate_shows_wear_and_a_stray_one_does_not():
    counts, heart = np.zeros(1440), np.full(1440, np.nan)
    heart[:720] = 55.0
    heart[1000] = 80.0  # one minute between half hours of nothing
    heart[1200] = 400.0  # not plausible
    rows = [stretch("activity", counts), stretch("heart_rate", heart)]
    assert worn_minutes(rows) == {6: 360, 12: 360}
    sparse = np.full(288, np.nan)
    sparse[:144:2] = 55.0  # every ten minutes, for five
    rows[1] = stretch("heart_rate", sparse, rate_hz=1 / 300)
    assert worn_minutes(rows) == {6: 360, 12: 360}
    rows[1] = stretch("heart_rate", heart, device="chest strap")
    assert worn_minutes(rows[:1]) == {} and worn_minutes(rows)[6] == 360
    assert np.isnan(non_wear.remove(rows, COUNTS, 6 * HOUR_US, LIMITS)[0].values_N).all(), "another device's"


def test_all_channels_of_the_device_lose_that_time_but_values_of_long_times():
    counts = np.r_[np.full(480, 9.0), np.zeros(240), np.full(720, 9.0)]
    rows = [
        stretch("activity", counts), stretch("temperature", np.full(288, 33.0), rate_hz=1 / 300),
        stretch("temperature", np.full(1440 * 60, 33.0), rate_hz=1.0), stretch("steps", np.ones(1440), device="phone"),
        stretch("daily", [100.0], rate_hz=1 / 86400), stretch("temperature", np.full(24, 33.0), 40, rate_hz=1 / 3600),
    ]  # fmt: skip
    got = [np.flatnonzero(np.isnan(row.values_N)) for row in non_wear.remove(rows, COUNTS, 6 * HOUR_US, LIMITS)]
    np.testing.assert_array_equal(got[0], np.arange(480, 720))
    np.testing.assert_array_equal(got[1], np.arange(96, 144))
    np.testing.assert_array_equal(got[2], np.arange(480 * 60, 720 * 60))
    assert not len(got[3]) and not len(got[4])
    # hours from 8:40 to 10:40; that from 11:40 lies, as the grid has it, in the next window, from twelve o'clock on
    np.testing.assert_array_equal(got[5], [8, 9, 10])


@pytest.mark.parametrize("start", [0.0, 0.25, 17.75])
def test_samples_are_taken_out_as_the_grid_counts_them(start):
    """Nothing of a run is left on the grid, however its minutes lie between those of the clock."""
    rng = np.random.default_rng(0)
    counts = a_recording(rng, 2 * 1440)
    kept = non_wear.remove([stretch("activity", counts, start)], COUNTS, 6 * HOUR_US, LIMITS)
    spec = grid.WindowSpec(("activity",), 6, step_minutes=1, min_coverage=0.0)
    end_M, raw, _ = grid.window_person([stretch("activity", counts, start)], spec, {})
    end_K, left, _ = grid.window_person(kept, spec, {})
    left = dict(zip(end_K, left[..., 0], strict=True))
    known = np.zeros(0)
    for end, values in zip(end_M, raw[..., 0], strict=True):
        known = np.concatenate([known, values])
        off = rest_activity.non_wear_counts(known)[-360:]
        np.testing.assert_array_equal(left.get(end, np.full(360, np.nan)), np.where(off, np.nan, values))


def test_a_flag_of_the_device_is_believed_and_kept():
    flag = np.r_[np.ones(200), np.zeros(160), np.ones(1080)]
    rows = [stretch("worn", flag), stretch("activity", np.full(1440, 9.0))]
    rules = non_wear.parse(("worn:flag",), UNITS)
    got = non_wear.remove(rows, rules, 6 * HOUR_US, LIMITS)
    np.testing.assert_array_equal(got[0].values_N, flag.astype(np.float32))
    np.testing.assert_array_equal(np.isnan(got[1].values_N), flag == 0)
    assert worn_minutes(rows, rules) == {6: 200, 12: 360, 18: 360, 24: 360} == worn_minutes(rows[:1], rules)


# ---------------------------------------------------------------------------------------------------- acceleration
def axes(acceleration_Tx3, rate_hz, start_minute=0.0, pieces=1):
    rows = []
    for name, x in zip(("acc_x", "acc_y", "acc_z"), 1000 * np.asarray(acceleration_Tx3).T, strict=True):
        edges = np.linspace(0, len(x), (pieces + (name == "acc_y")) + 1).astype(int)
        for a, b in zip(edges[:-1], edges[1:], strict=True):
            rows.append(stretch(name, x[a:b], start_minute + a / rate_hz / 60, rate_hz=rate_hz))
    return rows


@pytest.mark.parametrize("pieces", [1, 3])
def test_acceleration_is_judged_as_the_reference_judges_what_is_known(pieces):
    rng, rate = np.random.default_rng(0), 0.2
    n = round(24 * 3600 * rate)
    amount = np.repeat(rng.choice([0.002, 0.012, 0.05], 48), n // 48)[:, None]
    x = np.array([0.2, -0.3, 0.9]) + amount * rng.standard_normal((n, 3)) * [1.0, 1.2, 0.8]
    x[5000:5400] = np.nan
    rules = non_wear.parse(("auto",), UNITS)
    assert ("acceleration", ("acc_x", "acc_y", "acc_z")) in rules.found_by
    rows = axes(x, rate, pieces=pieces)
    got = non_wear.remove(rows, rules, 6 * HOUR_US, LIMITS)
    lost = np.concatenate([np.isnan(row.values_N) for row in got if row.channel == "acc_y"])
    want, step = np.isnan(x[:, 1]), round(6 * 3600 * rate)
    for end in range(step, n + 1, step):
        want[end - step : end] |= accelerometry.non_wear_acceleration(x[:end].astype(np.float32), rate)[end - step :]
    np.testing.assert_array_equal(lost, want)
    assert 0.15 < want.mean() < 0.85


def test_constant_acceleration_is_a_drawer_and_a_heart_rate_shows_wear():
    rate = 1.0
    x = np.tile([0.0, 0.0, 1.0], (86_400, 1))
    rules = non_wear.parse(("acc_x,acc_y,acc_z:acceleration",), UNITS)
    assert worn_minutes(axes(x, rate), rules) == {}
    heart = np.full(1440, np.nan)
    heart[:600] = 60.0
    worn = worn_minutes([*axes(x, rate), stretch("heart_rate", heart)], rules)
    assert worn == {6: 360, 12: 240}
    noise = x + 0.05 * np.random.default_rng(0).standard_normal(x.shape)
    assert sum(worn_minutes(axes(noise, rate), rules).values()) == 1440
    in_g = non_wear.parse(("acc_x,acc_y,acc_z:acceleration",), UNITS | dict.fromkeys(("acc_x", "acc_y", "acc_z"), "g"))
    assert sum(worn_minutes(axes(noise / 5, rate), rules).values()) == 0, "10 mg: still"
    assert sum(worn_minutes(axes(noise / 5, rate), in_g).values()) == 1440, "of milli-g taken as g it is not"


# ------------------------------------------------------------------------------------------------- minutes and rules
def test_worn_minutes_are_those_with_a_value_of_any_channel():
    few = np.full(1440, np.nan)
    few[:72] = 9.0
    other = np.full(1440, np.nan)
    other[60:100] = 70.0
    rows = [stretch("activity", few), stretch("heart_rate", other), stretch("heart_rate", [500.0] * 50, 400)]
    assert worn_minutes(rows) == {6: 100}, "each minute once; what is not plausible is no value"
    assert worn_minutes([stretch("temperature", [33.0] * 12, 358, rate_hz=1 / 300)]) == {12: 58}, "where samples end"
    assert worn_minutes([stretch("steps", np.ones(1500), rate_hz=25.0)]) == {6: 1}
    assert worn_minutes([stretch("temperature", [33.0] * 3, rate_hz=1 / 3600)]) == {6: 180}
    assert worn_minutes([stretch("daily", [100.0], rate_hz=1 / 86400)]) == {}, "a sum of a day is no day of wear"
    assert worn_minutes([]) == {}


def test_rules_are_found_by_units_or_refused_by_name():
    auto = non_wear.parse(("auto",), UNITS)
    assert auto.found_by == (("counts", ("activity",)), ("acceleration", ("acc_x", "acc_y", "acc_z")))
    assert auto.heart == ("heart_rate",) and auto.in_g == dict.fromkeys(("acc_x", "acc_y", "acc_z"), 1e-3)
    assert non_wear.parse(("auto", "activity:counts", "steps:counts"), UNITS).found_by[2:] == (("counts", ("steps",)),)
    nothing = non_wear.parse(("auto",), {"heart_rate": "bpm"})
    assert nothing.found_by == () and nothing.channels == (), "worn where there are values"
    row = stretch("heart_rate", [60.0])
    assert non_wear.remove([row], nothing, 6 * HOUR_US, LIMITS)[0] is row
    for text, message in {
        "activity:choi": "expected 'auto' or 'channel:rule' with a rule of counts, acceleration, flag",
        "counts": "expected 'auto'",
        "activty:counts": r"no channel \['activty'\]",
        "acc_x:acceleration": "takes three axes",
        "activity,steps:counts": "takes one channel",
        "activity,steps,worn:acceleration": "not acceleration",
    }.items():
        with pytest.raises(ValueError, match=message):
            non_wear.parse((text,), UNITS)
