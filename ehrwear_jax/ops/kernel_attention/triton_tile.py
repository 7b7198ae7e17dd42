"""Computes one tile, and the kernels of `triton` that are made of tiles.

A tile is of one of three classes. *Plain* tiles are as in `tiles`. In *masked* ones some rows do not see all keys, and
c, the newest key time that factors are relative to, may be newer than a row's newest key n_i: then

    A_ir = exp(log p_ir - gamma_r (n_i - c) - kappa_i),  kappa_i = max_r(log p_ir - gamma_r max(n_i - c, 0))

grows as b_jr of the keys that the row sees falls, by exp(gamma_r (c - n_i)). Components of which that is more than
exp(reach) in some row of the tile stay out of the product and are added element by element, relative to the same
kappa; they are known from the table of spans (`triton_inputs`) by a branch per component. So the sum of a row is as
large as in plain tiles, and times may be apart as far as they like. What is not seen must stay finite: exponents are
bounded where they could only grow for pairs that are masked.

*Edge* tiles need no logarithm and cannot underflow either: a weight there is the sum over components of exp(s + log p -
gamma u - m), where m follows the largest of these exponents, within log R of s + log K.
"""

import functools
import math
import types
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from ehrwear_jax.ops.kernel_attention import tiles
from ehrwear_jax.ops.kernel_attention.triton_program import EDGE, LOWEST, MASKED, PLAIN, Program, Static

# Bounds exponents of factors that no visible pair has: exp(60) times a square of such still is a number.
MOST_EXPONENT = 60.0


