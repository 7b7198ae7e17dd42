"""Vocabulary, collapsing of rare codes, value bins and their tables on disk."""

import math
import types

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrwear_jax.data.prepare import code_table, statistics
from ehrwear_jax.models import vocabulary
from ehrwear_jax.models.vocabulary import N_SPECIAL

EVENTS = {"subject_id": pl.Int64, "code": pl.String, "numeric_value": pl.Float32, "text_value": pl.String}


def frame(rows):
    """Rows of subject, code, value and, perhaps, a text."""
    return pl.DataFrame([(*row, None)[:4] for row in rows], EVENTS, orient="row")


class Fitted:
    """A vocabulary beside the tables of codes and texts that it was fitted with.

    more: codes that only other people have.
    """

    def __init__(self, rows, parents=None, more=(), ranges=None, **options):
        options = {"min_subjects": 1, "value_bins": 4, "min_values": 10} | options
        events = frame(rows)
        described = pl.DataFrame({"code": list(parents or {}), "parent_codes": list((parents or {}).values())},
                                 {"code": pl.String, "parent_codes": pl.List(pl.String)})  # fmt: skip
        described = described.with_columns(description=pl.lit(""))
        self.codes = code_table.make_codes([*events["code"].unique(), *more], described, {}, False)
        pairs = events.drop_nulls("text_value").group_by("code", pl.col("text_value").alias("text"))
        self.texts = code_table.make_texts(pairs.agg(n_subjects=pl.col("subject_id").n_unique()), self.codes)
        ids = dict(self.codes.select("code", "code_id").iter_rows())
        fitted = statistics.fit_in_memory(
            code_table.event_ids(events, self.codes, self.texts), self.codes, self.texts, options["min_subjects"],
            {ids[code]: cuts for code, cuts in (ranges or {}).items()},
        )  # fmt: skip
        self.statistics, self.text_statistics = fitted
        of_text = fitted[1].join(self.texts, on="text_id", maintain_order="left")
        lineage = dict(self.codes.select("code", "ancestors").iter_rows())
        options["min_text_subjects"] = options.pop("min_subjects")
        self.v = vocabulary.build_vocabulary(fitted[0], of_text, lineage, **options)
        self.names = dict(self.v.tokens.select("token_id", "token").iter_rows())

    def encode(self, rows):
        """(token ids, -1: none; values) of rows."""
        events = code_table.event_ids(frame(rows), self.codes, self.texts)
        raw = events["numeric_value"].fill_null(math.nan).to_numpy()
        return self.v.encode(events["code_id"].to_numpy(), raw, events["text_id"].fill_null(-1).to_numpy())

    def named(self, rows):
        """The tokens of rows, None for none."""
        return [self.names.get(t) for t in self.encode(rows)[0].tolist()]


def fit(rows, parents=None, **options):
    return Fitted(rows, parents, **options).v


def alias(vocabulary):
    return dict(vocabulary.codes.select("code", "alias").iter_rows())


# ---------------------------------------------------------------------------------------------------- collapsing
PARENTS = {"I10.1": ["I10"], "I10.2": ["I10"], "I10": ["I"], "E11.9": ["E11", "also"], "E11": ["E"]}


def test_a_rare_code_goes_to_its_nearest_ancestor_with_enough_patients():
    rows = [(s, "common", None) for s in range(5)]
    rows += [(1, "I10.1", None), (2, "I10.1", None), (3, "I10.2", None), (9, "orphan", None)]
    fitted = Fitted(rows, PARENTS, min_subjects=3)
    v = fitted.v
    assert alias(v)["I10.1"] == alias(v)["I10.2"] == "I10" and alias(v)["common"] == "common"
    assert alias(v)["orphan"] is None
    counts = dict(v.tokens.select("token", "count").iter_rows())
    assert counts["I10"] == 3 and counts["common"] == 5
    assert set(v.tokens["token"]) == {*vocabulary.SPECIAL, "common", "I10"}, "I stands for nothing: no token"
    rows = [(7, "I10.2", None), (7, "orphan", None), (7, "common", None), (7, "I", None)]
    assert fitted.named(rows) == ["I10", None, "common", None]


