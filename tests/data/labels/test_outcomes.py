"""Labels and prediction times against hand-made cases and a plain re-implementation."""

import numpy as np
import polars as pl
import pytest
from dataset_labels import onset_times, prediction_times
from hypothesis import given, settings
from hypothesis import strategies as st
from people_in_days import ADMIT, END, LEAVE, day, make_index, write

from ehrwear_jax.data.formats import meds
from ehrwear_jax.data.labels import episodes, outcomes
from ehrwear_jax.data.labels.prediction_times import Sampling


def hospitalization(root, horizons_days, index, **options):
    times = outcomes.time_to_admission(root, index=index, **options)
    return {h: outcomes.within_horizon(times, h) for h in horizons_days}


CASES = [
    # events (day, code), prediction day, label at 30 days, at 365 days (None: no row)
    ([(0, "A"), (40, ADMIT), (45, LEAVE), (500, END)], 20, True, True),
    ([(0, "A"), (50, ADMIT), (55, LEAVE), (500, END)], 20, True, True),  # exactly 30 days
    ([(0, "A"), (50.0001, ADMIT), (55, LEAVE), (500, END)], 20, False, True),
    ([(0, "A"), (20, ADMIT), (25, LEAVE), (500, END)], 20, False, False),  # at the time itself
    ([(0, "A"), (50, END)], 20, False, None),  # followed for exactly 30 days
    ([(0, "A"), (49.99, END)], 20, None, None),  # censored
    ([(0, "A"), (30, meds.DEATH_CODE)], 20, False, False),  # died first
    ([(0, "A"), (100, meds.DEATH_CODE)], 20, False, False),
    ([(0, "A"), (40, ADMIT), (40, meds.DEATH_CODE)], 20, True, True),
    ([(0, "A"), (30, meds.DEATH_CODE), (40, ADMIT), (500, END)], 20, False, False),  # a claim after the death
    ([(0, "A"), (19, ADMIT), (19.5, LEAVE), (20.4, ADMIT), (25, LEAVE), (500, END)], 20, False, False),  # a transfer
    ([(0, "A"), (19, ADMIT), (19.5, LEAVE), (20.6, ADMIT), (25, LEAVE), (500, END)], 20, True, True),
    ([(0, "A"), (15, ADMIT), (25, ADMIT), (26, LEAVE), (500, END)], 20, False, False),  # during a stay
    ([(0, "A"), (30, ADMIT), (31, END)], 20, True, True),  # event before censoring
    ([(0, "A"), (10, ADMIT), (15, LEAVE), (16, "HOSPITAL_ADMISSION_NOTE"), (60, END)], 20, False, None),
]  # fmt: skip


def test_cases(tmp_path):
    root = write(tmp_path, {k: events for k, (events, *_) in enumerate(CASES)})
    index = make_index([(k, case[1]) for k, case in enumerate(CASES)])
    got = hospitalization(root, (30, 365), index)
    for column, horizon in ((2, 30), (3, 365)):
        expected = {k: case[column] for k, case in enumerate(CASES) if case[column] is not None}
        assert dict(got[horizon].select("subject_id", "boolean_value").iter_rows()) == expected
        assert dict(got[horizon].schema) == meds.BINARY_LABEL_SCHEMA
        meds.write_labels(tmp_path / "x.parquet", got[horizon])


def test_known_end_of_followup_replaces_the_last_record(tmp_path):
    root = write(tmp_path, {0: [(0, "A"), (30, "A")], 1: [(0, "A"), (60, ADMIT), (90, END)]})
    index = make_index([(0, 10), (1, 10)])
    default = hospitalization(root, (90,), index)[90]
    assert default["subject_id"].to_list() == [1]
    known = pl.DataFrame({"subject_id": [0, 1], "time": [day(100), day(50)]})
    got = hospitalization(root, (90, 30), index, end_of_followup=known)
    assert got[90].rows() == [(0, day(10), False)]  # the admission of 1 lies beyond follow-up
    assert got[30]["boolean_value"].to_list() == [False, False]
    with pytest.raises(ValueError, match="end_of_followup: a subject has more than one row"):
        hospitalization(root, (90,), index, end_of_followup=pl.concat([known, known]))


