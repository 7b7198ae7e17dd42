"""Reads tables of text or parquet in batches, and finds the line of a row when something is wrong with it."""

import csv
import gzip
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, cast

import polars as pl
import pyarrow as pa
import pyarrow.csv as pa_csv

from ehrwear_jax.data.formats import parquet
from ehrwear_jax.data.sources.csv_import.mapping import Layout

BLOCK_BYTES = 8 << 20  # of text that is read at a time
MAX_ROWS = 500_000  # of a parquet file that are read at a time


class Table(Protocol):
    """What text and parquet tables have in common.

    Attributes:
      path: the file.
      names: of its columns.
      ragged: rows of another number of fields that were passed over so far.
    """

    path: Path
    names: list[str]
    ragged: int

    def batches(self, columns: Sequence[str]) -> Iterator[tuple[int, pl.DataFrame]]:
        """(number of its first row, rows) of consecutive parts; rows are counted from 0.

        Raises:
          ValueError: the file cannot be read, or a row has another number of fields; names file and line.
        """
        ...

    def place(self, row: int) -> str:
        """ "line 12" of a row."""
        ...


def open_table(path: Path, layout: Layout, drop_bad: bool = False) -> Table:
    """A table of a file: parquet by its name, else text.

    Args:
      path: file. layout: how it is written.
      drop_bad: whether rows of another number of fields are passed over and counted.

    Raises:
      ValueError: the file has no header, or a name twice in it.
    """
    return ParquetTable(path) if path.suffix == ".parquet" else TextTable(path, layout, drop_bad)


def require_columns(table: Table, columns: Sequence[str], where: str = "line 1") -> None:
    """Raises ValueError for the first column that is not there; names the file, the header's line and the column."""
    for name in columns:
        if name not in table.names:
            raise ValueError(f"{table.path}: {where}: column '{name}' is missing (found {table.names})")


class ParquetTable:
    """A parquet file as a table."""

    def __init__(self, path: Path) -> None:
        self.path, self.ragged = path, 0
        with parquet.reading(path):
            self.names = list(pl.read_parquet_schema(path))

    def batches(self, columns: Sequence[str]) -> Iterator[tuple[int, pl.DataFrame]]:
        """See Table."""
        yield from parquet.row_batches(self.path, list(columns), MAX_ROWS)

    def place(self, row: int) -> str:
        """See Table; a parquet file has rows, counted from 0, and no lines."""
        return f"row {row}"


class TextTable:
    """A CSV file, perhaps with another delimiter or gzipped; all columns are text, null for Layout.missing."""

    def __init__(self, path: Path, layout: Layout, drop_bad: bool = False) -> None:
        self.path, self.layout, self.drop_bad, self.ragged = path, layout, drop_bad, 0
        self.header_lines = layout.skip_lines + (0 if layout.header else 1)
        self._empty = False
        self.names = self._header()

    # ------------------------------------------------------------------------------------------------------- reading
    def batches(self, columns: Sequence[str]) -> Iterator[tuple[int, pl.DataFrame]]:
        """See Table."""
        if self._empty:
            return
        layout, self.ragged = self.layout, 0
        read = pa_csv.ReadOptions(
            use_threads=False,
            block_size=BLOCK_BYTES,
            skip_rows=self.header_lines,
            column_names=self.names,
            encoding=layout.encoding,
        )
        parse = pa_csv.ParseOptions(
            delimiter=layout.delimiter,
            newlines_in_values=True,
            ignore_empty_lines=not layout.keep_empty,
            invalid_row_handler=self._pass_over,
        )
        convert = pa_csv.ConvertOptions(
            column_types={name: pa.string() for name in columns},
            include_columns=list(dict.fromkeys(columns)),
            null_values=list(layout.missing),
            strings_can_be_null=True,
        )
        first_row = 0
        try:
            with pa_csv.open_csv(self.path, read, parse, convert) as reader:
                for batch in reader:
                    rows = cast(pl.DataFrame, pl.from_arrow(batch))
                    if rows.height:
                        yield first_row, rows
                    first_row += rows.height
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise self._explained(error) from error

    def _pass_over(self, row: pa_csv.InvalidRow) -> str:
        del row
        self.ragged += 1
        return "skip" if self.drop_bad else "error"

    def _explained(self, error: Exception) -> ValueError:
        """One sentence for what the parser raised."""
        try:
            for line, fields in self._records():
                if len(fields) != len(self.names):
                    return ValueError(
                        f"{self.path}: line {line}: column '{self.names[min(len(fields), len(self.names)) - 1]}': the "
                        f"line has {len(fields)} fields, the table {len(self.names)} columns"
                    )
        except ValueError as unreadable:  # not of the given encoding
            return unreadable
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return ValueError(f"{self.path}: not a readable table of text ({reason})")

    # --------------------------------------------------------------------------------------------------------- lines
    def place(self, row: int) -> str:
        """See Table; reads the file from its beginning, as errors are rare."""
        n = -1
        for line, fields in self._records():
            n += len(fields) == len(self.names)
            if n == row:
                return f"line {line}"
        return f"row {row}"

    def _open(self) -> io.TextIOBase:
        encoding = "utf-8-sig" if self.layout.encoding.lower() in ("utf-8", "utf8") else self.layout.encoding
        opened = gzip.open if self.path.suffix == ".gz" else open
        return cast(io.TextIOBase, opened(self.path, "rt", encoding=encoding, newline=""))

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        """(line on which it ends, fields) of each record below the header; lines are counted from 1."""
        try:
            with self._open() as text:
                for _ in range(self.header_lines):
                    text.readline()
                reader = csv.reader(text, delimiter=self.layout.delimiter)
                for fields in reader:
                    if fields or self.layout.keep_empty:
                        yield self.header_lines + reader.line_num, fields or [""]
        except UnicodeError as error:
            raise ValueError(f"{self.path}: not text in {self.layout.encoding}; name its encoding") from error
        except (csv.Error, OSError, EOFError) as error:
            raise ValueError(f"{self.path}: not a readable table of text ({error})") from error

    def _header(self) -> list[str]:
        """Names of the columns; one more or less without name where lines end with a delimiter and the header not."""
        names = list(self.layout.header)
        try:
            with self._open() as text:
                for _ in range(self.layout.skip_lines):
                    text.readline()
                if not names:
                    names = next(csv.reader([text.readline()], delimiter=self.layout.delimiter), [])
        except (UnicodeError, OSError, EOFError, csv.Error) as error:
            raise ValueError(f"{self.path}: not text in {self.layout.encoding} ({error})") from error
        names = [name.strip() for name in names]
        if not any(names):
            raise ValueError(f"{self.path}: line {self.header_lines}: there is no header")
        first = next((fields for _, fields in self._records()), None)
        self._empty = first is None
        if first is not None and len(first) == len(names) + 1 and first[-1] == "":
            names.append("")
        if first is not None and len(first) == len(names) - 1 and names[-1] == "":
            names.pop()
        for i, name in enumerate(names):
            if name in names[:i]:  # a column that nobody asks for may be there twice
                names[i] = f"{name} ({names[:i].count(name) + 1})"
        return names


def sniff(path: Path) -> list[str]:
    """The first lines of a text file, gzipped or not; [] if it is no text."""
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with cast(io.TextIOBase, opened(path, "rt", encoding="utf-8-sig")) as text:
            return [text.readline(100_000).rstrip("\r\n") for _ in range(5)]
    except (UnicodeError, OSError, EOFError):
        return []


def likely_delimiter(line: str) -> str:
    """The delimiter that a header has most of: comma, semicolon or tab."""
    return max(",;\t", key=line.count)
