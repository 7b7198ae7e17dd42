"""Makes the motif distance's batches: pieces of signal, and the stretch that is hidden of each."""

import numpy as np

from ehrwear_jax.data.store import RecordStore
from ehrwear_jax.models import segment_examples
from ehrwear_jax.models.family import Batch, BatchSpec, Field
from ehrwear_jax.models.motif_distance.config import Config
from ehrwear_jax.models.segment_examples import FIELDS, Facts, Pieces, SegmentExamples

HIDDEN = {"hidden": Field("NS", np.bool_, False, "samples that are hidden, of all channels")}


def batch_spec(config: Config, facts: Facts) -> BatchSpec:
    """The fields of a batch."""
    sizes = {"N": config.signal.per_row, "S": facts.samples, "A": facts.channels}
    return BatchSpec(sizes, FIELDS | HIDDEN, facts)


class MotifExamples(SegmentExamples):
    """Pieces of signal, each with a random stretch that is hidden, as long in every piece."""

    def __init__(self, store: RecordStore, config: Config, seed: int = 0) -> None:
        super().__init__(store, config.signal, seed)
        self.config, self.spec = config, batch_spec(config, self.spec.facts)
        self._n_hidden = min(config.hidden_samples, self.spec.facts.samples // 2)

    def scaled(self, signal_SxA: np.ndarray) -> np.ndarray:
        """See segment_examples.clipped."""
        return segment_examples.clipped(signal_SxA, self.spec.facts, self.config.highest)

    def fill_piece(self, row: Batch, n: int, pieces: Pieces, q: int, rng: np.random.Generator) -> None:
        """Hides a stretch."""
        del pieces, q
        begin = int(rng.integers(self.spec.facts.samples - self._n_hidden + 1))
        row["hidden"][n, begin : begin + self._n_hidden] = True
