"""Predictions at every distinct time of a context, in place of as many as a row has room for."""

import numpy as np
import pytest
from joint_rows import contexts, examples_of, rows_of

from ehrwear_jax.models.joint.batch import MODALITY_EHR, PAD

CONTEXT = {"tokens": 64, "windows": 16, "context_tokens": 40, "queries": 8, "events": 4, "patch_steps": 3,
           "future_windows": 2, "future_codes": 5, "masked_contexts": 0.0}  # fmt: skip


def last_of_its_time(row):
    """Positions of timed events that are the last one of a distinct time of their context."""
    found = []
    for own in contexts(row):
        mine = [t for t in own if row["modality"][t] == MODALITY_EHR]
        timed = [t for t in mine if row["token"][t] != PAD]
        found += [t for k, t in enumerate(timed) if k + 1 == len(timed) or row["time"][timed[k + 1]] != row["time"][t]]
    return found


@pytest.fixture(scope="module")
def rows(packed_people):
    """(rows with predictions at every time, the same rows with four)."""
    return [rows_of(examples_of(packed_people, CONTEXT | {"every_time": t}), epochs=1) for t in (True, False)]


def test_every_distinct_time_has_a_prediction_and_each_place_one(rows):
    at_all, n_static = 0, 0
    for row in rows[0]:
        at = row["event_position"][row["event_position"] >= 0]
        assert len(row["event_position"]) == len(row["token"]) and len(set(at)) == len(at)
        assert np.all(np.diff(at) > 0) and set(at) <= set(last_of_its_time(row))
        # static events have the time of the first token, and are no place of a prediction
        n_static += len(set(last_of_its_time(row)) - set(at))
        at_all += len(at)
    assert at_all > 100 and n_static <= sum(row["segment"].max() for row in rows[0])


def test_what_is_predicted_at_a_place_does_not_depend_on_how_many_there_are(rows):
    n_many, n_few = 0, 0
    for many, few in zip(*rows, strict=True):
        of = {t: many["event_next"][e] for e, t in enumerate(many["event_position"]) if t >= 0}
        assert all(of[t] == few["event_next"][e] for e, t in enumerate(few["event_position"]) if t >= 0)
        n_many, n_few = n_many + (many["event_next"] != PAD).sum(), n_few + (few["event_next"] != PAD).sum()
    assert n_many > 2 * n_few > 0
