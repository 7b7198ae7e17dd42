"""Codes and values to tokens: a vocabulary fitted on training patients, written as a table that a person can read.

A token is a code, or a code with the quantile bin of its value ("LOINC//2345-7//Q3"). Values are kept beside the token
as a continuous, standardised channel. A code too rare for the vocabulary is replaced by its nearest ancestor that is in
it (paper, A.2: collapsing infrequent codes); one without such an ancestor is left out and counted.
"""

import dataclasses
import functools
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from ehrwear_jax.data.prepare import code_counts
from ehrwear_jax.models.joint.batch import N_SPECIAL

SPECIAL = ("<pad>", "<mask>", "<wear>")
VALUE_CLIP = 5.0  # standard deviations
_TOKENS_SCHEMA = {
    "token_id": pl.Int32,
    "token": pl.String,
    "code": pl.String,
    "bin": pl.Int32,
    "low": pl.Float64,
    "high": pl.Float64,
    "count": pl.Int64,
}
_CODES_SCHEMA = {
    "code": pl.String,
    "alias": pl.String,
    "value_mean": pl.Float64,
    "value_std": pl.Float64,
    "ancestors": pl.String,
}


def ancestors(parents):
    """{code: [parent codes]} -> {code: [all ancestors, nearest first]}; cycles are cut."""
    out = {}
    for code in parents:
        seen, level = [], list(parents[code] or [])
        while level:
            seen += [p for p in dict.fromkeys(level) if p not in seen and p != code]
            level = [g for p in level for g in (parents.get(p) or []) if g not in seen and g != code]
        out[code] = seen
    return out


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The fitted tables.

    Attributes:
      tokens: token_id i32, token str, code str, bin i32 (-1: no bin), low f64, high f64, count i64. A bin holds values
        in (low, high].
      codes: code str, alias str (the vocabulary code that stands for it), value_mean f64, value_std f64, ancestors str
        (JSON list, nearest first).
    """

    tokens: pl.DataFrame
    codes: pl.DataFrame

    def __len__(self):
        return self.tokens.height

    def encode(self, events):
        """Adds token i32 (null: not in the vocabulary) and value f32 (NaN: none).

        Args:
          events: subject_id, time, code str, numeric_value f32 nullable; more columns pass through.
        """
        token, value = self.encode_columns(events["code"], events["numeric_value"])
        return events.with_columns(pl.Series("token", token).replace(-1, None), pl.Series("value", value))

    def encode_columns(self, code, numeric_value):
        """Tokens and standardised values of many events at once.

        Args:
          code: str Series. numeric_value: float Series, null where there is none.

        Returns:
          (token int32 [N], -1: not in the vocabulary; value float32 [N], NaN: none).
        """
        table = self._lookup
        row = code.to_frame("code").join(table.place, on="code", how="left", maintain_order="left")["row"]
        row_N = row.fill_null(len(table.token) - 1).to_numpy()
        raw_N = numeric_value.cast(pl.Float64).fill_null(float("nan")).to_numpy()
        token_N = table.token[row_N]
        value_N = np.clip((raw_N - table.mean[row_N]) / table.std[row_N], -VALUE_CLIP, VALUE_CLIP).astype(np.float32)
        at_K = np.flatnonzero(table.is_binned[row_N] & ~np.isnan(raw_N))
        row_K, raw_K = row_N[at_K], raw_N[at_K]
        bin_K, size = np.zeros(len(at_K), np.int64), table.cut.shape[1] // 2
        while size:  # binary search among the cuts of each row's own code
            bin_K += size * (table.cut[row_K, bin_K + size - 1] < raw_K)
            size //= 2
        token_N[at_K] = table.bin_token[row_K, bin_K]
        return token_N, value_N

    @functools.cached_property
    def _lookup(self):
        """The tables as arrays by row of `codes`, and a last row for codes that it lacks."""
        alias, code = self.codes["alias"].to_list(), self.codes["code"].to_list()
        base, bins = {}, {}
        for name, b, token, high in self.tokens.filter(pl.col("token_id") >= N_SPECIAL).sort("code", "bin").select(
            "code", "bin", "token_id", "high"
        ).iter_rows():  # fmt: skip
            if b < 0:
                base[name] = token
            else:
                bins.setdefault(name, []).append((high, token))
        width = 1 << max(map(len, bins.values()), default=1).bit_length()
        token_C = np.array([*(base.get(a, -1) for a in alias), -1], np.int32)
        # an ancestor's bins and scale are another quantity's
        own = [a is not None and a == c for a, c in zip(alias, code, strict=True)]
        mean, std = (self.codes[name].to_list() for name in ("value_mean", "value_std"))
        mean_C = np.array([*(m if o and m is not None else np.nan for m, o in zip(mean, own, strict=True)), np.nan])
        std_C = np.array([*(1.0 if s is None else s for s in std), 1.0])
        cut_CxB, bin_token_CxB = np.full((len(token_C), width), np.inf), np.full((len(token_C), width), -1, np.int32)
        is_binned_C = np.zeros(len(token_C), bool)
        for i, (name, is_own) in enumerate(zip(code, own, strict=True)):
            if is_own and name in bins:
                high, token = zip(*bins[name], strict=True)
                cut_CxB[i, : len(high)], bin_token_CxB[i, : len(token)], is_binned_C[i] = high, token, True
        place = pl.DataFrame({"code": code, "row": range(len(code))}, {"code": pl.String, "row": pl.Int32})
        return _Lookup(place, token_C, mean_C, std_C, is_binned_C, cut_CxB, bin_token_CxB)

    def future_codes(self, limit):
        """The most frequent codes and ancestors of codes, whose later occurrence is predicted.

        A code is counted with all its bins, and what descends from it counts for it too. An ancestor that stands for
        the same codes as a nearer one would be the same target twice and is left out.

        Returns:
          {name: (count, the vocabulary codes that it stands for)}, most frequent first.
        """
        by_code = self.tokens.filter(pl.col("token_id") >= N_SPECIAL).group_by("code").agg(pl.col("count").sum())
        count = dict(by_code.sort("count", "code", descending=[True, False]).iter_rows())
        lineage = {c: json.loads(a) for c, a in self.codes.select("code", "ancestors").iter_rows() if c in count}
        members = {code: {code} for code in count}
        for code in count:
            for ancestor in lineage.get(code, ()):
                members.setdefault(ancestor, set()).add(code)
        first = {}
        for name, codes in members.items():
            first.setdefault(frozenset(codes), name)
        total = {name: (sum(count[c] for c in codes), sorted(codes)) for codes, name in first.items()}
        return dict(sorted(total.items(), key=lambda item: (-item[1][0], item[0]))[:limit])

    def history_tokens(self, limit):
        """Ids of the most frequent tokens, bins apart, whose earlier occurrence is reconstructed."""
        seen = self.tokens.filter((pl.col("token_id") >= N_SPECIAL) & (pl.col("count") > 0))
        return seen.sort("count", "token_id", descending=[True, False]).head(limit)["token_id"].to_list()

    def save(self, folder):
        self.tokens.write_csv(Path(folder) / "vocabulary.csv")
        self.codes.write_csv(Path(folder) / "codes.csv")

    @classmethod
    def load(cls, folder):
        tokens = pl.read_csv(
            Path(folder) / "vocabulary.csv",
            schema_overrides=_TOKENS_SCHEMA,
        )
        codes = pl.read_csv(
            Path(folder) / "codes.csv",
            schema_overrides=_CODES_SCHEMA,
        )
        return cls(tokens, codes)


class _Lookup(NamedTuple):
    """What encode_columns looks up; cut [C, B] inf beyond a code's cuts, B a power of two above the number of bins."""

    place: pl.DataFrame
    token: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    is_binned: np.ndarray
    cut: np.ndarray
    bin_token: np.ndarray


