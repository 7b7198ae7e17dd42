"""Contexts, targets and packing on a small random cohort, against slow recomputation in plain Python."""

import pickle
from unittest import mock

import numpy as np
import polars as pl
import pytest
import small_run
from joint_rows import check_mapped, config_of, contexts, examples_of, row_of

from ehrwear_jax.models.joint import batch as batch_lib
from ehrwear_jax.models.joint import masking
from ehrwear_jax.models.joint.config import MAX_STATIC
from ehrwear_jax.models.joint.examples import People
from ehrwear_jax.models.joint.patient import DAY_US
from ehrwear_jax.training.feed import Share, train_batches

OPTIONS = {
    "tokens": 64,
    "windows": 32,
    "context_tokens": 40,
    "queries": 8,
    "events": 8,
    "patch_steps": 3,
    "future_windows": 3,
    "future_codes": 6,
}


EVERYTHING = {
    "patient_days": 0.5,
    "administrative_codes": ("HOSPITAL_ADMISSION", "LAB//hdl"),
    "interest_codes": ("DX//E11",),
    "interest_days": 20.0,
    "time_warp": 0.05,
    "noise": 0.2,
    "channel_dropout": 0.3,
    "drop_ehr": 0.2,
    "drop_wear": 0.2,
    "pairs": 4,
}


def examples(root, split="train", modalities=("ehr", "wear"), seed=0, **options):
    return examples_of(root, OPTIONS | options, split, seed, modalities=modalities)


@pytest.mark.parametrize("kind", [None, *masking.WEAR_MASKS])
def test_rows_keep_the_contract_and_the_order(few_people, kind):
    options = {} if kind is None else EVERYTHING | {"wear_mask_kind": kind}
    rows = examples(few_people, **options)
    for g in range(3 * rows.rows_per_epoch):
        row = row_of(rows, g)
        rows.spec.check({k: v[None] for k, v in row.items()}, 1)
        for name in ("kv_range", "query_kv_range"):
            assert np.all(np.diff(row[name], axis=0) >= 0), "fast implementations rely on monotone ranges"
        n = int((row["segment"] > 0).sum())
        assert np.all(row["segment"][n:] == 0) and np.all(row["modality"][n:] == 0)
        for s in range(1, row["segment"].max() + 1):
            own = np.nonzero(row["segment"] == s)[0]
            assert np.all(np.diff(own) == 1) and np.all(np.diff(row["time"][own]) >= 0)
            assert np.all(row["kv_range"][own, 0] == own[0])
            np.testing.assert_array_equal(row["kv_range"][own, 1], own + 1)
        wear = row["modality"] == batch_lib.MODALITY_WEAR
        np.testing.assert_array_equal(row["window_position"][row["window"][wear]], np.nonzero(wear)[0])


def test_every_patient_once_per_epoch_and_rows_are_a_function_of_seed_and_index(few_people):
    rows, again, other = examples(few_people, seed=1), examples(few_people, seed=1), examples(few_people, seed=2)
    has_some = pl.col("n_events") + pl.col("n_windows") > 0
    everybody = rows.people.index.filter(has_some)["subject_id"].to_list()
    assert rows.subjects(range(rows.rows_per_epoch)) == sorted(everybody)
    copied = pickle.loads(pickle.dumps(rows))  # as worker processes receive it
    for g in (0, 5, 3 * rows.rows_per_epoch + 1):
        one = row_of(rows, g)
        for two in (row_of(again, g), row_of(copied, g)):
            assert one.keys() == two.keys()
            for name in one:
                np.testing.assert_array_equal(one[name], two[name])
    assert any(np.any(row_of(rows, 0)[k] != row_of(other, 0)[k]) for k in ("token", "time"))


