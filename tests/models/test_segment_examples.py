"""Pieces of segments and of the grid: where they are cut, when they are known, who is shown, what z is read from."""

import dataclasses
import pickle

import numpy as np
import pytest
import segment_cases
import small_run
from segment_cases import GRID, READING, batch_of, row_of

from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.data.signals import segments as segments_lib
from ehrwear_jax.models import segment_examples
from ehrwear_jax.models.segment_examples import PieceReader, SegmentExamples


@pytest.fixture(scope="module")
def store(people_with_waves):
    return small_run.store(people_with_waves, "train")


@pytest.fixture(scope="module", params=["segments", "grid"])
def examples(request, store):
    return SegmentExamples(store, READING if request.param == "segments" else GRID)


def test_pieces_are_parts_of_resampled_segments(store):
    reader, n = PieceReader(store, READING), 0
    for i in range(len(store)):
        pieces, found = reader.of(store[i]), store[i].segments["ppg"]
        assert len(pieces) == 3 * len(found.start_us_R) == reader.most(store.index)[i]
        for q in range(len(pieces)):
            r, part = divmod(q, 3)
            whole = segments_lib.resampled(found.values_RxSxA[r, :, 0].astype(float), 25.0, 50.0, 1500)
            np.testing.assert_array_equal(pieces.signal(q)[:, 0], whole[500 * part :][:500].astype(np.float32))
            assert pieces.end_us_Q[q] == found.start_us_R[r] + 30_000_000, "as a whole, by which it is standardised"
            n += 1
    assert n > 20


def test_resampling_keeps_a_wave_and_its_gaps():
    t = np.arange(750) / 25
    wave = np.sin(2 * np.pi * 1.3 * t)
    wave[100:150] = np.nan
    found = segments_lib.resampled(wave, 25.0, 100.0, 3000)
    at = np.arange(3000) / 100
    gap = (at > 99 / 25) & (at < 150 / 25)
    assert np.isnan(found[gap]).all() and np.isfinite(found[~gap][:-10]).all()
    away = ~gap & (at > 1) & (at < 29) & (np.abs(at - 5) > 1.5)
    assert np.abs(found - np.sin(2 * np.pi * 1.3 * at))[away].max() < 0.02


def test_a_day_of_the_grid_is_a_piece_that_is_known_when_it_is_over(store):
    reader, n = PieceReader(store, GRID), 0
    assert (reader.facts.samples, reader.facts.channels, reader.facts.from_grid) == (4 * store.steps, 2, True)
    for i in range(len(store)):
        record, pieces = store[i], reader.of(store[i])
        day_M = (record.window_end_M - 1) // DAY_US
        for q in range(len(pieces)):
            day = int(pieces.end_us_Q[q]) // DAY_US - 1
            assert pieces.end_us_Q[q] % DAY_US == 0
            want = np.full((4, store.steps, 2), np.nan, np.float32)
            for m in np.flatnonzero(day_M == day):
                place = (record.window_end_M[m] - 1) % DAY_US // record.window_us
                want[place] = np.clip(store.scales.standardise(record.window_MxLxC[m]), -4, 4)
            np.testing.assert_array_equal(pieces.signal(q), want.reshape(-1, 2))
            assert np.isfinite(want).mean((0, 1)).max() >= GRID.min_observed
            n += 1
        whole = dataclasses.replace(GRID, min_observed=0.0)
        assert len(PieceReader(store, whole).of(record)) == len(np.unique(day_M)) >= len(pieces)
    assert n > 20


def test_a_row_is_a_function_of_seed_and_number(store, examples):
    again = pickle.loads(pickle.dumps(examples))
    for g in (0, 7):
        row = row_of(examples, g)
        for name, x in row_of(again, g).items():
            np.testing.assert_array_equal(x, row[name], err_msg=name)
    other = batch_of(SegmentExamples(store, examples.reading, seed=1), range(3))
    assert np.any(other["signal"] != batch_of(examples, range(3))["signal"])
    examples.spec.check(batch_of(examples, [0, 1]), 2)


def test_everybody_is_shown_in_an_epoch_with_different_pieces(examples):
    n = examples.rows_per_epoch * examples.reading.per_row
    places = [p for g in range(examples.rows_per_epoch + 1) for p in examples._places(g)]
    first = [(person, rank) for epoch, person, rank in places if epoch == 0]
    assert len(first) == examples._n_places >= n and len(set(first)) == len(first)
    assert sorted({person for person, _ in first}) == examples._eligible.tolist()
    chosen = {}
    for person, rank in first:
        chosen.setdefault(person, []).append(examples._chosen(examples.pieces(person), 0, person, rank))
    for person, found in chosen.items():
        there = [q for q in found if q is not None]
        assert len(set(there)) == len(there) == min(len(examples.pieces(person)), examples.reading.per_person)
    rows = range(examples.rows_per_epoch)
    want = {person for g in rows for _, person, _ in examples._places(g)}
    assert examples.subjects(rows) == sorted(examples.subject_id[list(want)].tolist())


