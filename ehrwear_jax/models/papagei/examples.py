"""Makes PaPaGei's batches: standardised pieces of signal, changed copies of them, and their shape."""

import numpy as np

from ehrwear_jax.data.store import RecordStore
from ehrwear_jax.models import segment_examples
from ehrwear_jax.models.family import Batch, BatchSpec, Field
from ehrwear_jax.models.papagei.augmentation import augmented
from ehrwear_jax.models.papagei.config import Augmentation, Config
from ehrwear_jax.models.papagei.morphology import morphology, svri_bin
from ehrwear_jax.models.segment_examples import FIELDS, Facts, Pieces, SegmentExamples

VIEWS = {"views": Field("NVSA", np.float32, 0, "changed copies of a piece, which training reads in its place")}
SHAPE = {
    "svri_bin": Field("N", np.int32, -1, "bin of the stress-induced vascular response index; -1: none"),
    "ipa": Field("N", np.float32, np.nan, "inflection point area ratio; NaN: no notch"),
    "sqi": Field("N", np.float32, np.nan, "skewness"),
}
AS_RECORDED = Augmentation(crop=0.0)


def batch_spec(config: Config, facts: Facts) -> BatchSpec:
    """The fields of a batch."""
    sizes = {"N": config.signal.per_row, "V": config.n_views, "S": facts.samples, "A": facts.channels}
    return BatchSpec(sizes, FIELDS | VIEWS | (SHAPE if config.has_morphology else {}), facts)


class PapageiExamples(SegmentExamples):
    """Pieces of signal with changed copies; for morphology, those whose shape is plausible.

    Of several channels the first one's shape counts. In validation, morphology's pieces are as recorded; views differ
    by how they are changed, in validation too.
    """

    def __init__(self, store: RecordStore, config: Config, seed: int = 0, train: bool = True) -> None:
        super().__init__(store, config.signal, seed)
        self.config = config
        self.spec = batch_spec(config, self.spec.facts)
        self._augmentation = config.augmentation if train or not config.has_morphology else AS_RECORDED

    def scaled(self, signal_SxA: np.ndarray) -> np.ndarray:
        """Each channel in its own standard deviations over the piece; the grid is in those of the training people."""
        return signal_SxA if self.spec.facts.from_grid else segment_examples.z_score(signal_SxA)

    def accepts(self, pieces: Pieces, q: int) -> bool:
        """Whether its shape is plausible."""
        return not self.config.has_morphology or self._shape(pieces, q).is_plausible

    def _shape(self, pieces, q):
        return morphology(pieces.signal(q)[:, 0], self.reading.rate_hz)

    def fill_piece(self, row: Batch, n: int, pieces: Pieces, q: int, rng: np.random.Generator) -> None:
        """Writes changed copies, and the shape of what was recorded."""
        for view in range(self.config.n_views):
            row["views"][n, view] = augmented(row["signal"][n], self._augmentation, rng)
        if self.config.has_morphology:
            shape = self._shape(pieces, q)
            row["svri_bin"][n] = svri_bin(shape.svri, self.config.svri_bins)
            row["ipa"][n], row["sqi"][n] = shape.ipa, shape.sqi