@pytest.mark.parametrize("options", [{}, EVERYTHING, EVERYTHING | {"wear_mask_kind": "channel"}])
def test_batches_do_not_depend_on_processes_threads_or_where_a_run_resumes(few_people, options):
    rows, fresh = examples(few_people, **options), examples(few_people, **options)
    whole = [next(it) for it in [train_batches(rows, 4)] for _ in range(6)]
    fresh.people.cache.memory_bytes = 30_000  # what a run has read before, and how much it keeps of it, is no state
    resumed = train_batches(fresh, 4, start_step=4, threads=7)
    halves = [train_batches(rows, 4, Share((p,), 2), threads=p) for p in range(2)]
    for step in range(6):
        parts = [next(h) for h in halves]
        for name in whole[step]:
            merged = np.concatenate([parts[0][name], parts[1][name]])
            np.testing.assert_array_equal(merged, whole[step][name])
        if step >= 4:
            again = next(resumed)
            for name in whole[step]:
                np.testing.assert_array_equal(again[name], whole[step][name], err_msg=name)


def signal_of(p):
    """All windows of a patient on the scale of the model."""
    return p.signal(0, len(p.window_end_M))


def assert_shows(p, span, row, own):
    """The context holds the span's tokens behind static ones: times, kinds, signal."""
    timed, shown = own[span.n_static :], span.positions(p)
    refs, is_wear = p.ref_N[shown], p.is_wear_N[shown]
    days = (p.time_N[shown] - p.time_N[span.start]) / DAY_US
    np.testing.assert_allclose(days, row["time"][timed], atol=1e-4)
    np.testing.assert_array_equal(is_wear, row["modality"][timed] == batch_lib.MODALITY_WEAR)
    np.testing.assert_array_equal(row["token"][timed][~is_wear], p.event_token_K[refs[~is_wear]])
    slots = row["window"][timed][is_wear]
    np.testing.assert_array_equal(row["wear"][slots], np.nan_to_num(signal_of(p)[refs[is_wear]]))
    np.testing.assert_array_equal(row["observed"][slots], np.isfinite(p.window_MxLxC[refs[is_wear]]))


def test_targets_match_a_slow_recomputation(few_people):
    rows = examples(few_people, masked_contexts=0.0)
    people, config = rows.people, rows.config.context
    checked = dict.fromkeys(("event", "query", "code", "window", "summary", "history", "past"), 0)
    for g in range(16 * rows.rows_per_epoch):
        row = row_of(rows, g)
        for s, (own, (drawn, span)) in enumerate(zip(contexts(row), rows.contexts(g), strict=True), start=1):
            p = people[drawn.position]
            assert_shows(p, span, row, own)
            anchor = p.time_N[span.start]
            times = [
                ("query", q, anchor + round(float(row["query_time"][q]) * DAY_US))
                for q in np.nonzero(row["query_segment"] == s)[0]
            ]
            times += [
                ("event", e, anchor + round(float(row["time"][t]) * DAY_US))
                for e, t in enumerate(row["event_position"])
                if t in own
            ]
            for kind, at, time in times:
                slack = 60_000_000  # float32 days resolve to seconds
                later = [(t, c) for t, c in zip(p.event_time_K, p.event_token_K, strict=True) if t > time + slack]
                near = np.abs(p.event_time_K - time) <= slack
                if kind == "query" and near.any():
                    later = [
                        (t, c)
                        for t, c in zip(p.event_time_K, p.event_token_K, strict=True)
                        if t > p.event_time_K[near].max()
                    ]
                    if p.event_time_K[near].max() > time + slack / 2:
                        continue
                if kind == "event":
                    later = [x for x in later if x[0] > p.event_time_K[near].max()]
                assert row[f"{kind}_next"][at] == (later[0][1] if later else batch_lib.PAD)
                checked[kind] += 1
                if kind != "query" or near.any():
                    continue
                for k, (_, codes) in enumerate(people.future_codes.values()):
                    ids = set(people.vocabulary.tokens.filter(pl.col("code").is_in(codes))["token_id"].to_list())
                    gaps = [(t - time) / DAY_US for t, c in later if c in ids]
                    want = next((h for h, days in enumerate(config.horizons) if gaps and min(gaps) <= days), 255)
                    assert row["query_code_bin"][at, k] == want
                    checked["code"] += want != 255
                lo, hi = row["query_kv_range"][at]
                for r, token in enumerate(people.vocabulary.history_tokens(config.history_tokens)):
                    here = np.nonzero(row["token"][lo:hi] == token)[0]
                    ago = [float(row["query_time"][at] - row["time"][lo + x]) for x in here]
                    within = [h for h, days in enumerate(config.horizons) if ago and min(ago) <= days]
                    static = len(here) and here[-1] < span.n_static
                    assert row["query_token_bin"][at, r] == (
                        255 if not ago else 254 if static or not within else within[0]
                    )
                    checked["history"] += row["query_token_bin"][at, r] < 254
                wear = row["modality"][lo:hi] == batch_lib.MODALITY_WEAR
                ends = anchor / DAY_US + row["time"][lo:hi][wear].astype(np.float64)
                age = time / DAY_US - ends
                if len(age) and np.all(np.abs(age - 7) > 0.01):
                    assert row["query_past_mask"][at].any() == (age < 7).any()
                    recent = np.array([np.any(np.abs(e / DAY_US - ends[age < 7]) < 1e-3) for e in p.window_end_M])
                    if recent.any():
                        mean = np.nanmean([np.nanmean(w, axis=0) for w in signal_of(p)[recent]], axis=0)
                        np.testing.assert_allclose(row["query_past"][at][:2], mean, atol=2e-3)
                        checked["past"] += 1
                want = sum(p.died or time + h * DAY_US <= p.end_us for h in config.horizons)
                assert row["query_horizons"][at] == want
                if min(time % people.window_us, -time % people.window_us) < slack:
                    continue  # on the edge of two windows, where rounding of the query's time decides
                for h, slot in enumerate(row["query_window"][at], start=1):
                    ends = [
                        e
                        for e in p.window_end_M
                        if time + (h - 1) * people.window_us < e <= time + h * people.window_us
                    ]
                    if slot >= 0:
                        position = row["window_position"][slot]
                        end = anchor + round(float(row["time"][position]) * DAY_US)
                        assert ends and abs(ends[0] - end) < slack
                        checked["window"] += 1
                inside = (p.window_end_M - people.window_us >= time) & (p.window_end_M <= time + 7 * DAY_US)
                assert row["query_summary_mask"][at].any() == (
                    inside.any() and np.isfinite(p.window_MxLxC[inside]).any()
                )
                if inside.any():
                    mean = np.nanmean([np.nanmean(w, axis=0) for w in signal_of(p)[inside]], axis=0)
                    np.testing.assert_allclose(row["query_summary"][at][:2], mean, atol=2e-3)
                    checked["summary"] += 1
    assert all(n > 3 for n in checked.values()), checked


