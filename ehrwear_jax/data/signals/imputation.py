"""Imputes short gaps of a signal by an autoregressive model.

It knows the whole array that it is given: pass it nothing but the samples that are complete at the end of the window.
"""

import numpy as np
import scipy  # its submodules load at first use
from numpy.typing import ArrayLike

from ehrwear_jax.data.signals.masks import runs
from ehrwear_jax.data.signals.quality import MAX_GAP_MINUTES, long_gaps


def burg(centred_T: ArrayLike, order: int) -> np.ndarray:
    """Coefficients a [order] of x_t = sum_k a_k x_{t-k} + noise, from a zero-mean array with gaps.

    Burg's recursion (1967): each reflection coefficient minimises the squared forward and backward errors over the
    places where both exist, so a gap only takes its neighbours out and the model is never explosive.
    """
    forward = backward = np.asarray(centred_T, np.float64)
    filter_P = np.ones(1)
    for _ in range(order):
        f, b = forward[1:], backward[:-1]
        both = np.isfinite(f) & np.isfinite(b)
        energy = (f[both] ** 2).sum() + (b[both] ** 2).sum()
        k = 2 * (f[both] * b[both]).sum() / energy if energy > 0 else 0.0
        forward, backward = f - k * b, b - k * f
        filter_P = np.append(filter_P, 0.0) - k * np.append(filter_P, 0.0)[::-1]
    return -filter_P[1:]


def impute_ar(
    values_T: ArrayLike, rate_hz: float, order: int = 3, max_gap_minutes: float = MAX_GAP_MINUTES
) -> tuple[np.ndarray, np.ndarray]:
    """Short gaps filled by a short autoregressive model; for normalisation only, never as input of a model.

    The model is fitted to the observed samples (`burg`, after their mean is taken off). The filled values are those
    that make its squared prediction errors smallest given everything observed (Janssen, Veldhuis and Vries 1986, IEEE
    TASSP 34:317): the conditional mean of a Gaussian process, pulled to the mean before the first value.

    Args:
      values_T: [T] any unit; NaN: missing.
      rate_hz: samples per second.
      order: of the model.
      max_gap_minutes: longer gaps stay NaN, and so does what precedes the first value. Neither is bridged.

    Returns:
      (filled_T float64, imputed_T bool). Nothing is imputed if fewer than 10 * order samples are observed.
    """
    values_T = np.asarray(values_T, np.float64)
    seen_T = np.isfinite(values_T)
    filled_T, imputed_T = np.where(seen_T, values_T, np.nan), np.zeros(len(values_T), bool)
    if seen_T.sum() < 10 * order:
        return filled_T, imputed_T
    mean = values_T[seen_T].mean()
    filter_P = np.concatenate([[1.0], -burg(filled_T - mean, order)])
    for first, last in runs(~long_gaps(values_T, rate_hz, max_gap_minutes)):
        first += int(np.argmax(seen_T[first:last]))
        unknown_N = ~seen_T[first:last]
        if seen_T[first] and unknown_N.any():
            filled_T[first:last][unknown_N] = mean + _interpolate(filled_T[first:last] - mean, unknown_N, filter_P)
            imputed_T[first:last] = unknown_N
    return filled_T, imputed_T


def _interpolate(centred_N: np.ndarray, unknown_N: np.ndarray, filter_P: np.ndarray) -> np.ndarray:
    """The unknown values [U] that minimise the sum of squares of filter * x: a banded, positive definite system."""
    n, order = len(centred_N), len(filter_P) - 1
    # element (i, i + d) of the normal matrix: products of the filter with itself at lag d, cut off at the array's end
    lagged_DxP = np.stack([np.concatenate([np.zeros(d), filter_P[: order + 1 - d]]) for d in range(order + 1)])
    normal_DxP = np.cumsum(filter_P * lagged_DxP, axis=1)
    at_U = np.flatnonzero(unknown_N)
    reach_U = np.minimum(order, n - 1 - at_U)
    band = np.zeros((min(order, len(at_U) - 1) + 1, len(at_U)))
    for q in range(len(band)):
        lag = at_U[q:] - at_U[: len(at_U) - q]
        near = lag <= order
        band[q, : len(lag)][near] = normal_DxP[lag[near], reach_U[: len(lag)][near]]
    error_N = scipy.signal.lfilter(filter_P, 1.0, np.where(unknown_N, 0.0, centred_N))
    right_U = -scipy.signal.lfilter(filter_P, 1.0, error_N[::-1])[::-1][at_U]
    return scipy.linalg.solveh_banded(band, right_U, lower=True)
