"""Batches over devices: where rows lie, and that the number of devices changes no loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import term_cases
from flax import traverse_util
from kernel_attention_suite import Shape, Suite, arguments, device_arrays
from random_rows import make_batch

from ehrwear_jax.config.training import MeshConfig
from ehrwear_jax.models.joint.config import WEIGHTS
from ehrwear_jax.models.objective import masked_mean
from ehrwear_jax.ops.kernel_attention import kernel_attention
from ehrwear_jax.training import sharding


def test_mesh_has_all_devices_or_those_given():
    assert dict(sharding.make_mesh().shape) == {"data": 8, "fsdp": 1, "tensor": 1, "context": 1}
    mesh = sharding.make_mesh(jax.devices()[1:3])
    assert list(mesh.devices.flat) == jax.devices()[1:3]


@pytest.mark.parametrize(
    "sizes, shape",
    [((-1, 2, 2, 1), (2, 2, 2, 1)), ((1, -1, 1, 1), (1, 8, 1, 1)), ((2, 2, 1, 2), (2, 2, 1, 2))],
)
def test_the_config_shapes_the_mesh(sizes, shape):
    mesh = sharding.make_mesh(config=MeshConfig(*sizes))
    assert tuple(mesh.shape.values()) == shape and tuple(mesh.shape) == sharding.AXES


@pytest.mark.parametrize("sizes", [(-1, 3, 1, 1), (-1, -1, 1, 1), (2, 1, 1, 1), (8, 2, 1, 1), (0, 1, 1, 1)])
def test_a_mesh_that_does_not_fit_is_refused(sizes):
    named = ", ".join(f"{a}={n}" for a, n in zip(sharding.AXES, sizes, strict=True))
    with pytest.raises(ValueError, match=f"config.mesh {named} does not fit 8 devices"):
        sharding.make_mesh(config=MeshConfig(*sizes))


def test_a_dimension_that_does_not_divide_is_not_split():
    mesh = sharding.make_mesh(config=MeshConfig(1, 2, 2, 2))
    spec = lambda *pairs: tuple(sharding.spec(mesh, *zip(*pairs, strict=True)))  # noqa: E731
    assert spec((8, "batch"), (6, "length"), (4, "heads"), (5, None)) == ("fsdp", "context", "tensor", None)
    assert spec((7, "batch"), (5, "length"), (4, "heads"), (8, "embed")) == (None, None, "tensor", "fsdp")
    both = sharding.make_mesh(config=MeshConfig(4, 2))
    assert tuple(sharding.spec(both, (8, 8), ("batch", "heads"))) == (("data", "fsdp"), None)


def test_the_state_lies_by_the_names_of_its_parameters_axes():
    """Wherever in the state a parameter's path ends a leaf's; what has no names, or other dimensions, lies whole."""
    mesh = sharding.make_mesh(config=MeshConfig(2, 2, 2))
    axes = {"a/kernel": ("layers", "embed", "mlp"), "a/bias": (None, "mlp"), "table": ("token", "embed")}
    params = {"a": {"kernel": np.zeros((3, 4, 8)), "bias": np.zeros((3, 8))}, "table": np.zeros((6, 5)),
              "b": {"kernel": np.zeros((4, 8))}}  # fmt: skip
    state = {"params": params, "optimizer": ({"mu": params},), "best": {"variables": {"params": params}},
             "step": np.zeros(()), "a": {"kernel": np.zeros(2)}}  # fmt: skip
    found = sharding.state_sharding(state, mesh, axes)
    for part in (found["params"], found["optimizer"][0]["mu"], found["best"]["variables"]["params"]):
        spec = jax.tree.map(lambda x: tuple(x.spec), part)
        assert spec["a"]["kernel"] == (None, "fsdp", "tensor") and spec["a"]["bias"] == (None, "tensor")
        assert spec["table"] == ("tensor", None), "neither 6 over 4 nor 5 over 2 devices"
        assert part["b"]["kernel"].is_fully_replicated
    assert found["step"].is_fully_replicated and found["a"]["kernel"].is_fully_replicated


def _places(sizes, shape, names):
    mesh = sharding.make_mesh(jax.devices()[: int(np.prod(sizes))], MeshConfig(*sizes))
    return tuple(sharding.state_sharding({"w": np.zeros(shape)}, mesh, {"w": names})["w"].spec)


@pytest.mark.parametrize(
    "sizes, shape, names, spec",
    [
        ((1, 3, 1, 1), (2, 8, 9), ("layers", "embed", "mlp"), (None, None, "fsdp")),
        ((1, 3, 1, 1), (3, 8, 6, 9), (None, "embed", None, "heads"), (None, None, None, "fsdp")),  # the longest
        ((1, 3, 2, 1), (8, 12), ("embed", "mlp"), (None, ("tensor", "fsdp"))),
        ((1, 3, 1, 1), (3, 8, 8), ("layers", "embed", "mlp"), (None, None, None)),  # layers stay whole
        ((1, 3, 1, 1), (8, 9), (None, "mlp"), (None, None)),  # nor is divided what was never to be
        ((2, 3, 1, 1), (9, 6), ("embed", "mlp"), ("fsdp", None)),
    ],
)
def test_fsdp_divides_another_dimension_where_the_width_does_not_divide(sizes, shape, names, spec, monkeypatch):
    monkeypatch.setattr(sharding, "LEAST_DIVIDED", 1)
    assert _places(sizes, shape, names) == spec


def test_fsdp_leaves_small_parameters_whole_where_the_width_does_not_divide():
    """They cost more messages than memory."""
    assert _places((1, 3, 1, 1), (8, 9), ("embed", "mlp")) == (None, None)
    assert _places((1, 3, 1, 1), (2**8, 3 * 2**7), ("embed", "mlp")) == (None, "fsdp")


def test_a_state_that_fsdp_cannot_divide_is_refused_above_a_size(monkeypatch):
    """Training on 24 or 96 devices held the whole state on each of them, and nothing said so."""
    assert _places((1, 6, 1, 1), (16, 32), ("embed", "mlp")) == (None, None)
    monkeypatch.setattr(sharding, "MOST_WHOLE", 16 * 32 * 8 - 1)
    with pytest.raises(ValueError, match="fsdp=6 divides no dimension .* config.mesh.data=3 with config.mesh.fsdp=2"):
        _places((1, 6, 1, 1), (16, 32), ("embed", "mlp"))


def test_what_networks_take_from_equal_meshes_is_equal():
    """So that networks for them are equal, and compiled once."""
    one, again, other = (sharding.make_mesh(jax.devices()[:n]) for n in (2, 2, 1))
    assert sharding.mesh_ops(one) is sharding.mesh_ops(again) is not sharding.mesh_ops(other)
    x = jnp.ones((2, 3))
    assert sharding.mesh_ops(other).constrain(x, "batch", None) is x, "one device needs no constraint"
    placed = jax.jit(lambda x: sharding.mesh_ops(one).constrain(x, "batch", None))(x)
    assert tuple(placed.sharding.spec) in (("data",), ("data", None))


@pytest.mark.parametrize(
    "sizes, per_process, shares",
    [  # rows, over 8 devices of 4 processes; then processes that share a row's tokens
        ((8, 1, 1, 1), 2, [(0, 1), (2, 3), (4, 5), (6, 7)]),
        ((2, 4, 1, 1), 4, [(0, 1, 2, 3), (4, 5, 6, 7)]),
        ((2, 1, 2, 2), 2, [(0,), (0,), (1,), (1,)]),
        ((1, 1, 1, 8), 4, [(0,), (0,)]),
    ],
)
def test_processes_that_hold_the_same_rows_read_the_same_blocks(sizes, per_process, shares):
    mesh = sharding.make_mesh(config=MeshConfig(*sizes))
    for process, blocks in enumerate(shares):
        mine = jax.devices()[process * per_process :][:per_process]
        assert sharding.row_share(mesh, mine) == (blocks, sizes[0] * sizes[1])


def test_a_process_whose_devices_are_not_neighbours_reads_blocks_that_are_not():
    """As a host of a TPU slice, which has a square of its chips."""
    square = np.array(jax.devices()).reshape(2, 4)
    mesh = sharding.make_mesh(list(square.T.flat))
    shares = [sharding.row_share(mesh, row)[0] for row in square]
    assert shares == [(0, 2, 4, 6), (1, 3, 5, 7)]


def test_rows_find_their_devices_in_any_order_of_these():
    mesh = sharding.make_mesh([jax.devices()[i] for i in (5, 2, 7, 0, 3, 6, 1, 4)])
    rows = np.arange(32, dtype=np.int32).reshape(16, 2)
    placed = sharding.device_batch({"a": rows}, mesh)["a"]
    np.testing.assert_array_equal(placed, rows)
    assert {s.device: s.data[0, 0].item() for s in placed.addressable_shards} == {
        d: 4 * i for i, d in enumerate(mesh.devices.flat)
    }


def test_rows_lie_in_order_over_the_devices():
    mesh = sharding.make_mesh(jax.devices()[:4])
    batch = {"a": np.arange(24, dtype=np.int32).reshape(8, 3), "b": np.arange(8.0, dtype=np.float32)}
    placed = sharding.device_batch(batch, mesh)
    for name, whole in batch.items():
        np.testing.assert_array_equal(placed[name], whole)
        assert placed[name].dtype == whole.dtype
        for i, shard in enumerate(sorted(placed[name].addressable_shards, key=lambda s: s.device.id)):
            np.testing.assert_array_equal(shard.data, whole[2 * i : 2 * i + 2])
    copies = jax.device_put(batch["a"], sharding.replicated(mesh)).addressable_shards
    assert len(copies) == 4 and all(np.array_equal(s.data, batch["a"]) for s in copies)


def test_rows_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="a batch of 6 rows does not divide over 4 devices"):
        sharding.device_batch({"a": np.zeros((6, 2))}, sharding.make_mesh(jax.devices()[:4]))


def over_devices(n, function, shared, batch):
    """function(shared, batch) with the batch over n devices, on the host."""
    mesh = sharding.make_mesh(jax.devices()[:n])
    out = function(jax.device_put(shared, sharding.replicated(mesh)), sharding.device_batch(batch, mesh))
    return jax.tree.map(np.asarray, out)


def assert_same_training(one, four):
    ((loss, metrics), grads), ((loss_4, metrics_4), grads_4) = one, four
    assert np.isfinite(loss) and all(metrics[f"loss/{t}"] > 0 for t in WEIGHTS)
    np.testing.assert_allclose(loss_4, loss, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), metrics_4, metrics)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), grads_4, grads)


def test_losses_and_gradients_do_not_depend_on_the_number_of_devices():
    """Means are over the global batch: rows hold unequal numbers of terms, so a mean of means would differ."""
    n_rows, losses = 8, term_cases.Losses(tuple(WEIGHTS))
    batch, rng = make_batch(n_rows, term_cases.SPEC), np.random.default_rng(1)
    out = {k: rng.normal(size=(n_rows, *shape)).astype(np.float32) for k, shape in term_cases.OUTPUTS.items()}
    out |= {k: np.exp(v) for k, v in out.items() if "variance" in k}
    constant = term_cases.random_outputs(0)
    constant = {k: v for k, v in constant.items() if k not in out}

    @jax.jit
    def step(scale, rows):
        def loss(scale):
            scaled = {k: losses.scored(k, rows[k] * scale[k], rows) for k in scale} | constant
            out = traverse_util.unflatten_dict(scaled, sep="/")
            objective, batch = losses.objective, {k: rows[k] for k in term_cases.SPEC.fields}
            return objective(out, batch, dict.fromkeys(WEIGHTS, 1.0), objective.normalisers(batch))

        return jax.value_and_grad(loss, has_aux=True)(scale)

    scale = dict.fromkeys(out, np.float32(1.0))
    assert_same_training(*(over_devices(n, step, scale, {**batch, **out}) for n in (1, 4)))
    # the test can tell: the mean of per-device means is another number
    wear, observed = jnp.asarray(batch["wear"]), batch["observed"]
    means = [masked_mean(wear[i : i + 2], observed[i : i + 2]) for i in (0, 2, 4, 6)]
    assert abs(np.mean(means) - masked_mean(wear, observed)) > 1e-3


def test_attention_over_the_mesh_moves_no_keys():
    """Rows stay where they are: the compiled op has no collective but the sum of the kernel's gradients."""
    case = Suite().case(shape := Shape(8, 8, 8, 2, 8, 2))
    learned, rest = device_arrays(shape, case)
    mesh = sharding.make_mesh()
    place = sharding.batch_sharding(mesh)
    learned |= {n: jax.device_put(learned[n], place) for n in ("q", "k", "v", "bias")}
    rest = {n: jax.device_put(x, place) for n, x in rest.items()}

    def objective(learned, attend):
        args, keywords = arguments(shape, rest, learned)
        return jnp.sum(attend(*args, **keywords) ** 2)

    grad = jax.jit(jax.grad(lambda x: objective(x, sharding.mesh_ops(mesh).attend)))
    text = grad.lower(learned).compile().as_text()
    assert "all-reduce" in text and "all-gather" not in text and "all-to-all" not in text
    want = jax.grad(lambda x: objective(x, kernel_attention))(device_arrays(shape, case)[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grad(learned), want)