def test_time_to_admission_is_a_survival_label(tmp_path):
    root = write(
        tmp_path,
        {
            0: [(0, "A"), (40.5, ADMIT), (50, END)],
            1: [(0, "A"), (30, meds.DEATH_CODE)],
            2: [(0, "A"), (50, END)],
        },
    )
    got = outcomes.time_to_admission(root, index=make_index([(2, 10), (0, 10), (1, 10), (0, 5)]))
    assert got["subject_id"].to_list() == [2, 0, 1, 0]
    assert got["time_to_event_days"].to_list() == [40.0, 30.5, 20.0, 35.5]
    assert got["event_observed"].to_list() == [False, True, False, True]
    assert got["died"].to_list() == [False, False, True, False]
    meds.write_labels(tmp_path / "survival.parquet", got.drop("died"))
    assert dict(meds.read_labels(tmp_path / "survival.parquet").schema) == (meds.SURVIVAL_LABEL_SCHEMA)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((9, 10), "subject 9 .* no record"),
        ((0, 60), "after the end of follow-up"),
        ((1, 30), "not before the death"),
    ],
)
def test_impossible_predictions_are_named(tmp_path, row, message):
    root = write(tmp_path, {0: [(0, "A"), (50, END)], 1: [(0, "A"), (30, meds.DEATH_CODE)]})
    with pytest.raises(ValueError, match=f"row 1: .*{message}"):
        outcomes.time_to_admission(root, index=make_index([(0, 10), row]))
    with pytest.raises(ValueError, match="must be positive"):
        outcomes.within_horizon(outcomes.time_to_admission(root, index=make_index([(0, 10)])), 0)


def plain_stays(events, gap=1, longest=365):
    """[(first day, last day)] of the stays in hospital, as episodes.py says."""
    kinds = {ADMIT: 0, LEAVE: 1}
    stays = []
    for when, kind in sorted((when, kinds[code]) for when, code in events if code in kinds):
        if kind == 0:
            if stays and when <= stays[-1][1] + (gap if stays[-1][2] else 0):
                stays[-1][1:] = when + longest, False
            else:
                stays.append([when, when + longest, False])
        elif stays and when <= stays[-1][1] + (gap if stays[-1][2] else 0):
            stays[-1][1:] = when, True
    return [(begin, end) for begin, end, _ in stays]


def plain_label(events, at, horizon):
    """The definition, spelled out for one prediction."""
    end = max(when for when, _ in events)
    death = min((when for when, code in events if code == meds.DEATH_CODE), default=None)
    alive = at + horizon if death is None else min(at + horizon, death)
    if any(at < begin <= alive for begin, _ in plain_stays(events)):
        return True
    if death is not None or end >= at + horizon:
        return False
    return None


@st.composite
def person(draw):
    n = draw(st.integers(1, 8))
    days = sorted(draw(st.lists(st.integers(1, 60), min_size=n, max_size=n)))
    events = [(0, "A")]
    events += [(d, draw(st.sampled_from(["A", ADMIT, LEAVE, "ICD10//I10"]))) for d in days]
    last = draw(st.integers(days[-1], 70))
    events.append((last, draw(st.sampled_from([END, meds.DEATH_CODE]))))
    return events


@settings(max_examples=40, deadline=None)
@given(people=st.lists(person(), min_size=1, max_size=5), horizon=st.integers(1, 60))
def test_against_the_plain_definition(tmp_path_factory, people, horizon):
    root = write(tmp_path_factory.mktemp("l"), dict(enumerate(people)))
    rows = [(k, at) for k, events in enumerate(people) for at in range(events[-1][0])]
    got = hospitalization(root, (horizon,), make_index(rows))
    expected = [(k, day(at), label) for k, at in rows if (label := plain_label(people[k], at, horizon)) is not None]
    assert got[horizon].rows() == expected


# ------------------------------------------------------------------------------ prediction times
@settings(max_examples=40, deadline=None)
@given(people=st.lists(person(), min_size=1, max_size=5), history=st.integers(0, 20))
def test_prediction_times_obey_the_rules(tmp_path_factory, people, history):
    root = write(tmp_path_factory.mktemp("p"), dict(enumerate(people)))
    got = prediction_times(root, Sampling(100, history, seed=1))
    expected = []
    for k, events in enumerate(people):
        for at in range(history, events[-1][0]):
            if not any(begin <= at < end for begin, end in plain_stays(events)):
                expected.append((k, day(at)))
    assert got.rows() == expected


def test_prediction_times_are_a_function_of_seed_and_subject(tmp_path):
    people = {k: [(0.4, "A"), (300.7, END)] for k in range(6)}
    few = write(tmp_path / "few", {k: people[k] for k in (4, 2)})
    many = write(tmp_path / "many", people)
    a = prediction_times(few, Sampling(5, 30, seed=7))
    b = prediction_times(many, Sampling(5, 30, seed=7))
    assert len(b) == 30
    assert a.equals(b.filter(pl.col("subject_id").is_in([2, 4])))
    assert not b.equals(prediction_times(many, Sampling(5, 30, seed=8)))
    times = b["prediction_time"]
    assert (times == times.dt.truncate("1d")).all()
    assert times.min() >= day(31)  # the first midnight with 30 days of history
    assert times.max() <= day(300)
    per_person = b.group_by("subject_id").agg(pl.col("prediction_time").n_unique())
    assert (per_person["prediction_time"] == 5).all()
    assert b.group_by("subject_id").agg("prediction_time")["prediction_time"].n_unique() == 6


