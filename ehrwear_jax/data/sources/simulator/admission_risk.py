"""Solves the true risk of an admission given the latent state, by the backward Kolmogorov equation.

The equation is that of the daily chain of latent_process.py, so the risks are those of the simulated process up to
interpolation error (at most 3e-4 at 30 days, 1e-4 from 90 days on).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from ehrwear_jax.data.sources.simulator.latent_process import COMPONENT_RANGE, N_SHOCK, HealthProcess
from ehrwear_jax.runtime import files


def _chebyshev_nodes(low: float, high: float, n: int) -> np.ndarray:
    return low + (high - low) * (1 - np.cos(np.pi * np.arange(n) / (n - 1))) / 2


def _interpolation_matrix(nodes: np.ndarray, points: np.ndarray) -> np.ndarray:
    """L[i, j]: weight of node j for the value at point i (barycentric, second-kind Chebyshev)."""
    weights = (-1.0) ** np.arange(len(nodes))
    weights[[0, -1]] /= 2
    difference = points[:, None] - nodes
    exact = difference == 0
    ratio = weights / np.where(exact, 1.0, difference)
    matrix = ratio / ratio.sum(axis=1, keepdims=True)
    hit = exact.any(axis=1)
    matrix[hit] = exact[hit]
    return matrix


@dataclass(frozen=True)
class RiskTable:
    """Risk of an admission within each horizon, on Chebyshev nodes of the state.

    Attributes:
      horizons_days: [H].
      offset_M, component_A: nodes of the offset and of both components.
      risk_HxGxMxSxAxA: risk by horizon, heart disease (no, yes), offset, shock, EHR component, wearable component.
    """

    horizons_days: np.ndarray
    offset_M: np.ndarray
    component_A: np.ndarray
    risk_HxGxMxSxAxA: np.ndarray

    def __call__(
        self,
        horizon_days: int,
        offset_N: ArrayLike,
        ehr_N: ArrayLike,
        wearable_N: ArrayLike,
        shock_N: ArrayLike,
        disease_N: ArrayLike,
    ) -> np.ndarray:
        """Risk [N] of an admission in the `horizon_days` days that start with the state's day.

        Raises:
          ValueError: the horizon is not in the table, or an offset lies outside its range.
        """
        where = np.flatnonzero(self.horizons_days == horizon_days)
        if not len(where):
            raise ValueError(
                f"no risk for a horizon of {horizon_days} days; the table has {self.horizons_days.tolist()}"
            )
        offset_N, shock_N = np.asarray(offset_N, float), np.asarray(shock_N, int)
        low, high = self.offset_M[[0, -1]]
        if len(offset_N) and not (low <= offset_N.min() and offset_N.max() <= high):
            raise ValueError(f"a log-risk offset lies outside [{low}, {high}]")
        risk_GxMxSxAxA = self.risk_HxGxMxSxAxA[where[0]]
        disease_N = np.asarray(disease_N, int)
        out_N = np.empty(len(offset_N))
        for disease, level in np.ndindex(2, N_SHOCK):
            mine = np.flatnonzero((shock_N == level) & (disease_N == disease))
            for rows in np.array_split(mine, len(mine) // 4096 + 1):
                if not len(rows):
                    continue
                by_offset = _interpolation_matrix(self.offset_M, offset_N[rows])
                by_ehr = _interpolation_matrix(self.component_A, np.asarray(ehr_N, float)[rows])
                by_wear = _interpolation_matrix(self.component_A, np.asarray(wearable_N, float)[rows])
                partial = np.tensordot(by_wear, risk_GxMxSxAxA[disease, :, level], axes=(1, 2))  # n M A
                partial = np.einsum("nma,na->nm", partial, by_ehr)
                out_N[rows] = np.einsum("nm,nm->n", partial, by_offset)
        return np.clip(out_N, 0.0, 1.0)

    def save(self, path: Path) -> None:
        """Writes an .npz file."""
        with files.replacing(path) as partial, open(partial, "wb") as f:
            np.savez(f, **{name: getattr(self, name) for name in self.__dataclass_fields__})

    @classmethod
    def load(cls, path: Path) -> "RiskTable":
        """Reads what save wrote; FileNotFoundError if there is none."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no such file; only simulated cohorts have one")
        with np.load(path) as stored:
            return cls(**{name: stored[name] for name in cls.__dataclass_fields__})


