"""Packs examples of different lengths into rows, in their order."""

from collections.abc import Sequence

import numpy as np


def pack(needs: Sequence[np.ndarray], limits: Sequence[int]) -> np.ndarray:
    """Next fit: the bounds of rows whose needs stay within the limits.

    Args:
      needs: int64 arrays [N], one per resource, none of them above its limit.
      limits: one number per resource.

    Returns:
      int64 [rows + 1], from 0 to N.
    """
    n = len(needs[0])
    after = np.full(n, n, np.int64)  # where the row ends that begins here
    for need_N, limit in zip(needs, limits, strict=True):
        total = np.cumsum(need_N, dtype=np.int64)
        np.minimum(after, np.searchsorted(total, total - need_N + limit, side="right"), out=after)
    # numpy declares the buffer protocol from Python 3.12 on
    steps = memoryview(after)  # type: ignore[arg-type]
    bounds, at = [np.zeros(1, np.int64)], 0
    while at < n:
        chunk = np.empty(65536, np.int64)
        for k in range(len(chunk)):
            chunk[k] = at = steps[at]
            if at == n:
                break
        bounds.append(chunk[: k + 1])
    return np.concatenate(bounds)
