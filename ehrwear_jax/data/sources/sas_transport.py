"""Reads SAS transport files (XPT, version 5) column by column and in ranges of rows: memory follows the range.

The layout is that of SAS technical note TS-140: records of 80 bytes, one description per variable, then rows of fixed
width with numbers as IBM hexadecimal floating point. Rows are reached by their position, so that any range of a file of
80 million rows costs what it holds; readers that decode a file from its beginning pay for every range again.

Letters: N rows of a range, L bytes of a value.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from ehrwear_jax.data.sources.csv_source import require_file

_RECORD = 80
_LIBRARY = b"HEADER RECORD*******LIBRARY HEADER RECORD!!!!!!!"
_MEMBER = b"HEADER RECORD*******MEMBER  HEADER RECORD!!!!!!!"
_NAMES = b"HEADER RECORD*******NAMESTR HEADER RECORD!!!!!!!"
_ROWS = b"HEADER RECORD*******OBS     HEADER RECORD!!!!!!!"
_NAMES_AT = 7 * _RECORD  # after library (3 records), member and descriptor (2 + 2)
_BLANK, _ZERO = 0x20, ord("0")
# First byte of a missing number: ., ._ and .A to .Z; the other bytes are zero.
_MISSING = np.frombuffer(b"._ABCDEFGHIJKLMNOPQRSTUVWXYZ", np.uint8)


class Column(NamedTuple):
    """A variable: whether it holds numbers, its label, and where in a row of bytes it lies."""

    is_number: bool
    label: str
    offset: int
    length: int


def ibm_to_float(bytes_NxL: np.ndarray) -> np.ndarray:
    """float64 [N] of IBM hexadecimal floating point numbers, uint8 [N, L] with L from 2 to 8; NaN where missing.

    Zero is zero, whatever its exponent, and a fraction of 56 bits is rounded to the 53 that float64 holds.
    """
    full_Nx8 = np.zeros((len(bytes_NxL), 8), np.uint8)
    full_Nx8[:, : bytes_NxL.shape[1]] = bytes_NxL
    bits_N = full_Nx8.view(">u8")[:, 0].astype(np.uint64)
    fraction_N = bits_N & np.uint64((1 << 56) - 1)
    head_N = full_Nx8[:, 0]
    exponent_N = (head_N & 0x7F).astype(np.int32) * 4 - (64 * 4 + 56)
    value_N = np.ldexp(fraction_N.astype(np.float64), exponent_N)
    value_N[head_N >= 0x80] *= -1.0
    empty_N = fraction_N == 0
    if empty_N.any():
        value_N[empty_N] = np.where(np.isin(head_N[empty_N], _MISSING), np.nan, 0.0)
    return value_N


def digits(text_NxL: np.ndarray) -> np.ndarray:
    """float64 [N] of numbers written in digits, uint8 [N, L] with blanks around them; NaN for anything else."""
    value_N = np.zeros(len(text_NxL))
    n_digits_N = np.zeros(len(text_NxL), np.int32)
    bad_N = np.zeros(len(text_NxL), bool)
    for text_N in text_NxL.T:
        is_digit_N = (text_N >= _ZERO) & (text_N <= _ZERO + 9)
        value_N = np.where(is_digit_N, value_N * 10 + (text_N.astype(np.int32) - _ZERO), value_N)
        n_digits_N += is_digit_N
        bad_N |= ~is_digit_N & (text_N != _BLANK)
    value_N[bad_N | (n_digits_N == 0)] = np.nan
    return value_N


class TransportFile:
    """One data set in a transport file.

    Attributes:
      path: the file. columns: {name in capitals: Column} in the order of the file. n_rows: number of rows.
    """

    def __init__(self, path: Path, how_to_get: str = "") -> None:
        """Reads the descriptions of the columns.

        Raises:
          FileNotFoundError: no such file; the message ends with how_to_get.
          ValueError: not a transport file of version 5 with one data set, or cut off.
        """
        self.path = require_file(path, how_to_get)
        with open(self.path, "rb") as file:
            head = file.read(_NAMES_AT + _RECORD)
            if not head.startswith(_LIBRARY) or head[3 * _RECORD :][: len(_MEMBER)] != _MEMBER:
                raise ValueError(f"{path}: not a SAS transport file of version 5")
            try:
                width = int(head[3 * _RECORD + 74 : 3 * _RECORD + 78])
                n_columns = int(head[_NAMES_AT + len(_NAMES) + 6 : _NAMES_AT + len(_NAMES) + 10])
            except ValueError as error:
                raise ValueError(f"{path}: not a SAS transport file of version 5 ({error})") from error
            size = math.ceil(width * n_columns / _RECORD) * _RECORD
            described, after = file.read(size), file.read(_RECORD)
        if head[_NAMES_AT:][: len(_NAMES)] != _NAMES or after[: len(_ROWS)] != _ROWS:
            raise ValueError(f"{path}: cut off, or not a SAS transport file of version 5")
        self.columns: dict[str, Column] = {}
        for k in range(n_columns):
            text = described[k * width : (k + 1) * width]
            name, label = (text[a:b].decode("latin-1").strip() for a, b in ((8, 16), (16, 56)))
            number = int.from_bytes(text[0:2], "big") == 1
            at, length = int.from_bytes(text[84:88], "big"), int.from_bytes(text[4:6], "big")
            self.columns[name.upper()] = Column(number, label, at, length)
        self._width = sum(column.length for column in self.columns.values())
        self._begin = _NAMES_AT + _RECORD + size + _RECORD
        self.n_rows = self._count_rows()

    def _count_rows(self) -> int:
        """Rows in the file: its last record is filled up with blanks, which may be as long as some rows."""
        n_bytes = self.path.stat().st_size - self._begin
        if n_bytes % _RECORD:
            raise ValueError(f"{self.path}: cut off: its data are not a multiple of {_RECORD} bytes")
        n_rows = n_bytes // self._width
        with open(self.path, "rb") as file:
            first = max(n_rows - (_RECORD - 1) // self._width, 0)
            file.seek(self._begin + first * self._width)
            while n_rows > first:
                file.seek(self._begin + (n_rows - 1) * self._width)
                if file.read(self._width).strip(b" "):
                    break
                n_rows -= 1
        return n_rows

    def read(self, names: Sequence[str], start: int = 0, stop: int | None = None) -> dict[str, np.ndarray]:
        """Columns of the rows start to stop: float64 [N] of numbers (NaN: missing), uint8 [N, L] of text.

        Raises:
          ValueError: the file has no such column.
        """
        if unknown := [name for name in names if name not in self.columns]:
            raise ValueError(f"{self.path}: column '{unknown[0]}' is missing (found {list(self.columns)})")
        stop = self.n_rows if stop is None else min(stop, self.n_rows)
        n = max(stop - start, 0)
        # read, not mapped: pages of a mapped file would count as memory of this process
        flat = np.fromfile(self.path, np.uint8, n * self._width, offset=self._begin + start * self._width)
        if len(flat) < n * self._width:
            raise ValueError(f"{self.path}: cut off at row {start + len(flat) // self._width + 1}")
        rows_NxW = flat.reshape(n, self._width)
        out = {}
        for name in names:
            column = self.columns[name]
            bytes_NxL = rows_NxW[:, column.offset : column.offset + column.length]
            out[name] = ibm_to_float(bytes_NxL) if column.is_number else bytes_NxL.copy()
        return out

    def frame(self, names: Sequence[str]) -> pl.DataFrame:
        """All rows of some columns: Float64 (null: missing) and String (stripped; null: blank)."""
        parts = []
        for name, values in self.read(names).items():
            if values.ndim == 1:
                parts.append(pl.Series(name, values, dtype=pl.Float64).fill_nan(None))
                continue
            text = [row.tobytes().decode("latin-1").strip() or None for row in values]
            parts.append(pl.Series(name, text, dtype=pl.String))
        return pl.DataFrame(parts)

    def by_person(self, names: Sequence[str], rows_per_read: int) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """(SEQN, its rows of some columns) for each person, in the order of the file.

        Memory: rows_per_read rows and those of one person.

        Raises:
          ValueError: rows of a person are not together, a row has no SEQN, or there is no such column.
        """
        wanted = ["SEQN", *names]
        seen: set[int] = set()
        pending: dict[str, np.ndarray] | None = None
        for start in range(0, self.n_rows, rows_per_read):
            part = self.read(wanted, start, start + rows_per_read)
            if np.isnan(part["SEQN"]).any():
                row = start + int(np.isnan(part["SEQN"]).argmax()) + 1
                raise ValueError(f"{self.path}: row {row}: column 'SEQN' is missing")
            if pending is not None:
                part = {name: np.concatenate([pending[name], part[name]]) for name in wanted}
            edges = np.flatnonzero(np.diff(part["SEQN"])) + 1
            bounds = [0, *edges.tolist(), len(part["SEQN"])]
            for first, last in zip(bounds[:-2], bounds[1:-1], strict=True):
                yield self._person(part, first, last, seen, names)
            pending = {name: values[bounds[-2] :] for name, values in part.items()}
        if pending is not None:
            yield self._person(pending, 0, len(pending["SEQN"]), seen, names)

    def _person(
        self, part: dict[str, np.ndarray], first: int, last: int, seen: set[int], names: Sequence[str]
    ) -> tuple[int, dict[str, np.ndarray]]:
        seqn = int(part["SEQN"][first])
        if seqn in seen:
            raise ValueError(f"{self.path}: rows of person {seqn} are not together")
        seen.add(seqn)
        return seqn, {name: part[name][first:last] for name in names}