class Tile:
    """One tile: s, and what K is there. Plain and masked tiles of a mixture have factors, all others u."""

    def __init__(self, program: Program, query: types.SimpleNamespace, key: types.SimpleNamespace, form: str) -> None:
        self.program, self.query, self.key = program, query, key
        self.of_query, self.exp, ref = program.of_query, program.exp, program.ref
        self.kind, self.n = program.static.spec.kind, program.static.n_component
        self.factored, self.masked = self.kind == "mixture" and form != EDGE, form == MASKED
        self.s = program.product(query.q, key.k)
        if query.extra is not None:
            self.s += program.product(query.extra, key.extra)
        if program.static.spec.post_scale != 1.0:
            self.s *= program.static.spec.post_scale
        if form != PLAIN:
            start, stop = ref.start[query.at], ref.stop[query.at]
            position = program.of_key(key.index)
            visible = (position >= self.of_query(start)) & (position < self.of_query(stop))
            self.s = jnp.where(visible, self.s, -jnp.inf)
        if self.masked:
            self._mask_factors(stop)
        elif self.factored:
            self.h = jnp.maximum(query.newest - key.c, 0.0)
            log_a = query.row - query.rate * self.h[:, None]
            self.kappa = jnp.max(log_a, axis=1)
            self.a = self.exp(log_a, self.kappa[:, None])
        elif self.kind != "none":
            time, newest = ref.q_time[query.at], ref.newest[query.at]
            known = jnp.minimum(program.of_key(ref.time[key.at]), self.of_query(time))
            self.u = jnp.maximum(self.of_query(newest) - known, 0.0)
            rows, self.rates = zip(*((ref.row[query.at, r], ref.head[r]) for r in range(self.n)), strict=True)
            self.rows = [self.of_query(x) for x in rows]
            if self.kind == "quadratic":
                self.ratio = self.u * (2.0 * self.of_query(time - newest) + self.u) / self.rows[0]

    def _mask_factors(self, stop):
        """h, kappa and A of a masked tile, and which components are not in A."""
        program, query, ref = self.program, self.query, self.program.ref
        block = program.static.block_k
        low = self.key.block * block
        self.h = query.newest - ref.c[jnp.clip(stop - 1, low, low + block - 1)]
        self.least = jnp.maximum(self.h, 0.0)
        self.kappa = jnp.max(query.row - query.rate * self.least[:, None], axis=1)
        exponent = query.row - query.rate * self.h[:, None] - self.kappa[:, None]
        blocks = (self.key.block, query.block) if program.static.by_key else (query.block, self.key.block)
        self.span = ref.span[blocks]
        self.direct = query.rate * self.span > program.static.reach
        self.a = self.exp(jnp.minimum(exponent, jnp.where(self.direct, LOWEST, MOST_EXPONENT)))

    def _by_direct(self, add, carry):
        """add(r, carry) over the components that are not in A."""
        for r in range(self.n):
            is_direct = self.program.ref.head[r] * self.span > self.program.static.reach
            carry = jax.lax.cond(is_direct, functools.partial(add, r), lambda x: x, carry)
        return carry

    def _element(self, r):
        """u, and p_r exp(-gamma_r u - kappa), which is at most 1 where nothing is seen."""
        program, ref, base = self.program, self.program.ref, self.program.base
        time = program.of_key(ref.time[self.key.at])
        u = jnp.maximum(self.of_query(self.query.newest) - time, self.of_query(self.least))
        row = self.of_query((ref.row[self.query.at, r] - self.kappa) * base)
        return u, program.raised(row - ref.head[r] * base * u)

    def factor(self) -> jax.Array:
        """K relative to exp(kappa)."""
        product = self._product()
        return self._by_direct(lambda r, x: x + self._element(r)[1], product) if self.masked else product

    def _product(self):
        """sum_r A_ir b_jr; halves of A stand (high, high, low), those of b (high, low, high)."""
        n, column = self.n, self.program.column()[None]
        if not self.program.static.narrow:
            return self.program.product(jnp.where(column < n, self.a, 0.0), self.key.b)
        high = self.program.rounded(self.a)
        split = jnp.where(column < 2 * n, high, jnp.where(column < 3 * n, self.a - high, 0.0))
        return self.program.product(split.astype(jnp.bfloat16), self.key.b)

    def exponents(self) -> Iterator[jax.Array]:
        """s + log p_r - gamma_r u of each component r."""
        return (self.s + (row - rate * self.u) for row, rate in zip(self.rows, self.rates, strict=True))

    def logit(self) -> jax.Array:
        """s + log K."""
        return self.s if self.kind == "none" else self.s - self.rates[0] * jnp.log1p(self.ratio)

    def highest(self) -> jax.Array:
        """[Q]: what the running maximum follows. Tiles [Q, K]."""
        if self.factored:
            return jnp.max(self.s, axis=1) + self.kappa
        reach = functools.reduce(jnp.maximum, self.exponents()) if self.kind == "mixture" else self.logit()
        return jnp.max(reach, axis=1)

    def weights(self, less_Q: jax.Array) -> tuple[jax.Array | None, jax.Array | None, jax.Array]:
        """(exp(s - less) relative to K's factor, that factor or None, the weights exp(s - less) K)."""
        if self.factored:
            e, factor = self.exp(self.s, self.of_query(less_Q - self.kappa)), self.factor()
            return e, factor, e * factor
        less = self.of_query(less_Q)
        if self.kind == "mixture":
            return None, None, functools.reduce(jnp.add, (self.exp(x, less) for x in self.exponents()))
        return None, None, self.exp(self.logit(), less)

    def derivative(self) -> tuple[jax.Array, jax.Array, Callable[[], tuple[jax.Array, jax.Array]]]:
        """Tiles of weights before dropout and of dS; (y, d_head) [Q, C], see `query_gradients`, when called."""
        program, query = self.program, self.query
        e, factor, weight = self.weights(query.log_sum_exp)
        value = program.kept(program.product(query.d_out, self.key.v), query, self.key) * program.static.scale
        value -= self.of_query(query.delta)
        if e is None or factor is None:
            return weight, weight * value, lambda: self._summed(weight, value)
        w = e * value
        return weight, w * factor, lambda: self._contracted(w)

    def _contracted(self, w):
        """W of a factored tile against b, b - 1 of near keys (else b), b (c - t), and 1 of near keys; see `tiles`."""
        program, query, n, column = self.program, self.query, self.n, self.program.column()[None]
        # sum_r p_r y_r must vanish with b - 1 and expm1(-gamma h), digit by digit, where K is near 1
        scale = jnp.maximum(self.kappa, math.log(tiles.NEAR))[:, None]
        change = -query.rate * self.h[:, None]
        if self.masked:
            change = jnp.minimum(change, MOST_EXPONENT)
        start = program.expm1(change, self.exp(query.row, scale), self.a)
        found = program.dot(w, program.ref.contracted[:, self.key.at], 1)
        start *= jnp.sum(jnp.where(column == 3 * n, found, 0.0), axis=1)[:, None]
        if self.masked:
            start = jnp.where(self.direct, 0.0, start)
        sums = self.a * found
        near = self.kappa[:, None] > math.log(tiles.NEAR)
        y = jnp.where((column < n) & ~near, sums, 0.0)
        y += jnp.where((column >= n) & (column < 2 * n) & near, sums + start, 0.0)
        head = -jnp.where(column < n, self.h[:, None] * sums, jnp.where(column >= 2 * n, sums, 0.0))
        return self._by_direct(functools.partial(self._add_direct, w), (y, head)) if self.masked else (y, head)

    def _add_direct(self, w, r, sums):
        """The sums of `_contracted` with a component that is not in A, in rows that no gap keeps from their newest key.

        Nothing there multiplies what p_r (exp(-gamma_r u) - 1) would lose as a plain difference.
        """
        program, column = self.program, self.program.column()[None]
        u, share = self._element(r)
        share = share * w
        near = program.of_key(program.ref.contracted[3 * self.n, self.key.at])
        p = self.exp(program.ref.row[self.query.at, r], self.kappa)
        p = jnp.where(self.kappa > math.log(tiles.NEAR), p, 0.0)
        y = jnp.sum(share, axis=1) - p * jnp.sum(w * near, axis=1)
        head = jnp.sum(share * u, axis=1)
        return tuple(x + jnp.where(column == r, more[:, None], 0.0) for x, more in zip(sums, (y, -head), strict=True))

    def _summed(self, weight, value):
        """Component by component; K = weight / e."""
        program, column = self.program, self.program.column()[None]
        y = head = jnp.zeros((weight.shape[0], program.static.n_column), jnp.float32)
        less = self.of_query(self.query.log_sum_exp)
        exponents: list[Any] = list(self.exponents()) if self.kind == "mixture" else [None]
        for r, x in enumerate(exponents):
            if x is not None:
                e, share = self.exp(self.s, less), self.exp(x, less)
                decay = -self.rates[r] * self.u
                near = e * program.expm1(decay, self.exp(self.rows[r]), self.exp(self.rows[r] + decay))
                to_y, to_head = jnp.where(weight > tiles.NEAR * e, near, share), share * self.u
            else:
                to_y, to_head = weight * self.ratio / (1.0 + self.ratio), weight * jnp.log1p(self.ratio)
            y += jnp.where(column == r, jnp.sum(value * to_y, axis=1)[:, None], 0.0)
            head -= jnp.where(column == r, jnp.sum(value * to_head, axis=1)[:, None], 0.0)
        return y, head


