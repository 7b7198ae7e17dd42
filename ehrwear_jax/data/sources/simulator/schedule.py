"""Draws when a person wears the device and when predictions are made: during wear, before anything else is known.

Both depend on the scheduled observation alone, never on the state or on what happens to the person, and those without
a device have them too. A prediction time is a midnight inside a stretch of wear: the last days before it are seen.
"""

import numpy as np

from ehrwear_jax.config.data import SimulateConfig
from ehrwear_jax.data.sources.simulator.people import Person

WORN_DAYS = 3  # before a prediction time, where a stretch has as many


def draw_stretches(rng: np.random.Generator, person: Person, config: SimulateConfig) -> list[tuple[int, int]]:
    """(first day, whole days) of each stretch of wear, in order; zero days where config.wear_days is 0.

    They lie at random between the least history and the last day that leaves the longest horizon to the scheduled end;
    where that is too short for them, anywhere inside observation, and nothing is predicted then.

    Args:
      rng: the person's generator for the calendar.
      person: demographics and calendar.
      config: how many days and stretches.
    """
    first = config.min_history_days
    free = person.end_day - max(config.horizons_days) - first - config.wear_days
    total = config.wear_days
    if free < 0:
        first, total = 0, min(config.wear_days, person.end_day - 2)
        free = person.end_day - 2 - total
    lengths = [len(part) for part in np.array_split(np.arange(total), config.wear_stretches)]
    before = np.cumsum([0, *lengths[:-1]])
    starts = first + before + np.sort(rng.integers(0, free + 1, config.wear_stretches))
    return [(int(start), length) for start, length in zip(starts, lengths, strict=True)]


def draw_prediction_days(
    rng: np.random.Generator, person: Person, stretches: list[tuple[int, int]], config: SimulateConfig
) -> list[int]:
    """Days since the start of observation whose midnights are prediction times, sorted; fewer in short stretches.

    Args:
      rng: the same generator, after draw_stretches.
      person: demographics and calendar.
      stretches: as draw_stretches returns them; the predictions are spread evenly over them.
      config: how many, the history before them and the horizons after them.
    """
    days: list[int] = []
    for k, (first, length) in enumerate(stretches):
        wanted = len(range(k, config.predictions_per_subject, len(stretches)))
        midnights = first + np.arange(min(WORN_DAYS, length), length + 1)
        days += rng.choice(midnights, min(wanted, len(midnights)), replace=False).tolist()
    latest = person.end_day - max(config.horizons_days)
    return sorted({day for day in days if config.min_history_days <= day <= latest})
