"""Simulates the EHR of one person given the latent path: visits, stays, measurements, diagnoses, prescriptions.

Visits are a Poisson process whose rate depends on the state; measurements are the state plus a personal level and
noise; chronic conditions are present once a liability has crossed its threshold, heart disease from the start in those
who have it, with the drug that lowers the heart rate. The wearable component does not show in it. None of it acts back
on the state: only latent_process.py decides on admissions and deaths.
"""

from dataclasses import dataclass

import numpy as np
import scipy  # its submodules load at first use
from numpy.typing import ArrayLike

from ehrwear_jax.config.data import SimulateConfig
from ehrwear_jax.data.formats.times import DAY_US, MINUTE_US, YEAR_DAYS
from ehrwear_jax.data.sources.simulator import code_book
from ehrwear_jax.data.sources.simulator.latent_process import PersonPath
from ehrwear_jax.data.sources.simulator.people import Person

STATIC_US = np.iinfo(np.int64).min  # stands for the null time of a static event
CODES = code_book.code_table()["code"].to_list()
_INDEX = {code: i for i, code in enumerate(CODES)}

_VISITS_PER_YEAR = 5.0
_WEEKDAY_RATE = np.array([1.4, 1.35, 1.35, 1.35, 1.3, 0.2, 0.05])  # Monday first; mean 1
_PANEL_MISSING = np.array([0.15, 0.45, 0.75])  # at a visit, by Lab.panel
_INPATIENT_MISSING = np.array([0.05, 0.1, 0.4])
_CONDITION_SHIFT = 1.5  # of a lab's score, while its condition is present

_LAB_INDEX = np.array([_INDEX[f"LOINC//{lab.code}"] for lab in code_book.LABS])
_LAB_EFFECTS_2xL = np.array([(lab.ehr, lab.shock) for lab in code_book.LABS]).T
_LAB_PERSONAL, _LAB_NOISE, _LAB_CENTRE, _LAB_SCALE = (
    np.array([getattr(lab, name) for lab in code_book.LABS]) for name in ("personal", "noise", "centre", "scale")
)
_LAB_LOG = np.array([lab.log for lab in code_book.LABS])
_LAB_PANEL = np.array([lab.panel for lab in code_book.LABS])
_LAB_TOP = np.array([lab.top for lab in code_book.LABS], float)
_LAB_TEN = 10.0 ** np.array([lab.decimals for lab in code_book.LABS])
_CONDITION_CODE = np.array([_INDEX[f"ICD10//{c.code}"] for c in code_book.CONDITIONS])
_CONDITION_EFFECTS_2xC = np.array([(c.ehr, c.age) for c in code_book.CONDITIONS]).T
_CONDITION_SHARE = np.array([c.share for c in code_book.CONDITIONS])
_LAB_CONDITION_CxL = np.array(
    [[lab.condition == c.code for lab in code_book.LABS] for c in code_book.CONDITIONS], float
)
_DRUG_CONDITION = np.array([i for i, c in enumerate(code_book.CONDITIONS) for _ in c.drugs])
_DRUG_CODE = np.array([_INDEX[f"ATC//{d}"] for c in code_book.CONDITIONS for d in c.drugs])
_ACUTE_CODE = np.array([_INDEX[f"ICD10//{a[0]}"] for a in code_book.ACUTE])
_ACUTE_WEIGHT_2xA = np.array([a[2:] for a in code_book.ACUTE]).T
_ACUTE_DRUG = np.array([-1 if d is None else _INDEX[f"ATC//{d}"] for d in code_book.ACUTE_DRUGS])
_MAIN_CODE = np.array([_INDEX[f"ICD10//{d[0]}"] for d in code_book.ADMISSION_DIAGNOSES])
_MAIN_SHARE = np.array([d[2] for d in code_book.ADMISSION_DIAGNOSES])
_MAIN_SHARE = _MAIN_SHARE / _MAIN_SHARE.sum()
_HEART_RATE = [lab.text for lab in code_book.LABS].index("Heart rate")
_HEART_DISEASE = [c.code for c in code_book.CONDITIONS].index(code_book.HEART_DISEASE)
_BETA_BLOCKER = _INDEX[f"ATC//{code_book.BETA_BLOCKER}"]
# chance that a visit notes a condition that is present; that of heart disease has to reach most records
_NOTED_C = np.where(np.arange(len(code_book.CONDITIONS)) == _HEART_DISEASE, 0.9, 0.3)
_REFILLED = 0.7  # chance that a visit prescribes the beta-blocker to who takes it
_VISIT, _ECG, _CHEST, _INHALE, _BLOOD = (_INDEX[p[0]] for p in code_book.PROCEDURES)


