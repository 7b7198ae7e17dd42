"""Computes what the kernels of `triton` are made of: what one program reads, one tile, and the loops over tiles.

Only what Pallas lowers to Triton is used: no slice or index of an array, no concatenation, sizes that are powers of
two. Tiles that are not plain need no logarithm and cannot underflow either: a weight there is the sum over components
of exp(s + log p - gamma u - m), where m follows the largest of these exponents, within log R of s + log K.
"""

import dataclasses
import functools
import math
import types
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from ehrwear_jax.ops.kernel_attention import fused, reference, tiles

try:
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton as plgpu
except ImportError:  # deprecated since JAX 0.11
    pl = plgpu = None  # type: ignore[assignment]

LOG2E = 1.4426950408889634
# Stand-ins for infinities, whose differences are no number.
LOWEST, HIGHEST = -1e30, 1e30


Carry = tuple[jax.Array, ...]
Step = Callable[[jax.Array, int, Carry, bool], Carry]  # (first, size, carry, edge) -> carry


def power(n: int) -> int:
    """The power of two from 16 that holds n."""
    return max(16, 1 << (n - 1).bit_length())


@dataclasses.dataclass(frozen=True)
class Static:
    """What a kernel knows when it is compiled.

    Attributes:
      spec: of the problem. dtype: of q, k, v. n_component: R. has_bias: there are extra columns.
      block_q, block_k, edge: see triton.Tuning.
      by_key: it computes gradients of keys, in tiles [K, Q].
    """

    spec: fused.Spec
    block_q: int
    block_k: int
    edge: int
    dtype: Any
    n_component: int
    has_bias: bool
    by_key: bool = False

    @property
    def narrow(self) -> bool:
        return self.dtype == jnp.bfloat16

    @property
    def scale(self) -> float:
        """Of what dropout leaves."""
        return 1.0 / (1.0 - self.spec.dropout_rate)

    @property
    def n_column(self) -> int:
        """C: columns for three sets of components and one; component r is in all columns c < 3 R with c % R = r."""
        return power(3 * self.n_component + 1)


