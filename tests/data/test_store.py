"""Records come back bit for bit."""

import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehrwear_jax.data import store as records

DTYPES = (np.int8, np.uint8, np.int32, np.int64, np.float16, np.float32, np.float64, np.bool_)
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@given(
    fields=st.dictionaries(
        st.text(max_size=8), st.tuples(st.sampled_from(DTYPES), shapes, st.integers(0, 99)), max_size=6
    )
)
def test_round_trip_keeps_names_order_dtypes_shapes_and_bits(fields):
    arrays = {}
    for name, (dtype, shape, seed) in fields.items():
        raw = np.random.default_rng(seed).integers(0, 256, (*shape, np.dtype(dtype).itemsize), dtype=np.uint8)
        arrays[name] = raw.view(dtype)[..., 0] % 2 if dtype is np.uint8 else raw.view(dtype)[..., 0]
        if dtype is np.bool_:
            arrays[name] = raw[..., 0] % 2 == 0
    back = records.decode(records.encode(arrays))
    assert list(back) == list(arrays)
    for name, want in arrays.items():
        assert back[name].dtype == want.dtype and back[name].shape == want.shape
        assert back[name].tobytes() == np.ascontiguousarray(want).tobytes(), name


def test_views_scalars_and_special_values():
    grid = np.arange(12, dtype=np.int64).reshape(3, 4)
    arrays = {
        "transposed": grid.T,
        "strided": grid[::2, 1::2],
        "fortran": np.asfortranarray(grid),
        "scalar": np.int64(np.iinfo(np.int64).min),
        "flag": np.bool_(True),
        "special": np.array([np.nan, np.inf, -np.inf, -0.0], np.float16),
        "empty": np.zeros((0, 24, 2), np.float16),
    }
    back = records.decode(records.encode(arrays))
    for name, want in arrays.items():
        np.testing.assert_array_equal(back[name], want, strict=True)
    assert np.signbit(back["special"][3])


def test_decoded_arrays_cannot_change_the_cached_record():
    back = records.decode(records.encode({"x": np.arange(3)}))
    with pytest.raises(ValueError, match="read-only"):
        back["x"][0] = 1


def test_the_layout_is_the_documented_one():
    data = records.encode({"a": np.array([1, 2], np.int32), "b": np.float64(0.5)})
    (n,) = struct.unpack("<I", data[:4])
    assert json.loads(data[4 : 4 + n]) == [["a", "<i4", [2]], ["b", "<f8", []]]
    assert data[4 + n :] == struct.pack("<iid", 1, 2, 0.5)
