"""Gives memory that was freed back to the operating system."""

import ctypes
import gc
import time
from collections.abc import Callable

WHOLE_SEARCH_EVERY_S = 3.0
_searched_s = 0.0


def _trim_of(library: ctypes.CDLL) -> Callable[[int], int] | None:
    """glibc's malloc_trim, None of another C library."""
    return getattr(library, "malloc_trim", None)


def give_back() -> bool:
    """Lets go of freed pages that the allocator keeps; whether there is a way to.

    Tables of a few MB are taken from the allocator's heap, which grows over a long stage as what is freed lies between
    what stays: without this the memory of a stage is the sum of what its steps left, with it the largest of them. For
    between steps: it takes a few milliseconds, and a fifth of a second where all objects are searched for cycles, which
    happens after steps that took longer than that by far.
    """
    global _searched_s
    long_ago = time.monotonic() - _searched_s > WHOLE_SEARCH_EVERY_S
    gc.collect(2 if long_ago else 1)
    if long_ago:
        _searched_s = time.monotonic()
    try:
        trim = _trim_of(ctypes.CDLL(None))
    except (OSError, TypeError):  # Windows has no such handle
        return False
    if trim is None:
        return False
    trim(0)
    return True
