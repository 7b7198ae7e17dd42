"""Computes one tile of queries and keys, where K costs a multiplication instead of R exponentials.

With c the newest key time of the tile, a tile whose every row has n_i >= c is a product of rank R:

    K_ij / K(g_i) = sum_r a_ir b_jr,  a_ir = p_ir exp(-gamma_r (n_i - c)),  b_jr = exp(-gamma_r (c - t_j)) <= 1

(names as in `reference`). Rows are scaled by kappa_i = log sum_r a_ir and A = a / exp(kappa), so that every factor of

    weight_ij = exp(s_ij + kappa_i - m_i) * sum_r A_ir b_jr,   m_i the running maximum of s_ij + kappa_i,

is at most 1: R (Q + K) exponentials instead of R Q K. Other tiles (the diagonal, and where packed sequences meet) take
log K directly. With W = exp(s + kappa - log_sum_exp) (dP - delta) the backward pass needs no division: dS = W * K.

Gradients of log p. The sum over all keys of dS is zero, so a component's sum of dS pi_r (pi_r its share of K) may be
taken of dS (pi_r - p_r) instead, which is small when all keys are equally far; it is multiplied by g, which may be
years. Near keys use expm1 for that difference, so that it keeps its digits: of a key's terms W exp(-gamma_r u), any
constant may be taken that is the same for all r. For keys that have decayed it must not be, for W = dS / K is large
there and would not cancel to the last digit.
"""

import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from ehrwear_jax.ops.kernel_attention import fused, reference

# Of a row's sum of weights, relative to the maximum that factors allow; below, float32 has lost what it was made of.
SMALLEST_SUM = 1e-30
# Of K relative to the newest key; above, the difference pi - p is taken by expm1.
NEAR = 0.1
# Share p of a component in some row; below, whether it has decayed does not make a key near or far.
ALIVE = 0.01


