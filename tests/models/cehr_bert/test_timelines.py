"""Visits, times between and inside them by hand, that nothing later shows, and what is fitted on training people."""

import dataclasses

import numpy as np
import polars as pl
import pytest
import small_run
from cehr_cases import CLINIC, IN, OUT, config_of, part_at, record, said, table, timeline

from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.models import vocabulary as vocabulary_lib
from ehrwear_jax.models.cehr_bert import timelines
from ehrwear_jax.models.cehr_bert.config import Config


def test_days_are_visits_with_the_time_between_them():
    found = timeline([(0.1, "flu"), (0.9, "gout"), (6.0, "flu"), (34.0, "gout"), (394.0, "flu")])
    assert said(found) == ["<visit>", "flu", "gout", "</visit>", "W0", "<visit>", "flu", "</visit>", "M0",
                           "<visit>", "gout", "</visit>", "LT", "<visit>", "flu", "</visit>"]  # fmt: skip
    part = part_at(found, 10_000)
    assert part.visit_K.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4, "time belongs to the visit that begins"
    assert np.flatnonzero(part.is_between_K).tolist() == [4, 8, 12]
    np.testing.assert_allclose(part.time_K[:6] / DAY_US, [0.1, 0.1, 0.9, 0.9, 6.0, 6.0])


def test_a_stay_is_one_visit_with_the_days_inside_it():
    """Another admission inside is part of it; what comes later on the day of discharge is another visit."""
    events = [(0.5, "flu"), (0.6, IN), (0.6, "gout"), (3.2, IN), (12.0, "flu"), (12.1, OUT), (12.1, "gout"),
              (12.2, "flu"), (13.0, "flu")]  # fmt: skip
    assert said(timeline(events)) == [
        "<visit>", "flu", "</visit>", "W0",
        "<visit>", IN, "gout", "i-D3", IN, "i-W2", "flu", OUT, "gout", "</visit>", "W0",
        "<visit>", "flu", "</visit>", "W0", "<visit>", "flu", "</visit>",
    ]  # fmt: skip
    assert timeline(events).type_U.tolist() == [2, table().visit_types.index(IN), 2, 2]


def test_the_end_of_a_stay_is_known_at_its_discharge_and_that_of_a_day_never_awaited():
    found = timeline([(0.0, "flu"), (5.1, IN), (6.2, "gout"), (7.3, OUT)])
    assert said(found, -0.1) == []
    assert said(found, 0.0) == said(found, 5.0) == ["<visit>", "flu", "</visit>"]
    assert said(found, 7.0)[3:] == ["W0", "<visit>", IN, "i-D1", "gout"]
    assert said(found, 7.3)[-3:] == ["i-D1", OUT, "</visit>"]


def test_a_stay_without_a_discharge_has_no_end_and_ends_in_time():
    found = timeline([(0.0, IN), (300.0, "flu"), (366.0, "gout"), (367.0, OUT)])
    assert said(found) == ["<visit>", IN, "i-M10", "flu", "M2", "<visit>", "gout", "</visit>", "W0", "<visit>", OUT,
                           "</visit>"]  # fmt: skip


def test_types_of_visits_are_the_first_code_that_names_one():
    found = timeline([(0.0, "flu"), (1.0, CLINIC), (1.1, "flu"), (2.0, CLINIC), (2.1, IN), (3.0, CLINIC), (4.0, OUT)])
    names = [table().visit_types[t] for t in found.type_U]
    assert names == ["<other>", CLINIC, CLINIC, IN]
    part = part_at(found, 9)
    told = [table().names[e] for e in part.entry_K[part.names_type_K]]
    assert told == [CLINIC, CLINIC, IN, CLINIC, OUT]


def test_without_discharges_a_visit_is_a_day():
    codes = dict.fromkeys(["discharge_codes", "admission_codes"])
    for name in codes:
        days = timeline([(0.0, IN), (3.0, "flu"), (4.0, OUT)], **{name: ()})
        assert said(days, **{name: ()}).count("<visit>") == 3
    assert IN in table(discharge_codes=()).visit_types, "an admission still names the type of its day"


def test_other_schemes_of_time():
    events = [(0.0, "flu"), (40.0, "gout")]
    assert "D40" in said(timeline(events, time_tokens="day"), time_tokens="day")
    assert "M2" in said(timeline(events, time_tokens="mix"), time_tokens="mix")


def test_tokens_of_behrt_and_med_bert():
    events = [(0.0, "flu"), (40.0, IN), (41.0, "gout"), (49.5, OUT), (60.0, "flu")]
    behrt, med_bert = ({"time_tokens": "none", "visit_tokens": kind} for kind in ("end", "none"))
    ends = ["flu", "</visit>", IN, "gout", OUT, "</visit>", "flu", "</visit>"]
    assert said(timeline(events, **behrt), **behrt) == ends
    assert said(timeline(events, **behrt), 41.0, **behrt) == ends[:4]
    assert said(timeline(events, **med_bert), **med_bert) == ["flu", IN, "gout", OUT, "flu"]
    assert timeline(events).stay_us_U.tolist() == [0, round(9.5 * DAY_US), 0]
    assert timeline(events[:3]).stay_us_U.tolist() == [0, 0], "no discharge, no length"