def test_patients_of_an_ancestor_are_counted_once_and_with_its_own():
    # two patients have both leaves, so I10 has two patients, however one gets there
    twice = [(s, c, None) for s in (1, 2) for c in ("I10.1", "I10.2")]
    v = fit(twice, PARENTS | {"I10.1": ["I10", "I10"]}, min_subjects=3)
    assert len(v) == N_SPECIAL and set(alias(v).values()) == {None}
    # the ancestor's own patients count with those of its descendants
    v = fit([(1, "I10.1", None), (2, "I10", None), (3, "I10", None)], PARENTS, min_subjects=3)
    assert alias(v)["I10.1"] == alias(v)["I10"] == "I10"


def test_a_code_that_no_training_patient_has_goes_to_its_ancestor():
    fitted = Fitted([(s, "I10", None) for s in range(3)], PARENTS, more=("I10.1", "E11.9"), min_subjects=3)
    assert alias(fitted.v)["I10.1"] == "I10" and alias(fitted.v)["E11.9"] is None
    assert fitted.named([(1, "I10.1", None), (1, "E11.9", None)]) == ["I10", None]


# ---------------------------------------------------------------------------------------------------- values
@settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(10, 80),
    bins=st.sampled_from([2, 4, 5, 8]),
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
    fitted = Fitted([(i, "lab", float(y)) for i, y in enumerate(x)], value_bins=bins)
    binned = fitted.v.tokens.filter(pl.col("bin") >= 0).sort("bin")
    edges = binned["high"].to_numpy()[:-1]
    # each edge is a sample at its quantile: q/bins of the training values lie at or below it, less than that below;
    # the greatest value is none, since nothing lies above it
    ordered = np.sort(x.astype(np.float64))
    for q in range(1, bins):
        rank = q / bins * (n - 1)
        around = ordered[[math.floor(rank), math.ceil(rank)]]
        assert np.isin(around, edges).any() or around[1] == ordered[-1]
    assert np.isin(edges, ordered).all() and np.all(np.diff(edges) > 0)
    assert binned["low"].to_list() == [-math.inf, *edges] and binned["high"][-1] == math.inf
    probe = np.concatenate([x, edges, edges - 1e-3, [-1e9, 1e9]]).astype(np.float32)
    token_N, value_N = fitted.encode([(1, "lab", float(y)) for y in probe])
    mean, std = fitted.statistics.select("mean", "std").row(0)
    ids = dict(binned.select("bin", "token_id").iter_rows())
    for y, token, value in zip(probe.astype(np.float64), token_N, value_N, strict=True):
        inside = [b for b, low, high in binned.select("bin", "low", "high").iter_rows() if low < y <= high]
        assert token == ids[inside[0]]
        want = np.clip((y - mean) / max(std, 1e-6), -5, 5)
        np.testing.assert_allclose(value, want, rtol=2e-5, atol=1e-5)


def test_quantile_bins_of_distinct_values_hold_equal_shares():
    x = np.random.default_rng(0).permutation(1000).astype(np.float32)
    fitted = Fitted([(i, "lab", float(y)) for i, y in enumerate(x)], value_bins=10)
    token_N, _ = fitted.encode([(1, "lab", float(y)) for y in x])
    shares = np.unique(token_N, return_counts=True)[1]
    assert len(shares) == 10 and np.all(np.abs(shares - 100) <= 1)


