"""Batches over devices: where rows lie, and that the number of devices changes no loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernel_attention_suite import Shape, Suite, arguments, device_arrays
from random_rows import SHAPE, make_batch

from ehrwear_jax.models.joint import batch as batch_lib
from ehrwear_jax.models.joint import losses
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
    mesh = sharding.make_mesh(config=sharding.MeshConfig(*sizes))
    assert tuple(mesh.shape.values()) == shape and tuple(mesh.shape) == sharding.AXES


@pytest.mark.parametrize("sizes", [(-1, 3, 1, 1), (-1, -1, 1, 1), (2, 1, 1, 1), (8, 2, 1, 1), (0, 1, 1, 1)])
def test_a_mesh_that_does_not_fit_is_refused(sizes):
    named = ", ".join(f"{a}={n}" for a, n in zip(sharding.AXES, sizes, strict=True))
    with pytest.raises(ValueError, match=f"config.mesh {named} does not fit 8 devices"):
        sharding.make_mesh(config=sharding.MeshConfig(*sizes))


def test_a_dimension_that_does_not_divide_is_not_split():
    mesh = sharding.make_mesh(config=sharding.MeshConfig(1, 2, 2, 2))
    spec = lambda *pairs: tuple(sharding.spec(mesh, *zip(*pairs, strict=True)))  # noqa: E731
    assert spec((8, "batch"), (6, "length"), (4, "heads"), (5, None)) == ("fsdp", "context", "tensor", None)
    assert spec((7, "batch"), (5, "length"), (4, "heads"), (8, "embed")) == (None, None, "tensor", "fsdp")
    both = sharding.make_mesh(config=sharding.MeshConfig(4, 2))
    assert tuple(sharding.spec(both, (8, 8), ("batch", "heads"))) == (("data", "fsdp"), None)


@pytest.mark.parametrize(
    "sizes, per_process, shares",
    [  # rows, over 8 devices of 4 processes; then processes that share a row's tokens
        ((8, 1, 1, 1), 2, [(0, 4), (1, 4), (2, 4), (3, 4)]),
        ((2, 4, 1, 1), 4, [(0, 2), (1, 2)]),
        ((2, 1, 2, 2), 2, [(0, 2), (0, 2), (1, 2), (1, 2)]),
        ((1, 1, 1, 8), 4, [(0, 1), (0, 1)]),
    ],
)
def test_processes_that_hold_the_same_rows_read_the_same_part(sizes, per_process, shares, monkeypatch):
    mesh = sharding.make_mesh(config=sharding.MeshConfig(*sizes))
    whole = sharding.batch_sharding(mesh).devices_indices_map
    for process, share in enumerate(shares):
        mine = jax.devices()[process * per_process :][:per_process]
        held = lambda _, shape, mine=mine: {d: i for d, i in whole(shape).items() if d in mine}  # noqa: E731
        monkeypatch.setattr(jax.sharding.NamedSharding, "addressable_devices_indices_map", held)
        assert sharding.row_share(mesh) == share


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
    assert np.isfinite(loss) and all(metrics[f"loss/{t}"] > 0 for t in losses.TERMS)
    np.testing.assert_allclose(loss_4, loss, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), metrics_4, metrics)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), grads_4, grads)


def test_losses_and_gradients_do_not_depend_on_the_number_of_devices():
    """Means are over the global batch: rows hold unequal numbers of terms, so a mean of means would differ."""
    n_rows, shape = 8, SHAPE
    batch = make_batch(n_rows)
    batch_lib.check_batch(batch, shape, n_rows)
    rng = np.random.default_rng(1)
    axes = shape.axes(n_rows) | {"V": 9, "A": 2, "G": 3, "S": 4}
    made = {"masked_logits": "MV", "next_logits_event": "EV", "next_logits_query": "QV", "pooled_logits_event": "EV",
            "pooled_logits_query": "QV", "later_logits": "QKA", "recall_logits": "QRG", "rebuilt": "WLC",
            "ahead_window": "WHLC", "ahead_query": "QHLC", "summary_event": "EF", "summary_query": "QF",
            "past_summary": "QF", "pair_ehr": "JS", "pair_wear": "JS", "content": "TS", "mean_token": "TS",
            "mean_query": "QS", "variance_token": "TS", "variance_query": "QS"}  # fmt: skip
    out = {k: rng.normal(size=[n_rows, *(axes[a] for a in dims)]).astype(np.float32) for k, dims in made.items()}
    out |= {k: np.exp(v) for k, v in out.items() if k.startswith("variance")}
    constant = {"later_entropy": jnp.full((3, 2), 0.5), "temperature": jnp.float32(0.5),
                "prior_rate": jnp.arange(1.0, 5.0), "prior_variance": jnp.ones(4)}  # fmt: skip

    @jax.jit
    def step(scale, rows):
        def objective(scale):
            scaled = {k: v * scale[k] if k in scale else v for k, v in rows["out"].items()}
            return losses.total(scaled | constant, rows["batch"], dict.fromkeys(losses.TERMS, 1.0))

        return jax.value_and_grad(objective, has_aux=True)(scale)

    def spread(scale, flat):
        return step(scale, {"out": {k: flat[k] for k in out}, "batch": {k: flat[k] for k in batch}})

    scale = dict.fromkeys(made, np.float32(1.0))
    assert_same_training(*(over_devices(n, spread, scale, {**batch, **out}) for n in (1, 4)))
    # the test can tell: the mean of per-device means is another number
    wear, observed = jnp.asarray(batch["wear"]), batch["observed"]
    means = [losses.masked_mean(wear[i : i + 2], observed[i : i + 2]) for i in (0, 2, 4, 6)]
    assert abs(np.mean(means) - losses.masked_mean(wear, observed)) > 1e-3


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

    grad = jax.jit(jax.grad(lambda x: objective(x, sharding.attention(mesh))))
    text = grad.lower(learned).compile().as_text()
    assert "all-reduce" in text and "all-gather" not in text and "all-to-all" not in text
    want = jax.grad(lambda x: objective(x, kernel_attention))(device_arrays(shape, case)[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grad(learned), want)
