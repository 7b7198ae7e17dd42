"""Training examples with the options that are off by default: what they change, how often, and what they leave."""

from types import SimpleNamespace

import cohort
import numpy as np
import polars as pl
import pytest
import small_run
from context_rows import OPTIONS, make_rows
from hypothesis import given
from hypothesis import strategies as st
from joint_rows import assert_same, contexts, examples_of, row_of, rows_of

from ehrwear_jax.data.formats import wearable
from ehrwear_jax.models.joint import batch as batch_lib
from ehrwear_jax.models.joint import context
from ehrwear_jax.models.joint import patient as patient_lib
from ehrwear_jax.models.joint.config import LIKELIHOODS
from ehrwear_jax.models.joint.examples import JointExamples
from ehrwear_jax.models.joint.patient import DAY_US


@pytest.fixture(scope="module")
def plain_rows(many_people):
    return rows_of(make_rows(many_people))


@given(
    is_wear=st.lists(st.booleans(), max_size=40),
    n_static=st.integers(0, 4),
    behind=st.integers(0, 5),
    max_ehr=st.integers(1, 30),
    max_windows=st.integers(0, 12),
)
def test_a_context_shows_the_latest_events_and_the_latest_windows(is_wear, n_static, behind, max_ehr, max_windows):
    """As many of each as its own budget has room for, and so what a model of one modality alone is shown."""
    stop = max(0, len(is_wear) - behind)
    patient, no_events, no_windows = (
        streamed(is_wear, keep, n) for keep, n in ((None, n_static), (True, 0), (False, n_static))
    )
    span = context.fit(patient, stop, max_ehr, max_windows)
    room, windows, want, out = max(max_ehr - n_static, 1), max_windows, [], [0, 0]
    for i in reversed(range(stop)):
        if windows if is_wear[i] else room:
            want.insert(0, i)
            windows, room = windows - is_wear[i], room - (not is_wear[i])
        else:
            out[is_wear[i]] += 1
    shown = np.arange(len(is_wear))[span.positions(patient)]
    np.testing.assert_array_equal(shown, want)
    assert not want or span.start == want[0], "kernel times count from a token that is shown"
    assert span.n_windows == sum(is_wear[i] for i in want) <= max_windows
    assert [span.n_events_out, span.n_windows_out] == out
    assert span.n_static == min(n_static, max_ehr - 1) and span.n_tokens == span.n_static + len(want)
    for alone in (no_events, no_windows):
        other = context.fit(alone, int(np.searchsorted(alone.source_N, stop)), max_ehr, max_windows)
        here = alone.source_N[other.positions(alone)]
        np.testing.assert_array_equal(here, [i for i in want if i in set(alone.source_N.tolist())])


def streamed(is_wear, keep, n_static):
    """A Patient's stream of windows (True) and events; keep: of one kind only. source_N: places in is_wear."""
    is_wear_N = np.array(is_wear, bool)
    source_N = np.flatnonzero(is_wear_N == keep) if keep is not None else np.arange(len(is_wear_N))
    kept_N = is_wear_N[source_N]
    return SimpleNamespace(
        is_wear_N=kept_N, source_N=source_N, static_token_S=np.zeros(n_static, np.int32),
        event_at=np.flatnonzero(~kept_N), window_at=np.flatnonzero(kept_N),
    )  # fmt: skip


def stops(rows, epochs):
    """[(patient, its number of merged tokens at the context's end)] by the places of the tokens in time."""
    found = []
    for g in range(epochs * rows.rows_per_epoch):
        row = row_of(rows, g)
        for (drawn, _), own in zip(rows.contexts(g), contexts(row), strict=True):
            p = rows.people[drawn.position]
            # ages count from a fixed origin: unlike kernel times they tell which token is the last
            last_us = p.origin_us + row["age"][own[-1]].astype(np.float64) @ [1, 1] * DAY_US
            found.append((p, int(np.searchsorted(p.time_N, last_us + 20_000_000, side="right"))))
    return found


