"""Rows and prediction batches of CEHR-BERT: who sees whom, what is hidden, and what z is read from."""

import dataclasses
import pickle

import numpy as np
import pytest
import small_run
from cehr_cases import config_of
from motor_cases import batch_of, row_of

from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.models.cehr_bert.examples import CehrBertExamples
from ehrwear_jax.models.cehr_bert.timelines import CLS, MASK, PAD, SPECIAL, VISIT_MASK, VISIT_PAD


def examples_of(root, split="train", seed=0, **options):
    return CehrBertExamples(small_run.store(root, split), config_of(**options), seed)


@pytest.fixture(scope="module")
def examples(people):
    return examples_of(people)


@pytest.fixture(scope="module")
def rows(examples):
    return [row_of(examples, g) for g in range(2 * examples.rows_per_epoch)]


def test_a_row_is_a_function_of_seed_and_number(people, examples, rows):
    again = pickle.loads(pickle.dumps(examples))
    for g in (0, len(rows) - 1):
        for name, x in row_of(again, g).items():
            np.testing.assert_array_equal(x, rows[g][name], err_msg=name)
    other = row_of(examples_of(people, seed=1), 0)
    assert any(np.any(other[name] != rows[0][name]) for name in other)
    examples.spec.check(batch_of(examples, [0, 1]), 2)


def test_tokens_see_all_of_their_own_context_and_nobody_else(rows):
    assert max(row["segment"].max() for row in rows) >= 2
    for row in rows:
        for s in range(1, row["segment"].max() + 1):
            at = np.flatnonzero(row["segment"] == s)
            assert np.all(row["kv_range"][at] == [at[0], at[-1] + 1]) and len(at) == at[-1] + 1 - at[0]
            assert row["token"][at[0]] == CLS
        padding = row["segment"] == 0
        assert np.all(np.diff(row["kv_range"], axis=0) >= 0) and not np.diff(row["kv_range"][padding]).any()
        assert np.all(row["token"][padding] == PAD) and np.all(row["target"][padding] == -1)


def test_rows_hold_the_tokens_that_were_there_before_some_were_hidden(examples, rows):
    """Static events behind the first token, and parts of timelines with their values, ages and visits."""
    n_values = 0
    for g, row in enumerate(rows):
        token = np.where(row["target"] >= 0, row["target"], row["token"])
        value = np.where(row["has_value_target"], row["value_target"], row["value"])
        has_value, at = row["has_value"] | row["has_value_target"], 0
        for _, timeline, start, stop, is_closed in examples._contexts(g):
            part, first = timeline.part(start, stop, is_closed), at + 1 + len(timeline.static_S)
            assert token[at] == CLS and token[at + 1 : first].tolist() == timeline.static_S.tolist()
            mine = slice(first, first + len(part.entry_K))
            shown = token[mine] != MASK  # a name of a hidden type
            np.testing.assert_array_equal(token[mine][shown], part.entry_K[shown])
            there = np.isfinite(part.value_K)
            np.testing.assert_array_equal(has_value[mine], there)
            np.testing.assert_array_equal(value[mine][there], part.value_K[there])
            np.testing.assert_allclose(row["date"][mine], part.time_K / (7 * DAY_US), rtol=1e-6)
            years = (part.time_K - timeline.origin_us) / (365.25 * DAY_US)
            np.testing.assert_allclose(row["age"][mine], years, rtol=1e-5, atol=1e-5)
            assert np.all(row["date"][at:first] == row["date"][first])
            np.testing.assert_array_equal(row["visit"][mine], part.visit_K - part.visit_K[0])
            segment = row["visit_segment"][mine]
            assert np.all((segment == 0) == part.is_between_K) and not row["visit_segment"][at:first].any()
            real = part.visit_K[~part.is_between_K]
            assert np.all((np.diff(segment[segment > 0]) != 0) == (np.diff(real) % 2 != 0)), "they alternate"
            n_values, at = n_values + int(there.sum()), mine.stop
        assert at == (row["segment"] > 0).sum() <= examples.config.tokens
    assert n_values > 50


def test_every_training_person_is_shown_in_an_epoch_and_long_records_in_parts(examples):
    n, parts = examples.rows_per_epoch, {}
    for g in range(n):
        for person, timeline, start, stop, is_closed in examples._contexts(g):
            whole = timeline.whole
            parts.setdefault(person, []).append((start, stop) == (0, whole[0]) and is_closed == whole[1])
            assert 0 <= start < stop <= whole[0]
            assert 1 + len(timeline.static_S) + stop - start + is_closed <= examples.config.context_tokens
    assert sorted(parts) == np.flatnonzero(examples._n_events).tolist()
    assert any(len(p) > 1 for p in parts.values()) and any(all(p) for p in parts.values())
    assert examples.subjects(range(n)) == sorted(examples.subject_id[sorted(parts)].tolist())


