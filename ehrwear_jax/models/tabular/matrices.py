"""Keeps sparse features on disk, a file per shard, and reads rows and columns of them without holding the rest.

A file holds a CSR matrix in numpy's format and which rows of the whole it has; the columns of the whole are those of
the groups side by side. Memory while reading: the matrix that is returned, and one shard.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy import sparse

from ehrwear_jax.data.formats.parquet import writing


def write(path: Path, row_R: np.ndarray, part: sparse.csr_matrix) -> None:
    """Writes one shard.

    Args:
      row_R: row of the whole that each row of the part is, int [R].
    """
    with writing(path) as partial, open(partial, "wb") as f:
        np.savez(f, row=row_R, data=part.data, indices=part.indices, indptr=part.indptr, shape=part.shape)


def _read(path, place):
    """(rows of the whole, matrix) of a shard that has a row that is wanted, else None."""
    with np.load(path) as saved:
        row = saved["row"]
        if not (place[row] >= 0).any():
            return None
        data, indices, indptr, shape = (saved[k] for k in ("data", "indices", "indptr", "shape"))
    return row, sparse.csr_matrix((data, indices, indptr), tuple(shape))


def read(
    groups: Sequence[tuple[int, Sequence[Path]]], row_N: np.ndarray, wanted_F: np.ndarray, n_rows: int
) -> sparse.csr_matrix:
    """Some rows and columns of the whole, float32 [N, wanted columns] with int32 indices.

    Args:
      groups: (first column, files) of each group of columns.
      row_N: rows of the whole, each once, in the order in which they are wanted.
      wanted_F: bool per column of the whole. n_rows: of the whole.
    """
    place = np.full(n_rows, -1, np.int64)
    place[row_N] = np.arange(len(row_N))
    number_F = np.cumsum(wanted_F) - 1
    count_N = np.zeros(len(row_N), np.int64)
    for at_R, _, part_row_E, _ in _wanted(groups, place, wanted_F):
        count_N += np.bincount(at_R[part_row_E], minlength=len(row_N))
    indptr = np.concatenate([[0], np.cumsum(count_N)])
    dtype = np.int32 if indptr[-1] < 2**31 else np.int64
    data, indices = np.empty(indptr[-1], np.float32), np.empty(indptr[-1], dtype)
    free_N = indptr[:-1].copy()
    for at_R, column_E, part_row_E, value_E in _wanted(groups, place, wanted_F):
        n_R = np.bincount(part_row_E, minlength=len(at_R))
        within_E = np.arange(len(part_row_E)) - np.repeat(np.cumsum(n_R) - n_R, n_R)
        to_E = free_N[at_R[part_row_E]] + within_E
        data[to_E], indices[to_E] = value_E, number_F[column_E]
        free_N[at_R] += n_R
    return sparse.csr_matrix((data, indices, indptr.astype(dtype)), (len(row_N), int(wanted_F.sum())))


def _wanted(groups, place, wanted_F) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Per shard (place of each wanted row; column of the whole, row among these, value of each wanted entry)."""
    for first, paths in groups:
        for path in paths:
            found = _read(path, place)
            if found is None:
                continue
            row_R, part = found
            part = part[place[row_R] >= 0]
            column_E = part.indices.astype(np.int64) + first
            part_row_E = np.repeat(np.arange(part.shape[0]), np.diff(part.indptr))
            keep_E = wanted_F[column_E]
            at_R = place[row_R][place[row_R] >= 0]
            yield at_R, column_E[keep_E], part_row_E[keep_E], part.data[keep_E]
