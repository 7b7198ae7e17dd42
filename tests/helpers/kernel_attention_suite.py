"""What every implementation of kernel attention must satisfy: test files inherit `Suite` and name theirs.

The oracle is the formula in float64 numpy (`Oracle`), gradients included, and shares no code with the package.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_attention_oracle import Oracle, assert_close

from ehrwear_jax.ops.kernel_attention import ExponentialMixture, RationalQuadratic, kernel_attention

LEARNED = ("q", "k", "v", "bias", "first", "second")  # the kernel's parameters are called first and second


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of a case; every one of them is a compilation. R = 0: no kernel, -1: rational quadratic."""

    B: int
    T: int
    S: int
    H: int
    D: int
    R: int
    M: int = 3
    dtype: str = "float32"


SHAPES = (
    Shape(1, 40, 40, 2, 16, 4),
    Shape(2, 37, 70, 1, 32, 1),
    Shape(1, 70, 37, 2, 24, 2, M=1),
    Shape(1, 33, 100, 1, 128, 8),
    Shape(2, 64, 64, 2, 64, 4, M=4),
    Shape(1, 5, 90, 2, 16, 3, M=0),
    Shape(1, 40, 50, 2, 16, -1),
    Shape(2, 48, 33, 1, 32, 0),
    Shape(1, 64, 64, 2, 64, 4, dtype="bfloat16"),
    Shape(1, 40, 60, 1, 128, 2, dtype="bfloat16"),
    Shape(2, 20, 60, 1, 16, -1, M=0, dtype="bfloat16"),
)
TOLERANCE = {"float32": (1e-5, 2e-4), "bfloat16": (1e-2, 2e-2)}  # outputs, gradients


