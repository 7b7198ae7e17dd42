"""Computes tabular features at each prediction time for the baselines.

Every feature of an index row (subject, prediction time t) is computed from that subject's rows with
time <= t alone; a range of d days holds the rows with t - d < time <= t. What is fitted (which
codes become columns, which have values) is fitted on the training subjects.

Column names: `ehr__...` from events and demographics, `wear__...` from wearable windows.
"""

from collections.abc import Collection, Iterator

import numpy as np
import polars as pl

from ehrwear_jax.data import ages
from ehrwear_jax.data.formats.parquet import first_true
from ehrwear_jax.data.formats.times import DAY_US

EHR_RANGE_DAYS = 365
COUNT_RANGES_DAYS = (30, 365)
WEAR_RANGES_DAYS = (7, 30, None)  # None: everything so far
DAY_BINS = 4  # equal parts of the day for the time-of-day means
# Birth is the age feature; after death there is nothing to predict.
_NOT_FEATURES = ("MEDS_BIRTH", "MEDS_DEATH")


def feature_groups(features: pl.DataFrame) -> dict[str, list[str]]:
    """{"ehr": [...], "wear": [...]}: the feature columns of `build_features` by modality."""
    return {group: [name for name in features.columns if name.startswith(f"{group}__")] for group in ("ehr", "wear")}


def build_features(
    events: pl.DataFrame,
    subjects: pl.DataFrame,
    windows: pl.DataFrame | None,
    index: pl.DataFrame,
    *,
    train_subject_ids: Collection[int],
    max_codes: int = 64,
) -> pl.DataFrame:
    """Features of every index row, in the order of `index`.

    Per frequent code c: `ehr__c__last`, `__days_since`, `__mean_365d`, `__min_365d`, `__max_365d`,
    `__count_365d`, `__count` (the value features only where training events of c have values);
    `ehr__age_years`; `ehr__static__c` (the value, else 0/1); `ehr__n_events_30d`, `_365d`, `_all`;
    `ehr__days_since_last_event`, `ehr__days_since_first_event`.
    Per channel c and range r in 7d, 30d, all: `wear__c__mean_r`, `__std_r` (of window means),
    `__trend_r` (least-squares slope per day, from 3 windows on), `__mean_<hours>_r` (windows that
    end within those hours), all weighted by coverage over windows with a mean; `__within_std_r`
    (average of the windows' own std), `__min_r`, `__max_r`, `__coverage_r` (average over recorded
    windows); `wear__n_windows_r`, `wear__days_since_last`.

    Args:
      events: subject_id, time (null = static), code, numeric_value.
      subjects: subject_id (unique), birth_time (nullable) and perhaps max_age_years, the highest age that is told.
      windows: subject_id, time (the window's end) and per channel c: c__mean, c__std, c__min,
        c__max, c__coverage; None when there are no wearables.
      index: subject_id, prediction_time; repeated and unordered rows are fine.
      train_subject_ids: subjects that may be used to choose codes.
      max_codes: at most this many timed codes, and as many static ones: those that most training
        subjects have.

    Returns:
      subject_id, prediction_time and Float32 features, null where there is nothing to compute from.

    Raises:
      ValueError: a missing column, a null key, an index subject that `subjects` lacks.
    """
    _require(events, "events", ("subject_id", "time", "code", "numeric_value"))
    _require(subjects, "subjects", ("subject_id", "birth_time"))
    _require(index, "index", ("subject_id", "prediction_time"))
    if subjects["subject_id"].is_duplicated().any():
        raise ValueError("subjects: a subject_id occurs twice")
    unknown = index.join(subjects, on="subject_id", how="anti")
    if len(unknown):
        raise ValueError(f"index: subject {unknown['subject_id'][0]} is not in subjects")
    queries = _Queries(index)
    train = pl.Series(np.unique(np.fromiter(train_subject_ids, np.int64)))
    columns: dict[str, np.ndarray] = {}
    columns.update(_age(queries, subjects))
    columns.update(_static_features(queries, events, train, max_codes))
    columns.update(_event_features(queries, events, train, max_codes))
    if windows is not None:
        columns.update(_wear_features(queries, windows))
    features = [
        pl.Series(name, queries.unsort(values).astype(np.float32), nan_to_null=True) for name, values in columns.items()
    ]
    keys = index.select(pl.col("subject_id").cast(pl.Int64), pl.col("prediction_time").cast(pl.Datetime("us")))
    return keys.hstack(features)


