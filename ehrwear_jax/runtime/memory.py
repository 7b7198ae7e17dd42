"""Gives memory that was freed back to the operating system."""

import ctypes
import gc
from collections.abc import Callable


def _trim_of(library: ctypes.CDLL) -> Callable[[int], int] | None:
    """glibc's malloc_trim, None of another C library."""
    return getattr(library, "malloc_trim", None)


def give_back() -> bool:
    """Lets go of freed pages that the allocator keeps; whether there is a way to.

    Tables of a few MB are taken from the allocator's heap, which grows over a long stage as what is freed lies between
    what stays: without this the memory of a stage is the sum of what its steps left, with it the largest of them. For
    between steps: it takes a few milliseconds, since only young objects are searched for cycles.
    """
    gc.collect(1)
    try:
        trim = _trim_of(ctypes.CDLL(None))
    except (OSError, TypeError):  # Windows has no such handle
        return False
    if trim is None:
        return False
    trim(0)
    return True
