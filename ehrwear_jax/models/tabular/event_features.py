"""Computes features of events at each prediction time, as a sparse matrix over all codes and ancestors with columns.

An entry that is stored is known, zero too; one that is not stored is a count of none, a code that never occurred or a
value that is not known. Array suffixes: Q prediction times, P pairs of a prediction time and a code of its person.
"""

import dataclasses

import numpy as np
import polars as pl
from scipy import sparse

from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.models.tabular import timeline
from ehrwear_jax.models.tabular.code_columns import CodeColumns, is_feature, spelled

# kinds of columns, which encoder.py makes fit for a model
COUNT, SINCE, VALUE, FLAG = "count", "since", "value", "flag"


Days = tuple[float | None, ...]  # ranges before a prediction time, None: everything so far


@dataclasses.dataclass(frozen=True)
class Ranges:
    """Ranges of time, days before a prediction time, that features are computed over.

    Attributes:
      events: of counts and of levels of values. slopes: of their slopes.
      windows: of wearable windows. baselines: of those, whose means are compared with the mean of everything so far.
      since: days in which "time since" is told most finely (encoder.py).
    """

    events: Days = (30, 180, 365, None)
    slopes: Days = (365, None)
    windows: Days = (1, 7, 30, 90, None)
    baselines: Days = (1, 7, 30)
    since: float = 30.0

    @classmethod
    def of(cls, days: tuple[float, ...]) -> "Ranges":
        """The same ranges, and everything so far, for all; (): the defaults, which fit years."""
        return cls((*days, None), (*days, None), (*days, None), days, min(days)) if days else cls()

    def counts(self) -> list[tuple[str, str]]:
        """[(name, kind)] of the columns of a code."""
        return [(f"count_{range_name(d)}", COUNT) for d in self.events] + [("days_since", SINCE)]

    def general(self) -> list[tuple[str, str]]:
        """[(name, kind)] of the columns of all codes together."""
        counts = [(f"n_events_{range_name(d)}", COUNT) for d in self.events]
        return counts + [("days_since_last_event", SINCE), ("days_since_first_event", SINCE)]

    def values(self) -> list[tuple[str, str]]:
        """[(name, kind)] of the columns of a code with values."""
        out = ["last", "change", *(f"{f}_{range_name(d)}" for d in self.events for f in ("mean", "min", "max"))]
        return [(name, VALUE) for name in [*out, *(f"slope_{range_name(d)}" for d in self.slopes)]]


YEARS = Ranges()  # fit records of years


def range_name(days: float | None) -> str:
    """A range in the name of a column."""
    if days is None:
        return "all"
    return f"{days:g}d" if days == round(days) else f"{24 * days:g}h"