def test_hidden_events_lose_token_and_value(few_people):
    rows, plain = (examples(few_people, masked_contexts=m) for m in (1.0, 0.0))
    hidden = 0
    for g in range(rows.rows_per_epoch):
        row, whole = row_of(rows, g), row_of(plain, g)
        at = row["masked_position"][row["masked_position"] >= 0]
        assert np.all(row["token"][at] == batch_lib.MASK) and np.all(row["value"][at] == 0)
        np.testing.assert_array_equal(row["masked_target"][: len(at)], whole["token"][at])
        others = np.setdiff1d(np.arange(len(row["token"])), at)
        np.testing.assert_array_equal(row["token"][others], whole["token"][others])
        np.testing.assert_array_equal(row["time"], whole["time"])
        windows = row["window_position"] >= 0
        assert np.all(row["patch_mask"][windows].sum(-1) == 1) and not row["patch_mask"][~windows].any()
        hidden += len(at)
    assert hidden > 10


def test_one_modality_only(few_people):
    ehr, wear = (examples(few_people, modalities=(m,)) for m in ("ehr", "wear"))
    assert ehr.spec.sizes["W"] == 0 and wear.spec.sizes["W"] == wear.spec.sizes["T"] == 32
    assert not [name for name in wear.spec.fields if name.endswith(("_next", "code_bin", "token_bin")) or "mask" in name
                and name not in ("patch_mask", "channel_mask", "query_past_mask")]  # fmt: skip
    assert not [name for name in ehr.spec.fields if "summary" in name or "past" in name or "pool" in name]
    for g in range(3):
        row, of_wear = row_of(ehr, g), row_of(wear, g)
        assert not np.any(row["modality"] == batch_lib.MODALITY_WEAR) and row["age"][..., 0].max() > 7000
        assert not np.any(of_wear["modality"] == batch_lib.MODALITY_EHR) and of_wear["query_past_mask"].any()
        # a birth date is an EHR fact: without EHR, age counts from the first record
        assert of_wear["age"][..., 0].max() < 10


