"""Tabular features against a plain recomputation, and against any change of the future."""

import statistics
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from ehrwear_jax.models.tabular import features

DAY = timedelta(days=1)
START = datetime(2020, 1, 1)
CODES = ("LAB//a", "LAB//b", "DX//c", "DX//rare", "MEDS_DEATH")
CHANNELS = ("heart_rate", "activity")
PARTS = ("mean", "std", "min", "max", "coverage")


def cohort(seed, n_subjects=8):
    """Small tables with ties, missing values, static rows, people without events or windows."""
    rng = np.random.default_rng(seed)
    events, windows, subjects, index = [], [], [], []
    for subject in range(1, n_subjects + 1):
        birth = START - int(rng.integers(7000, 30000)) * DAY
        subjects.append((subject, None if subject == 3 else birth))
        if subject != 4:
            events += [(subject, birth, "MEDS_BIRTH", None), (subject, None, "GENDER//F", None)]
            if subject % 2:
                events.append((subject, None, "HEIGHT", 150.0 + subject))
            for _ in range(int(rng.integers(1, 30))):
                # Half-day steps: several events at one time, and times on the edge of a range.
                time = START + int(rng.integers(0, 1600)) * DAY / 2
                code = CODES[rng.choice(5, p=[0.4, 0.3, 0.2, 0.05, 0.05])]
                value = [None, np.nan, *rng.normal(100, 20, 6)][rng.integers(0, 8)]
                events.append((subject, time, code, value if code.startswith("LAB") else None))
        if subject != 5:
            first = int(rng.integers(0, 3000))
            for step in range(int(rng.integers(1, 150))):
                if rng.random() < 0.1:
                    continue
                end, values = START + (first + step) * DAY / 4, []
                for level in (70.0, 5.0):
                    coverage = float(rng.choice([0.0, 0.5, 1.0]))
                    mean, std = rng.normal(level, 3), rng.exponential(2)
                    present = (mean, std, mean - 3 * std, mean + 3 * std)
                    values += [*(present if coverage else (None,) * 4), coverage]
                windows.append((subject, end, *values))
        for _ in range(int(rng.integers(1, 4))):
            index.append((subject, START + int(rng.integers(0, 1700)) * DAY / 2))
    index += index[:2]
    rng.shuffle(index)
    time = pl.Datetime("us")
    events_schema = {"subject_id": pl.Int64, "time": time, "code": pl.String}
    parts = {f"{c}__{p}": pl.Float32 for c in CHANNELS for p in PARTS}
    return (
        pl.DataFrame(events, events_schema | {"numeric_value": pl.Float32}, orient="row"),
        pl.DataFrame(subjects, {"subject_id": pl.Int64, "birth_time": time}, orient="row"),
        pl.DataFrame(windows, {"subject_id": pl.Int64, "time": time} | parts, orient="row"),
        pl.DataFrame(index, {"subject_id": pl.Int64, "prediction_time": time}, orient="row"),
    )


def finite(values):
    return [v for v in values if v is not None and np.isfinite(v)]


def days_between(later, earlier):
    return (later - earlier) / DAY


def plain_ehr(events, birth, t, codes, valued):
    """The EHR features of one row from its events (time, code, value), time-ordered and <= t."""
    out = {"ehr__age_years": None if birth is None else days_between(t, birth) / 365.25}
    timed = [e for e in events if e[1] not in ("MEDS_BIRTH", "MEDS_DEATH")]
    recent = lambda rows, days: [r for r in rows if r[0] > t - days * DAY]  # noqa: E731
    for days in (30, 365):
        out[f"ehr__n_events_{days}d"] = len(recent(timed, days))
    out["ehr__n_events_all"] = len(timed)
    for name, at in (("last", -1), ("first", 0)):
        out[f"ehr__days_since_{name}_event"] = days_between(t, timed[at][0]) if timed else None
    for code in codes:
        rows = [e for e in timed if e[1] == code]
        out[f"ehr__{code}__days_since"] = days_between(t, rows[-1][0]) if rows else None
        out[f"ehr__{code}__count_365d"] = len(recent(rows, 365))
        out[f"ehr__{code}__count"] = len(rows)
        if code in valued:
            values, year = finite(e[2] for e in rows), finite(e[2] for e in recent(rows, 365))
            out[f"ehr__{code}__last"] = values[-1] if values else None
            out[f"ehr__{code}__mean_365d"] = statistics.fmean(year) if year else None
            out[f"ehr__{code}__min_365d"] = min(year, default=None)
            out[f"ehr__{code}__max_365d"] = max(year, default=None)
    return out


