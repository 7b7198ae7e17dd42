"""Joins the parts of ContextClues to what models/family.py asks for: language models of EHR codes with long contexts.

Wornow et al. (ICLR 2025). Config has the published sizes of Llama; config.mamba_tiny those of Mamba. As in the
original, no time enters but by the order of tokens, and z is that of the last token known. Not as in the original:

    values          are put into ranges of their own code, which has one unit; there a number's unit is not looked at
    events          outside the vocabulary are counted where they are dropped
    first token     is one, not two; a part of a long record begins with it and the person's static events, too
    long records    are shown in parts that end anywhere, at inference with the latest tokens before the time
    days            between events are tokens on request, without those for the start and end of visits
    optimiser       is AdamW with the options of config.train, behind a clip; the rate falls to zero
    epochs          have an order of their own each, and rows are packed, not padded
    rotation        is by positions alone, without the scaling of Llama 3.1

Published training: learning rate 2e-4 after 40,000 steps of warmup, batches of at most 4,096 to 16,384 tokens, 4
million steps. PyTorch is no dependency: agreement with the published weights has not been measured. Tests hold both
backbones to plain loops in float64.

What training takes, with L layers of width D, G of H heads for keys and values, M hidden units, I = 2 D of Mamba with
S numbers of state and rank R, V tokens in all, and at once B rows of T tokens of s bytes:

    parameters       Llama  P = L (2 D^2 (1 + G / H) + 3 D M), and 2 V D
                     Mamba  P = L (3 D I + 2 I (R + S) + I S), and V D
    flops a token    6 P + 6 V D, and Llama 12 L D (tokens seen), Mamba 21 L I S
    bytes of state   16 a parameter: it, its gradient and two moments in float32
    of a batch       21 B T + 4 B N
    of activations   Llama  s B T L (8 D + 4 M), Mamba s B T L (2 D + 9 I); remat=full: s B T L D and a block of these
    of the scan      about 40 B I S scan_chunk, and 4 B I S T / scan_chunk
    of the loss      about 12 V loss_chunk, and 4 V D

By these, with the published sizes: 2.0 GB of state; .71 Gflop a token of Llama in contexts of 4,096, .74 of Mamba.
300,000 people with 3,000 tokens each are 9e8 tokens, 6.5e17 flops an epoch: half an hour at 350 Tflop/s. Mamba is
slower than that: its scan moves states to memory and back, forward, again and backward, about 200 L I S bytes or 118 MB
a token, which is 10 hours an epoch at 3 TB/s; a fused kernel would keep them on the chip. A row of 4,096 tokens in
bfloat16 holds 1.1 GB of Llama's activations and 3.0 GB of Mamba's. On the host an epoch's plan takes 20 bytes a context
and reads no record; timelines (13 bytes a token) are cached up to a limit. All of these follow from the formulae, of
which the scan's are estimates; none was timed.
"""

import dataclasses
from collections.abc import Mapping

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.data.store import RecordStore
from ehrwear_jax.models.context_clues import blocks
from ehrwear_jax.models.context_clues import network as network_lib
from ehrwear_jax.models.context_clues.config import Config
from ehrwear_jax.models.context_clues.examples import ContextCluesExamples, batch_spec
from ehrwear_jax.models.context_clues.timelines import Facts
from ehrwear_jax.models.family import BatchSpec
from ehrwear_jax.models.layers.mesh_ops import ONE_DEVICE, MeshOps
from ehrwear_jax.models.objective import NextCode, Ramp, WeightedTerms

__all__ = ["Config", "adapted", "assumed", "examples", "flops", "network", "objective"]


def examples(store: RecordStore, config: Config, seed: int = 0, train: bool = True) -> ContextCluesExamples:
    """Rows of packed contexts; nothing is drawn that training alone would have."""
    del train
    return ContextCluesExamples(store, config, seed)


def network(spec: BatchSpec, config: Config, mesh_ops: MeshOps = ONE_DEVICE) -> network_lib.ContextCluesNetwork:
    """Dictionary, backbone and scores of tokens."""
    return network_lib.ContextCluesNetwork(config, spec.facts, mesh_ops)


def objective(spec: BatchSpec, config: Config) -> WeightedTerms:
    """The token that follows, alone."""
    del spec, config
    term = NextCode("target")
    return WeightedTerms((term,), {term.name: Ramp(1.0, 1.0)})


def assumed(config: Config, prepare: PrepareConfig, vocabulary: int) -> tuple[BatchSpec, dict[str, int]]:
    """The batches that data of this size would give, and the counts of a row that one context fills.

    Args:
      vocabulary: number of tokens, special ones and days included.
    """
    del prepare
    n = config.context_tokens
    counts = {"contexts": 1, "tokens": n, "targets": n, "seen": n * (n + 1) // 2}
    return batch_spec(config, Facts(vocabulary)), counts


def adapted(config: Config, width: int) -> Config:
    """The config with adapters of this width behind the blocks, for fine-tuning."""
    return dataclasses.replace(config, adapter_width=width)


def flops(spec: BatchSpec, config: Config, sizes: Mapping[str, int], counts: Mapping[str, int]) -> float:
    """Flops of forward and backward pass over what a batch holds; what is computed twice counts once.

    6 for each parameter of the backbone and token; of Llama 12 width for each layer and token that is seen, of Mamba
    21 for each layer, token and number of the state; 6 for each number of the scores' table and target. Padding is left
    out.

    Args:
      sizes: {part of the network: number of parameters}. counts: of ContextCluesExamples.counts.
    """
    seen = 12 * config.width * config.n_layers * counts["seen"] if config.backbone == "llama" else 0
    recurrence = 3 * blocks.recurrence_flops(config) * config.n_layers * counts["tokens"]
    head = 6 * spec.facts.dictionary * config.width * counts["targets"]
    return float(6 * sizes["backbone"] * counts["tokens"] + seen + recurrence + head)
