"""Draws the people of a simulated cohort: demographics, time of observation, split.

Random numbers are a function of (seed, subject_id, purpose).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

from ehrwear_jax.config.data import SimulateConfig
from ehrwear_jax.data.formats import meds
from ehrwear_jax.data.formats.times import DAY_US, YEAR_DAYS
from ehrwear_jax.data.sources.simulator import code_book

AGE_YEARS = (25.0, 90.0)  # at the start of observation
HEART_DISEASE_SHARE = next(c.share for c in code_book.CONDITIONS if c.code == code_book.HEART_DISEASE)
BETA_BLOCKER_SHARE = (0.25, 0.6)  # without and with heart disease


@dataclass(frozen=True)
class Person:
    """Demographics and calendar of one person; times in microseconds since 1970.

    Attributes:
      subject_id: from 1 on.
      birth_us: time of birth.
      male: sex.
      start_us: midnight at which observation and the latent path start.
      end_day: scheduled end of observation, days after the start.
      resting: the personal level of the heart rate, in standard deviations between people: a clinic and a wearable
        measure the same heart.
      heart_disease: what the wearable component and the shock mean depends on it; only the EHR tells.
      beta_blocker: a drug that lowers the heart rate and does nothing else; only the EHR tells.
    """

    subject_id: int
    birth_us: int
    male: bool
    start_us: int
    end_day: int
    resting: float
    heart_disease: bool
    beta_blocker: bool

    @property
    def age_years(self) -> float:
        """At the start of observation."""
        return (self.start_us - self.birth_us) / DAY_US / YEAR_DAYS


def generators(seed: int, subject_id: int) -> Iterator[np.random.Generator]:
    """Independent generators of one person: demographics, latent path, EHR, wearables, calendar of wear."""
    for stream in np.random.SeedSequence((seed, subject_id)).spawn(5):
        yield np.random.Generator(np.random.SFC64(stream))


def observed_days(config: SimulateConfig) -> int:
    """Longest observation, days."""
    return round(config.years * YEAR_DAYS)


def draw_person(rng: np.random.Generator, subject_id: int, config: SimulateConfig) -> Person:
    """One person, by their generator for demographics."""
    first = np.datetime64(f"{config.first_year}-01-01", "D").astype(int)
    after = np.datetime64(f"{config.last_year + 1}-01-01", "D").astype(int)
    start_day = int(rng.integers(first, after))
    age_days = np.clip(rng.normal(62, 12), *AGE_YEARS) * YEAR_DAYS
    end_day = observed_days(config)
    if rng.random() < config.dropout:
        end_day = int(rng.integers(end_day // 4, end_day + 1))
    male = bool(rng.random() < 0.5)
    resting, disease = float(rng.standard_normal()), bool(rng.random() < HEART_DISEASE_SHARE)
    return Person(
        subject_id=subject_id,
        birth_us=(start_day - int(age_days)) * DAY_US,
        male=male,
        start_us=start_day * DAY_US,
        end_day=max(end_day, 30),
        resting=resting,
        heart_disease=disease,
        beta_blocker=bool(rng.random() < BETA_BLOCKER_SHARE[disease]),
    )


def draw_splits(config: SimulateConfig) -> pl.DataFrame:
    """subject_id, split: shares of the people as the config says."""
    n = config.n_subjects
    order = np.random.default_rng((config.seed, 0)).permutation(n)
    edges = np.rint(np.cumsum([config.train_fraction, config.tuning_fraction]) * n)
    split = np.array(meds.SPLITS)[np.searchsorted(edges, order, side="right")]
    return pl.DataFrame({"subject_id": np.arange(1, n + 1), "split": split})
