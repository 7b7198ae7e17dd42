"""Plans an epoch from the index alone: who appears in it, roughly up to where, and who shares a row.

Numpy over all patients at once, so that an epoch of millions is planned in seconds. No record is read: how long a
context really becomes is known once its day has been drawn from the record's codes, see examples.JointExamples.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ehrwear_jax.models.joint.batch import slot_sizes
from ehrwear_jax.models.joint.config import ContextConfig
from ehrwear_jax.models.row_packing import pack

_SPARE = 1.05  # of the room for windows, over what a row has on average: less would leave tokens free


@dataclasses.dataclass(frozen=True)
class EpochPlan:
    """Contexts in the order in which they are packed; row r holds those from bound_R[r] to bound_R[r + 1].

    Attributes:
      patient_N: place in the index. copy_N: number of the patient's earlier appearances in this epoch.
      by_day_N: whether the context ends with a sampled patient-day. end_N: float32 uniform draw of its end.
      bound_R: int64 [rows + 1].
    """

    patient_N: np.ndarray
    copy_N: np.ndarray
    by_day_N: np.ndarray
    end_N: np.ndarray
    bound_R: np.ndarray

    @property
    def n_rows(self) -> int:
        return len(self.bound_R) - 1

    def members(self, r: int) -> slice:
        """The contexts of row r, modulo the number of rows: a slice of the order."""
        r %= self.n_rows
        return slice(int(self.bound_R[r]), int(self.bound_R[r + 1]))


def patient_weights(rarity_N: npt.ArrayLike, temperature: float) -> np.ndarray:
    """How often patients appear relative to each other: exp(temperature * rarity), 1 on average.

    Rarity is the mean over a patient's events of -log(their code's share of the training events): the weight is the
    geometric mean of share ** -temperature, as masking.token_weights has it for tokens (paper, section 3.5: rare codes
    upsampled). Who has none (NaN: no event) gets the average weight.
    """
    rarity_N = np.asarray(rarity_N, np.float64)
    known = np.isfinite(rarity_N)
    if not known.any():
        return np.ones(len(rarity_N))
    weight_N = np.exp(temperature * (rarity_N - rarity_N[known].max()))
    weight_N = np.where(known, weight_N, weight_N[known].mean())
    return weight_N / weight_N.mean()


def appearances(weight_N: npt.ArrayLike, draw: float) -> np.ndarray:
    """How often each appears in an epoch of len(weight_N) appearances: systematic resampling (Kitagawa, 1996).

    The expectation over `draw`, uniform in [0, 1), is the weight over its mean; a count differs from it by less than 1.

    Returns:
      int64 [N].
    """
    total_N = np.cumsum(np.asarray(weight_N, np.float64))
    total_N *= len(total_N) / total_N[-1]
    total_N[-1] = len(total_N)
    return np.diff(np.floor(total_N + draw).astype(np.int64), prepend=0)


class Limits(NamedTuple):
    """Capacities of a row: tokens of both modalities, and the windows among them.

    Attributes:
      tokens, windows: of any row. shared_windows: most windows of several contexts; one alone may have more.
    """

    tokens: int
    windows: int
    shared_windows: int

    def of_row(self, needs: Sequence[int]) -> int:
        """Most windows of a row whose contexts have so many."""
        return min(max(self.shared_windows, *needs, 0), self.windows)


@dataclasses.dataclass(frozen=True)
class Lengths:
    """How many static events, timed events and windows each patient has: int64 [N] of the index."""

    static_N: np.ndarray
    event_N: np.ndarray
    window_N: np.ndarray


def row_limits(config: ContextConfig, n_tokens: int, n_windows: int, lengths: Lengths) -> Limits:
    """Capacities of a row; contexts share as many parts of its slots for windows as a row fills on average.

    A row's encoder costs by the part, and next fit alone leaves rows uneven: with this limit, rows that would have more
    windows than the average take events in their place.

    Args:
      n_tokens, n_windows: capacities of a row. lengths: of those who may appear.

    Returns:
      Limits whose shared_windows are one of batch.slot_sizes.
    """
    ehr = np.minimum(lengths.static_N + lengths.event_N, config.context_tokens).sum(dtype=np.float64)
    windows = np.minimum(lengths.window_N, n_windows).sum(dtype=np.float64)
    wanted = max(_SPARE * n_tokens * windows / max(ehr + windows, 1.0), 1.0)
    shared = next((size for size in slot_sizes(n_windows, config.window_parts) if size >= wanted), n_windows)
    return Limits(n_tokens, n_windows, shared)


def plan_epoch(
    rng: np.random.Generator,
    config: ContextConfig,
    limits: Limits,
    patients: tuple[np.ndarray, np.ndarray | None],
    lengths: Lengths,
) -> EpochPlan:
    """Draws an epoch.

    Args:
      limits: capacities of a row.
      patients: positions in the index of those who have something, and their weights (patient_weights; None: all
        alike).

    Returns:
      EpochPlan.
    """
    eligible_N, weight_N = patients
    if weight_N is None:
        patient_N, copy_N = rng.permutation(eligible_N), np.zeros(len(eligible_N), np.int32)
    else:
        count_N = appearances(weight_N, rng.random())
        first_N = np.cumsum(count_N) - count_N
        order = rng.permutation(len(eligible_N))
        copy_N = (np.arange(len(eligible_N)) - np.repeat(first_N, count_N)).astype(np.int32)[order]
        patient_N = np.repeat(eligible_N, count_N)[order]
    n = len(patient_N)
    by_day_N, end_N = rng.random(n, np.float32) < config.patient_days, rng.random(n, np.float32)
    static = np.minimum(lengths.static_N[patient_N], config.context_tokens - 1)
    # where a day's end lies is not known here: as if days were as long and codes as rare everywhere
    events, windows = (
        np.where(by_day_N, np.ceil(end_N * n_N[patient_N]).astype(np.int64), n_N[patient_N])
        for n_N in (lengths.event_N, lengths.window_N)
    )
    events, windows = np.minimum(events, config.context_tokens - static), np.minimum(windows, limits.windows)
    needs = np.maximum(static + events + windows, 1), np.minimum(windows, limits.shared_windows)
    bound_R = pack(needs, (limits.tokens, limits.shared_windows))
    return EpochPlan(patient_N, copy_N, by_day_N, end_N, bound_R)


def waterfill(needs: Sequence[int], capacity: int) -> float:
    """The highest level c with sum(min(need, c)) <= capacity; infinite if all needs fit.

    What is too much is taken from the largest. Non-negative ints in; the level is an int or np.inf.
    """
    if sum(needs) <= capacity:
        return np.inf
    left = capacity
    for k, need in enumerate(sorted(needs)):
        if need * (len(needs) - k) > left:
            return left // (len(needs) - k)
        left -= need
    raise AssertionError("the needs fit")