def fit_vocabulary(events, parents, *, min_subjects, value_bins, min_values, ranges=None):
    """Fits a Vocabulary on the events of the training patients, all in memory; fit.py does the same shard by shard.

    Args:
      events: LazyFrame or DataFrame of training events: subject_id, code, numeric_value.
      parents: {code: [parent codes]}; may lack codes.
      min_subjects: a code needs this many patients to have its own token.
      value_bins: number of train quantile bins of a code's values (equal edges are merged).
      min_values: a code needs this many values to be binned and standardised.
      ranges: {code: inner bounds of its clinical ranges}, which take the place of quantiles where they are given.
    """
    events = events.lazy().select("subject_id", "code", "numeric_value").collect()
    counts = code_counts.add_counts([code_counts.count_codes(events)])
    scales = code_counts.scales(code_counts.count_values(events), value_bins, min_values, ranges)
    lineage = ancestors(parents)
    pairs = rare_pairs(counts, lineage, min_subjects)
    return build_vocabulary(counts, scales, lineage, code_counts.count_pooled(events, pairs), min_subjects)


def rare_pairs(counts, lineage, min_subjects):
    """DataFrame code, ancestor: each rare code with itself and with its ancestors.

    An ancestor earns a token by the patients of its rare descendants together with its own.
    """
    rare = counts.filter(pl.col("subjects") < min_subjects)["code"]
    pairs = [(code, ancestor) for code in rare for ancestor in (code, *lineage.get(code, ()))]
    return pl.DataFrame(pairs, {"code": pl.String, "ancestor": pl.String}, orient="row")


