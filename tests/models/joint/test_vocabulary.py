"""Vocabulary, collapsing of rare codes, value bins and their tables on disk."""

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrwear_jax.models.joint import vocabulary as tokenizer
from ehrwear_jax.models.joint.batch import N_SPECIAL

EVENTS = {"subject_id": pl.Int64, "code": pl.String, "numeric_value": pl.Float32}


def frame(rows):
    return pl.DataFrame(rows, EVENTS, orient="row")


def fit(rows, parents=None, min_subjects=1, value_bins=4, min_values=10):
    return tokenizer.fit_vocabulary(
        frame(rows), parents or {}, min_subjects=min_subjects, value_bins=value_bins, min_values=min_values
    )


def alias(vocabulary):
    return dict(vocabulary.codes.select("code", "alias").iter_rows())


# ---------------------------------------------------------------------------------------------------- ancestors
def test_ancestors_are_nearest_first_once_each_and_cycles_end():
    parents = {
        "leaf": ["left", "right"],
        "left": ["root", "root"],
        "right": ["root"],
        "root": None,
        "egg": ["hen"],
        "hen": ["egg"],
        "self": ["self"],
    }
    out = tokenizer.ancestors(parents)
    assert out == {
        "leaf": ["left", "right", "root"],
        "left": ["root"],
        "right": ["root"],
        "root": [],
        "egg": ["hen"],
        "hen": ["egg"],
        "self": [],
    }


@given(st.dictionaries(st.integers(0, 9).map(str), st.lists(st.integers(0, 9).map(str), max_size=3), min_size=1))
def test_ancestors_are_all_that_can_be_reached_in_order_of_distance(parents):
    for code, found in tokenizer.ancestors(parents).items():
        distance, level = {}, {code}
        for d in range(11):
            distance |= {c: d for c in level if c not in distance}
            level = {p for c in level for p in parents.get(c, [])}
        assert sorted(found) == sorted(c for c in distance if c != code)
        assert [distance[c] for c in found] == sorted(distance[c] for c in found)


# ---------------------------------------------------------------------------------------------------- collapsing
PARENTS = {"I10.1": ["I10"], "I10.2": ["I10"], "I10": ["I"], "E11.9": ["E11", "also"], "E11": ["E"]}


def test_a_rare_code_goes_to_its_nearest_ancestor_with_enough_patients():
    rows = [(s, "common", None) for s in range(5)]
    rows += [(1, "I10.1", None), (2, "I10.1", None), (3, "I10.2", None), (9, "orphan", None)]
    v = fit(rows, PARENTS, min_subjects=3)
    assert alias(v)["I10.1"] == alias(v)["I10.2"] == "I10" and alias(v)["common"] == "common"
    assert alias(v)["orphan"] is None
    counts = dict(v.tokens.select("token", "count").iter_rows())
    assert counts["I10"] == 3 and counts["common"] == 5
    assert set(v.tokens["token"]) == {*tokenizer.SPECIAL, "common", "I10"}, "I stands for nothing: no token"
    out = v.encode(frame([(7, "I10.2", None), (7, "orphan", None), (7, "common", None), (7, "never seen", None)]))
    names = dict(v.tokens.select("token_id", "token").iter_rows())
    assert [names.get(t) for t in out["token"]] == ["I10", None, "common", None]


def test_patients_of_an_ancestor_are_counted_once_and_with_its_own():
    # two patients have both leaves, so I10 has two patients, however one gets there
    twice = [(s, c, None) for s in (1, 2) for c in ("I10.1", "I10.2")]
    v = fit(twice, PARENTS | {"I10.1": ["I10", "I10"]}, min_subjects=3)
    assert len(v) == N_SPECIAL and set(alias(v).values()) == {None}
    # the ancestor's own patients count with those of its descendants
    v = fit([(1, "I10.1", None), (2, "I10", None), (3, "I10", None)], PARENTS, min_subjects=3)
    assert alias(v)["I10.1"] == alias(v)["I10"] == "I10"


def test_a_code_that_no_training_patient_has_goes_to_its_ancestor():
    v = fit([(s, "I10", None) for s in range(3)], PARENTS, min_subjects=3)
    assert alias(v)["I10.1"] == "I10" and "E11.9" not in alias(v)
    token = v.encode(frame([(1, "I10.1", None), (1, "E11.9", None)]))["token"].to_list()
    assert token == [v.tokens.filter(pl.col("token") == "I10")["token_id"][0], None]


