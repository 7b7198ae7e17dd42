"""The blockwise implementation in plain XLA."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernel_attention_suite import Key, Shape, Suite, arguments, device_arrays

from ehrwear_jax.benchmarks import attention as bench
from ehrwear_jax.ops.kernel_attention import kernel_attention, tiles, xla

SMALL = {"block_q": 16, "block_k": 16}
LONG = Shape(1, 256, 256, 2, 16, 2)


class TestXla(Suite):
    implementation = "xla"
    options = tuple(SMALL.items())


class TestXlaOneBlock(Suite):
    """Short sequences: one block of keys, all rows at once."""

    implementation = "xla"
    shapes = (Shape(2, 37, 70, 1, 32, 4), Shape(1, 40, 50, 2, 16, -1), Shape(2, 20, 60, 1, 16, 2, dtype="bfloat16"))


@functools.cache
def compiled(shape, **more):
    """(learned, rest) -> output; one program for all cases of a shape."""

    def run(learned, rest):
        args, keywords = arguments(shape, rest, learned)
        return kernel_attention(*args, **keywords, implementation="xla", options=SMALL, **more)

    return jax.jit(run)


def attend(x, **more):
    return compiled(LONG, **more)(*device_arrays(LONG, x))


def forgetful(seed, peak=1.0):
    """A case whose slowest component forgets within a tenth of the history."""
    return Suite().case(LONG, seed=seed, span=256.0, rates=(-0.3, 0.3), peak=peak, ties=0.0)


@pytest.mark.parametrize("tolerance", [1e-6, 1e-3, 0.05])
@pytest.mark.parametrize("peak", [0.1, 1.0, 5.0])
def test_skipping_moves_the_output_within_its_bound(tolerance, peak):
    for seed in range(3):
        x = forgetful(seed, peak)
        exact, skipped = attend(x), attend(x, skip_tolerance=tolerance)
        bound = 2 * tolerance * np.abs(x["v"]).max() + 1e-6
        assert np.abs(np.asarray(exact) - np.asarray(skipped)).max() <= bound


def test_what_is_skipped_is_not_read():
    """Values of the oldest keys that would make any sum with them infinite."""
    x = forgetful(0)
    x["v"][:, :64] = np.inf
    exact, skipped = (np.asarray(attend(x, skip_tolerance=t))[:, 200:] for t in (0.0, 1e-4))
    assert not np.any(np.isfinite(exact))
    assert np.all(np.isfinite(skipped))


def test_no_tolerance_skips_nothing_bit_for_bit():
    x = forgetful(0)
    np.testing.assert_array_equal(attend(x, skip_tolerance=0.0), attend(x))
    # a bound too tight to be met visits the same tiles in the same order
    np.testing.assert_array_equal(attend(x, skip_tolerance=1e-300), attend(x))


def test_gradients_with_skipping_are_near_the_exact_ones():
    learned, rest = device_arrays(LONG, forgetful(0))

    def loss(learned, tolerance):
        args, keywords = arguments(LONG, rest, learned)
        out = kernel_attention(*args, **keywords, implementation="xla", options=SMALL, skip_tolerance=tolerance)
        return jnp.sum(out**2)

    exact, skipped = (jax.jit(jax.grad(lambda x, t=t: loss(x, t)))(learned) for t in (0.0, 1e-6))
    for name, want in exact.items():
        assert np.linalg.norm(skipped[name] - want) <= 1e-4 * np.linalg.norm(want), name


def test_rows_that_skip_one_by_one_are_those_that_do_so_together():
    """With a tolerance a CPU takes the rows of a batch singly: the same rows, with the same weights dropped."""
    shape = Shape(3, 64, 64, 2, 16, 2)
    inputs = device_arrays(shape, Suite().case(shape, seed=0))
    more = {"dropout_rate": 0.3, "dropout_key": Key(1)}
    together, singly = (compiled(shape, skip_tolerance=t, **more)(*inputs) for t in (0.0, 1e-9))
    np.testing.assert_allclose(singly, together, rtol=1e-5, atol=1e-5)


def test_tiles_on_a_cpu_are_smaller_the_more_rows_and_heads_there_are():
    assert [xla.default_block(n, 4, True) for n in (1, 2, 8, 64)] == [256, 128, 64, 64]
    assert xla.default_block(64, 4, False) == 256


def test_the_polynomial_is_expm1_to_the_last_digits():
    for dtype in (np.float32, np.float64):
        x = np.concatenate([np.linspace(-0.3, 0.0, 10_001), -np.geomspace(1e-30, 0.3, 1000)]).astype(dtype)
        want = np.expm1(x.astype(np.longdouble))
        with jax.enable_x64(dtype == np.float64):
            found = np.asarray(tiles.small_expm1(jnp.asarray(x)))
        assert found.dtype == dtype
        assert np.max(np.abs(found - want) / np.maximum(np.abs(want), 1e-300)) < 2.5 * np.finfo(dtype).eps


def temporary_mib(length, implementation, block=128):
    case = bench.Case(1, length, 2, 32, "float32", 2, 2)
    options = {"block_q": block, "block_k": block} if implementation == "xla" else None
    compiled = bench.compile_passes(case, implementation, options)["forward_backward"]
    return compiled.memory_analysis().temp_size_in_bytes / 2**20


def test_memory_is_linear_in_the_length_and_far_below_the_plain_formula():
    mib = {n: temporary_mib(n, "xla") for n in (4096, 16384, 65536)}
    plain = temporary_mib(4096, "plain")
    print({n: round(x, 1) for n, x in mib.items()}, "MiB; plain formula at 4096:", round(plain, 1), "MiB")
    assert mib[4096] <= plain / 8
    assert mib[16384] <= 4.2 * mib[4096]
    assert mib[65536] <= 4.2 * mib[16384]