def build_vocabulary(counts, scales, lineage, pooled, min_subjects):
    """A Vocabulary from what was counted.

    Args:
      counts, scales: as code_counts.add_counts and code_counts.scales return.
      lineage: as `ancestors` returns.
      pooled: {ancestor: patients}, see rare_pairs.
      min_subjects: see fit_vocabulary.
    """
    frequent = set(counts.filter(pl.col("subjects") >= min_subjects)["code"])
    frequent |= {ancestor for ancestor, n in pooled.items() if n >= min_subjects}

    def nearest(code):
        return code if code in frequent else next((p for p in lineage.get(code, ()) if p in frequent), None)

    alias = {code: nearest(code) for code in counts["code"]}
    frequent = set(alias.values()) - {None}  # an ancestor that stands for nothing would be a token without training
    # codes that only other patients have are as rare as can be
    unseen = {code: nearest(code) for code in sorted((frequent | lineage.keys()) - alias.keys())}
    alias |= {code: target for code, target in unseen.items() if target is not None}
    total = {}
    for code, count in counts.select("code", "count").iter_rows():
        total[alias[code]] = total.get(alias[code], 0) + count
    scale = {row[0]: row[1:] for row in scales.iter_rows() if row[0] in frequent}
    tokens = [(i, name, name, -1, None, None, 0) for i, name in enumerate(SPECIAL)]
    for code in sorted(frequent, key=lambda c: (-total.get(c, 0), c)):
        _, _, cuts, in_bin = scale.get(code, (None, None, [], []))
        tokens.append((len(tokens), code, code, -1, None, None, total.get(code, 0) - sum(in_bin)))
        limits = [float("-inf"), *cuts, float("inf")]
        for b, n in enumerate(in_bin):
            tokens.append((len(tokens), f"{code}//Q{b}", code, b, limits[b], limits[b + 1], n))
    rows = []
    for code, target in alias.items():
        mean, std, _, _ = scale.get(code, (None, None, None, None))
        rows.append((code, target, mean, None if std is None else max(std, 1e-6), json.dumps(lineage.get(code, []))))
    return Vocabulary(
        pl.DataFrame(tokens, _TOKENS_SCHEMA, orient="row"), pl.DataFrame(rows, _CODES_SCHEMA, orient="row")
    )
