"""Reads, checks and writes label tables in the MEDS label schema, and survival labels beside them.

A task is one file, or a folder of shards at any depth as ACES writes them. MEDS 0.4 has subject_id, prediction_time and
one value column; 0.3.3 has all four, nullable, of which one is used. The survival schema (time_to_event_days,
event_observed) is ours: MEDS has none. It may have a further column, competing_event: the person died, or had another
competing event, at time_to_event_days and before the event, which can then not come any more. Without it nobody had.
"""

from pathlib import Path

import polars as pl
import pyarrow as pa

from ehrwear_jax.data.formats import parquet

KEY_SCHEMA: parquet.Schema = {"subject_id": pl.Int64, "prediction_time": pl.Datetime("us")}
VALUE_TYPES: parquet.Schema = {
    "boolean_value": pl.Boolean,
    "integer_value": pl.Int64,
    "float_value": pl.Float32,
    "categorical_value": pl.String,
}
BINARY_LABEL_SCHEMA: parquet.Schema = {**KEY_SCHEMA, "boolean_value": pl.Boolean}
SURVIVAL_LABEL_SCHEMA: parquet.Schema = {**KEY_SCHEMA, "time_to_event_days": pl.Float64, "event_observed": pl.Boolean}
COMPETING = "competing_event"
_ARROW_TYPES = {
    "subject_id": pa.int64(),
    "prediction_time": pa.timestamp("us"),
    "boolean_value": pa.bool_(),
    "integer_value": pa.int64(),
    "float_value": pa.float32(),
    "categorical_value": pa.string(),
    "time_to_event_days": pa.float64(),
    "event_observed": pa.bool_(),
    COMPETING: pa.bool_(),
}


def _used_columns(labels: pl.DataFrame, source: str | Path) -> list[str]:
    """The value columns of the table: one of VALUE_TYPES, or those of the survival schema."""
    survival = [c for c in ("time_to_event_days", "event_observed") if c in labels.columns]
    there = [c for c in VALUE_TYPES if c in labels.columns]
    filled = [c for c in there if labels[c].null_count() < labels.height]
    if survival and filled:
        raise ValueError(f"{source}: holds both {filled[0]} and {survival[0]}")
    if survival:
        return list(SURVIVAL_LABEL_SCHEMA)[2:] + ([COMPETING] if COMPETING in labels.columns else [])
    if not there:
        raise ValueError(
            f"{source}: column 'boolean_value' (or integer_value, float_value, categorical_value, or "
            "'time_to_event_days' and 'event_observed') is missing; prediction times without labels are for "
            "config.embed.times"
        )
    if len(filled) > 1:
        raise ValueError(f"{source}: holds both {filled[0]} and {filled[1]}; a label table has one value per row")
    return filled or there[:1]


def validate_labels(labels: pl.DataFrame, source: str | Path) -> pl.DataFrame:
    """Checks labels; returns subject_id, prediction_time and the value column(s) in use.

    Raises:
      ValueError: no value column or several in use; a null; a value that is not finite; a negative time to event; an
        event and a competing one in a row; a repeated (subject_id, prediction_time).
    """
    used = _used_columns(labels, source)
    of_type = VALUE_TYPES | SURVIVAL_LABEL_SCHEMA | {COMPETING: pl.Boolean}
    schema: parquet.Schema = KEY_SCHEMA | {name: of_type[name] for name in used}
    labels = parquet.normalise(labels, schema, source)
    parquet.require_not_null(labels, labels.columns, source)
    for column in {"time_to_event_days", "float_value"}.intersection(used):
        bad, what = ~labels[column].is_finite(), "finite"
        if column == "time_to_event_days":
            bad, what = bad | (labels[column] < 0), "finite and not negative"
        if bad.any():
            row = parquet.first_true(bad)
            raise ValueError(f"{source}: row {row}: column '{column}' is {labels[column][row]}, must be {what}")
    if COMPETING in used and (both := labels["event_observed"] & labels[COMPETING]).any():
        row = parquet.first_true(both)
        raise ValueError(f"{source}: row {row}: event_observed and {COMPETING} are both true; the first event decides")
    repeated = labels.select(list(KEY_SCHEMA)).is_duplicated()
    if repeated.any():
        row = parquet.first_true(repeated)
        raise ValueError(
            f"{source}: row {row}: subject {labels['subject_id'][row]} has more than one label at "
            f"{labels['prediction_time'][row]}"
        )
    return labels


