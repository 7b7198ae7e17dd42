"""Writes named arrays as bytes and reads them back: what a record is on disk."""

import functools
import json
import math
import struct
from collections.abc import Mapping

import numpy as np


def encode(arrays: Mapping[str, np.ndarray], align: int = 1) -> bytes:
    """{name: array} -> bytes: length of the header, a JSON header, the raw little-endian arrays in order.

    align: each array begins at a multiple of it.
    """
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    header = json.dumps([[name, a.dtype.str, a.shape] for name, a in arrays.items()]).encode()
    header += b" " * (-(4 + len(header)) % align)
    parts = [struct.pack("<I", len(header)), header]
    for a in arrays.values():
        parts += [a.tobytes(), bytes(-a.nbytes % align)]
    return b"".join(parts)


def decode(data: bytes | memoryview, align: int = 1) -> dict[str, np.ndarray]:
    """The inverse of `encode`; arrays are views of the bytes, read-only as they are."""
    (n_header,) = struct.unpack_from("<I", data)
    begin, found = 4 + n_header, {}
    for name, dtype, shape, at in _layout(bytes(data[4:begin]), align):
        found[name] = np.ndarray(shape, dtype, data, begin + at)
    return found


@functools.lru_cache(2**13)  # many people have as many events, and windows, as others
def _layout(header, align):
    """(name, dtype, shape, place after the header) of each array."""
    found, at = [], 0
    for name, dtype, shape in json.loads(header):
        found.append((name, np.dtype(dtype), tuple(shape), at))
        at += -(-found[-1][1].itemsize * math.prod(shape) // align) * align
    return found
