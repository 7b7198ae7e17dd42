"""Writes named arrays as bytes and reads them back: what a record is on disk."""

import functools
import json
import math
import struct
from collections.abc import Mapping

import numpy as np


def encode(arrays: Mapping[str, np.ndarray]) -> bytes:
    """{name: array} -> bytes: length of the header, a JSON header, the raw little-endian arrays in order."""
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    header = json.dumps([[name, a.dtype.str, a.shape] for name, a in arrays.items()]).encode()
    return b"".join([struct.pack("<I", len(header)), header, *(a.tobytes() for a in arrays.values())])


def decode(data: bytes) -> dict[str, np.ndarray]:
    """The inverse of `encode`; arrays are read-only views of the bytes."""
    (n_header,) = struct.unpack_from("<I", data)
    begin = 4 + n_header
    return {name: np.ndarray(shape, dtype, data, begin + at) for name, dtype, shape, at in _layout(data[4:begin])}


@functools.lru_cache(2**13)  # many people have as many events, and windows, as others
def _layout(header):
    """(name, dtype, shape, place after the header) of each array."""
    found, at = [], 0
    for name, dtype, shape in json.loads(header):
        found.append((name, np.dtype(dtype), tuple(shape), at))
        at += found[-1][1].itemsize * math.prod(shape)
    return found