# ------------------------------------------------------------------------------------------------------------ kernels


def forward(static: Static, ref: types.SimpleNamespace) -> None:
    """The output of one query block, its log-sum-exp, and whether a row's sum was too small to be trusted."""
    program = Program(static, ref)
    query = program.query(program.block * static.block_q, static.block_q)

    def step(first, size, carry, form):
        peak, total, acc = carry
        key = program.key(first, size, form)
        tile = Tile(program, query, key, form)
        new = jnp.maximum(peak, tile.highest())
        # the sum is of what the product sees: a weight near 1 must not be off by its rounding, nor thereby all of dS
        weight = program.rounded(tile.weights(new)[2])
        shrink = program.exp(peak - new)
        value = program.dot(program.kept(weight, query, key).astype(static.dtype), key.v)
        return new, total * shrink + jnp.sum(weight, axis=1), acc * shrink[:, None] + value

    zero = jnp.zeros((static.block_q,), jnp.float32)
    acc = jnp.zeros((static.block_q, ref.v.shape[1]), jnp.float32)
    start = (zero + LOWEST, zero, acc)
    found = _, total, _ = program.visit(step, start)
    sees = ref.stop[query.at] > ref.start[query.at]
    ref.lost[program.block] = lost = jnp.max((sees & (total < tiles.SMALLEST_SUM)).astype(jnp.int32))
    if static.spec.kind == "mixture":
        # factors that underflow together with the weights of all keys of a row
        found = tuple(jnp.where(lost > 0, x, y) for x, y in zip(start, found, strict=True))
        found = program.again(step, found, lost > 0)
    peak, total, acc = found
    found = sees & (total > 0)
    safe = jnp.where(found, total, 1.0)
    out = jnp.where(found[:, None], acc * (static.scale / safe)[:, None], 0.0)
    high = program.rounded(out)
    ref.out[query.at, :] = high.astype(static.dtype)
    if static.narrow:
        ref.low[query.at, :] = (out - high).astype(static.dtype)
    ref.log_sum_exp[query.at] = jnp.where(found, peak + jnp.log(safe), -jnp.inf)


