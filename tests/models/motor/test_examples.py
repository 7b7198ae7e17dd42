"""Rows and prediction batches of MOTOR: who sees whom, what is predicted where, and what z is read from."""

import pickle
from unittest import mock

import numpy as np
import pytest
import small_run
from motor_cases import batch_of, config_of, row_of

from ehrwear_jax.data.cache import Cache
from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.models.motor.examples import MotorExamples


def examples_of(root, split="train", seed=0, **options):
    return MotorExamples(small_run.store(root, split), config_of(**options), seed)


@pytest.fixture(scope="module")
def examples(people):
    return examples_of(people)


@pytest.fixture(scope="module")
def rows(examples):
    return [row_of(examples, g) for g in range(2 * examples.rows_per_epoch)]


def shown(examples, g):
    """(timeline, first event, last + 1, position of the first token) of each context of a row."""
    at = 0
    for _, timeline, start, stop in examples._contexts(g):
        yield timeline, start, stop, at
        at += 1 + stop - start


def test_a_row_is_a_function_of_seed_and_number(people, examples, rows):
    again = pickle.loads(pickle.dumps(examples))
    for g in (0, len(rows) - 1):
        for name, x in row_of(again, g).items():
            np.testing.assert_array_equal(x, rows[g][name], err_msg=name)
    other = row_of(examples_of(people, seed=1), 0)
    assert any(np.any(other[name] != rows[0][name]) for name in other)
    examples.spec.check(batch_of(examples, [0, 1]), 2)


def test_a_token_sees_the_latest_of_its_own_context_up_to_itself(examples, rows):
    window = examples.config.attention_window
    for row in rows:
        position = np.arange(len(row["segment"]))
        real = row["segment"] > 0
        begin = np.array([np.flatnonzero(row["segment"] == s)[0] for s in row["segment"][real]])
        want = np.stack([np.maximum(begin, position[real] + 1 - window), position[real] + 1], axis=1)
        np.testing.assert_array_equal(row["kv_range"][real], want)
        assert np.all(np.diff(row["kv_range"], axis=0) >= 0) and not np.diff(row["kv_range"][~real]).any()


def test_every_training_person_is_shown_in_an_epoch_and_long_records_in_parts(examples):
    n, room, parts = examples.rows_per_epoch, examples.config.context_tokens - 1, {}
    for g in range(n):
        for person, timeline, start, stop in examples._contexts(g):
            parts.setdefault(person, []).append(stop - start)
            assert stop - start == min(len(timeline.time_K), room)
    assert sorted(parts) == np.flatnonzero(examples._n_events).tolist()
    assert any(len(p) > 1 for p in parts.values())
    assert examples.subjects(range(n)) == sorted(examples.subject_id[sorted(parts)].tolist())


def test_tokens_are_the_events_behind_a_token_of_the_person(examples, rows):
    names = examples.fitted.dictionary.names
    for g, row in enumerate(rows):
        for timeline, start, stop, at in shown(examples, g):
            mine = row["entry"][at]
            said = [names[e] for e in mine if e]
            assert said[0] == "<person>" and [s.split("//")[0] for s in said[1:]] == ["GENDER"]
            assert not row["age"][at].any()
            for k in range(start, stop):
                here = at + 1 + k - start
                want = examples.fitted.dictionary.entry_VxA[timeline.token_K[k]]
                want = want[want > 0]
                np.testing.assert_array_equal(row["entry"][here][: len(want)], want)
                np.testing.assert_allclose(row["weight"][here], (row["entry"][here] > 0) / len(want))
                age = (timeline.time_K[k] - timeline.origin_us) / DAY_US
                assert row["age"][here].sum(dtype=np.float64) == pytest.approx(age, abs=1e-4)


def test_predictions_are_those_of_a_slow_search(examples, rows):
    n_pairs = 0
    for g, row in enumerate(rows):
        used = row["pair_site"] >= 0
        found = {(int(n), int(c)): float(d) for n, c, d in
                 zip(row["pair_site"][used], row["pair_task"][used], row["pair_days"][used], strict=True)}  # fmt: skip
        want = {}
        for timeline, start, stop, at in shown(examples, g):
            inside = (row["site"] > at) & (row["site"] < at + 1 + stop - start)
            for n in np.flatnonzero(inside):
                k = int(row["site"][n]) - at - 1 + start
                now = timeline.time_K[k]
                assert k + 1 == len(timeline.time_K) or timeline.time_K[k + 1] > now, "the last of its time"
                assert row["site_days"][n] == np.float32((timeline.end_us - now) / DAY_US) > 0
                for group, time in zip(timeline.group_X, timeline.group_time_X, strict=True):
                    task = int(examples.fitted.task_G[group])
                    if task >= 0 and time > now:
                        want.setdefault((int(n), task), float(np.float32((time - now) / DAY_US)))
        assert found == want
        n_pairs += len(found)
        assert (row["site"] >= 0).any() and not row["site_days"][row["site"] < 0].any()
    assert n_pairs > 100


def test_a_place_without_room_for_what_follows_is_left_out_whole(people, rows):
    """Of the first places, in random order, so many as there is room for; none loses some of its codes."""
    few = examples_of(people, pairs=12)
    for g in range(few.rows_per_epoch):
        row, many = row_of(few, g), rows[g]
        n = int((row["site"] >= 0).sum())
        assert 0 < n < (many["site"] >= 0).sum()
        of = {int(s): np.sort(many["pair_days"][many["pair_site"] == k]) for k, s in enumerate(many["site"])}
        for k in range(n):
            if int(row["site"][k]) in of:
                np.testing.assert_array_equal(np.sort(row["pair_days"][row["pair_site"] == k]), of[int(row["site"][k])])


