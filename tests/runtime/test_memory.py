"""Freed memory goes back to the operating system."""

import ctypes
import gc
import re
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest

from ehrwear_jax.runtime import memory


def resident():
    """Bytes of this process that lie in memory and in no file."""
    return 1024 * int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_what_is_freed_between_what_stays_is_given_back():
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("not glibc")
    memory.give_back()
    # 64 MB in blocks that are too small for pages of their own, every tenth of which stays
    blocks = [np.ones(8000) for _ in range(1000)]
    kept = blocks[::10]
    full = resident()
    del blocks
    before = resident()
    assert memory.give_back()
    assert resident() < full - 40e6
    assert before - resident() > 20e6  # which freeing alone did not
    assert all((block == 1).all() for block in kept)


def test_another_c_library_is_no_error(monkeypatch):
    monkeypatch.setattr(memory, "_trim_of", lambda library: None)
    assert not memory.give_back()


def test_old_cycles_are_searched_for_now_and_then(monkeypatch):
    class Node:
        pass

    def old_cycle():
        node = Node()
        node.itself = node
        gc.collect()  # what survives is old from now on
        return weakref.ref(node)

    monkeypatch.setattr(memory, "WHOLE_SEARCH_EVERY_S", 0.0)
    found = old_cycle()
    memory.give_back()
    assert found() is None
    monkeypatch.setattr(memory, "WHOLE_SEARCH_EVERY_S", 1e9)
    left = old_cycle()
    memory.give_back()
    assert left() is not None
