"""CEHR-BERT's embedding, encoder and token head against PyTorch, written from the published description.

Pang et al. (2021) and the published implementation: a concept's vector, merged with its value, beside time2vec of date
and age and sines of the visit's order, projected; plus a vector of the visit's segment; and the layers of BERT, for
which PyTorch has a module of its own.
"""

import jax
import jax.numpy as jnp
import numpy as np
from cehr_cases import config_of
from small_model import random_params
from torch_parity import array, assert_same, filled, linear, norm, packed_ranges, renamed, torch

from ehrwear_jax.models.cehr_bert import network
from ehrwear_jax.models.cehr_bert.timelines import Facts
from ehrwear_jax.models.layers.mesh_ops import ONE_DEVICE

N_TOKENS, LENGTHS = 41, (19, 1, 13)
SIZES = {"width": 24, "n_heads": 3, "mlp_width": 40, "n_layers": 3, "time_features": 6, "tokens": N_TOKENS}
FACTS = Facts(tokens=30, visit_types=5)


class Sine(torch.nn.Module):
    """sin(w t / scale + phi)."""

    def __init__(self, features, scale):
        super().__init__()
        self.scale = scale
        self.w, self.phi = (torch.nn.Parameter(torch.zeros(features)) for _ in range(2))

    def forward(self, t):
        return torch.sin(self.w * (t / self.scale)[..., None] + self.phi)


class Embedding(torch.nn.Module):
    """What a token says, when, at what age and in which visit, joined; and in which segment."""

    def __init__(self, tokens, width, features):
        super().__init__()
        self.features = features
        self.concept, self.segment = torch.nn.Embedding(tokens, width), torch.nn.Embedding(3, width)
        self.merge = torch.nn.Linear(width + 1, width)
        self.date, self.age = Sine(features, 1000.0), Sine(features, 100.0)
        self.join = torch.nn.Linear(width + 3 * features, width)
        self.activation = torch.nn.GELU(approximate="tanh")

    def forward(self, token, value, has_value, date, age, visit, segment):
        x = self.concept(token)
        with_value = self.activation(self.merge(torch.cat([x, value.clip(-10, 10)[..., None]], dim=-1)))
        x = torch.where(has_value[..., None], with_value, x)
        joined = torch.cat([x, self.date(date), self.age(age), self.order(visit)], dim=-1)
        return self.activation(self.join(joined)) + self.segment(segment)

    def order(self, visit):
        """Sines at even places, cosines at odd ones."""
        even = torch.arange(0, self.features, 2)
        angle = visit[..., None] / 10_000 ** (even / self.features)
        found = torch.zeros(*visit.shape, self.features)
        found[..., 0::2], found[..., 1::2] = angle.sin(), angle.cos()
        return found


def encoder_of(config):
    """BERT's layers."""
    layer = torch.nn.TransformerEncoderLayer(
        config.width, config.n_heads, config.mlp_width, dropout=0.0, activation="gelu", layer_norm_eps=1e-12,
        batch_first=True,
    )  # fmt: skip
    return torch.nn.TransformerEncoder(layer, config.n_layers, enable_nested_tensor=False)


def layer_tensors(p):
    """Of a TransformerEncoderLayer, from the parameters of network.Block."""
    three = [linear("x", p["attention"][name]) for name in ("query", "key", "value")]
    joint = {f"self_attn.in_proj_{k}": np.concatenate([x[f"x.{k}"] for x in three]) for k in ("weight", "bias")}
    return (
        joint | linear("self_attn.out_proj", p["attention"]["out"], n_inputs=2) | norm("norm1", p["norm_attention"])
        | linear("linear1", p["mlp"]["up"]) | linear("linear2", p["mlp"]["down"]) | norm("norm2", p["norm_mlp"])
    )  # fmt: skip


