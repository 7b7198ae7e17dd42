"""Writes .npy files row by row and reads a few rows of them at a time: never whole in memory, never mapped."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
from numpy.typing import DTypeLike

from ehrwear_jax.data.formats import parquet


@contextlib.contextmanager
def writing_rows(path: Path, row_shape: tuple[int, ...], dtype: DTypeLike) -> Iterator[Callable[[np.ndarray], None]]:
    """A function that appends rows [n, *row_shape]; the file is what np.save would write of all of them.

    Errors as parquet.writing.
    """
    n, dtype = 0, np.dtype(dtype)

    def header(f: BinaryIO) -> int:
        f.seek(0)
        np.lib.format.write_array_header_1_0(
            f, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (n, *row_shape)}
        )
        return f.tell()  # numpy leaves room for the number of rows to grow

    with parquet.writing(path) as partial, open(partial, "wb") as f:
        begin = header(f)

        def append(rows: np.ndarray) -> None:
            nonlocal n
            f.write(np.ascontiguousarray(rows, dtype).data)
            n += len(rows)

        yield append
        if header(f) != begin:
            raise RuntimeError(f"the header of an array of {n} rows is longer than that of an empty one")


class Rows:
    """Reads rows of an .npy file on demand.

    Attributes:
      shape, dtype: of the whole array.
    """

    def __init__(self, path: Path) -> None:
        self._file = open(path, "rb")  # noqa: SIM115 (closed by close)
        np.lib.format.read_magic(self._file)
        self.shape, _, self.dtype = np.lib.format.read_array_header_1_0(self._file)
        self._begin = self._file.tell()
        self._row_bytes = self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=np.int64))

    def read(self, first: int, n: int) -> np.ndarray:
        """Rows first to first + n: [n, ...].

        Raises:
          ValueError: the file has fewer.
        """
        self._file.seek(self._begin + first * self._row_bytes)
        data = np.empty((n, *self.shape[1:]), self.dtype)
        if self._file.readinto(data.reshape(-1).view(np.uint8).data) != data.nbytes:
            raise ValueError(f"{self._file.name}: has no rows {first} to {first + n}")
        return data

    def close(self) -> None:
        self._file.close()


class OpenRows(dict):
    """{path: Rows}, opened at first use; closes all of them at the end of a with block."""

    def __missing__(self, path: Path) -> Rows:
        self[path] = Rows(path)
        return self[path]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        for rows in self.values():
            rows.close()
        self.clear()
