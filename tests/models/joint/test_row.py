"""Rows of several contexts: each is what it would be alone in a row, whatever lies beside it."""

import numpy as np
import pytest
from joint_rows import check_together, examples_of

from ehrwear_jax.models.joint import context, query_times, row, terms, value_fields

ROOM = 96  # of tokens and windows together: so many predictions, and each token has one
OPTIONS = {
    "tokens": 64,
    "windows": 32,
    "context_tokens": 24,
    "queries": ROOM,
    "events": ROOM,
    "pairs": ROOM,
    "colocated_days": 30.0,
    "patch_steps": 3,
    "future_windows": 3,
    "future_codes": 6,
    "masked_contexts": 0.7,
    "next_values": 3,
}
# fields of tokens or of places of them, which move with the context; segments are numbered
POSITIONS = ("kv_range", "query_kv_range", "window_position", "masked_position", "event_position", "pair_position",
             "pair_near", "event_pool", "query_pool")  # fmt: skip
SLOTS = ("window", "step_window", "query_window")
SEGMENTS = ("segment", "query_segment")
# beginnings of names, and what the axis of a field's entries is of; others are of tokens
AXES = {"masked": "masked", "event": "events", "query": "queries", "pair": "pairs", "window_position": "windows",
        "step": "windows", "wear": "windows", "observed": "windows", "patch_mask": "windows",
        "channel_mask": "windows"}  # fmt: skip


def samples(examples, chosen, seed):
    """[(shown, query times, number)] of people, parts of whose records contexts show."""
    found = []
    for i in chosen:
        patient = examples.people[int(i)]
        span = context.fit(patient, len(patient.time_N) - int(i) % 3, 16, 6)
        query_us = query_times.draw(np.random.default_rng([seed, i]), patient, span, span.n_tokens - int(i) % 2, 0.3)
        found.append((context.Shown(patient, span, int(i)), query_us, int(i)))
    return found


def filled(examples, found, training):
    row_ = {name: array[0] for name, array in examples.spec.empty(1).items()}
    shown, query_us, ids = zip(*found, strict=True)
    draws = None
    if training:
        draws = [context.Draws(np.random.default_rng([7, i]), np.random.default_rng([8, i])) for i in ids]
    batch = {name: array[None] for name, array in row_.items()}
    row.fill_rows(batch, examples.people, [context.Contents(shown, query_us, draws)])
    return row_


def counts(one):
    """How many entries of each axis a row of one context fills."""
    return {
        "tokens": int((one["segment"] > 0).sum()),
        "queries": int((one["query_segment"] > 0).sum()),
        "windows": int((one["window_position"] >= 0).sum()),
        **{name: int((one[field] >= 0).sum()) for name, field in
           (("masked", "masked_position"), ("events", "event_position"), ("pairs", "pair_position"))},
    }  # fmt: skip


def axis_of(name):
    return next((axis for start, axis in AXES.items() if name.startswith(start)), "tokens")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"noise": 0.2, "channel_dropout": 0.2}, {"wear_mask_kind": "window", "interest_codes": ("LAB//",)}]
)
def test_a_context_is_what_it_would_be_alone_in_a_row(many_people, training, options):
    """All inputs and targets, bit by bit, but that places count from where the context begins."""
    examples = examples_of(many_people, OPTIONS | options, value_inputs=True)
    assert examples.people.row_tokens == ROOM
    targets = set() if training else set(terms.target_fields(examples.people.terms))
    names = examples.spec.fields.keys() - (targets - value_fields.CODES.keys() - value_fields.CHANNELS.keys())
    known = [i for i in range(len(examples.people)) if len(examples.people[i].time_N) > 3]
    rng, n_checked = np.random.default_rng(0), dict.fromkeys(("tokens", "windows", "masked", "events", "pairs"), 0)
    for seed in range(12):
        found = samples(examples, rng.permutation(known)[: 1 + seed % 4], seed)
        together = filled(examples, found, training)
        at = dict.fromkeys(("tokens", "queries", "windows", "masked", "events", "pairs"), 0)
        for k, sample in enumerate(found):
            alone = filled(examples, [sample], training)
            n = counts(alone)
            for name in names:
                array = alone[name]
                first, axis = at[axis_of(name)], axis_of(name)
                mine, want = together[name][first : first + n[axis]], array[: n[axis]]
                moved = (name in POSITIONS) * at["tokens"] + (name in SLOTS) * at["windows"] + (name in SEGMENTS) * k
                # -1 says that there is none
                np.testing.assert_array_equal(mine, np.where(want < 0, want, want + moved) if moved else want, name)
            at = {name: first + n[name] for name, first in at.items()}
            n_checked = {name: seen + n[name] for name, seen in n_checked.items()}
        for name, array in together.items():  # and nothing behind them but what padding has
            rest, padding = array[at[axis_of(name)] :], examples.spec.empty(1)[name][0][at[axis_of(name)] :]
            want = np.full_like(padding, at["tokens"]) if name in ("kv_range", "query_kv_range") else padding
            np.testing.assert_array_equal(rest, want, name)
    assert n_checked["tokens"] > 300 and n_checked["windows"] > 30
    if training:
        assert n_checked["masked"] > 10 and n_checked["events"] > 100 and n_checked["pairs"] > 10


@pytest.mark.parametrize(
    "options",
    [
        {"masked_contexts": 1.0, "ehr_mask": 0.6, "pairs": 4, "events": 12},  # more than there is room for
        {"noise": 0.2, "drop_ehr": 0.3, "drop_wear": 0.3, "patient_days": 0.5, "wear_mask_kind": "channel"},
        {"every_time": True, "wear_mask_kind": "random", "interest_codes": ("LAB//",)},
    ],
)
def test_rows_that_are_written_together_are_what_each_is_alone(many_people, options, monkeypatch):
    short = {"tokens": 32, "context_tokens": 24, "windows": 64, "queries": 24}
    examples = examples_of(many_people, OPTIONS | short | options, value_inputs=True)
    five = sum(array.nbytes for array in examples.spec.empty(5).values())
    monkeypatch.setattr(row, "_BYTES_AT_ONCE", five)
    assert [some.start for some, _ in row.blocks(examples.spec.empty(12))] == [0, 5, 10]
    rows = check_together(examples)
    numbers = [tuple(counts(one).values()) for one in rows]
    assert len(set(numbers)) > 3, "rows are filled unequally"
