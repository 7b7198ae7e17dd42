"""The op on meshes of eight simulated devices, against one device."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec
from kernel_attention_suite import LEARNED, Shape, Suite, arguments, assert_close, device_arrays

from ehrwear_jax.ops.kernel_attention import kernel_attention
from ehrwear_jax.ops.kernel_attention.sharded import sharded_kernel_attention

SHAPE = Shape(8, 32, 64, 4, 16, 3)
OPTIONS = {"block_q": 16, "block_k": 16}
LAYOUTS = {
    "data of 8": ((8,), ("data",), ("data", None, None), ("data", None, None), "gather"),
    "2 x 2 x 2": ((2, 2, 2), ("data", "fsdp", "tensor"), (("data", "fsdp"), None, "tensor"), None, "gather"),
    "context of 4, gathered": ((2, 4), ("data", "context"), ("data", "context"), None, "gather"),
    "context of 4, around a ring": ((2, 4), ("data", "context"), ("data", "context"), None, "ring"),
    "context and heads": ((2, 4), ("tensor", "context"), (None, "context", "tensor"), None, "ring"),
    "whole queries, keys of 4": ((2, 4), ("data", "context"), ("data", None), ("data", "context"), "ring"),
}


def both(layout, **more):
    """(sharded, single): functions of learned that return (sum of weighted outputs, outputs)."""
    sizes, names, q_spec, k_spec, method = LAYOUTS[layout]
    mesh = jax.make_mesh(sizes, names, axis_types=(AxisType.Auto,) * len(names), devices=jax.devices()[:8])
    x = Suite().case(SHAPE, gap=3.0, ranges="packed")
    rest = device_arrays(SHAPE, x)[1]
    weight = jnp.asarray(x["weight"], jnp.float32)
    specs = {"mesh": mesh, "q_spec": PartitionSpec(*q_spec), "k_spec": PartitionSpec(*(k_spec or q_spec))}

    def with_op(op, **extra):
        def objective(learned):
            args, keywords = arguments(SHAPE, rest, learned)
            out = op(*args, **keywords, implementation="xla", options=OPTIONS, **extra, **more)
            return jnp.sum(out * weight), out

        return jax.jit(jax.value_and_grad(objective, has_aux=True))

    sharded = with_op(sharded_kernel_attention, **specs, method=method)
    return sharded, with_op(kernel_attention), device_arrays(SHAPE, x)[0]


@pytest.fixture(autouse=True)
def _eight_devices():
    if len(jax.devices()) < 8:
        pytest.fail("these tests need eight simulated devices, see conftest.py")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_one_device(layout):
    sharded, single, learned = both(layout)
    ((_, out), grads), ((_, want), want_grads) = sharded(learned), single(learned)
    np.testing.assert_allclose(out, want, atol=1e-5)
    for name in LEARNED:
        assert np.any(np.asarray(want_grads[name]) != 0)
        assert_close(f"gradient of {name}", grads[name], np.asarray(want_grads[name], np.float64), 1e-5)


@pytest.mark.parametrize("layout", ["2 x 2 x 2", "context of 4, gathered", "context of 4, around a ring"])
def test_the_same_entries_are_dropped(layout):
    sharded, single, learned = both(layout, dropout_rate=0.3, dropout_key=jax.random.key(1))
    ((_, out), grads), ((_, want), want_grads) = sharded(learned), single(learned)
    np.testing.assert_allclose(out, want, atol=1e-5)
    for name in LEARNED:
        assert_close(f"gradient of {name}", grads[name], np.asarray(want_grads[name], np.float64), 1e-5)


COLLECTIVES = {
    # what the module's docstring claims: keys, values, bias and key times are gathered, gradients of the first three
    # come back by reduce-scatter; beta and gamma are summed
    "data of 8": {"all-reduce"},
    "2 x 2 x 2": {"all-reduce"},
    "context of 4, gathered": {"all-gather", "reduce-scatter", "all-reduce"},
    "context of 4, around a ring": {"all-gather", "collective-permute", "all-reduce"},
}


@pytest.mark.parametrize("layout", COLLECTIVES)
def test_collectives_are_the_ones_that_the_docstring_claims(layout):
    sharded, _, learned = both(layout)
    text = sharded.lower(learned).compile().as_text()
    kinds = "all-gather|all-reduce|reduce-scatter|collective-permute|all-to-all"
    found = set(re.findall(rf"= [^=]*? ({kinds})(?:-start)?\(", text))
    assert found == COLLECTIVES[layout], found


def test_errors_name_the_spec():
    x = Suite().case(SHAPE)
    learned, rest = device_arrays(SHAPE, x)
    args, keywords = arguments(SHAPE, rest, learned)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:8])

    def call(q_spec, k_spec, **more):
        return sharded_kernel_attention(
            *args, **keywords, mesh=mesh, q_spec=PartitionSpec(*q_spec), k_spec=PartitionSpec(*k_spec), **more
        )

    with pytest.raises(ValueError, match="split batch and heads alike"):
        call(("data",), (None,))
    with pytest.raises(ValueError, match="4 heads do not divide"):
        call((None, None, "data"), (None, None, "data"))
    with pytest.raises(ValueError, match="method 'broadcast'"):
        call(("data",), ("data",), method="broadcast")
