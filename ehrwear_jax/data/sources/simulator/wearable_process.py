"""Simulates the wearable recordings of one person given the latent path: measurement models of each channel.

Heart rate and activity once a minute, on request skin temperature, and short stretches of raw PPG. What wearables show
of the state, `visible_health`, shows most in the shape of the day: it flattens the daily wave of heart rate and
activity, in which people hardly differ otherwise. It raises the resting heart rate, lowers activity and breaks up sleep
too, but those levels differ more between people. A shock, for as long as it lasts, raises the heart rate above the
person's own, takes its fall at night away and makes the night restless. A beta-blocker, which nothing here tells of,
lowers the heart rate alone. Sleep, a daily and a weekly rhythm, bouts of activity (AR(1) noise), device types, time not
worn, artefacts and gaps come on top.
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl
import scipy  # its submodules load at first use

from ehrwear_jax.config.data import SimulateConfig
from ehrwear_jax.data.formats.times import DAY_MINUTES, DAY_US, MINUTE_US
from ehrwear_jax.data.sources.simulator.latent_process import PersonPath
from ehrwear_jax.data.sources.simulator.people import Person

PPG_RATE_HZ = 25.0
_FLATTENED = 0.5  # of the daily wave, per unit of visible health: its shape, unlike a level, hardly differs otherwise
CHANNELS = pl.DataFrame(
    [
        ("heart_rate", "bpm", "Heart rate, one value a minute", 25.0, 230.0),
        ("activity", "counts/min", "Movement counts, summed over a minute", 0.0, 20000.0),
        ("ppg", "a.u.", "Raw photoplethysmogram, green light, baseline removed", -10.0, 10.0),
    ],
    schema=["channel", "unit", "description", "valid_min", "valid_max"],
    orient="row",
)
_TEMPERATURE = pl.DataFrame(
    [("skin_temperature", "degC", "Skin temperature, one value a minute", 15.0, 45.0)],
    schema=CHANNELS.columns,
    orient="row",
)
_UNITS = dict(pl.concat([CHANNELS, _TEMPERATURE]).select("channel", "unit").iter_rows())


def channels(config: SimulateConfig) -> pl.DataFrame:
    """The channels that are recorded (wearable_checks.CHANNEL_SCHEMA)."""
    return pl.concat([CHANNELS, _TEMPERATURE]) if config.temperature else CHANNELS


class Device(NamedTuple):
    """A device type.

    Attributes:
      share: of people who wear it.
      heart_rate_bias: beats per minute.
      noise: multiplies the noise of the heart rate.
      activity_gain: multiplies the counts.
      zero_when_off: writes zero counts while not worn, instead of nothing.
    """

    name: str
    share: float
    heart_rate_bias: float
    noise: float
    activity_gain: float
    zero_when_off: bool


DEVICES = (
    Device("wristband_a", 0.5, 0.0, 1.0, 1.0, False),
    Device("wristband_b", 0.3, 2.0, 1.4, 1.25, True),
    Device("ring_c", 0.2, -1.0, 0.8, 0.7, False),
)


@dataclass(frozen=True)
class _Traits:
    """What is constant in a person and does not depend on the state.

    Attributes:
      resting: heart rate at rest, beats per minute, with the drug if taken. reserve: its rise with exertion.
      activity: of the log counts.
      rhythm: of the size of the daily wave.
      bedtime: hour of the clock. sleep_hours: length of a night.
      carelessness: multiplies the time not worn.
    """

    resting: float
    reserve: float
    activity: float
    rhythm: float
    bedtime: float
    sleep_hours: float
    carelessness: float


@dataclass(frozen=True)
class _Days:
    """The minutes of a recording, and the state on the D days that they touch and the day before.

    Attributes:
      minute_N: minutes since the start of observation, successive.
      minutes_D: how many of them each day has.
      weekday_D: Monday is 0.
      health_D, shock_D: f32, as far as wearables show them (visible_health; the shock's level).
      in_hospital_D: at the start of the day.
    """

    minute_N: np.ndarray
    minutes_D: np.ndarray
    weekday_D: np.ndarray
    health_D: np.ndarray
    shock_D: np.ndarray
    in_hospital_D: np.ndarray

    def by_minute(self, value_D: np.ndarray) -> np.ndarray:
        """f32 [N]: each day's value in all of its minutes."""
        return np.repeat(value_D, self.minutes_D).astype(np.float32)

    @functools.cached_property
    def afternoon_N(self) -> np.ndarray:
        """f32 [N]: the daily wave, highest at 15:00."""
        hour_N = (self.minute_N % DAY_MINUTES).astype(np.float32) * np.float32(2 * np.pi / DAY_MINUTES)
        return np.cos(hour_N - np.float32(2 * np.pi * 15 / 24))

    def rhythm_D(self, traits: _Traits) -> np.ndarray:
        """f32 [D]: how large the daily wave is."""
        return np.maximum(traits.rhythm - _FLATTENED * self.health_D, 0.1)


def visible_health(ehr: np.ndarray, wearable: np.ndarray, config: SimulateConfig) -> np.ndarray:
    """What wearables show of the two components: the EHR's has config.shared of its variance (1 where both have 1)."""
    mixed = np.sqrt(config.shared) * ehr + np.sqrt(1 - config.shared) * wearable
    return config.wearable_information * mixed


def person_recordings(
    rng: np.random.Generator,
    person: Person,
    path: PersonPath,
    stretches: list[tuple[int, int]],
    config: SimulateConfig,
) -> list[tuple]:
    """Recordings of one person.

    Args:
      rng: the person's generator for wearables.
      person: demographics and calendar.
      path: the person's latent path.
      stretches: (first day, whole days) of wear, inside observation; none is recorded that starts after death.
      config: what to simulate.

    Returns:
      Rows (subject_id, start_us, sample_rate_hz, channel, values f32 [N], unit, device), by start and channel.
    """
    device = DEVICES[rng.choice(len(DEVICES), p=[d.share for d in DEVICES])]
    traits = _traits(rng, person, config)
    ppg_wearer = rng.random() < config.ppg_subjects_fraction
    rows = []
    for first_day, n_days in stretches:
        if not n_days or not path.alive_D[first_day] or path.died_D[first_day]:
            continue
        start_minute = int(rng.integers(8 * 60, 18 * 60))
        minute_N = first_day * DAY_MINUTES + start_minute + np.arange(n_days * DAY_MINUTES)
        last_day = first_day + n_days
        alive = path.alive_D[: last_day + 1] & ~path.died_D[: last_day + 1]
        if not alive[-1]:  # the recording ends with the last whole day lived
            minute_N = minute_N[minute_N < int(np.argmin(alive)) * DAY_MINUTES]
        days = _days(person, path, minute_N, config)
        heart_rate_N, activity_N = _minutes(rng, traits, device, days, config)
        start_us = person.start_us + int(minute_N[0]) * MINUTE_US
        recorded = {"heart_rate": heart_rate_N, "activity": activity_N}
        if config.temperature:  # a child generator: the other channels are the same without it
            recorded["skin_temperature"] = _temperature(rng.spawn(1)[0], path, minute_N, heart_rate_N, config)
        for begin, end in _pieces(rng, len(minute_N), config):
            for channel, values in recorded.items():
                if not np.isnan(values[begin:end]).all():
                    rows.append((start_us + begin * MINUTE_US, 1 / 60, channel, values[begin:end]))
        if ppg_wearer:
            rows += _ppg(rng, path, start_us, minute_N, heart_rate_N, config)
    rows.sort(key=lambda row: (row[0], row[2]))
    return [
        (person.subject_id, start, rate, channel, values, _UNITS[channel], device.name)
        for start, rate, channel, values in rows
    ]


def _traits(rng: np.random.Generator, person: Person, config: SimulateConfig) -> _Traits:
    normal = rng.standard_normal(6)
    age = person.age_years
    slowed = config.wearable_information * config.drug_heart_rate * person.beta_blocker
    return _Traits(
        resting=62 + 4.5 * person.resting - 2.5 * person.male - slowed,
        reserve=np.maximum(38 - 0.35 * (age - 60) + 5 * normal[0], 12),
        activity=0.3 * normal[1] - 0.012 * (age - 60),
        rhythm=1 + 0.15 * normal[5],
        bedtime=23.0 + 0.8 * normal[2],
        sleep_hours=7.3 + 0.5 * normal[3],
        carelessness=np.exp(0.7 * normal[4]),
    )


def _days(person: Person, path: PersonPath, minute_N: np.ndarray, config: SimulateConfig) -> _Days:
    day_N = minute_N // DAY_MINUTES
    information = np.float32(config.wearable_information)
    day_D = np.arange(day_N[0] - 1, day_N[-1] + 1)
    inside_D = np.clip(day_D, 0, None)
    health_D = visible_health(path.ehr_D[inside_D], path.wearable_D[inside_D], config).astype(np.float32)
    shock_D = information * path.shock_D[inside_D].astype(np.float32)
    minutes_D = np.bincount(day_N - day_D[0], minlength=len(day_D))
    weekday_D = (person.start_us // DAY_US + day_D + 3) % 7  # 1970-01-01 was a Thursday
    return _Days(minute_N, minutes_D, weekday_D, health_D, shock_D, path.in_hospital_D[inside_D])


def _ar1(rng: np.random.Generator, n: int, persistence: float) -> np.ndarray:
    """A stationary AR(1) of variance 1, f32 [n]."""
    innovation = rng.standard_normal(n, np.float32)
    innovation[1:] *= np.float32(np.sqrt(1 - persistence**2))
    return scipy.signal.lfilter([1.0], np.array([1.0, -persistence], np.float32), innovation)


def _blocks(rng: np.random.Generator, n: int, per_day: float, mean_minutes: float) -> np.ndarray:
    """Mask of random blocks: a Poisson number of starts, lengths exponential."""
    mask = np.zeros(n, bool)
    for start in rng.integers(0, n, rng.poisson(per_day * n / DAY_MINUTES)):
        mask[start : start + 1 + int(rng.exponential(mean_minutes))] = True
    return mask


def _asleep(rng: np.random.Generator, traits: _Traits, days: _Days) -> np.ndarray:
    """Mask of sleep: one main block a night, later at weekends, broken up when health is poor."""
    minute_N = days.minute_N
    poor_D = days.health_D + days.shock_D
    asleep = np.zeros(len(minute_N), bool)
    first = minute_N[0]
    for k, day in enumerate(range(first // DAY_MINUTES - 1, minute_N[-1] // DAY_MINUTES + 1)):
        late = 1.0 if days.weekday_D[k] in (4, 5) else 0.0
        bed = (traits.bedtime + late + 0.6 * rng.standard_normal()) * 60
        hours = np.maximum(traits.sleep_hours + 0.7 * rng.standard_normal(), 3)
        begin = int(day * DAY_MINUTES + bed - first)
        end = begin + int(hours * 60)
        asleep[max(begin, 0) : max(end, 0)] = True
        for start in rng.integers(begin, end, rng.poisson(2.0 * np.exp(0.35 * poor_D[k]))):
            asleep[max(start, 0) : max(start + 1 + int(rng.exponential(9)), 0)] = False
    return asleep


def _minutes(
    rng: np.random.Generator, traits: _Traits, device: Device, days: _Days, config: SimulateConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Heart rate (bpm) and activity (counts/min), f32 [N], NaN where missing."""
    n = len(days.minute_N)
    asleep_N = _asleep(rng, traits, days)
    counts_N = _counts(rng, traits, days, asleep_N)
    exertion_N = np.minimum(np.log1p(counts_N / 150) / 2.2, 1.6).astype(np.float32)
    # recovery takes minutes
    exertion_N = scipy.signal.lfilter([0.35], np.array([1.0, -0.65], np.float32), exertion_N)
    state_D = 3.0 * days.health_D + 3.5 * days.shock_D
    state_D = state_D + 1.2 * rng.standard_normal(len(days.minutes_D))
    heart_N = days.by_minute(traits.resting + device.heart_rate_bias + state_D)
    heart_N = heart_N + np.float32(traits.reserve) * exertion_N
    heart_N += 5.0 * days.by_minute(days.rhythm_D(traits)) * days.afternoon_N
    heart_N += (days.by_minute(3.0 * days.shock_D) - 5.0) * asleep_N  # a shock takes the fall at night away
    noise = np.float32(config.noise * device.noise)
    heart_N += noise * (2.2 * _ar1(rng, n, 0.9) + 1.2 * rng.standard_normal(n, np.float32))

    # not worn: charging, whole days left off, hospital; artefacts: the sensor slips or halves
    careless = traits.carelessness * config.missingness
    off_N = _blocks(rng, n, 0.8 * careless, 55.0)
    skipped_D = rng.random(len(days.minutes_D)) < np.minimum(0.05 * careless, 0.9)
    off_N |= np.repeat(skipped_D | days.in_hospital_D, days.minutes_D)
    slip_N = _blocks(rng, n, 2.0 * config.noise, 3.0)
    heart_N = np.where(slip_N, heart_N * np.float32(rng.choice([0.5, 1.6])), heart_N)
    lost_N = rng.random(n, np.float32) < np.minimum((0.01 + 0.04 * (exertion_N > 0.7)) * config.missingness, 0.98)
    heart_N = np.rint(np.clip(heart_N, 25, 230)).astype(np.float32)
    counts_N = np.rint(np.minimum(counts_N * device.activity_gain, 20000)).astype(np.float32)
    heart_N[off_N | lost_N] = np.nan
    counts_N[off_N] = 0 if device.zero_when_off else np.nan
    return heart_N, counts_N


def _counts(rng: np.random.Generator, traits: _Traits, days: _Days, asleep_N: np.ndarray) -> np.ndarray:
    """Activity of the person, f32 [N]: log-normal bouts while awake, rare movements asleep, more in a shock."""
    n = len(days.minute_N)
    weekend_D = np.where(days.weekday_D >= 5, 0.25 * rng.standard_normal(), 0.0)
    level_D = traits.activity + weekend_D + 0.25 * rng.standard_normal(len(days.minutes_D))
    level_D = level_D - 0.3 * days.health_D - 0.3 * days.shock_D
    bout_N = _ar1(rng, n, 0.94) + 0.6 * rng.standard_normal(n, np.float32)
    drive_N = days.by_minute(level_D)
    drive_N += 0.7 * days.by_minute(days.rhythm_D(traits)) * days.afternoon_N + bout_N
    counts_N = np.exp(np.float32(4.6) + drive_N, dtype=np.float32)
    counts_N[(drive_N < -0.9) | asleep_N] = 0
    stir = asleep_N & (rng.random(n, np.float32) < days.by_minute(0.03 * np.exp(0.8 * days.shock_D)))
    counts_N[stir] = rng.integers(5, 120, stir.sum())
    return counts_N


def _temperature(
    rng: np.random.Generator, path: PersonPath, minute_N: np.ndarray, heart_rate_N: np.ndarray, config: SimulateConfig
) -> np.ndarray:
    """Skin temperature (degC), f32 [N]: warmest at four in the morning; missing where the heart rate is."""
    day_N = minute_N // DAY_MINUTES
    state_N = visible_health(path.ehr_D[day_N], path.wearable_D[day_N], config).astype(np.float32)
    rhythm_N = np.cos((minute_N % DAY_MINUTES - 240).astype(np.float32) * np.float32(2 * np.pi / DAY_MINUTES))
    noise_N = np.float32(0.4 * config.noise) * _ar1(rng, len(minute_N), 0.98)
    temperature_N = 33.0 + (0.9 - 0.15 * np.tanh(state_N)) * rhythm_N + 0.15 * state_N + noise_N
    return np.where(np.isnan(heart_rate_N), np.nan, np.round(temperature_N, 1)).astype(np.float32)


def _pieces(rng: np.random.Generator, n: int, config: SimulateConfig) -> list[tuple[int, int]]:
    """Half-open index ranges of the recording, with a gap where the device restarted."""
    if n < 2 * DAY_MINUTES or rng.random() >= min(0.3 * config.missingness, 1.0):
        return [(0, n)]
    cut = int(rng.integers(DAY_MINUTES, n - DAY_MINUTES // 2))
    resume = cut + int(rng.integers(30, 600))
    return [(0, cut), (resume, n)]


def _ppg(
    rng: np.random.Generator,
    path: PersonPath,
    start_us: int,
    minute_N: np.ndarray,
    heart_rate_N: np.ndarray,
    config: SimulateConfig,
) -> list[tuple]:
    """Raw PPG of a minute each: pulse waves at varying beat intervals, baseline wander, noise, motion."""
    seen = np.flatnonzero(~np.isnan(heart_rate_N))
    n_stretches = min(config.ppg_stretches, len(seen))
    rows = []
    for at in np.sort(rng.choice(seen, n_stretches, replace=False)) if n_stretches else ():
        rate = heart_rate_N[at] / 60
        day = minute_N[at] // DAY_MINUTES
        health = visible_health(path.ehr_D[day], path.wearable_D[day], config)
        variability = 0.05 * np.exp(-0.35 * health)  # share of the beat interval
        beat = np.maximum((1 + variability * rng.standard_normal(int(90 * rate) + 10)) / rate, 0.2)
        sample_T = np.arange(int(60 * PPG_RATE_HZ)) / PPG_RATE_HZ
        edge = np.concatenate([[0.0], np.cumsum(beat)])
        phase_T = np.interp(sample_T, edge, np.arange(len(edge))) % 1.0
        wave_T = np.exp(-(((phase_T - 0.25) / 0.11) ** 2))  # systolic peak, then dicrotic wave
        wave_T += 0.35 * np.exp(-(((phase_T - 0.6) / 0.14) ** 2))
        breath_hz = rng.uniform(0.18, 0.32)
        wave_T += 0.12 * np.sin(2 * np.pi * (breath_hz * sample_T + rng.random())) - 0.4
        wave_T += 0.05 * config.noise * rng.standard_normal(len(sample_T))
        if rng.random() < 0.25 * min(config.noise, 4):
            begin = rng.integers(0, len(sample_T) - 100)
            wave_T[begin : begin + 100] += 1.5 * np.cumsum(rng.standard_normal(100)) / 10
        values = np.clip(np.round(wave_T, 3), -10, 10).astype(np.float32)
        rows.append((start_us + int(at) * MINUTE_US, PPG_RATE_HZ, "ppg", values))
    return rows
