"""Joins the parts of Pulse-PPG to what models/family.py asks for: an encoder that learns an order of likeness.

Saha, Xu et al. (2025), Xu et al. (RelCon, ICLR 2025). z of a piece of signal is the encoder's maximum over time; at a
prediction time it is the mean over the last pieces known then. What is learned is an order: of two candidates the one
that the motif distance (a network of its own, which this one needs) finds nearer to the anchor shall be more similar.

The layout (models/layers/resnet1d.py): a convolution of 11 samples to 128 features, and 12 blocks of two, of 128, 256
and 512 features, four each, of which every second halves the rate: 12,000 samples become 188 frames. The published
configuration says width, kernel, stride and blocks; that widths double after four blocks is what gives its size:

    convolutions   11 (128 + 8 x 128^2 + 128 x 256 + 7 x 256^2 + 256 x 512 + 7 x 512^2)    28,476,800 weights
                   128 + 4 x 2 (128 + 256 + 512)                                               7,296 biases
    norms          2 (2 x 128 + 3 x 256 + 384 + 3 x 512 + 768 + 3 x 1024)                      13,568
    together                                                                               28,497,664

Doubled after three blocks there would be 84 million, after five 19 million.

Not as in the original:

    candidates      of the own person are scaled like the anchor; there they are raw where the anchor is standardised
    the distance    is a function of two pieces and a seed, see models/motif_distance/network.py; candidates that are
                    equally far stand in each other's sums
    scale           is that of a piece, not of all of a person's recording; the input's norm takes it away in any case
    a row           has pieces of one person of the split that are all different, drawn anew in every epoch
    an epoch        shows each person once, not each of their pieces
    missing samples are zero behind the input's norm, whose statistics leave them out
    batch norm      has its kept statistics wherever z is read, and leaves out pieces that are not there
    the grid        stands in for raw signal where there is none: days, in standard deviations of the training people

Layer-by-layer agreement with the published weights has not been measured.

A piece of 4 minutes at 50 Hz takes 27 billion multiplications, and 28.5 million parameters 456 MB with their gradient
and moments. A step of 16 anchors with a candidate of the own person each encodes 32 pieces, and computes 256 distances
at 0.6 billion multiplications each and 32 keys at 0.8: 7% of the step, which `flops` leaves out.
"""

from collections.abc import Mapping

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.data.store import RecordStore
from ehrwear_jax.models.family import BatchSpec
from ehrwear_jax.models.layers import resnet1d
from ehrwear_jax.models.layers.mesh_ops import ONE_DEVICE, MeshOps
from ehrwear_jax.models.objective import Ramp, WeightedTerms
from ehrwear_jax.models.pulse_ppg import network as network_lib
from ehrwear_jax.models.pulse_ppg.config import Config
from ehrwear_jax.models.pulse_ppg.examples import PulseExamples, batch_spec
from ehrwear_jax.models.pulse_ppg.relative_loss import Relative
from ehrwear_jax.models.segment_examples import assumed_facts

__all__ = ["Config", "assumed", "examples", "flops", "network", "objective"]


def examples(store: RecordStore, config: Config, seed: int = 0, train: bool = True) -> PulseExamples:
    """Rows of pieces of one person each; nothing is drawn that training alone would have."""
    del train
    return PulseExamples(store, config, seed)


def network(spec: BatchSpec, config: Config, mesh_ops: MeshOps = ONE_DEVICE) -> network_lib.PulseNetwork:
    """The encoder."""
    del spec
    return network_lib.PulseNetwork(config, mesh_ops)


def objective(spec: BatchSpec, config: Config) -> WeightedTerms:
    """The relative loss alone."""
    del spec, config
    term = Relative()
    return WeightedTerms((term,), {term.name: Ramp(1.0, 1.0)})


def assumed(config: Config, prepare: PrepareConfig, vocabulary: int) -> tuple[BatchSpec, dict[str, int]]:
    """The batches of records that are prepared so, and the counts of a full row; there is no vocabulary."""
    del vocabulary
    spec = batch_spec(config, assumed_facts(config.signal, prepare))
    return spec, {"tokens": config.reading.per_row, "patient_days": config.reading.per_row}


def flops(spec: BatchSpec, config: Config, sizes: Mapping[str, int], counts: Mapping[str, int]) -> float:
    """Flops of forward and backward pass of the encoder: 6 for each multiplication of the pieces that are there.

    Args:
      sizes: not used. counts: of SegmentExamples.counts.
    """
    del sizes
    each = resnet1d.multiplications(network_lib.encoder(config), spec.facts.samples, spec.facts.channels)
    return 6.0 * each * counts["tokens"]