def test_wearables_with_static_facts_see_sex_and_age_and_no_event(few_people):
    given = {"split": None, "modalities": ("wear",)}
    rows, alone = (examples_of(few_people, OPTIONS, static=static, **given) for static in (True, False))
    people, n = rows.people, len(rows)
    assert rows.spec.sizes["T"] == 32 + MAX_STATIC and rows.spec.sizes["W"] == 32
    for g in range(2 * rows.rows_per_epoch):
        row = row_of(rows, g)
        rows.spec.check({k: v[None] for k, v in row.items()}, 1)
        of_ehr = np.nonzero(row["modality"] == batch_lib.MODALITY_EHR)[0]
        assert len(of_ehr) and row["age"][..., 0].max() > 7000
        static = {t for p in map(people.__getitem__, range(n)) for t in p.static_token_S.tolist()}
        assert static and set(row["token"][of_ehr].tolist()) <= static
        drawn = [sample.patient for sample, _ in rows.contexts(g)]
        assert len(of_ehr) == sum(len(p.static_token_S) for p in drawn), "none is left out"
    end = np.array([people[i].end_us for i in range(n)])
    seen, without = rows.tokens_seen(np.arange(n), end), alone.tokens_seen(np.arange(n), end)
    np.testing.assert_array_equal(seen["windows"], without["windows"])
    assert seen["static"].sum() == rows.people.n_static.sum() > n / 2
    assert not without["static"].any() and not seen["events"].any()


@pytest.mark.parametrize("modalities", [("ehr", "wear"), ("ehr",), ("wear",)])
def test_rows_are_the_same_of_people_in_the_mapped_file(few_people, modalities):
    check_mapped(examples(few_people, modalities=modalities, **EVERYTHING))


def test_people_beyond_the_cache_are_read_once_for_all_of_their_times(few_people):
    """Of prediction times in any order: to embed, and to count what is seen."""
    rows = examples(few_people, split=None)
    rows.people.cache.memory_bytes = 0
    index = np.random.default_rng(0).permutation(np.repeat(np.arange(6), 4))
    times = np.array([rows.people[int(i)].end_us - k * DAY_US for k, i in enumerate(index)])
    for use in (rows.tokens_seen, lambda *asked: list(rows.prediction_batches(*asked, 2))):
        with mock.patch.object(rows.people.store, "read", wraps=rows.people.store.read) as read:
            use(index, times)
        assert read.call_count == 6


def test_predictions_are_of_each_time_once_and_of_the_past_only(few_people):
    rows = examples(few_people, split=None)
    people, rng = rows.people, np.random.default_rng(0)
    index = rng.integers(0, len(people), 40)
    times = np.array([people[int(i)].origin_us + int(rng.integers(7000, 26000)) * DAY_US for i in index])
    seen = []
    for batch, where in rows.prediction_batches(index, times, 2):
        rows.spec.check(batch, 2)
        assert not batch["patch_mask"].any() and np.all(batch["masked_position"] < 0)
        for b, q in zip(*np.nonzero(where >= 0), strict=True):
            p, t = people[int(index[where[b, q]])], times[where[b, q]]
            lo, hi = batch["query_kv_range"][b, q]
            assert hi - lo == min(len(p.static_token_S) + np.sum(p.time_N <= t), 40)
            assert np.all(batch["time"][b, lo:hi] <= batch["query_time"][b, q] + 1e-3)
            seen.append(where[b, q])
    assert sorted(seen) == list(range(40)) and len(rows.subject_id) == len(rows) == len(people)