def _require(df: pl.DataFrame, name: str, columns: Collection[str]) -> None:
    missing = [c for c in columns if c not in df.columns]
    if missing:
        raise ValueError(f"{name}: column {missing[0]!r} is missing")
    for key in ("subject_id", "prediction_time", "code"):
        if key in columns and df[key].null_count():
            row = first_true(df[key].is_null())
            raise ValueError(f"{name}: {key} is null in row {row}")


def _time_us(series: pl.Series) -> np.ndarray:
    return series.cast(pl.Datetime("us")).to_physical().to_numpy()


class _Queries:
    """Index rows sorted by (subject, time): neighbouring range sums then touch nearby memory."""

    def __init__(self, index: pl.DataFrame) -> None:
        subject_id, time = index["subject_id"].to_numpy(), _time_us(index["prediction_time"])
        self._order = np.lexsort((time, subject_id))
        self.subject_id, self.time = subject_id[self._order], time[self._order]
        self.ids, self.subject = np.unique(self.subject_id, return_inverse=True)

    def __len__(self) -> int:
        return len(self.time)

    def unsort(self, values: np.ndarray) -> np.ndarray:
        result = np.empty_like(values)
        result[self._order] = values
        return result

    def rows_of(self, df: pl.DataFrame) -> pl.DataFrame:
        """The timed rows of index subjects, sorted by (subject, time), ties in source order."""
        return df.filter(pl.col("time").is_not_null() & pl.col("subject_id").is_in(self.ids.tolist())).sort(
            "subject_id", "time", maintain_order=True
        )


class _Timeline:
    """Rows sorted by (subject, time), searchable by (subject, time) through one integer key."""

    def __init__(self, queries: _Queries, rows: pl.DataFrame) -> None:
        self.subject = np.searchsorted(queries.ids, rows["subject_id"].to_numpy())
        self.time = _time_us(rows["time"])
        self._times = np.unique(self.time)
        self.queries = queries
        self.key = self._key(self.subject, self.time)
        self._cache: dict[int | None, np.ndarray] = {}

    def _key(self, subject: np.ndarray, time: np.ndarray) -> np.ndarray:
        # The rank of a time is the number of distinct row times up to it; 0 precedes every row.
        rank = np.searchsorted(self._times, time, "right")
        return subject.astype(np.int64) * (len(self._times) + 1) + rank

    def query_key(self, days_back: int | None) -> np.ndarray:
        """Key of (subject, t - days_back) per query; None: before the subject's first row."""
        if days_back not in self._cache:
            q = self.queries
            self._cache[days_back] = (
                q.subject.astype(np.int64) * (len(self._times) + 1)
                if days_back is None
                else self._key(q.subject, q.time - days_back * DAY_US)
            )
        return self._cache[days_back]

    def until(self, key: np.ndarray, days_back: int | None) -> np.ndarray:
        """Per query, the number of rows (of the subset with these keys) up to t - days_back."""
        return np.searchsorted(key, self.query_key(days_back), "right")


def _reduce(ufunc: np.ufunc, values: np.ndarray, lo: np.ndarray, hi: np.ndarray) -> np.ndarray:
    """ufunc over values[lo:hi] per query, NaN where empty.

    Reduces each range by itself: differences of running sums would let rows outside a range (the
    future, other subjects) change the last bits.
    """
    padded = np.append(values.astype(np.float64), 0.0)
    bounds = np.stack([lo, np.maximum(lo, hi)], axis=1).ravel()
    return np.where(lo < hi, ufunc.reduceat(padded, bounds)[::2], np.nan) if len(lo) else padded[:0]


