"""Pulse-PPG's rows: one person's pieces of different times, all scaled alike, of one split."""

import dataclasses

import numpy as np
import pytest
import small_run
from pulse_cases import SIGNAL, batch_of, pulse_config, row_of

from ehrwear_jax.models.pulse_ppg.examples import PulseExamples


@pytest.fixture(scope="module")
def store(people):
    return small_run.store(people, "train")


def test_a_row_holds_different_pieces_of_one_person(store):
    examples = PulseExamples(store, pulse_config(within_person=2))
    shown = []
    for g in range(examples.rows_per_epoch):
        row = row_of(examples, g)
        (person,) = set(row["person"].tolist())
        shown.append(person)
        assert row["observed"].any(axis=(1, 2)).all()
        assert len({row["signal"][n].tobytes() for n in range(3)}) == 3
    assert len(set(shown)) == len(shown) > 5, "each person once in an epoch"


def test_candidates_are_scaled_like_the_anchor(store):
    """The original standardises the anchor and loads candidates raw; here gain and offset of neither are left."""
    config = pulse_config(highest=1.2)
    plain = PulseExamples(store, config)

    class Loud(PulseExamples):
        def pieces(self, i):
            found = super().pieces(i)
            ppg = found.record.segments["ppg"]
            gain = np.float32(10.0) ** np.arange(len(ppg.start_us_R))[:, None, None]
            louder = ppg._replace(values_RxSxA=gain * ppg.values_RxSxA.astype(np.float32) + 5)
            record = dataclasses.replace(found.record, segments={"ppg": louder})
            return dataclasses.replace(found, record=record)

    for g in range(4):
        one, other = row_of(plain, g), row_of(Loud(store, config), g)
        np.testing.assert_allclose(one["signal"], other["signal"], atol=5e-3)
        for n in range(2):
            x = one["signal"][n][one["observed"][n]]
            assert x.max() == np.float32(1.2) > -x.min() - 1 and abs(np.median(x)) < 1, "standardised, clipped above"


def test_people_with_too_few_pieces_are_in_no_row_and_are_counted(people, store):
    many = PulseExamples(store, pulse_config(within_person=18))
    few = PulseExamples(store, pulse_config())
    assert many.rows_per_epoch < few.rows_per_epoch and many.n_without > few.n_without > 0
    n_pieces = {int(i): len(many.pieces(i)) for i in range(len(store))}
    assert {int(row_of(many, g)["person"][0]) for g in range(many.rows_per_epoch)} == {
        i for i, n in n_pieces.items() if n >= 19
    }


def test_rows_are_a_function_of_seed_and_number_and_of_people_of_the_split(people, store):
    config = pulse_config()
    batch = batch_of(PulseExamples(store, config, 1), [3, 0])
    for name, x in batch_of(PulseExamples(store, config, 1), [3, 0]).items():
        np.testing.assert_array_equal(x, batch[name])
    assert (batch["signal"] != batch_of(PulseExamples(store, config, 2), [3, 0])["signal"]).any()
    of = {s: set(PulseExamples(small_run.store(people, s), config).subjects(range(30))) for s in ("train", "tuning")}
    assert of["train"] and of["tuning"] and not of["train"] & of["tuning"]


def test_the_grid_stands_in_where_there_are_no_waves(store):
    grid = dataclasses.replace(SIGNAL, segments="", min_observed=0.1)
    examples = PulseExamples(store, pulse_config(signal=grid, highest=0.5))
    row = row_of(examples, 0)
    assert row["signal"].shape == (2, 4 * store.steps, 2) and row["signal"].max() > 0.5, "its level says something"