def test_values_without_scale_of_their_own_are_left_out():
    rows = [(s, "lab", float(s)) for s in range(20)] + [(s, "lab", None) for s in range(5)]
    rows += [(s, "few", float(s)) for s in range(9)] + [(30, "leaf", 7.0)]
    fitted = Fitted(rows, {"leaf": ["lab"]}, min_subjects=2)
    shown = [(1, "lab", None), (1, "few", 3.0), (1, "leaf", 7.0), (1, "lab", 9.5)]
    named, (_, value_N) = fitted.named(shown), fitted.encode(shown)
    assert named[:3] == ["lab", "few", "lab"], "an ancestor's bins are another quantity's"
    assert named[3].startswith("lab//Q")
    assert np.isnan(value_N[:3]).all() and abs(value_N[3]) < 0.1
    counts = dict(fitted.v.tokens.select("token", "count").iter_rows())
    assert counts["lab"] == 5 + 1, "without a value: its own five and the leaf's one"


# ---------------------------------------------------------------------------------------------------- texts
RHYTHM = [(s, "rhythm", None, "sinus" if s < 6 else "paced") for s in range(9)]


def test_frequent_texts_are_tokens_of_their_code_and_others_are_the_code_alone():
    fitted = Fitted([*RHYTHM, (0, "rhythm", None), *((s, "other", None) for s in range(5))], min_subjects=4)
    tokens = fitted.v.tokens
    counts = dict(tokens.select("token", "count").iter_rows())
    assert {t: counts[t] for t in ("rhythm", "rhythm//sinus", "other")} == {"rhythm": 4, "rhythm//sinus": 6, "other": 5}
    assert "rhythm//paced" not in counts, "three people have it"
    of_text = tokens.filter(pl.col("token") == "rhythm//sinus").row(0, named=True)
    assert (of_text["code"], of_text["bin"], fitted.texts["text"][of_text["text_id"]]) == ("rhythm", -1, "sinus")
    shown = [(1, "rhythm", None, "sinus"), (1, "rhythm", None, "paced"), (1, "rhythm", None), (1, "other", None)]
    assert fitted.named(shown) == ["rhythm//sinus", "rhythm", "rhythm", "other"]
    assert np.isnan(fitted.encode(shown)[1]).all()


def test_a_number_is_the_result_where_there_is_a_text_too():
    rows = [(s, "score", float(s), None) for s in range(20)] + [(s, "score", None, "untestable") for s in range(20)]
    fitted = Fitted(rows)
    assert fitted.named([(1, "score", None, "untestable")]) == ["score//untestable"]
    code, text = (np.array([0], np.int32) for _ in range(2))
    (both,), _ = fitted.v.encode(code, np.array([3.0], np.float32), text)
    assert fitted.names[both].startswith("score//Q")
    counts = dict(fitted.v.tokens.select("token", "count").iter_rows())
    assert "score" not in counts and counts["score//untestable"] == 20
    assert sum(n for t, n in counts.items() if "//Q" in t) == 20


def test_names_of_tokens_differ_also_where_a_code_is_called_like_a_code_with_a_text():
    rows = [(s, "SEX", None, "m") for s in range(4)] + [(s, "SEX//m", None) for s in range(3)]
    fitted = Fitted(rows)
    assert fitted.v.tokens["token"].is_unique().all()
    assert fitted.named([(1, "SEX", None, "m"), (1, "SEX//m", None)]) == ['SEX//"m"', "SEX//m"]


# ---------------------------------------------------------------------------------------------------- encoding
@settings(max_examples=25)
@given(st.lists(st.tuples(st.sampled_from("abcdz"), st.one_of(st.none(), st.integers(0, 50))), max_size=40))
def test_encoding_is_event_by_event(rows):
    rows_of = [(s, c, y) for s in range(20) for c in "abcd" for y in (float(s), None)]
    fitted = Fitted(rows_of, more=("z",))
    token_N, value_N = fitted.encode([(i, c, y) for i, (c, y) in enumerate(rows)])
    assert token_N.dtype == np.int32 and value_N.dtype == np.float32
    table = {row["token_id"]: row for row in fitted.v.tokens.iter_rows(named=True)}
    for (code, y), token, value in zip(rows, token_N, value_N, strict=True):
        if code == "z":
            assert token == -1
        else:
            assert table[token]["code"] == code and (table[token]["bin"] >= 0) == (y is not None)
        assert math.isnan(value) == (y is None or code == "z")


