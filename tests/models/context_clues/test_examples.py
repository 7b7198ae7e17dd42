"""Rows and prediction batches of ContextClues: what is shown, what is predicted, and what z is read from."""

import cohort
import numpy as np
import pytest
import small_run
from context_clues_cases import config_of
from motor_cases import row_of

from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.models.context_clues.examples import ContextCluesExamples
from ehrwear_jax.models.context_clues.timelines import BEGIN, END


def examples_of(root, split="train", seed=0, **options):
    return ContextCluesExamples(small_run.store(root, split), config_of(**options), seed)


@pytest.fixture(scope="module", params=[False, True], ids=["codes", "days"])
def examples(people, request):
    return examples_of(people, day_tokens=request.param)


@pytest.fixture(scope="module")
def rows(examples):
    return [row_of(examples, g) for g in range(2 * examples.rows_per_epoch)]


def test_a_row_holds_contexts_each_with_the_token_that_follows(examples, rows):
    """By hand: what each token and target is, across the ends of parts of long records."""
    n_parts = 0
    for g, row in enumerate(rows):
        at = 0
        for number, (_, timeline, start, stop) in enumerate(examples._contexts(g), start=1):
            ahead = [BEGIN, *timeline.static_token_S[:2]]
            whole = [*timeline.token_K.tolist(), END]
            end = at + len(ahead) + stop - start
            tokens, targets = row["token"][at:end].tolist(), row["target"][at:end].tolist()
            assert tokens == [*ahead, *whole[start:stop]] and targets == [*tokens[1:], whole[stop]]
            assert len(tokens) == 20 or (start == 0 and targets[-1] == END)
            assert (row["segment"][at:end] == number).all()
            position = np.arange(at, end)
            np.testing.assert_array_equal(row["kv_range"][at:end], np.stack([position * 0 + at, position + 1], 1))
            n_parts += stop < len(timeline.token_K)
            at = end
        assert not row["token"][at:].any() and (row["target"][at:] == -1).all() and (row["site"] == -1).all()
        assert (row["kv_range"][at:] == at).all() and np.all(np.diff(row["kv_range"], axis=0) >= 0)
    assert n_parts > 3
    examples.spec.check({k: v[None] for k, v in rows[0].items()}, 1)


def test_every_training_person_is_shown_in_an_epoch(examples):
    n = examples.rows_per_epoch
    assert examples.subjects(range(n)) == sorted(examples.subject_id[np.flatnonzero(examples._n_events)].tolist())


def test_what_is_outside_the_vocabulary_is_counted(tmp_path):
    """By a slow count, of a cohort some of whose codes are too rare for it."""
    root = cohort.write_cohort(tmp_path, n_subjects=20, wear_days=0.1)
    store = small_run.store(cohort.prepare_cohort(root, min_subjects=10), "train")
    examples = ContextCluesExamples(store, config_of())
    found, given = ([x[i] for i in range(len(store))] for x in (examples.people, store))
    outside = {"static": sum(len(r.static_code_S) for r in given) - sum(len(t.static_token_S) for t in found),
               "events": sum(len(r.code_K) for r in given) - sum(len(t.token_K) for t in found)}  # fmt: skip
    assert examples.outside == outside and outside["events"] > 0


# -------------------------------------------------------------------------------------------------- prediction times


@pytest.fixture(scope="module")
def asked(people):
    """(examples of all people, positions, times): before, at, between and behind events, several of a person."""
    examples, position, time = examples_of(people, None, day_tokens=True), [], []
    for i in range(len(examples.people)):
        found = examples.people[i].time_K
        times = [0] if not len(found) else [found[0] - 1, found[0], found[len(found) // 2], found[-1] + 400 * DAY_US]
        position += [i] * len(times)
        time += [int(t) for t in times]
    order = np.random.default_rng(0).permutation(len(time))
    return examples, np.array(position)[order], np.array(time)[order]


def test_each_time_is_read_once_at_the_last_token_known_behind_the_latest_others(asked):
    """Long records keep the tokens before the time, and static events ahead of them; z sees nothing later."""
    examples, position, time = asked
    places, n_cut = [], 0
    for batch, where in examples.prediction_batches(position, time, 2):
        examples.spec.check(batch, 2)
        for r, n in zip(*np.nonzero(where >= 0), strict=True):
            k = int(where[r, n])
            timeline, at = examples.people[int(position[k])], int(batch["site"][r, n])
            known = timeline.token_K[timeline.time_K <= time[k]].tolist()
            ahead = [BEGIN, *timeline.static_token_S[:2].tolist()]
            begin = int(batch["kv_range"][r, at, 0])
            shown = batch["token"][r, begin : at + 1].tolist()
            assert shown == [*ahead, *known[max(0, len(known) - 20 + len(ahead)) :]]
            n_cut += len(shown) < len(ahead) + len(known)
            places.append(k)
        assert (batch["target"] == -1).all()
    assert sorted(places) == list(range(len(time))) and n_cut > 5


def test_what_comes_after_a_time_changes_nothing_of_its_batch(asked):
    """Not even the number of days until the next event."""
    examples, position, time = asked
    whole, known = (
        list(examples.prediction_batches(position, time, 2, transform))
        for transform in (lambda record, t: record, lambda record, t: record.until(t))
    )
    for (batch, where), (other, there) in zip(whole, known, strict=True):
        np.testing.assert_array_equal(where, there)
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name], err_msg=name)


def test_what_z_is_read_from_is_counted(asked):
    """Of events; the tokens of days take room, and are none."""
    examples, position, time = asked
    seen = examples.tokens_seen(position, time)
    for k, (i, t) in enumerate(zip(position, time, strict=True)):
        timeline = examples.people[int(i)]
        known = int((timeline.time_K <= t).sum())
        room = 19 - min(2, len(timeline.static_token_S))
        inside = timeline.is_event_K[max(0, known - room) : known]
        assert seen["events"][k] == inside.sum()
        assert seen["events_left_out"][k] == timeline.is_event_K[:known].sum() - inside.sum()
        assert seen["static"][k] + seen["static_left_out"][k] == len(timeline.static_token_S)
    assert seen["events_left_out"].max() > 0


def test_counts_by_hand(examples):
    batch = examples.spec.empty(1)
    batch["segment"][0, :5], batch["begins_day"][0, [1, 4]] = (1, 1, 1, 2, 2), True
    batch["kv_range"][0, :5], batch["target"][0, :4] = ((0, 1), (0, 2), (0, 3), (3, 4), (3, 5)), 7
    want = {"contexts": 2, "tokens": 5, "patient_days": 2, "targets": 4, "seen": 9}
    assert examples.counts(batch) == want
    assert examples.place_names()["token"] == examples.dictionary.names


def test_days_are_counted_once(examples, rows):
    for g, row in enumerate(rows[:3]):
        n = sum(len(np.unique(t.time_K[a:b] // DAY_US)) for _, t, a, b in examples._contexts(g))
        assert row["begins_day"].sum() == n