def solve_risk(
    process: HealthProcess,
    horizons_days: Sequence[int],
    offset_range: tuple[float, float],
    *,
    n_component: int = 60,
    n_offset: int = 12,
) -> RiskTable:
    """Solves v_k(z) = p_a(z) + (1 - p_a(z)) (1 - p_d(z)) E[v_{k-1}(z') | z], v_0 = 0, backwards.

    z is the state of a living person outside hospital at the start of a day; v_k is the probability
    of an admission within k days, a death before it counting as none. The expectation over the
    Gaussian steps is by Gauss-Hermite quadrature of the Chebyshev interpolant, that over the shock
    by its transition matrix; the drift of the offset moves its interpolant.

    Args:
      process: parameters.
      horizons_days: whole days, each at least 1.
      offset_range: (lowest, highest) offset at which risk will be asked for.
      n_component, n_offset: Chebyshev nodes per component and of the offset.
    """
    if not horizons_days or min(horizons_days) < 1:
        raise ValueError(f"horizons_days is {horizons_days}: needs whole days, each at least 1")
    component_A = _chebyshev_nodes(*COMPONENT_RANGE, n_component)
    offset_M = _chebyshev_nodes(*offset_range, n_offset)
    point_Q, weight_Q = np.polynomial.hermite_e.hermegauss(7)
    weight_Q = weight_Q / weight_Q.sum()
    moves = []
    for phi in process.persistence:
        target_AxQ = phi * component_A[:, None] + np.sqrt(1 - phi**2) * point_Q
        target_AxQ = np.clip(target_AxQ, *COMPONENT_RANGE)
        rows = _interpolation_matrix(component_A, target_AxQ.ravel())
        moves.append(np.einsum("aqb,q->ab", rows.reshape(n_component, -1, n_component), weight_Q))
    move_ehr_AxA, move_wearable_AxA = moves
    # the offset drifts and the shock moves: one matrix for both, offset major
    drift_MxM = _interpolation_matrix(offset_M, offset_M + process.offset_per_day)
    move_rest_KxK = np.kron(drift_MxM, process.shock_transition())
    state = (
        offset_M[:, None, None, None],
        component_A[:, None],
        component_A,
        np.arange(N_SHOCK)[:, None, None],
        np.arange(2)[:, None, None, None, None],
    )
    admission_GxMxSxAxA, death_GxMxSxAxA = np.broadcast_arrays(*process.hazards(*state))
    stay_out_GxMxSxAxA = np.exp(-admission_GxMxSxAxA)
    go_on_GxMxSxAxA = stay_out_GxMxSxAxA * np.exp(-death_GxMxSxAxA)

    value_GxMxSxAxA = np.zeros(admission_GxMxSxAxA.shape)
    risk = {}
    for day in range(1, max(horizons_days) + 1):
        moved_GxMxSxAxA = move_ehr_AxA @ (value_GxMxSxAxA @ move_wearable_AxA.T)
        moved_GxKxAA = move_rest_KxK @ moved_GxMxSxAxA.reshape(2, len(move_rest_KxK), -1)
        value_GxMxSxAxA = 1 - stay_out_GxMxSxAxA + go_on_GxMxSxAxA * moved_GxKxAA.reshape(value_GxMxSxAxA.shape)
        if day in horizons_days:
            risk[day] = value_GxMxSxAxA
    return RiskTable(np.array(horizons_days), offset_M, component_A, np.stack([risk[h] for h in horizons_days]))