# -------------------------------------------------------------------------------------------------- prediction times


@pytest.fixture(scope="module")
def asked(people):
    """(examples of all people, positions, times): before, at, between and behind events, several of a person."""
    examples, position, time = examples_of(people, None), [], []
    for i in range(len(examples.people)):
        found = examples.people[i].time_K
        times = [0] if not len(found) else [found[0] - 1, found[0], found[len(found) // 2], found[-1] + 400 * DAY_US]
        position += [i] * len(times)
        time += [int(t) for t in times]
    order = np.random.default_rng(0).permutation(len(time))
    return examples, np.array(position)[order], np.array(time)[order]


def test_each_time_is_read_once_at_the_last_token_known(asked):
    examples, position, time = asked
    places, n_batches = [], 0
    for batch, where in examples.prediction_batches(position, time, 2):
        examples.spec.check(batch, 2)
        n_batches += 1
        for r, n in zip(*np.nonzero(where >= 0), strict=True):
            k = int(where[r, n])
            timeline, at = examples.people[int(position[k])], int(batch["site"][r, n])
            known = int((timeline.time_K <= time[k]).sum())
            first = np.flatnonzero(batch["segment"][r] == batch["segment"][r, at])[0]
            if known:
                age = (timeline.time_K[known - 1] - timeline.origin_us) / DAY_US
                assert batch["age"][r, at].sum(dtype=np.float64) == pytest.approx(age, abs=1e-4)
                assert at - first == min(known, examples.config.context_tokens - 1)
            else:
                assert at == first
            places.append(k)
        assert not batch["site_days"].any() and (batch["pair_site"] < 0).all()
    assert sorted(places) == list(range(len(time))) and 1 < n_batches < len(time) / 4


def test_a_transform_changes_what_is_read(asked):
    examples, position, time = asked
    batches = list(examples.prediction_batches(position, time, 2, lambda record, t: record.without_ehr()))
    assert sum(int((where >= 0).sum()) for _, where in batches) == len(time)
    assert all(batch["segment"].max() == (batch["site"] >= 0).sum(1).max() for batch, _ in batches), "first tokens only"


def test_what_comes_after_a_time_changes_nothing_of_its_batch(asked):
    """A record as it was known then gives the same arrays: no later event, end of follow-up or death shows."""
    examples, position, time = asked
    whole, known = (
        list(examples.prediction_batches(position, time, 2, transform))
        for transform in (lambda record, t: record, lambda record, t: record.until(t))
    )
    for (batch, where), (other, there) in zip(whole, known, strict=True):
        np.testing.assert_array_equal(where, there)
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name], err_msg=name)


def test_what_z_depends_on_is_counted(people, asked):
    """By hand: a context of 20 tokens, of which two layers of windows of six reach eleven."""
    examples, position, time = asked
    assert examples.config.reach == 11
    seen = examples.tokens_seen(position, time)
    n_cut = 0
    for k, (i, t) in enumerate(zip(position, time, strict=True)):
        timeline = examples.people[int(i)]
        known = int((timeline.time_K <= t).sum())
        assert seen["events"][k] == min(known, 11) and seen["events_left_out"][k] == known - seen["events"][k]
        static = len(timeline.static_token_S)
        assert seen["static"][k] == (static if known < 11 else 0), "the first token is the eleventh from the end"
        assert seen["static_left_out"][k] == static - seen["static"][k]
        n_cut += known > 11
    assert n_cut > 5
    whole = examples_of(people, None, attention_window=48)
    assert (whole.tokens_seen(position, time)["events"].max(), whole.config.reach) == (19, 20)


def test_people_beyond_the_cache_are_read_once_to_count_what_is_seen(people, asked):
    whole, position, time = asked
    examples = examples_of(people, None)
    examples.people.cache = Cache(0)
    with mock.patch.object(examples.people.store, "read", wraps=examples.people.store.read) as read:
        seen = examples.tokens_seen(position, time)
    assert read.call_count == len(np.unique(position))
    np.testing.assert_array_equal(seen["events"], whole.tokens_seen(position, time)["events"])


def test_counts_by_hand(examples):
    batch = examples.spec.empty(1)
    batch["segment"][0, :5] = (1, 1, 1, 2, 2)
    batch["age"][0, :5, 0] = (0, 7, 7, 0, 9)
    batch["kv_range"][0, :5] = ((0, 1), (0, 2), (1, 3), (3, 4), (3, 5))
    batch["site"][0, :2] = (2, 4)
    assert examples.counts(batch) == {"contexts": 2, "tokens": 5, "patient_days": 2, "sites": 2, "seen": 8}


def test_names_of_places(examples):
    names, fitted = examples.place_names(), examples.fitted
    assert len(names["token"]) == len(set(names["token"])) == fitted.facts.dictionary
    assert len(names["future_code"]) == fitted.facts.tasks
    assert examples.content_names()["time_bin"][0] == "0" and len(fitted.facts.bin_days) == 3


def test_nobody_with_events_is_named(people):
    examples = examples_of(people)
    examples._n_events = examples._n_events * 0
    with pytest.raises(ValueError, match="no training person has an event of a known code"):
        examples.fill({}, 0)


def test_ages_above_the_limit_are_the_limit(examples):
    person = examples.people[0]
    days = person.ages(np.array([person.origin_us + 40_000 * DAY_US]), 89.0)
    assert days[0, 0] == round(89 * 365.25)
    unborn = person._replace(has_birth=False)
    assert unborn.ages(np.array([person.origin_us + 40_000 * DAY_US]), 89.0)[0, 0] == 40_000