def test_ids_are_positions_specials_first_then_by_frequency():
    rows = (
        [(s, "often", None) for s in range(9)] + [(s, "b", None) for s in range(4)] + [(s, "a", None) for s in range(4)]
    )
    v = fit(rows)
    assert v.tokens["token"].to_list() == [*vocabulary.SPECIAL, "often", "a", "b"] and len(v) == N_SPECIAL + 3
    assert v.tokens["token_id"].to_list() == list(range(len(v)))
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    assert fit(shuffled).tokens.equals(v.tokens) and fit(shuffled).codes.sort("code").equals(v.codes.sort("code"))


def test_future_codes_count_a_code_with_all_its_bins():
    rows = [(s, "lab", float(s)) for s in range(32)] + [(s, "dx", None) for s in range(20)] + [(0, "rare", None)]
    v = fit(rows)
    assert v.future_codes(99) == {"lab": (32, ["lab"]), "dx": (20, ["dx"]), "rare": (1, ["rare"])}
    assert list(v.future_codes(2)) == ["lab", "dx"]


def test_future_codes_include_ancestors_that_stand_for_more_than_one_code():
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
    fitted = Fitted(rows, ranges=ranges)
    v, (token_N, _) = fitted.v, fitted.encode(rows)
    seen = dict(zip(*np.unique(token_N, return_counts=True), strict=True))
    assert {t: n for t, n in v.tokens.select("token_id", "count").iter_rows() if n} == seen
    assert all(n > 0 for n in v.tokens["count"][N_SPECIAL:])
    if in_ranges:
        bins = v.tokens.filter(pl.col("bin") >= 0).select("low", "high", "count").rows()
        x, edges = np.array(values), [-math.inf, 1.0, 3.5, math.inf]
        assert sum(n for *_, n in bins) == len(x)
        for low, high, n in bins:
            assert low in edges and high in edges and n == np.sum((x > low) & (x <= high)) > 0
        assert [low for low, _, _ in bins[1:]] == [high for _, high, _ in bins[:-1]], "no gap is left between them"


def test_tokens_of_labelled_ranges_are_called_by_them():
    """A range without training values shares a neighbour's token; a text that is called like one is in quotes."""
    values = [1.0] * 4 + [4.0] * 5 + [9.0] * 6  # none in (2, 3], none above 10
    rows = [(i, "lab", v) for i, v in enumerate(values)] + [(i, "lab", None, "low") for i in range(5)]
    rows += [(i, "other", v) for i, v in enumerate(values)]
    cuts, labels = [2.0, 3.0, 5.0, 10.0], ["low", "lowish", "normal", "high", "very high"]
    ids = {"lab": 0, "other": 1}  # codes are in the order of their names
    fitted = Fitted(rows, ranges=dict.fromkeys(ids, cuts), range_labels={ids["lab"]: labels})
    assert dict(v for v in fitted.v.tokens.select("token", "count").iter_rows() if v[0].startswith("lab")) == {
        "lab//low": 4, "lab//normal": 5, "lab//high": 6, 'lab//"low"': 5}  # fmt: skip
    named = fitted.named([(1, "lab", v) for v in (0.0, 2.0, 2.5, 3.0, 5.0, 5.1, 11.0)])
    assert named == [f"lab//{x}" for x in ("low", "low", "normal", "normal", "normal", "high", "high")]
    assert fitted.named([(1, "lab", None, "low"), (1, "other", 4.0)]) == ['lab//"low"', "other//Q1"]


RESULTS = st.tuples(
    st.integers(0, 6),
    st.sampled_from(["lab", "lab2", "dx", "dx.1", "text"]),
    st.one_of(st.none(), st.sampled_from([-5.0, 0.0, 0.5, 1.0, 2.0, 3.5, 7.0, 100.0, 1e6])),
    st.one_of(st.none(), st.sampled_from(["low", "high", "other"])),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(RESULTS, max_size=60), st.lists(RESULTS, max_size=30), st.integers(1, 3), st.sampled_from([1, 2, 10]))
