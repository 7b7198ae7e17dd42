"""Gathers what observers of a simulated cohort could know at prediction times, with the true risk and what followed.

Per modality twice: its state, free of noise, as far as it shows in that modality at all; and summaries of its records.
Age and sex are in both modalities. Nothing is written: people are simulated in memory, many at once.
"""

import dataclasses
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np

from ehrwear_jax.config.data import SimulateConfig
from ehrwear_jax.data.formats.times import DAY_US, MINUTE_US, YEAR_DAYS
from ehrwear_jax.data.sources.simulator import (
    code_book,
    ehr_process,
    latent_process,
    schedule,
    simulate,
    wearable_process,
)
from ehrwear_jax.data.sources.simulator.admission_risk import RiskTable, solve_risk
from ehrwear_jax.data.sources.simulator.people import Person, draw_person, generators

N_STATIC = 2  # the first columns of each view: age, sex
N_LEVELS = 3  # the next columns of wearable_NxF: means of everything recorded, without trend or shape
CHUNK = 400  # people simulated at once
_LABS = {f"LOINC//{lab.code}" for lab in code_book.LABS}
_LAB_INDEX = np.array([i for i, code in enumerate(ehr_process.CODES) if code in _LABS])
_VISIT = ehr_process.CODES.index(code_book.VISIT_CODE)
_ADMISSION = ehr_process.CODES.index(code_book.ADMISSION_CODE)
_WINDOWS_DAYS = (2.0, 9.0, np.inf)  # of wear, before a prediction
_NIGHT_HOURS = 5  # from midnight on
_PEAK = 2 * np.pi * 15 / 24  # of the daily wave, as an angle


@dataclass(frozen=True)
class Views:
    """N prediction times, H horizons; f64, NaN where nothing is known.

    Attributes:
      person_N: subject ids.
      risk_NxH, event_NxH: true risk of an admission within each horizon, and whether there was one (bool).
      state_ehr_NxF: age, sex, EHR component, heart disease, beta-blocker, shock at the last visit, days since then.
      state_wearable_NxF: age, sex, what wearables show of the components (visible_health), shock.
      ehr_NxF: age, sex, and of the events before the time: visits, admissions and their recency, each code's count,
        each laboratory value's last and mean.
      wearable_NxF: age, sex, and of all recordings before the time N_LEVELS levels (coverage, means of the heart rate
        and of log activity), then of those over two days, nine days and all what trend and shape tell: level and spread
        of the heart rate, its level at night, log activity by day and night, share of movement at night, the size of
        the daily wave of both, coverage.
    """

    person_N: np.ndarray
    risk_NxH: np.ndarray
    event_NxH: np.ndarray
    state_ehr_NxF: np.ndarray
    state_wearable_NxF: np.ndarray
    ehr_NxF: np.ndarray
    wearable_NxF: np.ndarray


