"""Arrays written by rows are those of numpy, and rows come back."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrwear_jax.data.formats import npy_rows

DTYPES = (np.dtype("<f4"), np.dtype("<i8"), np.dtype([("end", "<i8"), ("summary", "<f4", (0,))]),
          np.dtype([("time", "<i8"), ("token", "<i4"), ("value", "<f4", (2,))]))  # fmt: skip


@settings(max_examples=40)
@given(
    sizes=st.lists(st.integers(0, 5), max_size=5),
    row_shape=st.sampled_from([(), (3,), (2, 3)]),
    dtype=st.sampled_from(DTYPES),
)
def test_the_file_is_that_of_numpy_and_any_rows_come_back(tmp_path_factory, sizes, row_shape, dtype):
    path = tmp_path_factory.mktemp("npy") / "x.npy"
    n = sum(sizes)
    raw = np.random.default_rng(0).integers(0, 255, (n, *row_shape, dtype.itemsize), dtype=np.uint8)
    whole = raw.view(dtype).reshape(n, *row_shape)
    with npy_rows.writing_rows(path, row_shape, dtype) as append:
        for first, size in zip(np.cumsum([0, *sizes]), sizes, strict=False):
            append(whole[first : first + size])
    saved = io.BytesIO()
    np.save(saved, whole)
    assert path.read_bytes() == saved.getvalue()
    with npy_rows.OpenRows() as opened:
        assert opened[path].shape == whole.shape and opened[path].dtype == dtype
        for first in range(n + 1):
            got = opened[path].read(first, (n - first) // 2)
            assert got.tobytes() == whole[first : first + (n - first) // 2].tobytes()
        with pytest.raises(ValueError, match=f"x.npy: has no rows {n} to {n + 1}"):
            opened[path].read(n, 1)


def test_a_file_whose_writer_fails_does_not_appear(tmp_path):
    with pytest.raises(KeyError), npy_rows.writing_rows(tmp_path / "x.npy", (), np.int64) as append:
        append(np.arange(3))
        raise KeyError
    assert not (tmp_path / "x.npy").exists()
