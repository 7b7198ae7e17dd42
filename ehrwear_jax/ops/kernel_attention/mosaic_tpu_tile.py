"""Computes one tile inside the TPU kernels of `mosaic_tpu`: the mathematics of `tiles`, written for Mosaic.

A tile has its keys along sublanes and its queries along lanes, [K, Q]. What is per query ([1, Q], or [R, Q] for R
components) then fills whole registers, sums over keys are additions of registers, and memory holds it without padding.
What is per key is kept with keys along lanes too, [R, K], and meets the tile in products on the matrix unit only.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ehrwear_jax.ops.kernel_attention import fused, reference, tiles

ROWS = 8  # sublanes of a register: components are padded to a multiple


def dot(a: jax.Array, b: jax.Array, over: tuple[int, int]) -> jax.Array:
    """Product of matrices over axis over[0] of a and over[1] of b; float32 in full precision, bfloat16 in one pass."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(
        a, b, (((over[0],), (over[1],)), ((), ())), precision=precision, preferred_element_type=jnp.float32
    )


def _halves(x):
    """x as two bfloat16 summands that together keep 16 bits; in float32, which unlike bfloat16 stacks by eights."""
    high = x.astype(jnp.bfloat16).astype(jnp.float32)
    return high, x - high


SMALL = -0.0625


def small_expm1(x: jax.Array) -> jax.Array:
    """exp(x) - 1 for SMALL < x <= 0, to 2e-7 of itself."""
    return x * (1.0 + x * (1 / 2 + x * (1 / 6 + x * (1 / 24))))


def expm1(x: jax.Array) -> jax.Array:
    """exp(x) - 1 for x <= 0, to 2e-6 of itself; Mosaic has none."""
    return jnp.where(x > SMALL, small_expm1(x), jnp.exp(x) - 1.0)


