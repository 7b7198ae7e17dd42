"""Reads and writes parquet files: dtypes without loss, nulls, contiguous subjects, files that appear whole."""

import contextlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ehrwear_jax.runtime import files

DType = pl.DataType | type[pl.DataType]
Schema = dict[str, DType]
"""Column -> dtype, in the order of the columns."""

# Names under which a time zone without offset is written.
UTC_NAMES = ("UTC", "Etc/UTC", "Z", "+00:00", "Zulu", "Etc/Zulu", "Universal", "Etc/Universal", "GMT", "Etc/GMT")


def _named(error: OSError) -> OSError:
    """The error, marked as saying already which file it is about: a block around it passes it on as it is."""
    error.names_its_file = True  # type: ignore[attr-defined]
    return error


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what the parquet libraries raise inside the block into one sentence that names the file.

    Raises:
      FileNotFoundError, PermissionError: no such file, or it may not be read.
      ValueError: torn, or not parquet.
    """
    try:
        if not path.is_file():
            raise _named(FileNotFoundError(f"{path}: no such file"))
        yield
    except PermissionError as error:
        raise _named(PermissionError(f"{path}: no permission to read it")) from error
    except FileNotFoundError:
        raise
    except (pl.exceptions.PolarsError, pa.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: not a readable parquet file ({reason})") from error


def read_parquet(path: Path, columns: list[str] | None = None) -> pl.DataFrame:
    """A parquet file, or some of its columns; errors as `reading`, ValueError for a column that is not there."""
    with reading(path):
        there = pq.read_schema(path).names if columns else []
    for name in columns or ():
        if name not in there:
            raise ValueError(f"{path}: column '{name}' is missing (found {there})")
    with reading(path):
        return pl.read_parquet(path, columns=columns, hive_partitioning=False)


def row_batches(path: Path, columns: list[str], max_rows: int) -> Iterator[tuple[int, pl.DataFrame]]:
    """(number of its first row, rows) of consecutive parts of about max_rows; one part, maybe empty, of a small file.

    Memory: one part, however large the file's row groups are. Errors as read_parquet.
    """
    with reading(path):
        file = pq.ParquetFile(path, buffer_size=1 << 20)
    with file:
        if file.metadata.num_rows <= max_rows:
            yield 0, read_parquet(path, columns)
            return
        batches, first_row, waiting = file.iter_batches(max_rows, columns=columns), 0, []
        while True:
            with reading(path):
                batch = next(batches, None)
            waiting += [] if batch is None else [batch]
            n = sum(b.num_rows for b in waiting)
            if n and (batch is None or n >= max_rows):
                yield first_row, cast(pl.DataFrame, pl.from_arrow(pa.Table.from_batches(waiting)))
                first_row, waiting = first_row + n, []
            if batch is None:
                return


def first_true(mask: pl.Series) -> int:
    """Row of the first True of a mask that has one."""
    return int(mask.arg_max() or 0)


def _cast(column: pl.Series, dtype: DType, where: str) -> pl.Series:
    """Casts, but never a date to midnight, a zoned time other than UTC to a naive one, or a 0/1 to a boolean."""
    mine = column.dtype
    if isinstance(mine, pl.Datetime) and mine.time_zone is not None:
        if mine.time_zone not in UTC_NAMES or not isinstance(dtype, pl.Datetime):
            raise ValueError(f"{where} has time zone {mine.time_zone}; write times without a zone, or in UTC")
        column = column.dt.replace_time_zone(None)  # stored as UTC: the clock of the result is UTC
    refused = (
        (isinstance(dtype, pl.Datetime) and not isinstance(mine, pl.Datetime))
        or (dtype == pl.Boolean)
        or (dtype == pl.String and mine.is_numeric())
        or (dtype.is_numeric() and not mine.is_numeric())
    )
    if refused and mine != pl.Null:
        raise ValueError(f"{where} is {mine}, expected {dtype}")
    if dtype.is_integer() and mine.is_float():
        fractional = ~((column % 1) == 0)
        if fractional.any():
            row = first_true(fractional)
            raise ValueError(f"{where} holds {column[row]} in row {row}, expected {dtype}")
    try:
        return column.cast(dtype)
    except pl.exceptions.PolarsError as error:
        lost = (column.cast(dtype, strict=False).is_null() & column.is_not_null()) if mine.is_numeric() else None
        if lost is not None and lost.any():
            row = first_true(lost)
            raise ValueError(f"{where} holds {column[row]} in row {row}, which {dtype} cannot hold") from error
        reason = str(error).splitlines()[0]
        raise ValueError(f"{where} is {mine} and cannot become {dtype} ({reason})") from error


def normalise(
    df: pl.DataFrame, schema: Mapping[str, DType], source: str | Path, *, optional: Iterable[str] = ()
) -> pl.DataFrame:
    """Selects the columns of `schema` in its order and casts them without loss of meaning.

    Args:
      df: any frame.
      schema: column -> dtype of the result.
      source: file or words for the error messages.
      optional: columns that become all-null when absent.

    Raises:
      ValueError: a column is absent, has a time zone other than UTC, or holds a value that the type cannot hold.
    """
    columns: list[pl.Series | pl.Expr] = []
    for name, dtype in schema.items():
        if name not in df.columns:
            if name not in optional:
                raise ValueError(f"{source}: column '{name}' is missing (found {df.columns})")
            columns.append(pl.lit(None, dtype=dtype).alias(name))
            continue
        column = df[name]
        if column.dtype != dtype:
            column = _cast(column, dtype, f"{source}: column '{name}'")
        columns.append(column)
    return df.select(columns) if df.width else pl.DataFrame(schema=schema)


def require_not_null(df: pl.DataFrame, columns: Iterable[str], source: str | Path) -> None:
    """Raises ValueError naming the first row (0-based) of a column that must not be null."""
    for name in columns:
        if df[name].null_count():
            row = first_true(df[name].is_null())
            raise ValueError(f"{source}: row {row}: column '{name}' is null")


def require_contiguous(subject_id_N: np.ndarray, source: str | Path, row_N: np.ndarray | None = None) -> None:
    """Raises ValueError if the rows of a subject are interrupted by another subject's.

    row_N: what to call each row in the message; by default its position.
    """
    if not len(subject_id_N):
        return
    first_row_R = np.flatnonzero(np.r_[True, subject_id_N[1:] != subject_id_N[:-1]])
    run_subject_R = subject_id_N[first_row_R]
    _, first_run = np.unique(run_subject_R, return_index=True)
    if len(first_run) == len(run_subject_R):
        return
    again = np.setdiff1d(np.arange(len(run_subject_R)), first_run)[0]
    row = first_row_R[again] if row_N is None else row_N[first_row_R[again]]
    raise ValueError(
        f"{source}: row {row}: column 'subject_id': rows of subject {run_subject_R[again]} are not contiguous"
    )


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """As files.replacing; what the operating system and the parquet libraries raise becomes one sentence.

    Raises:
      OSError (PermissionError where that is the reason): naming `path`, for instance with a full disk; what was
        written so far is removed.
    """
    try:
        with files.replacing(path) as partial:
            yield partial
    except (OSError, pl.exceptions.PolarsError, pa.ArrowException, RuntimeError) as error:
        if getattr(error, "names_its_file", False):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if isinstance(error, PermissionError):
            raise _named(PermissionError(f"{path}: no permission to write it")) from error
        raise _named(OSError(f"{path}: cannot be written ({reason})")) from error


def write_parquet(
    path: Path,
    df: pl.DataFrame,
    arrow_types: dict[str, pa.DataType],
    *,
    not_null: Collection[str] = (),
    **options: Any,
) -> None:
    """Writes zstd parquet with exactly these Arrow types; errors as `writing`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    table = df.to_arrow()
    fields = [pa.field(name, arrow_types[name], nullable=name not in not_null) for name in df.columns]
    with writing(path) as partial:
        pq.write_table(table.cast(pa.schema(fields)), partial, compression="zstd", **options)


