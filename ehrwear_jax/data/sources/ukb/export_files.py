"""Reads tables of UK Biobank a block at a time: bulk text files, and exports of the Research Analysis Platform.

A table is `<name>.txt`, `.tsv`, `.tab` or `.csv`, perhaps with `.gz`. The bulk files are separated by tabs and quote
nothing, so that a quotation mark in a drug's name is part of it; exports are CSV. Columns may have the name of their
entity before them (`hesin.eid`). Bytes that are no UTF-8, such as the micro sign of ISO 8859-1 in units, are read as
ISO 8859-1, each by itself: files hold both.

Memory: one block, and what is made of it.
"""

import codecs
import gzip
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, cast

import polars as pl

from ehrwear_jax.data.formats import parquet
from ehrwear_jax.data.sources.csv_source import Ledger

BLOCK_BYTES = 64 << 20
SUFFIXES = (".txt", ".tsv", ".tab", ".csv")
_ERRORS = "ehrwear_byte_as_latin1"
STRANGER = "of nobody in the participants' table, or of somebody who withdrew"


def _as_latin1(error: UnicodeError) -> tuple[str, int]:
    """Decodes the bytes that are no UTF-8 as ISO 8859-1."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return error.object[error.start : error.end].decode("latin-1"), error.end


codecs.register_error(_ERRORS, _as_latin1)


def find_files(folder: Path, stems: Sequence[str]) -> list[Path]:
    """Files of a folder whose name without its suffixes matches one of the patterns `stems`, in order of names."""
    found = []
    for path in sorted(Path(folder).iterdir()):
        name = path.name.removesuffix(".gz")
        suffix = Path(name).suffix.lower()
        if suffix in SUFFIXES and any(re.fullmatch(s, name[: -len(suffix)], re.IGNORECASE) for s in stems):
            found.append(path)
    return found


def find_table(folder: Path, name: str) -> Path | None:
    """The one file of a table, None without any.

    Raises:
      ValueError: there are several, of which only one can be meant.
    """
    found = find_files(folder, [name, rf".*\.{name}"])
    if len(found) > 1:
        raise ValueError(f"{found[0]} and {found[1].name}: both are the table {name}; leave one of them")
    return found[0] if found else None


def _column(name: str) -> str:
    """A column's name without its entity, in lower case: hesin.eid -> eid; f.31.0.0 and 31-0.0 stay as they are."""
    name = name.strip().strip('"').lower()
    entity = re.fullmatch(r"[a-z][a-z_0-9]+\.([a-z][a-z_0-9]*)", name)
    return entity[1] if entity else name


def _open(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path, "rb")) if path.suffix == ".gz" else open(path, "rb")


def header(path: Path) -> list[str]:
    """The columns of a file, as `blocks` names them."""
    with parquet.reading(path), _open(path) as file:
        line = file.readline().decode("utf-8-sig", _ERRORS).rstrip("\r\n")
    return [_column(c) for c in line.split("\t" if "\t" in line else ",")]


def blocks(
    path: Path, columns: Sequence[str], required: Sequence[str] = (), block_bytes: int = 0
) -> Iterator[pl.DataFrame]:
    """The rows of a file, as text: columns `columns` in this order, null where they are empty or the file has no such.

    Args:
      path: file. columns: names without the entity. required: those that the file must have.
      block_bytes: of the file that are read at a time, about; 0: BLOCK_BYTES.

    Raises:
      FileNotFoundError, PermissionError: the file cannot be read.
      ValueError: naming file and column, or file and the rows of a block: a column is missing, or a row has too many.
    """
    names = header(path)
    missing = [c for c in required if c not in names]
    if missing:
        raise ValueError(f"{path}: column '{missing[0]}' is missing (found {names[:20]})")
    tabs = "\t" in _first_line(path)
    wanted = [(i, c) for c in columns for i in [names.index(c) if c in names else -1]]
    there = [i for i, _ in wanted if i >= 0]
    first_row = 1
    for text in _pieces(path, block_bytes or BLOCK_BYTES):
        try:
            raw = pl.read_csv(text, has_header=False, separator="\t" if tabs else ",", infer_schema=False,
                              quote_char=None if tabs else '"', schema=dict.fromkeys(names_unique(names), pl.String),
                              columns=there)  # fmt: skip
        except pl.exceptions.PolarsError as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{path}: rows from {first_row} on: {reason}") from error
        first_row += raw.height
        keyed = names_unique(names)
        yield raw.select(
            (pl.col(keyed[i]).str.strip_chars().replace("", None) if i >= 0 else pl.lit(None, pl.String)).alias(c)
            for i, c in wanted
        )