def test_values_are_merged_with_their_code_or_have_tokens_of_bins():
    events = [(0.0, "lab", 1.0), (0.1, "lab", 8.0)]
    found = timeline(events)
    assert said(found) == ["<visit>", "lab", "lab", "</visit>"]
    value = part_at(found, 9).value_K
    assert value[1] < 0 < value[2] and np.isnan(value[[0, 3]]).all()
    assert said(timeline(events, value_bins=True), value_bins=True)[1:3] == ["lab//Q0", "lab//Q1"]
    names = table().names
    assert len(names) == len(set(names)) and "lab//Q0" not in names and "<wear>" not in names


def test_what_is_known_at_a_time_is_all_that_tells():
    """Tokens at a time are those of the record as it was then, over random records with stays that may stay open."""
    rng = np.random.default_rng(0)
    codes, n_seen = ["flu", "gout", "lab", IN, OUT, CLINIC], 0
    for _ in range(60):
        days = np.sort(rng.integers(0, 60, rng.integers(1, 14)) * rng.choice([0.5, 9.0]))
        whole = record([(day, codes[rng.integers(6)]) for day in days])
        found = timelines.make_timeline(whole, table())
        for day in (*days[::3], *(days[::4] + 0.2)):
            time_us = round(day * DAY_US)
            then = timelines.make_timeline(whole.until(time_us), table())
            assert found.known(time_us) == then.known(time_us) == then.whole
            for a, b in zip(part_at(found, day), part_at(then, day), strict=True):
                np.testing.assert_array_equal(a, b)
            n_seen += 1
    assert n_seen > 120


def test_weeks_and_ages_by_hand():
    found = timeline([(0.0, "flu")], birth_day=-365.25)
    day_us = np.array([0, 7 * DAY_US, round(10.5 * DAY_US)])
    np.testing.assert_allclose(found.dates(day_us), [0.0, 1.0, 1.5])
    np.testing.assert_allclose(found.age_years(day_us, None), [1.0, 1 + 7 / 365.25, 1 + 10.5 / 365.25], rtol=1e-6)
    old = found.age_years(np.array([round(99 * 365.25 * DAY_US)]), 89.0)
    assert old[0] == pytest.approx(89.0, abs=0.01)


def test_facts_are_those_of_training_people_for_every_split(people):
    splits = ("train", "tuning", "held_out", None)
    fitted = timelines.fit(small_run.store(people, "train"), config_of())
    assert all(timelines.fit(small_run.store(people, s), config_of()) is fitted for s in splits)
    assert fitted.facts == timelines.Facts(len(fitted.table.names), len(fitted.table.visit_types))
    store, ratio = small_run.store(people, "train"), []
    for i in range(len(store)):
        part = timelines.make_timeline(store.read(i), fitted.table).tokens
        n = int(part.is_event_K.sum())
        ratio += [(len(part.entry_K) + 1) / n] if n else []
    assert fitted.tokens_per_event == pytest.approx(np.quantile(ratio, 0.9))


def test_a_code_of_others_than_training_people_has_no_token_and_names_no_type():
    vocabulary = table().vocabulary
    without = vocabulary.tokens.filter(pl.col("code") != CLINIC).with_columns(pl.int_range(pl.len()).alias("token_id"))
    is_clinic = pl.col("code") == CLINIC
    codes = vocabulary.codes.with_columns(pl.when(is_clinic).then(None).otherwise("alias").alias("alias"))
    other = vocabulary_lib.Vocabulary(without.cast({"token_id": pl.Int32}), codes, 0)
    found = timelines.make_table(other, config_of(encounter_codes=("CLINIC",)))
    assert CLINIC not in found.visit_types and CLINIC not in found.names


def test_a_cohort_without_events_is_named(people, monkeypatch):
    store = small_run.store(people, "train")
    monkeypatch.setattr(timelines, "RecordStore", lambda *a, **k: store)
    monkeypatch.setattr(store, "index", store.index.with_columns(known_events=pl.lit(0)))
    with pytest.raises(ValueError, match="no training person has an event of a known code"):
        timelines.fit(store, config_of(fit_people=7))


def test_wrong_options_are_named():
    for options, words in (({"width": 9}, "no multiple of n_heads"), ({"context_tokens": 999}, "at most tokens"),
                           ({"sites": 0}, "sites is 0"), ({"masked": 0.0}, "masked is 0"),
                           ({"time_features": 3}, "even"), ({"time_tokens": "year"}, "weeks, day, mix"),
                           ({"readout": "max"}, "mean, cls"), ({"inputs": "behrt"}, "visit_weight 1.0")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            dataclasses.replace(Config(), **options)
