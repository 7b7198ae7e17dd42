"""Computes the geometry of representations: MMD, effective rank, whitening and Lipschitz estimates.

Paper, section 4.6 ("maximum mean discrepancy (MMD) and local Lipschitz estimates computed on temporally adjacent
slices"); it defines neither kernel, bandwidth nor scale, so the definitions here are ours and are named below. A small
MMD between slices and a small Lipschitz estimate also occur in a collapsed representation: they are interpreted
together with the class-conditional MMD and the effective rank.

Axes: N, M rows, D dimensions, P assignments (the observed one and permutations), B resamples.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ehrwear_jax.evals import bootstrap, inference

BLOCK = 1024  # rows of the kernel matrix that are in memory at a time


def _matrix(z: npt.ArrayLike, name: str, width: int | None = None) -> np.ndarray:
    z = np.asarray(z, np.float64)
    if z.ndim != 2 or not len(z):
        raise ValueError(f"{name} must be a non-empty matrix, got shape {z.shape}")
    if width is not None and z.shape[1] != width:
        raise ValueError(f"{name} has {z.shape[1]} columns, expected {width}")
    if not np.isfinite(z).all():
        raise ValueError(f"{name} is not finite in row {int(np.flatnonzero(~np.isfinite(z).all(1))[0])}")
    return z


def _squared_distances(x_NxD, y_MxD):
    squares = (x_NxD**2).sum(1)[:, None] + (y_MxD**2).sum(1)[None] - 2.0 * x_NxD @ y_MxD.T
    return np.maximum(squares, 0.0)


# ------------------------------------------------------------------------------------------------------------- MMD


def median_bandwidth(z_NxD: npt.ArrayLike, *, max_rows: int = 2000, seed: int = 0) -> float:
    """Median heuristic: the median Euclidean distance between two different rows (Gretton et al. 2012, section 8).

    Fitted once, on the training split, and then used for every comparison. More than `max_rows` rows are subsampled.

    Raises:
      ValueError: fewer than two rows, or more than half of the pairs coincide.
    """
    z_NxD = _matrix(z_NxD, "z")
    if len(z_NxD) > max_rows:
        z_NxD = z_NxD[np.random.default_rng(seed).choice(len(z_NxD), max_rows, replace=False)]
    distance = np.sqrt(_squared_distances(z_NxD, z_NxD)[np.triu_indices(len(z_NxD), 1)])
    if not distance.size or not np.median(distance) > 0:
        raise ValueError("the median distance is not positive: too few rows, or most of them coincide")
    return float(np.median(distance))


def _kernel_products(z_NxD, side_NxP, bandwidth):
    """(K @ side [N, P], K @ 1 [N]) of the RBF kernel over all rows, a block of rows at a time."""
    product_NxP, total_N = np.empty(side_NxP.shape), np.empty(len(z_NxD))
    for begin in range(0, len(z_NxD), BLOCK):
        rows = slice(begin, begin + BLOCK)
        kernel = np.exp(_squared_distances(z_NxD[rows], z_NxD) / (-2.0 * bandwidth**2))
        product_NxP[rows], total_N[rows] = kernel @ side_NxP, kernel.sum(1)
    return product_NxP, total_N


class Discrepancy(NamedTuple):
    """mmd2: unbiased squared MMD (may be negative). p_value: one-sided, by permutation (NaN without permutations)."""

    mmd2: float
    p_value: float


def _with_p_value(statistic_P):
    null = statistic_P[1:]
    # relative slack: permutations that split the rows alike differ by rounding only
    slack = 1e-12 * max(1.0, abs(statistic_P[0]))
    p_value = (1 + (null >= statistic_P[0] - slack).sum()) / (1 + null.size) if null.size else float("nan")
    return Discrepancy(float(statistic_P[0]), float(p_value))


def mmd(
    x_NxD: npt.ArrayLike, y_MxD: npt.ArrayLike, bandwidth: float, *, n_permutations: int = 0, seed: int = 0
) -> Discrepancy:
    """Unbiased squared MMD of two independent samples, RBF kernel k(x, y) = exp(-|x - y|^2 / (2 bandwidth^2)).

    MMD_u^2 of Gretton et al. 2012 (eq. 3): mean k over pairs i != j of x, plus the same of y, minus twice the mean k of
    x against y. Rows are to be independent: one per patient. The p-value permutes rows between the samples.

    Raises:
      ValueError: fewer than two rows in a sample, other shapes, a bandwidth that is not positive.
    """
    x_NxD, y_MxD = _matrix(x_NxD, "x"), _matrix(y_MxD, "y")
    _matrix(y_MxD, "y", x_NxD.shape[1])
    n, m = len(x_NxD), len(y_MxD)
    if min(n, m) < 2 or not bandwidth > 0:
        raise ValueError(f"MMD needs two rows in each sample and a positive bandwidth, got {n}, {m} and {bandwidth}")
    rng = np.random.default_rng(seed)
    first = np.arange(n + m) < n
    side_NxP = np.stack([first, *(rng.permutation(first) for _ in range(n_permutations))], axis=1).astype(np.float64)
    product_NxP, total_N = _kernel_products(np.concatenate([x_NxD, y_MxD]), side_NxP, bandwidth)
    xx_P = (side_NxP * product_NxP).sum(0)
    x_all_P = side_NxP.T @ total_N
    xy_P = x_all_P - xx_P
    yy_P = total_N.sum() - x_all_P - xy_P
    # k(x, x) = 1: the diagonals are n and m
    return _with_p_value((xx_P - n) / (n * (n - 1)) + (yy_P - m) / (m * (m - 1)) - 2.0 * xy_P / (n * m))


def mmd_paired(
    x_NxD: npt.ArrayLike, y_NxD: npt.ArrayLike, bandwidth: float, *, n_permutations: int = 0, seed: int = 0
) -> Discrepancy:
    """Unbiased squared MMD of two slices of the same patients: row i of x and of y belong to patient i.

    The two slices are not independent samples. The mean of h(i, j) = k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) -
    k(x_j, y_i) over pairs of *different* patients (Gretton et al. 2012, eq. 4) is unbiased nevertheless, as it never
    compares a patient with themself. The p-value exchanges the two slices within patients.

    Raises:
      ValueError: as `mmd`.
    """
    sign_N, product = _paired_products(x_NxD, y_NxD, bandwidth)
    n = len(sign_N)
    flips_NxP = np.random.default_rng(seed).choice([-1.0, 1.0], (n, 1 + n_permutations))
    flips_NxP[:, 0] = 1.0
    # exchanging x_i and y_i turns the sign of h(i, j) for every j
    return _with_p_value(product(flips_NxP) / (n * (n - 1)))


def _paired_products(x_NxD, y_NxD, bandwidth):
    """(ones [N], a -> a' H a without its diagonal, for each column of a [N, P])."""
    x_NxD = _matrix(x_NxD, "x")
    y_NxD = _matrix(y_NxD, "y", x_NxD.shape[1])
    n = len(x_NxD)
    if n != len(y_NxD) or n < 2 or not bandwidth > 0:
        raise ValueError(f"paired MMD needs equally many rows, two or more: {n} and {len(y_NxD)}; {bandwidth=}")
    z_2NxD = np.concatenate([x_NxD, y_NxD])
    own_N = 2.0 - 2.0 * np.exp(((x_NxD - y_NxD) ** 2).sum(1) / (-2.0 * bandwidth**2))

    def product(a_NxP):
        signed = np.concatenate([a_NxP, -a_NxP])
        return (signed * _kernel_products(z_2NxD, signed, bandwidth)[0]).sum(0) - own_N @ a_NxP**2

    return np.ones(n), product


def mmd_paired_interval(
    x_NxD: npt.ArrayLike, y_NxD: npt.ArrayLike, bandwidth: float, *, n_resamples: int, seed: int = 0
) -> inference.Interval:
    """Percentile interval of `mmd_paired` over resampled patients; copies of a patient are not compared."""
    ones_N, product = _paired_products(x_NxD, y_NxD, bandwidth)

    def statistic(weight_NxB):
        pairs_B = weight_NxB.sum(0) ** 2 - (weight_NxB**2).sum(0)
        return {"mmd2": product(weight_NxB) / np.where(pairs_B > 0, pairs_B, np.nan)}

    samples = bootstrap.resample({"": statistic}, np.arange(len(ones_N)), n_resamples, seed)
    return inference.interval(samples[""]["mmd2"] if samples else [])


def adjacent_slices(
    group_N: npt.ArrayLike, time_days_N: npt.ArrayLike, *, slice_days: float = 30.0
) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Rows to compare between adjacent slices: [(slice, rows, the same patients' rows in the next slice)].

    A slice is floor(time / slice_days); of several rows of a patient in a slice the last one is used. Slices that
    fewer than two patients share with the next one are left out.

    Args:
      group_N: patient of each row.
      time_days_N: days since any origin that patients share (a grid of times, or days before the last time, negated).
    """
    group_N, time_days_N = np.asarray(group_N), np.asarray(time_days_N, np.float64)
    slice_N = np.floor(time_days_N / slice_days).astype(np.int64)
    latest: dict[int, dict[Any, int]] = {}
    for row in np.argsort(time_days_N, kind="stable"):
        latest.setdefault(int(slice_N[row]), {})[group_N[row]] = int(row)
    out = []
    for k in sorted(latest):
        shared = sorted(latest[k].keys() & latest.get(k + 1, {}).keys())
        if len(shared) > 1:
            out.append((k, np.array([latest[k][g] for g in shared]), np.array([latest[k + 1][g] for g in shared])))
    return out


# ------------------------------------------------------------------------------------------- dimension and whitening


def effective_rank(z_NxD: npt.ArrayLike) -> float:
    """exp of the entropy of the singular values, as shares of their sum, of z about its mean (Roy & Vetterli 2007).

    Between 1 and min(N - 1, D); NaN where all rows coincide.
    """
    z_NxD = _matrix(z_NxD, "z")
    value_D = np.linalg.svd(z_NxD - z_NxD.mean(0), compute_uv=False)
    if not value_D.sum() > 1e-12 * np.sqrt(z_NxD.size) * (1.0 + np.abs(z_NxD).max()):
        return float("nan")
    share_D = value_D / value_D.sum()
    share_D = share_D[share_D > 0]
    return float(np.exp(-(share_D * np.log(share_D)).sum()))


class Whitening(NamedTuple):
    """z -> (z - mean) @ map, fitted on the training split."""

    mean_D: np.ndarray
    map_DxD: np.ndarray

    def __call__(self, z_NxD: npt.ArrayLike) -> np.ndarray:
        return (_matrix(z_NxD, "z", len(self.mean_D)) - self.mean_D) @ self.map_DxD


def fit_whitening(z_NxD: npt.ArrayLike, *, floor: float = 1e-3) -> Whitening:
    """ZCA whitening by the training covariance, C ** -1/2; directions without variance are not amplified.

    Args:
      floor: eigenvalues are raised to this share of the largest one.

    Raises:
      ValueError: all rows coincide.
    """
    z_NxD = _matrix(z_NxD, "z")
    mean_D = z_NxD.mean(0)
    value_D, vector_DxD = np.linalg.eigh(np.atleast_2d(np.cov(z_NxD - mean_D, rowvar=False, bias=True)))
    if not value_D[-1] > 0:
        raise ValueError("z is constant: it has no covariance to whiten by")
    return Whitening(mean_D, (vector_DxD / np.sqrt(np.maximum(value_D, floor * value_D[-1]))) @ vector_DxD.T)


# ------------------------------------------------------------------------------------------------------- Lipschitz


def lipschitz_in_time(
    z_NxD: npt.ArrayLike, time_days_N: npt.ArrayLike, group_N: npt.ArrayLike, *, max_gap_days: float = 30.0
) -> dict[str, np.ndarray]:
    """|z(t') - z(t)| / (t' - t), per day, between consecutive times of a patient; z whitened beforehand.

    Pairs at the same time or more than `max_gap_days` apart are left out: across a long gap the ratio is an average,
    not a local rate.

    Returns:
      {"group": patient of each pair, "time": its later time, "rate": 1/day}.
    """
    z_NxD, time_days_N, group_N = _matrix(z_NxD, "z"), np.asarray(time_days_N, np.float64), np.asarray(group_N)
    order = np.lexsort((time_days_N, group_N))
    z_NxD, time_days_N, group_N = z_NxD[order], time_days_N[order], group_N[order]
    gap = np.diff(time_days_N)
    used = (group_N[1:] == group_N[:-1]) & (gap > 0) & (gap <= max_gap_days)
    moved = np.sqrt((np.diff(z_NxD, axis=0) ** 2).sum(1))
    return {"group": group_N[1:][used], "time": time_days_N[1:][used], "rate": moved[used] / gap[used]}
