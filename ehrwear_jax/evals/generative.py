"""Compares what a model generates from draws of z with held-out data: frequencies, moments, coverage, uncertainty.

Section 3.4 of the paper names uncertainty calibration and generative consistency without a definition; these are ours.
Predictions are mixtures over draws of z. Everything is a ratio of sums over rows of contexts, of which intervals
resample whole ones as if nobody were in two: they are too narrow by as much as the same people fill up further rows.
Axes: R rows, N predictions, V vocabulary, C channels, A levels.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy  # its submodules load at first use

from ehrwear_jax.evals import bootstrap, inference

LEVELS = (0.5, 0.8, 0.95)  # of predictive intervals and sets
N_FLOOR = 50  # simulated sets of events


class CodeSums(NamedTuple):
    """Of the held-out events of each row, float64.

    Attributes:
      expected_RxV, observed_RxV: counts of codes as predicted, as they are. inside_RxA: events whose code lies in the
        smallest set of codes that the model gives so much probability. log_p_R: log likelihood, nats.
    """

    expected_RxV: np.ndarray
    observed_RxV: np.ndarray
    inside_RxA: np.ndarray
    log_p_R: np.ndarray


class SignalSums(NamedTuple):
    """Of the held-out steps of each row and channel, float64.

    Attributes:
      n_RxC: how many. observed_RxC, observed_square_RxC, decoded_RxC, decoded_square_RxC: sums of values and squares,
        decoded ones as the mixture's moments say. inside_RxCxA: steps inside the central predictive interval.
    """

    n_RxC: np.ndarray
    observed_RxC: np.ndarray
    observed_square_RxC: np.ndarray
    decoded_RxC: np.ndarray
    decoded_square_RxC: np.ndarray
    inside_RxCxA: np.ndarray


def of_codes(sums: CodeSums, n_resamples: int = 1000, seed: int = 0) -> list[dict[str, Any]]:
    """Coverage of sets of codes, mean log likelihood, and how far frequencies are from those predicted.

    code_total_variation, half the summed absolute difference of the two distributions of codes, is positive for a
    perfect model too, as events are finite; code_total_variation_floor is its mean over as many events drawn from what
    the model predicts.

    Returns:
      [{measure, of, level, value, lo, hi, n}]; none without events.
    """
    n_R = sums.observed_RxV.sum(1)
    if not (n := int(n_R.sum())):
        return []

    def statistic(weight_RxB):
        total_B = _counts(n_R, weight_RxB)
        apart = 0.5 * np.abs((sums.expected_RxV - sums.observed_RxV).T @ weight_RxB).sum(0) / total_B
        found = {"code_total_variation": apart, "code_log_likelihood": sums.log_p_R @ weight_RxB / total_B}
        inside = {("code_coverage", a): sums.inside_RxA[:, i] for i, a in enumerate(LEVELS)}
        return found | {key: x @ weight_RxB / total_B for key, x in inside.items()}

    out = [_record(name, value, n) for name, value in _with_intervals(statistic, len(n_R), n_resamples, seed).items()]
    share_V = np.maximum(sums.expected_RxV.sum(0), 0.0)
    share_V = share_V / share_V.sum()
    drawn = np.random.default_rng(seed).multinomial(n, share_V, N_FLOOR) / n
    floor = 0.5 * np.abs(drawn - share_V).sum(1).mean()
    return [*out, _record("code_total_variation_floor", (floor, None, None), n)]


def of_signal(sums: SignalSums, names: tuple[str, ...], n_resamples: int = 1000, seed: int = 0) -> list[dict[str, Any]]:
    """Per channel: decoded less observed mean, ratio of decoded to observed variance, coverage of intervals.

    Args:
      names: of the channels; the unit of differences is that of the sums.

    Returns:
      [{measure, of, level, value, lo, hi, n}] of the channels that have steps.
    """
    out = []
    for c, name in enumerate(names):
        if not (n := int(sums.n_RxC[:, c].sum())):
            continue

        def statistic(weight_RxB, c=c):
            total_B = _counts(sums.n_RxC[:, c], weight_RxB)
            means = [x[:, c] @ weight_RxB / total_B for x in sums[1:5]]
            seen, seen_square, said, said_square = means
            spread_B = np.maximum(seen_square - seen**2, 1e-300)
            found = {"signal_mean_difference": said - seen, "signal_variance_ratio": (said_square - said**2) / spread_B}
            inside = {("signal_coverage", a): sums.inside_RxCxA[:, c, i] for i, a in enumerate(LEVELS)}
            return found | {key: x @ weight_RxB / total_B for key, x in inside.items()}

        found = _with_intervals(statistic, len(sums.n_RxC), n_resamples, seed)
        out += [_record(measure, value, n, name) for measure, value in found.items()]
    return out


def of_uncertainty(
    uncertainty_N: npt.ArrayLike, error_N: npt.ArrayLike, group_N: npt.ArrayLike, n_resamples: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """Rank correlation of the uncertainty of predictions with their errors: (value, lo, hi), NaN where one is constant.

    Ranks are those among all; intervals are over resampled patients.
    """
    ranks = np.stack([scipy.stats.rankdata(np.asarray(x, np.float64)) for x in (uncertainty_N, error_N)])
    x_N, y_N = (ranks - ranks.mean(1, keepdims=True)) / len(ranks[0])

    def statistic(weight_NxB):
        total_B = weight_NxB.sum(0)
        mean = {k: v @ weight_NxB / total_B for k, v in (("x", x_N), ("y", y_N), ("xx", x_N**2), ("yy", y_N**2))}
        shared = (x_N * y_N) @ weight_NxB / total_B - mean["x"] * mean["y"]
        spread = (mean["xx"] - mean["x"] ** 2) * (mean["yy"] - mean["y"] ** 2)
        with np.errstate(invalid="ignore", divide="ignore"):
            return {"": np.where(spread > 1e-12, shared / np.sqrt(np.maximum(spread, 1e-300)), np.nan)}

    return _with_intervals(statistic, len(x_N), n_resamples, seed, np.asarray(group_N))[""]


def _counts(n_R, weight_RxB):
    """How many there are under each weighting, NaN for none: such a resample says nothing, and is left out."""
    total_B = n_R @ weight_RxB
    return np.where(total_B > 0, total_B, np.nan)


def _with_intervals(statistic, n_rows, n_resamples, seed, group_N=None):
    """{metric: (value, lo, hi)}."""
    value = statistic(np.ones((n_rows, 1)))
    groups = np.arange(n_rows) if group_N is None else group_N
    samples: dict[Any, Any] = bootstrap.resample({"": statistic}, groups, n_resamples, seed).get("", {})
    bounds = {k: inference.interval(samples[k] if samples else []) for k in value}
    return {k: (float(v[0]), bounds[k].lo, bounds[k].hi) for k, v in value.items()}


def _record(measure, value, n, of=""):
    name, level = measure if isinstance(measure, tuple) else (measure, None)
    return {"measure": name, "of": of, "level": level, "value": value[0], "lo": value[1], "hi": value[2], "n": n}
