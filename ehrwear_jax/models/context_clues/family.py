"""Joins the parts of ContextClues to what models/family.py asks for: language models of EHR codes."""

import dataclasses
from collections.abc import Mapping

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.data.store import RecordStore
from ehrwear_jax.models.context_clues import blocks
from ehrwear_jax.models.context_clues import network as network_lib
from ehrwear_jax.models.context_clues.config import Config
from ehrwear_jax.models.context_clues.examples import ContextCluesExamples, batch_spec
from ehrwear_jax.models.context_clues.next_code import NextCode
from ehrwear_jax.models.context_clues.timelines import Facts
from ehrwear_jax.models.family import BatchSpec
from ehrwear_jax.models.layers.mesh_ops import ONE_DEVICE, MeshOps
from ehrwear_jax.models.objective import Ramp, WeightedTerms

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
    term = NextCode()
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
