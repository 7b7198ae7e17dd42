"""A state that is fed part by part says what the batch says of all parts at once, at any cut."""

from datetime import timedelta

import appended_rows
import numpy as np
import polars as pl
import pytest

import ehrwear_jax as ew
from ehrwear_jax.inference import patient_state

ATOL = 1e-5


@pytest.fixture(scope="module")
def model():
    return appended_rows.small(ew.load("tiny"))


def codes_of(model):
    return pl.read_parquet(model.folder / "codes.parquet")["code"].to_list()


def streamed(model, rng, state, arriving):
    """(how many parts had arrived, time, z) of two reads of a state, at a random cut."""
    cut = int(rng.integers(1, len(arriving) + 1))
    for k, (events, signal) in enumerate(arriving[:cut]):
        state.append(events, signal)
        if rng.random() < 0.3:  # reads on the way fill what is known, and must not change what is read later
            state.read(appended_rows.BEGIN + timedelta(days=60 * (k + 1) / len(arriving)))
    last = max((t for e, s in arriving[:cut] for t in _times(e, s)), default=appended_rows.BEGIN)
    late = last + timedelta(hours=float(rng.exponential(48)))
    return cut, [(t, state.read(t)) for t in (last, late, last + timedelta(days=400))[: int(rng.integers(1, 4))]]


def _times(events, signal):
    return [t for t in (*(e["time"] for e in events), *(s["start_time"] for s in signal)) if t is not None]


def compare(model, root, seeds, most_events=60, incremental=True):
    """(largest difference from the batch, reads) over random sequences of cuts and appends."""
    codes, people, asked, got = codes_of(model), {}, [], []
    reader = model.reader() if incremental else patient_state.Reader(model, incremental=False)
    for seed in seeds:
        rng = np.random.default_rng(seed)
        n_worn = int(rng.integers(0, 60)) if seed % 2 else 0
        arriving = appended_rows.parts(rng, codes, int(rng.integers(1, most_events)), n_worn)
        state = patient_state.PatientState(model, reader, late_days=30.0)
        cut, found = streamed(model, rng, state, arriving)
        people[seed] = arriving[:cut]
        asked += [(seed, t) for t, _ in found]
        got += [z for _, z in found]
    columns = {"subject_id": pl.Int64, "prediction_time": pl.Datetime("us")}
    times = pl.DataFrame(asked, columns, orient="row")
    # people without any event are not in the data set
    there = times["subject_id"].is_in([i for i, arrived in people.items() if any(e for e, _ in arrived)])
    people = {i: people[i] for i in times.filter(there)["subject_id"].unique()}
    read = model.read(*appended_rows.write(root, people))
    want = read.latents(times.filter(there))[1]
    got_NxD = np.stack(got)[there.to_numpy()]
    assert np.array_equal(np.isnan(got_NxD), np.isnan(want))
    return float(np.nanmax(np.abs(got_NxD - want))), len(want)


def test_what_is_read_is_what_the_batch_says(model, tmp_path):
    worst, n = compare(model, tmp_path, range(6))
    assert worst < ATOL and n > 6


@pytest.mark.slow
def test_a_hundred_sequences(model, tmp_path):
    assert compare(model, tmp_path, range(100, 200), most_events=120)[0] < ATOL


@pytest.mark.long
def test_a_thousand_sequences(model, tmp_path):
    worst, n = compare(model, tmp_path, range(1000, 2000), most_events=120)
    print(f"{n} reads of 1,000 sequences: largest difference {worst:.1e}")
    assert worst < ATOL


@pytest.mark.slow
def test_the_shipped_context_and_the_way_without_what_is_known(tmp_path):
    model = ew.load("tiny")
    for name, incremental in (("incremental", True), ("recomputed", False)):
        assert compare(model, tmp_path / name, range(30), 400, incremental)[0] < ATOL


