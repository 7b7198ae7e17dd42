"""Evaluates statistics on the data and on shared resamples of patients, and takes paired differences of them."""

import dataclasses
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ehrwear_jax.evals import bootstrap
from ehrwear_jax.evals.survey import Design
from ehrwear_jax.evals.weighting import Statistic

NO_SAMPLES = np.empty(0)


@dataclasses.dataclass(frozen=True)
class Resampling:
    """The patient bootstrap that the numbers of an evaluation share.

    Attributes:
      n_resamples: 0 gives values without intervals and p-values.
      seed: of the resamples, not negative.
      universe: all groups of the held-out set, so that tasks in which some groups have no row share their resamples;
        None: the groups that are present.
      design: of a survey whose weights metrics are under, of the groups of the universe; None: people count alike.
    """

    n_resamples: int = 1000
    seed: int = 0
    universe: np.ndarray | None = None
    design: Design | None = None


@dataclasses.dataclass(frozen=True)
class Estimates:
    """Metrics of several statistics.

    Attributes:
      values: key -> metric -> value on the data as they are.
      samples: key -> metric -> float64 [B] under the resamples; {} without resamples.
    """

    values: Mapping[Hashable, Mapping[str, float]]
    samples: Mapping[Hashable, Mapping[str, np.ndarray]]

    def resampled(self, key: Hashable, metric: str) -> np.ndarray:
        """A metric under the resamples, float64 [B]; [0] without resamples."""
        return self.samples[key][metric] if self.samples else NO_SAMPLES

    def difference(self, first: Hashable, second: Hashable, metric: str) -> tuple[float, np.ndarray]:
        """(first less second, the same under each resample [B]): paired, as both see the same resamples."""
        delta_B = self.resampled(first, metric) - self.resampled(second, metric)
        return self.values[first][metric] - self.values[second][metric], delta_B

    def under(self, names: Mapping[Any, Hashable]) -> "Estimates":
        """The estimates of some statistics, under other keys: {new key: key}."""
        samples = {new: self.samples[key] for new, key in names.items()} if self.samples else {}
        return Estimates({new: self.values[key] for new, key in names.items()}, samples)


def estimate(
    statistics: Mapping[Any, Statistic], group_N: npt.ArrayLike, resampling: Resampling | None = None
) -> Estimates:
    """Evaluates statistics once on the data and once on every resample.

    Args:
      statistics: key -> statistic of the same N rows.
      group_N: unit of resampling of each row (patient, or matched set).
      resampling: by default 1,000 resamples.
    """
    resampling = resampling or Resampling()
    found = bootstrap.resample(
        statistics, group_N, resampling.n_resamples, resampling.seed, universe=resampling.universe, whole=True,
        design=resampling.design,
    )  # fmt: skip
    values = {key: {metric: float(value_B[0]) for metric, value_B in of.items()} for key, of in found.items()}
    if not resampling.n_resamples:
        return Estimates(values, {})
    samples = {key: {metric: value_B[1:] for metric, value_B in of.items()} for key, of in found.items()}
    return Estimates(values, samples)
