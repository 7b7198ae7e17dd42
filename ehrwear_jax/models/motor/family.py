"""Joins the parts of MOTOR to what models/family.py asks for: an EHR foundation model of times to later events.

Steinberg et al. (ICLR 2024); the sizes of Config are the published ones. What is ours: hazards are per day and in
natural logarithms, follow-up ends where the dataset says so and not with the last record, entries for values are a
code's own, static events are a sum in the first token of a context (the original's first token of a record), one norm
serves a block's two parts as in the original and the age is projected at the input.

Training costs, with L layers of width D, feed-forward width M, attention window W, A entries a token, K pieces of time,
E task_width, C tasks, V dictionary; T tokens and N places of B rows at once:

    flops a token     6 L (4 D^2 + 2 D M)  +  12 L D min(W, tokens seen)  +  6 (N / T) K E (D + C)
    parameters P      V D + L (4 D^2 + 2 D M) + K E D + (E + K) C
    memory, bytes     16 P  (float32: parameters, gradients, two moments)
                      + B T (4 A + 4 A + 24)          the batch on the device
                      + B T s L (6 D + M)             activations, remat=none, s = 2 or 4 bytes; remat=full: B T s L D
                      + 4 B N C x 4                   the loss: times to events and one piece's scores, never times K

At the published sizes P is 143 million and a token takes 0.6 Gflop, so that 300,000 people with 3,000 tokens each take
5.3e17 flops an epoch: about 25 minutes on one device that reaches 350 Tflop/s. The host holds 16 bytes for each
person's place in the index and caches timelines up to a limit; facts are fitted on 20,000 people at most, and neither
grows with the number of events. One epoch plans 300,000 contexts in well under a second.
"""

import dataclasses
from collections.abc import Mapping

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.data.store import RecordStore
from ehrwear_jax.models.family import BatchSpec
from ehrwear_jax.models.layers.mesh_ops import ONE_DEVICE, MeshOps
from ehrwear_jax.models.motor import network as network_lib
from ehrwear_jax.models.motor.config import Config
from ehrwear_jax.models.motor.examples import MotorExamples, batch_spec
from ehrwear_jax.models.motor.hazard_loss import TimeToEvent
from ehrwear_jax.models.motor.timelines import Facts
from ehrwear_jax.models.objective import Ramp, WeightedTerms

__all__ = ["Config", "adapted", "assumed", "examples", "flops", "network", "objective"]


def examples(store: RecordStore, config: Config, seed: int = 0, train: bool = True) -> MotorExamples:
    """Rows of packed contexts; nothing is drawn that training alone would have."""
    del train
    return MotorExamples(store, config, seed)


def network(spec: BatchSpec, config: Config, mesh_ops: MeshOps = ONE_DEVICE) -> network_lib.MotorNetwork:
    """Dictionary, backbone and the head of times to events."""
    return network_lib.MotorNetwork(config, spec.facts, mesh_ops)


def objective(spec: BatchSpec, config: Config) -> WeightedTerms:
    """The times to events alone."""
    del config
    term = TimeToEvent(len(spec.facts.bin_days) * spec.facts.tasks)
    return WeightedTerms((term,), {term.name: Ramp(1.0, 1.0)})


def assumed(config: Config, prepare: PrepareConfig, vocabulary: int) -> tuple[BatchSpec, dict[str, int]]:
    """The batches that data of this size would give, and the counts of a row that one context fills.

    Args:
      vocabulary: entries of the dictionary; at most as many codes are predicted.
    """
    del prepare
    tasks = min(config.tasks, vocabulary)
    bin_days = (0.0, *(float(2**k) for k in range(config.time_bins - 1)))
    facts = Facts(vocabulary, tasks, bin_days, (0.001,) * tasks, (20_000.0, 8_000.0))
    n, window = config.tokens, min(config.attention_window, config.tokens)
    seen = window * (window + 1) // 2 + (n - window) * window
    counts = {"contexts": 1, "tokens": n, "sites": config.sites, "seen": seen}
    return batch_spec(config, facts), counts


def adapted(config: Config, width: int) -> Config:
    """The config with adapters of this width behind the blocks, for fine-tuning."""
    return dataclasses.replace(config, adapter_width=width)


def flops(spec: BatchSpec, config: Config, sizes: Mapping[str, int], counts: Mapping[str, int]) -> float:
    """Flops of forward and backward pass over what a batch holds; what is computed twice counts once.

    6 for each parameter of the backbone and token, 12 width for each layer and key that is seen, and 6 for each
    parameter of the head and place, those of codes once for each piece of time. The dictionary and padding are left
    out.

    Args:
      sizes: {part of the network: number of parameters}. counts: of MotorExamples.counts.
    """
    n_bins, width = len(spec.facts.bin_days), config.task_width
    head = n_bins * width * (config.width + spec.facts.tasks)
    backbone = 6 * sizes["backbone"] * counts["tokens"]
    return float(backbone + 12 * config.width * config.n_layers * counts["seen"] + 6 * head * counts["sites"])
