"""Summarises signals: moments, range and coverage of windows, means of epochs, evenness of a window's values."""

import numpy as np
from numpy.typing import ArrayLike

MIN_COVERAGE = 0.5  # share of the samples without which an epoch has no mean and a row no evenness
_AT_ONCE = 64  # windows whose intermediate results stay in the processor's cache


def window_summaries(values_MxLxC: np.ndarray) -> dict[str, np.ndarray]:
    """Mean, standard deviation, mean absolute step, minimum, maximum and coverage per window and channel.

    Args:
      values_MxLxC: windows of L steps and C channels; NaN: missing.

    Returns:
      {name: float32 [M, C]}; NaN where a statistic needs more values than there are. A step is a difference of
      neighbouring grid points that are both observed.
    """
    n = len(values_MxLxC)
    blocks = [_summaries(values_MxLxC[i : i + _AT_ONCE]) for i in range(0, max(n, 1), _AT_ONCE)]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _summaries(values_MxLxC: np.ndarray) -> dict[str, np.ndarray]:
    values_MxCxL = np.ascontiguousarray(np.moveaxis(values_MxLxC, 1, 2))  # sums over steps run along memory
    seen = np.isfinite(values_MxCxL)
    count = seen.sum(axis=2)
    filled = np.where(seen, values_MxCxL, 0.0).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = filled.sum(axis=2) / count
        var = np.where(seen, (filled - mean[..., None]) ** 2, 0.0).sum(axis=2) / count
        pair = seen[..., 1:] & seen[..., :-1]
        step = np.abs(np.where(pair, np.diff(filled, axis=2), 0.0)).sum(axis=2) / pair.sum(axis=2)
        std = np.sqrt(np.where(count > 1, var, np.nan))
    low = np.where(seen, values_MxCxL, np.inf).min(axis=2, initial=np.inf)
    high = np.where(seen, values_MxCxL, -np.inf).max(axis=2, initial=-np.inf)
    out = {
        "mean": mean,
        "std": std,
        "mean_abs_step": step,
        "min": np.where(count > 0, low, np.nan),
        "max": np.where(count > 0, high, np.nan),
        "coverage": seen.mean(axis=2),
    }
    return {k: v.astype(np.float32) for k, v in out.items()}


def epoch_mean(values_T: ArrayLike, n: int) -> np.ndarray:
    """Means of n successive samples each.

    Args:
      values_T: [T, ...] any unit; NaN: missing.
      n: samples of an epoch; those behind the last whole epoch are dropped.

    Returns:
      [T // n, ...] float64; NaN if fewer than half of an epoch's samples are there.
    """
    values_T = np.asarray(values_T, np.float64)
    x = values_T[: len(values_T) // n * n].reshape(-1, n, *values_T.shape[1:])
    seen = np.isfinite(x)
    count = seen.sum(axis=1)
    mean = np.where(seen, x, 0.0).sum(axis=1) / np.maximum(count, 1)
    return np.where(count >= max(MIN_COVERAGE * n, 1), mean, np.nan)


def evenness(values_MxP: ArrayLike, min_coverage: float = MIN_COVERAGE) -> np.ndarray:
    """Shannon's entropy (1948) of the shares that the values of a row have of its sum, over the log of their number.

    Args:
      values_MxP: non-negative; NaN where missing, and left out.
      min_coverage: least share of a row that must be there.

    Returns:
      [M] float64: 0 if all of the sum is in one value, 1 if all values are the same; NaN if fewer than two values or
      too few are there, or their sum is zero.
    """
    values_MxP = np.asarray(values_MxP, np.float64)
    seen = np.isfinite(values_MxP)
    count_M = seen.sum(axis=1)
    total_M = np.where(seen, values_MxP, 0.0).sum(axis=1)
    enough_M = (count_M >= np.maximum(min_coverage * values_MxP.shape[1], 2)) & (total_M > 0)
    share_MxP = np.where(seen & enough_M[:, None], values_MxP, 0.0) / np.where(enough_M, total_M, 1.0)[:, None]
    nats_M = -np.sum(share_MxP * np.log(np.where(share_MxP > 0, share_MxP, 1.0)), axis=1)
    return np.where(enough_M, np.maximum(nats_M, 0.0) / np.log(np.maximum(count_M, 2)), np.nan)
