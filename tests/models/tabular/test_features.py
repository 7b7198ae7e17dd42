"""Tabular features against a plain recomputation, and against any change of the future."""

import itertools
import re
import shutil
import statistics
import tempfile
from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from tabular_cohort import ABOVE, CHANNELS, CODES, DAY, START, cohort

from ehrwear_jax.data.prepare.workers import Pool
from ehrwear_jax.models.tabular import code_columns, event_features, features


def finite(values):
    return [v for v in values if v is not None and np.isfinite(v)]


def days_between(later, earlier):
    return (later - earlier) / DAY


def plain_ehr(events, t, codes, valued):
    """The features of one row's timed events (time, code, value), time-ordered and <= t; counts of 0 are left out."""
    out = {}
    recent = lambda rows, days: [r for r in rows if days is None or r[0] > t - days * DAY]  # noqa: E731
    ranges = ((30, "30d"), (180, "180d"), (365, "365d"), (None, "all"))
    for days, name in ranges:
        out[f"ehr__n_events_{name}"] = len(recent(events, days)) or None
    for name, at in (("last", -1), ("first", 0)):
        out[f"ehr__days_since_{name}_event"] = days_between(t, events[at][0]) if events else None
    for code in codes:
        rows = [e for e in events if e[1] == code or code in ABOVE.get(e[1], ())]
        out[f"ehr__{code}__days_since"] = days_between(t, rows[-1][0]) if rows else None
        for days, name in ranges:
            out[f"ehr__{code}__count_{name}"] = len(recent(rows, days)) or None
        if code not in valued:
            continue
        known = [e for e in events if e[1] == code and finite([e[2]])]
        out[f"ehr__{code}__last"] = known[-1][2] if known else None
        out[f"ehr__{code}__change"] = known[-1][2] - statistics.fmean(e[2] for e in known) if known else None
        for days, name in ranges:
            values = [e[2] for e in recent(known, days)]
            for f, function in (("mean", statistics.fmean), ("min", min), ("max", max)):
                out[f"ehr__{code}__{f}_{name}"] = function(values) if values else None
            if days in (365, None):
                day = [days_between(e[0], START) for e in recent(known, days)]
                line = np.polyfit(day, values, 1)[0] if len(set(day)) > 1 else None
                out[f"ehr__{code}__slope_{name}"] = line
    return out


def weighted_mean(pairs):
    total = sum(w for _, w in pairs)
    return sum(x * w for x, w in pairs) / total if total else None


def plain_wear(windows, t):
    """The wearable features of one row from its windows (dicts), time-ordered and <= t."""
    out = {}
    worn_ever = [w["time"] for w in windows if any(w[f"{c}__coverage"] > 0 for c in CHANNELS)]
    out["wear__days_since_last"] = days_between(t, worn_ever[-1]) if worn_ever else None
    out["wear__days_since_first"] = days_between(t, worn_ever[0]) if worn_ever else None
    for name, days in (("1d", 1), ("7d", 7), ("30d", 30), ("90d", 90), ("all", 10**5)):
        rows = [w for w in windows if w["time"] > t - days * DAY]
        out[f"wear__n_windows_{name}"] = len(rows)
        out[f"wear__worn_hours_{name}"] = sum(6 * max(w[f"{c}__coverage"] for c in CHANNELS) for w in rows)
        out[f"wear__activity__entropy__mean_{name}"] = mean_or_none(w["activity__entropy"] for w in rows)
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
            for part, function in (("std", mean_or_none), ("min", least), ("max", most)):
                feature = "within_std" if part == "std" else part
                out[f"{key}__{feature}_{name}"] = function(w[f"{c}__{part}"] for w in worn)
            out[f"{key}__coverage_{name}"] = mean_or_none(w[f"{c}__coverage"] for w in rows)
            by_hour = []
            for hour in (6, 12, 18, 24):
                inside = [
                    (w[f"{c}__mean"], w[f"{c}__coverage"])
                    for w in worn
                    if hour - 6 < ((w["time"].hour + w["time"].minute / 60) or 24) <= hour
                ]
                by_hour.append(weighted_mean(inside))
                out[f"{key}__mean_{hour - 6}h_{hour}h_{name}"] = by_hour[-1]
            known = finite(by_hour)
            out[f"{key}__swing_{name}"] = max(known) - min(known) if known else None
    for c, name in itertools.product(CHANNELS, ("1d", "7d", "30d")):
        level, usual = (out[f"wear__{c}__mean_{r}"] for r in (name, "all"))
        out[f"wear__{c}__change_{name}"] = None if level is None else level - usual
    return out


