"""One patient, one record: a dict of numpy arrays as bytes, kept in ArrayRecord shards."""

import json
import struct

import numpy as np


def encode(arrays):
    """{name: array} -> bytes: length of the header, a JSON header, the raw little-endian arrays in order."""
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    header = json.dumps([[name, a.dtype.str, a.shape] for name, a in arrays.items()]).encode()
    return b"".join([struct.pack("<I", len(header)), header, *(a.tobytes() for a in arrays.values())])


def decode(data):
    """The inverse of `encode`; arrays are read-only views of the bytes."""
    (n_header,) = struct.unpack_from("<I", data)
    offset, arrays = 4 + n_header, {}
    for name, dtype, shape in json.loads(data[4:offset]):
        count = int(np.prod(shape, dtype=np.int64))
        arrays[name] = np.frombuffer(data, np.dtype(dtype), count, offset).reshape(shape)
        offset += arrays[name].nbytes
    return arrays


class RecordStore:
    """Prepared records of one split in a folder (interim)."""

    def __init__(self, folder, split=None):
        from pathlib import Path

        self.folder, self.split = Path(folder), split

    def view(self, split):
        return RecordStore(self.folder, split)

    def digest(self):
        return str(self.folder)
