"""MOTOR's transformer against one of PyTorch, written from the published description of its blocks.

Steinberg et al. (2024): norm, one product for queries, keys, values and hidden units, local attention whose pairs of
neighbouring features turn by the age in days, and one product of what is attended beside gelu(hidden units). Normed
ages are an option there, read by every block; here tokens are told them once, which the test takes as it is.
"""

import jax
import numpy as np
import pytest
from motor_cases import config_of
from small_model import random_params
from torch_parity import array, assert_same, filled, linear, norm, packed_ranges, renamed, torch

from ehrwear_jax.models.layers.mesh_ops import ONE_DEVICE
from ehrwear_jax.models.motor import network
from ehrwear_jax.models.motor.timelines import PAD, Facts

EPSILON = 1e-6
N_TOKENS, LENGTHS = 37, (17, 5, 11)
SIZES = {"width": 24, "n_heads": 3, "mlp_width": 40, "n_layers": 3, "attention_window": 6, "tokens": N_TOKENS,
         "context_tokens": 20, "features": 4}  # fmt: skip


class ParallelBlock(torch.nn.Module):
    """x + out([attention, gelu(hidden)])."""

    def __init__(self, width, n_heads, hidden):
        super().__init__()
        self.sizes, self.n_heads = [width, width, width, hidden], n_heads
        self.norm = torch.nn.RMSNorm(width, eps=EPSILON)
        self.project = torch.nn.Linear(width, sum(self.sizes))
        self.out = torch.nn.Linear(width + hidden, width)

    def forward(self, x_TxD, age_days, sees_TxT):
        *qkv, hidden = self.project(self.norm(x_TxD)).split(self.sizes, dim=-1)
        query, key, value = (y.unflatten(-1, (self.n_heads, -1)).transpose(0, 1) for y in qkv)
        seen = torch.nn.functional.scaled_dot_product_attention(
            turned(query, age_days), turned(key, age_days), value, sees_TxT
        )
        seen = torch.where(sees_TxT.any(-1)[:, None], seen.transpose(0, 1).flatten(1), 0.0)
        return x_TxD + self.out(torch.cat([seen, torch.nn.functional.gelu(hidden, approximate="tanh")], dim=-1))


def turned(x_HxTxE, age_days):
    """Features 2 f and 2 f + 1 turned by age / 10000^(2 f / (F - 1)), with angles in float64."""
    pairs = torch.view_as_complex(x_HxTxE.double().unflatten(-1, (-1, 2)).contiguous())
    rate = 10_000.0 ** -torch.linspace(0, 2, pairs.shape[-1], dtype=torch.float64)
    angle = age_days[:, None] * rate
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(-2).float()


class Transformer(torch.nn.Module):
    """Sums of weighted entries, blocks, a norm ahead and one behind."""

    def __init__(self, config, entries):
        super().__init__()
        self.entries = torch.nn.EmbeddingBag(entries, config.width, mode="sum")
        self.norm_in, self.norm_out = (torch.nn.RMSNorm(config.width, eps=EPSILON) for _ in range(2))
        self.age = torch.nn.Linear(2, config.width, bias=False) if config.normed_ages else None
        sizes = config.width, config.n_heads, config.mlp_width
        self.blocks = torch.nn.ModuleList(ParallelBlock(*sizes) for _ in range(config.n_layers))

    def forward(self, entry_TxA, weight_TxA, age_days, normed_age_T, sees_TxT):
        x = self.norm_in(self.entries(entry_TxA, per_sample_weights=weight_TxA))
        if self.age is not None:
            x = x + self.age(torch.stack([normed_age_T, normed_age_T**2], dim=-1))
        for block in self.blocks:
            x = block(x, age_days, sees_TxT)
        return self.norm_out(x)


def neighbours(kernel):
    """Pairs of features (f, f + E / 2) of [..., H, E] laid side by side, as there."""
    return np.stack(np.split(np.asarray(kernel), 2, axis=-1), axis=-1).reshape(kernel.shape)


def block_tensors(p):
    """Of a ParallelBlock, from the parameters of network.Block."""
    sides = []
    for name in ("query", "key", "value", "up"):
        turn = neighbours if name in ("query", "key") else np.asarray
        sides.append(linear("x", {k: turn(p[name][k]) for k in ("kernel", "bias")}))
    project = {f"project.{k}": np.concatenate([side[f"x.{k}"] for side in sides]) for k in ("weight", "bias")}
    seen, hidden = linear("x", p["out"], n_inputs=2), linear("x", p["down"])
    # two products, each with a bias, are one there
    out = {"out.weight": np.concatenate([seen["x.weight"], hidden["x.weight"]], axis=1),
           "out.bias": seen["x.bias"]}  # fmt: skip
    return norm("norm", p["norm"]) | project | out


@pytest.mark.parametrize("normed_ages", [False, True])
def test_the_transformer_is_that_of_torch(normed_ages):
    """Over three people and padding in a row of odd length, aged 0 to 90 years with fractions of days."""
    config, rng = config_of(**SIZES, normed_ages=normed_ages), np.random.default_rng(0)
    facts = Facts(30, 6, (0.0, 10.0), (0.1,) * 6, (15_000.0, 6_000.0))
    ranges, sees, _ = packed_ranges(LENGTHS, N_TOKENS, config.attention_window)
    age = np.concatenate([np.sort(rng.uniform(0, 33_000, n)) for n in (*LENGTHS, N_TOKENS - sum(LENGTHS))])
    day = np.floor(age)
    entry = rng.integers(2, facts.dictionary, (1, N_TOKENS, config.features)).astype(np.int32)
    entry[rng.random(entry.shape) < 0.3] = PAD
    batch = {
        "entry": entry, "weight": rng.uniform(0.2, 1.0, entry.shape).astype(np.float32),
        "age": np.stack([day, age - day], axis=-1)[None].astype(np.float32), "kv_range": ranges,
        "site": np.arange(N_TOKENS, dtype=np.int32)[None],
    }  # fmt: skip
    net = network.MotorNetwork(config, facts, ONE_DEVICE)
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), batch, method="encode"))["params"]
    params = random_params(shapes, mean=0.0, spread=0.3)
    blocks = params["backbone"]["blocks"]
    blocks["down"]["bias"] = np.zeros_like(blocks["down"]["bias"])
    z = jax.jit(lambda p, b: net.apply({"params": p}, b, method="encode"))(params, batch)[0]

    values = {"entries.weight": params["dictionary"]["embedding"]}
    values |= norm("norm_in", params["norm_in"]) | norm("norm_out", params["backbone"]["norm_out"])
    values |= linear("age", params["age"]) if normed_ages else {}
    for k in range(config.n_layers):
        values |= renamed(f"blocks.{k}", block_tensors(jax.tree.map(lambda x, k=k: x[k], blocks)))
    ours = params | {"backbone": params["backbone"] | {"blocks": blocks | {"down": blocks["down"]["kernel"]}}}
    weight, age_days = np.where(entry == PAD, 0, batch["weight"])[0], batch["age"][0].astype(np.float64).sum(-1)
    normed_age = (age_days - facts.age_days[0]) / facts.age_days[1]
    theirs = filled(Transformer(config, facts.dictionary), values, ours)(
        array(entry[0]).long(), array(weight), array(age_days), array(normed_age).float(), array(sees)
    )
    assert_same(f"MOTOR, ages {normed_ages}", z, theirs)
