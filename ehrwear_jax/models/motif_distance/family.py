"""Joins the parts of the motif distance to what models/family.py asks for: a distance between signals, for Pulse-PPG.

What it computes, and what differs from the original, stands in network.py; what a model that needs it calls are
MotifNetwork's methods keys and distance. Nothing is predicted from it: it has no z. Beside what stands there:

    signal      is scaled piece by piece (segment_examples.clipped), not by a person's mean and standard deviation over
                the whole recording, which would tell the beginning of it about the end
    people      are those of the training split, who are also those whom the distance is needed for

Layer-by-layer agreement with a published implementation has not been measured.

With D features of S samples, K taps and n layers, a forward pass of one of the three stacks of convolutions takes about
S (K A D + n (D / 8) D (K + 1)) multiplications, less in the strided last layer; attention 2 D (S / stride)^2. Of 4
minutes at 50 Hz a distance with its key prepared takes 0.6 billion, preparing a key 0.8 billion.
"""

from collections.abc import Mapping

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.data.store import RecordStore
from ehrwear_jax.models.family import BatchSpec
from ehrwear_jax.models.layers.mesh_ops import ONE_DEVICE, MeshOps
from ehrwear_jax.models.motif_distance import network as network_lib
from ehrwear_jax.models.motif_distance.config import Config
from ehrwear_jax.models.motif_distance.examples import MotifExamples, batch_spec
from ehrwear_jax.models.motif_distance.reconstruction_loss import Reconstruction
from ehrwear_jax.models.objective import Ramp, WeightedTerms
from ehrwear_jax.models.segment_examples import assumed_facts

__all__ = ["Config", "assumed", "examples", "flops", "multiplications", "network", "objective"]


def examples(store: RecordStore, config: Config, seed: int = 0, train: bool = True) -> MotifExamples:
    """Rows of pieces of signal; stretches are hidden in validation as in training."""
    del train
    return MotifExamples(store, config, seed)


def network(spec: BatchSpec, config: Config, mesh_ops: MeshOps = ONE_DEVICE) -> network_lib.MotifNetwork:
    """Three stacks of convolutions, and attention between them."""
    return network_lib.MotifNetwork(config, spec.facts.channels, mesh_ops)


def objective(spec: BatchSpec, config: Config) -> WeightedTerms:
    """The hidden samples alone."""
    del spec
    term = Reconstruction(config.stride)
    return WeightedTerms((term,), {term.name: Ramp(1.0, 1.0)})


def assumed(config: Config, prepare: PrepareConfig, vocabulary: int) -> tuple[BatchSpec, dict[str, int]]:
    """The batches of records that are prepared so, and the counts of a full row; there is no vocabulary."""
    del vocabulary
    spec = batch_spec(config, assumed_facts(config.signal, prepare))
    return spec, {"tokens": config.signal.per_row, "patient_days": config.signal.per_row}


def multiplications(config: Config, samples: int, channels: int) -> tuple[int, int]:
    """Of (a key: its stack and that of its value; a query: its stack and attention), forward."""
    frames, narrow, width = -(-samples // config.stride), config.width // 8, config.width
    stack = samples * config.taps * channels * width
    for i in range(config.n_layers):
        length = frames if i == config.n_layers - 1 else samples
        stack += samples * width * narrow + length * config.taps * narrow * width
    return 2 * stack, stack + 2 * frames**2 * width + frames * width * channels


def flops(spec: BatchSpec, config: Config, sizes: Mapping[str, int], counts: Mapping[str, int]) -> float:
    """Flops of forward and backward pass: 6 for each multiplication of the pieces that are there.

    Args:
      sizes: not used. counts: of SegmentExamples.counts.
    """
    del sizes
    return 6.0 * sum(multiplications(config, spec.facts.samples, spec.facts.channels)) * counts["tokens"]