def weighted_mean(pairs):
    total = sum(w for _, w in pairs)
    return sum(x * w for x, w in pairs) / total if total else None


def plain_wear(windows, t):
    """The wearable features of one row from its windows (dicts), time-ordered and <= t."""
    out = {}
    worn_ever = [w["time"] for w in windows if any(w[f"{c}__coverage"] > 0 for c in CHANNELS)]
    out["wear__days_since_last"] = days_between(t, worn_ever[-1]) if worn_ever else None
    for name, days in (("7d", 7), ("30d", 30), ("all", 10**5)):
        rows = [w for w in windows if w["time"] > t - days * DAY]
        out[f"wear__n_windows_{name}"] = len(rows)
        for c in CHANNELS:
            key = f"wear__{c}"
            worn = [w for w in rows if w[f"{c}__coverage"] > 0]
            pairs = [(w[f"{c}__mean"], w[f"{c}__coverage"]) for w in worn]
            mean = out[f"{key}__mean_{name}"] = weighted_mean(pairs)
            variance = weighted_mean([((x - mean) ** 2, w) for x, w in pairs])
            out[f"{key}__std_{name}"] = None if variance is None else variance**0.5
            out[f"{key}__trend_{name}"] = None
            if len(worn) >= 3:
                day = [days_between(w["time"], START) for w in worn]
                line = np.polyfit(day, [x for x, _ in pairs], 1, w=[w**0.5 for _, w in pairs])
                out[f"{key}__trend_{name}"] = line[0]
            stds = [w[f"{c}__std"] for w in worn]
            out[f"{key}__within_std_{name}"] = statistics.fmean(stds) if stds else None
            out[f"{key}__min_{name}"] = min((w[f"{c}__min"] for w in worn), default=None)
            out[f"{key}__max_{name}"] = max((w[f"{c}__max"] for w in worn), default=None)
            coverage = [w[f"{c}__coverage"] for w in rows]
            out[f"{key}__coverage_{name}"] = statistics.fmean(coverage) if coverage else None
            for hour in (6, 12, 18, 24):
                inside = [
                    (w[f"{c}__mean"], w[f"{c}__coverage"])
                    for w in worn
                    if hour - 6 < ((w["time"].hour + w["time"].minute / 60) or 24) <= hour
                ]
                mean_key = f"{key}__mean_{hour - 6}h_{hour}h_{name}"
                out[mean_key] = weighted_mean(inside)
    return out


@settings(max_examples=12)
@given(st.integers(0, 10**6))
def test_every_feature_equals_a_plain_recomputation(seed):
    events, subjects, windows, index = cohort(seed)
    train = [1, 2, 3, 4, 5]
    result = features.build_features(events, subjects, windows, index, train_subject_ids=train)
    assert_frame_equal(result.select("subject_id", "prediction_time"), index)

    known = events.filter(pl.col("subject_id").is_in(train) & pl.col("time").is_not_null())
    codes = set(known["code"]) - {"MEDS_BIRTH", "MEDS_DEATH"}
    valued = {r["code"] for r in known.to_dicts() if finite([r["numeric_value"]])}
    births = dict(subjects.rows())
    seen = set()
    for row in result.to_dicts():
        subject, t = row.pop("subject_id"), row.pop("prediction_time")
        mine = events.filter((pl.col("subject_id") == subject) & (pl.col("time").is_null() | (pl.col("time") <= t)))
        timed = mine.drop_nulls("time").sort("time", maintain_order=True).drop("subject_id").rows()
        static = {r["code"]: r["numeric_value"] for r in mine.to_dicts() if r["time"] is None}
        worn = windows.filter((pl.col("subject_id") == subject) & (pl.col("time") <= t))
        expected = plain_ehr(timed, births[subject], t, codes, valued)
        expected |= plain_wear(worn.sort("time").to_dicts(), t)
        expected["ehr__static__GENDER//F"] = float("GENDER//F" in static)
        expected["ehr__static__HEIGHT"] = static.get("HEIGHT")
        assert row.keys() == expected.keys()
        for name, value in expected.items():
            if value is None:
                assert row[name] is None, (name, subject, t)
                continue
            seen.add(name)
            # Float32 results; a standard deviation near 0 is a root of rounding errors.
            tolerance = 2e-4 if "std" in name or "trend" in name else 1e-5
            assert row[name] == pytest.approx(value, rel=1e-5, abs=tolerance), (name, subject, t)
    assert any("trend" in name for name in seen)


