"""Contexts in rows: another order in every epoch, planned without reading a record, the same in every process."""

import pickle

import cehr_cases
import cohort
import motor_cases
import numpy as np
import pytest
import small_run
from context_clues_cases import config_of
from joint_rows import check_mapped
from motor_cases import row_of

from ehrwear_jax.models.cehr_bert import family as cehr_bert
from ehrwear_jax.models.context_clues import family as context_clues
from ehrwear_jax.models.context_clues.examples import ContextCluesExamples
from ehrwear_jax.models.motor import family as motor


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = cohort.write_cohort(tmp_path_factory.mktemp("packed"), n_subjects=40, wear_days=0.1)
    return small_run.store(cohort.prepare_cohort(root), "train")


@pytest.fixture(scope="module")
def examples(store):
    return ContextCluesExamples(store, config_of())


def test_a_row_is_a_function_of_seed_and_number(store, examples):
    last = 2 * examples.rows_per_epoch - 1
    again = pickle.loads(pickle.dumps(examples))
    for g in (last, 0, last):
        for name, x in row_of(again, g).items():
            np.testing.assert_array_equal(x, row_of(examples, g)[name], err_msg=name)
    other = row_of(ContextCluesExamples(store, config_of(), 1), 0)
    assert np.any(other["token"] != row_of(examples, 0)["token"])


def test_every_epoch_has_an_order_and_parts_of_its_own(examples):
    """Where a sampler seeds itself anew with the same number, all epochs are one."""
    n, orders, parts = examples.rows_per_epoch, [], []
    for epoch in range(3):
        shown = [x for g in range(n) for x in examples._contexts(epoch * n + g)]
        orders.append([person for person, *_ in shown])
        parts.append({(person, start) for person, _, start, _ in shown})
    assert orders[0] != orders[1] != orders[2] != orders[0] and parts[0] != parts[1]


def test_an_epoch_is_planned_without_reading_a_record(store, monkeypatch):
    """Lengths are in the index; the original reads all records for hours."""
    monkeypatch.setattr(type(store), "read", lambda *_: pytest.fail("a record was read"))
    examples = ContextCluesExamples(store, config_of(day_tokens=True))
    assert examples.rows_per_epoch > 1


@pytest.mark.parametrize("family, config", [
    (context_clues, config_of()), (motor, motor_cases.config_of()), (cehr_bert, cehr_cases.config_of()),
])  # fmt: skip
def test_rows_are_the_same_of_people_in_the_mapped_file(store, family, config):
    check_mapped(family.examples(store, config, 0, True), n=6)


def test_timelines_beyond_the_cache_are_made_anew(store, examples):
    people = type(examples.people)(store, examples.dictionary, cache_bytes=0)
    first, again = people[0], people[0]
    assert first is not again and examples.people[0] is examples.people[0]
    np.testing.assert_array_equal(first.token_K, again.token_K)


def test_nobody_with_events_is_named(store):
    examples = ContextCluesExamples(store, config_of())
    examples._n_events = examples._n_events * 0
    with pytest.raises(ValueError, match="no training person has an event of a known code"):
        examples.fill({}, 0)