def test_no_token_is_one_that_training_never_saw(training, others, min_subjects, bins):
    """Whatever other people have: new values, codes without the value or text that they always had, rare codes."""

    def as_prepared(rows):  # a text is a result where there is no number
        return [(s, c, y, t if y is None and c != "dx" else None) for s, c, y, t in rows]

    training, others = as_prepared(training), as_prepared(others)
    ranges = {"lab": [0.2, 0.3, 1.0, 50.0]} if "lab" in {c for _, c, *_ in training + others} else None
    fitted = Fitted(training, parents={"dx.1": ["dx"]}, more=[c for _, c, *_ in others], min_subjects=min_subjects,
                    value_bins=bins, min_values=3, ranges=ranges)  # fmt: skip
    seen = set(fitted.encode(training)[0].tolist()) - {-1}
    assert seen == set(range(N_SPECIAL, len(fitted.v)))
    assert set(fitted.encode(others)[0].tolist()) <= seen | {-1}
    known = {a for a in alias(fitted.v).values() if a is not None}
    left_out = [c for (_, c, *_), t in zip(others, fitted.encode(others)[0], strict=True) if t < 0]
    assert all(alias(fitted.v).get(c) not in known for c in left_out), "what has an alias has a token"


def test_an_event_without_the_result_that_its_code_always_had_is_as_the_most_frequent():
    rows = [(s, "lab", float(s >= 7)) for s in range(20)] + [(s, "who", None, "m" if s < 8 else "f") for s in range(20)]
    fitted = Fitted(rows, value_bins=2)
    usual = fitted.named([(1, "lab", 1.0)])
    assert fitted.named([(1, "lab", None)]) == usual and math.isnan(fitted.encode([(1, "lab", None)])[1][0])
    assert fitted.named([(1, "who", None)]) == ["who//f"]
    assert {"lab", "who"}.isdisjoint(fitted.v.tokens["token"])


def test_an_empty_training_set_knows_the_specials_only():
    fitted = Fitted([], more=("a",))
    assert fitted.v.tokens["token"].to_list() == list(vocabulary.SPECIAL)
    assert fitted.named([(1, "a", 2.0)]) == [None]


# ---------------------------------------------------------------------------------------------------- on disk
def test_the_table_can_be_read_by_people(tmp_path):
    odd = ['quo"ted', "com,ma", "line\nbreak", " spaced ", "NA", "null", "1.5", "ü//µg", "'"]
    rng = np.random.default_rng(0)
    v = fit([(s, c, float(rng.lognormal(0, 9))) for s in range(20) for c in odd])
    v.save(tmp_path)
    back = pl.read_csv(tmp_path / "vocabulary.csv", schema_overrides=v.tokens.schema)
    assert back.equals(v.tokens) and math.isinf(back["low"].min())


@pytest.mark.parametrize("n_training, is_token", [(4, False), (5, True)])
def test_whether_a_text_is_a_token_depends_on_training_patients_alone(n_training, is_token):
    """The text is kept in the records because others have it, too; they must not decide about the vocabulary."""
    rows = [(s, "rhythm", None, "sinus") for s in range(n_training)]
    fitted = Fitted([*rows, *((s, "rhythm", None) for s in range(9))], min_subjects=2)
    store = types.SimpleNamespace(
        code_statistics=fitted.statistics, text_statistics=fitted.text_statistics, texts=fitted.texts,
        codes=fitted.codes, min_subjects=2, min_text_subjects=5, value_bins=4, min_values=10,
        range_labels={},
    )  # fmt: skip
    tokens = vocabulary.of_store(store).tokens["token"].to_list()
    assert ("rhythm//sinus" in tokens) == is_token and "rhythm" in tokens