class Tile:
    """One tile of one batch row and head.

    Args:
      spec: fused.Spec with the block sizes in use; n_component: R, without padding.
      refs: blocks by name, see mosaic_tpu.LAYOUT.
      at: indices (batch, head, query block, key block), all scalars.
      flags: reference to mosaic_tpu._flags. scalar: (name, block) -> what mosaic_tpu._inputs has of a block.
    """

    def __init__(
        self,
        spec: fused.Spec,
        n_component: int,
        refs: Mapping[str, Any],
        at: tuple[jax.Array, ...],
        flags: Any,
        scalar: Callable[[str, jax.Array], jax.Array],
    ) -> None:
        self.spec, self.n_component, self.refs, self.at = spec, n_component, refs, at
        self.flags, self.scalar = flags, scalar
        self.narrow = refs["k"].dtype == jnp.bfloat16
        if spec.kind != "none":
            self.time_1xQ, self.newest_1xQ = refs["times"][0:1], refs["times"][1:2]

    # ----------------------------------------------------------------------------------------------- visible, kept

    def mask(self) -> jax.Array:
        shape = (self.spec.block_k, self.spec.block_q)
        position = self.at[3] * self.spec.block_k + jax.lax.broadcasted_iota(jnp.int32, shape, 0)
        return (position >= self.refs["range"][0:1]) & (position < self.refs["range"][1:2])

    def dropped(self, x_KxQ: jax.Array) -> jax.Array:
        """x with dropout of its entries, the same as in `reference.dropout_keep`."""
        rate = self.spec.dropout_rate
        if rate == 0.0:
            return x_KxQ
        b, h, t, s, *seed = (self.flags[i] for i in range(1, 7))
        query = t + self.at[2] * self.spec.block_q + jax.lax.broadcasted_iota(jnp.int32, (1, x_KxQ.shape[1]), 1)
        key = s + self.at[3] * self.spec.block_k + jax.lax.broadcasted_iota(jnp.int32, (x_KxQ.shape[0], 1), 0)
        seed = [x.astype(jnp.uint32) for x in seed]
        keep = reference.dropout_keep(seed, b + self.at[0], h + self.at[1], query, key, rate)
        return jnp.where(keep, x_KxQ * (1.0 / (1.0 - rate)), 0.0)

    # -------------------------------------------------------------------------------------------------- the kernel

    def c(self) -> jax.Array:
        """Newest key time of the tile, a scalar."""
        return self.scalar("newest", self.at[3])

    def taken_directly(self) -> jax.Array:
        """Whether this is asked for, or some row that sees a key of the tile has a newest key older than the tile's."""
        lo = self.at[3] * self.spec.block_k
        start, stop = self.refs["range"][0:1], self.refs["range"][1:2]
        sees = (start < lo + self.spec.block_k) & (stop > lo) & (stop > start)
        late = jnp.max(jnp.where(sees & (self.newest_1xQ < self.c()), 1.0, 0.0))
        return (self.flags[0] != 0) | (late > 0.0)

    def factors(self) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """log b [R, K]; h = n - c [1, Q]; kappa [1, Q]; A [R, Q]; padded components have A = 0."""
        log_b = -self.refs["head"][...] * jnp.maximum(self.c() - self.refs["k_time"][...], 0.0)
        h = jnp.maximum(self.newest_1xQ - self.c(), 0.0)
        log_a = self.refs["row"][...] - self.refs["head"][...] * h
        peak = jnp.max(log_a, axis=0, keepdims=True)
        kappa = peak + jnp.log(jnp.sum(jnp.exp(log_a - peak), axis=0, keepdims=True))
        return log_b, h, kappa, jnp.exp(log_a - kappa)

    def mixed(self, b_RxK: jax.Array, a_RxQ: jax.Array) -> jax.Array:
        """sum_r b_jr A_ir [K, Q]; for bfloat16 inputs in halves, which err by 1e-5 and cost one pass."""
        if self.narrow:
            (b_high, b_low), (a_high, a_low) = _halves(b_RxK), _halves(a_RxQ)
            b_RxK = jnp.concatenate([b_high, b_high, b_low], axis=0).astype(jnp.bfloat16)
            a_RxQ = jnp.concatenate([a_high, a_low, a_high], axis=0).astype(jnp.bfloat16)
        return dot(b_RxK, a_RxQ, (0, 0))

    def behind(self) -> jax.Array:
        """u [K, Q]; only with a kernel."""
        spread = jnp.broadcast_to(self.refs["k_time"][...], (ROWS, self.spec.block_k))
        time_Kx1 = jnp.transpose(spread)[:, :1]  # a [K, 1] array in memory would be padded to 128 columns
        return jnp.maximum(self.newest_1xQ - jnp.minimum(time_Kx1, self.time_1xQ), 0.0)

    def components(self, u: jax.Array) -> tuple[list[jax.Array], list[jax.Array], list[jax.Array], jax.Array]:
        """Lists over r: p [1, Q], -gamma u [K or 1, Q] and p exp(-gamma u) / exp(peak); and peak, the greatest log."""
        row = [self.refs["row"][r : r + 1] for r in range(self.n_component)]
        decay = [-self.refs["head"][r : r + 1] * u for r in range(self.n_component)]
        peak = functools.reduce(jnp.maximum, [a + b for a, b in zip(row, decay, strict=True)])
        part = [jnp.exp(a + b - peak) for a, b in zip(row, decay, strict=True)]
        return [jnp.exp(a) for a in row], decay, part, peak

    def log_kernel(self, u: jax.Array | None = None) -> tuple[jax.Array | float, Any]:
        """log(K(g + u) / K(g)) for u [K or 1, Q] (None: that of the tile), and what a mixture's gradients need."""
        if self.spec.kind == "none":
            return 0.0, None
        u = self.behind() if u is None else u
        if self.spec.kind == "quadratic":
            return -self.refs["head"][0:1] * jnp.log1p(self.ratio(u)), None
        components = self.components(u)
        log_total = jnp.log(sum(components[2]))
        return components[3] + log_total, (log_total, *components)

    def ratio(self, u_KxQ: jax.Array) -> jax.Array:
        gap = self.time_1xQ - self.newest_1xQ
        return u_KxQ * (2.0 * gap + u_KxQ) / self.refs["row"][0:1]

    def scores(self) -> jax.Array:
        s = dot(self.refs["k"][...], self.refs["q"][...], (1, 0))
        return s if self.spec.post_scale == 1.0 else s * self.spec.post_scale

    # ------------------------------------------------------------------------------------------------------ forward

    def accumulate(self, peak_ref: Any, total_ref: Any, acc_ref: Any, factored: bool) -> None:
        """Adds this tile to the running maximum [1, Q], sum of weights [1, Q] and weighted sum of values [D, Q]."""
        factor: jax.Array | None = None
        shift: jax.Array | float = 0.0
        logit = self.scores()
        if factored:
            log_b, _, shift, a = self.factors()
            factor = self.mixed(jnp.exp(log_b), a)
        else:
            logit = logit + self.log_kernel()[0]
        logit = jnp.where(self.mask(), logit, -jnp.inf)
        peak = peak_ref[...]
        new = jnp.maximum(peak, jnp.max(logit, axis=0, keepdims=True) + shift)
        at = jnp.where(new > -jnp.inf, new, 0.0)
        weight = jnp.exp(logit + (shift - at))
        weight = weight if factor is None else weight * factor
        shrink = jnp.exp(peak - at)
        v_t = self.refs["v_t"][...]
        peak_ref[...] = new
        total_ref[...] = total_ref[...] * shrink + jnp.sum(weight, axis=0, keepdims=True)
        acc_ref[...] = acc_ref[...] * shrink + dot(v_t, self.dropped(weight).astype(v_t.dtype), (1, 0))

    def rest_is_negligible(self, peak_1xQ: jax.Array, total_1xQ: jax.Array) -> jax.Array:
        """A scalar: whether what lies before this tile may be left out, by the bound of `tiles.rest_is_negligible`."""
        before = jnp.maximum(self.at[3] - 1, 0)
        q = self.refs["q"][...].astype(jnp.float32)
        most = jnp.sqrt(jnp.sum(q * q, axis=0, keepdims=True)) * self.scalar("norm", before)
        start, stop = self.refs["range"][0:1], self.refs["range"][1:2]
        n_rest = jnp.where(stop > start, jnp.maximum(self.at[3] * self.spec.block_k - start, 0), 0)
        age = None
        if self.spec.kind != "none":
            age = jnp.maximum(self.newest_1xQ - self.scalar("older", before), 0.0)
        rest = jnp.log(jnp.maximum(n_rest, 1).astype(jnp.float32)) + most + self.log_kernel(age)[0] - peak_1xQ
        matters = (rest > jnp.log(total_1xQ) + math.log(self.spec.skip_tolerance)) & (n_rest > 0)
        return jnp.max(jnp.where(matters, 1.0, 0.0)) == 0.0

    # ----------------------------------------------------------------------------------------------------- backward

    def weights(self, factored: bool) -> tuple[jax.Array, jax.Array | None, jax.Array, Any]:
        """(E, K, dP - delta, factors or components): the weights are E K, and dS = E K (dP - delta); K None is 1."""
        factor: jax.Array | None = None
        more: Any
        if factored:
            log_b, _, kappa, a = more = self.factors()
            logit, factor = self.scores() + kappa, self.mixed(jnp.exp(log_b), a)
        else:
            log_k, more = self.log_kernel()
            logit = self.scores() + log_k
        e = jnp.exp(jnp.where(self.mask(), logit - self.refs["stats"][0:1], -jnp.inf))
        v, d_out = self.refs["v"][...], self.refs["d_out"][...]
        return e, factor, self.dropped(dot(v, d_out, (1, 0))) - self.refs["stats"][1:2], more

    def to_keys(self, grads: Sequence[Any], factored: bool) -> None:
        """Adds to the gradients of k [K, E] and v [K, D]."""
        dk_ref, dv_ref = grads
        e, factor, value, _ = self.weights(factored)
        weight = e if factor is None else e * factor
        q, d_out = self.refs["q"][...], self.refs["d_out"][...]
        dk_ref[...] += dot((weight * value).astype(q.dtype), q, (1, 1))
        dv_ref[...] += dot(self.dropped(weight).astype(d_out.dtype), d_out, (1, 1))

    def to_queries(self, grads: Sequence[Any], factored: bool) -> None:
        """Adds to the gradients of q [E, Q] and of the kernel's row and head, row by row [R, Q]."""
        dq_ref, *of_kernel = grads
        e, factor, value, more = self.weights(factored)
        w = e * value
        d_score = w if factor is None else w * factor
        k_t = self.refs["k_t"][...]
        dq_ref[...] += dot(k_t, d_score.astype(k_t.dtype), (1, 0))
        if not of_kernel:
            return
        d_row_ref, d_head_ref = of_kernel
        if factored:
            d_row, d_head = self._factored_gradients(w, *more)
            d_row_ref[...] += d_row
            d_head_ref[...] += d_head
        elif self.spec.kind == "quadratic":
            ratio, c = self.ratio(self.behind()), self.refs["row"][0:1]
            each = self.refs["head"][0:1] * d_score * ratio / ((1.0 + ratio) * c)
            d_row_ref[0:1] += jnp.sum(each, axis=0, keepdims=True)
            d_head_ref[0:1] -= jnp.sum(d_score * jnp.log1p(ratio), axis=0, keepdims=True)
        else:
            self._direct_gradients(d_row_ref, d_head_ref, d_score, *more)

    def _direct_gradients(self, d_row_ref, d_head_ref, d_score, log_total, p, decay, part, peak):
        """Adds to those of log p and gamma [R, Q]: like `_factored_gradients`, near and far decided for each key."""
        scale, log_k = jnp.exp(peak), peak + log_total
        near = log_k > math.log(tiles.NEAR)
        per_k = d_score * jnp.exp(-jnp.where(near, log_k, log_total))  # exponentials cost less than divisions
        per_lag = d_score * self.behind() * jnp.exp(-log_total)
        sums = []
        for a, x, e in zip(p, decay, part, strict=True):
            less = jnp.where(x > SMALL, a * small_expm1(x), e * scale - a)  # p (exp(-gamma u) - 1)
            sums.append(jnp.sum(per_k * jnp.where(near, less, e), axis=0, keepdims=True))
        for r, (a, e) in enumerate(zip(p, part, strict=True)):
            d_row_ref[r : r + 1] += sums[r] - a * sum(sums)
            d_head_ref[r : r + 1] -= jnp.sum(per_lag * e, axis=0, keepdims=True)

    def _factored_gradients(self, w_KxQ, log_b, h, kappa, a):
        """Of log p and gamma [R, Q]; see `tiles` for the two ways to take the former."""
        b = jnp.exp(log_b)
        n = b.shape[0]
        lag = jnp.maximum(self.c() - self.refs["k_time"][...], 0.0)
        sees = self.refs["range"][1:2] > self.refs["range"][0:1]
        alive = jnp.max(jnp.where(sees, self.refs["row"][...], -1e30), axis=1, keepdims=True) > math.log(tiles.ALIVE)
        lowest = jnp.min(jnp.where(alive, log_b, 0.0), axis=0, keepdims=True)
        is_near = jnp.broadcast_to(lowest, b.shape) > math.log(tiles.NEAR)
        less = jnp.where(is_near, expm1(log_b), b)
        columns = jnp.concatenate([jnp.where(is_near, 1.0, 0.0), b, less, b * lag], axis=0)
        if self.narrow:
            (high, low), (w_high, w_low) = _halves(columns), _halves(w_KxQ)
            both = jnp.concatenate([high, low], axis=0).astype(jnp.bfloat16)
            sums = dot(both, w_high.astype(jnp.bfloat16), (1, 0))
            sums = sums[: 4 * n] + sums[4 * n :] + dot(both[: 4 * n], w_low.astype(jnp.bfloat16), (1, 0))
        else:
            sums = dot(columns, w_KxQ, (1, 0))
        one, with_b, with_less, with_lag = (sums[i * n : (i + 1) * n] for i in range(4))
        p, decay = jnp.exp(self.refs["row"][...]), -self.refs["head"][...] * h
        near = jnp.exp(decay) * with_less + expm1(decay) * one
        scale = jnp.exp(kappa)
        near = p / jnp.maximum(scale, tiles.NEAR) * (near - jnp.sum(p * near, axis=0, keepdims=True))
        far = a * with_b
        far = far - p * jnp.sum(far, axis=0, keepdims=True)
        return jnp.where(scale > tiles.NEAR, near, far), -a * (h * with_b + with_lag)
