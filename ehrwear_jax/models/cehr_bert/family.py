"""Joins the parts of CEHR-BERT to what models/family.py asks for: a bidirectional EHR model that hides and predicts.

Pang et al. (ML4H 2021); Config has the sizes of the published PyTorch implementation. Not as in the original:

    prediction     each time has a sequence of its own, of what is known then; whole visits are never shown ahead
    visits         follow from admissions and discharges and from days, for records name no encounters
    static events  are tokens behind the first one (`static_tokens`), for age is all that the original tells of a person
    <cls>          is never hidden or replaced: nothing is to be learned of it
    types          of visits are hidden among the tokens too; the original's encoder is not given them at all
    dates          have sines of their own; the implementation embeds them with those of ages
    visit numbers  count from the first visit of each context, not from the first one of a row that several share
    values         of predicted tokens are hidden; the implementation shows what it predicts, and divides the squares by
                   all values of a sequence
    z              is the mean over a person's tokens, never over padding. The implementation reads <cls> or a mean that
                   counts padding. Of its last state of <cls> no loss takes a gradient: hence the mean. `readout`

BEHRT and Med-BERT (config.py) are the same network with other inputs. They too have contexts of their own for each
prediction time and hide tokens as above; their sums of embeddings have no dropout; Med-BERT's codes of a visit stand in
their order in time, not by importance, and 15% of them are predicted, not one.

Agreement with the published implementation, number by number, has not been measured: PyTorch is not among the
requirements. tests/models/cehr_bert/test_network.py has all of it in numpy instead.

What training takes, with L layers of width D, M hidden units, V tokens, contexts of K tokens, a share p of them
predicted, F features of time, and at once B rows of T tokens, N sites, U visits, C target_chunk, in s bytes:

    parameters       V (D + 1) + L (4 D^2 + 2 D M) + 3 D^2 + 3 F D, and 9 D^2 + 2 D visit_mlp_width of visits' decoder
    flops a token    6 L (4 D^2 + 2 D M) + 12 L D K + 6 (2 D^2 + 3 F D) + 6 p D (D + V)
    bytes of state   16 a parameter: it, its gradient and two moments in float32
    of a batch       B (46 T + 8 N + 28 U)
    of activations   s B T L (10 D + 2 M), or s B T L D with remat=full, and s B T M in the block at work
    of the losses    about 12 C V, and 4 V D for the gradient of the table

By these, with the published sizes: 9.75 million parameters, 160 MB of state, 55 Mflop a token. 300,000 people with
3,000 tokens each are 9e8 tokens, 5e16 flops an epoch: two and a half minutes at 350 Tflop/s, which products as narrow
as these do not reach. 64 rows of 512 tokens hold 4.2 GB of activations in bfloat16 with remat=none. On the host an
epoch's plan takes 24 bytes a context, timelines (35 bytes a token) are cached up to a limit, and facts are fitted on
`fit_people` at most. Parameters and bytes of a batch are tested; the other figures follow from the formulae, and none
was timed.
"""

import dataclasses
from collections.abc import Mapping

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.data.store import RecordStore
from ehrwear_jax.models.cehr_bert import network as network_lib
from ehrwear_jax.models.cehr_bert.config import Config
from ehrwear_jax.models.cehr_bert.examples import CehrBertExamples, batch_spec
from ehrwear_jax.models.cehr_bert.loss import CrossEntropy, MaskedValues
from ehrwear_jax.models.cehr_bert.timelines import VISIT_SPECIAL, Facts, predicts_visits
from ehrwear_jax.models.family import BatchSpec
from ehrwear_jax.models.layers.mesh_ops import ONE_DEVICE, MeshOps
from ehrwear_jax.models.objective import Ramp, Term, WeightedTerms

__all__ = ["Config", "adapted", "assumed", "examples", "flops", "network", "objective"]


def examples(store: RecordStore, config: Config, seed: int = 0, train: bool = True) -> CehrBertExamples:
    """Rows of packed contexts; tokens are hidden in validation too, by whose prediction it judges."""
    del train
    return CehrBertExamples(store, config, seed)


def network(spec: BatchSpec, config: Config, mesh_ops: MeshOps = ONE_DEVICE) -> network_lib.CehrBertNetwork:
    """Embedder, encoder, and the heads of tokens, values and visits."""
    return network_lib.CehrBertNetwork(config, spec.facts, mesh_ops)


def objective(spec: BatchSpec, config: Config) -> WeightedTerms:
    """Hidden tokens with weight 1; values, types of visits and long stays with theirs, where these are predicted."""
    weights: dict[Term, float] = {CrossEntropy("masked_tokens", "target"): 1.0}
    if config.value_weight > 0:
        weights[MaskedValues()] = config.value_weight
    if predicts_visits(config, spec.facts):
        weights[CrossEntropy("visit_types", "visit_target")] = config.visit_weight
    if config.long_stay_weight > 0:
        weights[CrossEntropy("long_stays", "long_stay")] = config.long_stay_weight
    return WeightedTerms(tuple(weights), {term.name: Ramp(w, w) for term, w in weights.items()})


def assumed(config: Config, prepare: PrepareConfig, vocabulary: int) -> tuple[BatchSpec, dict[str, int]]:
    """The batches that data of this size would give, and the counts of a row that contexts of full length fill.

    Args:
      vocabulary: number of tokens. A visit has two types, and ten tokens.
    """
    del prepare
    facts = Facts(vocabulary, len(VISIT_SPECIAL) + 1)
    contexts, n = config.tokens // config.context_tokens, config.context_tokens
    tokens, n_visits = contexts * n, min(config.visits, contexts * (n // 10))
    counts = {"contexts": contexts, "tokens": tokens, "targets": round(config.masked * tokens), "seen": tokens * n}
    if predicts_visits(config, facts):
        counts |= {"visits": n_visits, "visit_seen": n_visits * (n + n // 10)}
    return batch_spec(config, facts), counts


def adapted(config: Config, width: int) -> Config:
    """The config with adapters of this width in the blocks, for fine-tuning."""
    return dataclasses.replace(config, adapter_width=width)


def flops(spec: BatchSpec, config: Config, sizes: Mapping[str, int], counts: Mapping[str, int]) -> float:
    """Flops of forward and backward pass over what a batch holds; what is computed twice counts once.

    6 for each parameter of the backbone and token, of the embedder's products and token, of the decoder and visit (its
    keys and values: and token), of the head, with the table, and target; 12 width for each layer and key that is seen.
    Padding is left out.

    Args:
      sizes: {part of the network: number of parameters}. counts: of CehrBertExamples.counts.
    """
    d, n_tokens = config.width, counts["tokens"]
    products = d * (d + 1) + d * (d + 3 * config.time_features) if config.inputs == "cehr_bert" else 0
    total = 6 * (sizes["backbone"] + products) * n_tokens + 12 * d * config.n_layers * counts["seen"]
    total += 6 * d * (d + spec.facts.tokens) * counts["targets"]
    if predicts_visits(config, spec.facts):
        keys = 2 * d * d
        total += 6 * keys * n_tokens + 6 * (sizes["visit_decoder"] - keys) * counts["visits"]
        total += 12 * d * counts["visit_seen"]
    return float(total)
