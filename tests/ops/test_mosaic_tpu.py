"""The TPU kernels, by Pallas' interpreter; test_mosaic_tpu_compile.py compiles them for real chips."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernel_attention_suite import SHAPES, Shape, Suite, arguments, compiled, device_arrays, draw_case

from ehrwear_jax.ops.kernel_attention import kernel_attention, mosaic_tpu

BLOCKS = (("block_q", 16), ("block_k", 16), ("interpret", True))


class TestMosaicTpu(Suite):
    implementation = "mosaic_tpu"
    options = BLOCKS
    # without two whose branches others take too, and with one whose queries, depth and blocks are of one size
    shapes = (SHAPES[0], *SHAPES[2:4], *SHAPES[5:], Shape(1, 16, 40, 1, 16, 2, M=0))
    examples = 3


@pytest.mark.parametrize("kind", [3, -1, 0], ids=["mixture", "quadratic", "none"])
def test_what_is_skipped_is_never_computed_and_moves_nothing_beyond_the_bound(kind):
    shape, tolerance = Shape(1, 40, 200, 1, 16, kind, M=2), 1e-3
    x = draw_case(shape, seed=3, span=400.0, gap=0.0, ranges="causal", peak=1.0, rates=(-1.0, 0.0), ties=0.0)
    # all queries follow the last key; old keys are negligible by their age or, without a kernel, by their logit
    x["q_time"][...], x["kv_range"][...] = x["k_time"].max(), np.array([0, shape.S])
    if kind < 0:
        x["first"], x["second"] = np.full(1, 3.0), np.full(1, 1.0)
    if kind == 0:
        x["bias"][...] = 0.0
        x["q"][...], x["k"][...] = 4.0, (np.arange(shape.S) >= 150)[None, :, None, None]
    (exact, _), exact_grads = compiled(shape, "reference", ())(x)
    (out, _), grads = compiled(shape, "mosaic_tpu", BLOCKS, (("skip_tolerance", tolerance),))(x)
    np.testing.assert_allclose(out, exact, rtol=0, atol=2 * tolerance * np.abs(x["v"]).max())
    for n, want in exact_grads.items():
        np.testing.assert_allclose(grads[n], want, rtol=0, atol=10 * tolerance * np.abs(want).max() + 1e-6, err_msg=n)
    # a NaN reaches the output unless its tile is left out
    x["v"][:, :16] = np.nan
    assert not np.any(np.isfinite(compiled(shape, "mosaic_tpu", BLOCKS)(x)[0][0]))
    (out, _), grads = compiled(shape, "mosaic_tpu", BLOCKS, (("skip_tolerance", tolerance),))(x)
    assert all(np.all(np.isfinite(g)) for g in (out, *grads.values()))


def test_the_simulation_of_a_tpu_agrees_with_the_plain_interpreter():
    """It raises on reads out of bounds and starts from memory full of NaN."""
    shape = Shape(1, 20, 40, 1, 16, 2)
    x = draw_case(shape, seed=0, span=30.0, gap=0.0, ranges="packed", peak=4.0, rates=(-2, 0.5), ties=0.2)
    plain = compiled(shape, "mosaic_tpu", BLOCKS)(x)
    simulated = (*BLOCKS[:2], ("interpret", mosaic_tpu.pltpu.InterpretParams()))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        compiled(shape, "mosaic_tpu", simulated)(x),
        plain,
    )


def test_refuses_what_it_cannot_run():
    shape = Shape(1, 8, 8, 1, 16, 1, M=0)
    x = draw_case(shape, seed=0, span=30.0, gap=0.0, ranges="causal", peak=4.0, rates=(-2, 0.5), ties=0.0)
    learned, rest = device_arrays(shape, x)
    args, keywords = arguments(shape, rest, learned)
    with pytest.raises(NotImplementedError, match="runs on TPUs"):
        kernel_attention(*args, **keywords, implementation="mosaic_tpu")
    with pytest.raises(NotImplementedError, match="float16"):
        half = [a.astype(jnp.float16) for a in args]
        kernel_attention(*half, **keywords, implementation="mosaic_tpu", options={"interpret": True})
    # without a name the next one is taken
    np.testing.assert_array_equal(
        kernel_attention(*args, **keywords), kernel_attention(*args, **keywords, implementation="xla")
    )