def _take(values: np.ndarray, position: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """values[position] where valid, else NaN."""
    result = np.full(len(position), np.nan)
    result[valid] = values[position[valid]]
    return result


def _age(queries: _Queries, subjects: pl.DataFrame) -> dict[str, np.ndarray]:
    rows = pl.DataFrame({"subject_id": queries.ids}).join(subjects, on="subject_id", how="left", maintain_order="left")
    limit = pl.col(ages.LIMIT) if ages.LIMIT in rows.columns else pl.lit(None, pl.Float64)
    times = pl.DataFrame({"time": queries.time}).cast(pl.Datetime("us"))
    of_query = rows.select(pl.col("birth_time").cast(pl.Datetime("us")), limit.alias("limit"))[queries.subject]
    age = times.hstack(of_query).select(ages.years(pl.col("birth_time"), pl.col("time"), pl.col("limit")))
    return {"ehr__age_years": age.to_series().to_numpy()}


def _frequent_codes(events: pl.DataFrame, train: pl.Series, max_codes: int) -> list[tuple[str, bool]]:
    """(code, has values) of the codes that most training subjects have; ties by code."""
    return (
        events.filter(
            pl.col("subject_id").is_in(train.to_list())
            & ~pl.col("code").str.split("//").list.first().is_in(_NOT_FEATURES)
        )
        .group_by("code")
        .agg(
            pl.col("subject_id").n_unique().alias("n"),
            pl.col("numeric_value").is_finite().any().fill_null(False).alias("has_values"),
        )
        .sort(["n", "code"], descending=[True, False])
        .head(max_codes)
        .select("code", "has_values")
        .rows()
    )


def _static_features(
    queries: _Queries, events: pl.DataFrame, train: pl.Series, max_codes: int
) -> dict[str, np.ndarray]:
    static = events.filter(pl.col("time").is_null())
    columns = {}
    for code, has_values in _frequent_codes(static, train, max_codes):
        rows = static.filter((pl.col("code") == code) & pl.col("subject_id").is_in(queries.ids.tolist()))
        if has_values:
            rows = rows.filter(pl.col("numeric_value").is_finite())
        position = np.searchsorted(queries.ids, rows["subject_id"].to_numpy())
        by_subject = np.full(len(queries.ids), np.nan if has_values else 0.0)
        by_subject[position] = rows["numeric_value"].to_numpy() if has_values else 1.0
        columns[f"ehr__static__{code}"] = by_subject[queries.subject]
    return columns


def _event_features(queries: _Queries, events: pl.DataFrame, train: pl.Series, max_codes: int) -> dict[str, np.ndarray]:
    timed = events.filter(
        pl.col("time").is_not_null() & ~pl.col("code").str.split("//").list.first().is_in(_NOT_FEATURES)
    )
    rows = queries.rows_of(timed)
    line = _Timeline(queries, rows)
    start, now = line.until(line.key, None), line.until(line.key, 0)
    any_so_far = now > start
    columns = {f"ehr__n_events_{days}d": (now - line.until(line.key, days)).astype(float) for days in COUNT_RANGES_DAYS}
    columns["ehr__n_events_all"] = (now - start).astype(float)
    for name, position in (("last", now - 1), ("first", start)):
        days = (queries.time - _take(line.time, position, any_so_far)) / DAY_US
        columns[f"ehr__days_since_{name}_event"] = days

    codes = _frequent_codes(timed, train, max_codes)
    value = rows["numeric_value"].cast(pl.Float64).to_numpy()
    for (code, has_values), at in zip(codes, _positions_by_code(rows, codes), strict=True):
        name, key = f"ehr__{code}", line.key[at]
        start, since, now = (line.until(key, days) for days in (None, EHR_RANGE_DAYS, 0))
        last_time = _take(line.time[at], now - 1, now > start)
        columns[f"{name}__days_since"] = (queries.time - last_time) / DAY_US
        columns[f"{name}__count_365d"] = (now - since).astype(float)
        columns[f"{name}__count"] = (now - start).astype(float)
        if not has_values:
            continue
        at = at[np.isfinite(value[at])]
        values, key = value[at], line.key[at]
        start, since, now = (line.until(key, days) for days in (None, EHR_RANGE_DAYS, 0))
        columns[f"{name}__last"] = _take(values, now - 1, now > start)
        total = _reduce(np.add, values, since, now)
        columns[f"{name}__mean_365d"] = total / np.maximum(now - since, 1)
        columns[f"{name}__min_365d"] = _reduce(np.minimum, values, since, now)
        columns[f"{name}__max_365d"] = _reduce(np.maximum, values, since, now)
    return columns


def _positions_by_code(rows: pl.DataFrame, codes: list[tuple[str, bool]]) -> Iterator[np.ndarray]:
    """Positions in `rows` of each code, ascending, so that (subject, time) order is kept."""
    number = pl.DataFrame({"code": [code for code, _ in codes]}, schema={"code": pl.String})
    code_of = (
        rows.select("code")
        .join(number.with_row_index("number"), on="code", how="left", maintain_order="left")
        .get_column("number")
        .fill_null(len(codes))
        .to_numpy()
    )
    order = np.argsort(code_of, kind="stable")
    bounds = np.searchsorted(code_of[order], np.arange(len(codes) + 1))
    for lo, hi in zip(bounds[:-1], bounds[1:], strict=True):
        yield order[lo:hi]


def _wear_features(queries: _Queries, windows: pl.DataFrame) -> dict[str, np.ndarray]:
    _require(windows, "windows", ("subject_id", "time"))
    if windows["time"].null_count():
        raise ValueError(f"windows: time is null in row {first_true(windows['time'].is_null())}")
    channels = [c.removesuffix("__mean") for c in windows.columns if c.endswith("__mean")]
    parts = ("mean", "std", "min", "max", "coverage")
    _require(windows, "windows", [f"{c}__{part}" for c in channels for part in parts])
    rows = queries.rows_of(windows)
    line = _Timeline(queries, rows)
    # A window that ends at midnight belongs to the day that it closes.
    day_bin = ((line.time - 1) % DAY_US) * DAY_BINS // DAY_US
    columns = {}
    worn = np.zeros(len(rows), bool)
    for channel in channels:
        parts_of = {part: rows[f"{channel}__{part}"].cast(pl.Float64).to_numpy() for part in parts}
        worn |= np.isfinite(parts_of["mean"]) & (parts_of["coverage"] > 0)
        columns.update(_channel_features(line, f"wear__{channel}", parts_of, day_bin))
    now = line.until(line.key, 0)
    for days in WEAR_RANGES_DAYS:
        n_windows = now - line.until(line.key, days)
        columns[f"wear__n_windows_{_range_name(days)}"] = n_windows.astype(float)
    at = np.flatnonzero(worn)
    start, now = line.until(line.key[at], None), line.until(line.key[at], 0)
    last_time = _take(line.time[at], now - 1, now > start)
    columns["wear__days_since_last"] = (queries.time - last_time) / DAY_US
    return columns


def _range_name(days: int | None) -> str:
    return "all" if days is None else f"{days}d"


def _channel_features(
    line: _Timeline, name: str, parts: dict[str, np.ndarray], day_bin: np.ndarray
) -> dict[str, np.ndarray]:
    at = np.flatnonzero(np.isfinite(parts["mean"]) & (parts["coverage"] > 0))
    weight, key, subject = parts["coverage"][at], line.key[at], line.subject[at]
    # Moments about the subject's first worn window: near the data, so that little cancels, and
    # known at every time at which a range is not empty.
    first = np.searchsorted(subject, np.arange(len(line.queries.ids)), "left")
    origin = _take(parts["mean"][at], first, first < len(at))
    x = parts["mean"][at] - origin[subject]
    day = (line.time[at] - line.time[at][first[subject]]) / DAY_US
    query_origin = origin[line.queries.subject]

    columns = {}
    for days in WEAR_RANGES_DAYS:
        suffix = _range_name(days)

        def total(values: np.ndarray, where: np.ndarray | slice = slice(None), days: int | None = days) -> np.ndarray:
            lo, now = (line.until(key[where], d) for d in (days, 0))
            return _reduce(np.add, values[where], lo, now)

        w, wx, wt = total(weight), total(weight * x), total(weight * day)
        columns[f"{name}__mean_{suffix}"] = query_origin + wx / w
        variance = total(weight * x**2) / w - (wx / w) ** 2
        columns[f"{name}__std_{suffix}"] = np.sqrt(np.maximum(variance, 0))
        spread = total(weight * day**2) - wt**2 / w
        defined = (total(np.ones(len(at))) >= 3) & (spread > 1e-9)
        together = total(weight * day * x) - wx * wt / w
        trend = np.divide(together, spread, out=np.full(len(spread), np.nan), where=defined)
        columns[f"{name}__trend_{suffix}"] = trend
        for number in range(DAY_BINS):
            inside = np.flatnonzero(day_bin[at] == number)
            hours = f"{24 * number / DAY_BINS:g}h_{24 * (number + 1) / DAY_BINS:g}h"
            mean = query_origin + total(weight * x, inside) / total(weight, inside)
            columns[f"{name}__mean_{hours}_{suffix}"] = mean
        for part, feature, ufunc in (
            ("std", "within_std", np.add),
            ("min", "min", np.minimum),
            ("max", "max", np.maximum),
            ("coverage", "coverage", np.add),
        ):
            present = np.flatnonzero(np.isfinite(parts[part]))
            lo, now = (line.until(line.key[present], d) for d in (days, 0))
            reduced = _reduce(ufunc, parts[part][present], lo, now)
            if ufunc is np.add:
                reduced /= np.maximum(now - lo, 1)
            columns[f"{name}__{feature}_{suffix}"] = reduced
    return columns
