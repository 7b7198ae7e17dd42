"""Joins the parts of the joint family to what models/family.py asks for: the paper's model of EHR and wearables."""

import dataclasses
from collections.abc import Mapping

from ehrwear_jax.config.data import AUTO, PrepareConfig
from ehrwear_jax.config.training import TrainConfig
from ehrwear_jax.data.signals import derived_features
from ehrwear_jax.data.store import RecordStore
from ehrwear_jax.models.family import BatchSpec
from ehrwear_jax.models.joint import interpretation
from ehrwear_jax.models.joint import network as network_lib
from ehrwear_jax.models.joint import published as published_lib
from ehrwear_jax.models.joint.batch import Facts, batch_spec
from ehrwear_jax.models.joint.config import LIKELIHOODS, Config
from ehrwear_jax.models.joint.decoding import Decoder
from ehrwear_jax.models.joint.examples import JointExamples
from ehrwear_jax.models.joint.terms import active, target_fields
from ehrwear_jax.models.layers.mesh_ops import ONE_DEVICE, MeshOps
from ehrwear_jax.models.objective import Ramp, WeightedTerms

__all__ = [
    "Config", "Decoder", "adapted", "assumed", "examples", "flops", "interpretation", "network", "objective",
    "published",
]  # fmt: skip


def examples(store: RecordStore, config: Config, seed: int = 0, train: bool = True) -> JointExamples:
    """Rows of packed contexts; train=False: the signal as recorded, no modality dropped."""
    return JointExamples(store, config, seed, augmented=train)


def network(spec: BatchSpec, config: Config, mesh_ops: MeshOps = ONE_DEVICE) -> network_lib.JointNetwork:
    """Encoders, backbone and the heads of the terms that the config weighs."""
    return network_lib.JointNetwork(config, spec.facts, active(config, spec.facts), mesh_ops)


def objective(spec: BatchSpec, config: Config) -> WeightedTerms:
    """The weighted sum of the terms; with likelihoods, also the ELBO in nats per observed step."""
    terms = active(config, spec.facts)
    likelihoods = tuple(t.name for t in terms if t.name in LIKELIHOODS)
    bounds = {"elbo/bound": (*likelihoods, "latent_kl")} if likelihoods else {}
    return WeightedTerms(terms, {t.name: Ramp(*config.weights[t.name]) for t in terms}, bounds)


def assumed(config: Config, prepare: PrepareConfig, vocabulary: int) -> tuple[BatchSpec, dict[str, int]]:
    """The batches that data of this size would give, and the counts of a row that one context fills.

    Args:
      vocabulary: number of tokens; at least as many codes are predicted and reconstructed.
    """
    c, modalities = config.context, tuple(m for m in config.modalities if m != "wear" or prepare.channels)
    named = [text for text in prepare.summaries if text != AUTO]  # what auto stands for is said by the data
    raw = prepare.segments.get(c.raw_segments) if c.raw_windows else None
    facts = Facts(
        modalities=modalities,
        vocabulary=vocabulary,
        steps=prepare.window_hours * 60 // prepare.step_minutes,
        channels=len(prepare.channels),
        derived=len(derived_features.targets(derived_features.parse(named, prepare.channels))),
        future_codes=c.future_codes,
        history_tokens=c.history_tokens,
        n_horizons=len(c.horizons),
        future_rates=(0.01,) * (c.future_codes * len(c.horizons)),
        raw_samples=raw.samples if raw else 0,
        raw_channels=len(raw.channels) if raw else 0,
        quality=prepare.quality,
        static=config.static,
        value_codes=c.value_codes * ("ehr" in modalities),
        value_inputs=config.network.value_inputs,
        quantiles=config.network.value_features > 0 and ("ehr" in modalities or config.static),
    )
    spec = batch_spec(c, facts, target_fields(active(config, facts)))
    n = spec.sizes["T"]
    seen = n * (n + 1) // 2 + c.queries * n
    counts = {"contexts": 1, "tokens": n, "queries": c.queries, "windows": spec.sizes["W"], "seen": seen}
    return spec, counts


def published(
    config: Config, train: TrainConfig, prepare: PrepareConfig
) -> tuple[list[published_lib.Published], list[str]]:
    """([(what, in the paper, here)], what is added to the paper's model), see joint/published.py."""
    return published_lib.published(config, train, prepare), published_lib.additions(config)


def adapted(config: Config, width: int) -> Config:
    """The config with adapters of this width behind the backbone's sublayers, for fine-tuning."""
    return dataclasses.replace(config, network=dataclasses.replace(config.network, adapter_width=width))


def flops(spec: BatchSpec, config: Config, sizes: Mapping[str, int], counts: Mapping[str, int]) -> float:
    """Flops of forward and backward pass over what a batch holds; what is computed twice counts once.

    6 N T for the backbone's parameters and its tokens and queries, 6 N T for the local encoder's and its patches, and
    the two products of attention over the keys that are seen: 12 width layers per key. Heads and embeddings are left
    out, as is padding.

    Args:
      sizes: {part of the network: number of parameters}.
      counts: of JointExamples.counts.
    """
    n = config.network
    backbone = 6 * sizes["backbone"] * (counts["tokens"] + counts["queries"])
    patches = counts["windows"] * (spec.facts.steps // config.context.patch_steps) if spec.facts.wear else 0
    return float(backbone + 6 * sizes.get("wear", 0) * patches + 12 * n.width * n.n_layers * counts["seen"])
