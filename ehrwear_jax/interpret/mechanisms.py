"""Measures the paper's mechanisms: jumps at events against drift, precursors, signals around a drug's start.

Sections 4.5, 4.6 and 4.7 of the paper name them without a definition; the definitions in the docstrings are ours. All
averages are over patients, with percentile intervals over resampled patients. They describe a model or a cohort and are
no causal effects. Axes: N patients or prediction times, K offsets or bins, D dimensions.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ehrwear_jax.evals import bootstrap, inference


class Profile(NamedTuple):
    """mean_K with its interval, NaN where nobody has a value; n_K rows that have one."""

    mean_K: np.ndarray
    lo_K: np.ndarray
    hi_K: np.ndarray
    n_K: np.ndarray


def profile(value_NxK: npt.ArrayLike, group_N: npt.ArrayLike, *, n_resamples: int = 1000, seed: int = 0) -> Profile:
    """Mean over rows per column, NaN left out, with intervals over resampled patients.

    Args:
      group_N: patient of each row.

    Raises:
      ValueError: no rows, or lengths that differ.
    """
    value_NxK, group_N = np.asarray(value_NxK, np.float64), np.asarray(group_N)
    if value_NxK.ndim != 2 or len(value_NxK) != len(group_N) or not len(group_N):
        raise ValueError(f"values {value_NxK.shape} and groups {group_N.shape} do not match")
    seen_NxK = np.isfinite(value_NxK)
    filled_NxK = np.where(seen_NxK, value_NxK, 0.0)

    def means(weight_NxB):
        total_KxB, count_KxB = filled_NxK.T @ weight_NxB, seen_NxK.T.astype(np.float64) @ weight_NxB
        return dict(enumerate(np.where(count_KxB > 0, total_KxB / np.maximum(count_KxB, 1e-300), np.nan)))

    mean_K = np.array([m[0] for m in means(np.ones((len(group_N), 1))).values()])
    samples: Mapping[Any, np.ndarray] = bootstrap.resample({"": means}, group_N, n_resamples, seed).get("", {})
    bounds = [inference.interval(samples[k] if samples else []) for k in range(value_NxK.shape[1])]
    return Profile(mean_K, np.array([b.lo for b in bounds]), np.array([b.hi for b in bounds]), seen_NxK.sum(0))


# --------------------------------------------------------------------------------------- jumps and drifts of z


def displacement(z_NxKxD: npt.ArrayLike) -> np.ndarray:
    """Distance of z at each offset from z at the first one: [N, K]; z whitened beforehand."""
    z_NxKxD = np.asarray(z_NxKxD, np.float64)
    return np.sqrt(np.square(z_NxKxD - z_NxKxD[:, :1]).sum(-1))


class Rise(NamedTuple):
    """first_share_N: displacement at the first offset over the largest; half_days_N: days to half of the largest."""

    first_share_N: np.ndarray
    half_days_N: np.ndarray


def rise(displacement_NxK: npt.ArrayLike, offset_days_K: npt.ArrayLike) -> Rise:
    """How a displacement that is zero at offset 0 grows over the offsets, which are positive and increase.

    A jump has a first share near 1 and a time to half within the first offset; a linear drift over the offsets has a
    first share of offset_0 / offset_last and reaches half at offset_last / 2. Between offsets it is taken as linear.
    NaN for rows that do not move.

    Raises:
      ValueError: offsets that are not positive and increasing.
    """
    displacement_NxK, offset_K = np.asarray(displacement_NxK, np.float64), np.asarray(offset_days_K, np.float64)
    if not (len(offset_K) and offset_K[0] > 0 and (np.diff(offset_K) > 0).all()):
        raise ValueError(f"offsets must be positive and increasing, got {offset_K}")
    top_N = displacement_NxK.max(1)
    moved_N = np.where(top_N > 0, top_N, np.nan)
    half_N = np.full(len(top_N), np.nan)
    grid = np.concatenate([[0.0], offset_K])
    for i, d_K in enumerate(displacement_NxK):
        if top_N[i] > 0:
            path = np.concatenate([[0.0], d_K])
            k = int(np.argmax(path >= top_N[i] / 2))  # at least 1: the path starts at 0
            share = (top_N[i] / 2 - path[k - 1]) / (path[k] - path[k - 1])
            half_N[i] = grid[k - 1] + share * (grid[k] - grid[k - 1])
    return Rise(displacement_NxK[:, 0] / moved_N, half_N)


# --------------------------------------------------------------------------------------- precursors


class Precursor(NamedTuple):
    """Mean absolute effect of hiding a signal, and its paired difference to that of the control."""

    mean: float
    lo: float
    hi: float
    difference: float
    difference_lo: float
    difference_hi: float
    p_value: float
    n: int


def precursors(
    effect_by_name: Mapping[str, np.ndarray],
    control: str,
    group_N: npt.ArrayLike,
    *,
    n_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Precursor]:
    """Influence of hidden signals on predictions: mean |effect| on the score, each against a control.

    The paper's claim concerns heart-rate variability and activity 7 to 30 days before an event; the control hides the
    same channels in another period of the same length. Rows where an effect is not finite are left out of all.

    Args:
      effect_by_name: name -> effect on the score [N], see `attribution.effects`.
      control: one of the names.
      group_N: patient of each prediction time.
    """
    magnitude = {k: np.abs(np.asarray(v, np.float64)) for k, v in effect_by_name.items()}
    use_N = np.logical_and.reduce([np.isfinite(v) for v in magnitude.values()])
    if not use_N.any():
        raise ValueError("no row has all effects")
    value_NxK = np.stack([v[use_N] for v in magnitude.values()], axis=1)
    names = list(magnitude)
    at = names.index(control)

    def statistic(weight_NxB):
        mean_KxB = value_NxK.T @ weight_NxB / weight_NxB.sum(0)
        return dict(zip(names, mean_KxB, strict=True))

    group_N = np.asarray(group_N)[use_N]
    mean = {k: v[0] for k, v in statistic(np.ones((len(value_NxK), 1))).items()}
    samples = bootstrap.resample({"": statistic}, group_N, n_resamples, seed).get("", dict.fromkeys(names, np.empty(0)))
    out = {}
    for name in names:
        delta = samples[name] - samples[names[at]]
        own, other = inference.interval(samples[name]), inference.interval(delta)
        p_value = inference.paired_pvalue(delta) if name != control else float("nan")
        difference = mean[name] - mean[control]
        out[name] = Precursor(
            float(mean[name]), own.lo, own.hi, float(difference), other.lo, other.hi, p_value, len(value_NxK)
        )
    return out


# --------------------------------------------------------------------------------------- signals around an event


def around_event(
    series: Sequence[tuple[np.ndarray, np.ndarray]],
    onset_days_N: npt.ArrayLike,
    edges_days: npt.ArrayLike,
    *,
    baseline: tuple[float, float] | None,
) -> np.ndarray:
    """Each patient's mean in bins of time around an event, optionally as the change from their own baseline.

    Args:
      series: per patient (time in days [M], value [M]); NaN values are left out.
      onset_days_N: time of the event on the same clock.
      edges_days: increasing edges, relative to the event; bin k is [edges_k, edges_{k+1}).
      baseline: (from, to) relative to the event; its mean is subtracted, and patients without a value in it get NaN.
        None subtracts nothing.

    Returns:
      float64 [N, K], NaN where a patient has no value in the bin.
    """
    edges = np.asarray(edges_days, np.float64)
    out = np.full((len(series), len(edges) - 1), np.nan)
    for i, ((time_M, value_M), onset) in enumerate(zip(series, np.asarray(onset_days_N), strict=True)):
        seen_M = np.isfinite(value_M)
        offset_M, value_M = np.asarray(time_M, np.float64)[seen_M] - onset, np.asarray(value_M, np.float64)[seen_M]
        bin_M = np.searchsorted(edges, offset_M, side="right") - 1
        level = 0.0
        if baseline is not None:
            before = (offset_M >= baseline[0]) & (offset_M < baseline[1])
            level = value_M[before].mean() if before.any() else np.nan
        for k in range(len(edges) - 1):
            if (bin_M == k).any():
                out[i, k] = value_M[bin_M == k].mean() - level
    return out