def test_of_what_is_predicted_80_10_10_percent_are_hidden_replaced_and_left(people):
    examples = examples_of(people, visit_weight=0.0)
    hidden = replaced = left = chances = 0
    other = []
    for g in range(60):
        row = row_of(examples, g)
        chosen, token = row["target"] >= 0, row["token"]
        can = (row["segment"] > 0) & (np.diff(row["segment"], prepend=0) == 0)
        assert np.all(can[chosen]), "neither padding nor <cls>"
        assert not (row["has_value"] & chosen).any() and not row["value"][chosen].any(), "values are hidden throughout"
        assert np.all(token[~chosen & (row["segment"] > 0)] != MASK)
        hidden += int((token[chosen] == MASK).sum())
        left += int((token[chosen] == row["target"][chosen]).sum())
        changed = token[chosen & (token != MASK) & (token != row["target"])]
        replaced, other = replaced + len(changed), [*other, *changed]
        chances += int(can.sum())
    n = hidden + replaced + left
    assert n / chances == pytest.approx(0.15, abs=0.02)
    assert (hidden / n, replaced / n, left / n) == pytest.approx((0.8, 0.1, 0.1), abs=0.04)
    assert CLS < min(other) < len(SPECIAL) + 18 and max(other) >= len(SPECIAL) + 18 + 25, "times and codes"


def test_types_of_visits_are_hidden_with_what_names_them(examples, rows):
    n_hidden = n_visits = n_named = 0
    table = examples.fitted.table
    for g, row in enumerate(rows):
        used, at = 0, 0
        for _, timeline, start, stop, is_closed in examples._contexts(g):
            part = timeline.part(start, stop, is_closed)
            end = at + 1 + len(timeline.static_S) + len(part.entry_K)
            offset, shown = end - len(part.entry_K), np.unique(part.visit_K)
            shown = shown[max(0, len(shown) - (examples.config.visits - used)) :]
            for u, visit in enumerate(shown, start=used):
                true, hidden = timeline.type_U[visit], row["visit_type"][u] == VISIT_MASK
                assert row["visit_target"][u] == (true if hidden else -1) and (hidden or row["visit_type"][u] == true)
                assert row["visit_at"][u] == offset + np.flatnonzero(part.visit_K == visit)[0]
                tells = offset + np.flatnonzero(part.names_type_K & (part.visit_K == visit))
                if hidden:
                    assert np.all(row["token"][tells] == MASK)
                n_named += hidden * len(tells)
                n_hidden, n_visits = n_hidden + hidden, n_visits + 1
            mine = slice(used, used + len(shown))
            assert np.all(row["visit_sees"][mine] == [at, end]) and np.all(
                row["visit_peers"][mine] == [used, mine.stop]
            )
            used, at = mine.stop, end
        assert np.all(row["visit_type"][used:] == VISIT_PAD) and np.all(row["visit_target"][used:] == -1)
        for name in ("visit_sees", "visit_peers"):
            assert np.all(np.diff(row[name], axis=0) >= 0) and not np.diff(row[name][used:]).any()
    assert n_hidden / n_visits == pytest.approx(0.5, abs=0.1) and n_named > 10 and len(table.visit_types) == 4


def test_long_stays_are_asked_of_first_tokens(people):
    options = {"inputs": "med_bert", "visit_weight": 0.0, "long_stay_weight": 1.0}
    examples, n_long, n = examples_of(people, **options), 0, 0
    rng = np.random.default_rng(0)
    for i in range(len(examples.people)):
        timeline = examples.people[i]
        stay_us = (rng.choice([0, 6.9, 7.0, 7.1], len(timeline.type_U), p=[0.8, 0.1, 0.05, 0.05]) * DAY_US).astype(int)
        examples.people.cache.held[i] = dataclasses.replace(timeline, stay_us_U=stay_us)
    for g in range(examples.rows_per_epoch):
        row, contexts = row_of(examples, g), list(examples._contexts(g))
        for k, (_, timeline, start, stop, _) in enumerate(contexts):
            shown = np.unique(timeline.tokens.visit_K[start:stop])
            assert row["long_stay"][k] == (timeline.stay_us_U[shown] > 7 * DAY_US).any()
            assert row["first_at"][k] == np.flatnonzero(row["segment"] == k + 1)[0]
            n_long, n = n_long + int(row["long_stay"][k]), n + 1
        assert (row["long_stay"][len(contexts) :] == -1).all()
    assert 0 < n_long < n


# -------------------------------------------------------------------------------------------------- prediction times