def noisy_future(frame, index, rng):
    """`frame` with everything after each subject's last prediction time rewritten and extended."""
    last = index.group_by("subject_id").agg(pl.col("prediction_time").max())
    frame = frame.join(last, on="subject_id", how="left", maintain_order="left")
    future = pl.col("time").is_not_null() & (pl.col("time") > pl.col("prediction_time"))
    values = [c for c in frame.columns if c == "numeric_value" or "__" in c]
    changed = frame.filter(future).with_columns(
        pl.Series(c, rng.normal(50, 40, frame.filter(future).height), pl.Float32) for c in values
    )
    more = changed.with_columns(pl.col("time") + timedelta(seconds=1))
    past = frame.filter(~future.fill_null(False))
    assert len(changed)
    return pl.concat([changed, past, more]).drop("prediction_time")


@pytest.mark.parametrize("seed", range(3))
def test_changing_the_future_moves_no_bit(seed):
    events, subjects, windows, index = cohort(seed, n_subjects=40)
    rng = np.random.default_rng(seed)
    train = range(1, 21)
    index = index.with_columns(prediction_time=pl.col("prediction_time") - 250 * DAY)
    held_out = index.filter(pl.col("subject_id") > 20)
    is_train = pl.col("subject_id") <= 20
    whole, changed = (
        features.build_features(e, subjects, w, held_out, train_subject_ids=train)
        for e, w in (
            (events, windows),
            # The training subjects' records choose the columns and stay.
            (
                pl.concat([events.filter(is_train), noisy_future(events.filter(~is_train), index, rng)]),
                noisy_future(windows, index, rng),
            ),
        )
    )  # fmt: skip
    assert_frame_equal(changed, whole, check_exact=True)
    assert whole["ehr__n_events_all"].sum() > 0
    assert whole["wear__n_windows_all"].sum() > 0


def test_a_row_does_not_depend_on_the_other_rows_or_on_row_order():
    events, subjects, windows, index = cohort(1, n_subjects=20)
    build = lambda e, w, i: features.build_features(  # noqa: E731
        e, subjects, w, i, train_subject_ids=range(1, 11)
    )
    whole = build(events, windows, index)
    alone = pl.concat([build(events, windows, index[i : i + 1]) for i in range(len(index))])
    assert_frame_equal(alone, whole, check_exact=True)
    shuffled = build(
        # Events at one time keep their order: a later row wins as "last value".
        events.sort("subject_id", descending=True, maintain_order=True),
        windows.sample(fraction=1, shuffle=True, seed=0),
        index,
    )
    assert_frame_equal(shuffled, whole, check_exact=True)


def test_event_at_the_prediction_time_counts_and_one_microsecond_later_does_not():
    t, value = START, [5.0, 7.0]
    events = pl.DataFrame(
        {
            "subject_id": [1, 1],
            "time": [t, t + timedelta(microseconds=1)],
            "code": ["LAB//a"] * 2,
            "numeric_value": value,
        }
    )
    subjects = pl.DataFrame({"subject_id": [1], "birth_time": [START - 365.25 * 50 * DAY]})
    index = pl.DataFrame({"subject_id": [1] * 3, "prediction_time": [t, t + DAY, t + 365 * DAY]})
    rows = features.build_features(events, subjects, None, index, train_subject_ids=[1])
    assert rows["ehr__LAB//a__last"].to_list() == [5.0, 7.0, 7.0]
    # After exactly 365 days the first event has left the range t - 365 d < time <= t.
    assert rows["ehr__LAB//a__count_365d"].to_list() == [1, 2, 1]
    assert rows["ehr__LAB//a__mean_365d"].to_list() == [5.0, 6.0, 7.0]
    assert rows["ehr__LAB//a__days_since"][0] == 0
    assert rows["ehr__age_years"][0] == 50
    assert features.feature_groups(rows)["wear"] == []


