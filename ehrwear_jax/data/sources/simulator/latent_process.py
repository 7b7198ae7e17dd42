"""The latent health process of the simulated cohort, and the exact risk that it implies.

State of a person on day d: two mean-reverting components (Ornstein-Uhlenbeck processes at their
exact daily discretisation, stationary variance 1, higher is worse), one that the EHR shows and one
that wearables show; an acute shock with four levels that sets in at random and steps down over
weeks; and a log-risk offset of age and sex that rises as the person ages.

On each day, in this order: a person outside hospital is admitted with probability
1 - exp(-admission hazard); one not admitted dies with probability 1 - exp(-death hazard); the state
moves on. `solve_risk` solves the backward Kolmogorov equation of exactly this daily chain, so its
risks are those of the simulated process up to interpolation error (about 1e-5).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

DAYS_PER_YEAR = 365.25
N_SHOCK = 4  # levels 0 (none) to 3 (severe)
COMPONENT_RANGE = (-5.0, 7.0)  # the components are clipped to it; wider above: admissions do harm


@dataclass(frozen=True)
class HealthProcess:
    """Parameters of the process. Effects are log hazard ratios per unit of the state.

    Attributes:
      admission_per_year: admission hazard of a woman of 60 with components and shock at zero.
      death_per_year: death hazard of the same person.
      age_effect: on the offset, per ten years of age.
      male_effect: on the offset.
      admission_effects: of the EHR component, the wearable component, one shock level.
      death_effects: the same three for death.
      death_offset_scale: the offset counts this many times for death.
      relaxation_days: time constants of the two components.
      shock_per_year: onsets per year.
      shock_shares: probability that an onset has level 1, 2, 3.
      shock_step_days: mean days until a shock steps down by one level.
      admission_harm: rise of the EHR component at an admission; the shock goes to its top level.
      mean_stay_days: mean length of stay beyond the first night.
    """

    admission_per_year: float = 0.08
    death_per_year: float = 0.006
    age_effect: float = 0.4
    male_effect: float = 0.2
    admission_effects: tuple[float, float, float] = (1.0, 1.2, 0.8)
    death_effects: tuple[float, float, float] = (0.6, 0.5, 0.5)
    death_offset_scale: float = 2.0
    relaxation_days: tuple[float, float] = (1400.0, 1400.0)
    shock_per_year: float = 1.2
    shock_shares: tuple[float, float, float] = (0.5, 0.3, 0.2)
    shock_step_days: float = 9.0
    admission_harm: float = 0.2
    mean_stay_days: float = 4.0

    @property
    def offset_per_day(self) -> float:
        return self.age_effect / 10 / DAYS_PER_YEAR

    @property
    def persistence(self) -> tuple[float, float]:
        """Daily autocorrelation of each component."""
        return tuple(float(np.exp(-1 / days)) for days in self.relaxation_days)

    def offset(self, age_years, male):
        """Log-risk offset at an age (years) for sex (True: male)."""
        return self.age_effect * (age_years - 60.0) / 10.0 + self.male_effect * male

    def hazards(self, offset, ehr, wearable, shock):
        """(admission, death) hazard per day, broadcast over the state."""
        a_ehr, a_wearable, a_shock = self.admission_effects
        d_ehr, d_wearable, d_shock = self.death_effects
        admission = np.exp(offset + a_ehr * ehr + a_wearable * wearable + a_shock * shock)
        death = np.exp(self.death_offset_scale * offset + d_ehr * ehr + d_wearable * wearable + d_shock * shock)
        return (
            admission * (self.admission_per_year / DAYS_PER_YEAR),
            death * (self.death_per_year / DAYS_PER_YEAR),
        )

    def advance(self, ehr, wearable, shock, normal_x2, uniform_x2):
        """The state one day later.

        Args:
          ehr, wearable: components; shock: int level; all [...].
          normal_x2: standard normals [..., 2]; uniform_x2: uniforms on [0, 1) [..., 2].
        """
        moved = []
        for k, component in enumerate((ehr, wearable)):
            phi = self.persistence[k]
            step = np.sqrt(1 - phi**2) * normal_x2[..., k]
            moved.append(np.clip(phi * component + step, *COMPONENT_RANGE))
        shock = shock - ((uniform_x2[..., 0] < 1 / self.shock_step_days) & (shock > 0))
        onset_rate = self.shock_per_year / DAYS_PER_YEAR
        edges = onset_rate * np.cumsum(self.shock_shares)
        onset = uniform_x2[..., 1]
        level = np.where(onset < edges[-1], 1 + np.searchsorted(edges, onset, side="right"), 0)
        return moved[0], moved[1], np.maximum(shock, level)

    def shock_transition(self) -> np.ndarray:
        """P[i, j], the probability that level i is level j a day later; [N_SHOCK, N_SHOCK]."""
        step_down = np.eye(N_SHOCK)
        for level in range(1, N_SHOCK):
            step_down[level, level - 1 : level + 1] = (
                1 / self.shock_step_days,
                1 - 1 / self.shock_step_days,
            )
        rate = self.shock_per_year / DAYS_PER_YEAR
        onset = np.zeros((N_SHOCK, N_SHOCK))
        for level, share in enumerate((1 - rate, *(rate * np.array(self.shock_shares)))):
            for before in range(N_SHOCK):
                onset[before, max(before, level)] += share
        return step_down @ onset

    def shock_stationary(self) -> np.ndarray:
        """Long-run distribution of the shock level, [N_SHOCK]."""
        return np.linalg.matrix_power(self.shock_transition(), 4096)[0]


@dataclass(frozen=True)
class Paths:
    """Latent paths of n people on a grid of days; entry d is the state at the start of day d.

    Attributes:
      offset_NxD, ehr_NxD, wearable_NxD: f64.
      shock_NxD: int8.
      alive_NxD: alive at the start of day d.
      in_hospital_NxD: in hospital at the start of day d.
      admitted_NxD: admitted during day d.
      died_NxD: died during day d.
    """

    offset_NxD: np.ndarray
    ehr_NxD: np.ndarray
    wearable_NxD: np.ndarray
    shock_NxD: np.ndarray
    alive_NxD: np.ndarray
    in_hospital_NxD: np.ndarray
    admitted_NxD: np.ndarray
    died_NxD: np.ndarray


N_UNIFORM = 5  # per person and day: admission, death, shock step-down, shock onset, length of stay


def draw_noise(rng: np.random.Generator, n_days: int) -> tuple[np.ndarray, np.ndarray]:
    """Random numbers of one person: normals [n_days + 1, 2] and uniforms [n_days + 1, N_UNIFORM].

    Row 0 is for the initial state, row d + 1 for day d.
    """
    return rng.standard_normal((n_days + 1, 2)), rng.random((n_days + 1, N_UNIFORM))


def simulate_paths(process: HealthProcess, offset_N: np.ndarray, normal_NxDx2, uniform_NxDx5, *, start=None) -> Paths:
    """Runs the chain for all people at once.

    Args:
      process: parameters.
      offset_N: log-risk offset on day 0.
      normal_NxDx2, uniform_NxDx5: draw_noise of each person, stacked (D = days + 1).
      start: optional (ehr_N, wearable_N, shock_N) on day 0; drawn from the stationary law if None.
    """
    n, n_days = normal_NxDx2.shape[0], normal_NxDx2.shape[1] - 1
    shape = (n, n_days)
    offset_NxD = offset_N[:, None] + process.offset_per_day * np.arange(n_days)
    ehr_NxD, wearable_NxD = np.empty(shape), np.empty(shape)
    shock_NxD = np.empty(shape, np.int8)
    flags = {name: np.zeros(shape, bool) for name in ("alive", "hospital", "admitted", "died")}

    if start is None:
        ehr, wearable = np.clip(normal_NxDx2[:, 0].T, *COMPONENT_RANGE)
        cumulative = np.cumsum(process.shock_stationary())[:-1]
        shock = np.searchsorted(cumulative, uniform_NxDx5[:, 0, 3], side="right")
    else:
        ehr, wearable, shock = start
    alive = np.ones(n, bool)
    last_night = np.full(n, -1)
    for day in range(n_days):
        uniform = uniform_NxDx5[:, day + 1]
        ehr_NxD[:, day], wearable_NxD[:, day], shock_NxD[:, day] = ehr, wearable, shock
        inside = alive & (day <= last_night)
        hazard_a, hazard_d = process.hazards(offset_NxD[:, day], ehr, wearable, shock)
        admitted = alive & ~inside & (uniform[:, 0] < -np.expm1(-hazard_a))
        died = alive & ~admitted & (uniform[:, 1] < -np.expm1(-hazard_d))
        flags["alive"][:, day], flags["hospital"][:, day] = alive, inside
        flags["admitted"][:, day], flags["died"][:, day] = admitted, died
        stay = 1 + np.floor(-process.mean_stay_days * np.log1p(-uniform[:, 4])).astype(int)
        last_night = np.where(admitted, day + stay, last_night)
        ehr, wearable, shock = process.advance(ehr, wearable, shock, normal_NxDx2[:, day + 1], uniform[:, 2:4])
        ehr = np.minimum(ehr + process.admission_harm * admitted, COMPONENT_RANGE[1])
        shock = np.where(admitted, N_SHOCK - 1, shock)
        alive = alive & ~died
    return Paths(
        offset_NxD, ehr_NxD, wearable_NxD, shock_NxD,
        flags["alive"], flags["hospital"], flags["admitted"], flags["died"],
    )  # fmt: skip


# ----------------------------------------------------------------------------------- the oracle
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
      risk_HxMxSxAxA: risk by horizon, offset, shock, EHR component, wearable component.
    """

    horizons_days: np.ndarray
    offset_M: np.ndarray
    component_A: np.ndarray
    risk_HxMxSxAxA: np.ndarray

    def __call__(self, horizon_days: int, offset_N, ehr_N, wearable_N, shock_N) -> np.ndarray:
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
        table_SxMxAxA = self.risk_HxMxSxAxA[where[0]].swapaxes(0, 1)
        out_N = np.empty(len(offset_N))
        for level in range(N_SHOCK):
            for rows in np.array_split(mine := np.flatnonzero(shock_N == level), len(mine) // 4096 + 1):
                if not len(rows):
                    continue
                by_offset = _interpolation_matrix(self.offset_M, offset_N[rows])
                by_ehr = _interpolation_matrix(self.component_A, np.asarray(ehr_N, float)[rows])
                by_wear = _interpolation_matrix(self.component_A, np.asarray(wearable_N, float)[rows])
                partial = np.tensordot(by_wear, table_SxMxAxA[level], axes=(1, 2))  # n M A
                partial = np.einsum("nma,na->nm", partial, by_ehr)
                out_N[rows] = np.einsum("nm,nm->n", partial, by_offset)
        return np.clip(out_N, 0.0, 1.0)

    def save(self, path: Path) -> None:
        np.savez(path, **{name: getattr(self, name) for name in self.__dataclass_fields__})

    @classmethod
    def load(cls, path: Path) -> "RiskTable":
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no such file; only simulated cohorts have one")
        with np.load(path) as stored:
            return cls(**{name: stored[name] for name in cls.__dataclass_fields__})


def solve_risk(
    process: HealthProcess,
    horizons_days: Sequence[int],
    offset_range: tuple[float, float],
    *,
    n_component: int = 32,
    n_offset: int = 12,
) -> RiskTable:
    """Solves v_k(z) = p_a(z) + (1 - p_a(z)) (1 - p_d(z)) E[v_{k-1}(z') | z], v_0 = 0, backwards.

    z is the state of a living person outside hospital at the start of a day; v_k is the probability
    of an admission within k days, a death before it counting as none. The expectation over the
    Gaussian steps is by Gauss-Hermite quadrature of the Chebyshev interpolant, that over the shock
    by its transition matrix; the drift of the offset is followed exactly.

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
    move_shock_SxS = process.shock_transition()
    state = (
        offset_M[:, None, None, None],
        component_A[:, None],
        component_A,
        np.arange(N_SHOCK)[:, None, None],
    )
    admission_MxSxAxA, death_MxSxAxA = process.hazards(*state)

    risk = []
    for horizon in horizons_days:
        value_MxSxAxA = np.zeros_like(admission_MxSxAxA)
        for day in reversed(range(horizon)):
            drift = process.offset_per_day * day
            stay_out = np.exp(-np.exp(drift) * admission_MxSxAxA)
            survive = np.exp(-np.exp(process.death_offset_scale * drift) * death_MxSxAxA)
            expected = move_ehr_AxA @ (value_MxSxAxA @ move_wearable_AxA.T)
            expected = np.einsum("st,mtab->msab", move_shock_SxS, expected, optimize=True)
            value_MxSxAxA = 1 - stay_out + stay_out * survive * expected
        risk.append(value_MxSxAxA)
    return RiskTable(np.array(horizons_days), offset_M, component_A, np.stack(risk))
