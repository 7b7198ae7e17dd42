"""Turns resampled metrics into intervals, p-values and effect sizes.

`samples_B` are values of a metric under the resamples of `bootstrap`, NaN where a resample left it
undefined (for instance one class only): such resamples are left out and counted.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy  # its submodules load at first use


class Interval(NamedTuple):
    """Bounds of a confidence interval, NaN where undefined."""

    lo: float
    hi: float
    n_valid: int  # resamples in which the metric was defined
    n_degenerate: int  # resamples in which it was not (NaN), for instance a single class


def _valid(samples_B) -> tuple[np.ndarray, int]:
    samples_B = np.asarray(samples_B, np.float64)
    valid = samples_B[np.isfinite(samples_B)]
    return valid, samples_B.size - valid.size


def _tail(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    return (1 - level) / 2


def interval(samples_B: npt.ArrayLike, level: float = 0.95) -> Interval:
    """Percentile interval over the defined resamples; lo = hi = NaN when there is none."""
    tail = _tail(level)
    valid, n_degenerate = _valid(samples_B)
    lo, hi = np.quantile(valid, [tail, 1 - tail]) if valid.size else (np.nan, np.nan)
    return Interval(float(lo), float(hi), valid.size, n_degenerate)


def bca_interval(value: float, samples_B: npt.ArrayLike, jackknife_J: npt.ArrayLike, level: float = 0.95) -> Interval:
    """Bias-corrected and accelerated interval (Efron 1987).

    Args:
      value: the metric on the data as it is.
      samples_B: its values under the resamples.
      jackknife_J: its values with one patient (or set of patients) left out at a time, from
        `bootstrap.jackknife_blocks`.
      level: nominal coverage.

    Returns:
      Interval; lo = hi = NaN where the value or every resample is undefined. Where all resamples
      lie on one side of the value, no bias can be estimated: the percentile interval.
    """
    tail = _tail(level)
    valid, n_degenerate = _valid(samples_B)
    if not valid.size or not np.isfinite(value):
        return Interval(np.nan, np.nan, valid.size, n_degenerate)
    # Resamples equal to the value count one half, as in the mid-rank definition.
    below = ((valid < value).mean() + (valid <= value).mean()) / 2
    if not 0 < below < 1:
        return interval(samples_B, level)
    jackknife = _valid(jackknife_J)[0]
    influence = jackknife.mean() - jackknife
    spread = np.sum(influence**2) ** 1.5
    acceleration = np.sum(influence**3) / (6 * spread) if spread > 0 else 0.0
    bias = scipy.stats.norm.ppf(below)
    shifted = bias + scipy.stats.norm.ppf([tail, 1 - tail])
    quantiles = scipy.stats.norm.cdf(bias + shifted / (1 - acceleration * shifted))
    lo, hi = np.quantile(valid, quantiles)
    return Interval(float(lo), float(hi), valid.size, n_degenerate)


def paired_pvalue(delta_B: npt.ArrayLike) -> float:
    """Two-sided bootstrap p-value of a paired difference.

    2 min(1 + #{delta <= 0}, 1 + #{delta >= 0}) / (B + 1), at most 1, over the B resamples in which
    the difference is defined: never below 2 / (B + 1). NaN when there is none.
    """
    valid, _ = _valid(delta_B)
    if not valid.size:
        return float("nan")
    smaller_tail = 1 + min((valid <= 0).sum(), (valid >= 0).sum())
    return float(min(1.0, 2 * smaller_tail / (valid.size + 1)))


class Adjusted(NamedTuple):
    """A p-value within its family of tests."""

    p: float
    q: float  # smallest false discovery rate at which the test is rejected
    rejected: bool


def benjamini_hochberg(p_by_test: Mapping, rate: float = 0.05) -> dict:
    """Benjamini and Hochberg's (1995) procedure over one declared family of tests.

    Args:
      p_by_test: any key -> p-value; the mapping is the family. A NaN (an undefined test) is not
        counted in it and keeps q = NaN.
      rate: false discovery rate to hold.

    Returns:
      key -> Adjusted.
    """
    p_T = np.array(list(p_by_test.values()), np.float64)
    defined, q_T = np.isfinite(p_T), np.full(p_T.shape, np.nan)
    if ((p_T[defined] < 0) | (p_T[defined] > 1)).any():
        raise ValueError("a p-value lies outside [0, 1]")
    if defined.any():
        q_T[defined] = scipy.stats.false_discovery_control(p_T[defined], method="bh")
    tests = zip(p_by_test, p_T, q_T, strict=True)
    return {key: Adjusted(float(p), float(q), bool(q <= rate)) for key, p, q in tests}


def bootstrap_z(difference: float, delta_B: npt.ArrayLike) -> float:
    """A paired difference in units of its bootstrap standard error.

    It grows with the root of the number of patients: a measure of evidence, not of effect size
    (what "Cohen's d over bootstrap resamples" amounts to). NaN where the spread is zero.
    """
    valid, _ = _valid(delta_B)
    spread = valid.std(ddof=1) if valid.size > 1 else 0.0
    return float(difference / spread) if spread > 0 else float("nan")


def seed_cohens_d(first_S: Sequence[float], second_S: Sequence[float]) -> float:
    """Cohen's d of the difference between two models over training seeds: mean difference / its SD (ddof 1).

    Paired: seed s of one model is compared with seed s of the other, on the same people (d_z in Lakens, Frontiers in
    Psychology 4, 2013).

    Args:
      first_S, second_S: one value of the metric per seed, of the same seeds, at least three.

    Returns:
      float; NaN where the differences have no spread.
    """
    first, second = np.asarray(first_S, np.float64), np.asarray(second_S, np.float64)
    if first.shape != second.shape or first.size < 3:
        raise ValueError(f"Cohen's d needs the same three seeds or more of both, got {first.size} and {second.size}")
    difference = first - second
    sd = difference.std(ddof=1)
    return float(difference.mean() / sd) if sd > 0 else float("nan")
