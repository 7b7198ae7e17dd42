"""Turned pairs of features: products tell differences of positions alone."""

import jax.numpy as jnp
import numpy as np

from ehrwear_jax.models.layers.rotation import position_angles, rotated


def turned(x, positions, theta=500_000.0):
    sin, cos = position_angles(jnp.asarray(positions, jnp.int32)[None], x.shape[-1] // 2, theta)
    return np.asarray(rotated(jnp.asarray(x, jnp.float32), sin, cos), np.float64)


def test_products_depend_on_differences_of_positions():
    q, k = np.random.default_rng(0).normal(size=(2, 1, 2, 3, 8))
    near, far = ((turned(q, at) * turned(k, at)).sum(-1) for at in ([0, 7], [9000, 9007]))
    np.testing.assert_allclose(near, (q * k).sum(-1), atol=1e-5)
    np.testing.assert_allclose(far, near, atol=1e-5)
    ahead = [(turned(q, [5 + at, at])[0, 0] * turned(k, [at, at])[0, 0]).sum(-1) for at in (0, 8000)]
    np.testing.assert_allclose(ahead[0], ahead[1], atol=5e-3)
    assert np.abs(ahead[0] - (q * k)[0, 0].sum(-1)).max() > 0.01


def test_pairs_turn_as_complex_numbers_at_geometric_speeds():
    x = np.random.default_rng(1).normal(size=(1, 1, 1, 6))
    speeds = 100.0 ** -(np.arange(3) / 3)
    want = (x[..., :3] + 1j * x[..., 3:]) * np.exp(11j * speeds)
    np.testing.assert_allclose(turned(x, [11], 100.0), np.concatenate([want.real, want.imag], -1), atol=1e-5)
