"""The definition itself, against the formula in float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
from kernel_attention_suite import LEARNED, Oracle, Shape, Suite, arguments, device_arrays

from ehrwear_jax.ops.kernel_attention import kernel_attention


class TestReference(Suite):
    implementation = "reference"


def test_the_oracle_s_gradients_are_differences_of_its_outputs():
    """The oracle of all suites is held against its own finite differences."""
    for n_component in (3, -1):
        shape = Shape(1, 6, 7, 2, 8, n_component)
        x = Suite().case(shape)
        grads = Oracle(shape, x).grads
        rng = np.random.default_rng(2)
        for name in LEARNED:
            direction, step = rng.normal(size=x[name].shape), 1e-6
            ahead, behind = (
                np.sum(Oracle(shape, x | {name: x[name] + s * step * direction}).out * x["weight"]) for s in (1, -1)
            )
            np.testing.assert_allclose(
                np.sum(grads[name] * direction), (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-7
            )


def test_second_derivatives_exist():
    shape = Shape(1, 6, 7, 2, 8, 3)
    learned, rest = device_arrays(shape, Suite().case(shape))

    def loss(q):
        args, keywords = arguments(shape, rest, learned | {"q": q})
        return jnp.sum(kernel_attention(*args, **keywords, implementation="reference") ** 2)

    hessian = jax.grad(lambda q: jnp.sum(jax.grad(loss)(q) ** 2))(learned["q"])
    assert np.all(np.isfinite(hessian)) and np.any(np.asarray(hessian) != 0)
