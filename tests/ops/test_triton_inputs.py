"""What the Triton kernels read: stretches of keys, spans, and the classes of tiles that follow from them."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_attention_oracle import Oracle, assert_close
from kernel_attention_suite import TOLERANCE, Shape, compiled, draw_case

from ehrwear_jax.ops.kernel_attention import fused, reference, triton_inputs
from ehrwear_jax.ops.kernel_attention.triton_program import Tuning

pytest.importorskip("jax.experimental.pallas.triton")

BLOCK = 32
REACH = 20
TILING = (BLOCK, BLOCK, 4, 2, 16, BLOCK, REACH)
NARROW_TILING = (BLOCK, BLOCK, 4, 2, 16, 16, REACH)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**31))
def test_stretches_join_keys_that_a_row_sees_together(n_row, n_key, seed):
    rng = np.random.default_rng(seed)
    ends = np.sort(rng.integers(0, n_key + 1, (2, n_row, 2)), axis=-1)
    ends[:, :, 1] = np.minimum(ends[:, :, 1], ends[:, :, 0] + rng.integers(0, 5, (2, n_row)))
    found = np.asarray(triton_inputs.stretches(*(jnp.asarray(ends[..., n], jnp.int32) for n in (0, 1)), n_key))
    for b in range(2):
        joined = [any(lo <= j and j + 1 < hi for lo, hi in ends[b]) for j in range(n_key - 1)]
        np.testing.assert_array_equal(found[b], np.cumsum([0, *(not x for x in joined)]))


def tables(case, shape, tiling=TILING, by_key=False):
    """Of a case: (number of masked and of plain tiles, the spans of all tiles, the arrays)."""
    q_time, k_time, ranges = (jnp.asarray(case[n]) for n in ("q_time", "k_time", "kv_range"))
    later = reference.newest_visible(k_time, ranges)
    newest, gap = reference.row_times(q_time, k_time, ranges, later)
    kernel = reference.ExponentialMixture(jnp.asarray(case["first"]), jnp.asarray(case["second"]))
    _, row, head = reference.kernel_rows(kernel, gap)
    problem = {"row": row, "head": head, "q_time": q_time, "k_time": k_time, "newest": newest, "later": later > q_time}
    problem |= {"start": ranges[..., 0], "stop": ranges[..., 1], "extra_q": jnp.zeros((shape.B, shape.T, 0))}
    problem |= {"extra_k": jnp.zeros((shape.B, shape.H, shape.S, 0)), "seed": jnp.zeros(2), "first": jnp.zeros(4)}
    problem |= {n: jnp.moveaxis(jnp.asarray(case[n], jnp.float32), 2, 1) for n in "qkv"}
    spec = fused.Spec("mixture", (triton_inputs.bounds,) * 2, BLOCK, BLOCK, 0.0, 0.0)
    static = triton_inputs.static_of(spec, problem, Tuning(*tiling), by_key)
    arrays = triton_inputs.arrange(static, problem)
    a, b, c, d, start, stop = np.moveaxis(np.asarray(arrays["bounds"][1]), -1, 0)
    return np.sum(b - a + d - c), np.sum(stop - start), np.asarray(arrays["span"][1]), arrays


def test_spans_are_the_longest_from_a_row_s_newest_key_to_the_factors_newest():
    shape = Shape(2, 70, 70, 2, 16, 2)
    for seed, ranges in enumerate(("causal", "packed", "window", "empty", "free")):
        case = draw_case(shape, seed=seed, span=30.0, gap=0.0, ranges=ranges, peak=4.0, rates=(-2.0, 0.5), ties=0.2)
        _, _, found, _ = tables(case, shape)
        time, q_time = np.zeros((2, 96)), case["q_time"]
        time[:, :70] = case["k_time"]
        group = np.asarray(triton_inputs.stretches(*(jnp.asarray(case["kv_range"][..., n]) for n in (0, 1)), 96))
        want = np.zeros((2, 3, 3))
        for b, i, n in np.ndindex(2, 70, 3):
            lo, hi = case["kv_range"][b, i]
            keys = [j for j in range(lo, hi) if j // BLOCK == n]
            if keys:
                same = [j for j in range(n * BLOCK, (n + 1) * BLOCK) if group[b, j] == group[b, keys[0]]]
                newest = time[b, lo:hi].max()
                span = np.inf if newest > q_time[b, i] else time[b, same].max() - newest
                want[b, i // BLOCK, n] = max(want[b, i // BLOCK, n], span)
        np.testing.assert_allclose(found, want, rtol=1e-6)
        assert np.any(np.isinf(want)) == (ranges == "free") and np.any(want > 0)


# name: (days from first to last key, log10 of rates, how many components masked tiles must add element by element)
TIMES = {
    "all components factor": (20.0, (-3.0, -0.5), {0}),
    "none does": (300.0, (1.0, 4.0), {3}),
    "the fast ones do not": (300.0, (-3.0, 1.5), {1, 2}),
    "no time passes": (1e-5, (-3.0, 0.0), {0}),
}
PACKED = Shape(1, 96, 96, 2, 16, 3)


def events(shape, **values):
    """A case of packed contexts whose queries are the events that are keys too: no gap to the newest key."""
    case = draw_case(shape, gap=0.0, ranges="packed", peak=4.0, ties=0.2, **values)
    position, time = np.arange(shape.S), case["k_time"]
    for b in range(shape.B):
        new = np.concatenate([[True], time[b, 1:] < time[b, :-1]])  # each context has a clock of its own
        start = np.maximum.accumulate(np.where(new, position, 0))
        case["kv_range"][b] = np.stack([start, position + 1], -1)
    return case | {"q_time": time}


@pytest.mark.parametrize("tiling", [TILING, NARROW_TILING])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_masked_tiles_equal_the_formula(dtype, tiling):
    """Packed contexts, each with a clock of its own, causal: outputs and all gradients."""
    shape = Shape(*(getattr(PACKED, n) for n in "BTSHDR"), dtype=dtype)
    options = tuple((n, tiling) for n in ("forward", "query", "key"))
    for seed, (name, (span, rates, wanted)) in enumerate(TIMES.items()):
        case = events(shape, seed=seed, span=span, rates=rates)
        masked, _, spans, arrays = tables(case, shape, tiling)
        assert not np.any(arrays["apart"][1])
        direct = np.sum(spans.max() * case["second"] > REACH, axis=1)
        assert masked > 0 and set(direct) <= wanted, (name, direct)
        oracle = Oracle(shape, case)
        run = compiled(shape, "triton", (*options, ("interpret", True)), (("bit_causal", False),))
        (out, log_sum_exp), grads = run(case)
        for_out, for_grad = TOLERANCE[dtype]
        assert_close("out", out, oracle.out, for_out)
        np.testing.assert_allclose(log_sum_exp, oracle.log_sum_exp, rtol=1e-5, atol=max(for_out, 5e-5))
        for n, want in oracle.grads.items():
            share = 0.05 if dtype == "bfloat16" else 0.01
            assert_close(f"{name}: gradient of {n}", grads[n], want, for_grad, share * oracle.sizes[n])
