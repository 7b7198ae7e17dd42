"""Counting collectives, against programs whose collectives are known."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ehrwear_jax.training import hlo

N = 8


def count(function, *shapes):
    mesh = Mesh(jax.devices(), ("x",))
    spread = NamedSharding(mesh, PartitionSpec("x"))
    local = jax.shard_map(function, mesh=mesh, in_specs=PartitionSpec("x"), out_specs=PartitionSpec("x"))
    arguments = [jax.ShapeDtypeStruct(s, jnp.float32, sharding=spread) for s in shapes]
    return hlo.collectives(jax.jit(local).lower(*arguments).compile().as_text())


def test_each_kind_is_counted_with_the_bytes_of_its_result():
    def all_kinds(x):  # [4, 16] on each device
        gathered = jax.lax.all_gather(x, "x", tiled=True)  # [32, 16]
        scattered = jax.lax.psum_scatter(gathered * 2.0, "x", tiled=True)  # [4, 16]
        passed = jax.lax.ppermute(jnp.sin(x), "x", [(i, (i + 1) % N) for i in range(N)])  # [4, 16]
        summed = jax.lax.psum(x[:1], "x")  # [1, 16]
        return scattered + passed + summed

    assert count(all_kinds, (32, 16)) == {
        "all-gather": (1, 4 * 32 * 16),
        "all-reduce": (1, 4 * 16),
        "collective-permute": (1, 4 * 4 * 16),
        "reduce-scatter": (1, 4 * 4 * 16),
    }


def test_a_loop_counts_as_often_as_it_runs():
    def loop(x):
        step = lambda c, _: (jnp.cos(jax.lax.psum(c, "x")) + x, None)  # noqa: E731
        return jax.lax.scan(lambda c, _: jax.lax.scan(step, c, length=3), x, length=5)[0]

    assert count(loop, (8, 4)) == {"all-reduce": (15, 15 * 4 * 4)}


def test_the_largest_array_is_that_of_any_instruction_on_a_device():
    mesh = Mesh(jax.devices(), ("x",))
    spread = NamedSharding(mesh, PartitionSpec("x"))
    whole = NamedSharding(mesh, PartitionSpec())
    x = jax.ShapeDtypeStruct((32, 16), jnp.float32, sharding=spread)
    for place, rows in ((spread, 4), (whole, 32)):
        function = jax.jit(lambda x: jnp.sin(x) * 2.0, out_shardings=place)
        assert hlo.largest(function.lower(x).compile().as_text()) == 4 * rows * 16
    assert hlo.largest("") == 0


def test_no_collective_is_an_empty_count():
    assert count(lambda x: x + 1.0, (8, 4)) == {}


@pytest.mark.parametrize(
    "line, want",
    [
        # an asynchronous gather has its operand beside its result, and its end is not another one
        ("  %a = (bf16[2,8]{1,0}, bf16[32,8]{1,0}) all-gather-start(%p)\n  %b = bf16[32,8]{1,0} all-gather-done(%a)",
         {"all-gather": (1, 2 * 32 * 8)}),
        ("  %a = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%p)", {"collective-permute": (1, 32)}),
        ("  ROOT %a = (f32[8]{0}, f32[2]{0}) all-reduce(%p, %q), to_apply=%add", {"all-reduce": (1, 40)}),
        ("  %a = pred[16]{0} all-to-all(%p)", {"all-to-all": (1, 16)}),
    ],
)  # fmt: skip
def test_forms_of_other_compilers(line, want):
    text = f"HloModule m\n\nENTRY %main (p: f32[8]) -> f32[8] {{\n{line}\n}}\n"
    assert hlo.collectives(text) == want


def test_what_a_fusion_or_branch_calls_is_counted():
    text = """HloModule m

%inner (p: f32[8]) -> f32[8] {
  ROOT %r = f32[8]{0} all-reduce(%p), to_apply=%add
}

%body (p: f32[8]) -> f32[8] {
  ROOT %f = f32[8]{0} fusion(%p), kind=kCustom, calls=%inner
}

ENTRY %main (p: f32[8]) -> f32[8] {
  ROOT %w = f32[8]{0} while(%p), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"24"}}
}
"""
    assert hlo.collectives(text) == {"all-reduce": (24, 24 * 32)}