def mean_or_none(values):
    known = finite(values)
    return statistics.fmean(known) if known else None


def least(values):
    return min(finite(values), default=None)


def most(values):
    return max(finite(values), default=None)


def built(folder, events, subjects, windows, index, train, min_subjects=1, shards=2, ranges=event_features.YEARS,
          pool=None):  # fmt: skip
    """(Features, prediction times) of tables that are written in some shards."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {"events": [], "windows": []}
    if "text_value" not in events.columns:
        events = events.with_columns(text_value=pl.lit(None, pl.String))
    for kind, table in (("events", events), ("windows", windows)):
        for k in range(shards if table is not None else 0):
            paths[kind].append(folder / f"{kind}{k}.parquet")
            table.filter(pl.col("subject_id") % shards == k).write_parquet(paths[kind][-1])
    names = sorted({*CODES, *itertools.chain(*ABOVE.values()), *events["code"]})
    codes = pl.DataFrame({"code": names, "ancestors": [list(ABOVE.get(c, ())) for c in names]},
                         {"code": pl.String, "ancestors": pl.List(pl.String)})  # fmt: skip
    texts = events.select("code", text="text_value").drop_nulls().unique().sort("code", "text")
    codes = code_columns.with_texts(codes, texts)
    split = pl.when(pl.col("subject_id").is_in(list(train))).then(pl.lit("train")).otherwise(pl.lit("held_out"))
    sources = features.Sources(tuple(paths["events"]), tuple(paths["windows"]), subjects.with_columns(split=split),
                               codes, min_subjects, ranges=ranges)  # fmt: skip
    features.build(sources, index, folder / "features", pool)
    return features.Features(folder / "features", index)


def frame(made, index):
    """The features as a table with nulls where nothing is stored."""
    x = made.read(index, made.columns["name"])
    dense = np.full(x.shape, np.nan, np.float32)
    row = np.repeat(np.arange(x.shape[0]), np.diff(x.indptr))
    dense[row, x.indices] = x.data
    table = pl.DataFrame(dense, made.columns["name"].to_list(), orient="row").fill_nan(None)
    return index.select("subject_id", "prediction_time").hstack(table)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6))
def test_every_feature_equals_a_plain_recomputation(seed):
    events, subjects, windows, index = cohort(seed)
    train = [1, 2, 3, 4, 5]
    with tempfile.TemporaryDirectory() as folder:
        result = frame(built(Path(folder), events, subjects, windows, index, train), index)

    known = events.filter(pl.col("subject_id").is_in(train) & pl.col("time").is_not_null())
    own = set(known["code"]) - {"MEDS_BIRTH", "MEDS_DEATH"}
    codes = own | ({"DX"} if {"DX//c", "DX//rare"} <= own else set())  # of one of them DX is the same column again
    valued = {r["code"] for r in known.to_dicts() if finite([r["numeric_value"]])}
    births = dict(subjects.rows())
    seen = set()
    for row in result.to_dicts():
        subject, t = row.pop("subject_id"), row.pop("prediction_time")
        mine = events.filter((pl.col("subject_id") == subject) & (pl.col("time").is_null() | (pl.col("time") <= t)))
        static = {r["code"]: r["numeric_value"] for r in mine.to_dicts() if r["time"] is None}
        mine = mine.filter(~pl.col("code").str.starts_with("MEDS_"))
        timed = mine.drop_nulls("time").sort("time", maintain_order=True).select("time", "code", "numeric_value").rows()
        worn = windows.filter((pl.col("subject_id") == subject) & (pl.col("time") <= t))
        expected = plain_ehr(timed, t, codes, valued) | plain_wear(worn.sort("time").to_dicts(), t)
        expected[features.AGE] = None if births[subject] is None else days_between(t, births[subject]) / 365.25
        expected["ehr__static__GENDER//F"] = 1.0 if "GENDER//F" in static else None
        expected["ehr__static__HEIGHT"] = 1.0 if "HEIGHT" in static else None
        expected["ehr__static__HEIGHT__value"] = static.get("HEIGHT")
        assert row.keys() == expected.keys()
        wears = windows.filter(pl.col("subject_id") == subject).height > 0
        for name, value in expected.items():
            if value is None or (not value and not wears and name.startswith("wear__")):
                assert row[name] is None, (name, subject, t)
                continue
            seen.add(name)
            # Float32 results; a standard deviation near 0 is a root of rounding errors.
            loose = any(part in name for part in ("std", "trend", "slope", "change", "swing"))
            tolerance = 3e-4 if loose else 1e-5
            assert row[name] == pytest.approx(value, rel=1e-5, abs=tolerance), (name, subject, t)
    assert any("trend" in name for name in seen) and any("slope" in name for name in seen)


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
def test_changing_the_future_moves_no_bit(seed, tmp_path):
    events, subjects, windows, index = cohort(seed, n_subjects=40)
    rng = np.random.default_rng(seed)
    train = range(1, 21)
    index = index.with_columns(prediction_time=pl.col("prediction_time") - 250 * DAY)
    held_out = index.filter(pl.col("subject_id") > 20)
    is_train = pl.col("subject_id") <= 20
    # The training subjects' records choose the columns and stay.
    later = pl.concat([events.filter(is_train), noisy_future(events.filter(~is_train), index, rng)])
    whole, changed = (
        frame(built(tmp_path / name, e, subjects, w, held_out, train), held_out)
        for name, e, w in (("whole", events, windows), ("changed", later, noisy_future(windows, index, rng)))
    )
    assert_frame_equal(changed, whole, check_exact=True)
    assert whole["ehr__n_events_all"].sum() > 0
    assert whole["wear__n_windows_all"].sum() > 0


def test_neither_shards_nor_the_other_rows_nor_their_order_change_a_row(tmp_path):
    events, subjects, windows, index = cohort(1, n_subjects=20)
    train = range(1, 11)
    whole = frame(built(tmp_path / "two", events, subjects, windows, index, train), index)
    # Events at one time keep their order: a later row wins as "last value".
    shuffled = events.sort("subject_id", descending=True, maintain_order=True)
    other = frame(built(tmp_path / "five", shuffled, subjects, windows, index, train, shards=5), index)
    assert_frame_equal(other, whole, check_exact=True)
    some = index[[7, 3, 12]]
    made = built(tmp_path / "some", events, subjects, windows, some, train)
    assert_frame_equal(frame(made, some), whole[[7, 3, 12]], check_exact=True)
    names = ["wear__n_windows_all", features.AGE, "ehr__LAB//a__last"]
    chosen = made.read(some[[2, 0]], names).toarray()
    in_order = [n for n in made.columns["name"] if n in names]
    np.testing.assert_array_equal(chosen, whole[[12, 7]].select(in_order).fill_null(0).to_numpy())


def test_many_prediction_times_are_computed_a_part_at_a_time(tmp_path, monkeypatch):
    events, subjects, windows, index = cohort(2, n_subjects=20)
    whole = frame(built(tmp_path / "whole", events, subjects, windows, index, range(1, 11)), index)
    monkeypatch.setattr(features, "_TIMES_AT_ONCE", 3)
    parts = frame(built(tmp_path / "parts", events, subjects, windows, index, range(1, 11)), index)
    assert_frame_equal(parts, whole, check_exact=True)


def test_a_build_that_was_interrupted_keeps_the_shards_that_are_there(tmp_path):
    events, subjects, windows, index = cohort(1, n_subjects=20)
    make = lambda: built(tmp_path, events, subjects, windows, index, range(1, 11))  # noqa: E731
    whole, folder = frame(make(), index), tmp_path / "features"
    (folder / "columns.parquet").unlink()
    (folder / "ehr-events0.npz").unlink()
    kept = (folder / "ehr-events1.npz").stat().st_mtime_ns
    assert_frame_equal(frame(make(), index), whole, check_exact=True)
    assert (folder / "ehr-events1.npz").stat().st_mtime_ns == kept


def test_ranges_of_hours_see_of_hours_what_ranges_of_days_see_of_days(tmp_path):
    """Time run 24 times as fast, and ranges a 24th as long: the same features, slopes 24 times as steep."""
    events, subjects, windows, index = cohort(3)
    days = (7, 30, 365)
    assert event_features.Ranges.of(()) == event_features.YEARS and event_features.Ranges.of(days).windows[-1] is None
    fast = [table.with_columns(_hastened(column)) for table, column in
            ((events, "time"), (windows, "time"), (index, "prediction_time"))]  # fmt: skip
    of = event_features.Ranges.of
    slow = built(tmp_path / "days", events, subjects, windows, index, range(1, 9), ranges=of(days))
    hours = of(tuple(d / 24 for d in days))
    quick = built(tmp_path / "hours", fast[0], subjects, fast[1], fast[2], range(1, 9), ranges=hours)
    names = [(a, b) for a, b in zip(slow.columns["name"], quick.columns["name"], strict=True) if "__age" not in a]
    renamed = {"7d": "7h", "30d": "30h", "365d": "365h", "all": "all"}
    of_ranges = [(a, b) for a, b in names if a != b]
    assert of_ranges and all(renamed[a.rpartition("_")[2]] == b.rpartition("_")[2] for a, b in of_ranges)
    before, after = frame(slow, index), frame(quick, fast[2])
    compared = 0
    for a, b in names:
        if re.search(r"h_\d+h_|__swing_", a):
            continue  # by the hour of the day, which is another one
        steep = "__slope_" in a or "__trend_" in a
        factor = 24.0 if steep else 1 / 24 if "days_since" in a else 1.0
        x, y = (t[name].to_numpy() for t, name in ((before, a), (after, b)))
        np.testing.assert_allclose(y, x * factor, rtol=1e-3, atol=1e-3 * factor, err_msg=a)
        compared += int(np.isfinite(x).sum())
    assert compared > 500


def _hastened(column):
    """Time run 24 times as fast from START on; what lies before it, births, stays."""
    time = pl.col(column)
    return pl.when(time < START).then(time).otherwise(START + (time - START) / 24).cast(pl.Datetime("us")).alias(column)


def test_event_at_the_prediction_time_counts_and_one_microsecond_later_does_not(tmp_path):
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
    rows = frame(built(tmp_path, events, subjects, None, index, [1], shards=1), index)
    assert rows["ehr__LAB//a__last"].to_list() == [5.0, 7.0, 7.0]
    # After exactly 365 days the first event has left the range t - 365 d < time <= t.
    assert rows["ehr__LAB//a__count_365d"].to_list() == [1, 2, 1]
    assert rows["ehr__LAB//a__mean_365d"].to_list() == [5.0, 6.0, 7.0]
    assert rows["ehr__LAB//a__days_since"][0] == 0
    assert rows[features.AGE][0] == 50
    assert not any(name.startswith("wear__") for name in rows.columns)


def test_all_codes_of_enough_training_people_have_columns_and_ancestors_only_if_they_say_more(tmp_path):
    people = {1: ["DX//c", "A"], 2: ["DX//rare", "A"], 3: ["A"], 7: ["B"], 8: ["B"], 9: ["B"]}
    rows = [(s, START, code, None) for s, codes in people.items() for code in codes]
    schema = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String}
    events = pl.DataFrame(rows, schema | {"numeric_value": pl.Float32}, orient="row")
    subjects = pl.DataFrame({"subject_id": list(people), "birth_time": [START] * 6})
    index = pl.DataFrame({"subject_id": [1, 2, 9], "prediction_time": [START] * 3})
    made = built(tmp_path / "two", events, subjects, None, index, [1, 2, 3], min_subjects=2)
    counts = [n for n in made.columns["name"] if n.endswith("__count_all")]
    # too rare themselves, the two diagnoses have the column of what is above both; B no training person has
    assert counts == ["ehr__A__count_all", "ehr__DX__count_all"]
    assert frame(made, index)["ehr__DX__count_all"].to_list() == [1, 1, None]
    every = built(tmp_path / "one", events, subjects, None, index, [1, 3], min_subjects=1)
    counts = [n for n in every.columns["name"] if n.endswith("__count_all")]
    assert counts == ["ehr__A__count_all", "ehr__DX//c__count_all"]  # DX would be the same column again


def test_a_text_result_has_columns_of_its_own_and_counts_for_its_code(tmp_path):
    texts = {1: ["sinus", "sinus", "flutter"], 2: ["sinus", "flutter"], 9: ["sinus", None]}
    rows = [(s, START + k * DAY, "ECG", None, t) for s, mine in texts.items() for k, t in enumerate(mine)]
    rows += [(s, None, "ETHNICITY", None, t) for s, t in ((1, "a"), (2, "a"), (9, "b"))]
    schema = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32}
    events = pl.DataFrame(rows, schema | {"text_value": pl.String}, orient="row")
    subjects = pl.DataFrame({"subject_id": list(texts), "birth_time": [START] * 3})
    index = pl.DataFrame({"subject_id": list(texts), "prediction_time": [START + DAY] * 3})
    found = frame(built(tmp_path, events, subjects, None, index, [1, 2], min_subjects=2), index)
    assert found["ehr__ECG//sinus__count_all"].to_list() == [2, 1, 1]
    assert found["ehr__ECG//flutter__count_all"].to_list() == [None, 1, None]
    assert found["ehr__ECG__count_all"].to_list() == [2, 2, 2], "whatever the text, and without any"
    assert found["ehr__static__ETHNICITY//a"].to_list() == [1, 1, None]
    assert "ehr__static__ETHNICITY//b" not in found.columns, "no training person has it"


def test_empty_tables_and_no_prediction_times(tmp_path):
    events, subjects, windows, index = cohort(0)
    made = built(tmp_path / "empty", events.clear(), subjects, windows.clear(), index, [1])
    rows = frame(made, index)
    assert rows["ehr__n_events_all"].null_count() == rows["wear__heart_rate__mean_7d"].null_count() == len(index)
    assert made.columns["name"].is_duplicated().sum() == 0
    none = built(tmp_path / "none", events, subjects, windows, index.clear(), [1])
    assert none.read(index.clear(), none.columns["name"]).shape == (0, none.columns.height)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e, s, w, i: (e, s, w.drop("activity__std"), i), "windows: column 'activity__std'"),
        (lambda e, s, w, i: (e, s[1:], w, i), "times: subject 1 is not in subjects"),
        (lambda e, s, w, i: (e, pl.concat([s, s]), w, i), "subject_id occurs twice"),
        (lambda e, s, w, i: (e, s, w, pl.concat([i, i])), "the same prediction time twice"),
        (
            lambda e, s, w, i: (e, s, w, i.with_columns(prediction_time=pl.lit(None, pl.Datetime("us")))),
            "times: prediction_time is null in row 0",
        ),
    ],
)
def test_bad_input_is_named(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        built(tmp_path, *change(*cohort(0)), [1, 2])


def test_a_time_without_features_is_named(tmp_path):
    events, subjects, windows, index = cohort(0)
    made = built(tmp_path, events, subjects, windows, index, [1, 2])
    with pytest.raises(KeyError, match="no features at"):
        made.read(index.with_columns(pl.col("prediction_time") + DAY / 4), [features.AGE])


@pytest.mark.slow
def test_processes_that_share_the_shards_write_the_same_files(tmp_path):
    events, subjects, windows, index = cohort(3)
    arguments = events, subjects, windows, index, [1, 2, 3, 4, 5]
    built(tmp_path / "one", *arguments)
    with Pool(workers=2) as pool:
        built(tmp_path / "two", *arguments, pool=pool)
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / n / "features").iterdir()} for n in ("one", "two"))
    assert one == two and {"ehr-events0.npz", "wear-windows1.npz", "columns.parquet"} < set(one)


def test_a_folder_that_is_built_anew_follows_its_own_prediction_times(tmp_path):
    """What processes read once is told apart by when it was written."""
    events, subjects, windows, index = cohort(3)
    for some in (index, index.head(5)):
        made = built(tmp_path, events, subjects, windows, some, [1, 2, 3, 4, 5])
        x = made.read(some, made.columns["name"])
        assert x.shape[0] == some.height and x.nnz > some.height
        shutil.rmtree(tmp_path / "features")
