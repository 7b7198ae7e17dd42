"""ContextClues' backbones against PyTorch, written from the published descriptions of Llama and Mamba."""

import jax
import numpy as np
import pytest
from context_clues_cases import config_of
from small_model import random_params
from torch_parity import array, assert_same, filled, linear, norm, packed_ranges, renamed, torch

from ehrwear_jax.models.context_clues import network
from ehrwear_jax.models.context_clues.timelines import Facts
from ehrwear_jax.models.layers.mesh_ops import ONE_DEVICE

N_TOKENS, LENGTHS = 37, (17, 1, 14)
FACTS = Facts(dictionary=30)


def product(n_in, n_out):
    """Without a bias."""
    return torch.nn.Linear(n_in, n_out, bias=False)


class Llama(torch.nn.Module):
    """Attention with shared keys and values, turned by positions, and a gated feed-forward part."""

    def __init__(self, c):
        super().__init__()
        depth, self.theta, self.n_heads = c.width // c.n_heads, c.rotary_theta, c.n_heads
        self.norm_attention, self.norm_mlp = (torch.nn.RMSNorm(c.width, eps=1e-5) for _ in range(2))
        self.query, self.out = product(c.width, c.width), product(c.width, c.width)
        self.key, self.value = (product(c.width, c.n_kv_heads * depth) for _ in range(2))
        self.gate, self.up = (product(c.width, c.mlp_width) for _ in range(2))
        self.down = product(c.mlp_width, c.width)

    def forward(self, x_TxD):
        normed, depth = self.norm_attention(x_TxD), x_TxD.shape[-1] // self.n_heads
        query, key, value = (
            of(normed).unflatten(-1, (-1, depth)).transpose(0, 1) for of in (self.query, self.key, self.value)
        )
        seen = torch.nn.functional.scaled_dot_product_attention(
            self.turned(query), self.turned(key), value, is_causal=True, enable_gqa=True
        )
        x_TxD = x_TxD + self.out(seen.transpose(0, 1).flatten(1))
        normed = self.norm_mlp(x_TxD)
        return x_TxD + self.down(torch.nn.functional.silu(self.gate(normed)) * self.up(normed))

    def turned(self, x_HxTxE):
        """Features f and f + E / 2 of a head."""
        half = x_HxTxE.shape[-1] // 2
        angle = torch.arange(x_HxTxE.shape[1])[:, None] / self.theta ** (torch.arange(half) / half)
        a, b = x_HxTxE[..., :half], x_HxTxE[..., half:]
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1)


class Mamba(torch.nn.Module):
    """A selective state space, token by token."""

    def __init__(self, c):
        super().__init__()
        self.rank, self.state = c.rank, c.state
        self.norm = torch.nn.RMSNorm(c.width, eps=1e-5)
        self.project, self.out = product(c.width, 2 * c.inner), product(c.inner, c.width)
        self.convolution = torch.nn.Conv1d(
            c.inner, c.inner, c.conv_width, groups=c.inner, padding=c.conv_width - 1
        )  # fmt: skip
        self.select, self.step = product(c.inner, c.rank + 2 * c.state), torch.nn.Linear(c.rank, c.inner)
        self.log_rate, self.skip = (torch.nn.Parameter(torch.zeros(s)) for s in ((c.inner, c.state), (c.inner,)))

    def forward(self, x_TxD):
        x, gate = self.project(self.norm(x_TxD)).chunk(2, dim=-1)
        x = torch.nn.functional.silu(self.convolution(x.T[None])[0, :, : len(x)].T)
        low, write, read = self.select(x).split([self.rank, self.state, self.state], dim=-1)
        step, rate = torch.nn.functional.softplus(self.step(low)), -self.log_rate.exp()
        state, said = torch.zeros_like(rate), []
        for t in range(len(x)):
            keep = torch.exp(step[t][:, None] * rate)
            state = keep * state + step[t][:, None] * write[t][None] * x[t][:, None]
            said.append(state @ read[t])
        return x_TxD + self.out((torch.stack(said) + self.skip * x) * torch.nn.functional.silu(gate))


class Backbone(torch.nn.Module):
    """Tokens of one context to z."""

    def __init__(self, block, config, tokens):
        super().__init__()
        self.tokens, self.norm = torch.nn.Embedding(tokens, config.width), torch.nn.RMSNorm(config.width, eps=1e-5)
        self.blocks = torch.nn.Sequential(*(block(config) for _ in range(config.n_layers)))

    def forward(self, token_T):
        return self.norm(self.blocks(self.tokens(token_T)))


def llama_tensors(p):
    """Of a Llama, from the parameters of blocks.LlamaBlock."""
    found = linear("out", p["out"], n_inputs=2)
    for name in ("query", "key", "value", "gate", "up", "down"):
        found |= linear(name, p[name])
    return found | norm("norm_attention", p["norm_attention"]) | norm("norm_mlp", p["norm_mlp"])


def mamba_tensors(p):
    """Of a Mamba, from the parameters of blocks.MambaBlock."""
    kernel = np.asarray(p["convolution"]["kernel"])[::-1].T[:, None]  # the latest token first here, and last there
    found = {"convolution.weight": kernel, "convolution.bias": p["convolution"]["bias"]}
    found |= linear("project", p["in"]) | linear("select", p["select"]) | linear("step", p["step"])
    return found | linear("out", p["out"]) | norm("norm", p["norm"]) | {k: p[k] for k in ("log_rate", "skip")}


@pytest.mark.parametrize(
    ("backbone", "block", "tensors"), [("llama", Llama, llama_tensors), ("mamba", Mamba, mamba_tensors)]
)
def test_the_backbone_is_that_of_torch(backbone, block, tensors):
    """Of contexts that share a row with padding, each by itself there."""
    config, rng = config_of(backbone), np.random.default_rng(0)
    ranges, _, _ = packed_ranges(LENGTHS, N_TOKENS, window=N_TOKENS)
    token = rng.integers(0, FACTS.dictionary, (1, N_TOKENS)).astype(np.int32)
    batch = {"token": token, "kv_range": ranges, "site": np.arange(N_TOKENS, dtype=np.int32)[None]}
    net = network.ContextCluesNetwork(config, FACTS, ONE_DEVICE)
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), batch, method="encode"))["params"]
    params = random_params(shapes, mean=0.0, spread=0.3)
    z = np.asarray(jax.jit(lambda p, b: net.apply({"params": p}, b, method="encode"))(params, batch)[0])

    values = {"tokens.weight": params["dictionary"]["embedding"]} | norm("norm", params["backbone"]["norm_out"])
    for k in range(config.n_layers):
        layer = jax.tree.map(lambda x, k=k: x[k], params["backbone"]["blocks"])
        values |= renamed(f"blocks.{k}", tensors(layer))
    theirs, begin = filled(Backbone(block, config, FACTS.dictionary), values, params), 0
    for n in LENGTHS:
        found = theirs(array(token[0, begin : begin + n]).long())
        assert_same(f"ContextClues {backbone}, {n} tokens", z[begin : begin + n], found)
        begin += n