def test_bytes_bring_it_back(model, tmp_path):
    rng, state = np.random.default_rng(3), model.state("a")
    for events, signal in appended_rows.parts(rng, codes_of(model), 50, 30, late=0.0):
        state.append(events, signal)
    time = "2018-03-05T00:00:00"
    want = state.read(time)
    state.save(tmp_path / "state")
    again = model.state("b", saved=tmp_path / "state")
    np.testing.assert_array_equal(again.read(time), want)
    assert again.to_bytes() == state.to_bytes() and [p.name for p in tmp_path.iterdir()] == ["state"]
    more = [{"time": "2018-03-05T01:00", "code": "LOINC//2345-7", "numeric_value": 300.0}]
    state.append(more)
    again.append(more)
    np.testing.assert_allclose(again.read("2018-03-06"), state.read("2018-03-06"), atol=ATOL)
    for damaged in (b"", b"PK", want.tobytes(), state.to_bytes()[:-40]):
        with pytest.raises(ValueError, match="no state of a patient"):
            model.state(saved=damaged)


def test_its_memory_is_bounded_and_a_read_too_far_back_is_refused(model):
    state, sizes = model.state(late_days=1.0), []
    for day in range(120):
        time = appended_rows.BEGIN + timedelta(days=day)
        minutes = np.full(1440, 60.0 + day % 7).tolist()
        row = {"start_time": time, "sample_rate_hz": 1 / 60, "channel": "heart_rate", "values": minutes, "unit": "bpm"}
        state.append([{"time": time + timedelta(hours=1), "code": "LOINC//8867-4"}] * 2, [row])
        state.read(time + timedelta(days=1))
        sizes.append(state.nbytes)
    # what grows is a day's four windows of 24 steps and 2 channels, and no longer the raw signal or the events
    assert max(np.diff(sizes[-40:])) < 4 * 24 * 2 * 4 + 200
    with pytest.raises(ValueError, match="does not hold"):
        state.read(appended_rows.BEGIN + timedelta(days=80))
    with pytest.raises(ValueError, match="closed"):
        state.append(signal=[{**row, "start_time": appended_rows.BEGIN + timedelta(days=60)}])
    assert np.isfinite(state.read(time + timedelta(days=1))).all(), "what was refused changed nothing"


@pytest.mark.parametrize(
    "events, signal, what",
    [
        ([{"time": "2018-01-01"}], None, "column 'code'"),
        ([{"time": "yesterday", "code": "A"}], None, "type"),
        ([{"time": "2018-01-01", "code": "A", "numeric_value": "high"}], None, "type"),
        ([{"time": "2018-01-01", "code": ""}], None, "'code': empty"),
        ([{"time": "2918-01-01", "code": "A"}], None, "on or after"),
        ([{"time": "2018-01-01", "code": "A", "colour": 1}], None, "no column 'colour'"),
        (None, [{"start_time": "2018-01-01", "sample_rate_hz": 1.0, "channel": "ppm", "values": [1.0], "unit": "bpm"}],
         "not in metadata"),
        (None, [{"start_time": "2018-01-01", "sample_rate_hz": 0.0, "channel": "heart_rate", "values": [1.0],
                 "unit": "bpm"}], "positive"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_whole(model, events, signal, what):
    state = model.state()
    state.append([{"time": "2018-01-01", "code": "LOINC//2345-7", "numeric_value": 90.0}])
    before = state.to_bytes()
    good = [{"time": "2018-01-02", "code": "LOINC//2345-7"}]
    with pytest.raises(ValueError, match=what):
        state.append(events or good, signal)
    assert state.to_bytes() == before


@pytest.mark.slow
def test_predictions_are_those_of_the_people(model, tmp_path):
    state, rows = model.state(), [{"time": "2018-01-01T09:00", "code": "LOINC//2345-7", "numeric_value": 300.0}]
    state.append(rows)
    got = state.predict("hospitalization_365d", "2018-02-01")
    people = model.read(*appended_rows.write(tmp_path, {7: [(rows, [])]}))
    times = pl.DataFrame({"subject_id": [7], "prediction_time": ["2018-02-01"]})
    want = people.predict("hospitalization_365d", times.with_columns(pl.col("prediction_time").str.to_datetime()))
    assert got["calibrated_risk"] == pytest.approx(want["calibrated_risk"][0], abs=ATOL)
    with pytest.raises(ValueError, match="no task"):
        state.predict("happiness", "2018-02-01")
    with pytest.raises(ValueError, match="ISO 8601"):
        state.read("soon")
