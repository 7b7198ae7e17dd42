"""Counts and values of codes and texts: exact, whatever the shards are and in which order they are added."""

import functools
import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from ehrwear_jax.data.prepare import code_counts

EVENTS = {"subject_id": pl.Int64, "code_id": pl.Int32, "numeric_value": pl.Float32, "text_id": pl.Int32}
rows = st.lists(
    st.tuples(
        st.integers(1, 12),
        st.integers(0, 2),
        st.one_of(
            st.none(),
            st.floats(-(2.0**90), 2.0**90, width=32, allow_subnormal=False),
            st.sampled_from([0.0, -0.0, 1.5, 2.5]),
        ),
        st.one_of(st.none(), st.integers(0, 3)),
    ),
    max_size=60,
)


def merged(shards, n_buckets, at_once=4_000_000):
    counts = code_counts.add_counts([code_counts.count_codes(s) for s in shards], code_counts.COUNTS)
    texts = code_counts.add_counts([code_counts.count_texts(s) for s in shards], code_counts.TEXT_COUNTS)
    values = [code_counts.count_values(s) for s in shards]
    scales = []
    for b in range(n_buckets):
        mine = [v.filter(pl.col("code_id") % n_buckets == b) for v in values]
        scales.append(code_counts.scales(code_counts.add_values(mine, at_once)))
    return counts, texts, pl.concat(scales).sort("code_id")


@settings(max_examples=60)
@given(rows, st.integers(1, 5), st.randoms(use_true_random=False), st.integers(1, 4))
def test_shards_their_order_and_buckets_change_no_bit(rows, n_shards, random, n_buckets):
    events = pl.DataFrame(rows, EVENTS, orient="row")
    shards = [events.filter(pl.col("subject_id") % n_shards == k) for k in range(n_shards)]
    random.shuffle(shards)
    *whole_counts, whole_scales = merged([events], 1)
    *counts, scales = merged(shards, n_buckets, at_once=5)
    for one, two in zip(counts, whole_counts, strict=True):
        assert one.equals(two) and one.schema == two.schema
    assert scales.schema == whole_scales.schema
    assert repr(scales.rows()) == repr(whole_scales.rows()), "also the sign of a zero"


def slow_bounds(x):
    """Ten robust standard deviations around the median of a series, by polars' quantiles and scipy's normal ones."""
    q = functools.partial(x.quantile, interpolation="nearest")
    scale = max((q(1 - p) - q(p)) / (2 * norm.ppf(1 - p)) for p in (0.25, 0.1, 0.05))
    return (q(0.5) - 10 * scale, q(0.5) + 10 * scale) if scale > 0 else (-math.inf, math.inf)


def fitted_scale(x, **options):
    """(mean, std, values beyond) of one code's values."""
    n = len(x)
    events = pl.DataFrame({"code_id": pl.Series([0] * n, dtype=pl.Int32), "numeric_value": np.asarray(x, np.float32)})
    return code_counts.scales(code_counts.count_values(events), **options).select("mean", "std", "n_beyond").row(0)


@pytest.mark.parametrize("wrong", [1e4, 1e9, -1e9])
def test_a_mistyped_value_does_not_make_the_others_alike(wrong):
    """As LAB//224685 of the MIMIC demo: beside one of 1e9 all others were the same number of standard deviations."""
    x = np.random.default_rng(0).normal(450, 60, 200).round()
    mean, std, beyond = fitted_scale([*x, wrong])
    assert beyond == 1 and abs(mean - 450) < 20 and 50 < std < 90
    spoiled = fitted_scale([*x, wrong], fence=0.0)
    assert spoiled[2] == 0 and x.std() / spoiled[1] < 0.1 < x.std() / std


def test_values_within_the_bounds_have_the_plain_mean_and_standard_deviation():
    rng = np.random.default_rng(1)
    for x in (rng.normal(size=500), rng.exponential(size=500), rng.integers(0, 3, 500), [3.0] * 60 + [4.0]):
        x = np.asarray(x, np.float32).astype(float)
        mean, std, beyond = fitted_scale(x)
        assert beyond == 0 and mean == pytest.approx(x.mean()) and std == pytest.approx(x.std(ddof=1))


def test_a_long_tail_keeps_its_width():
    """One in ten is a hundred times as high: no outlier, and no constant beside them."""
    x = np.concatenate([np.linspace(0.0, 1.0, 180), np.linspace(90.0, 110.0, 20)])
    mean, std, beyond = fitted_scale(x)
    assert beyond == 0 and std == pytest.approx(x.astype(np.float32).std(ddof=1), rel=1e-5)


