"""Joins the parts of MOTOR to what models/family.py asks for: an EHR foundation model of the times to later codes.

Steinberg et al. (ICLR 2024). Config has the published sizes. Not as in the original:

    values          have entries by bins of their own code, not of all codes together
    static events   are added up in the first token of every context, not in that of the record alone
    ages            enter by a projection beside rotation, where they are told
    follow-up       ends where the dataset says so, not with the last event; hazards are per day, not per second
    loss            is the sum over codes and pieces of time, of which the original takes the mean

With config.clmbr it is CLMBR: the same tokens and blocks, pretrained on the code of each next token, where that is one
of the predicted codes. Unlike the original it skips no events soon after birth.

Layer-by-layer agreement with a published implementation has not been measured.

What training takes, with L layers of width D, M hidden units, windows of W tokens, A entries a token, K pieces of time,
E task_width, C tasks, V entries of the dictionary, and at once B rows of T tokens, N places and P pairs, in s bytes:

    parameters       V D + L (4 D^2 + 2 D M) + D K E + (E + K) C
    flops a token    6 L (4 D^2 + 2 D M) + 12 L D min(W, tokens seen) + 6 (N / T) K E (D + C)
    bytes of state   16 a parameter: it, its gradient and two moments in float32
    of a batch       B (T (8 A + 20) + 8 N + 12 P)
    of activations   s B T L (8 D + 2 M), or s B T L D with remat=full, and s B T M in the block at work
    of the loss      about 20 B N C, whatever K is, and s B N K E

By these, with the published sizes: 143 million parameters, 2.3 GB of state, 0.6 Gflop a token. 300,000 people with
3,000 tokens each are 9e8 tokens, 5.3e17 flops an epoch: 25 minutes at 350 Tflop/s. 8 rows of 2,048 tokens hold 270 MB
in the loss and, in bfloat16 with remat=none, 5 GB of activations. On the host an epoch's plan takes 20 bytes a context,
timelines (12 bytes a token, 16 for each code and ancestor of an event) are cached up to a limit, and facts are fitted
on 20,000 people at most. The compiler's count for the loss is 18.5 bytes a place and code with 4 and with 8 pieces of
time; the other figures follow from the formulae, and none was timed.
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
from ehrwear_jax.models.objective import NextCode, Ramp, WeightedTerms

__all__ = ["Config", "adapted", "assumed", "examples", "flops", "network", "objective"]


def examples(store: RecordStore, config: Config, seed: int = 0, train: bool = True) -> MotorExamples:
    """Rows of packed contexts; nothing is drawn that training alone would have."""
    del train
    return MotorExamples(store, config, seed)


def network(spec: BatchSpec, config: Config, mesh_ops: MeshOps = ONE_DEVICE) -> network_lib.MotorNetwork:
    """Dictionary, backbone and the head of times to events."""
    return network_lib.MotorNetwork(config, spec.facts, mesh_ops)


def objective(spec: BatchSpec, config: Config) -> WeightedTerms:
    """The times to events alone, or the next codes."""
    if config.predicts == "next_code":
        return WeightedTerms((NextCode("next_task"),), {"next_code": Ramp(1.0, 1.0)})
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
    if config.predicts == "next_code":
        counts["targets"] = n
    return batch_spec(config, facts), counts


def adapted(config: Config, width: int) -> Config:
    """The config with adapters of this width behind the blocks, for fine-tuning."""
    return dataclasses.replace(config, adapter_width=width)


def flops(spec: BatchSpec, config: Config, sizes: Mapping[str, int], counts: Mapping[str, int]) -> float:
    """Flops of forward and backward pass over what a batch holds; what is computed twice counts once.

    6 for each parameter of the backbone and token, 12 width for each layer and key that is seen, and 6 for each
    parameter of the head and place, those of codes once for each piece of time; of CLMBR 6 for each number of its
    head's and target. The dictionary and padding are left out.

    Args:
      sizes: {part of the network: number of parameters}. counts: of MotorExamples.counts.
    """
    n_bins, width = len(spec.facts.bin_days), config.task_width
    head = n_bins * width * (config.width + spec.facts.tasks) * counts["sites"]
    if config.predicts == "next_code":
        head = config.width * spec.facts.tasks * counts["targets"]
    backbone = 6 * sizes["backbone"] * counts["tokens"]
    return float(backbone + 12 * config.width * config.n_layers * counts["seen"] + 6 * head)
