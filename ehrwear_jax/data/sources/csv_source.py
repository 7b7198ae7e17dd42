"""Reads and checks the files of public data sets; counts what each step keeps; draws by hashes of ids."""

import contextlib
import json
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike

from ehrwear_jax.data.formats import parquet


class Ledger:
    """Counts what each step kept and dropped, and why: printed as it happens, written to counts.json.

    Args:
      name: prefix of the printed lines.
      progress: whether to print.
    """

    def __init__(self, name: str, progress: bool) -> None:
        self.name = name
        self.progress = progress
        self.records: list[dict] = []

    def add(self, step: str, n: int, dropped: int = 0, reason: str = "") -> None:
        """Notes that a step kept `n` rows and dropped `dropped` for `reason`."""
        n, dropped = int(n), int(dropped)
        self.records.append({"step": step, "n": n, "dropped": dropped, "reason": reason})
        if self.progress:
            left_out = f" ({dropped:,} dropped)" if dropped else ""
            why = f": {reason}" if reason else ""
            print(f"{self.name}: {step}: {n:,}{left_out}{why}", flush=True)

    def published(self, step: str, n: int, expected: int, strict: bool) -> None:
        """Notes a count of the source and compares it with the published one.

        Raises:
          ValueError: they differ and `strict`.
        """
        if n != expected and strict:
            raise ValueError(
                f"{self.name}: {step}: found {n:,}, published {expected:,}; pass strict=False to "
                "build from a changed source"
            )
        same = "as published" if n == expected else f"published: {expected:,}"
        self.add(step, n, 0, same)

    def write(self, root: Path) -> None:
        """Writes ROOT/counts.json."""
        text = json.dumps(self.records, indent=2) + "\n"
        (Path(root) / "counts.json").write_text(text, encoding="utf-8")


@contextlib.contextmanager
def staged(root: Path) -> Iterator[Path]:
    """A folder to write a raw dataset to, whose parts appear in `root` when the block ends, counts.json last.

    What an interrupted call left behind is removed by the next one.

    Raises:
      ValueError: `root` holds a dataset that such a call did not leave behind.
    """
    root = Path(root)
    building = root / ".building"
    parts = ("counts.json", "subject_ids.csv", "labels", "wearable", "meds")
    in_use = [name for name in parts if (root / name).exists()]
    if in_use and not building.exists():
        raise ValueError(f"{root / in_use[0]}: already exists; write to an empty folder")
    for name in in_use:
        remove = shutil.rmtree if (root / name).is_dir() else Path.unlink
        remove(root / name)
    if building.exists():
        shutil.rmtree(building)
    building.mkdir(parents=True)
    yield building
    for name in reversed(parts):
        if (building / name).exists():
            (building / name).rename(root / name)
    building.rmdir()