@pytest.mark.parametrize("queries", [1, 2, 4, 8])
def test_times_that_share_a_context_fill_rows_at_least_as_well(few_people, queries):
    """Of three times each, with room for few queries or for many."""
    rows = examples(few_people, split=None, queries=queries)
    index = np.repeat(np.arange(len(rows)), 3)
    times = np.array(
        [
            int(rows.people[int(i)].origin_us) + d * DAY_US
            for i, d in zip(index, [9000, 15000, 26000] * len(rows), strict=True)
        ]
    )

    def n_rows(transform):
        found = list(rows.prediction_batches(index, times, 2, transform))
        assert sorted(np.concatenate([w[w >= 0] for _, w in found])) == list(range(len(index)))
        return sum((where >= 0).any(axis=1).sum() for _, where in found)

    shared, alone = n_rows(None), n_rows(lambda record, _: record)
    least = -(-len(index) // queries)
    assert least <= shared <= alone and (queries < 8 or shared < 0.9 * alone), (shared, alone)
    assert queries == 8 or shared == least, "no slot of a query is left over"


def test_the_cache_stays_within_its_bytes(few_people):
    def people(modalities=("ehr", "wear"), **options):
        return People(small_run.store(few_people), config_of(OPTIONS, modalities), **options)

    whole = people()
    total = sum(whole[i].nbytes for i in range(len(whole)))
    assert all(whole[i] is whole[i] for i in range(len(whole)))
    small = people(cache_bytes=total // 2)
    kept = [small[i] is small[i] for i in range(len(small))]
    assert 0 < sum(p.nbytes for p in small.cache.held.values()) <= total // 2 and 0 < sum(kept) < len(kept)
    ehr = people(("ehr",))
    assert all(x.base is None for x in (ehr[0].event_time_K, ehr[0].window_MxLxC)), "a view would keep the windows"


def test_a_batch_counts_what_is_not_padding(few_people):
    rows = examples(few_people, tokens=3, context_tokens=3, windows=3, queries=3, events=1, future_windows=1)
    batch = rows.spec.empty(2)
    assert set(rows.counts(batch).values()) == {0}
    batch["segment"][:] = [[1, 1, 1, 2, 2, 0], [1, 1, 0, 0, 0, 0]]
    batch["modality"][:] = [[1, 2, 1, 2, 1, 0], [1, 2, 0, 0, 0, 0]]
    batch["kv_range"][:] = [[(0, 1), (0, 2), (0, 3), (3, 4), (3, 5), (5, 5)], [(0, 1), (0, 2), *[(2, 2)] * 4]]
    batch["query_segment"][:] = [[1, 2, 0], [1, 0, 0]]
    batch["query_kv_range"][:] = [[(0, 2), (3, 5), (5, 5)], [(0, 0), (2, 2), (2, 2)]]
    batch["time"][:] = [[0.0, 0.2, 1.1, 0.0, 0.9, 0.0], [0.0, 7.0, 0.0, 0.0, 0.0, 0.0]]
    assert rows.counts(batch) == {
        "contexts": 3, "tokens": 7, "queries": 3, "windows": 3, "patient_days": 2 + 1 + 2,
        "seen": 1 + 2 + 3 + 1 + 2 + 1 + 2 + 2 + 2,
    }  # fmt: skip


def test_the_places_of_tables_have_the_names_of_tokens_and_codes(few_people):
    rows = examples(few_people, history_tokens=4)
    names, tokens = rows.place_names(), rows.people.vocabulary.tokens
    assert names["token"] == tokens["token"].to_list() and len(names["token"]) == rows.facts.vocabulary
    assert names["future_code"] == list(rows.people.future_codes) and len(names["future_code"]) == 6
    common = tokens.filter(tokens["token_id"] >= batch_lib.N_SPECIAL).sort("count", descending=True)["count"][:4]
    count = dict(tokens.select("token", "count").iter_rows())
    assert [count[name] for name in names["history_token"]] == common.to_list()
    assert rows.content_names() == {"horizon": ["30", "90", "180", "365"]}


def test_nobody_to_train_on_is_said(few_people):
    rows = examples(few_people)
    rows.eligible = rows.eligible[:0]
    with pytest.raises(ValueError, match=r"no training patient has a token of \('ehr', 'wear'\)"):
        row_of(rows, 0)


@pytest.mark.slow  # a worker process imports everything anew
@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_make_the_same_batches(few_people, workers):
    rows = examples(few_people, **EVERYTHING)
    here = train_batches(rows, 4, start_step=1, n_steps=6, threads=0)
    there = train_batches(rows, 4, start_step=1, n_steps=6, threads=1, workers=workers)
    n = 0
    for one, two in zip(here, there, strict=True):
        n += 1
        assert one.keys() == two.keys()
        for name in one:
            assert one[name].dtype == two[name].dtype and one[name].tobytes() == two[name].tobytes(), name
    assert n == 5
