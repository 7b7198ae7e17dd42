"""The Pallas-Triton kernels: interpreted on CPU, and lowered to Triton's language, which needs no GPU.

On a GPU they run as they are: EHRWEAR_TEST_PLATFORM=cuda python -m pytest tests/ops/test_triton.py
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_attention_oracle import Oracle
from kernel_attention_suite import Shape, Suite, arguments, device_arrays

from ehrwear_jax.ops.kernel_attention import kernel_attention, triton_inputs

pytest.importorskip("jax.experimental.pallas.triton")


ON_GPU = jax.default_backend() == "gpu"
INTERPRET = {"interpret": not ON_GPU}


class TestTriton(Suite):
    implementation = "triton"
    options = (("block_q", 32), ("block_k", 32), *INTERPRET.items())
    more = (("bit_causal", False),)
    examples = 50 if ON_GPU else 3

    def test_what_is_not_visible_moves_outputs_by_rounding_where_it_may(self):
        before, after = self.before_and_after(bit_causal=False)
        np.testing.assert_allclose(after, before, rtol=0.0, atol=2e-6)

    def test_bit_causal_outputs_are_those_of_the_formula_too(self):
        x = self.case(self.plain, ranges="packed", gap=40.0)
        (out, log_sum_exp), _ = self.run(self.plain, x, bit_causal=True)
        want = Oracle(self.plain, x)
        np.testing.assert_allclose(out, want.out, atol=2e-6)
        np.testing.assert_allclose(log_sum_exp, want.log_sum_exp, rtol=1e-5, atol=5e-5)


@pytest.mark.skipif(not ON_GPU, reason="larger tiles than interpretation has time for")
class TestTritonAsTuned(Suite):
    """With the tilings that calls take by default."""

    implementation = "triton"
    more = (("bit_causal", False),)
    shapes = (
        Shape(1, 300, 300, 2, 64, 4, M=4, dtype="bfloat16"),
        Shape(2, 200, 517, 2, 64, 4, M=4, dtype="bfloat16"),
        Shape(1, 300, 300, 1, 128, 2, dtype="bfloat16"),
        Shape(1, 300, 300, 2, 64, 4),
    )
    examples = 50


# The shape to be fast at, sizes that are no powers of two, and the largest; and rates of dropout.
LOWERED = [
    (Shape(8, 2048, 2048, 16, 64, n_component, n_modality, dtype), rate)
    for dtype in ("bfloat16", "float32")
    for n_component, n_modality, rate in ((4, 4, 0.0), (4, 4, 0.1), (-1, 4, 0.1), (0, 0, 0.0))
]
LOWERED += [
    (Shape(2, 37, 70, 3, 24, 3, 3, "bfloat16"), 0.0),
    (Shape(1, 5, 90, 1, 128, 8, 5, "bfloat16"), 0.1),
    (Shape(1, 5, 90, 1, 128, 8, 5), 0.1),
]


@pytest.mark.parametrize(("shape", "rate"), LOWERED)
def test_kernels_lower_to_triton(shape, rate):
    c = shape

    def like(*sizes, dtype="float32"):
        return jax.ShapeDtypeStruct(sizes, dtype)

    parameter = like(c.H, max(c.R, 1)) if c.R >= 0 else like(c.H)
    learned = {n: like(c.B, size, c.H, c.D, dtype=c.dtype) for n, size in (("q", c.T), ("k", c.S), ("v", c.S))}
    learned |= {"bias": like(c.B, c.H, max(c.M, 1), c.S), "first": parameter, "second": parameter}
    rest = {"q_time": like(c.B, c.T), "k_time": like(c.B, c.S)}
    rest |= {"kv_range": like(c.B, c.T, 2, dtype="int32"), "modality": like(c.B, c.T, dtype="int32")}

    def loss(learned, rest, key):
        args, keywords = arguments(c, rest, learned)
        more = {"dropout_rate": rate, "dropout_key": key, "options": {"check_device": False}}
        out = kernel_attention(*args, **keywords, **more, implementation="triton")
        return jnp.sum(out.astype(jnp.float32))

    traced = jax.jit(jax.grad(loss)).trace(learned, rest, like(2, dtype="uint32"))
    try:
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    except RuntimeError as error:  # from JAX 0.11 on, lowering includes compilation, by a plugin or for a present GPU
        if "compilation handler" not in str(error) and "No supported GPU" not in str(error):
            raise
        pytest.skip(str(error))
    for name in ("forward", "query_gradients", "key_gradients"):
        assert f"kernel_attention_{name}" in text


def run(c, x, **changes):
    learned, rest = device_arrays(c, x)
    args, keywords = arguments(c, rest, learned)
    return kernel_attention(*args, **(keywords | changes), implementation="triton")


def test_what_cannot_run_is_refused_in_one_line():
    c, x = Suite.plain, Suite().case()
    if not ON_GPU:
        with pytest.raises(NotImplementedError, match="need a GPU"):
            run(c, x)
    options = {"options": INTERPRET}
    with pytest.raises(NotImplementedError, match="skip nothing"):
        run(c, x, skip_tolerance=0.1, **options)
    with pytest.raises(NotImplementedError, match="at most 8 components"):
        run(dataclasses.replace(c, R=9), Suite().case(dataclasses.replace(c, R=9)), **options)
    with pytest.raises(NotImplementedError, match="depth of at most 128"):
        run(dataclasses.replace(c, D=144), Suite().case(dataclasses.replace(c, D=144)), **options)
    with pytest.raises(ValueError, match="powers of two"):
        run(c, x, options=INTERPRET | {"block_q": 48})


def test_bfloat16_dropout_leaves_the_mean():
    """Dropout's own factor is applied once: on average over many keys the output stays what it was."""
    c = Shape(1, 32, 512, 2, 16, 2, M=0, dtype="bfloat16")
    x = Suite().case(c, gap=31.0, peak=1.0, rates=(-4.0, -3.0))
    x["kv_range"] = np.broadcast_to(np.array([0, c.S], np.int32), x["kv_range"].shape)
    x["v"] = np.ones_like(x["v"])
    options = dict(INTERPRET)
    out = run(c, x, dropout_rate=0.3, dropout_key=jax.random.key(1), options=options)
    assert abs(float(np.mean(np.asarray(out, np.float32))) - 1.0) < 0.02


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(1, 9), st.sampled_from([1, 2, 4]), st.integers(0, 2**31))
def test_bounds_visit_every_tile_once(n, ratio, seed):
    rng = np.random.default_rng(seed)
    lo, hi = np.sort(rng.integers(0, n * ratio + 1, (2, 3, 4)), axis=0)
    at = np.arange(n * ratio)
    seen = (at >= lo[..., None]) & (at < hi[..., None])
    # plain blocks may hold parts that nothing sees, or that see nothing
    plain = seen.reshape(3, 4, n, ratio).any(-1) & (rng.random((3, 4, n)) < 0.7)
    bounds = np.asarray(triton_inputs.bounds(jnp.asarray(plain), jnp.asarray(seen)))
    for index in np.ndindex(3, 4):
        a, b, c, d, start, stop = bounds[index]
        count = np.zeros(n * ratio, int)
        count[a:b] += 1
        count[c:d] += 1
        count[start * ratio : stop * ratio] += 1
        assert np.all(count <= 1) and np.all(count[seen[index]] == 1)
        assert plain[index][start:stop].all() and a <= b <= c <= d
        assert (stop > start) == plain[index].any()