def require_file(path: Path, how_to_get: str) -> Path:
    """The path, or FileNotFoundError that says how to get the file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; {how_to_get}")
    return path


def read_csv(
    path: Path, schema: Mapping[str, parquet.DType], how_to_get: str, *, required: tuple[str, ...] = ()
) -> pl.DataFrame:
    """A CSV as R writes it: header, NA or an empty field for missing; columns not named are ignored.

    Args:
      path: file.
      schema: column -> dtype of the result, in this order. Integers may be written as 12.0.
      how_to_get: end of the sentence that a missing file raises.
      required: columns that must not be missing in any row.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a column is missing, or a value cannot be read; names file, column and data row
        (1 is the first below the header).
    """
    require_file(path, how_to_get)
    try:
        raw = pl.read_csv(path, infer_schema=False, null_values=["NA", ""])
    except (pl.exceptions.PolarsError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: not a readable CSV file ({reason})") from error
    columns = []
    for name, dtype in schema.items():
        if name not in raw.columns:
            raise ValueError(f"{path}: column '{name}' is missing (found {raw.columns})")
        text = raw[name]
        if dtype == pl.String:
            column = text
        else:
            number = text.str.strip_chars().cast(pl.Float64, strict=False)
            bad = text.is_not_null() & ~number.is_finite().fill_null(False)
            what = "not a finite number"
            if dtype.is_integer() and not bad.any():
                bad = (number != number.round(0)).fill_null(False)
                what = "not a whole number"
            if bad.any():
                row = parquet.first_true(bad)
                raise ValueError(f"{path}: row {row + 1}: column '{name}' is '{text[row]}', {what}")
            column = number.cast(dtype)
        if name in required and column.null_count():
            row = parquet.first_true(column.is_null())
            raise ValueError(f"{path}: row {row + 1}: column '{name}' is missing")
        columns.append(column)
    return pl.DataFrame(columns)


def read_npz(path: Path, shapes: Mapping[str, tuple], how_to_get: str) -> dict[str, np.ndarray]:
    """Arrays of an .npz file that share their first axis.

    Args:
      path: file.
      shapes: name -> shape without the first axis.
      how_to_get: end of the sentence that a missing file raises.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not an .npz file, or an array is missing or has another shape; names file and array.
    """
    require_file(path, how_to_get)
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in shapes if name in stored}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise ValueError(f"{path}: not a readable .npz file ({error})") from error
    for name, shape in shapes.items():
        if name not in arrays:
            raise ValueError(f"{path}: array '{name}' is missing (found {sorted(arrays)})")
        rows = len(arrays[next(iter(shapes))])
        if arrays[name].shape != (rows, *shape):
            raise ValueError(f"{path}: array '{name}' has shape {arrays[name].shape}, expected {(rows, *shape)}")
    return arrays


def require_values(df: pl.DataFrame, column: str, allowed: Iterable[Any], source: str | Path) -> None:
    """Raises ValueError naming the first row whose non-null value is not in `allowed`."""
    bad = df[column].is_not_null() & ~df[column].is_in(list(allowed))
    if bad.any():
        row = parquet.first_true(bad)
        known = ", ".join(str(value) for value in allowed)
        raise ValueError(f"{source}: row {row + 1}: column '{column}' is '{df[column][row]}', none of {known}")


def require_unique(df: pl.DataFrame, column: str, source: str | Path) -> None:
    """Raises ValueError naming the first row whose value appears more than once."""
    repeated = df[column].is_duplicated()
    if repeated.any():
        row = parquet.first_true(repeated)
        raise ValueError(f"{source}: row {row + 1}: column '{column}' holds {df[column][row]} more than once")


def hashed_uniform(ids_N: ArrayLike, seed: int, purpose: str) -> np.ndarray:
    """float64 [N] in [0, 1): a draw per id that depends on (id, seed, purpose) alone.

    The finaliser of SplitMix64 (Steele, Lea and Flood, 2014), so that the draw of a person changes
    neither with the order of rows nor with who else is in the data or with a library's version.
    """
    mask = (1 << 64) - 1
    salt = seed & mask
    for byte in purpose.encode():  # FNV-1a over the purpose
        salt = ((salt ^ byte) * 0x100000001B3 + 0x9E3779B97F4A7C15) & mask
    x_N = np.asarray(ids_N, np.int64).astype(np.uint64)
    with np.errstate(over="ignore"):
        for _ in range(2):
            x_N = x_N * np.uint64(0x9E3779B97F4A7C15) + np.uint64(salt)
            x_N = (x_N ^ (x_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x_N = (x_N ^ (x_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            x_N = x_N ^ (x_N >> np.uint64(31))
    return (x_N >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def hashed_splits(groups_N: ArrayLike, seed: int) -> np.ndarray:
    """str [N]: train 80%, tuning 10%, held_out 10% of the groups in expectation, by hashed draw."""
    draw_N = hashed_uniform(groups_N, seed, "split")
    return np.where(draw_N < 0.8, "train", np.where(draw_N < 0.9, "tuning", "held_out"))


def timestamps(us_N: ArrayLike) -> pl.Series:
    """int64 microseconds since the epoch -> Datetime('us')."""
    return pl.Series("time", np.asarray(us_N, np.int64)).cast(pl.Datetime("us"))


def day_number(date: str) -> int:
    """Days from 1970-01-01 to an ISO date."""
    return int(np.datetime64(date, "D").astype(np.int64))