def test_codes_are_ranked_by_training_subjects_only():
    people = {1: "AB", 2: "AB", 3: "A", 7: "CC", 8: "CC", 9: "CC"}
    rows = [(s, START, code, None) for s, codes in people.items() for code in codes]
    schema = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String}
    events = pl.DataFrame(rows, schema | {"numeric_value": pl.Float32}, orient="row")
    subjects = pl.DataFrame({"subject_id": list(people), "birth_time": [START] * 6})
    index = pl.DataFrame({"subject_id": [9], "prediction_time": [START]})
    few = features.build_features(events, subjects, None, index, train_subject_ids=[1, 2, 3], max_codes=1)
    assert few["ehr__A__count"].to_list() == [0]
    assert not any(name.startswith(("ehr__B", "ehr__C")) for name in few.columns)


def test_groups_partition_the_features():
    events, subjects, windows, index = cohort(0)
    table = features.build_features(events, subjects, windows, index, train_subject_ids=[1, 2])
    groups = features.feature_groups(table)
    assert {*groups["ehr"], *groups["wear"]} == set(table.columns[2:])
    assert all(table[name].dtype == pl.Float32 for name in table.columns[2:])


def test_empty_tables_and_empty_index():
    events, subjects, windows, index = cohort(0)
    result = features.build_features(events.clear(), subjects, windows.clear(), index, train_subject_ids=[1])
    assert len(result) == len(index)
    assert result["ehr__n_events_all"].to_list() == [0] * len(index)
    assert result["wear__heart_rate__mean_7d"].null_count() == len(index)
    none = features.build_features(events, subjects, windows, index.clear(), train_subject_ids=[1])
    assert none.height == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e, s, w, i: (e.drop("code"), s, w, i), "events: column 'code' is missing"),
        (lambda e, s, w, i: (e, s, w.drop("activity__std"), i), "windows: column 'activity__std'"),
        (lambda e, s, w, i: (e, s[1:], w, i), "index: subject 1 is not in subjects"),
        (lambda e, s, w, i: (e, pl.concat([s, s]), w, i), "subject_id occurs twice"),
        (
            lambda e, s, w, i: (e, s, w, i.with_columns(prediction_time=None)),
            "index: prediction_time is null in row 0",
        ),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        features.build_features(*change(*cohort(0)), train_subject_ids=[1, 2])


def test_times_of_day_are_those_of_the_local_clock():
    events, subjects, windows, index = cohort(0)
    ids = windows["subject_id"].unique().to_list()
    plain = features.build_features(events, subjects, windows, index, train_subject_ids=ids)
    zero = windows.with_columns(utc_offset_minutes=pl.lit(0, pl.Int16))
    assert_frame_equal(features.build_features(events, subjects, zero, index, train_subject_ids=ids), plain)
    # six hours east: what ends at six o'clock ends at noon there
    east = windows.with_columns(utc_offset_minutes=pl.lit(360, pl.Int16))
    moved = features.build_features(events, subjects, east, index, train_subject_ids=ids)
    by_hour = [c for c in plain.columns if "h_" in c and "__mean_" in c and c.startswith("wear")]
    assert len(by_hour) == 2 * 4 * 3
    for column in by_hour:
        hours = [int(h.removesuffix("h")) for h in column.split("__mean_")[1].split("_")[:2]]
        there = column.replace(f"{hours[0]}h_{hours[1]}h", f"{(hours[0] + 6) % 24}h_{(hours[0] + 6) % 24 + 6}h")
        assert_frame_equal(moved.select(pl.col(there).alias("x")), plain.select(pl.col(column).alias("x")))
    assert_frame_equal(moved.drop(by_hour), plain.drop(by_hour))