class Program:
    """One program of a kernel: references by name, loads, arithmetic. Tiles are [Q, K], or [K, Q] by key."""

    def __init__(self, static: Static, ref: types.SimpleNamespace) -> None:
        self.static, self.ref = static, ref
        # not inside of loops, where interpretation does not know them
        self.block, self.head, self.batch = (pl.program_id(n) for n in range(3))
        # query blocks in reverse: the last ones see most under causal ranges, so they begin
        self.block = self.block if static.by_key else pl.num_programs(0) - 1 - self.block

    def column(self) -> jax.Array:
        return jax.lax.iota(jnp.int32, self.static.n_column)

    def query(self, start: int | jax.Array, size: int, edge: bool = False) -> types.SimpleNamespace:
        """Queries from `start`, with what plain tiles need unless at the edge alone."""
        ref, at = self.ref, pl.ds(start, size)
        q = types.SimpleNamespace(at=at, q=ref.q[at, :], index=start + jax.lax.iota(jnp.int32, size))
        q.extra = ref.extra_q[at, :] if self.static.has_bias else None
        if self.static.spec.kind == "mixture" and not edge:
            # row and rate of component c % R in column c
            column = jax.lax.rem(self.column(), self.static.n_component)
            shape = (size, column.size)
            q.row = ref.row[jnp.broadcast_to(q.index[:, None], shape), jnp.broadcast_to(column[None], shape)]
            q.rate, q.newest = ref.head[column][None], ref.newest[at]
        if hasattr(ref, "d_out"):
            q.d_out, q.log_sum_exp, q.delta = ref.d_out[at, :], ref.log_sum_exp[at], ref.delta[at]
        return q

    def key(self, start: int | jax.Array, size: int, edge: bool = False) -> types.SimpleNamespace:
        """Keys from `start`, with what plain tiles need unless at the edge alone."""
        ref, at = self.ref, pl.ds(start, size)
        k = types.SimpleNamespace(at=at, k=ref.k[at, :], v=ref.v[at, :], index=start + jax.lax.iota(jnp.int32, size))
        k.extra = ref.extra_k[at, :] if self.static.has_bias else None
        if self.static.spec.kind == "mixture" and not edge:
            k.b, k.c = ref.b[at, :], ref.c[jax.lax.div(start, size)]
        return k

    def visit(self, step: Step, carry: Carry, direct: bool | jax.Array = False) -> Carry:
        """step(first, size, carry, edge) over what this program's block sees, or is seen by; see triton._bounds.

        direct: as if no tile were plain.
        """
        static = self.static
        lo, before, after, hi, start, stop = (self.ref.bounds[self.block, c] for c in range(6))
        before, after, stop = (jnp.where(direct, x, y) for x, y in ((hi, before), (hi, after), (start, stop)))
        size = static.block_q if static.by_key else static.block_k

        def at_edge(m, carry):
            m = jnp.where(m < before - lo, lo + m, after + m - (before - lo))
            return step(m * static.edge, static.edge, carry, True)

        carry = jax.lax.fori_loop(jnp.int32(0), before - lo + hi - after, at_edge, carry)
        return jax.lax.fori_loop(start, stop, lambda m, carry: step(m * size, size, carry, False), carry)

    def again(self, step: Step, carry: Carry, when: jax.Array) -> Carry:
        """If `when`, step over all that this program's block sees, from the start."""
        lo, hi = self.ref.bounds[self.block, 0], self.ref.bounds[self.block, 3]
        edge = self.static.edge
        return jax.lax.fori_loop(lo, jnp.where(when, hi, lo), lambda m, x: step(m * edge, edge, x, True), carry)

    # --------------------------------------------------------------------------------------------------- arithmetic

    def of_query(self, x_Q: jax.Array) -> jax.Array:
        return x_Q[None, :] if self.static.by_key else x_Q[:, None]

    def of_key(self, x_K: jax.Array) -> jax.Array:
        return x_K[:, None] if self.static.by_key else x_K[None, :]

    def dot(self, a: jax.Array, b: jax.Array, b_axis: int = 0) -> jax.Array:
        """a [M, N] times b [N, L], or b [L, N] when b_axis is 1; with TensorFloat-32 in narrow kernels."""
        precision = None if self.static.narrow else jax.lax.Precision.HIGHEST
        return jax.lax.dot_general(
            a, b, (((1,), (b_axis,)), ((), ())), precision=precision, preferred_element_type=jnp.float32
        )

    def product(self, query: jax.Array, key: jax.Array) -> jax.Array:
        """A tile of inner products."""
        return self.dot(key, query, 1) if self.static.by_key else self.dot(query, key, 1)

    def exp(self, x: jax.Array, less: jax.Array | None = None) -> jax.Array:
        """exp(x - less); narrow: in one multiply-add and one instruction of the special function unit."""
        if not self.static.narrow:
            return jnp.exp(x if less is None else x - less)
        x = x * LOG2E if less is None else x * LOG2E - less * LOG2E
        if self.static.spec.options.interpret:
            return jnp.exp2(x)
        (y,) = plgpu.elementwise_inline_asm(
            "ex2.approx.ftz.f32 $0, $1;",
            args=[x],
            constraints="=f,f",
            pack=1,
            result_shape_dtypes=[jax.ShapeDtypeStruct(x.shape, x.dtype)],
        )
        return y

    def expm1(self, x: jax.Array, times: jax.Array, product: jax.Array) -> jax.Array:
        """times * (exp(x) - 1) for x <= 0, where product = times * exp(x); narrow: to 3e-6."""
        if not self.static.narrow:
            return times * jnp.expm1(x)
        series: jax.Array | float = 1.0 / 720.0
        for n in range(5, 0, -1):
            series = series * x + 1.0 / math.factorial(n)
        return jnp.where(x > -0.5, times * x * series, product - times)

    def rounded(self, x: jax.Array) -> jax.Array:
        """x to the precision of the products, in integers: conversions are slow, and there and back may be dropped."""
        if not self.static.narrow:
            return x
        bits = jax.lax.bitcast_convert_type(x, jnp.int32) + jnp.int32(1 << 15)
        return jax.lax.bitcast_convert_type(bits & jnp.int32(-1 << 16), jnp.float32)

    def kept(self, x: jax.Array, query: types.SimpleNamespace, key: types.SimpleNamespace) -> jax.Array:
        """x where dropout leaves it, which is to be divided by 1 - rate."""
        rate, ref = self.static.spec.dropout_rate, self.ref
        if rate == 0.0:
            return x
        index = (
            ref.first[0] + self.batch,
            ref.first[1] + self.head,
            self.of_query(ref.first[2] + query.index),
            self.of_key(ref.first[3] + key.index),
        )
        keep = reference.dropout_keep((ref.seed[0], ref.seed[1]), *index, rate)
        return jnp.where(keep, x, jnp.zeros_like(x))