# ---------------------------------------------------------------------------------------------------- values
@settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(10, 80),
    bins=st.integers(2, 8),
    kind=st.sampled_from(["normal", "ties", "constant", "skewed"]),
)
def test_bins_hold_train_quantiles_and_values_are_standardised(seed, n, bins, kind):
    rng = np.random.default_rng(seed)
    x = {
        "normal": rng.normal(100, 20, n),
        "ties": rng.integers(0, 3, n).astype(float),
        "constant": np.full(n, 5.5),
        "skewed": rng.lognormal(0, 2, n),
    }[kind].astype(np.float32)
    v = fit([(i, "lab", float(y)) for i, y in enumerate(x)], value_bins=bins)
    binned = v.tokens.filter(pl.col("bin") >= 0).sort("bin")
    edges = binned["high"].to_numpy()[:-1]
    # each edge is a sample at its quantile: q/bins of the training values lie at or below it, less than that below
    ordered = np.sort(x.astype(np.float64))
    for q in range(1, bins):
        rank = q / bins * (n - 1)
        assert np.isin(ordered[[math.floor(rank), math.ceil(rank)]], edges).any()
    assert np.isin(edges, ordered).all() and np.all(np.diff(edges) > 0)
    assert binned["low"].to_list() == [-math.inf, *edges] and binned["high"][-1] == math.inf
    probe = np.concatenate([x, edges, edges - 1e-3, [-1e9, 1e9]]).astype(np.float32)
    out = v.encode(frame([(1, "lab", float(y)) for y in probe]))
    ids = dict(binned.select("bin", "token_id").iter_rows())
    for y, token, value in zip(probe.astype(np.float64), out["token"], out["value"], strict=True):
        inside = [b for b, low, high in binned.select("bin", "low", "high").iter_rows() if low < y <= high]
        assert token == ids[inside[0]]
        scale = max(x.astype(np.float64).std(ddof=1), 1e-6)
        want = np.clip((y - x.astype(np.float64).mean()) / scale, -5, 5)
        np.testing.assert_allclose(value, want, rtol=2e-5, atol=1e-5)


def test_quantile_bins_of_distinct_values_hold_equal_shares():
    x = np.random.default_rng(0).permutation(1000).astype(np.float32)
    v = fit([(i, "lab", float(y)) for i, y in enumerate(x)], value_bins=10)
    token = v.encode(frame([(1, "lab", float(y)) for y in x]))["token"].to_numpy()
    shares = np.unique(token, return_counts=True)[1]
    assert len(shares) == 10 and np.all(np.abs(shares - 100) <= 1)


def test_values_without_scale_of_their_own_are_left_out():
    rows = [(s, "lab", float(s)) for s in range(20)] + [(s, "lab", None) for s in range(5)]
    rows += [(s, "few", float(s)) for s in range(9)] + [(30, "leaf", 7.0)]
    v = fit(rows, {"leaf": ["lab"]}, min_subjects=2)
    out = v.encode(frame([(1, "lab", None), (1, "few", 3.0), (1, "leaf", 7.0), (1, "lab", 9.5)]))
    names = dict(v.tokens.select("token_id", "token").iter_rows())
    named = [names[t] for t in out["token"]]
    assert named[:3] == ["lab", "few", "lab"], "an ancestor's bins are another quantity's"
    assert named[3].startswith("lab//Q")
    assert np.isnan(out["value"].to_numpy()[:3]).all() and abs(out["value"][3]) < 0.1
    counts = dict(v.tokens.select("token", "count").iter_rows())
    assert counts["lab"] == 5 + 1, "without a value: its own five and the leaf's one"


# ---------------------------------------------------------------------------------------------------- encoding
@settings(max_examples=25)
@given(st.lists(st.tuples(st.sampled_from("abcdz"), st.one_of(st.none(), st.integers(0, 50))), max_size=40))
def test_encoding_keeps_rows_order_and_other_columns(rows):
    v = fit([(s, c, float(s)) for s in range(20) for c in "abcd"])
    events = frame([(i, c, y) for i, (c, y) in enumerate(rows)]).with_columns(pl.lit("kept").alias("extra"))
    out = v.encode(events)
    assert out.drop("token", "value").equals(events)
    assert out.schema["token"] == pl.Int32 and out.schema["value"] == pl.Float32
    code_of = dict(v.tokens.select("token_id", "code").iter_rows())
    for (code, y), token, value in zip(rows, out["token"], out["value"], strict=True):
        if code == "z":
            assert token is None
        else:
            binned = v.tokens.filter(pl.col("token_id") == token)["bin"][0] >= 0
            assert code_of[token] == code and binned == (y is not None)
        assert math.isnan(value) == (y is None or code == "z")


def test_ids_are_positions_specials_first_then_by_frequency():
    rows = (
        [(s, "often", None) for s in range(9)] + [(s, "b", None) for s in range(4)] + [(s, "a", None) for s in range(4)]
    )
    v = fit(rows)
    assert v.tokens["token"].to_list() == [*tokenizer.SPECIAL, "often", "a", "b"] and len(v) == N_SPECIAL + 3
    assert v.tokens["token_id"].to_list() == list(range(len(v)))
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    assert fit(shuffled).tokens.equals(v.tokens) and fit(shuffled).codes.sort("code").equals(v.codes.sort("code"))


def test_future_codes_count_a_code_with_all_its_bins():
    rows = [(s, "lab", float(s)) for s in range(32)] + [(s, "dx", None) for s in range(20)] + [(0, "rare", None)]
    v = fit(rows)
    assert v.future_codes(99) == {"lab": (32, ["lab"]), "dx": (20, ["dx"]), "rare": (1, ["rare"])}
    assert list(v.future_codes(2)) == ["lab", "dx"]