def gather(config: SimulateConfig, n_people: int, *, records: bool = True, workers: int = 1) -> Views:
    """The views of people 1 to n_people of a cohort, at all of their prediction times.

    Args:
      config: what to simulate; n_subjects is not looked at.
      n_people: how many.
      records: whether to simulate and summarise recordings too, which takes nearly all of the time; else wearable_NxF
        has age and sex only.
      workers: processes; changes nothing but the time it takes.
    """
    config = dataclasses.replace(config, ppg_subjects_fraction=0.0)
    process = simulate.health_process(config)
    table = solve_risk(process, config.horizons_days, simulate.offset_range(config))
    ids = np.arange(1, n_people + 1)
    jobs = [(config, table, part.tolist(), records) for part in np.array_split(ids, -(-n_people // CHUNK))]
    if workers <= 1:
        parts = [_chunk(job) for job in jobs]
    else:  # spawn: forking a process whose libraries hold threads can deadlock
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            parts = list(pool.map(_chunk, jobs))
    names = [f.name for f in dataclasses.fields(Views)]
    return Views(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def _chunk(job: tuple[SimulateConfig, RiskTable, list[int], bool]) -> Views:
    config, table, ids, records = job
    rngs = [list(generators(config.seed, subject_id)) for subject_id in ids]
    people = [draw_person(r[0], subject_id, config) for r, subject_id in zip(rngs, ids, strict=True)]
    paths = simulate.latent_paths(people, [r[1] for r in rngs], config)
    rows: list[tuple] = []
    for k, person in enumerate(people):
        path = paths.person(k)
        stretches = schedule.draw_stretches(rngs[k][4], person, config)
        days = schedule.draw_prediction_days(rngs[k][4], person, stretches, config)
        days = [day for day in days if path.alive_D[day] and not path.in_hospital_D[day]]
        time, code, value = ehr_process.person_events(rngs[k][2], person, path, config)
        worn: list[tuple] = []
        if rngs[k][3].random() < config.wearable_subjects_fraction and records and days:
            worn = wearable_process.person_recordings(rngs[k][3], person, path, stretches, config)
        minutes = _minutes(worn)
        for day in days:
            at_us = person.start_us + day * DAY_US
            before = time <= at_us
            past = (time[before], code[before], value[before])
            static = [person.age_years + day / YEAR_DAYS, float(person.male)]
            state_ehr, state_wearable = _states(person, path, day, past, config)
            ehr = _event_summary(*past, at_us)
            wearable = _wear_summary(*minutes, at_us) if records else []
            views = ([*static, *view] for view in (state_ehr, state_wearable, ehr, wearable))
            event = [path.admitted_D[day : day + h].any() for h in config.horizons_days]
            z = (path.offset_D[day], path.ehr_D[day], path.wearable_D[day], path.shock_D[day], person.heart_disease)
            rows.append((person.subject_id, z, event, *views))
    if not rows:
        empty = np.zeros((0, 0))
        return Views(np.zeros(0, int), empty, empty, empty, empty, empty, empty)
    person_N, state, event_NxH, *views_NxF = (np.array(column) for column in zip(*rows, strict=True))
    risk_NxH = np.stack([table(h, *state.T) for h in config.horizons_days], axis=1)
    return Views(person_N, risk_NxH, event_NxH, *views_NxF)


def _states(
    person: Person, path: latent_process.PersonPath, day: int, past: tuple, config: SimulateConfig
) -> tuple[list[float], list[float]]:
    """What the EHR and wearables show of the state on a day, without noise."""
    time, code, _ = past
    visits = (time[code == _VISIT] - person.start_us) // DAY_US
    last = int(visits[-1]) if len(visits) else None
    shock_seen = np.nan if last is None else path.shock_D[last]
    facts = [path.ehr_D[day], person.heart_disease, person.beta_blocker, shock_seen]
    ehr = [config.ehr_information * float(fact) for fact in facts]
    seen = wearable_process.visible_health(path.ehr_D[day], path.wearable_D[day], config)
    wearable = [float(seen), config.wearable_information * float(path.shock_D[day])]
    return [*ehr, np.nan if last is None else float(day - last)], wearable


def _event_summary(time: np.ndarray, code: np.ndarray, value: np.ndarray, at_us: int) -> list[float]:
    """Counts, values and recency of the events of one person up to a time."""
    out: list[float] = []
    for wanted in (_VISIT, _ADMISSION):
        age_days = (at_us - time[code == wanted]) / DAY_US
        out += [float((age_days <= days).sum()) for days in (30, 180)]
        out.append(float(age_days.min()) if len(age_days) else np.nan)
    out += np.bincount(code, minlength=len(ehr_process.CODES)).tolist()
    for lab in _LAB_INDEX:
        values = value[code == lab]
        out += [float(values[-1]), float(values.mean())] if len(values) else [np.nan, np.nan]
    return out


def _minutes(rows: list[tuple]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(time_us, heart rate, log activity) of all minutes recorded; both channels are recorded at the same minutes."""
    by_channel: dict[str, dict[int, np.ndarray]] = {"heart_rate": {}, "activity": {}}
    for _, start_us, _, channel, values, *_ in rows:
        if channel in by_channel:
            by_channel[channel][start_us] = values
    starts = sorted(by_channel["heart_rate"].keys() & by_channel["activity"].keys())
    if not starts:
        return np.zeros(0, int), np.zeros(0), np.zeros(0)
    heart, activity = (np.concatenate([by_channel[c][start] for start in starts]) for c in ("heart_rate", "activity"))
    lengths = [len(by_channel["heart_rate"][start]) for start in starts]
    time = [start + np.arange(n) * MINUTE_US for start, n in zip(starts, lengths, strict=True)]
    return np.concatenate(time), heart, np.log1p(activity)


def _wear_summary(time: np.ndarray, heart: np.ndarray, activity: np.ndarray, at_us: int) -> list[float]:
    """Summaries of the minutes before a time, by window."""
    ever = time < at_us
    ever[np.isnan(heart)] = False
    out = [float(ever.sum()), *(float(x[ever].mean()) if ever.any() else np.nan for x in (heart, activity))]
    for days in _WINDOWS_DAYS:
        window = (time < at_us) & (time >= at_us - min(days, 1e5) * DAY_US)
        night = time[window] % DAY_US < _NIGHT_HOURS * 60 * MINUTE_US
        seen = ~np.isnan(heart[window])
        rate, log_count = heart[window], activity[window]
        out.append(float(seen.sum()))
        for values in (rate[seen], rate[seen & night], log_count[seen & ~night], log_count[seen & night]):
            out.append(float(values.mean()) if len(values) else np.nan)
        moving = log_count[seen & night] > 0
        out += [float(rate[seen].std()), float(moving.mean())] if len(moving) else [np.nan, np.nan]
        wave = np.cos((time[window][seen] % DAY_US) * (2 * np.pi / DAY_US) - _PEAK)
        out += [_slope(wave, values[seen]) for values in (rate, log_count)]
    return out


def _slope(x_N: np.ndarray, y_N: np.ndarray) -> float:
    """Of a line through the points; NaN of fewer than a hundred."""
    if len(x_N) < 100:
        return np.nan
    x_N = x_N - x_N.mean()
    return float(x_N @ y_N / (x_N @ x_N))