@pytest.fixture(scope="module")
def asked(people):
    """(examples of all people, positions, times): before, at, between and behind events, several of a person."""
    examples, position, time = examples_of(people, None), [], []
    for i in range(len(examples.people)):
        found = examples.people[i].known_K
        times = [0] if not len(found) else [found[0] - 1, found[0], found[len(found) // 2], found[-1] + 400 * DAY_US]
        position += [i] * (len(times) + 1)
        time += [int(t) for t in (*times, times[-1] + DAY_US)]
    order = np.random.default_rng(0).permutation(len(time))
    return examples, np.array(position)[order], np.array(time)[order]


def test_each_time_has_a_context_that_ends_there(asked):
    examples, position, time = asked
    places, n_batches = [], 0
    for batch, where in examples.prediction_batches(position, time, 2):
        examples.spec.check(batch, 2)
        n_batches += 1
        for r, n in zip(*np.nonzero(where >= 0), strict=True):
            k = int(where[r, n])
            timeline = examples.people[int(position[k])]
            begin, end = batch["site"][r, n]
            own = batch["segment"][r] == batch["segment"][r, begin]
            assert np.flatnonzero(own).tolist() == list(range(begin, end)) and batch["token"][r, begin] == CLS
            stop, is_closed = timeline.known(int(time[k]))
            first = begin + 1 + len(timeline.static_S)
            want = timeline.part(0, stop, is_closed).entry_K[-(end - first) :] if end > first else []
            np.testing.assert_array_equal(batch["token"][r, first:end], want)
            room = examples.config.context_tokens - 1 - len(timeline.static_S)
            assert end - first == min(stop + is_closed, room)
            places.append(k)
        assert (batch["target"] < 0).all() and not (batch["token"] == MASK).any()
    assert sorted(places) == list(range(len(time))) and 1 < n_batches < len(time) / 4


def test_what_comes_after_a_time_changes_nothing_of_its_batch(asked):
    """A record as it was known then gives the same arrays: no later event, end of a visit, of follow-up, or death."""
    examples, position, time = asked
    whole, known = (
        list(examples.prediction_batches(position, time, 2, transform))
        for transform in (lambda record, t: record, lambda record, t: record.until(t))
    )
    for (batch, where), (other, there) in zip(whole, known, strict=True):
        np.testing.assert_array_equal(where, there)
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name], err_msg=name)


def test_a_transform_changes_what_is_read(asked):
    examples, position, time = asked
    batches = list(examples.prediction_batches(position, time, 2, lambda record, t: record.without_ehr()))
    assert sum(int((where >= 0).sum()) for _, where in batches) == len(time)
    assert all((batch["token"][batch["segment"] > 0] == CLS).all() for batch, _ in batches), "first tokens only"


def test_what_z_depends_on_is_counted(asked):
    examples, position, time = asked
    seen, n_cut = examples.tokens_seen(position, time), 0
    for batch, where in examples.prediction_batches(position, time, 2):
        for r, n in zip(*np.nonzero(where >= 0), strict=True):
            k, (begin, end) = int(where[r, n]), batch["site"][r, n]
            timeline = examples.people[int(position[k])]
            static = len(timeline.static_S)
            n_events = int((batch["token"][r, begin + 1 + static : end] >= len(SPECIAL) + 18 + 25).sum())
            assert seen["events"][k] == n_events and (seen["static"][k], seen["static_left_out"][k]) == (static, 0)
            known = int((timeline.known_K <= time[k])[timeline.tokens.is_event_K].sum())
            assert seen["events_left_out"][k] == known - n_events
            n_cut += known > n_events
    assert n_cut > 5


def test_counts_by_hand(examples):
    batch = examples.spec.empty(1)
    batch["segment"][0, :5] = (1, 1, 1, 2, 2)
    batch["date"][0, :5] = (1.0, 1.0, 2.0, 2.0, 2.01)
    batch["kv_range"][0, :5] = ((0, 3), (0, 3), (0, 3), (3, 5), (3, 5))
    batch["target"][0, 1] = 3
    batch["visit_type"][0, :2] = (1, 2)
    batch["visit_sees"][0, :2], batch["visit_peers"][0, :2] = ((0, 3), (3, 5)), ((0, 1), (1, 2))
    assert examples.counts(batch) == {"contexts": 2, "tokens": 5, "patient_days": 3, "targets": 1, "seen": 13,
                                      "visits": 2, "visit_seen": 7}  # fmt: skip


def test_names_of_places(examples):
    names, facts = examples.place_names(), examples.fitted.facts
    assert len(names["token"]) == len(set(names["token"])) == facts.tokens
    assert len(names["visit_type"]) == len(set(names["visit_type"])) == facts.visit_types


def test_without_types_of_visits_there_is_nothing_of_them_in_a_batch(people):
    for options in ({"visit_weight": 0.0}, {"admission_codes": ()}):
        found = examples_of(people, **options)
        assert not any(name.startswith("visit_t") for name in row_of(found, 0))


def test_nobody_with_events_is_named(people):
    examples = examples_of(people)
    examples._n_events = examples._n_events * 0
    with pytest.raises(ValueError, match="no training person has an event of a known code"):
        examples.fill({}, 0)