def column_names(codes: CodeColumns, ranges: Ranges = YEARS) -> list[tuple[str, str]]:
    """[(name, kind)] of the columns of `event_features`.

    ehr__n_events_<range>, ehr__days_since_last_event, _first_event; of a code without time ehr__static__<code> and,
    where it has values, ehr__static__<code>__value; of a code or ancestor ehr__<code>__count_<range>, __days_since;
    of a code with values __last, __change (last less the mean so far), __mean_<range>, __min_, __max_, __slope_ (per
    day).
    """
    out = [(f"ehr__{name}", kind) for name, kind in ranges.general()]
    for code, is_valued in codes.static.iter_rows():
        out.append((f"ehr__static__{code}", FLAG))
        out += [(f"ehr__static__{code}__value", VALUE)] * is_valued
    out += [(f"ehr__{code}__{name}", kind) for code in codes.timed["code"] for name, kind in ranges.counts()]
    valued = codes.timed.filter(pl.col("is_valued"))["code"]
    return out + [(f"ehr__{code}__{name}", kind) for code in valued for name, kind in ranges.values()]


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Timed rows grouped by (subject, column): sorted, with the owner of each group."""

    subject_G: np.ndarray  # subject of each group, ascending
    column_G: np.ndarray
    line: timeline.Groups
    value_N: np.ndarray

    @classmethod
    def of(cls, table: pl.DataFrame) -> "_Rows":
        """From subject, column, time, value; ties of time keep their order."""
        table = table.sort("subject", "column", "time", maintain_order=True)
        key = table.select("subject", "column").to_numpy()
        new_N = np.r_[True, (key[1:] != key[:-1]).any(axis=1)] if len(key) else np.zeros(0, bool)
        time_N, value_N = timeline.time_us(table["time"]), table["value"].cast(pl.Float64).to_numpy()
        first_G = key[new_N]
        return cls(first_G[:, 0], first_G[:, 1], timeline.Groups(np.cumsum(new_N) - 1, time_N), value_N)


class _Entries:
    """Entries of a sparse matrix, collected."""

    def __init__(self) -> None:
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, row_P: np.ndarray, column_P: np.ndarray, value_P: np.ndarray) -> None:
        """Takes the entries that are not NaN."""
        known_P = ~np.isnan(value_P)
        part = row_P[known_P], np.broadcast_to(column_P, row_P.shape)[known_P], value_P[known_P].astype(np.float32)
        self._parts.append(part)

    def matrix(self, shape: tuple[int, int]) -> sparse.csr_matrix:
        """All of them; zeros stay stored."""
        row, column, value = (np.concatenate(x) for x in zip(*self._parts, strict=True))
        return sparse.coo_matrix((value, (row, column)), shape).tocsr()


def event_features(
    events: pl.DataFrame, queries: pl.DataFrame, codes: CodeColumns, ranges: Ranges = Ranges()
) -> sparse.csr_matrix:
    """float32 [Q, columns of column_names] from each person's events until the prediction time.

    Args:
      events: subject_id, time (null: static), code, numeric_value, text_value, in source order.
      queries: subject_id, prediction_time.
    """
    subjects = queries.select("subject_id").unique().sort("subject_id").with_row_index("subject")
    subjects = subjects.with_columns(pl.col("subject").cast(pl.Int64))
    subject_Q = queries.join(subjects, on="subject_id", how="left", maintain_order="left")["subject"].to_numpy()
    time_Q = timeline.time_us(queries["prediction_time"])
    rows = events.filter(is_feature()).with_columns(spelled()).join(subjects, on="subject_id", maintain_order="left")
    timed = rows.filter(pl.col("time").is_not_null()).with_columns(pl.col("numeric_value").alias("value"))
    out = _Entries()
    _general(out, _Rows.of(timed.with_columns(column=pl.lit(0, pl.Int64))), subject_Q, time_Q, ranges)
    first = len(ranges.general())
    first = _static(out, rows.filter(pl.col("time").is_null()), codes, subject_Q, first)
    of_column = timed.select("subject", "code", "time", "value").join(codes.lineage, on="code", maintain_order="left")
    _counts(out, _Rows.of(of_column.drop("code")), (subject_Q, time_Q), first, ranges)
    first += len(ranges.counts()) * codes.timed.height
    valued = codes.timed.filter(pl.col("is_valued")).select("code").with_row_index("column")
    valued = valued.with_columns(pl.col("column").cast(pl.Int64))
    of_code = timed.filter(pl.col("value").is_finite()).join(valued, on="code", maintain_order="left")
    _values(out, _Rows.of(of_code), (subject_Q, time_Q), first, ranges)
    return out.matrix((queries.height, first + len(ranges.values()) * valued.height))


def _positive(n_P):
    """Counts as floats, NaN where none."""
    return np.where(n_P > 0, n_P, np.nan).astype(np.float64)


def _general(out, rows, subject_Q, time_Q, ranges):
    query_P, group_P = timeline.pairs(subject_Q, rows.subject_G)
    time_P = time_Q[query_P]
    start_P, now_P = (rows.line.until(group_P, time_P, d) for d in (None, 0))
    for k, days in enumerate(ranges.events):
        out.add(query_P, np.int64(k), _positive(now_P - rows.line.until(group_P, time_P, days)))
    for k, at_P in enumerate((now_P - 1, start_P), len(ranges.events)):
        since_P = (time_P - timeline.take(rows.line.time_N, at_P, now_P > start_P)) / DAY_US
        out.add(query_P, np.int64(k), since_P)


def _static(out, rows, codes, subject_Q, first):
    """Adds static facts; returns the column behind them."""
    for code, is_valued in codes.static.iter_rows():
        mine = rows.filter(pl.col("code") == code)
        for known in [mine] + ([mine.filter(pl.col("numeric_value").is_finite())] if is_valued else []):
            value_S = np.full(int(subject_Q.max(initial=-1)) + 1, np.nan)
            value_S[known["subject"].to_numpy()] = 1.0 if known is mine else known["numeric_value"].to_numpy()
            out.add(np.arange(len(subject_Q)), np.int64(first), value_S[subject_Q])
            first += 1
    return first


def _counts(out, rows, times, first, ranges):
    subject_Q, time_Q = times
    query_P, group_P = timeline.pairs(subject_Q, rows.subject_G)
    time_P, column_P = time_Q[query_P], first + len(ranges.counts()) * rows.column_G[group_P]
    start_P, now_P = (rows.line.until(group_P, time_P, d) for d in (None, 0))
    for k, days in enumerate(ranges.events):
        lo_P = start_P if days is None else rows.line.until(group_P, time_P, days)
        out.add(query_P, column_P + k, _positive(now_P - lo_P))
    since_P = (time_P - timeline.take(rows.line.time_N, now_P - 1, now_P > start_P)) / DAY_US
    out.add(query_P, column_P + len(ranges.events), since_P)


def _values(out, rows, times, first, ranges):
    subject_Q, time_Q = times
    query_P, group_P = timeline.pairs(subject_Q, rows.subject_G)
    time_P, column_P = time_Q[query_P], first + len(ranges.values()) * rows.column_G[group_P]
    lo = {days: rows.line.until(group_P, time_P, days) for days in ranges.events}
    start_P, now_P = lo[None], rows.line.until(group_P, time_P)
    # moments about each group's first value and time: near the data, and known whenever a range is not empty
    day_N = (rows.line.time_N - rows.line.time_N[rows.line.first_N]) / DAY_US
    x_N = rows.value_N - rows.value_N[rows.line.first_N]
    origin_P = timeline.take(rows.value_N, start_P, now_P > start_P)
    last_P = timeline.take(rows.value_N, now_P - 1, now_P > start_P)
    out.add(query_P, column_P, last_P)
    k = 2
    for days in ranges.events:
        n_P = np.maximum(now_P - lo[days], 1)
        mean_P = origin_P + timeline.reduce(np.add, x_N, lo[days], now_P) / n_P
        if days is None:
            out.add(query_P, column_P + 1, last_P - mean_P)
        low_P, high_P = (timeline.reduce(f, rows.value_N, lo[days], now_P) for f in (np.minimum, np.maximum))
        for values_P in (mean_P, low_P, high_P):
            out.add(query_P, column_P + k, values_P)
            k += 1
    for days in ranges.slopes:
        out.add(query_P, column_P + k, timeline.slope(day_N, x_N, lo[days], now_P))
        k += 1
