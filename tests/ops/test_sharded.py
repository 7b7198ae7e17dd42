"""The op on meshes of eight simulated devices, against one device."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec
from kernel_attention_suite import LEARNED, Shape, Suite, arguments, assert_close, device_arrays

from ehrwear_jax.ops.kernel_attention import kernel_attention, zigzag
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
# half of each device's queries travel; around a ring half of its keys do as well
ZIGZAG = ("context of 4, gathered", "context of 4, around a ring", "context and heads", "whole queries, keys of 4")
CASES = [(name, "contiguous") for name in LAYOUTS] + [(name, "zigzag") for name in ZIGZAG]


def both(layout, parts="contiguous", **more):
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

    sharded = with_op(sharded_kernel_attention, **specs, method=method, layout=parts)
    return sharded, with_op(kernel_attention), device_arrays(SHAPE, x)[0]


@pytest.fixture(autouse=True)
def _eight_devices():
    if len(jax.devices()) < 8:
        pytest.fail("these tests need eight simulated devices, see conftest.py")


@pytest.mark.parametrize(("layout", "parts"), CASES)
def test_equals_one_device(layout, parts):
    sharded, single, learned = both(layout, parts)
    ((_, out), grads), ((_, want), want_grads) = sharded(learned), single(learned)
    np.testing.assert_allclose(out, want, atol=1e-5)
    for name in LEARNED:
        assert np.any(np.asarray(want_grads[name]) != 0)
        assert_close(f"gradient of {name}", grads[name], np.asarray(want_grads[name], np.float64), 1e-5)


@pytest.mark.parametrize(("layout", "parts"), [CASES[i] for i in (1, 2, 3, 6, 7)])
def test_the_same_entries_are_dropped(layout, parts):
    sharded, single, learned = both(layout, parts, dropout_rate=0.3, dropout_key=jax.random.key(1))
    ((_, out), grads), ((_, want), want_grads) = sharded(learned), single(learned)
    np.testing.assert_allclose(out, want, atol=1e-5)
    for name in LEARNED:
        assert_close(f"gradient of {name}", grads[name], np.asarray(want_grads[name], np.float64), 1e-5)


def test_what_is_skipped_around_a_ring_moves_no_output_by_more_than_said():
    """Old keys that carry next to nothing, in the parts of each device; the first key blocks of some are left out."""
    sharded, single, learned = both("context of 4, around a ring", "zigzag", skip_tolerance=1e-4)
    (_, out), _ = sharded(learned)
    (_, want), _ = both("context of 4, around a ring")[1](learned)
    most = 2 * 1e-4 * np.abs(np.asarray(learned["v"])).max()
    assert np.abs(np.asarray(out) - np.asarray(want)).max() <= most + 1e-5


@pytest.mark.parametrize("dim", [0, 1])
def test_a_zigzag_comes_back_as_it_went(dim):
    """Device i of 8 has parts i and 15 - i of 16, of two entries each."""
    mesh, n = jax.make_mesh((8,), ("context",), axis_types=(AxisType.Auto,), devices=jax.devices()[:8]), 32
    x = jnp.arange(n)[:, None] + 100 * jnp.arange(3)[None]
    x = x if dim == 0 else x.T
    place = PartitionSpec(*(["context", None] if dim == 0 else [None, "context"]))

    def there_and_back(x):
        there = zigzag.spread(x, "context", 8, dim)
        return there, zigzag.collected(there, "context", 8, dim)

    there, back = jax.jit(jax.shard_map(there_and_back, mesh=mesh, in_specs=place, out_specs=place))(x)
    np.testing.assert_array_equal(back, x)
    order = [start + k for device in range(8) for start in zigzag.starts(device, 8, 2) for k in range(2)]
    assert sorted(order) == list(range(n)) and order[:4] == [0, 1, 30, 31]
    np.testing.assert_array_equal(there, jnp.take(x, jnp.array(order), axis=dim))


def test_a_zigzag_gives_each_device_as_many_pairs_of_a_long_context():
    """Queries that see all before them: of 8 devices the last has 1.9 times the mean in contiguous order."""
    n, n_device = 64, 8
    pairs = np.arange(1, n + 1).reshape(n_device, -1).sum(axis=1)
    assert pairs.max() / pairs.mean() == pytest.approx(1.86, abs=0.01)
    part = n // n_device // 2
    turned = [
        sum(np.arange(start, start + part).sum() + part for start in zigzag.starts(device, n_device, part))
        for device in range(n_device)
    ]
    assert set(turned) == {pairs.mean()}


COLLECTIVES = {
    # what the module's docstring claims: keys, values, bias and key times are gathered, gradients of the first three
    # come back by reduce-scatter; beta and gamma are summed
    "data of 8": {"all-reduce"},
    "2 x 2 x 2": {"all-reduce"},
    "context of 4, gathered": {"all-gather", "reduce-scatter", "all-reduce"},
    "context of 4, around a ring": {"all-gather", "collective-permute", "all-reduce"},
}
TRAVEL = [(name, "contiguous", kinds) for name, kinds in COLLECTIVES.items()]
TRAVEL += [(name, "zigzag", COLLECTIVES[name] | {"collective-permute"}) for name in ZIGZAG[:2]]


@pytest.mark.parametrize(("layout", "parts", "kinds"), TRAVEL)
def test_collectives_are_the_ones_that_the_docstring_claims(layout, parts, kinds):
    sharded, _, learned = both(layout, parts)
    text = sharded.lower(learned).compile().as_text()
    known = "all-gather|all-reduce|reduce-scatter|collective-permute|all-to-all"
    found = set(re.findall(rf"= [^=]*? ({known})(?:-start)?\(", text))
    assert found == kinds, found


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
    with pytest.raises(ValueError, match="layout 'spiral'"):
        call(("data",), ("data",), layout="spiral")