def test_prediction_times_within_given_bounds(tmp_path):
    root = write(tmp_path, {k: [(0, "A"), (300, END)] for k in range(4)})
    start = pl.DataFrame({"subject_id": [0, 1, 2], "time": [day(100.2), day(150), day(400)]})
    stop = pl.DataFrame({"subject_id": [0, 1, 2, 3], "time": [day(120.5)] * 4})
    got = prediction_times(root, Sampling(50, 5, 0), start, stop)
    assert got.rows() == [(0, day(d)) for d in range(101, 121)]


def test_a_window_known_beforehand_is_not_bent_by_the_outcome(tmp_path):
    """With a death halfway through the window, half of the draws are lost, not moved forward."""
    people = {k: [(0, "A"), (100, meds.DEATH_CODE)] for k in range(400)}
    stop = pl.DataFrame({"subject_id": list(people), "time": [day(199)] * 400})
    root = write(tmp_path, people)
    got = prediction_times(root, Sampling(2, 0, 0), stop=stop)
    assert abs(len(got) - 400) < 4 * np.sqrt(800 * 0.25)


def test_a_stay_never_closed_lasts_to_the_end(tmp_path):
    root = write(tmp_path, {0: [(0, "A"), (10, ADMIT), (40, END)]})
    assert len(prediction_times(root, Sampling(100, 0, 0))) == 10
    other = episodes.Rules(admission=("OTHER",))
    without = prediction_times(root, Sampling(100, 0, 0), rules=other)
    assert len(without) == 40
    with pytest.raises(ValueError, match="per_subject"):
        Sampling(0, 0, 0)


# ------------------------------------------------------------------------------------------------ first diagnoses
MI, STROKE = "ICD10CM/I21.9", "ICD10CM/I63.0"
ONSET_CASES = [
    # events, prediction day, (days to onset, observed, died) or None where a diagnosis came first
    ([(0, "A"), (50, MI), (500, END)], 20, (30.0, True, False)),
    ([(0, "A"), (50, STROKE), (60, MI), (500, END)], 20, (40.0, True, False)),  # a stroke is of another group
    ([(0, "A"), (10, MI), (50, MI), (500, END)], 20, None),
    ([(0, "A"), (20, MI), (500, END)], 20, None),  # at the time itself: known
    ([(0, "A"), (50, MI), (60, MI), (500, END)], 55, None),
    ([(0, "A"), (100, END)], 20, (80.0, False, False)),
    ([(0, "A"), (70, meds.DEATH_CODE)], 20, (50.0, False, True)),
]


def test_onsets_and_who_is_at_risk(tmp_path):
    root = write(tmp_path, {k: events for k, (events, *_) in enumerate(ONSET_CASES)})
    index = make_index([(k, case[1]) for k, case in enumerate(ONSET_CASES)])
    got = onset_times(root, ("ICD10CM/I21", "ICD10CM/I22"), index)
    want = {k: case[2] for k, case in enumerate(ONSET_CASES) if case[2] is not None}
    assert {row[0]: row[2:] for row in got.rows()} == want
    binary = outcomes.within_horizon(got, 30)
    assert dict(binary.select("subject_id", "boolean_value").iter_rows()) == {0: True, 1: False, 5: False, 6: False}
    assert outcomes.within_horizon(got, 365)["subject_id"].to_list() == [0, 1, 6]  # 5 is censored
    with pytest.raises(ValueError, match="must be positive"):
        outcomes.within_horizon(got, 0)


def test_what_follows_the_prediction_decides_nothing_about_being_at_risk(tmp_path):
    early = write(tmp_path / "a", {0: [(0, "A"), (90, END)], 1: [(0, "A"), (5, MI), (90, END)]})
    late = write(tmp_path / "b", {0: [(0, "A"), (30, MI), (90, END)], 1: [(0, "A"), (5, MI), (30, MI), (90, END)]})
    index = make_index([(0, 20), (1, 20)])
    of_mi = [onset_times(root, ("ICD10CM/I21",), index) for root in (early, late)]
    assert of_mi[0]["subject_id"].to_list() == of_mi[1]["subject_id"].to_list() == [0]