def write_frame(table: pl.DataFrame, path: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes a table of the product's own, with whatever types it has; errors as `writing`.

    Args:
      metadata: keys and values of the file.
    """
    with writing(path) as partial:
        table.write_parquet(partial, metadata=metadata)


@contextlib.contextmanager
def writing_table(path: Path) -> Iterator[Callable[[pl.DataFrame], None]]:
    """A function that appends frames of one schema to a parquet file, one or more row groups each; errors as `writing`.

    At least one frame must be appended, which may have no rows.
    """
    with writing(path) as partial, contextlib.ExitStack() as stack:
        writer = None

        def append(frame: pl.DataFrame) -> None:
            nonlocal writer
            table = frame.to_arrow()
            if writer is None:
                writer = stack.enter_context(pq.ParquetWriter(partial, table.schema, compression="zstd"))
            writer.write_table(table)

        yield append


def write_json(value: Any, path: Path) -> None:
    """Writes a JSON file; errors as `writing`."""
    with writing(path) as partial:
        partial.write_text(json.dumps(value, indent=1))


def shard_names(paths: Iterable[Path], root: Path) -> list[str]:
    """File names that are unique and tell where the shard came from."""
    return ["__".join(Path(p).relative_to(root).with_suffix("").parts) for p in paths]


def parquet_files(folder: Path) -> list[Path]:
    """All parquet files below `folder` in path order; hidden files (half-written ones) are not."""
    return sorted(
        path
        for path in Path(folder).rglob("*.parquet")
        if not any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)
    )
