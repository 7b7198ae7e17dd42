"""Codes and values to tokens: a vocabulary fitted on training patients, written as a table that a person can read.

A token is a code, or a code with the quantile bin of its value ("LOINC//2345-7//Q3"). Values are kept beside the token
as a continuous, standardised channel. A code too rare for the vocabulary is replaced by its nearest ancestor that is in
it (paper, A.2: collapsing infrequent codes); one without such an ancestor is left out and counted.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import polars as pl

from ehrwear_jax.batch import N_SPECIAL

SPECIAL = ("<pad>", "<mask>", "<wear>")
VALUE_CLIP = 5.0  # standard deviations
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
        edges = {}
        binned = self.tokens.filter(pl.col("bin") >= 0).sort("code", "bin")
        for (code,), part in binned.group_by(["code"], maintain_order=True):
            edges[code] = (part["high"].to_numpy()[:-1], part["token_id"].to_numpy())
        base = self.tokens.filter((pl.col("bin") < 0) & (pl.col("token_id") >= N_SPECIAL))
        out = (
            events.with_row_index("_row")
            .join(self.codes, on="code", how="left")
            .join(base.select(pl.col("code").alias("alias"), pl.col("token_id").alias("token")), on="alias", how="left")
            .sort("_row")
        )
        token = out["token"].fill_null(-1).cast(pl.Int32).to_numpy(writable=True)
        raw = out["numeric_value"].cast(pl.Float64).fill_null(float("nan")).to_numpy()
        value = (raw - out["value_mean"].fill_null(float("nan")).to_numpy()) / out["value_std"].fill_null(
            1.0
        ).to_numpy()
        value = np.clip(value, -VALUE_CLIP, VALUE_CLIP).astype(np.float32)
        same = (out["alias"] == out["code"]).fill_null(False).to_numpy()  # an ancestor's bins are another quantity's
        rows = out.filter(pl.Series(same) & out["numeric_value"].is_not_null() & out["code"].is_in(list(edges)))
        for (code,), part in rows.group_by(["code"]):
            cut, ids = edges[code]
            row = part["_row"].to_numpy()
            token[row] = ids[np.searchsorted(cut, raw[row], side="left")]
        value = np.where(same, value, np.nan).astype(np.float32)
        return events.with_columns(pl.Series("token", token).replace(-1, None), pl.Series("value", value))

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

    def recalled_tokens(self, limit):
        """Ids of the most frequent tokens, bins apart, whose earlier occurrence is recalled."""
        seen = self.tokens.filter((pl.col("token_id") >= N_SPECIAL) & (pl.col("count") > 0))
        return seen.sort("count", "token_id", descending=[True, False]).head(limit)["token_id"].to_list()

    def save(self, folder):
        self.tokens.write_csv(Path(folder) / "vocabulary.csv")
        self.codes.write_csv(Path(folder) / "codes.csv")

    @classmethod
    def load(cls, folder):
        tokens = pl.read_csv(
            Path(folder) / "vocabulary.csv",
            schema_overrides={
                "token_id": pl.Int32,
                "token": pl.String,
                "code": pl.String,
                "bin": pl.Int32,
                "low": pl.Float64,
                "high": pl.Float64,
                "count": pl.Int64,
            },
        )
        codes = pl.read_csv(
            Path(folder) / "codes.csv",
            schema_overrides=_CODES_SCHEMA,
        )
        return cls(tokens, codes)


def fit_vocabulary(events, parents, *, min_subjects, value_bins, min_values, ranges=None):
    """Fits a Vocabulary on the events of the training patients.

    Args:
      events: LazyFrame or DataFrame of training events: subject_id, code, numeric_value.
      parents: {code: [parent codes]}; may lack codes.
      min_subjects: a code needs this many patients to have its own token.
      value_bins: number of train quantile bins of a code's values (equal edges are merged).
      min_values: a code needs this many values to be binned and standardised.
      ranges: {code: inner bounds of its clinical ranges}, which take the place of quantiles where they are given.
    """
    stats = (
        events.lazy()
        .group_by("code")
        .agg(
            pl.len().alias("count"),
            pl.col("subject_id").n_unique().alias("subjects"),
            pl.col("numeric_value").count().alias("n_values"),
            pl.col("numeric_value").cast(pl.Float64).mean().alias("mean"),
            pl.col("numeric_value").cast(pl.Float64).std().alias("std"),
            *(
                pl.col("numeric_value").cast(pl.Float64).quantile(q / value_bins).alias(f"q{q}")
                for q in range(1, value_bins)
            ),
        )
        .sort("count", "code", descending=[True, False])
        .collect()
    )
    frequent = set(stats.filter(pl.col("subjects") >= min_subjects)["code"])
    lineage = ancestors(parents)
    # an ancestor earns a token by the patients of its rare descendants together with its own
    rare = stats.filter(pl.col("subjects") < min_subjects)["code"]
    pairs = [(code, ancestor) for code in rare for ancestor in (code, *lineage.get(code, ()))]
    pooled = (
        events.lazy()
        .select("subject_id", "code")
        .join(pl.LazyFrame(pairs, {"code": pl.String, "ancestor": pl.String}, orient="row"), on="code")
        .group_by("ancestor")
        .agg(pl.col("subject_id").n_unique())
        .filter(pl.col("subject_id") >= min_subjects)
        .collect()
    )
    frequent |= set(pooled["ancestor"])

    def nearest(code):
        return code if code in frequent else next((p for p in lineage.get(code, ()) if p in frequent), None)

    alias = {code: nearest(code) for code in stats["code"]}
    frequent = set(alias.values()) - {None}  # an ancestor that stands for nothing would be a token without training
    # codes that only other patients have are as rare as can be
    unseen = {code: nearest(code) for code in sorted((frequent | lineage.keys()) - alias.keys())}
    alias |= {code: target for code, target in unseen.items() if target is not None}
    counts = {}
    for code, count in stats.select("code", "count").iter_rows():
        counts[alias[code]] = counts.get(alias[code], 0) + count
    by_code = {row["code"]: row for row in stats.iter_rows(named=True)}
    cuts = {
        code: (ranges or {}).get(code) or sorted({by_code[code][f"q{q}"] for q in range(1, value_bins)})
        for code in frequent & by_code.keys()
        if by_code[code]["n_values"] >= min_values
    }
    in_bin = _bin_counts(events, cuts)
    tokens = [(i, name, name, -1, None, None, 0) for i, name in enumerate(SPECIAL)]
    scales = {}
    for code in sorted(frequent, key=lambda c: (-counts.get(c, 0), c)):
        n_in_bin = in_bin.get(code, [])
        tokens.append((len(tokens), code, code, -1, None, None, counts.get(code, 0) - sum(n_in_bin)))
        if code in cuts:
            row = by_code[code]
            scales[code] = (row["mean"], max(row["std"] or 0.0, 1e-6))
            limits = [float("-inf"), *cuts[code], float("inf")]
            for b, n in enumerate(n_in_bin):
                tokens.append((len(tokens), f"{code}//Q{b}", code, b, limits[b], limits[b + 1], n))
    schema = {
        "token_id": pl.Int32,
        "token": pl.String,
        "code": pl.String,
        "bin": pl.Int32,
        "low": pl.Float64,
        "high": pl.Float64,
        "count": pl.Int64,
    }
    codes = [(c, a, *scales.get(c, (None, None)), json.dumps(lineage.get(c, []))) for c, a in alias.items()]
    return Vocabulary(pl.DataFrame(tokens, schema, orient="row"), pl.DataFrame(codes, _CODES_SCHEMA, orient="row"))


def _bin_counts(events, cuts):
    """{code: how many values lie in each of its bins}, for cuts {code: increasing inner bounds}."""
    if not cuts:
        return {}
    width = max(map(len, cuts.values()))
    padded = [(code, *bounds, *[None] * (width - len(bounds))) for code, bounds in cuts.items()]
    names = [f"cut{i}" for i in range(width)]
    table = pl.LazyFrame(padded, {"code": pl.String} | dict.fromkeys(names, pl.Float64), orient="row")
    value = pl.col("numeric_value").cast(pl.Float64)
    up_to = (
        events.lazy()
        .filter(pl.col("numeric_value").is_not_null())
        .join(table, on="code")
        .group_by("code")
        .agg(pl.len().alias("all"), *((value <= pl.col(name)).sum().alias(name) for name in names))
        .collect()
    )
    found = {}
    for row in up_to.iter_rows(named=True):
        sums = [0, *(row[n] for n in names[: len(cuts[row["code"]])]), row["all"]]
        found[row["code"]] = [b - a for a, b in zip(sums[:-1], sums[1:], strict=True)]
    return found