def test_people_of_a_split_are_no_others(people_with_waves):
    shown = {
        split: set(SegmentExamples(small_run.store(people_with_waves, split), READING).subjects(range(40)))
        for split in ("train", "tuning")
    }
    assert shown["train"] and shown["tuning"] and not shown["train"] & shown["tuning"]


def test_what_is_not_accepted_is_not_shown(store):
    class Late(SegmentExamples):
        def accepts(self, pieces, q):
            return pieces.part_Q[q] == 2

    examples = Late(store, READING)
    for g in range(5):
        for epoch, person, rank in examples._places(g):
            q = examples._chosen(examples.pieces(person), epoch, person, rank)
            assert q is None or examples.pieces(person).part_Q[q] == 2


@pytest.mark.parametrize("reading", [READING, GRID], ids=["segments", "grid"])
def test_z_is_read_from_the_last_pieces_known(people_with_waves, reading):
    """A slot each; a time before all of them has one without any, and is counted."""
    position, time, store = segment_cases.asked(people_with_waves, reading)
    examples, slots = SegmentExamples(store, reading), {k: [] for k in range(len(time))}
    for batch, where in examples.prediction_batches(position, time, 2):
        examples.spec.check(batch, 2)
        for r, n in zip(*np.nonzero(where >= 0), strict=True):
            slots[int(where[r, n])].append((int(batch["person"][r, n]), batch["signal"][r, n].copy()))
    seen, n_empty = examples.tokens_seen(position, time), 0
    for k, found in slots.items():
        pieces = examples.pieces(int(position[k]))
        known = [q for q in range(len(pieces)) if pieces.end_us_Q[q] <= time[k]]
        want = known[-reading.last :]
        assert (seen["segments"][k], seen["segments_left_out"][k]) == (len(want), len(known) - len(want))
        if not want:
            assert len(found) == 1 and found[0][0] == -1 and not found[0][1].any()
            n_empty += 1
            continue
        assert [person for person, _ in found] == [position[k]] * len(want)
        for q, (_, signal) in zip(want, found, strict=True):
            np.testing.assert_array_equal(signal, np.nan_to_num(pieces.signal(q)))
    none = [i for i in range(len(store)) if not len(examples.pieces(i))]
    assert n_empty > len(none) >= examples.n_without > 0


@pytest.mark.parametrize("reading", [READING, GRID], ids=["segments", "grid"])
def test_what_comes_after_a_time_changes_no_bit_of_its_batch(people_with_waves, reading):
    position, time, store = segment_cases.asked(people_with_waves, reading)
    examples = SegmentExamples(store, reading)
    whole, known = (
        list(examples.prediction_batches(position, time, 2, transform))
        for transform in (lambda record, t: record, lambda record, t: record.until(t))
    )
    assert len(whole) == len(known)
    for (batch, where), (other, there) in zip(whole, known, strict=True):
        np.testing.assert_array_equal(where, there)
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name], err_msg=name)


def test_scales_are_those_of_what_was_observed():
    x = np.array([[1.0, 5.0], [np.nan, 5.0], [3.0, 5.0]])
    np.testing.assert_allclose(segment_examples.unit_range(x), [[-1, 0], [np.nan, 0], [1, 0]])
    z = segment_examples.z_score(np.array([[1.0], [2.0], [np.nan], [6.0]]))[:, 0]
    assert np.nanmean(z) == pytest.approx(0, abs=1e-6) and np.nanstd(z) == pytest.approx(1, abs=1e-6)
    assert np.isnan(segment_examples.z_score(np.full((3, 1), np.nan))).all()


def test_counts_by_hand(examples):
    batch = examples.spec.empty(2)
    batch["person"][0], batch["person"][1, 0] = (4, 4, 7), 4
    assert examples.counts(batch) == {"tokens": 4, "patient_days": 4 if examples.spec.facts.from_grid else 2}


def test_what_was_not_prepared_is_named(store):
    for changes, words in (({"segments": "ecg"}, r"segments 'ecg'; config.prepare.segments has \['ppg'\]"),
                           ({"seconds": 240.0}, "ppg.seconds is 30: a model that reads pieces of 240 s"),
                           ({"segments": "", "hours": 8}, "reads 8 hours of the grid")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            PieceReader(store, dataclasses.replace(READING, **changes))
    with pytest.raises(ValueError, match="must divide a day"):
        dataclasses.replace(READING, hours=7)
    nobody = SegmentExamples(store, READING)
    nobody._eligible, nobody._copies = nobody._eligible[:0], nobody._copies[:0]
    with pytest.raises(ValueError, match="none of the train people has a segment of 'ppg' to read"):
        nobody.fill({}, 0)