def test_contexts_end_with_a_patient_day(many_people):
    ends = stops(make_rows(many_people, patient_days=1.0), 4)
    early = 0
    for p, stop in ends:
        day = (p.time_N - 1) // DAY_US
        assert stop == len(day) or day[stop] > day[stop - 1]
        early += stop < len(day)
    assert early > len(ends) / 3
    assert all(stop == len(p.time_N) or stop >= 30 for p, stop in stops(make_rows(many_people), 4))


def test_administrative_days_are_drawn_less_often(many_people):
    def share(**options):
        rows = make_rows(many_people, patient_days=1.0, modalities=("ehr",), **options)
        code_V = np.array(rows.people.vocabulary.tokens["code"].str.starts_with("LAB//").to_list())
        return np.mean([code_V[p.event_token_K[stop - 1]] for p, stop in stops(rows, 6)])

    plain, fewer, none = share(), *(share(administrative_codes=("LAB//",), administrative_weight=w) for w in (0.1, 0.0))
    assert plain > 2 * fewer > 4 * none


def test_an_event_of_interest_draws_the_masks_and_their_number_stays(many_people):
    options = {"masked_contexts": 1.0, "mask_temperature": 0.0, "modalities": ("ehr",)}
    near_options = {"interest_codes": ("DX//E11",), "interest_factor": 4.0, "interest_days": 2.0}
    plain, drawn = (make_rows(many_people, **options | o) for o in ({}, near_options))
    interest_V = drawn.people.interest_V
    assert interest_V.sum() == 1 and not plain.people.interest_V.any()
    rate, count = {}, {}
    for name, rows in (("plain", plain), ("drawn", drawn)):
        near = [0, 0]
        hidden = total = 0
        for row in rows_of(rows, 12):
            at = row["masked_position"][row["masked_position"] >= 0]
            token = row["token"].copy()
            token[at] = row["masked_target"][row["masked_position"] >= 0]
            for own in contexts(row):
                is_hidden, mine = np.isin(own, at), interest_V[token[own]]
                near = [near[0] + is_hidden[mine].sum(), near[1] + mine.sum()]
                hidden, total = hidden + is_hidden.sum(), total + len(own)
        rate[name], count[name] = near[0] / near[1], hidden / total
    assert abs(count["plain"] - count["drawn"]) < 5 * np.sqrt(2 * 0.15 * 0.85 / total)
    assert rate["drawn"] > 1.5 * rate["plain"]


# ------------------------------------------------------------------------------------------------------------ masks


@pytest.mark.parametrize("kind", ["contiguous", "random", "window", "channel"])
@pytest.mark.parametrize("rate", [0.25, 0.5])
def test_the_share_of_hidden_windows_is_the_configured_one(many_people, kind, rate):
    hidden = total = 0
    for row in rows_of(make_rows(many_people, masked_contexts=1.0, wear_mask=rate, wear_mask_kind=kind), 4):
        real = row["window_position"] >= 0
        field, other = ("channel_mask", "patch_mask") if kind == "channel" else ("patch_mask", "channel_mask")
        assert not row[other].any() and not row[field][~real].any()
        hidden, total = hidden + row[field][real].sum(), total + row[field][real].size
    # contiguous and random hide a whole number of the four patches; the others draw per window or channel
    assert total > 500 and abs(hidden / total - rate) < 5 * np.sqrt(rate * (1 - rate) / total)


def test_masks_are_only_where_contexts_are_masked(many_people):
    for row in rows_of(make_rows(many_people, masked_contexts=0.0, wear_mask_kind="channel")):
        assert not row["channel_mask"].any() and np.all(row["masked_position"] < 0)


# ---------------------------------------------------------------------------------------------------- co-located pairs


