"""Counts and values of codes: exact, whatever the shards are and in which order they are added."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrwear_jax.data.prepare import code_counts

EVENTS = {"subject_id": pl.Int64, "code": pl.String, "numeric_value": pl.Float32}
rows = st.lists(
    st.tuples(
        st.integers(1, 12),
        st.sampled_from(["a", "b", "ü//µg"]),
        st.one_of(
            st.none(),
            st.floats(-(2.0**90), 2.0**90, width=32, allow_subnormal=False),
            st.sampled_from([0.0, -0.0, 1.5, 2.5]),
        ),
    ),
    max_size=60,
)


def merged(shards, n_buckets, at_once=4_000_000):
    counts = code_counts.add_counts([code_counts.count_codes(s) for s in shards])
    values = [code_counts.count_values(s) for s in shards]
    scales = []
    for b in range(n_buckets):
        mine = [v.filter(pl.Series(code_counts.bucket_of(v["code"], n_buckets) == b)) for v in values]
        scales.append(code_counts.scales(code_counts.add_values(mine, at_once), 4, 3))
    return counts, pl.concat(scales).sort("code")


@settings(max_examples=60)
@given(rows, st.integers(1, 5), st.randoms(use_true_random=False), st.integers(1, 4))
def test_shards_their_order_and_buckets_change_no_bit(rows, n_shards, random, n_buckets):
    events = pl.DataFrame(rows, EVENTS, orient="row")
    shards = [events.filter(pl.col("subject_id") % n_shards == k) for k in range(n_shards)]
    random.shuffle(shards)
    whole_counts, whole_scales = merged([events], 1)
    counts, scales = merged(shards, n_buckets, at_once=5)
    assert counts.equals(whole_counts) and counts.schema == whole_counts.schema
    assert scales.schema == whole_scales.schema
    assert repr(scales.rows()) == repr(whole_scales.rows()), "also the sign of a zero"


@settings(max_examples=60)
@given(rows, st.integers(2, 10))
def test_counts_and_scales_are_those_of_polars_and_numpy(rows, value_bins):
    events = pl.DataFrame(rows, EVENTS, orient="row")
    counts = code_counts.count_codes(events)
    for code, count, subjects, n_values in counts.iter_rows():
        mine = events.filter(pl.col("code") == code)
        assert (count, subjects) == (mine.height, mine["subject_id"].n_unique())
        assert n_values == mine["numeric_value"].drop_nulls().len()
    assert counts["count"].sum() == events.height
    scales = code_counts.scales(code_counts.count_values(events), value_bins, 2)
    assert set(scales["code"]) == set(counts.filter(pl.col("n_values") >= 2)["code"])
    for code, mean, std, cuts, in_bin in scales.iter_rows():
        x = events.filter(pl.col("code") == code)["numeric_value"].drop_nulls().cast(pl.Float64)
        scale = max(float(np.abs(x.to_numpy()).max()), 1e-300)
        assert mean == pytest.approx(x.mean(), abs=1e-12 * scale)
        assert std == pytest.approx(x.to_numpy().std(ddof=1), abs=1e-7 * scale)
        quantiles = {x.quantile(q / value_bins, "nearest") + 0.0 for q in range(1, value_bins)}
        assert cuts == sorted(quantiles)
        edges = [-np.inf, *cuts, np.inf]
        want = [int(((x > lo) & (x <= hi)).sum()) for lo, hi in zip(edges[:-1], edges[1:], strict=True)]
        assert in_bin == want and sum(in_bin) == len(x)


def test_clinical_ranges_take_the_place_of_quantiles():
    events = pl.DataFrame([(1, "a", float(v)) for v in (1, 2, 2, 3, 9)], EVENTS, orient="row")
    scales = code_counts.scales(code_counts.count_values(events), 4, 1, {"a": [0.0, 2.0]})
    assert scales.select("cuts", "in_bin").row(0) == ([0.0, 2.0], [0, 3, 2])


def test_subjects_of_an_ancestor_are_counted_once():
    events = pl.DataFrame([(1, "a", None), (1, "b", None), (2, "b", None), (3, "c", None)], EVENTS, orient="row")
    pairs = pl.DataFrame({"code": ["a", "a", "b", "b"], "ancestor": ["a", "up", "b", "up"]})
    assert code_counts.count_pooled(events, pairs) == {"a": 1, "b": 2, "up": 2}
