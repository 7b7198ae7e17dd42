"""What was made of records is kept in memory, then in a file, and comes back as it was."""

import concurrent.futures
import os
import pickle
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehrwear_jax.data import cache as cache_lib
from ehrwear_jax.data import record_bytes
from ehrwear_jax.data.cache import Cache, MappedFile, from_arrays, to_arrays


class Inner(NamedTuple):
    x: np.ndarray
    is_known: bool


class Made(NamedTuple):
    a: np.ndarray
    inner: Inner
    origin_us: int

    @property
    def nbytes(self) -> int:
        return self.a.nbytes + self.inner.x.nbytes


def made(i, n=None):
    rng = np.random.default_rng(i)
    n = int(rng.integers(0, 40)) if n is None else n
    return Made(rng.integers(0, 9, n).astype(np.int32), Inner(rng.normal(size=(n, 3)), bool(i % 2)), i * 10**12)


def assert_same(one, two):
    np.testing.assert_array_equal(one.a, two.a)
    np.testing.assert_array_equal(one.inner.x, two.inner.x)
    assert (one.inner.is_known, one.origin_us) == (two.inner.is_known, two.origin_us)
    assert type(two.inner.is_known) is bool and type(two.origin_us) is int
    assert (one.a.dtype, one.inner.x.shape) == (two.a.dtype, two.inner.x.shape)


@given(st.lists(st.tuples(st.sampled_from(["<i8", "<f4", "|b1", "<f2", "<i4"]), st.integers(0, 9), st.integers(0, 3)),
                min_size=1, max_size=6), st.sampled_from([1, 4, 8]))  # fmt: skip
def test_bytes_hold_every_array_where_it_is_aligned(kinds, align):
    arrays = {f"{k}": np.arange(n * m).reshape(n, m).astype(dtype) for k, (dtype, n, m) in enumerate(kinds)}
    found = record_bytes.decode(record_bytes.encode(arrays, align), align)
    assert list(found) == list(arrays)
    for name, x in arrays.items():
        assert found[name].dtype == x.dtype and not found[name].flags.writeable
        np.testing.assert_array_equal(found[name], x)
        begins = found[name].__array_interface__["data"][0]
        base = np.frombuffer(record_bytes.encode(arrays, align), np.uint8)
        assert align == 1 or not x.size or begins % align == base.__array_interface__["data"][0] % align


def test_what_memory_does_not_hold_comes_back_from_the_file():
    kept = Cache[Made](400, 2**30, to_arrays, from_arrays)
    people = [made(i) for i in range(50)]
    for i, person in enumerate(people):
        kept.put(i, person)
    assert 0 < len(kept.held) < 50 and len(kept.file._at) == 50 - len(kept.held), "what memory holds is not in the file"
    assert sum(x.nbytes for x in kept.held.values()) == kept.held_bytes <= 400
    for i, person in enumerate(people):
        assert_same(person, kept.get(i))
        assert (kept.get(i) is person) == (i in kept.held)
    assert kept.get(50) is None
    with pytest.raises(ValueError, match="read-only"):
        kept.get(49).a[...] = 0
    none = Cache[Made](0)
    none.put(0, people[0])
    assert none.get(0) is None


def test_a_worker_process_gets_an_empty_cache():
    kept = Cache[Made](60, 2**30, to_arrays, from_arrays)
    for i in range(9):
        kept.put(i, made(i, 4))
    other = pickle.loads(pickle.dumps(kept))
    assert not other.held and len(other.file._at) == 0 and other.get(3) is None and len(kept.file._at) > 0
    other.put(3, made(3, 4))
    assert other.held_bytes == 0 or other.held, "its own count begins at none"
    other.put(4, made(4, 40))
    assert_same(made(4, 40), other.get(4))


def test_the_file_grows_by_chunks_up_to_its_size_and_has_no_name(monkeypatch, tmp_path):
    monkeypatch.setattr(cache_lib, "CHUNK_BYTES", 2**14)
    file = MappedFile(3 * 2**14, str(tmp_path))
    assert file.nbytes == 0
    put = [i for i in range(100) if file.put(i, to_arrays(made(i, 50)))]
    assert file.nbytes == 3 * 2**14 and put == list(range(len(put))) and 10 < len(put) < 100
    assert not file.put(200, {"x": np.zeros(2**14)}), "an entry that is larger than a chunk"
    assert file.put(0, to_arrays(made(1))), "what is there stays as it is"
    for i in put:
        assert_same(made(i, 50), from_arrays(file.get(i), made(0)))
        assert all(x.__array_interface__["data"][0] % 8 == 0 for x in file.get(i).values())
    assert file.get(put[-1] + 1) is None
    assert os.listdir(tmp_path) == []


def test_a_disk_without_room_ends_growth_and_nothing_else(monkeypatch, tmp_path):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    file = MappedFile(2**40, str(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(cache_lib, "FREE_BYTES", 2**62)
        assert not file.put(0, to_arrays(made(0))), "less would be left than FREE_BYTES"
    assert not file.put(0, to_arrays(made(0))), "it is not tried again at every person"
    other = MappedFile(2**40, str(tmp_path))
    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    assert not other.put(0, to_arrays(made(0))) and other.get(0) is None
    assert not MappedFile(2**40, str(tmp_path / "missing")).put(0, to_arrays(made(0)))
    monkeypatch.delattr(os, "posix_fallocate")
    portable = MappedFile(2**27, str(tmp_path))
    assert portable.put(0, to_arrays(made(3))) and os.fstat(portable._file.fileno()).st_size == cache_lib.CHUNK_BYTES
    assert_same(made(3), from_arrays(portable.get(0), made(0)))


def test_threads_share_a_file(monkeypatch):
    monkeypatch.setattr(cache_lib, "CHUNK_BYTES", 2**15)
    kept = Cache[Made](0, 2**30, to_arrays, from_arrays)

    def use(i):
        kept.put(i % 97, made(i % 97))
        assert_same(made(i % 97), kept.get(i % 97))

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(use, range(800)))
    assert len(kept.file._at) + len(kept.held) == 97