def draw_case(shape, *, seed, span, gap, ranges, peak, rates, ties):
    """Arrays of a case, rounded to what the implementation is given, in float64.

    Args:
      span: days from the first to the last key. gap: days from there to the queries.
      ranges: "causal", "packed", "window", "empty" or "free". peak: largest |scale q.k + bias|, about.
      rates: log10 of the smallest and largest gamma, 1/day. ties: share of the keys that share their time.
    """
    rng = np.random.default_rng(seed)
    c = shape
    n_pack = 3 if ranges == "packed" else 1
    cuts = np.sort(rng.integers(0, c.S + 1, n_pack - 1)) if n_pack > 1 else np.zeros(0, int)
    edges = np.concatenate([[0], cuts, [c.S]])
    k_time, q_time, kv_range = np.zeros((c.B, c.S)), np.zeros((c.B, c.T)), np.zeros((c.B, c.T, 2), np.int32)
    q_edges = np.round(np.linspace(0, c.T, n_pack + 1)).astype(int)
    for b in range(c.B):
        for lo, hi, q_lo, q_hi in zip(edges[:-1], edges[1:], q_edges[:-1], q_edges[1:], strict=True):
            time = np.sort(rng.uniform(0, span, hi - lo))
            repeat = np.nonzero(rng.random(hi - lo) < ties)[0]
            time[repeat] = time[np.maximum(repeat - 1, 0)] if hi > lo else 0
            time = np.sort(time)
            at = np.sort(rng.uniform(0, span, q_hi - q_lo)) + gap
            k_time[b, lo:hi], q_time[b, q_lo:q_hi] = time, at
            stop = lo + np.searchsorted(time, at, side="right")
            if ranges == "free":  # later keys than the query are visible too
                stop = np.maximum.accumulate(np.minimum(hi, stop + rng.integers(0, 9, len(stop))))
            start = np.full(len(at), lo)
            if ranges == "window":
                start = np.maximum(lo, stop - 1 - int(rng.integers(1, max(2, c.S // 2))))
            if ranges == "empty":
                start = np.maximum.accumulate(np.where(rng.random(len(at)) < 0.4, stop, lo))
            kv_range[b, q_lo:q_hi] = np.stack([start, np.maximum(stop, start)], -1)
    x = {name: rng.normal(size=(c.B, n, c.H, c.D)) for name, n in (("q", c.T), ("k", c.S), ("v", c.S))}
    reach = np.sqrt(peak * np.sqrt(c.D) / max(np.abs(np.einsum("bthd,bshd->bhts", x["q"], x["k"])).max(), 1e-9))
    x["q"], x["k"] = x["q"] * reach, x["k"] * reach
    x["bias"] = rng.uniform(-1, 1, (c.B, c.H, max(c.M, 1), c.S)) * peak / 8
    if c.R < 0:
        x["first"], x["second"] = rng.uniform(0.3, 3, c.H), span * 10 ** rng.uniform(-2, 1, c.H)
    else:
        n = max(c.R, 1)
        x["first"], x["second"] = rng.uniform(0.05, 2, (c.H, n)), 10 ** rng.uniform(*rates, (c.H, n))
    x["weight"] = rng.normal(size=(c.B, c.T, c.H, c.D))
    narrow = jnp.dtype(c.dtype)
    x = {n: np.asarray(np.asarray(v, narrow if n in "qkv" else np.float32), np.float64) for n, v in x.items()}
    times = {"q_time": np.asarray(q_time, np.float32), "k_time": np.asarray(k_time, np.float32)}
    return x | times | {"kv_range": kv_range, "modality": rng.integers(0, max(c.M, 1), (c.B, c.T))}


def cases(shape):
    """Hypothesis strategy of draw_case's values."""
    return st.builds(
        functools.partial(draw_case, shape),
        seed=st.integers(0, 2**31),
        span=st.sampled_from([1e-5, 0.01, 1.0, 300.0, 15_000.0]),
        gap=st.sampled_from([0.0, 0.0, 40.0, 4_000.0]),
        ranges=st.sampled_from(["causal", "packed", "window", "empty", "free"]),
        peak=st.sampled_from([1.0, 8.0, 60.0]),
        rates=st.sampled_from([(-4.0, -1.0), (-3.0, 1.5), (1.0, 4.0)]),
        ties=st.sampled_from([0.0, 0.5]),
    )


def arguments(shape, x, learned):
    """Positional and keyword arguments of the op."""
    kernel = None
    if shape.R > 0:
        kernel = ExponentialMixture(learned["first"], learned["second"])
    elif shape.R < 0:
        kernel = RationalQuadratic(learned["first"], learned["second"])
    keywords = {
        "q_time_BxT": x["q_time"],
        "k_time_BxS": x["k_time"],
        "kv_range_BxTx2": x["kv_range"],
        "kernel": kernel,
    }
    if shape.M:
        keywords |= {"source_bias_BxHxMxS": learned["bias"], "q_modality_BxT": x["modality"]}
    return [learned[n] for n in "qkv"], keywords


def device_arrays(shape, x):
    """(learned, rest) as the op takes them."""
    learned = {n: jnp.asarray(x[n], shape.dtype if n in "qkv" else jnp.float32) for n in LEARNED}
    return learned, {n: jnp.asarray(x[n]) for n in ("q_time", "k_time", "kv_range", "modality")}


@functools.cache
def compiled(shape, implementation, options, more=()):
    """jit of (learned, rest, weight) -> ((out, log_sum_exp), gradients of sum(out * weight))."""

    def objective(learned, rest, weight):
        args, keywords = arguments(shape, rest, learned)
        out, log_sum_exp = kernel_attention(
            *args,
            **keywords,
            implementation=implementation,
            options=dict(options),
            return_residuals=True,
            **dict(more),
        )
        return jnp.sum(out.astype(jnp.float32) * weight), (out, log_sum_exp)

    grad = jax.jit(jax.value_and_grad(objective, has_aux=True))

    def run(x):
        (_, outputs), grads = grad(*device_arrays(shape, x), jnp.asarray(x["weight"], jnp.float32))
        return outputs, grads

    return run


class Suite:
    """Subclasses set `implementation`, and `options` so that small shapes need several tiles."""

    implementation = ""
    options = ()
    more = ()  # further arguments of the op, for all tests but that of what is not visible
    shapes = SHAPES
    examples = 8
    plain = Shape(2, 40, 50, 2, 16, 3)

    def pytest_generate_tests(self, metafunc):
        if "shape" in metafunc.fixturenames:
            metafunc.parametrize("shape", self.shapes, ids=lambda c: f"T{c.T}S{c.S}D{c.D}R{c.R}{c.dtype[:1]}")

    def run(self, shape, x, **more):
        more = dict(self.more) | more
        return compiled(shape, self.implementation, self.options, tuple(more.items()))(x)

    def case(self, shape=None, **values):
        default = {
            "seed": 0,
            "span": 30.0,
            "gap": 0.0,
            "ranges": "causal",
            "peak": 4.0,
            "rates": (-2, 0.5),
            "ties": 0.2,
        }
        return draw_case(shape or self.plain, **(default | values))

    def test_equals_the_formula(self, shape):
        @settings(max_examples=self.examples, deadline=None, derandomize=True)
        @given(cases(shape))
        def check(x):
            oracle = Oracle(shape, x)
            (out, log_sum_exp), grads = self.run(shape, x)
            for_out, for_grad = TOLERANCE[shape.dtype]
            assert_close("out", out, oracle.out, for_out)
            seen = np.isfinite(oracle.log_sum_exp)
            np.testing.assert_array_equal(np.isfinite(log_sum_exp), seen)
            np.testing.assert_allclose(log_sum_exp[seen], oracle.log_sum_exp[seen], rtol=1e-5, atol=max(for_out, 5e-5))
            empty = ~seen[:, 0]
            assert np.all(np.asarray(out, np.float32)[empty] == 0)
            assert np.all(np.asarray(grads["q"], np.float32)[empty] == 0)
            for name, want in oracle.grads.items():
                share = 0.05 if shape.dtype == "bfloat16" else 0.01
                assert_close(f"gradient of {name}", grads[name], want, for_grad, share * oracle.sizes[name])

        check()

    def test_all_weights_far_below_the_bound_of_their_factors(self):
        """The one key that matters is old, its time factor underflows, and its logit makes up for it."""
        c = self.plain
        x = self.case(span=100.0, rates=(0.0, 0.1), peak=0.01)
        x["q"][...], x["k"][...] = 1.0, -60.0 / c.D**0.5
        x["k"][:, :25] = 60.0 / c.D**0.5
        oracle = Oracle(c, x)
        (out, _), grads = self.run(c, x)
        assert_close("out", out, oracle.out, 1e-5)
        for name, want in oracle.grads.items():
            assert_close(f"gradient of {name}", grads[name], want, 2e-4, 0.01 * oracle.sizes[name])

    def test_keys_of_a_tile_may_be_many_decay_times_apart(self):
        """Of old keys in a tile beside newer ones, dS / K is large, and must not stand in sums that cancel."""
        c = SHAPES[2]
        x = self.case(c, seed=230, span=15_000.0, peak=60.0, rates=(-4.0, -1.0), ties=0.0)
        oracle, (_, grads) = Oracle(c, x), self.run(c, x)
        for name, want in oracle.grads.items():
            assert_close(f"gradient of {name}", grads[name], want, 1e-4)

    def test_huge_inputs_stay_finite(self):
        x = self.case(span=30_000.0, gap=1e6, rates=(3, 5), peak=1e4)
        (out, _), grads = self.run(self.plain, x)
        assert all(np.all(np.isfinite(np.asarray(g, np.float32))) for g in (out, *grads.values()))

    def test_packing_equals_not_packing(self):
        x, y = (self.case(seed=s) for s in (1, 2))
        y |= {n: x[n] for n in ("first", "second")}
        c = self.plain
        both = {
            n: np.concatenate([x[n], y[n]], axis=3 if n == "bias" else 1) for n in x if n not in ("first", "second")
        }
        both |= {n: x[n] for n in ("first", "second")}
        both["kv_range"] = np.concatenate([x["kv_range"], y["kv_range"] + c.S], axis=1)
        (out, _), grads = self.run(dataclasses.replace(c, T=2 * c.T, S=2 * c.S), both)
        ((out_x, _), grads_x), ((out_y, _), grads_y) = (self.run(c, z) for z in (x, y))
        np.testing.assert_allclose(out, np.concatenate([out_x, out_y], axis=1), atol=2e-6)
        for n in ("q", "k", "v"):
            np.testing.assert_allclose(grads[n], np.concatenate([grads_x[n], grads_y[n]], axis=1), atol=1e-5)
        for n in ("first", "second"):
            np.testing.assert_allclose(grads[n], grads_x[n] + grads_y[n], rtol=2e-4, atol=1e-5)

    def test_what_is_not_visible_changes_no_bit(self):
        before, after = self.before_and_after(bit_causal=True)
        np.testing.assert_array_equal(after, before)

    def before_and_after(self, **more):
        """Outputs of the first rows, before and after what they do not see is changed."""
        x = self.case()
        (before, _), _ = self.run(self.plain, x, **more)
        changed = {n: np.array(v) for n, v in x.items()}
        last = x["kv_range"][:, 20, 1]
        for b in range(self.plain.B):
            for n in ("k", "v", "k_time"):
                changed[n][b, last[b] :] += 100.0
            changed["bias"][b, :, :, last[b] :] = -50.0
        (after, _), _ = self.run(self.plain, changed, **more)
        assert np.any(np.asarray(after) != before)
        return before[:, :21], after[:, :21]

    def test_without_kernel_and_bias_it_is_attention(self):
        c = Shape(2, 48, 48, 2, 32, 0, M=0)
        x = self.case(c, ties=0.0)
        x["kv_range"] = np.stack([np.zeros((2, 48)), np.tile(np.arange(1, 49), (2, 1))], -1).astype(np.int32)
        (out, _), _ = self.run(c, x)
        with jax.default_matmul_precision("highest"):
            want = jax.nn.dot_product_attention(*(jnp.asarray(x[n], jnp.float32) for n in "qkv"), is_causal=True)
        np.testing.assert_allclose(out, want, atol=3e-6)

    def test_components_of_equal_rate_are_one(self):
        x = self.case()
        x["second"] = np.repeat(x["second"][:, :1], 3, axis=1)
        one = x | {"first": x["first"].sum(1, keepdims=True), "second": x["second"][:, :1]}
        (out, _), grads = self.run(self.plain, x)
        (want, _), want_grads = self.run(dataclasses.replace(self.plain, R=1), one)
        np.testing.assert_allclose(out, want, atol=2e-6)
        assert_close("gradient of gamma", np.sum(grads["second"], 1), np.asarray(want_grads["second"])[:, 0], 2e-4)

    def test_order_of_queries_does_not_matter_where_all_keys_are_visible(self):
        x = self.case(gap=31.0)
        x["kv_range"] = np.broadcast_to(np.array([0, self.plain.S], np.int32), x["kv_range"].shape)
        order = np.random.default_rng(0).permutation(self.plain.T)
        (out, _), _ = self.run(self.plain, x)
        moved = x | {n: x[n][:, order] for n in ("q", "q_time", "modality")}
        np.testing.assert_allclose(self.run(self.plain, moved)[0][0], np.asarray(out)[:, order], atol=2e-6)

    def test_shifting_all_times_and_scaling_beta_changes_nothing(self):
        x = self.case()
        x["k_time"], x["q_time"] = (np.round(x[n] * 8) / 8 for n in ("k_time", "q_time"))
        (out, _), _ = self.run(self.plain, x)
        moved = x | {n: x[n] + np.float32(512) for n in ("k_time", "q_time")} | {"first": x["first"] * 37.0}
        np.testing.assert_allclose(self.run(self.plain, moved)[0][0], out, atol=2e-6)

    def test_vmap_is_a_loop(self):
        c = dataclasses.replace(self.plain, B=1)
        args = [device_arrays(c, self.case(c, seed=s)) for s in range(2)]

        def one(learned, rest):
            a, keywords = arguments(c, rest, learned)
            return kernel_attention(*a, **keywords, implementation=self.implementation, options=dict(self.options))

        both = jax.tree.map(lambda *z: jnp.stack(z), *args)
        want = jnp.stack([jax.jit(one)(*a) for a in args])
        np.testing.assert_allclose(jax.jit(jax.vmap(one))(*both), want, atol=2e-6)

    def test_dropout_is_that_of_the_reference(self):
        x = self.case()
        more = {"dropout_rate": 0.3, "dropout_key": Key(5)}
        (out, _), grads = self.run(self.plain, x, **more)
        want, want_grads = compiled(self.plain, "reference", (), tuple(more.items()))(x)
        np.testing.assert_allclose(out, want[0], atol=3e-6)
        for n in LEARNED:
            assert_close(f"gradient of {n}", grads[n], np.asarray(want_grads[n], np.float64), 2e-4)

    def test_residuals_combine_disjoint_keys(self):
        """Attention over halves of the keys, joined by their log-sum-exp, is attention over all; so are gradients."""
        c, x = self.plain, self.case(gap=200.0)
        half = c.S // 2
        newest = jnp.max(jnp.where(_visible(x), x["k_time"][:, None], -np.inf), axis=-1)
        learned, rest = device_arrays(c, x)

        def joined(learned):
            parts = []
            for lo, hi in ((0, half), (half, c.S)):
                part = {n: v[:, lo:hi] if n in ("k", "v") else v for n, v in learned.items()}
                part["bias"] = part["bias"][..., lo:hi]
                keys = rest | {
                    "k_time": rest["k_time"][:, lo:hi],
                    "kv_range": jnp.clip(rest["kv_range"] - lo, 0, hi - lo),
                }
                args, keywords = arguments(c, keys, part)
                keywords |= {"newest_time_BxT": newest, "return_residuals": True, "options": dict(self.options)}
                parts.append(kernel_attention(*args, **keywords, implementation=self.implementation))
            (out_a, lse_a), (out_b, lse_b) = parts
            lse = jnp.logaddexp(lse_a, lse_b)
            share = [
                jnp.moveaxis(jnp.where(jnp.isfinite(s), jnp.exp(s - lse), 0.0), 1, 2)[..., None] for s in (lse_a, lse_b)
            ]
            out = share[0] * out_a + share[1] * out_b
            return jnp.sum(out * jnp.asarray(x["weight"], jnp.float32)), out

        (_, out), grads = jax.jit(jax.value_and_grad(joined, has_aux=True))(learned)
        (want, _), want_grads = self.run(c, x)
        np.testing.assert_allclose(out, want, atol=3e-6)
        for n in LEARNED:
            assert_close(f"gradient of {n}", grads[n], np.asarray(want_grads[n], np.float64), 2e-4)

    def test_second_derivatives_work_or_are_refused(self):
        if self.implementation == "reference":
            pytest.skip("the reference is differentiable as often as one likes")
        learned, rest = device_arrays(self.plain, self.case())

        def loss(q):
            args, keywords = arguments(self.plain, rest, learned | {"q": q})
            out = kernel_attention(*args, **keywords, implementation=self.implementation, options=dict(self.options))
            return jnp.sum(out**2)

        with pytest.raises(NotImplementedError, match="second derivatives"):
            jax.grad(lambda q: jnp.sum(jax.grad(loss)(q) ** 2))(learned["q"])


def _visible(x):
    position = np.arange(x["k_time"].shape[1])[None, None]
    return (position >= x["kv_range"][..., :1]) & (position < x["kv_range"][..., 1:])


@dataclasses.dataclass(frozen=True)
class Key:
    """A PRNG key that can be part of a cache's key."""

    seed: int

    @property
    def dtype(self):
        return np.dtype(np.uint32)

    def ravel(self):
        return jnp.asarray([0, self.seed], jnp.uint32)
