"""Computes the smallest paired difference between two models that a number of events can show.

A two-sided test of level alpha finds a true difference d with probability about Phi(d / SE - z_(1 - alpha / 2)), where
SE is the standard error of the difference: with a given power, d = (z_(1 - alpha / 2) + z_power) SE, 2.80 SE at 5% and
80%. SE comes from the patient bootstrap of the paired difference, which knows how alike the two models' errors are and
that a person has several prediction times; where nothing is compared, from Hanley and McNeil's formula.

It is a property of the design, like a sample size: it says what a difference that was not found may still be, and is no
power "observed" after the fact, which would only restate p.
"""

import math

import numpy as np
import numpy.typing as npt
import scipy  # its submodules load at first use

ALPHA, POWER = 0.05, 0.8
CORRELATION = 0.5  # of the errors of two models where it cannot be measured


def smallest_difference(standard_error: float, *, alpha: float = ALPHA, power: float = POWER) -> float:
    """The difference that a two-sided test of level alpha finds with the given power; NaN for SE NaN or 0.

    Raises:
      ValueError: alpha or power outside (0, 1).
    """
    if not (0 < alpha < 1 and 0 < power < 1):
        raise ValueError(f"alpha and power lie between 0 and 1, got {alpha} and {power}")
    if not standard_error > 0:
        return math.nan
    return float((scipy.stats.norm.ppf(1 - alpha / 2) + scipy.stats.norm.ppf(power)) * standard_error)


def of_resamples(delta_B: npt.ArrayLike) -> float:
    """`smallest_difference` from a paired difference under the resamples [B]; NaN with fewer than two defined."""
    values = np.asarray(delta_B, np.float64)
    defined = values[np.isfinite(values)]
    return smallest_difference(float(defined.std(ddof=1))) if len(defined) > 1 else math.nan


def auroc_standard_error(auroc: float, n_positive: int, n_negative: int) -> float:
    """Standard error of an AUROC of independent rows. Hanley and McNeil, Radiology 143, 1982; NaN without a class."""
    if min(n_positive, n_negative) < 1 or not math.isfinite(auroc):
        return math.nan
    q1, q2 = auroc / (2 - auroc), 2 * auroc**2 / (1 + auroc)
    variance = auroc * (1 - auroc) + (n_positive - 1) * (q1 - auroc**2) + (n_negative - 1) * (q2 - auroc**2)
    return math.sqrt(max(variance, 0.0) / (n_positive * n_negative))


def of_one_model(standard_error: float, correlation: float = CORRELATION) -> float:
    """`smallest_difference` between two models of one standard error each, whose errors correlate so.

    Hanley and McNeil, Radiology 148, 1983.
    """
    return smallest_difference(standard_error * math.sqrt(2 * (1 - correlation)))