def write_labels(path: Path, labels: pl.DataFrame) -> None:
    """Writes labels by (subject_id, prediction_time) as MEDS 0.4: the value column alone, nothing nullable.

    Args:
      path: file.
      labels: as read_labels returns.

    Raises:
      ValueError: see validate_labels.
    """
    labels = validate_labels(labels, path).sort(list(KEY_SCHEMA))
    parquet.write_parquet(path, labels, _ARROW_TYPES, not_null=labels.columns)


def task_files(folder: Path, task: str) -> list[Path]:
    """The file(s) of a task: FOLDER/TASK.parquet, else all parquet files below FOLDER/TASK; [] if there are none.

    TASK may be a path, such as mortality/in_icu/first_24h.
    """
    folder = Path(folder)
    single = folder / f"{task}.parquet"
    if single.is_file():
        return [single]
    return parquet.parquet_files(folder / task) if task and (folder / task).is_dir() else []


def tasks(folder: Path) -> list[str]:
    """Tasks that task_files finds; numbered files and folders named like a split are taken as shards of theirs."""
    folder, names = Path(folder), set()
    for path in parquet.parquet_files(folder):
        *parts, stem = path.relative_to(folder).with_suffix("").parts
        if not stem.isdigit():
            parts.append(stem)
        while len(parts) > 1 and parts[-1] in ("train", "tuning", "held_out"):
            parts.pop()
        names.add("/".join(parts) or stem)
    return sorted(names)


def read_labels(path: Path | list[Path]) -> pl.DataFrame:
    """Labels of one task, validated: subject_id, prediction_time and its value column(s), in the order of the files.

    Args:
      path: a file, or the shards of a task; those without rows say nothing about the task's type.

    Raises:
      FileNotFoundError: no such file.
      ValueError: see validate_labels; shards with different value columns, or the same label in two.
    """
    paths = [Path(path)] if isinstance(path, str | Path) else [Path(p) for p in path]
    if not paths:
        raise FileNotFoundError("no label file")
    shards = [validate_labels(parquet.read_parquet(p), p) for p in paths]
    filled = [(p, shard) for p, shard in zip(paths, shards, strict=True) if shard.height]
    if not filled:
        return shards[0]
    if any(COMPETING in shard.columns for _, shard in filled):
        filled = [(p, _with_competing(shard)) for p, shard in filled]
    first_path, first = filled[0]
    for p, shard in filled:
        if shard.columns != first.columns:
            raise ValueError(f"{p}: holds {shard.columns[2]}, but {first_path} holds {first.columns[2]}")
    whole = pl.concat([shard.with_columns(pl.lit(str(p)).alias("file")) for p, shard in filled])
    repeated = whole.filter(~pl.struct(list(KEY_SCHEMA)).is_first_distinct())
    if repeated.height:
        row = repeated.row(0, named=True)
        raise ValueError(
            f"{row['file']}: subject {row['subject_id']} at {row['prediction_time']} has a label in another file too"
        )
    return whole.drop("file")


def _with_competing(table: pl.DataFrame) -> pl.DataFrame:
    """Survival labels with the column competing_event: nobody had any where it is missing."""
    if COMPETING in table.columns or "event_observed" not in table.columns:
        return table
    return table.with_columns(pl.lit(False).alias(COMPETING))


def read_times(times: pl.DataFrame | str | Path) -> pl.DataFrame:
    """subject_id i64, prediction_time us of a frame or a parquet file, further columns left out.

    Raises:
      FileNotFoundError, ValueError: naming what is missing or null.
    """
    name = "times" if isinstance(times, pl.DataFrame) else str(times)
    table = times if isinstance(times, pl.DataFrame) else parquet.read_parquet(Path(times))
    if missing := [c for c in KEY_SCHEMA if c not in table.columns]:
        raise ValueError(f"{name}: no column {missing[0]!r}; there are {', '.join(table.columns) or 'none'}")
    table = parquet.normalise(table.select(list(KEY_SCHEMA)), KEY_SCHEMA, name)
    parquet.require_not_null(table, list(KEY_SCHEMA), name)
    return table
