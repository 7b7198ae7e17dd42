"""The residual network of convolutions: its shortcuts by hand, frames, statistics of what is there."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ehrwear_jax.models.layers import resnet1d
from ehrwear_jax.models.layers.resnet1d import ResidualBlock, ResNet1D
from ehrwear_jax.training.step import runs_once

QUICK = runs_once("cpu")


def test_a_block_whose_convolutions_are_zero_is_its_shortcut():
    """The highest of two samples, of an odd last one or zero, and features in the middle of zeros."""
    x = np.random.default_rng(0).normal(size=(2, 5, 2)).astype(np.float32)
    block = ResidualBlock(5, 3, 2, 0.0, False, 0, "float32")
    there = jnp.ones(2, bool)
    variables = nn.meta.unbox(block.init(jax.random.key(0), x, there, True))
    zeros = variables | {"params": jax.tree.map(jnp.zeros_like, variables["params"])}
    out = np.asarray(block.apply(zeros, x, there, True))
    want = np.zeros((2, 3, 5), np.float32)
    padded = np.concatenate([x, np.zeros((2, 1, 2))], axis=1)
    want[:, :, 1:3] = padded.reshape(2, 3, 2, 2).max(axis=2)
    np.testing.assert_allclose(out, want, atol=1e-6)


def test_multiplications_and_frames_of_ten_seconds_at_125_hz():
    """Nine halvings of 1,250 samples leave three frames."""
    net, frames = ResNet1D(), 1250
    for _ in range(9):
        frames = -(-frames // 2)
    assert frames == 3 and resnet1d.widths(net) == [32] * 4 + [64] * 4 + [128] * 4 + [256] * 4 + [512] * 2
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, 1250, 1)), jnp.ones(1, bool), True))
    n_params = sum(x.size for x in jax.tree.leaves(nn.meta.unbox(shapes)["params"]))
    assert n_params == pytest.approx(4.73e6, rel=0.01)
    small = ResNet1D(width=3, n_blocks=2)
    by_hand = 10 * 3 * 1 * 3 + 10 * 3 * (9 + 9) + 5 * 3 * (9 + 9)
    assert resnet1d.multiplications(small, 10, 1) == by_hand


def test_pieces_are_apart_at_inference_and_drop_differently_in_training():
    net = ResNet1D(width=4, n_blocks=2, pool="max")
    x = np.random.default_rng(1).normal(size=(3, 16, 2)).astype(np.float32)
    there = jnp.array([True, True, False])
    init = jax.jit(lambda key: net.init(key, x, there, True), compiler_options=QUICK)
    variables = nn.meta.unbox(init(jax.random.key(0)))
    run = jax.jit(lambda x: net.apply(variables, x, there, True), compiler_options=QUICK)
    assert run(x).shape == (3, 4) and run(x).dtype == jnp.float32
    np.testing.assert_array_equal(run(np.concatenate([x[:1], -x[1:]]))[0], run(x)[0])

    @functools.partial(jax.jit, compiler_options=QUICK)
    def trained(x, seed):
        return net.apply(variables, x, there, False, mutable=["batch_stats"], rngs={"dropout": jax.random.key(seed)})

    out, stats = trained(x, 0)
    np.testing.assert_array_equal(out, trained(x, 0)[0])
    assert np.any(np.asarray(out) != np.asarray(trained(x, 1)[0]))
    changed = trained(np.concatenate([x[:2], 9 * x[2:]]), 0)[1]
    for a, b in zip(jax.tree.leaves(stats), jax.tree.leaves(changed), strict=True):
        np.testing.assert_array_equal(a, b)
