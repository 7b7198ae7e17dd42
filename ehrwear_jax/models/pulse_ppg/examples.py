"""Makes Pulse-PPG's batches: an anchor and further pieces of the same person in each row."""

import numpy as np

from ehrwear_jax.data.store import RecordStore
from ehrwear_jax.models import segment_examples
from ehrwear_jax.models.family import BatchSpec
from ehrwear_jax.models.pulse_ppg.config import Config
from ehrwear_jax.models.segment_examples import FIELDS, Facts, SegmentExamples


def batch_spec(config: Config, facts: Facts) -> BatchSpec:
    """The fields of a batch."""
    sizes = {"N": config.reading.per_row, "S": facts.samples, "A": facts.channels}
    return BatchSpec(sizes, FIELDS, facts)


class PulseExamples(SegmentExamples):
    """A row is a person: the anchor and candidates, pieces of different times in random order, scaled alike.

    People with fewer pieces than a row has are shown in no row. At prediction times pieces of all follow each other.
    """

    def __init__(self, store: RecordStore, config: Config, seed: int = 0) -> None:
        super().__init__(store, config.reading, seed, least=config.reading.per_row)
        self._highest = config.highest

    def scaled(self, signal_SxA: np.ndarray) -> np.ndarray:
        """See segment_examples.clipped."""
        return segment_examples.clipped(signal_SxA, self.spec.facts, self._highest)
