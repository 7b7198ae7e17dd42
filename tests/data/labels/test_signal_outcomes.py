"""Physiological labels against simulated recordings whose truth is known, and against what the input may see.

Tolerances, means of a week: sleep efficiency 0.08 with six wakings a night and 0.03 with two; RMSSD of intervals exact,
of a raw wave 5 %; resting heart rate 1 beat a minute; regularity exact for equal days.
"""

from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
import small_run
from hypothesis import given, settings
from hypothesis import strategies as st
from pulse_wave import simulated
from rest_days import simulated_counts, simulated_days, true_efficiency

from ehrwear_jax.config.labels import MEASURES, PhysiologyConfig
from ehrwear_jax.data.formats import label_tables, meds, meds_checks, wearable
from ehrwear_jax.data.formats.stretches import Stretch
from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.data.labels import signal_outcomes
from ehrwear_jax.stages import prepare as stage
from ehrwear_jax.stages.labels import Labels

START = datetime(2016, 3, 1)
DAY = 1440
START_US = int(np.datetime64(START, "us").astype(np.int64))
LIMITS = {
    "activity": (0.0, 1e5),
    "heart_rate": (25.0, 230.0),
    "rmssd": (0.0, 500.0),
    "rr": (200.0, 3000.0),
    "ppg": (-9.0, 9.0),
}
ALL = tuple(MEASURES)
ACTIVITY = tuple(m for m in ALL if m != "hrv_rmssd")


def minutes(channel, values, at=START_US, device=None):
    return at, 1 / 60, channel, np.asarray(values, np.float32), device


def at_midnight(day):
    return START_US + day * DAY_US


def of(rows, begin_us, days=7, **options):
    return signal_outcomes.label([Stretch(*row) for row in rows], begin_us, days, PhysiologyConfig(**options), LIMITS)