def query_gradients(static: Static, ref: types.SimpleNamespace) -> None:
    """Gradients of one query block: dq, d_row, and d_head summed over its rows.

    d_row of a mixture is y_r - p_r sum_r y_r, with y the sum over keys of dS times the component's share of K, or of
    dS / K times p_r (exp(-gamma_r u) - 1) where K is near 1; both differ by a multiple of p.
    """
    program, kind = Program(static, ref), static.spec.kind
    query = program.query(program.block * static.block_q, static.block_q)

    def step(first, size, carry, form):
        key = program.key(first, size, form)
        _, d_score, by_component = Tile(program, query, key, form).derivative()
        more = [program.dot(d_score.astype(static.dtype), key.k)]
        if kind != "none":
            more += by_component()
        return tuple(x + y for x, y in zip(carry, more, strict=True))

    zeros = [jnp.zeros((static.block_q, static.n_column), jnp.float32)] * (2 * (kind != "none"))
    dq, *sums = program.visit(step, (jnp.zeros(query.q.shape, jnp.float32), *zeros), ref.lost[program.block] > 0)
    ref.dq[query.at, :] = dq.astype(static.dtype)
    if kind == "none":
        return
    column, n = program.column()[None], static.n_component
    y, head = (
        [jnp.sum(jnp.where((jax.lax.rem(column, n) == r) & (column < 3 * n), x, 0.0), axis=1) for r in range(n)]
        for x in sums
    )
    for r in range(n):
        row = ref.row[query.at, r]
        ref.d_row[r, query.at] = y[r] - jnp.exp(row) * sum(y) if kind == "mixture" else y[r] * ref.head[0] / row
        ref.d_head[r, program.block] = jnp.sum(head[r])


def key_gradients(static: Static, ref: types.SimpleNamespace) -> None:
    """Gradients of one key block: dk, dv, d_extra_k."""
    program = Program(static, ref)
    key = program.key(program.block * static.block_k, static.block_k)

    def step(first, size, carry, form):
        query = program.query(first, size, form)
        weight, d_score, _ = Tile(program, query, key, form).derivative()
        d_score = d_score.astype(static.dtype)
        more = [program.dot(d_score, query.q)]
        more.append(program.dot(program.kept(weight, query, key).astype(static.dtype), query.d_out))
        if static.has_bias:
            more.append(program.dot(d_score, query.extra))
        return tuple(x + y for x, y in zip(carry, more, strict=True))

    names = ["dk", "dv"] + ["d_extra_k"] * static.has_bias
    zeros = tuple(jnp.zeros((static.block_k, getattr(ref, n).shape[1]), jnp.float32) for n in names)
    sums = program.visit(step, zeros, ref.lost[program.block] > 0)
    for name, x in zip(names, sums, strict=True):
        x = x * static.scale if name == "dv" else x
        getattr(ref, name)[key.at, :] = x.astype(static.dtype)
