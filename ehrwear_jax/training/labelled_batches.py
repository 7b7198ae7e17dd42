"""Makes batches of labelled prediction times, for fine-tuning.

Array suffixes: N labelled prediction times, B rows of a batch, S slots of a row.
"""

from collections.abc import Iterator

import numpy as np
import polars as pl

from ehrwear_jax.models.family import Batch, Examples

LABEL = "label/"  # prefix of the fields that fine-tuning adds to a batch
VALID, OUTCOME, TIME, EVENT = (LABEL + n for n in ("valid", "outcome", "time", "event"))


def is_survival(times: pl.DataFrame) -> bool:
    """Whether a label table holds times to events."""
    return "event_observed" in times.columns


def _labels(times):
    """{field: float32 or bool [N]} of a label table."""
    if is_survival(times):
        return {
            TIME: times["time_to_event_days"].to_numpy().astype(np.float32),
            EVENT: times["event_observed"].to_numpy().astype(bool),
        }
    return {OUTCOME: times["boolean_value"].to_numpy().astype(np.float32)}


class LabelledBatches:
    """Batches of labelled prediction times in another order each epoch; a batch is a function of (seed, step).

    Each takes the same number of times, as many as a batch holds on average: of a batch that they do not fit into, the
    last ones wait for another epoch.

    Args:
      examples: of all people. times: subject_id, prediction_time and labels.
    """

    def __init__(self, examples: Examples, times: pl.DataFrame, batch_size: int, seed: int) -> None:
        self._examples, self._batch_size, self._seed = examples, batch_size, seed
        position = {s: i for i, s in enumerate(examples.subject_id.tolist())}
        self._position_N = np.array([position[s] for s in times["subject_id"].to_list()], np.int64)
        self._time_N = times["prediction_time"].to_physical().to_numpy()
        self._labels = _labels(times)
        # what would fill a few batches if every slot were used
        some = self._order(0)[: 4 * batch_size * self._batch(np.zeros(1, np.int64))[1].shape[1]]
        full = [int((where >= 0).sum()) for _, where in self._packed(some)]
        self.per_batch = max(1, min(int(np.mean(full[:-1] or full)), len(self._time_N)))

    def _order(self, epoch):
        return np.random.default_rng([self._seed, epoch]).permutation(len(self._time_N))

    def _packed(self, chosen):
        return self._examples.prediction_batches(self._position_N[chosen], self._time_N[chosen], self._batch_size)

    def _batch(self, chosen):
        return next(iter(self._packed(chosen)))

    def chosen(self, at: int) -> np.ndarray:
        """Which times batch `at` takes, int64 [per_batch]."""
        begin, n = at * self.per_batch, len(self._time_N)
        epochs = range(begin // n, (begin + self.per_batch - 1) // n + 1)
        return np.concatenate([self._order(e) for e in epochs])[begin % n :][: self.per_batch]

    def __call__(self, at: int) -> tuple[Batch, np.ndarray]:
        """(batch with the label fields, which time each slot answers: int64 [B, S], -1 for none)."""
        chosen = self.chosen(at)
        batch, where_BxS = self._batch(chosen)
        time_BxS = np.where(where_BxS >= 0, chosen[np.maximum(where_BxS, 0)], -1)
        labels = {name: values[np.maximum(time_BxS, 0)] for name, values in self._labels.items()}
        return batch | labels | {VALID: time_BxS >= 0}, time_BxS

    def since(self, begin: int) -> Iterator[Batch]:
        """The batches from one on, without end."""
        at = begin
        while True:
            yield self(at)[0]
            at += 1
