"""Joins the parts of HiMAE to what models/family.py asks for: a masked autoencoder of raw pulse waves.

Lee et al. (2025), with the sizes of the published code. z is the bottleneck's mean over frames, averaged over the last
pieces before a prediction time. Not as in the original:

    splits          are of people: nobody's segments are in two
    batch norm      has its kept statistics wherever z is read, in fine-tuning too, and leaves out pieces that are not
                    there; in training its statistics are of the whole batch over all devices
    missing samples are zero like hidden ones, and nobody is asked for them
    weight decay    leaves norms and biases alone, and the gradient's norm is clipped (config.train.clip_norm)
    last samples    that fill no patch of their own are a shorter patch
    the grid        stands in for raw signal where there is none: days, in standard deviations of the training people

As in the original, hidden samples are zeros to the encoder, which is in the middle of a wave's range; z is read of
waves of which nothing is hidden, of which kept statistics know little. In the published training the name's hierarchy
is that of the network alone: patches are hidden at random.

Layer-by-layer agreement with the published implementation has not been measured.

A piece of 1,000 samples takes 70.6 million multiplications, 31.9 million of them in the encoder.
"""

import itertools
from collections.abc import Mapping

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.data.store import RecordStore
from ehrwear_jax.models.family import BatchSpec
from ehrwear_jax.models.himae import network as network_lib
from ehrwear_jax.models.himae.config import Config
from ehrwear_jax.models.himae.examples import HimaeExamples, batch_spec
from ehrwear_jax.models.himae.masked_loss import Masked
from ehrwear_jax.models.layers.mesh_ops import ONE_DEVICE, MeshOps
from ehrwear_jax.models.objective import Ramp, WeightedTerms
from ehrwear_jax.models.segment_examples import assumed_facts

__all__ = ["Config", "assumed", "examples", "flops", "network", "objective"]


def examples(store: RecordStore, config: Config, seed: int = 0, train: bool = True) -> HimaeExamples:
    """Rows of pieces of signal; patches are hidden in validation as in training."""
    del train
    return HimaeExamples(store, config, seed)


def network(spec: BatchSpec, config: Config, mesh_ops: MeshOps = ONE_DEVICE) -> network_lib.HimaeNetwork:
    """Encoder and decoder."""
    return network_lib.HimaeNetwork(config, spec.facts.samples, spec.facts.channels, mesh_ops)


def objective(spec: BatchSpec, config: Config) -> WeightedTerms:
    """The hidden samples alone."""
    del spec
    term = Masked(config.patch)
    return WeightedTerms((term,), {term.name: Ramp(1.0, 1.0)})


def assumed(config: Config, prepare: PrepareConfig, vocabulary: int) -> tuple[BatchSpec, dict[str, int]]:
    """The batches of records that are prepared so, and the counts of a full row; there is no vocabulary."""
    del vocabulary
    spec = batch_spec(config, assumed_facts(config.signal, prepare))
    return spec, {"tokens": config.signal.per_row, "patient_days": config.signal.per_row}


def multiplications(config: Config, samples: int, channels: int) -> tuple[int, int]:
    """Of a piece in the convolutions of (encoder, decoder)."""
    k, width, length = config.kernel, (channels, *config.widths), [samples]
    for _ in config.widths:
        length.append(-(-length[-1] // 2))
    encoder = sum(n * b * (k * a + k * b + a) for (a, b), n in zip(itertools.pairwise(width), length[1:], strict=True))
    decoder = 0
    for a, b, n_in, n_out in zip(width[1:-1], width[2:], length[2:], length[1:-1], strict=True):
        decoder += n_in * k * a * b + n_out * k * (2 * a * a + a * a)
    return encoder, decoder + length[1] * k * width[1] * channels


def flops(spec: BatchSpec, config: Config, sizes: Mapping[str, int], counts: Mapping[str, int]) -> float:
    """Flops of forward and backward pass: 6 for each multiplication of a convolution and piece; norms are left out."""
    del sizes
    return 6.0 * sum(multiplications(config, spec.facts.samples, spec.facts.channels)) * counts["tokens"]