def test_future_codes_include_ancestors_that_stand_for_more_than_one_code(tmp_path):
    rows = [(s, code, None) for code, n in (("I21.0", 9), ("I21", 4), ("I50", 6), ("E11", 3)) for s in range(n)]
    parents = {
        "I21.0": ["I21"],
        "I21": ["heart"],
        "I50": ["heart"],
        "E11": ["sugar"],
        "heart": ["all"],
        "sugar": ["all"],
    }
    v = fit(rows, parents)
    want = {
        "all": (22, ["E11", "I21", "I21.0", "I50"]),
        "heart": (19, ["I21", "I21.0", "I50"]),
        "I21": (13, ["I21", "I21.0"]),  # a code with a token of its own and a descendant
        "I21.0": (9, ["I21.0"]),
        "I50": (6, ["I50"]),
        "E11": (3, ["E11"]),  # "sugar" would be the same target again
    }
    assert v.future_codes(99) == want and list(v.future_codes(99)) == list(want)
    v.save(tmp_path)
    assert tokenizer.Vocabulary.load(tmp_path).future_codes(3) == v.future_codes(3)


def test_history_tokens_are_the_most_frequent_bins_apart():
    rows = [(s, "lab", float(s)) for s in range(60)] + [(s, "dx", None) for s in range(20)] + [(0, "rare", None)]
    v = fit(rows)  # four bins of about 15 values; the lab itself never occurs without a value
    names = dict(v.tokens.select("token_id", "token").iter_rows())
    found = [names[t] for t in v.history_tokens(99)]
    assert found[0] == "dx" and found[-1] == "rare" and sorted(found[1:-1]) == [f"lab//Q{b}" for b in range(4)]
    counts = dict(v.tokens.select("token", "count").iter_rows())
    assert [counts[t] for t in found] == sorted((counts[t] for t in found), reverse=True)
    assert v.history_tokens(2) == v.history_tokens(99)[:2]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from([0.5, 1.0, 2.0, 3.5, 3.5, 7.0, 100.0]), min_size=10, max_size=60), st.booleans())
def test_counts_of_bins_are_those_of_their_tokens(values, in_ranges):
    """In quantiles and in clinical ranges: what the vocabulary counts is what encoding gives."""
    rows = [(i, "lab", v) for i, v in enumerate(values)] + [(0, "lab", None), (1, "dx", None)]
    ranges = {"lab": [1.0, 3.5]} if in_ranges else None
    v = tokenizer.fit_vocabulary(frame(rows), {}, min_subjects=1, value_bins=4, min_values=10, ranges=ranges)
    encoded = v.encode(frame(rows))["token"].value_counts()
    seen = dict(encoded.iter_rows())
    assert {t: n for t, n in v.tokens.select("token_id", "count").iter_rows() if n} == seen
    if in_ranges:
        bins = v.tokens.filter(pl.col("bin") >= 0).select("low", "high", "count").rows()
        x = np.array(values)
        want = [np.sum(x <= 1.0), np.sum((x > 1.0) & (x <= 3.5)), np.sum(x > 3.5)]
        assert bins == [(-math.inf, 1.0, want[0]), (1.0, 3.5, want[1]), (3.5, math.inf, want[2])]


def test_an_empty_training_set_knows_the_specials_only():
    v = fit([])
    assert v.tokens["token"].to_list() == list(tokenizer.SPECIAL)
    assert v.encode(frame([(1, "a", 2.0)]))["token"].to_list() == [None]


# ---------------------------------------------------------------------------------------------------- on disk
def test_tables_come_back_to_the_last_digit(tmp_path):
    odd = ['quo"ted', "com,ma", "line\nbreak", " spaced ", "NA", "null", "1.5", "ü//µg", "'"]
    rng = np.random.default_rng(0)
    rows = [(s, c, float(rng.lognormal(0, 9))) for s in range(20) for c in odd] + [(99, "rare", None)]
    v = fit(rows, {"rare": ["nobody"]}, min_subjects=2)
    v.save(tmp_path)
    back = tokenizer.Vocabulary.load(tmp_path)
    assert back.tokens.equals(v.tokens) and back.codes.equals(v.codes)
    assert back.tokens.schema == v.tokens.schema and back.codes.schema == v.codes.schema
    assert math.isinf(back.tokens["low"].min()) and math.isinf(back.tokens["high"].max())
    assert back.codes.filter(pl.col("code") == "rare")["alias"].to_list() == [None]
    probe = frame([(1, c, float(y)) for c in odd for y in rng.lognormal(0, 9, 5)])
    assert back.encode(probe).equals(v.encode(probe), null_equal=True) or np.array_equal(
        back.encode(probe)["value"].to_numpy(), v.encode(probe)["value"].to_numpy(), equal_nan=True
    )
    assert back.encode(probe)["token"].equals(v.encode(probe)["token"])


def test_loading_from_an_empty_folder_names_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"vocabulary\.csv"):
        tokenizer.Vocabulary.load(tmp_path)