class Tile:
    """One tile: s, and what K is there. Plain tiles of a mixture have factors, all others u."""

    def __init__(self, program: Program, query: types.SimpleNamespace, key: types.SimpleNamespace, edge: bool) -> None:
        self.program, self.query, self.key = program, query, key
        self.of_query, self.exp, ref = program.of_query, program.exp, program.ref
        self.kind, self.n = program.static.spec.kind, program.static.n_component
        self.factored = self.kind == "mixture" and not edge
        self.s = program.product(query.q, key.k)
        if query.extra is not None:
            self.s += program.product(query.extra, key.extra)
        if program.static.spec.post_scale != 1.0:
            self.s *= program.static.spec.post_scale
        if edge:
            start, stop, position = self.of_query(ref.start[query.at]), self.of_query(ref.stop[query.at]), key.index
            position = program.of_key(position)
            self.s = jnp.where((position >= start) & (position < stop), self.s, -jnp.inf)
        if self.factored:
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

    def factor(self) -> jax.Array:
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
        """A plain tile's W against b, b - 1 of near keys (b of others), b (c - t), and 1 of near keys; see `tiles`."""
        program, query, n, column = self.program, self.query, self.n, self.program.column()[None]
        # sum_r p_r y_r must vanish with b - 1 and expm1(-gamma h), digit by digit, where K is near 1
        scale = jnp.maximum(self.kappa, math.log(tiles.NEAR))[:, None]
        start = program.expm1(-query.rate * self.h[:, None], self.exp(query.row, scale), self.a)
        found = program.dot(w, program.ref.contracted[:, self.key.at], 1)
        start *= jnp.sum(jnp.where(column == 3 * n, found, 0.0), axis=1)[:, None]
        sums = self.a * found
        near = self.kappa[:, None] > math.log(tiles.NEAR)
        y = jnp.where((column < n) & ~near, sums, 0.0)
        y += jnp.where((column >= n) & (column < 2 * n) & near, sums + start, 0.0)
        return y, -jnp.where(column < n, self.h[:, None] * sums, jnp.where(column >= 2 * n, sums, 0.0))

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

    def step(first, size, carry, edge):
        peak, total, acc = carry
        key = program.key(first, size, edge)
        tile = Tile(program, query, key, edge)
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

    def step(first, size, carry, edge):
        key = program.key(first, size, edge)
        _, d_score, by_component = Tile(program, query, key, edge).derivative()
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

    def step(first, size, carry, edge):
        query = program.query(first, size, edge)
        weight, d_score, _ = Tile(program, query, key, edge).derivative()
        d_score = d_score.astype(static.dtype)
        more = [program.dot(d_score, query.q)]
        more.append(program.dot(program.kept(weight.astype(static.dtype), query, key), query.d_out))
        if static.has_bias:
            more.append(program.dot(d_score, query.extra))
        return tuple(x + y for x, y in zip(carry, more, strict=True))

    names = ["dk", "dv"] + ["d_extra_k"] * static.has_bias
    zeros = tuple(jnp.zeros((static.block_k, getattr(ref, n).shape[1]), jnp.float32) for n in names)
    sums = program.visit(step, zeros, ref.lost[program.block] > 0)
    for name, x in zip(names, sums, strict=True):
        x = x * static.scale if name == "dv" else x
        getattr(ref, name)[key.at, :] = x.astype(static.dtype)
