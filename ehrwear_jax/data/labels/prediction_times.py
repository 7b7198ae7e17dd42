"""Draws the times at which predictions are made: random midnights, drawn before looking at what follows them.

Which midnights of a person are drawn depends on the seed, the subject and the window alone. Those at which the person
is dead, no longer followed or in hospital are discarded afterwards and not replaced, so that no day is likelier to be
drawn for being followed by a death or a stay.
"""

import dataclasses

import numpy as np
import polars as pl

from ehrwear_jax.data import random_streams
from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.data.labels import episodes


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How prediction times are drawn.

    Attributes:
      per_subject: midnights drawn per subject, at least 1.
      min_history_days: from the first record, or from the start of follow-up, to a prediction time.
      seed: non-negative; the draws are a function of (seed, subject_id).
    """

    per_subject: int
    min_history_days: float
    seed: int

    def __post_init__(self) -> None:
        if self.per_subject < 1:
            raise ValueError(f"per_subject is {self.per_subject}, must be at least 1")

    @property
    def history_us(self) -> int:
        """min_history_days in microseconds."""
        return int(self.min_history_days * DAY_US)


def draw(people: pl.DataFrame, sampling: Sampling, stays: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, int]]:
    """Random midnights of some people, without replacement.

    Args:
      people: subject_id, low, high, until: midnights are drawn from low to high, both inclusive; those at or after
        `until`, the death or the end of follow-up, are discarded. int64 microseconds since 1970.
      stays: episodes.STAYS; times inside one are discarded.

    Returns:
      (subject_id i64, prediction_time datetime[us], in that order; counts: people, "people with a window", drawn,
      "not followed" and "inside a stay" of those discarded).
    """
    subject_ids, times, until, n_windows = [], [], [], 0
    for subject_id, low, high, end in people.select("subject_id", "low", "high", "until").iter_rows():
        midnight_K = _draw_midnights(subject_id, low, high, sampling)
        n_windows += len(midnight_K) > 0
        subject_ids += [subject_id] * len(midnight_K)
        times += midnight_K.tolist()
        until += [end] * len(midnight_K)
    schema = {"subject_id": pl.Int64, "time": pl.Int64, "until": pl.Int64}
    drawn = pl.DataFrame({"subject_id": subject_ids, "time": times, "until": until}, schema)
    followed = drawn.filter(pl.col("time") < pl.col("until"))
    kept = followed.filter(~pl.Series(episodes.inside(followed, stays), dtype=pl.Boolean))
    counts = {
        "people": people.height,
        "people with a window": n_windows,
        "drawn": drawn.height,
        "not followed": drawn.height - followed.height,
        "inside a stay": followed.height - kept.height,
    }
    index = kept.select("subject_id", pl.col("time").cast(pl.Datetime("us")).alias("prediction_time"))
    return index.sort("subject_id", "prediction_time"), counts


def _draw_midnights(subject_id: int, low_us: int, high_us: int, sampling: Sampling) -> np.ndarray:
    """int64 [K]: midnights from low_us to high_us, both inclusive, without replacement, sorted."""
    first_day = -(-low_us // DAY_US)
    n_days = max(high_us // DAY_US - first_day + 1, 0)
    if not n_days:
        return np.zeros(0, np.int64)
    rng = np.random.default_rng(random_streams.words((sampling.seed, subject_id & (2**64 - 1))))
    drawn_K = rng.choice(n_days, min(sampling.per_subject, n_days), replace=False)
    return (first_day + np.sort(drawn_K)) * DAY_US
