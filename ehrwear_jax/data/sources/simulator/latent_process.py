"""Simulates the latent health process: Ornstein-Uhlenbeck components, a shock chain, hazards of admission and death.

State of a person on day d: two mean-reverting components (Ornstein-Uhlenbeck processes at their
exact daily discretisation, stationary variance 1, higher is worse), one that the EHR measures and one
that wearables measure; an acute shock, a Markov chain of four levels that sets in at random and steps
down over weeks; a log-risk offset of age and sex that rises as the person ages; and whether the person has heart
disease, which never changes and on which the effects of the wearable component and of the shock depend.

On each day, in this order: a person outside hospital is admitted with probability
1 - exp(-admission hazard); one not admitted dies with probability 1 - exp(-death hazard); the state
moves on. `admission_risk.solve_risk` gives the exact risk that this chain implies.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ehrwear_jax.data.formats.times import YEAR_DAYS

N_SHOCK = 4  # levels 0 (none) to 3 (severe)
COMPONENT_RANGE = (-5.0, 7.0)  # the components are clipped to it; wider above: admissions do harm


@dataclass(frozen=True)
class HealthProcess:
    """Parameters of the process. Effects are log hazard ratios per unit of the state.

    Attributes:
      admission_per_year: admission hazard of a woman of 60 without heart disease, components and shock at zero.
      death_per_year: death hazard of the same person.
      age_effect: on the offset, per ten years of age.
      male_effect: on the offset.
      admission_effects: of the EHR component, the wearable component, one shock level; the latter two times their
        gain.
      death_effects: the same three for death, without gains.
      disease_effect: of heart disease, on admissions.
      wearable_gain, shock_gain: factors of the two effects on admissions, (without, with) heart disease.
      death_offset_scale: the offset counts this many times for death.
      relaxation_days: time constants of the two components.
      shock_per_year: onsets per year.
      shock_shares: probability that an onset has level 1, 2, 3.
      shock_step_days: mean days until a shock steps down by one level.
      admission_harm: rise of the EHR component at an admission; the shock goes to its top level.
      mean_stay_days: mean length of stay beyond the first night.
    """

    admission_per_year: float = 0.085
    death_per_year: float = 0.006
    age_effect: float = 0.4
    male_effect: float = 0.2
    admission_effects: tuple[float, float, float] = (0.8, 2.4, 1.0)
    death_effects: tuple[float, float, float] = (0.6, 0.5, 0.5)
    disease_effect: float = 0.3
    wearable_gain: tuple[float, float] = (0.0, 1.0)
    shock_gain: tuple[float, float] = (0.5, 1.0)
    death_offset_scale: float = 2.0
    relaxation_days: tuple[float, float] = (1400.0, 1400.0)
    shock_per_year: float = 2.5
    shock_shares: tuple[float, float, float] = (0.5, 0.3, 0.2)
    shock_step_days: float = 9.0
    admission_harm: float = 0.2
    mean_stay_days: float = 4.0

    @property
    def offset_per_day(self) -> float:
        """Rise of the log-risk offset as a person ages."""
        return self.age_effect / 10 / YEAR_DAYS

    @property
    def persistence(self) -> tuple[float, float]:
        """Daily autocorrelation of each component."""
        ehr, wearable = (float(np.exp(-1 / days)) for days in self.relaxation_days)
        return ehr, wearable

    def offset(self, age_years: float | np.ndarray, male: bool | np.ndarray) -> float | np.ndarray:
        """Log-risk offset at an age (years) for sex (True: male)."""
        return self.age_effect * (age_years - 60.0) / 10.0 + self.male_effect * male

    def hazards(
        self, offset: np.ndarray, ehr: np.ndarray, wearable: np.ndarray, shock: np.ndarray, disease: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(admission, death) hazard per day, broadcast over the state; disease: bool."""
        disease = np.asarray(disease, int)
        a_ehr, a_wearable, a_shock = self.admission_effects
        d_ehr, d_wearable, d_shock = self.death_effects
        a_wearable = a_wearable * np.array(self.wearable_gain)[disease]
        a_shock = a_shock * np.array(self.shock_gain)[disease]
        log_ratio = offset + a_ehr * ehr + a_wearable * wearable + a_shock * shock
        admission = np.exp(log_ratio + self.disease_effect * disease)
        death = np.exp(self.death_offset_scale * offset + d_ehr * ehr + d_wearable * wearable + d_shock * shock)
        return (
            admission * (self.admission_per_year / YEAR_DAYS),
            death * (self.death_per_year / YEAR_DAYS),
        )

    def advance(
        self, ehr: np.ndarray, wearable: np.ndarray, shock: np.ndarray, normal_x2: np.ndarray, uniform_x2: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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
        onset_rate = self.shock_per_year / YEAR_DAYS
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
        rate = self.shock_per_year / YEAR_DAYS
        onset = np.zeros((N_SHOCK, N_SHOCK))
        for level, share in enumerate((1 - rate, *(rate * np.array(self.shock_shares)))):
            for before in range(N_SHOCK):
                onset[before, max(before, level)] += share
        return step_down @ onset

    def shock_stationary(self) -> np.ndarray:
        """Long-run distribution of the shock level, [N_SHOCK]."""
        return np.linalg.matrix_power(self.shock_transition(), 4096)[0]


class PersonPath(NamedTuple):
    """Latent path of one person, see Paths: [D] each."""

    offset_D: np.ndarray
    ehr_D: np.ndarray
    wearable_D: np.ndarray
    shock_D: np.ndarray
    alive_D: np.ndarray
    in_hospital_D: np.ndarray
    admitted_D: np.ndarray
    died_D: np.ndarray


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

    def person(self, n: int) -> "PersonPath":
        """The path of one of the people."""
        return PersonPath(*(getattr(self, name.removesuffix("_D") + "_NxD")[n] for name in PersonPath._fields))


N_UNIFORM = 5  # per person and day: admission, death, shock step-down, shock onset, length of stay


def draw_noise(rng: np.random.Generator, n_days: int) -> tuple[np.ndarray, np.ndarray]:
    """Random numbers of one person: normals [n_days + 1, 2] and uniforms [n_days + 1, N_UNIFORM].

    Row 0 is for the initial state, row d + 1 for day d.
    """
    return rng.standard_normal((n_days + 1, 2)), rng.random((n_days + 1, N_UNIFORM))


def simulate_paths(
    process: HealthProcess,
    offset_N: np.ndarray,
    disease_N: np.ndarray,
    normal_NxDx2: np.ndarray,
    uniform_NxDx5: np.ndarray,
    *,
    start: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
) -> Paths:
    """Simulates the chain of all people at once.

    Args:
      process: parameters.
      offset_N: log-risk offset on day 0.
      disease_N: bool, who has heart disease.
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
        hazard_a, hazard_d = process.hazards(offset_NxD[:, day], ehr, wearable, shock, disease_N)
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