def embedding_tensors(p):
    """Of an Embedding, from the parameters of network.Embedder."""
    found = {"concept.weight": p["table"]["embedding"], "segment.weight": p["visit_segment"]["embedding"]}
    for name in ("date", "age"):
        found |= {f"{name}.w": p[name]["rate"], f"{name}.phi": p[name]["phase"]}
    return found | linear("merge", p["merge"]) | linear("join", p["join"])


def batch_of(rng):
    """Three contexts and padding, with values of which some are beyond ten standard deviations."""
    shape = 1, N_TOKENS
    ranges, sees, _ = packed_ranges(LENGTHS, N_TOKENS)
    return {
        "token": rng.integers(0, FACTS.tokens, shape).astype(np.int32),
        "value": (8 * rng.normal(size=shape)).astype(np.float32), "has_value": rng.random(shape) < 0.5,
        "date": rng.uniform(0, 2800, shape).astype(np.float32), "age": rng.uniform(0, 90, shape).astype(np.float32),
        "visit": np.sort(rng.integers(0, 400, shape)).astype(np.int32),
        "visit_segment": rng.integers(0, 3, shape).astype(np.int32), "kv_range": ranges,
    }, sees  # fmt: skip


def test_embedding_and_encoder_are_those_of_torch():
    """Also of contexts in one row, padding and a person of one token."""
    config, (batch, sees) = config_of(**SIZES), batch_of(np.random.default_rng(0))
    net = network.CehrBertNetwork(config, FACTS, ONE_DEVICE)
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), batch, method="states"))["params"]
    params = random_params(shapes, mean=0.0, spread=0.3)
    embedded = jax.jit(lambda p, b: net.apply(p, b, method=lambda n, b: n.embedder(b)))({"params": params}, batch)
    states = jax.jit(lambda p, b: net.apply(p, b, method="states"))({"params": params}, batch)

    embedding = Embedding(FACTS.tokens, config.width, config.time_features)
    filled(embedding, embedding_tensors(params["embedder"]), params["embedder"])
    fields = [array(batch[name]) for name in ("token", "value", "has_value", "date", "age", "visit", "visit_segment")]
    theirs = embedding(*fields)
    assert_same("CEHR-BERT embedding", embedded, theirs)

    blocks, values = params["backbone"]["blocks"], {}
    for k in range(config.n_layers):
        values |= renamed(f"layers.{k}", layer_tensors(jax.tree.map(lambda x, k=k: x[k], blocks)))
    encoder, real = filled(encoder_of(config), values, blocks), sees.any(axis=1)
    blind = torch.from_numpy(~(sees | ~real[:, None]))  # PyTorch has no softmax over nothing
    assert_same("CEHR-BERT encoder", states[:, real], encoder(theirs, mask=blind)[:, real])


def test_the_token_head_is_that_of_torch():
    """A product, gelu and a norm, and products with the table of the embedding plus a bias."""
    config, rng = config_of(**SIZES), np.random.default_rng(1)
    state, table = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((1, 9, 24), (FACTS.tokens, 24)))
    target = np.arange(9, dtype=np.int32)[None]
    head = network.TokenHead(config, FACTS.tokens, ONE_DEVICE)
    shapes = jax.eval_shape(lambda: head.init(jax.random.key(0), state, table, target))["params"]
    params = random_params(shapes, mean=0.0, spread=0.3)
    ours = jax.jit(lambda p: head.apply({"params": p}, state, table, target).nll)(params)

    scores = torch.nn.Linear(24, FACTS.tokens)
    theirs = torch.nn.Sequential(torch.nn.Linear(24, 24), torch.nn.GELU(), torch.nn.LayerNorm(24, eps=1e-12), scores)
    values = linear("0", params["transform"]) | norm("2", params["norm"])
    filled(theirs, values | {"3.weight": table, "3.bias": params["bias"]}, (params, table))
    found = torch.nn.functional.cross_entropy(theirs(array(state)[0]), array(target)[0].long(), reduction="none")
    assert_same("CEHR-BERT token head", ours[0], found)