def names_unique(names: Sequence[str]) -> list[str]:
    """The names with their positions, so that a name that is there twice is no fault of columns that nobody reads."""
    return [f"{i}:{name}" for i, name in enumerate(names)]


def _first_line(path: Path) -> str:
    with _open(path) as file:
        return file.readline().decode("utf-8-sig", _ERRORS)


def _pieces(path: Path, block_bytes: int) -> Iterator[bytes]:
    """The file below its header in pieces of whole lines, as UTF-8."""
    with parquet.reading(path), _open(path) as file:
        file.readline()
        rest = b""
        while block := file.read(block_bytes):
            rest += block
            end = rest.rfind(b"\n") + 1
            if end:
                yield _utf8(rest[:end])
                rest = rest[end:]
        if rest.strip():
            yield _utf8(rest)


def _utf8(text: bytes) -> bytes:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return text.decode("utf-8", _ERRORS).encode()
    return text


def ids(column: str = "eid") -> pl.Expr:
    """subject_id i64 of a column of ids as text; null where it is no whole number."""
    return pl.col(column).cast(pl.Int64, strict=False).alias("subject_id")


class Tally:
    """Counts the rows of a table: read = kept + dropped by reason.

    Args:
      table: its name, for the ledger.
    """

    def __init__(self, table: str) -> None:
        self.table = table
        self.n_read = 0
        self.dropped: Counter[str] = Counter()

    def keep(self, rows: pl.DataFrame, *reasons: tuple[pl.Expr, str] | pl.Expr) -> pl.DataFrame:
        """The rows that no reason drops, which are counted; of several reasons the first one counts.

        Args:
          reasons: (which rows, reason), or an expression of the reason itself, null for rows that stay.
        """
        told = [r if isinstance(r, pl.Expr) else pl.when(r[0].fill_null(False)).then(pl.lit(r[1])) for r in reasons]
        rows = rows.with_columns(pl.coalesce(*told, pl.lit(None, pl.String)).alias("why"))
        for why, n in rows.group_by("why").len().drop_nulls("why").sort("why").iter_rows():
            self.dropped[why] += n
        return rows.filter(pl.col("why").is_null()).drop("why")

    def drop(self, reason: str, n: int) -> None:
        """Counts rows that are dropped elsewhere."""
        if n:
            self.dropped[reason] += int(n)

    @property
    def n_kept(self) -> int:
        """Rows read less rows dropped."""
        return self.n_read - sum(self.dropped.values())

    def report(self, ledger: Ledger) -> None:
        """Writes rows read, and then what is left after each reason."""
        left = self.n_read
        ledger.add(f"{self.table}: rows read", left)
        for reason, n in sorted(self.dropped.items()):
            left -= n
            ledger.add(f"{self.table}: rows kept", left, n, reason)


def read_in_blocks(
    path: Path, columns: Sequence[str], tally: Tally, one: Callable[[pl.DataFrame], pl.DataFrame]
) -> Iterator[pl.DataFrame]:
    """What `one` makes of each block; rows are counted as read."""
    for block in blocks(path, columns, ("eid",)):
        tally.n_read += block.height
        yield one(block)
