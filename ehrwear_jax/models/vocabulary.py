"""Makes tokens of codes, values and texts: a table built from what was fitted on the training patients.

A token is a code, a code with the quantile bin of its value ("LOINC//2345-7//Q3") or with the clinical range of its
value ("LOINC//2345-7//low"), or a code with one of its frequent texts ("LAB//rhythm//sinus"). Values are kept beside
the token as a continuous, standardised channel. A code too rare for the vocabulary is replaced by its nearest ancestor
that is in it (paper, A.2: collapsing infrequent codes); one without such an ancestor is left out.

Every token is one that training events have: bins without any are merged with a neighbour, and where all training
events of a code have a value or a text, an event that has neither takes the code's most frequent token.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from ehrwear_jax.data.formats import parquet
from ehrwear_jax.data.prepare import code_counts
from ehrwear_jax.data.store import Record, RecordStore

SPECIAL = ("<pad>", "<mask>", "<wear>")  # tokens that are no codes
N_SPECIAL = len(SPECIAL)
VALUE_CLIP = 5.0  # standard deviations
_TOKENS_SCHEMA: parquet.Schema = {
    "token_id": pl.Int32,
    "token": pl.String,
    "code": pl.String,
    "bin": pl.Int32,
    "low": pl.Float64,
    "high": pl.Float64,
    "text_id": pl.Int32,
    "count": pl.Int64,
}
_CODES_SCHEMA: parquet.Schema = {
    "code": pl.String,
    "alias": pl.String,
    "value_mean": pl.Float64,
    "value_std": pl.Float64,
    "ancestors": pl.List(pl.String),
}


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The tables.

    Attributes:
      tokens: token_id i32, token str, code str, bin i32 (-1: no bin), low f64, high f64, text_id i32 (-1: no text),
        count i64 of training. A bin holds values in (low, high].
      codes: a row per code of the data set, in the order of code_id: code str, alias str (the vocabulary code that
        stands for it, null: none), value_mean f64, value_std f64 (null: values are not used), ancestors list[str]
        (nearest first).
      n_texts: of the data set.
    """

    tokens: pl.DataFrame
    codes: pl.DataFrame
    n_texts: int = 0

    def __len__(self) -> int:
        return self.tokens.height

    def encode(self, code_N: np.ndarray, raw_N: np.ndarray, text_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and standardised values of many events at once.

        Args:
          code_N: int code_id. raw_N: float values, NaN where there is none. text_N: int text_id, -1: none.

        Returns:
          (token int32 [N], -1: not in the vocabulary; value float32 [N], NaN: none).
        """
        table, token_N = self._lookup, self._lookup.token.take(code_N)
        value_N = np.full(len(code_N), np.nan, np.float32)
        has_value_N = ~np.isnan(raw_N)
        at_K = np.flatnonzero(has_value_N & table.is_numeric.take(code_N))
        if len(at_K):
            code_K, raw_K = code_N[at_K], raw_N[at_K].astype(np.float64)
            scaled_K = (raw_K - table.mean.take(code_K)) / table.std.take(code_K)
            value_N[at_K] = np.minimum(np.maximum(scaled_K, -VALUE_CLIP), VALUE_CLIP)
            bin_K, size, width = np.zeros(len(at_K), np.int64), table.cut.shape[1] // 2, table.cut.shape[1]
            first_K, cut = code_K.astype(np.int64) * width, table.cut.reshape(-1)
            while size:  # binary search among the cuts of each event's own code
                bin_K += size * (cut.take(first_K + (bin_K + (size - 1))) < raw_K)
                size //= 2
            of_bin_K = table.bin_token.reshape(-1).take(first_K + bin_K)
            token_N[at_K] = np.where(of_bin_K >= 0, of_bin_K, token_N[at_K])
        if self.n_texts:
            of_text_N = np.where(has_value_N, -1, table.text_token.take(text_N))
            token_N = np.where(of_text_N >= 0, of_text_N, token_N)
        return token_N, value_N

    def known(
        self, record: Record
    ) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(tokens, values) of the static events in the vocabulary, (tokens, values, times) of the timed ones.

        As `encode` gives them; times int64 us.
        """
        n_static = len(record.static_code_S)
        pairs = ("static_code_S", "code_K"), ("static_value_S", "value_K"), ("static_text_S", "text_K")
        code_N, raw_N, text_N = (np.concatenate([getattr(record, s), getattr(record, timed)]) for s, timed in pairs)
        token_N, value_N = self.encode(code_N, raw_N, text_N)
        at = np.flatnonzero(token_N >= 0)
        if len(at) < len(token_N):
            token_N, value_N = token_N[at], value_N[at]
        s = int(at.searchsorted(n_static))
        time_K = record.time_K[at[s:] - n_static]
        return (token_N[:s], value_N[:s]), (token_N[s:], value_N[s:], time_K)

    @functools.cached_property
    def _lookup(self):
        """The tables as arrays by code_id and by text_id."""
        alias, code = self.codes["alias"].to_list(), self.codes["code"].to_list()
        base: dict[str, int] = {}
        bins: dict[str, list[tuple[float, int]]] = {}
        usual: dict[str, tuple[int, int]] = {}
        text_token_T = np.full(self.n_texts + 1, -1, np.int32)  # the last one for no text
        table = self.tokens.filter(pl.col("token_id") >= N_SPECIAL).sort("code", "bin", "text_id")
        columns = ("code", "bin", "token_id", "high", "text_id", "count")
        for name, b, token, high, text, count in table.select(columns).iter_rows():
            usual[name] = max(usual.get(name, (0, 0)), (count, -token))
            if text >= 0:
                text_token_T[text] = token
            elif b < 0:
                base[name] = token
            else:
                bins.setdefault(name, []).append((high, token))
        width = 1 << max(map(len, bins.values()), default=1).bit_length()
        base = {name: -token for name, (_, token) in usual.items()} | base
        token_C = np.array([base.get(a, -1) for a in alias], np.int32)
        # an ancestor's bins and scale are another quantity's
        own = [a is not None and a == c for a, c in zip(alias, code, strict=True)]
        mean, std = (self.codes[name].to_list() for name in ("value_mean", "value_std"))
        mean_C = np.array([m if o and m is not None else np.nan for m, o in zip(mean, own, strict=True)], np.float64)
        std_C = np.array([1.0 if s is None else s for s in std], np.float64)
        cut_CxB, bin_token_CxB = np.full((len(token_C), width), np.inf), np.full((len(token_C), width), -1, np.int32)
        is_binned_C = np.zeros(len(token_C), bool)
        for i, (name, is_own) in enumerate(zip(code, own, strict=True)):
            if is_own and name in bins:
                high, token = zip(*bins[name], strict=True)
                cut_CxB[i, : len(high)], bin_token_CxB[i, : len(token)], is_binned_C[i] = high, token, True
        is_numeric_C = is_binned_C | np.isfinite(mean_C)
        return _Lookup(token_C, mean_C, std_C, is_numeric_C, cut_CxB, bin_token_CxB, text_token_T)

    def future_codes(self, limit: int) -> dict[str, tuple[int, list[str]]]:
        """The most frequent codes and ancestors of codes, whose later occurrence is predicted.

        A code is counted with all its bins, and what descends from it counts for it too. An ancestor that stands for
        the same codes as a nearer one would be the same target twice and is left out.

        Returns:
          {name: (count, the vocabulary codes that it stands for)}, most frequent first.
        """
        by_code = self.tokens.filter(pl.col("token_id") >= N_SPECIAL).group_by("code").agg(pl.col("count").sum())
        count = dict(by_code.sort("count", "code", descending=[True, False]).iter_rows())
        lineage = {c: a for c, a in self.codes.select("code", "ancestors").iter_rows() if c in count}
        members = {code: {code} for code in count}
        for code in count:
            for ancestor in lineage.get(code, ()):
                members.setdefault(ancestor, set()).add(code)
        first: dict[frozenset[str], str] = {}
        for name, codes in members.items():
            first.setdefault(frozenset(codes), name)
        total = {name: (sum(count[c] for c in codes), sorted(codes)) for codes, name in first.items()}
        return dict(sorted(total.items(), key=lambda item: (-item[1][0], item[0]))[:limit])

    def classes(self, members: list[list[str]]) -> np.ndarray:
        """Which classes each token belongs to, a class being a list of codes: int64 [V, A], -1 fills up."""
        classes: dict[str, list[int]] = {}
        for k, codes in enumerate(members):
            for code in codes:
                classes.setdefault(code, []).append(k)
        of_token = [classes.get(code, []) for code in self.tokens["code"]]
        class_VxA = np.full((len(of_token), max(map(len, of_token), default=0)), -1)
        for v, found in enumerate(of_token):
            class_VxA[v, : len(found)] = found
        return class_VxA

    def history_tokens(self, limit: int) -> list[int]:
        """Ids of the most frequent tokens, bins apart, whose earlier occurrence is reconstructed."""
        seen = self.tokens.filter((pl.col("token_id") >= N_SPECIAL) & (pl.col("count") > 0))
        return seen.sort("count", "token_id", descending=[True, False]).head(limit)["token_id"].to_list()

    def save(self, folder: Path) -> None:
        """Writes FOLDER/vocabulary.csv, for people to read."""
        self.tokens.write_csv(Path(folder) / "vocabulary.csv")


class _Lookup(NamedTuple):
    """What encode looks up; cut [C, B] inf beyond a code's cuts, B a power of two above the number of bins.

    is_numeric: whether a code's values are binned or standardised; bin_token [C, B]: -1 without bins.
    """

    token: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    is_numeric: np.ndarray
    cut: np.ndarray
    bin_token: np.ndarray
    text_token: np.ndarray


def of_store(store: RecordStore) -> Vocabulary:
    """The Vocabulary of a fold, by the options of config.prepare that its store holds."""
    return build_vocabulary(
        store.code_statistics,
        store.text_statistics.join(store.texts, on="text_id", maintain_order="left"),
        dict(store.codes.select("code", "ancestors").iter_rows()),
        # of training patients, like codes: that somebody else has a text must not decide whether it is a token
        min_text_subjects=max(store.min_subjects, store.min_text_subjects),
        value_bins=store.value_bins,
        min_values=store.min_values,
        range_labels=store.range_labels,
    )


def build_vocabulary(
    statistics: pl.DataFrame,
    texts: pl.DataFrame,
    lineage: dict[str, list[str]],
    *,
    min_text_subjects: int,
    value_bins: int,
    min_values: int,
    range_labels: Mapping[int, list[str]] | None = None,
) -> Vocabulary:
    """A Vocabulary from what was fitted.

    Args:
      statistics: prepare.statistics.CODE_STATISTICS, in the order of code_id.
      texts: text_id, code_id, text, count, subjects.
      lineage: {code: ancestors, nearest first}.
      min_text_subjects: a text needs this many training patients for a token; what codes need is said by their alias.
      value_bins: number of quantile bins of a code's values (equal cuts are merged), see code_counts.bin_cuts.
      min_values: a code needs this many values to be binned and standardised.
      range_labels: {code_id: labels of its clinical ranges}, which its tokens are called by; one that no training value
        lies in shares the token of a neighbour that has some.

    Raises:
      ValueError: a number of bins that there cannot be.
    """
    code, alias = statistics["code"].to_list(), statistics["alias"].to_list()
    total: dict[int, int] = {}
    for target, count in zip(alias, statistics["count"], strict=True):
        if target is not None:
            total[target] = total.get(target, 0) + count
    scaled = _scales(statistics, total, value_bins, min_values, range_labels or {})
    of_text: dict[int, list[tuple[int, str, int]]] = {}
    frequent = texts.filter(pl.col("subjects") >= max(min_text_subjects, 1)).sort("text_id")
    for row in frequent.select("code_id", "text_id", "text", "count").iter_rows():
        of_text.setdefault(row[0], []).append(row[1:])
    rows: list[tuple] = [(i, name, name, -1, None, None, -1, 0) for i, name in enumerate(SPECIAL)]
    names = set(code)
    for i in sorted(total, key=lambda i: (-total[i], code[i])):
        n, _, _, cuts, up_to, labels = scaled.get(i, (0, None, None, [], [], []))
        plain = total[i] - n - sum(count for _, _, count in of_text.get(i, ()))
        if plain > 0:
            rows.append((len(rows), code[i], code[i], -1, None, None, -1, plain))
        limits = [float("-inf"), *cuts, float("inf")]
        for b, in_bin in enumerate(np.diff([0, *up_to, n]).tolist() if n else ()):
            name = _unused(code[i], labels[b], names) if labels else f"{code[i]}//Q{b}"
            rows.append((len(rows), name, code[i], b, limits[b], limits[b + 1], -1, in_bin))
        for text_id, text, count in of_text.get(i, ()):
            name = _unused(code[i], text, names)
            rows.append((len(rows), name, code[i], -1, None, None, text_id, count))
    by_code = [scaled.get(i, (0, None, None)) for i in range(len(code))]
    codes = {
        "code": code,
        "alias": [None if target is None else code[target] for target in alias],
        "value_mean": [scale[1] for scale in by_code],
        "value_std": [None if scale[2] is None else max(scale[2], 1e-6) for scale in by_code],
        "ancestors": [lineage.get(name, []) for name in code],
    }
    tokens = pl.DataFrame(rows, _TOKENS_SCHEMA, orient="row")
    return Vocabulary(tokens, pl.DataFrame(codes, _CODES_SCHEMA), texts.height)


def _unused(code, result, names):
    """The name of a code's token with a result, which joins the names; in quotes where another is called so."""
    name = f"{code}//{result}"
    name = f'{code}//"{result}"' if name in names else name
    names.add(name)
    return name


def _scales(statistics, chosen, value_bins, min_values, range_labels):
    """{code_id: (values, mean, std, cuts, values up to each cut, labels)} of the chosen codes that have enough values.

    The labels are those of the ranges in which there are values, [] where a code has no labels.
    """
    scaled: dict[int, tuple] = {}
    columns = ("code_id", "n_values", "mean", "std", "quantile", "up_to", "range_cut", "range_up_to")
    for i, n, mean, std, *found in statistics.select(columns).iter_rows():
        if i in chosen and n >= max(min_values, 1):
            quantile, up_to, range_cut, range_up_to = found
            by_range = (range_cut, range_up_to) if range_cut else None
            cuts, below = by_range or code_counts.bin_cuts(quantile, up_to, n, value_bins)
            of_range = np.diff([0, *below, n]).tolist() if range_cut and i in range_labels else []
            labels = [label for label, size in zip(range_labels[i], of_range, strict=True) if size] if of_range else []
            scaled[i] = n, mean, std, *_with_values(cuts, below, n), labels
    return scaled


def _with_values(cuts, up_to, n):
    """The cuts, with the values up to each, that leave no bin without one of the n values."""
    kept: list[tuple[float, int]] = []
    for cut, below in zip(cuts, up_to, strict=True):
        if (kept[-1][1] if kept else 0) < below < n:
            kept.append((cut, below))
    return [cut for cut, _ in kept], [below for _, below in kept]