# ------------------------------------------------------------------------------------------------------- truth
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("wakings", "tolerance"), [(6, 0.08), (2, 0.03)])
def test_sleep_efficiency_of_a_week_is_recovered(seed, wakings, tolerance):
    asleep, ends = simulated_days(seed, n_days=9, wakings=wakings)  # from noon on
    counts = simulated_counts(asleep, seed)
    rows = [
        minutes("activity", counts, START_US + DAY_US // 2),
        minutes("heart_rate", 60 + 0 * counts, START_US + DAY_US // 2),
    ]
    got = of(rows, at_midnight(1) + DAY_US // 2, measures=("sleep_efficiency",))["sleep_efficiency"]
    want = true_efficiency(asleep, ends)[1:8].mean()  # the nights of the seven days from the second noon
    assert got == pytest.approx(want, abs=tolerance)
    # at midnight the first night's beginning may be before the prediction: only what is whole inside counts
    got = of(rows, at_midnight(2), days=6, measures=("sleep_efficiency",))["sleep_efficiency"]
    assert got == pytest.approx(true_efficiency(asleep, ends)[1:8].mean(), abs=tolerance + 0.02)


def test_a_band_put_down_is_neither_sleep_nor_activity():
    asleep, ends = simulated_days(3, n_days=8, wakings=2)
    counts, heart = simulated_counts(asleep, 3), np.full(8 * DAY, 60.0)
    off = slice(2 * DAY, 3 * DAY)
    counts[off], heart[off] = 0.0, np.nan
    rows = [minutes("activity", counts, START_US + DAY_US // 2), minutes("heart_rate", heart, START_US + DAY_US // 2)]
    worn = np.delete(true_efficiency(asleep, ends), 2).mean()
    found = of(rows, START_US + DAY_US // 2, days=8, measures=("sleep_efficiency", "relative_amplitude"))
    assert found["sleep_efficiency"] == pytest.approx(worn, abs=0.03)
    naive = of(rows, START_US + DAY_US // 2, days=8, measures=("sleep_efficiency",), non_wear_minutes=0)
    assert naive["sleep_efficiency"] != found["sleep_efficiency"]


def test_variability_from_a_channel_from_intervals_and_from_a_wave():
    truth, rows = 40.0, {"rmssd": [], "intervals": [], "pulse": []}
    beat = np.array([800.0, 840.0] * 60)
    want_wave = []
    for day in range(7):
        at = at_midnight(day) + 3 * 3_600_000_000
        rows["rmssd"].append(minutes("rmssd", [38.0, np.nan, 40.0, 42.0], at))
        rows["intervals"].append((at, 1.2, "rr", beat, None))
        wave, beats = simulated(25.0, 90, mean_s=0.9, seed=day)
        want_wave.append(np.sqrt(np.mean(np.diff(1000 * np.diff(beats)) ** 2)))
        rows["pulse"].append((at, 25.0, "ppg", wave, None))
    for kind, channel in (("rmssd", "rmssd"), ("intervals", "rr")):
        got = of(rows[kind], START_US, measures=("hrv_rmssd",), hrv_channel=channel, hrv_kind=kind)
        assert got["hrv_rmssd"] == pytest.approx(truth, rel=1e-5)
    got = of(rows["pulse"], START_US, measures=("hrv_rmssd",), hrv_channel="ppg", hrv_kind="pulse")
    assert got["hrv_rmssd"] == pytest.approx(np.mean(want_wave), rel=0.05)


def test_regularity_is_one_for_equal_days_and_chance_for_noise():
    day = 50 + 40 * np.sin(2 * np.pi * np.arange(DAY) / DAY)
    same = of([minutes("activity", np.tile(day, 7))], START_US, measures=ACTIVITY)
    assert same["activity_regularity"] == pytest.approx(1.0, abs=1e-6)
    noise = np.random.default_rng(0).exponential(50, (200, 7 * DAY))
    noise = np.repeat(noise[:, : 7 * 24], 60, axis=1)
    found = [of([minutes("activity", x)], START_US, measures=("activity_regularity",)) for x in noise[:40]]
    assert np.mean([f["activity_regularity"] for f in found]) == pytest.approx(1 / 7, abs=0.02)


def test_resting_heart_rate_is_recovered():
    rng = np.random.default_rng(0)
    active = np.repeat(rng.random(7 * DAY // 10) < 0.4, 10)
    heart = 58 + 25 * active + rng.standard_normal(7 * DAY)
    heart[1:] += 20 * active[:-1] * ~active[1:]
    rows = [minutes("activity", 80 * active), minutes("heart_rate", heart)]
    got = of(rows, START_US, measures=("resting_heart_rate",), non_wear_minutes=0, counts_scale=1.0)
    assert got["resting_heart_rate"] == pytest.approx(58, abs=1.0)


# ------------------------------------------------------------------------------------------------------- enough days
@pytest.mark.parametrize("worn", [3, 4])
def test_too_few_days_give_no_label(worn):
    day = 50 + 40 * np.sin(2 * np.pi * np.arange(DAY) / DAY)
    values = np.tile(day, 7)
    values[worn * DAY :] = np.nan
    rows = [minutes("activity", values), minutes("heart_rate", 60 + 0 * values)]
    rows += [minutes("rmssd", [30.0], at_midnight(d) + 1) for d in range(worn)]
    options = {"hrv_channel": "rmssd", "non_wear_minutes": 0}
    measures = tuple(m for m in ALL if m not in ("sleep_efficiency", "resting_heart_rate"))
    got = of(rows, START_US, measures=measures, **options)
    assert set(got) == set(measures)
    assert np.isfinite(list(got.values())).all() if worn == 4 else np.isnan(list(got.values())).all()


def test_nothing_recorded_gives_no_label():
    assert np.isnan(list(of([], START_US, measures=ALL, hrv_channel="rmssd").values())).all()


# ------------------------------------------------------------------------------------------------------- what it reads
@settings(max_examples=60)
@given(
    start=st.integers(-300, 300), rate=st.sampled_from([1 / 300, 1 / 60, 0.7, 25.0]), n=st.integers(1, 400),
    begin=st.integers(-100, 100), length=st.integers(1, 400),
)  # fmt: skip
def test_only_samples_wholly_within_the_period_are_read(start, rate, n, begin, length):
    begin_us, end_us = begin * 1_000_000, (begin + length) * 1_000_000
    rows = signal_outcomes._inside([Stretch(start * 1_000_000, rate, "x", np.arange(n))], begin_us, end_us)
    edge = start * 1_000_000 + np.round(np.arange(n + 1) * (1e6 / rate)).astype(int)
    want = [i for i in range(n) if edge[i] >= begin_us and edge[i + 1] <= end_us]
    assert [int(v) for row in rows for v in row[3]] == want
    assert all(row[0] == edge[int(row[3][0])] for row in rows)


@pytest.mark.parametrize("offset_minutes", [0, 617])
def test_what_was_recorded_before_the_prediction_or_after_the_period_changes_nothing(offset_minutes):
    rng = np.random.default_rng(1)
    asleep, _ = simulated_days(1, n_days=12)
    counts, heart = simulated_counts(asleep, 1), rng.normal(70, 5, 12 * DAY)
    beats = rng.normal(900, 20, 12 * DAY)
    t = START_US + 2 * DAY_US + offset_minutes * 60_000_000
    options = {"measures": ALL, "hrv_channel": "rr", "hrv_kind": "intervals", "still_counts": 1e6}

    def found():
        signals = {"activity": counts, "heart_rate": heart, "rr": beats}
        return of([minutes(c, x, START_US + DAY_US // 2) for c, x in signals.items()], t, **options)

    one = found()
    assert np.isfinite(list(one.values())).all()
    first = DAY + DAY // 2 + offset_minutes  # from noon on
    for x in (counts, heart, beats):
        x[:first], x[first + 7 * DAY :] = rng.permutation(x[:first]) + 1, rng.permutation(x[first + 7 * DAY :]) + 1
    assert found() == one
    counts[first + 3 * DAY] += 1
    assert found() != one


# ------------------------------------------------------------------------------------------------------- local time
def a_journey(legs, signals):
    """Stretches of signals on the local clock, and the same ones in UTC: legs of (first, last local minute, offset)."""
    local, utc = [], []
    for first, last, offset in legs:
        for channel, values in signals.items():
            start = START_US + DAY_US // 2 + first * 60_000_000
            local.append(Stretch(start, 1 / 60, channel, values[first:last].astype(np.float32)))
            utc.append(local[-1]._replace(start_us=start - offset * 60_000_000, utc_offset_minutes=offset))
    return local, utc


@pytest.mark.parametrize(("here", "there"), [(120, 120), (-600, -600), (60, 540), (-480, 720), (840, 330)])
def test_a_travellers_nights_and_days_are_those_of_the_local_clock(here, there):
    asleep, _ = simulated_days(4, n_days=10)
    counts = simulated_counts(asleep, 4)
    counts[5 * DAY + 300 : 5 * DAY + 420] = 0.0  # put down for two hours
    heart = np.where(np.arange(len(counts)) % 1440 < 5, np.nan, 60.0)
    heart[5 * DAY + 300 : 5 * DAY + 420] = np.nan
    legs = [(0, 4 * DAY, here), (4 * DAY + 700, 9 * DAY, there)]
    local, utc = a_journey(legs, {"activity": counts, "heart_rate": heart})
    config = PhysiologyConfig(measures=ACTIVITY, period_days=(11,), still_counts=60.0)
    begin = at_midnight(1)
    want = signal_outcomes.label(local, begin, 11, config, LIMITS)
    got = signal_outcomes.label(utc, begin - here * 60_000_000, 11, config, LIMITS)
    assert np.isfinite(list(want.values())).all()
    np.testing.assert_array_equal(list(got.values()), list(want.values()))
    taken_as_local = [row._replace(utc_offset_minutes=None) for row in utc]
    other = signal_outcomes.label(taken_as_local, begin - here * 60_000_000, 11, config, LIMITS)
    assert here == there or abs(other["activity_regularity"] - want["activity_regularity"]) > 0.02


def test_without_offsets_and_with_offsets_of_zero_labels_are_the_same():
    counts = simulated_counts(simulated_days(1, n_days=9)[0], 1)
    plain, zero = a_journey([(0, 9 * DAY, 0)], {"activity": counts, "heart_rate": np.full(len(counts), 60.0)})
    config = PhysiologyConfig(measures=ACTIVITY, still_counts=60.0)
    found = [signal_outcomes.label(rows, at_midnight(1), 7, config, LIMITS) for rows in (plain, zero)]
    assert found[0] == found[1] and np.isfinite(list(found[0].values())).all()


def test_minutes_without_a_heart_rate_between_others_are_no_time_not_worn():
    counts, heart = simulated_counts(simulated_days(2, n_days=9)[0], 2), np.full(9 * DAY, 60.0)
    for day in range(9):
        counts[day * DAY + 700 : day * DAY + 900] = 0.0
        heart[day * DAY + 700 : day * DAY + 900 : 7] = np.nan
    rows = [Stretch(START_US + DAY_US // 2, 1 / 60, c, x) for c, x in (("activity", counts), ("heart_rate", heart))]
    found = [
        signal_outcomes.label(
            rows, at_midnight(1), 7, PhysiologyConfig(measures=ACTIVITY, still_counts=60.0, non_wear_minutes=n), LIMITS
        )
        for n in (90, 0)
    ]
    assert found[0] == found[1], "worn all the time, whatever the rule"


# ------------------------------------------------------------------------------------------------------- tables
def write(root, people):
    """Wearable tables of {subject: [(start_us, rate, channel, values, device)]}."""
    rows = [
        (subject, start, rate, channel, np.asarray(values, np.float32).tolist(), "u", device)
        for subject, mine in people.items()
        for start, rate, channel, values, device in mine
    ]
    frame = pl.DataFrame(rows, wearable.ROW_SCHEMA | {"start_time": pl.Int64}, orient="row")
    channels = pl.DataFrame({"channel": list(LIMITS), "unit": "u", "description": "",
                             "valid_min": [low for low, _ in LIMITS.values()],
                             "valid_max": [high for _, high in LIMITS.values()]})  # fmt: skip
    wearable.write_channels(root, channels)
    wearable.write_shard(
        root / "0.parquet",
        frame.with_columns(pl.col("start_time").cast(pl.Datetime("us"))).select(list(wearable.ROW_SCHEMA)),
    )
    return root


def test_tables_hold_one_row_per_prediction_with_enough_days(tmp_path):
    asleep, _ = simulated_days(0, n_days=20)
    noon = START_US + DAY_US // 2
    heart = minutes("heart_rate", np.full(20 * DAY, 60.0), noon)
    long = [minutes("activity", simulated_counts(asleep, 0), noon), heart]
    short = [minutes("activity", np.full(5 * DAY, 9.0))]
    gone = [minutes("activity", np.full(2 * DAY, 9.0)), minutes("activity", np.full(DAY, 9.0), at_midnight(18))]
    root = write(tmp_path, {1: long, 2: short, 3: gone})
    config = PhysiologyConfig(measures=("sleep_efficiency", "activity_regularity"), period_days=(5, 7), per_subject=3)
    tables, index = signal_outcomes.label_wearables(root, config, seed=0, bounds=meds_checks.TimeBounds())
    assert list(tables) == config.tasks() == [
        "sleep_efficiency_5d", "sleep_efficiency_7d", "activity_regularity_5d", "activity_regularity_7d",
    ]  # fmt: skip
    assert index.group_by("subject_id").len().sort("subject_id").rows() == [(1, 3), (2, 1)], "3 was worn too shortly"
    for table in tables.values():
        assert table.schema == signal_outcomes.LABEL_SCHEMA and set(table["subject_id"]) == {1}
        label_tables.validate_labels(table, "labels")
        for t in table["prediction_time"]:
            assert t == datetime.combine(t.date(), datetime.min.time())
            assert START + timedelta(days=1) <= t <= START + timedelta(days=17)
    again, _ = signal_outcomes.label_wearables(root, config, seed=0, bounds=meds_checks.TimeBounds())
    assert all(again[k].equals(tables[k]) for k in tables)
    other = signal_outcomes.label_wearables(root, config, seed=1, bounds=meds_checks.TimeBounds())[1]
    assert not other.equals(index)


@settings(max_examples=50)
@given(
    stretches=st.lists(st.tuples(st.integers(0, 40 * 24), st.integers(1, 10 * 24)), min_size=1, max_size=4),
    history_hours=st.integers(0, 5 * 24),
    period=st.integers(4, 9),
)
def test_prediction_times_are_those_that_wear_precedes_and_follows(stretches, history_hours, period):
    hour, history = DAY_US // 24, history_hours / 24
    rows = [Stretch(START_US + a * hour, 1 / 60, "activity", np.zeros(n * 60)) for a, n in stretches]
    config = PhysiologyConfig(period_days=(4, period), per_subject=10**4, min_history_days=history)
    worn = {(a + h) // 24 for a, n in stretches for h in range(n)}
    first = min(a for a, _ in stretches) + history_hours
    want = [d for d in range(60) if 24 * d >= first and sum(d + k in worn for k in range(period)) >= 4]
    got = signal_outcomes.draw_times(rows, 1, config, 0)
    assert [(t - START_US) // DAY_US for t in got] == want and all(t % DAY_US == 0 for t in got)
    fewer = signal_outcomes.draw_times(rows, 1, PhysiologyConfig(period_days=(period,), min_history_days=history), 0)
    assert len(fewer) == min(2, len(want)) and set(fewer) <= set(got)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"measures": ("sleep",)}, "holds 'sleep'; there are sleep_efficiency"),
        ({"measures": ("hrv_rmssd",)}, "name the channel in config.labels.physiology.hrv_channel"),
        ({"hrv_kind": "eeg"}, "hrv_kind is 'eeg'"),
        ({"hrv_minutes": 7}, "must divide a day"),
        ({"period_days": (3,)}, "period_days holds 3, less than min_days 4"),
        ({"per_subject": 0}, "per_subject is 0"),
    ],
)
def test_impossible_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        PhysiologyConfig(**options)


def test_a_channel_that_the_data_lack_is_named(tmp_path):
    root = write(tmp_path, {1: [minutes("activity", [1.0])]})
    config = PhysiologyConfig(measures=("sleep_efficiency",), heart_rate_channel="pulse")
    with pytest.raises(ValueError, match=r"no channel \['pulse'\] in .*channels.parquet; there are \['activity'"):
        signal_outcomes.label_wearables(root, config, seed=0, bounds=meds_checks.TimeBounds())


def test_the_stage_makes_them_beside_the_users_tables_and_needs_none_of_them_evaluated(tmp_path):
    small_run.write_inputs(tmp_path)
    config = small_run.small_config(tmp_path)
    config.labels.physiology.update({"measures": ("activity_entropy", "activity_regularity"), "period_days": (1,),
                                     "min_days": 1, "min_history_days": 0.0, "non_wear_minutes": 0})  # fmt: skip
    plan = small_run.plan_of(config, tmp_path / "run")
    stage.run(plan)
    made = Labels(plan).table("activity_entropy_1d")
    assert made.height and made.columns[2] == "float_value" and made["float_value"].min() > 0.99
    index = Labels(plan).prediction_times(plan.config.evaluate.tasks)
    asked = [meds.read_labels(tmp_path / "labels" / f"{task}.parquet") for task in config.evaluate.tasks]
    assert index.rows() == asked[0].select(index.columns).sort(index.columns).rows(), "of the two tasks, and no more"
    assert "label rows activity_regularity_1d" in [c["step"] for c in stage.counts(plan)]
    config.data.wearable_dir = ""
    with pytest.raises(ValueError, match="needs wearable recordings"):
        stage.run(small_run.plan_of(config, tmp_path / "none"))
