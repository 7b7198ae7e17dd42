"""Products against numpy, and the names that their parameters carry."""

import jax
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util

from ehrwear_jax.models.layers.dense import Mlp, dense, embedding

X = np.random.default_rng(0).normal(size=(4, 2, 5)).astype(np.float32)


def made(module, *inputs):
    """(params, {path: names}, output)."""
    out, variables = jax.jit(module.init_with_output)(jax.random.key(0), *inputs)
    named = traverse_util.flatten_dict(nn.get_partition_spec(variables["params"]), sep="/")
    return nn.meta.unbox(variables["params"]), {k: tuple(v) for k, v in named.items()}, out


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize(
    "features, axes, n_inputs, bias",
    [
        (6, ("embed", "mlp"), 1, ("mlp",)),
        ((2, 3), ("embed", "heads", "depth"), 1, ("heads", "depth")),
        (6, ("heads", "depth", "embed"), 2, (None,)),  # a bias of the stream lies whole
        (6, (None, "embed"), 1, (None,)),
    ],
)
def test_a_product_is_over_the_last_axes_and_names_the_rest(features, axes, n_inputs, bias):
    params, names, out = made(dense(features, axes, n_inputs=n_inputs), X)
    kernel = np.float64(params["kernel"])
    np.testing.assert_allclose(out, np.tensordot(X, kernel, n_inputs) + np.asarray(params["bias"]), atol=1e-5)
    # jax leaves out names behind the last that is one
    assert names["kernel"] + (None,) * (kernel.ndim - len(names["kernel"])) == axes
    assert names["bias"] + (None,) * (len(bias) - len(names["bias"])) == bias
    flat = kernel.reshape(int(np.prod(kernel.shape[:n_inputs])), -1)
    assert flat.std() == pytest.approx(len(flat) ** -0.5, rel=0.5) and not np.any(params["bias"])


def test_mlp_is_dense_gelu_dense():
    params, names, out = made(Mlp(6, 3), X)

    def product(p, x):
        return x @ np.float64(p["kernel"]) + np.float64(p["bias"])

    np.testing.assert_allclose(out, product(params["out"], gelu(product(params["hidden"], X))), atol=1e-5)
    assert names["hidden/kernel"] == ("embed", "mlp") and names["out/kernel"] == ("mlp", "embed")


def test_a_table_of_vectors_starts_small_and_is_looked_up():
    params, names, out = made(embedding(400, 8), np.array([[3, 399]]))
    np.testing.assert_allclose(out[0], params["embedding"][np.array([3, 399])], rtol=1e-6)  # two programs drew them
    assert np.std(params["embedding"]) == pytest.approx(0.02, rel=0.1) and names["embedding"] == ("token", "embed")