@settings(max_examples=60)
@given(rows)
def test_counts_and_scales_are_those_of_polars_and_numpy(rows):
    events = pl.DataFrame(rows, EVENTS, orient="row")
    counts = code_counts.count_codes(events)
    for code, count, subjects, n_values in counts.iter_rows():
        mine = events.filter(pl.col("code_id") == code)
        assert (count, subjects) == (mine.height, mine["subject_id"].n_unique())
        assert n_values == mine["numeric_value"].drop_nulls().len()
    assert counts["count"].sum() == events.height
    texts = code_counts.count_texts(events)
    assert texts["count"].sum() == events["text_id"].count()
    for text, count, subjects in texts.iter_rows():
        mine = events.filter(pl.col("text_id") == text)
        assert (count, subjects) == (mine.height, mine["subject_id"].n_unique())
    scales = code_counts.scales(code_counts.count_values(events))
    assert set(scales["code_id"]) == set(counts.filter(pl.col("n_values") > 0)["code_id"])
    for code, mean, std, quantile, up_to, *ranges, beyond in scales.iter_rows():
        x = events.filter(pl.col("code_id") == code)["numeric_value"].drop_nulls().cast(pl.Float64)
        low, high = slow_bounds(x)
        assert beyond == int(((x < low) | (x > high)).sum())
        x, whole = x.clip(low, high), x
        scale = max(float(np.abs(x.to_numpy()).max()), 1e-300)
        assert mean == pytest.approx(x.mean(), abs=1e-12 * scale)
        assert std == pytest.approx(x.to_numpy().std(ddof=1) if len(x) > 1 else 0.0, abs=1e-7 * scale)
        assert quantile == sorted({whole.quantile(q / 1000, "nearest") + 0.0 for q in range(1, 1000)})
        assert up_to == [int((whole <= v).sum()) for v in quantile] and ranges == [None, None]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.one_of(st.integers(1, 60), st.sampled_from([999, 1000, 1001, 5000, 20_000])),
    st.sampled_from([1, 2, 4, 5, 8, 10, 20, 50, 100, 1000]),
    st.sampled_from(["normal", "ties", "few"]),
)
def test_bins_that_divide_a_thousand_are_exact_from_the_permilles(seed, n, n_bins, kind):
    rng = np.random.default_rng(seed)
    drawn = {"normal": rng.normal(size=n), "ties": np.round(rng.normal(size=n), 1), "few": rng.integers(0, 3, n)}
    x = pl.Series(drawn[kind].astype(np.float32)).cast(pl.Float64)
    events = pl.DataFrame({"code_id": pl.Series([7] * n, dtype=pl.Int32), "numeric_value": x.cast(pl.Float32)})
    ((_, _, _, quantile, up_to, *_),) = code_counts.scales(code_counts.count_values(events)).rows()
    cuts, below = code_counts.bin_cuts(quantile, up_to, n, n_bins)
    assert cuts == sorted({x.quantile(q / n_bins, "nearest") + 0.0 for q in range(1, n_bins)})
    assert below == [int((x <= cut).sum()) for cut in cuts]


def test_other_numbers_of_bins_are_exact_for_a_thousand_values_and_near_for_more():
    for n, slack in ((1000, 0), (7001, 8)):
        x = np.random.default_rng(0).permutation(n).astype(np.float32)
        events = pl.DataFrame({"code_id": pl.Series([0] * n, dtype=pl.Int32), "numeric_value": x})
        ((_, _, _, quantile, up_to, *_),) = code_counts.scales(code_counts.count_values(events)).rows()
        for n_bins in (3, 7, 11):
            cuts, _ = code_counts.bin_cuts(quantile, up_to, n, n_bins)
            want = np.floor(np.arange(1, n_bins) / n_bins * (n - 1) + 0.5)
            assert np.all((cuts >= want) & (cuts <= want + slack))
    for n_bins in (0, 1001):
        with pytest.raises(ValueError, match="there can be 1 to 1000"):
            code_counts.bin_cuts(quantile, up_to, n, n_bins)


def test_clinical_ranges_are_counted_beside_the_quantiles():
    events = pl.DataFrame([(1, 5, float(v), None) for v in (1, 2, 2, 3, 9)], EVENTS, orient="row")
    values = code_counts.count_values(events)
    scales, plain = code_counts.scales(values, {5: [0.0, 2.0]}), code_counts.scales(values)
    assert scales.select("range_cut", "range_up_to").row(0) == ([0.0, 2.0], [0, 3])
    assert scales.drop("range_cut", "range_up_to").equals(plain.drop("range_cut", "range_up_to"))


def test_subjects_of_an_ancestor_are_counted_once():
    events = pl.DataFrame([(1, 0), (1, 1), (2, 1), (3, 2)], ["subject_id", "code_id"], orient="row")
    pairs = pl.DataFrame({"code_id": [0, 0, 1, 1], "ancestor_id": [0, 9, 1, 9]})
    assert code_counts.count_pooled(events, pairs).rows() == [(0, 1), (1, 2), (9, 2)]
