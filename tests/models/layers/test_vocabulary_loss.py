"""Cross-entropies of few targets in many places, chunk by chunk, equal the plain formula, values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ehrwear_jax.models.layers.vocabulary_loss import (
    Chunks,
    Table,
    TokenLoss,
    front,
    front_loss,
    masked_loss,
    token_loss,
)
from ehrwear_jax.training import sharding

G, N, E, V = 3, 40, 8, 33


def case(share, seed=0, dtype="float32"):
    rng = np.random.default_rng(seed)
    vector = jnp.asarray(rng.normal(size=(G, N, E)), dtype)
    table, bias = np.float32(rng.normal(size=(V, E))), np.float32(rng.normal(size=V))
    mask = rng.random((G, N)) < np.asarray(share).reshape(-1, 1)
    return vector, table, bias, rng.integers(0, V, (G, N)).astype(np.int32), mask


def weighed(found, mask):
    """A sum that needs both gradients, with another weight for each target."""
    weight = jnp.where(mask, jnp.cos(jnp.arange(mask.size, dtype=jnp.float32)).reshape(mask.shape) + 2, 0.0)
    return jnp.sum(weight * (found.nll + 0.1 * jnp.square(found.log_sum))), found


def plain(vector, table, bias, target, mask):
    scores = jnp.einsum("gne,ve->gnv", vector.astype(jnp.float32), table) + bias[None, None]
    return weighed(token_loss(scores, target), mask)


def chunked(vector, table, bias, target, mask, chunks):
    take, back, count = front(mask, chunks.size)
    vector = jnp.take_along_axis(vector, take[..., None], axis=1)
    found = front_loss(chunks, vector, table, bias, jnp.take_along_axis(target, take, axis=1), count)
    return weighed(TokenLoss(*(jnp.take_along_axis(x, back, axis=1) for x in found)), mask)


def gradients(run, *arguments):
    (_, found), grads = jax.jit(jax.value_and_grad(run, (0, 1, 2), has_aux=True))(*arguments)
    return found, grads


@pytest.mark.parametrize("share", [0.2, 1.0, (0.0, 0.9, 0.1), 0.0], ids=str)
@pytest.mark.parametrize("size", [7, 16, N])
def test_equals_the_plain_formula(size, share):
    with jax.default_matmul_precision("float32"):
        arguments = case(share)
        mask = arguments[-1]
        want, want_grads = gradients(plain, *arguments)
        found, grads = gradients(functools.partial(chunked, chunks=Chunks(size)), *arguments)
    for name in TokenLoss._fields:
        x, y = (np.where(mask, getattr(z, name), 0) for z in (found, want))
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6)
    for grad, right in zip(grads, want_grads, strict=True):
        scale = max(float(jnp.abs(right).max()), 1e-30)
        np.testing.assert_allclose(grad / scale, right / scale, atol=1e-6)
        assert bool(mask.any()) == bool(jnp.any(grad != 0))


def test_rows_of_a_mask_have_their_losses_where_they_were():
    """Against numpy in float64; groups of rows, and a product behind the gathering."""
    vector, table, bias, target, mask = (np.asarray(x) for x in case(0.4))
    for n_groups in (1, 3):
        found = masked_loss(
            vector, target, mask, Table(jnp.asarray(table), jnp.asarray(bias)), chunks=Chunks(7), n_groups=n_groups,
            to_vector=lambda x: 2.0 * x,
        )  # fmt: skip
        score = 2.0 * vector.astype(np.float64) @ table.T + bias
        log_sum = np.log(np.exp(score).sum(-1))
        own = np.take_along_axis(score, target[..., None], -1)[..., 0]
        np.testing.assert_allclose(found.nll, np.where(mask, log_sum - own, 0), rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(found.right, mask & (own == score.max(-1)))


def test_half_precision_rounds_factors_and_adds_up_in_full():
    """The gradient of the table, a sum over all targets, errs like one product and not like a sum in half precision."""
    vector, table, bias, target, mask = case(1.0, dtype="bfloat16")
    table = np.asarray(jnp.asarray(table, jnp.bfloat16), np.float32)  # so that the factors are exact
    _, want = gradients(plain, vector, table, bias, target, mask)
    _, grads = gradients(functools.partial(chunked, chunks=Chunks(4, "bfloat16")), vector, table, bias, target, mask)
    assert grads[0].dtype == jnp.bfloat16 and grads[1].dtype == grads[2].dtype == jnp.float32
    error = np.linalg.norm(grads[1] - want[1]) / np.linalg.norm(want[1])
    assert error < 2e-3, "30 chunks that add up in bfloat16 err by 1e-2"
    np.testing.assert_allclose(grads[2], want[2], rtol=1e-4, atol=1e-4)


def test_places_without_a_target_cost_nothing():
    """Chunks behind the last target are never computed: whatever stands there, even what is no number."""
    vector, table, bias, target, _ = case(1.0)
    count = jnp.asarray([3, 8, 0], jnp.int32)
    wild = vector.at[:, 8:].set(jnp.nan)

    def total(vector, table):
        found = front_loss(Chunks(8), vector, table, bias, target, count)
        return jnp.sum(found.nll), found

    (_, found), grads = jax.value_and_grad(total, (0, 1), has_aux=True)(wild, table)
    assert np.isfinite(found.nll).all() and all(np.isfinite(g).all() for g in grads)
    assert np.all(found.nll[:, :8] > 0) and not np.any(found.nll[:, 8:])


def test_no_array_holds_the_scores_of_all_places():
    """In the program of a gradient, nothing is larger than a chunk's scores and the sums of the table's gradient."""
    arguments = case(0.2)
    run = functools.partial(chunked, chunks=Chunks(4))
    text = jax.jit(jax.grad(lambda *a: run(*a)[0], (0, 1, 2))).lower(*arguments).as_text()
    assert f"{G}x4x{V}x" in text and f"{G}x{N}x{V}x" not in text


@pytest.mark.parametrize("axes", [{"data": 2, "fsdp": 4}, {"fsdp": 4, "tensor": 2}], ids=str)
def test_devices_with_other_rows_send_nothing_but_the_gradient_of_the_table(axes):
    """No message inside the loop over chunks but those of a split vocabulary, and none that grows with the places."""
    n = 8
    config = sharding.MeshConfig(**({"data": 1} | axes))
    mesh = sharding.make_mesh(jax.devices()[:n], config)
    ops = sharding.mesh_ops(mesh)
    rng = np.random.default_rng(0)
    groups, places = ops.row_groups, 64
    vector = jnp.asarray(rng.normal(size=(groups, places, 16)), jnp.float32)
    table, bias = np.float32(rng.normal(size=(96, 16))), np.zeros(96, np.float32)
    target, mask = rng.integers(0, 96, (groups, places)).astype(np.int32), rng.random((groups, places)) < 0.3
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    whole = NamedSharding(mesh, sharding.spec(mesh, table.shape, ("token", "embed")))
    places_of = (rows, whole, NamedSharding(mesh, sharding.spec(mesh, bias.shape, ("token",))), rows, rows)
    run = functools.partial(chunked, chunks=Chunks(8, constrain=ops.constrain))
    step = jax.jit(jax.value_and_grad(run, (0, 1, 2), has_aux=True), in_shardings=places_of)
    arguments = (vector, table, bias, target, mask)
    text = step.lower(*arguments).compile().as_text()
    sent = [line for line in text.splitlines() if any(f" {c}(" in line for c in COLLECTIVES)]
    assert sent, "the table is gathered and its gradient summed"
    for line in sent:
        assert f"{places}," not in line.split("=")[1].split("(")[0], f"grows with the places: {line}"
        if "tensor" not in axes:
            assert "/while/body" not in line, f"every chunk sends: {line}"
    want = jax.value_and_grad(plain, (0, 1, 2), has_aux=True)(*arguments)
    got = step(*arguments)
    np.testing.assert_allclose(got[0][0], want[0][0], rtol=1e-5)
    for a, b in zip(got[1], want[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
