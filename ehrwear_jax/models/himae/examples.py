"""Makes HiMAE's batches: pieces of signal within -1 and 1, and the patches that are hidden of each."""

import numpy as np

from ehrwear_jax.data.store import RecordStore
from ehrwear_jax.models import segment_examples
from ehrwear_jax.models.family import Batch, BatchSpec, Field
from ehrwear_jax.models.himae.config import Config
from ehrwear_jax.models.segment_examples import FIELDS, GRID_REACH, Facts, Pieces, SegmentExamples

HIDDEN = {"hidden": Field("NH", np.bool_, False, "patches that are hidden, of all channels")}


def batch_spec(config: Config, facts: Facts) -> BatchSpec:
    """The fields of a batch."""
    patches = -(-facts.samples // config.patch)
    sizes = {"N": config.signal.per_row, "S": facts.samples, "A": facts.channels, "H": patches}
    return BatchSpec(sizes, FIELDS | HIDDEN, facts)


class HimaeExamples(SegmentExamples):
    """Pieces of signal, each with a random choice of hidden patches; nothing is hidden at prediction times."""

    def __init__(self, store: RecordStore, config: Config, seed: int = 0) -> None:
        super().__init__(store, config.signal, seed)
        self.config = config
        self.spec = batch_spec(config, self.spec.facts)
        self._n_hidden = int(config.mask_ratio * self.spec.sizes["H"])

    def scaled(self, signal_SxA: np.ndarray) -> np.ndarray:
        """Each channel from -1 to 1 over the piece; of the grid, over the reach of the training people's scale."""
        return signal_SxA / GRID_REACH if self.spec.facts.from_grid else segment_examples.unit_range(signal_SxA)

    def fill_piece(self, row: Batch, n: int, pieces: Pieces, q: int, rng: np.random.Generator) -> None:
        """Hides patches."""
        del pieces, q
        row["hidden"][n, rng.permutation(self.spec.sizes["H"])[: self._n_hidden]] = True
