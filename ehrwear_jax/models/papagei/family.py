"""Joins the parts of PaPaGei to what models/family.py asks for: contrasts between raw pulse waves.

Pillai et al. (ICLR 2025), with the sizes of the published code, but for a product of PaPaGei-P there that nothing reads
(0.26 of its 5.16 million parameters). z is, of PaPaGei-S, what pieces are compared by, of
PaPaGei-P the mean over frames before the projector, averaged over the last pieces before a prediction time. Not as in
the original:

    skewness        is learned: the published training hands its weight to IPA, and the head stays as it began
    the contrast    is over the whole batch on all devices, and not within each
    people          have nobody of another split among them; of views, another piece of one's own is no negative
    sVRI            has eight bins between 0 and 2, and not between the extremes of a data set with a ninth for the last
    IPA             of a wave without a notch is not asked for, and not zero
    parameters      are the last ones or, by config.train.patience, best in validation, not in one batch of training
    learning rate   has a warmup and decays (config.train)
    the grid        stands in for raw signal where there is none, for views: days, in standard deviations of training

As in the original, both views that PaPaGei-P draws together are of one piece, though it is called participant-level.
Segments are filtered as config.prepare.segments says; there it is 0.5 to 12 Hz.

Layer-by-layer agreement with the published implementation has not been measured.
"""

from collections.abc import Mapping

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.data.store import RecordStore
from ehrwear_jax.models.family import BatchSpec
from ehrwear_jax.models.layers import resnet1d
from ehrwear_jax.models.layers.mesh_ops import ONE_DEVICE, MeshOps
from ehrwear_jax.models.objective import Ramp, Term, WeightedTerms
from ehrwear_jax.models.papagei import network as network_lib
from ehrwear_jax.models.papagei.config import Config
from ehrwear_jax.models.papagei.contrastive_loss import AbsoluteError, Contrast
from ehrwear_jax.models.papagei.examples import PapageiExamples, batch_spec
from ehrwear_jax.models.segment_examples import assumed_facts

__all__ = ["Config", "assumed", "examples", "flops", "network", "objective"]


def examples(store: RecordStore, config: Config, seed: int = 0, train: bool = True) -> PapageiExamples:
    """Rows of pieces of signal and their views; train=False: of morphology as recorded."""
    return PapageiExamples(store, config, seed, train)


def network(spec: BatchSpec, config: Config, mesh_ops: MeshOps = ONE_DEVICE) -> network_lib.PapageiNetwork:
    """Body and heads."""
    del spec
    return network_lib.PapageiNetwork(config, mesh_ops)


def objective(spec: BatchSpec, config: Config) -> WeightedTerms:
    """The contrast and, of morphology, IPA and skewness."""
    del spec
    contrast = Contrast(config.has_morphology, config.n_views, config.temperature)
    if not config.has_morphology:
        return WeightedTerms((contrast,), {contrast.name: Ramp(1.0, 1.0)})
    terms: tuple[Term, ...] = (contrast, AbsoluteError("ipa"), AbsoluteError("sqi"))
    return WeightedTerms(terms, {t.name: Ramp(w, w) for t, w in zip(terms, config.weights, strict=True)})


def assumed(config: Config, prepare: PrepareConfig, vocabulary: int) -> tuple[BatchSpec, dict[str, int]]:
    """The batches of records that are prepared so, and the counts of a full row; there is no vocabulary."""
    del vocabulary
    spec = batch_spec(config, assumed_facts(config.signal, prepare))
    return spec, {"tokens": config.signal.per_row, "patient_days": config.signal.per_row}


def flops(spec: BatchSpec, config: Config, sizes: Mapping[str, int], counts: Mapping[str, int]) -> float:
    """Flops of forward and backward pass: 6 for each multiplication of the body and parameter of the heads and view."""
    body = resnet1d.multiplications(network_lib.body(config), spec.facts.samples, spec.facts.channels)
    heads = sum(n for name, n in sizes.items() if name != "body")
    return 6.0 * (body + heads) * config.n_views * counts["tokens"]