@dataclass(frozen=True)
class _Course:
    """One person's course over the D days of observation, and how it is measured.

    Attributes:
      day_us_D: midnights, microseconds since 1970.
      state_Dx2: EHR component and shock, as far as the EHR shows them.
      present_DxC: bool, chronic conditions.
      personal_L: the person's own level of each lab, in units of its score.
      beta_blocker: whether the person takes it, as far as the EHR shows it.
      config: SimulateConfig.
    """

    day_us_D: np.ndarray
    state_Dx2: np.ndarray
    present_DxC: np.ndarray
    personal_L: np.ndarray
    beta_blocker: bool
    config: SimulateConfig


@dataclass(frozen=True)
class _Stay:
    """A stay in hospital: its first and last day, and its times; out_us is None if observation ends before it."""

    first: int
    last: int
    in_us: int
    out_us: int | None


class _Log:
    """Collects events as arrays and returns them in time order (stable)."""

    def __init__(self) -> None:
        self.time: list[np.ndarray] = []
        self.code: list[np.ndarray] = []
        self.value: list[np.ndarray] = []

    def add(self, time_N: ArrayLike, code: ArrayLike, value: ArrayLike = np.nan) -> None:
        """Adds events; code (index into CODES) and value may be one for all."""
        time_N = np.atleast_1d(np.asarray(time_N, np.int64))
        self.time.append(time_N)
        self.code.append(np.broadcast_to(np.asarray(code, np.int32), time_N.shape))
        self.value.append(np.broadcast_to(np.asarray(value, np.float32), time_N.shape))

    def sorted(self, before_us: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(time_us, code, value) of the events before a time."""
        time, code, value = map(np.concatenate, (self.time, self.code, self.value))
        order = np.argsort(time, kind="stable")
        order = order[time[order] < before_us]
        return time[order], code[order], value[order]


def person_events(
    rng: np.random.Generator, person: Person, path: PersonPath, config: SimulateConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Events of one person.

    Args:
      rng: the person's generator for the EHR.
      person: demographics and calendar.
      path: the person's latent path, at least as long as the observation.
      config: what to simulate.

    Returns:
      (time_us i64 [N], STATIC_US if static; index into CODES i32 [N]; value f32 [N], NaN: none), in
      time order, nothing later than the end of observation.
    """
    n_days = person.end_day
    state_Dx2 = np.stack([path.ehr_D[:n_days], path.shock_D[:n_days]], axis=1) * config.ehr_information
    day_us_D = person.start_us + np.arange(n_days) * DAY_US
    died = np.flatnonzero(path.died_D[:n_days])
    end_us = person.start_us + n_days * DAY_US
    death_us = None
    if len(died):
        death_us = int(day_us_D[died[0]] + rng.integers(60, 1440) * MINUTE_US)

    log = _Log()
    log.add(STATIC_US, _INDEX["GENDER//M" if person.male else "GENDER//F"])
    log.add(person.birth_us, _INDEX["MEDS_BIRTH"])
    present_DxC = _conditions(rng, person, state_Dx2, day_us_D)
    present_DxC[:, _HEART_DISEASE] = person.heart_disease and rng.random() < config.ehr_information
    prescribed = person.beta_blocker and rng.random() < config.ehr_information
    level_L = rng.standard_normal(len(code_book.LABS))
    level_L[_HEART_RATE] = person.resting
    level_L *= _LAB_PERSONAL
    if prescribed:
        level_L[_HEART_RATE] -= config.drug_heart_rate / _LAB_SCALE[_HEART_RATE]
    course = _Course(day_us_D, state_Dx2, present_DxC, level_L, prescribed, config)
    _visits(rng, log, path, course)
    for stay in _stays(rng, path, day_us_D, death_us):
        _stay(rng, log, stay, course)

    stop_us = end_us
    if death_us is not None:
        stop_us = death_us + 1  # nothing is recorded after death
        log.add(death_us, _INDEX["MEDS_DEATH"])
    time, code, value = log.sorted(stop_us)
    if death_us is None:  # observed to the scheduled end, that midnight included
        time = np.append(time, end_us)
        code = np.append(code, np.int32(_INDEX[code_book.FOLLOWUP_END_CODE]))
        value = np.append(value, np.float32(np.nan))
    return time, code, value


def _conditions(rng: np.random.Generator, person: Person, state_Dx2: np.ndarray, day_us_D: np.ndarray) -> np.ndarray:
    """Which conditions are present on each day, bool [D, C]: none ever goes away."""
    ehr_C, age_C = _CONDITION_EFFECTS_2xC
    age_D = (day_us_D - person.birth_us) / DAY_US / YEAR_DAYS
    liability_DxC = (
        state_Dx2[:, :1] * ehr_C
        + (age_D[:, None] - 62) / 10 * age_C
        + rng.standard_normal(len(ehr_C))
    )
    threshold_C = scipy.special.ndtri(1 - _CONDITION_SHARE) * np.sqrt(1 + ehr_C**2)
    return np.logical_or.accumulate(liability_DxC > threshold_C, axis=0)


def _visits(rng: np.random.Generator, log: _Log, path: PersonPath, course: _Course) -> None:
    """Visits outside hospital, with what is measured, diagnosed, prescribed and done there."""
    n_days = len(course.day_us_D)
    weekday_D = (course.day_us_D // DAY_US + 3) % 7  # 1970-01-01 was a Thursday
    propensity = 0.4 * rng.standard_normal()
    rate_D = (_VISITS_PER_YEAR / YEAR_DAYS) * _WEEKDAY_RATE[weekday_D]
    rate_D = rate_D * np.exp(propensity + course.state_Dx2 @ (0.25, 0.35))
    free_D = path.alive_D & ~path.in_hospital_D & ~path.admitted_D
    day_V = np.flatnonzero((rng.random(n_days) < -np.expm1(-rate_D)) & free_D[:n_days])
    n_visits = len(day_V)
    time_V = course.day_us_D[day_V] + rng.integers(8 * 60, 17 * 60, n_visits) * MINUTE_US
    if not n_visits:
        return
    log.add(time_V, _VISIT)
    _measure(rng, log, time_V, day_V, course, _PANEL_MISSING)

    after_V = time_V + 20 * MINUTE_US  # diagnoses and prescriptions at the end of the visit
    shock_V = course.state_Dx2[day_V, 1]
    weight_VxA = _ACUTE_WEIGHT_2xA[0] + shock_V[:, None] * _ACUTE_WEIGHT_2xA[1]
    edges_VxA = np.cumsum(weight_VxA, axis=1)
    pick_V = (rng.random((n_visits, 1)) * edges_VxA[:, -1:] > edges_VxA).sum(axis=1)
    acute_V = rng.random(n_visits) < np.minimum(0.25 + 0.2 * shock_V, 0.9)
    log.add(after_V[acute_V], _ACUTE_CODE[pick_V[acute_V]])
    present_VxC = course.present_DxC[day_V]
    visit, condition = np.nonzero(present_VxC & (rng.random(present_VxC.shape) < _NOTED_C))
    log.add(after_V[visit], _CONDITION_CODE[condition])
    treated_VxD = present_VxC[:, _DRUG_CONDITION]
    visit, drug = np.nonzero(treated_VxD & (rng.random(treated_VxD.shape) < 0.35))
    log.add(after_V[visit], _DRUG_CODE[drug])
    refilled_V = course.beta_blocker & (rng.random(n_visits) < _REFILLED)
    log.add(after_V[refilled_V], _BETA_BLOCKER)
    drug_V = _ACUTE_DRUG[pick_V]
    given_V = acute_V & (drug_V >= 0) & (rng.random(n_visits) < 0.6)
    log.add(after_V[given_V], drug_V[given_V])
    ecg_V = rng.random(n_visits) < 0.05 + 0.15 * (present_VxC[:, 3] | present_VxC[:, 4])
    log.add(time_V[ecg_V] + 10 * MINUTE_US, _ECG)
    chest_V = rng.random(n_visits) < 0.03 + 0.1 * shock_V
    log.add(time_V[chest_V] + 15 * MINUTE_US, _CHEST)


def _measure(
    rng: np.random.Generator, log: _Log, time_K: np.ndarray, day_K: np.ndarray, course: _Course, missing: np.ndarray
) -> None:
    """Labs and vitals at K times; missing: chance by Lab.panel."""
    config = course.config
    noise_KxL = rng.standard_normal((len(time_K), len(code_book.LABS))) * _LAB_NOISE * config.noise
    score_KxL = course.state_Dx2[day_K] @ _LAB_EFFECTS_2xL + course.personal_L + noise_KxL
    score_KxL += _CONDITION_SHIFT * (course.present_DxC[day_K] @ _LAB_CONDITION_CxL)
    move_KxL = _LAB_SCALE * score_KxL
    value_KxL = np.where(_LAB_LOG, _LAB_CENTRE * np.exp(move_KxL), _LAB_CENTRE + move_KxL)
    # nothing negative, nothing above what a laboratory reports
    value_KxL = np.clip(value_KxL, 0.15 * _LAB_CENTRE, _LAB_TOP)
    value_KxL = np.rint(value_KxL * _LAB_TEN) / _LAB_TEN
    missing_L = np.minimum(missing[_LAB_PANEL] * config.missingness, 0.98)
    row, lab = np.nonzero(rng.random(value_KxL.shape) >= missing_L)
    log.add(time_K[row], _LAB_INDEX[lab], value_KxL[row, lab])


def _stays(rng: np.random.Generator, path: PersonPath, day_us_D: np.ndarray, death_us: int | None) -> list[_Stay]:
    """The stays that begin during observation."""
    stays, n_days = [], len(day_us_D)
    for first in np.flatnonzero(path.admitted_D[:n_days]):
        inside = path.in_hospital_D[first + 1 :]
        ends = not inside.all()
        last = int(first) + (int(np.argmin(inside)) if ends else len(inside))
        in_us = int(day_us_D[first] + rng.integers(1, 1440) * MINUTE_US)
        out_minute = rng.integers(9 * 60, 17 * 60)
        died_inside = death_us is not None and death_us < day_us_D[0] + (last + 1) * DAY_US
        if died_inside:
            out_us = death_us
        elif ends and last < n_days:
            out_us = int(day_us_D[last] + out_minute * MINUTE_US)
        else:
            out_us, last = None, n_days - 1
        stays.append(_Stay(int(first), last, in_us, out_us))
    return stays


def _stay(rng: np.random.Generator, log: _Log, stay: _Stay, course: _Course) -> None:
    """Admission, labs and procedures of a stay; its diagnoses at discharge."""
    days = np.arange(stay.first, stay.last + 1)
    log.add(stay.in_us, _INDEX[code_book.ADMISSION_CODE])
    sampled = np.concatenate([days[:2], days[3::2]])  # both first days, then every other one
    time_K = course.day_us_D[sampled] + 6 * 60 * MINUTE_US
    time_K[0] = stay.in_us + 90 * MINUTE_US
    within = time_K < (stay.out_us if stay.out_us is not None else np.iinfo(np.int64).max)
    order = np.argsort(time_K[within], kind="stable")
    time_K, sampled = time_K[within][order], sampled[within][order]
    _measure(rng, log, time_K, sampled, course, _INPATIENT_MISSING)
    for code, share, hours in ((_ECG, 0.6, 1), (_CHEST, 0.5, 2), (_INHALE, 0.2, 4), (_BLOOD, 0.1, 8)):
        procedure_us = stay.in_us + hours * 60 * MINUTE_US
        if rng.random() < share and (stay.out_us is None or procedure_us < stay.out_us):
            log.add(procedure_us, code)
    main = rng.choice(len(_MAIN_CODE), p=_MAIN_SHARE)
    listed_C = course.present_DxC[stay.last] & (rng.random(len(_CONDITION_CODE)) < 0.6)
    if stay.out_us is None:  # still inside when observation ends: the episode is never coded
        return
    log.add(stay.out_us, _MAIN_CODE[main])
    log.add(np.full(listed_C.sum(), stay.out_us), _CONDITION_CODE[listed_C])
    log.add(stay.out_us, _INDEX[code_book.DISCHARGE_CODE])