def shown_by_kind(root, modalities=("ehr", "wear"), **options):
    """(tokens and ages of events, ages of windows and their signal) that a prediction at each record's end sees.

    Static tokens, whose age is that of the context's first token, without their age.
    """
    examples = make_rows(root, modalities=modalities, **options)
    examples = JointExamples(small_run.store(root), examples.config)  # of all splits
    people, n = examples.people, len(examples)
    events, windows = [None] * n, [None] * n
    for batch, where in examples.prediction_batches(np.arange(n), [people[i].end_us for i in range(n)], 4):
        for r, q in zip(*np.nonzero(where >= 0), strict=True):
            k = where[r, q]
            mine = slice(*batch["query_kv_range"][r, q])
            is_wear, age = batch["modality"][r, mine] == batch_lib.MODALITY_WEAR, batch["age"][r, mine]
            # ages count from the first record where no birth is known, which is another one without events
            since = (age.astype(float) - batch["query_age"][r, q]).sum(axis=-1)
            n_static = people.n_static[k] if "ehr" in modalities else 0
            events[k] = batch["token"][r, mine][~is_wear], since[~is_wear][n_static:]
            windows[k] = batch["wear"][r, batch["window"][r, mine][is_wear]], since[is_wear]
    counted = examples.tokens_seen(np.arange(n), np.array([people[i].end_us for i in range(n)]))
    np.testing.assert_array_equal(counted["events"], [len(since) for _, since in events])
    np.testing.assert_array_equal(counted["static"] + counted["events"], [len(token) for token, _ in events])
    np.testing.assert_array_equal(counted["windows"], [len(since) for _, since in windows])
    whole = counted["events"] + counted["events_left_out"], counted["windows"] + counted["windows_left_out"]
    np.testing.assert_array_equal(whole[0], people.n_events, err_msg="all of a record is known at its end")
    np.testing.assert_array_equal(whole[1], people.n_windows)
    return events, windows


@pytest.mark.parametrize("tokens", [40, 16])
@pytest.mark.parametrize("windows", [32, 7, 2])
def test_the_joint_model_is_shown_all_that_models_of_one_modality_are(many_people, tokens, windows):
    """Bit by bit, however little room there is: events and windows have budgets of their own."""
    options = {"tokens": tokens, "context_tokens": tokens, "windows": windows}
    events, worn = shown_by_kind(many_people, **options)
    events_alone, _ = shown_by_kind(many_people, modalities=("ehr",), **options)
    _, worn_alone = shown_by_kind(many_people, modalities=("wear",), **options)
    for joint, alone in zip(events + worn, events_alone + worn_alone, strict=True):
        for mine, other in zip(joint, alone, strict=True):
            np.testing.assert_allclose(mine, other, atol=1e-6)
    n_events, n_windows = (np.array([len(x[1]) for x in found]) for found in (events, worn))
    assert np.count_nonzero((n_events > 5) & (n_windows >= min(windows, 8))) > 10, "there is something of both"


def test_pairs_are_windows_with_visible_events_near_their_end(many_people):
    days, options = 20.0, {"pairs": 6, "colocated_days": 20.0, "masked_contexts": 1.0, "ehr_mask": 0.5}
    rows = make_rows(many_people, **options)
    ids, n_pairs, later = [], 0, 0
    for g, row in enumerate(rows_of(rows, 1)):
        real = row["pair_patient"] >= 0
        assert np.array_equal(real, row["pair_position"] >= 0)
        inside = [drawn.position for drawn, _ in rows.contexts(g)]
        for position, (lo, hi), patient in zip(
            row["pair_position"][real], row["pair_near"][real], row["pair_patient"][real], strict=True
        ):
            segment = row["segment"][position]
            assert row["modality"][position] == batch_lib.MODALITY_WEAR and inside[segment - 1] == patient
            assert row["observed"][row["window"][position]].any()
            n_static = len(rows.people[int(patient)].static_token_S)
            mine = np.nonzero(row["segment"] == segment)[0][n_static:]
            near = mine[np.abs(row["time"][mine] - row["time"][position]) <= days]
            assert (near[0], near[-1] + 1) == (lo, hi) and len(near) == hi - lo
            events = near[row["modality"][near] == batch_lib.MODALITY_EHR]
            assert (row["token"][events] != batch_lib.MASK).any()
            later += (row["time"][events] > row["time"][position]).any()
            ids.append(patient)
        n_pairs += real.sum()
    assert n_pairs > 20 and len(set(ids)) > 5 and later > 3, "events on either side"


def test_pairs_change_nothing_else(many_people, plain_rows):
    """They are drawn last: masks and predictions are the same without them, and there are no fields for them."""
    pairs = {"pair_position", "pair_near", "pair_patient"}
    paired = rows_of(make_rows(many_people, pairs=4))
    assert paired[0].keys() - plain_rows[0].keys() == pairs
    assert_same(plain_rows, paired)


