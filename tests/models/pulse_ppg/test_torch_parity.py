"""Pulse-PPG's encoder against one of PyTorch, written from the published description (Saha et al. 2025)."""

import jax
import numpy as np
import pytest
import torch_resnet1d
from small_model import random_params
from torch_parity import array, assert_same, filled, random_statistics, renamed, torch

from ehrwear_jax.models.pulse_ppg import network
from ehrwear_jax.models.pulse_ppg.config import Config


@pytest.mark.parametrize("n_samples", [480, 333])
def test_the_encoder_is_that_of_torch(n_samples):
    """Instance norm, blocks of kernel 11 without a norm behind them, and the highest of all frames."""
    config, rng = Config(width=6, n_blocks=9, dropout=0.0), np.random.default_rng(0)
    signal = (3 + 2 * rng.normal(size=(2, 3, n_samples, 1))).astype(np.float32)
    batch = {"signal": signal, "observed": np.ones(signal.shape, bool)}
    net = network.PulseNetwork(config)
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), batch, method="encode"))
    params = random_params(shapes["params"], mean=0.0, spread=0.2)
    variables = {"params": params, "batch_stats": random_statistics(shapes["batch_stats"])}
    z = jax.jit(lambda v, b: net.apply(v, b, method="encode"))(variables, batch)

    body = torch_resnet1d.ResNet(1, config.width, config.kernel, config.n_blocks, pool="max", last=False)
    values = torch_resnet1d.tensors(params["encoder"], variables["batch_stats"]["encoder"])
    theirs = torch.nn.Sequential(torch.nn.InstanceNorm1d(1), body)
    filled(theirs, renamed("1", values), (params, variables["batch_stats"]))
    found = theirs(array(signal.reshape(6, n_samples, 1)).transpose(1, 2))
    assert_same(f"Pulse-PPG z of {n_samples} samples", z.reshape(6, -1), found)