class Tile:
    """One tile of a problem (fused.call), of all heads and rows of the batch.

    Args:
      block, keys: its queries and its keys, cut from the problem; the extra columns stand in block["q"], keys["k"].
      j: number of the key block; block["index"] is that of the query block.
    """

    def __init__(
        self,
        spec: fused.Spec,
        block: Mapping[str, jax.Array],
        keys: Mapping[str, jax.Array],
        j: int | jax.Array,
        problem: Mapping[str, jax.Array],
    ) -> None:
        self.spec, self.block, self.keys, self.j = spec, block, keys, j
        self.seed, self.first = problem["seed"], problem["first"]
        self.dtype = jnp.promote_types(block["q"].dtype, jnp.float32)
        self.rate_1xHx1xR = problem["head"][None, :, None]
        precision = None if block["q"].dtype == jnp.bfloat16 else "highest"
        self.dot = functools.partial(jnp.einsum, precision=precision, preferred_element_type=self.dtype)

    # ----------------------------------------------------------------------------------------------- visible, kept

    def mask(self) -> jax.Array:
        position = self.j * self.spec.block_k + jnp.arange(self.keys["time"].shape[-1])
        start, stop = (self.block[n][:, None, :, None] for n in ("start", "stop"))
        return (position[None, None, None] >= start) & (position[None, None, None] < stop)

    def dropped(self, x: jax.Array) -> jax.Array:
        """x with dropout of its entries, or x itself without dropout."""
        rate = self.spec.dropout_rate
        if rate == 0.0:
            return x
        n_batch, n_head, n_query, n_key = x.shape
        b, h, t, s = self.first
        index = (
            (b + jnp.arange(n_batch))[:, None, None, None],
            (h + jnp.arange(n_head))[None, :, None, None],
            (t + self.block["index"] * self.spec.block_q + jnp.arange(n_query))[None, None, :, None],
            (s + self.j * self.spec.block_k + jnp.arange(n_key))[None, None, None, :],
        )
        return jnp.where(reference.dropout_keep(self.seed, *index, rate), x / (1.0 - rate), 0.0)

    # -------------------------------------------------------------------------------------------------- the kernel

    def factorable(self) -> jax.Array:
        """Whether no row that sees a key of the tile has a newest key older than the tile's newest."""
        lo = self.j * self.spec.block_k
        sees = (self.block["start"] < lo + self.spec.block_k) & (self.block["stop"] > lo)
        sees &= self.block["stop"] > self.block["start"]
        return jnp.all(~sees | (self.keys["newest"][:, None] <= self.block["newest"]))

    def factors(self) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
        """log b [B, 1 or H, K, R], b; h = n - c [B, Q]; kappa [B, H, Q]; A [B, H, Q, R]."""
        c_Bx1 = self.keys["newest"][:, None]
        log_b = -self.rate_1xHx1xR * jnp.maximum(c_Bx1 - self.keys["time"], 0.0)[:, None, :, None]
        h_BxQ = jnp.maximum(self.block["newest"] - c_Bx1, 0.0)
        log_a = self.block["row"] - self.rate_1xHx1xR * h_BxQ[:, None, :, None]
        kappa = jax.nn.logsumexp(log_a, axis=-1)
        return log_b, jnp.exp(log_b), h_BxQ, kappa, jnp.exp(log_a - kappa[..., None])

    def mixed(self) -> jax.Array:
        """sum_r A_ir b_jr."""
        _, b, _, _, a = self.factors()
        return functools.reduce(jnp.add, (a[..., :, None, r] * b[..., None, :, r] for r in range(a.shape[-1])))

    def behind(self) -> tuple[jax.Array, jax.Array]:
        """u [B, Q, K], and g [B, Q]."""
        time, newest = self.block["q_time"], self.block["newest"]
        u = newest[..., None] - jnp.minimum(self.keys["time"][:, None], time[..., None])
        return jnp.maximum(u, 0.0), time - newest

    def terms(self) -> tuple[list[jax.Array], list[jax.Array], jax.Array]:
        """Lists over r of -gamma_r u_ij and log(p_ir exp(-gamma_r u_ij)); the maximum of the latter over r."""
        u, _ = self.behind()
        row = self.block["row"]
        decay = [-self.rate_1xHx1xR[..., r, None] * u[:, None] for r in range(row.shape[-1])]
        terms = [row[..., r, None] + x for r, x in enumerate(decay)]
        return decay, terms, functools.reduce(jnp.maximum, terms)

    def log_kernel(self) -> jax.Array | float:
        """log(K_ij / K(g_i)) to an absolute error of float32's epsilon: enough for a weight."""
        if self.spec.kind == "none":
            return 0.0
        if self.spec.kind == "quadratic":
            return reference.log_kernel("quadratic", self.block["row"], self.rate_1xHx1xR[0, :, 0], *self.behind())
        _, terms, peak = self.terms()
        return peak + jnp.log(sum(jnp.exp(x - peak) for x in terms))

    # ------------------------------------------------------------------------------------------------------ forward

    def scores(self) -> jax.Array:
        s = self.dot("bhqe,bhke->bhqk", self.block["q"], self.keys["k"])
        return s if self.spec.post_scale == 1.0 else s * self.spec.post_scale

    def accumulate(
        self, direct: bool | jax.Array, peak: jax.Array, total: jax.Array, acc: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The running maximum [B, H, Q], sum of weights and weighted sum of values, with this tile.

        direct: whether to take log K without factors; True decides it when compiling.
        """

        def add(logit, factor):
            logit = jnp.where(self.mask(), logit, -jnp.inf)
            new = jnp.maximum(peak, jnp.max(logit, axis=-1))
            at = jnp.where(jnp.isfinite(new), new, 0.0)
            weight = jnp.exp(logit - at[..., None])
            weight = weight if factor is None else weight * factor
            shrink = jnp.exp(peak - at)
            value = self.dot("bhqk,bhkd->bhqd", self.dropped(weight).astype(self.keys["v"].dtype), self.keys["v"])
            return new, total * shrink + jnp.sum(weight, axis=-1), acc * shrink[..., None] + value

        if direct is True:
            return add(self.scores() + self.log_kernel(), None)
        return jax.lax.cond(
            direct | ~self.factorable(),
            lambda: add(self.scores() + self.log_kernel(), None),
            lambda: add(self.scores() + self.factors()[3][..., None], self.mixed()),
        )

    # ----------------------------------------------------------------------------------------------------- backward

    def gradients(self, direct: bool | jax.Array) -> tuple[jax.Array, ...]:
        """(dk, dv, dq, d_row, d_head): this tile's share; d_head row by row."""
        if direct is True:
            return self._direct_gradients()
        return jax.lax.cond(direct | ~self.factorable(), self._direct_gradients, self._factored_gradients)

    def _weights(self, logit):
        log_sum_exp = self.block["log_sum_exp"][..., None]
        return jnp.exp(jnp.where(self.mask(), logit - jnp.where(jnp.isfinite(log_sum_exp), log_sum_exp, 0.0), -jnp.inf))

    def _from(self, weight, d_score):
        q, k, v, d_out = self.block["q"], self.keys["k"], self.keys["v"], self.block["d_out"]
        narrow = d_score.astype(q.dtype)
        return (
            self.dot("bhqk,bhqe->bhke", narrow, q),
            self.dot("bhqk,bhqd->bhkd", self.dropped(weight).astype(v.dtype), d_out.astype(v.dtype)),
            self.dot("bhqk,bhke->bhqe", narrow, k),
        )

    def _value_product(self):
        v = self.keys["v"]
        product = self.dropped(self.dot("bhqd,bhkd->bhqk", self.block["d_out"].astype(v.dtype), v))
        return product - self.block["delta"][..., None]

    def _factored_gradients(self):
        log_b, b, h_BxQ, kappa, a = self.factors()
        factor = self.mixed()
        e = self._weights(self.scores() + kappa[..., None])
        w = e * self._value_product()
        # w against 1 (of near keys), b, b less that, and b (c - t), for all components in one product
        lag = jnp.maximum(self.keys["newest"][:, None] - self.keys["time"], 0.0)[:, None, :, None]
        sees = (self.block["stop"] > self.block["start"])[:, None, :, None]
        alive = jnp.max(jnp.where(sees, self.block["row"], -jnp.inf), axis=2, keepdims=True) > math.log(ALIVE)
        is_near = jnp.min(jnp.where(alive, log_b, 0.0), axis=-1, keepdims=True) > math.log(NEAR)
        less = jnp.where(is_near, jnp.expm1(log_b), b)
        columns = jnp.concatenate([is_near.astype(b.dtype), b, less, b * lag], axis=-1)
        n = a.shape[-1]
        sums = jnp.einsum("bhqk,bhkc->bhqc", w, columns, precision="highest")
        one, with_b, with_less, with_lag = jnp.split(sums, (1, n + 1, 2 * n + 1), axis=-1)
        h = h_BxQ[:, None, :, None]
        p, decay = jnp.exp(self.block["row"]), -self.rate_1xHx1xR * h
        near = jnp.exp(decay) * with_less + jnp.expm1(decay) * one
        scale = jnp.exp(kappa)[..., None]
        near = p / jnp.maximum(scale, NEAR) * (near - jnp.sum(p * near, axis=-1, keepdims=True))
        far = a * with_b
        far = far - p * jnp.sum(far, axis=-1, keepdims=True)
        d_row = jnp.where(scale > NEAR, near, far)
        return *self._from(e * factor, w * factor), d_row, -a * (h * with_b + with_lag)

    def _direct_gradients(self):
        kind, row, rate = self.spec.kind, self.block["row"], self.rate_1xHx1xR
        weight = self._weights(self.scores() + self.log_kernel())
        d_score = weight * self._value_product()
        shares = self._from(weight, d_score)
        if kind == "none":
            return *shares, jnp.zeros(row.shape, self.dtype), jnp.zeros(row.shape, self.dtype)
        u_BxQxK, g_BxQ = self.behind()
        u = u_BxQxK[:, None]
        if kind == "quadratic":
            ratio = u * (2.0 * g_BxQ[:, None, :, None] + u) / row
            to_row = jnp.sum(d_score * ratio / (1.0 + ratio), axis=-1, keepdims=True) * rate / row
            return *shares, to_row, -jnp.sum(d_score * jnp.log1p(ratio), axis=-1, keepdims=True)
        decay, terms, peak = self.terms()
        p = [jnp.exp(row[..., r]) for r in range(row.shape[-1])]
        # barriers keep XLA from computing the exponentials again in each of the sums below
        part = [jnp.exp(x - peak) for x in terms]
        part, scale, d_score = jax.lax.optimization_barrier((part, jnp.exp(peak), d_score))
        total = sum(part)
        near = scale * total > NEAR
        per_k, per_lag = jax.lax.optimization_barrier(
            (d_score / jnp.where(near, scale * total, total), d_score * u / total)
        )
        # pi_r - p_r: of K near 1 through p_r (exp(-gamma_r u) - 1), which is exact for small gamma_r u
        less = [
            jnp.where(near, jnp.where(x > -0.3, a[..., None] * small_expm1(x), e * scale - a[..., None]), e)
            for x, e, a in zip(decay, part, p, strict=True)
        ]
        sums = [jnp.sum(per_k * x, axis=-1) for x in less]
        d_row = [x - a * sum(sums) for x, a in zip(sums, p, strict=True)]
        d_head = [-jnp.sum(per_lag * e, axis=-1) for e in part]
        return *shares, jnp.stack(d_row, axis=-1), jnp.stack(d_head, axis=-1)


def small_expm1(x: jax.Array) -> jax.Array:
    """exp(x) - 1 for -0.3 <= x <= 0 to the last digit or so: a polynomial, for CPUs take long over expm1."""
    last = 7 if x.dtype == jnp.float32 else 12  # 0.3 ** 8 / 8! is 2e-9
    value = jnp.ones_like(x)
    for n in range(last, 1, -1):
        value = 1.0 + value * x * (1.0 / n)
    return value * x


# ---------------------------------------------------------------------------------------------------------- skipping


def key_bounds(keys: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Per key block, of all keys in it and before it: largest norm [N, B, H] and newest time [N, B].

    The columns of the modality bias are part of q and k, so the norms bound s + bias.
    """
    k = keys["k"].astype(jnp.promote_types(keys["k"].dtype, jnp.float32))
    norm = jnp.sqrt(jnp.max(jnp.sum(jnp.square(k), axis=-1), axis=-1))
    return {"norm": jax.lax.cummax(norm, axis=0), "newest": jax.lax.cummax(keys["newest"], axis=0)}


def rest_is_negligible(
    spec: fused.Spec,
    block: Mapping[str, jax.Array],
    bounds: Mapping[str, jax.Array],
    j: jax.Array,
    head_HxR: jax.Array,
    peak: jax.Array,
    total: jax.Array,
) -> jax.Array:
    """Whether what lies before key block j carries at most skip_tolerance of each row's weight.

    By Cauchy-Schwarz s <= |q| max |k|, and K falls with age: n keys hold at most n exp(s_max - peak) K(newest of them),
    beside `total`. The weights left out then shift a mean of values by at most 2 skip_tolerance max |v|.
    """
    before = jnp.maximum(j - 1, 0)
    q = block["q"].astype(peak.dtype)
    most = spec.post_scale * jnp.sqrt(jnp.sum(jnp.square(q), axis=-1)) * bounds["norm"][before][..., None]
    n_rest = jnp.clip(j * spec.block_k - block["start"], 0, None)
    log_k: jax.Array | float = 0.0
    if spec.kind != "none":
        age = jnp.maximum(block["newest"] - bounds["newest"][before][:, None], 0.0)
        gap = block["q_time"] - block["newest"]
        log_k = reference.log_kernel(spec.kind, block["row"], head_HxR, age[..., None], gap)[..., 0]
    bound = jnp.log(jnp.maximum(n_rest, 1).astype(peak.dtype))[:, None] + most + log_k - peak
    fits = bound <= jnp.log(spec.skip_tolerance) + jnp.log(total)
    done = (n_rest <= 0) | (block["stop"] <= block["start"])
    return jnp.all(fits | done[:, None])