def test_one_modality_has_no_pairs(many_people):
    for modality in ("ehr", "wear"):
        rows = make_rows(many_people, pairs=4, modalities=(modality,))
        assert not [name for name in rows.spec.fields if name.startswith("pair")]


# --------------------------------------------------------------------------------------------------------------- terms


@pytest.mark.parametrize("term", ["future_event", "future_codes", "wear_history", "future_signal", "ehr_to_wear"])
def test_to_leave_out_a_term_changes_no_other_field(many_people, plain_rows, term):
    others = rows_of(examples_of(many_people, OPTIONS, weights={term: (0.0, 0.0, 0)}), 1)
    assert_same(plain_rows[: len(others)], others)
    left = {"future_event": set(), "future_codes": {"query_code_bin", "query_horizons"},
            "wear_history": {"query_past", "query_past_mask"}, "future_signal": {"step_window", "query_window"},
            "ehr_to_wear": {f"{n}_summary{m}" for n in ("event", "query") for m in ("", "_mask")}}  # fmt: skip
    assert plain_rows[0].keys() - others[0].keys() == left[term]


def test_nothing_is_hidden_where_no_term_asks_for_it(many_people):
    """The draws stay: what else is predicted, and where, is the same with and without."""
    plain = rows_of(make_rows(many_people, masked_contexts=1.0))
    off = {"ehr_masked": (0.0, 0.0, 0), "wear_masked": (0.0, 0.0, 0)}
    seen = rows_of(examples_of(many_people, OPTIONS | {"masked_contexts": 1.0}, weights=off))
    depends = {"token", "value", "patch_mask", "query_token_bin"}  # history is of what is shown
    assert_same(plain, seen, seen[0].keys() - depends)
    assert sum(row["patch_mask"].sum() for row in plain) > 50
    assert not any(row["patch_mask"].any() or (row["token"] == batch_lib.MASK).any() for row in seen)
    for one, two in zip(plain, seen, strict=True):
        at = one["masked_position"] >= 0
        np.testing.assert_array_equal(two["token"][one["masked_position"][at]], one["masked_target"][at])
    # the likelihoods of the ELBO hide as the reconstructions do whose places they take
    on = off | dict.fromkeys(("latent_kl", *LIKELIHOODS), (1.0, 1.0, 0))
    of_bound = OPTIONS | {"masked_contexts": 1.0}
    assert_same(plain, rows_of(examples_of(many_people, of_bound, weights=on, posterior="normal")))


def test_offsets_of_the_wearable_change_ages_alone_and_only_what_comes_after_them(tmp_path):
    """Contexts of people whose watch says that they are nine hours east against the same without."""
    found = {}
    for name in ("plain", "offset"):
        root = cohort.write_cohort(tmp_path / name, n_subjects=12)
        for shard in wearable.list_shards(root / "wearable") if name == "offset" else ():
            rows = wearable.read_shard(shard)
            wearable.write_shard(shard, rows.with_columns(utc_offset_minutes=pl.lit(540, pl.Int16)))
        rows = make_rows(cohort.prepare_cohort(root), augmented=False)
        found[name] = rows, rows_of(rows)
    n_moved = 0
    for plain, moved in zip(found["plain"][1], found["offset"][1], strict=True):
        for field in plain:
            if field not in ("age", "query_age"):
                np.testing.assert_array_equal(plain[field], moved[field], err_msg=field)
        hours = (moved["age"] - plain["age"]).astype(np.float64).sum(-1) * 24
        n_moved += int((np.abs(hours) > 1).sum())
        is_wear = plain["modality"] == batch_lib.MODALITY_WEAR
        np.testing.assert_allclose(hours[is_wear], 9.0, atol=1e-2)
        assert np.all((np.abs(hours) < 1e-2) | (np.abs(hours - 9.0) < 1e-2))
    assert n_moved > 20
    people = found["offset"][0].people
    kept = [patient_lib.given(people.store.read(i), ("ehr",)).utc_offset_M for i in range(len(people))]
    assert all(offset is None or not len(offset) for offset in kept), "models of events alone know no place"
