"""PaPaGei's network against one of PyTorch, written from the published description (Pillai et al. 2025)."""

import jax
import numpy as np
import pytest
import torch_resnet1d
from small_model import random_params
from torch_parity import array, assert_same, batch_norm, filled, linear, random_statistics, renamed, torch

from ehrwear_jax.models.papagei import network
from ehrwear_jax.models.papagei.config import PARTICIPANT, Config

# narrower and shallower than the published 32 and 18, with as many kinds of blocks
SIZES = {"width": 6, "n_blocks": 10, "out_width": 10, "projection": (14, 8), "dropout": 0.0}


class Experts(torch.nn.Module):
    """Numbers by small networks, weighted by a softmax."""

    def __init__(self, width, n_experts):
        super().__init__()
        self.experts = torch.nn.ModuleList(
            torch.nn.Sequential(
                torch.nn.Linear(width, width // 2), torch.nn.ReLU(), torch.nn.Linear(width // 2, 1)
            ) for _ in range(n_experts)
        )  # fmt: skip
        self.gate = torch.nn.Sequential(torch.nn.Linear(width, n_experts), torch.nn.Softmax(dim=1))

    def forward(self, x):
        said = torch.cat([expert(x) for expert in self.experts], dim=1)
        return (self.gate(x) * said).sum(1)


class Papagei(torch.nn.Module):
    """Body, and z with experts (S) or a projector (P)."""

    def __init__(self, config, channels):
        super().__init__()
        c, width = config, config.width * 2 ** ((config.n_blocks - 1) // 4)
        self.body = torch_resnet1d.ResNet(channels, c.width, c.kernel, c.n_blocks, pool="mean", last=True)
        if c.has_morphology:
            self.dense = torch.nn.Linear(width, c.out_width)
            self.ipa, self.sqi = Experts(width, c.experts), Experts(width, c.experts)
        else:
            self.projector = torch.nn.Sequential(
                torch.nn.Linear(width, c.projection[0]), torch.nn.BatchNorm1d(c.projection[0]), torch.nn.ReLU(),
                torch.nn.Linear(*c.projection),
            )  # fmt: skip

    def forward(self, x):
        pooled = self.body(x)
        if hasattr(self, "projector"):
            return {"z": pooled, "contrast": self.projector(pooled)}
        z = self.dense(pooled)
        return {"z": z, "contrast": z, "ipa": self.ipa(pooled), "sqi": self.sqi(pooled)}


def expert_tensors(p):
    """Of Experts, from the parameters of network.Experts, which holds all in one array."""
    found = linear("gate.0", p["gate"])
    for e, kernel_H in enumerate(np.asarray(p["out_kernel"])):
        found |= {f"experts.{e}.0.weight": np.asarray(p["hidden"]["kernel"])[:, e].T}
        found |= {f"experts.{e}.0.bias": p["hidden"]["bias"][e]}
        found |= {f"experts.{e}.2.weight": kernel_H[None], f"experts.{e}.2.bias": p["out_bias"][e : e + 1]}
    return found


def tensors(p, statistics):
    """Of a Papagei."""
    found = renamed("body", torch_resnet1d.tensors(p["body"], statistics["body"]))
    if "out" in p:
        heads = {name: renamed(name, expert_tensors(p[name])) for name in ("ipa", "sqi")}
        return found | linear("dense", p["out"]) | heads["ipa"] | heads["sqi"]
    head = p["projector"]
    found |= batch_norm("projector.1", head["norm"], statistics["projector"]["norm"])
    return found | linear("projector.0", head["hidden"]) | linear("projector.3", head["out"])


@pytest.mark.parametrize(("kind", "options"), [("S", {}), ("P", PARTICIPANT)])
def test_the_network_is_that_of_torch(kind, options):
    """At inference, and in training with the statistics of the pieces that are there; of an odd number of samples."""
    config, rng = Config(**SIZES | options), np.random.default_rng(0)
    n_views = config.n_views
    loudness = np.geomspace(0.1, 10, 8).reshape(2, 4, 1, 1, 1)
    views = (loudness * rng.normal(size=(2, 4, n_views, 301, 2))).astype(np.float32)
    person = np.array([[3, 3, 1, 0], [5, 5, -1, -1]], np.int32)
    batch = {"views": views, "signal": views[:, :, 0], "person": person}
    net = network.PapageiNetwork(config)
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), batch))
    params = random_params(shapes["params"], mean=0.0, spread=0.4)
    variables = {"params": params, "batch_stats": random_statistics(shapes["batch_stats"])}
    encoded = jax.jit(lambda v, b: net.apply(v, b, method="encode"))(variables, batch)
    said = jax.jit(lambda v, b: net.apply(v, b))(variables, batch)
    keys = {"dropout": jax.random.key(1)}
    train = jax.jit(lambda v, b: net.apply(v, b, False, mutable=["batch_stats"], rngs=keys)[0])(variables, batch)

    values, there = tensors(params, variables["batch_stats"]), person.reshape(-1) >= 0
    theirs = filled(Papagei(config, 2), values, (params, variables["batch_stats"]))

    def pieces(x):
        return array(x.reshape(8, -1, 301, 2)[there].reshape(-1, 301, 2)).transpose(1, 2)

    def ours(x):
        return x.reshape(8, *x.shape[2:])[there].reshape((-1, *x.shape[-1:]) if x.ndim > 2 else -1)

    assert_same(f"PaPaGei-{kind} z", ours(encoded), theirs(pieces(batch["signal"]))["z"])
    for when, out in (("inference", said), ("training", train)):
        found = theirs.train(when == "training")(pieces(views))
        for name in out:
            if (name, when) != ("sqi", "training"):  # whose experts drop at random whatever the config says
                assert_same(f"PaPaGei-{kind} {name} in {when}", ours(out[name]), found[name])
