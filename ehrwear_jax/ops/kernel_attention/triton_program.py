"""Holds what programs of `triton` share: what they know, loads, the loops over tiles, arithmetic.

Only what Pallas lowers to Triton is used: no slice or index of an array, no concatenation, sizes that are powers of
two.
"""

import dataclasses
import math
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ehrwear_jax.ops.kernel_attention import fused, reference

try:
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton as plgpu
except ImportError:  # deprecated since JAX 0.11
    pl = plgpu = None  # type: ignore[assignment]

LOG2E = 1.4426950408889634
# Stand-ins for infinities, whose differences are no number.
LOWEST, HIGHEST = -1e30, 1e30


Carry = tuple[jax.Array, ...]
# The class of a tile: all rows see all of it, and K factors; some do not, and components of K factor where they can; K
# is taken element by element.
PLAIN, MASKED, EDGE = "plain", "masked", "edge"
Step = Callable[[jax.Array, int, Carry, str], Carry]  # (first, size, carry, class) -> carry


def power(n: int) -> int:
    """The power of two from 16 that holds n."""
    return max(16, 1 << (n - 1).bit_length())


@dataclasses.dataclass(frozen=True)
class Tuning:
    """Sizes of one kernel.

    Attributes:
      block_q, block_k: rows and columns of a plain tile, powers of two from 16.
      num_warps: of a program. num_stages: depth of the pipeline of its loops.
      edge: width of tiles that take K element by element, along the kernel's loop; narrow ones leave registers free.
      masked: width of tiles that are factored but not seen whole by all rows.
      reach: largest gamma (c - n) of a component whose factors a masked tile takes, see `triton_inputs`; they grow and
        fall by exp(reach). Other components are taken element by element.
    """

    block_q: int
    block_k: int
    num_warps: int = 4
    num_stages: int = 2
    edge: int = 32
    masked: int = 64
    reach: int = 32


@dataclasses.dataclass(frozen=True)
class Static:
    """What a kernel knows when it is compiled.

    Attributes:
      spec: of the problem. dtype: of q, k, v. n_component: R. has_bias: there are extra columns.
      block_q, block_k, edge, masked, reach: see `Tuning`; masked tiles are a whole number of `edge` wide.
      by_key: it computes gradients of keys, in tiles [K, Q].
    """

    spec: fused.Spec
    block_q: int
    block_k: int
    edge: int
    masked: int
    dtype: Any
    n_component: int
    has_bias: bool
    by_key: bool = False
    reach: float = 0.0

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

    def query(self, start: int | jax.Array, size: int, form: str = PLAIN) -> types.SimpleNamespace:
        """Queries from `start`, with what tiles of a class need."""
        ref, at = self.ref, pl.ds(start, size)
        q = types.SimpleNamespace(at=at, q=ref.q[at, :], index=start + jax.lax.iota(jnp.int32, size))
        q.extra = ref.extra_q[at, :] if self.static.has_bias else None
        q.block = jax.lax.div(jnp.int32(start), jnp.int32(self.static.block_q))
        if self.static.spec.kind == "mixture" and form != EDGE:
            # row and rate of component c % R in column c
            column = jax.lax.rem(self.column(), self.static.n_component)
            shape = (size, column.size)
            q.row = ref.row[jnp.broadcast_to(q.index[:, None], shape), jnp.broadcast_to(column[None], shape)]
            q.rate, q.newest = ref.head[column][None], ref.newest[at]
        if self.static.spec.dropout_rate > 0.0:
            q.words = ref.row_word[at], ref.row_more[at]
        if hasattr(ref, "d_out"):
            q.d_out, q.log_sum_exp, q.delta = ref.d_out[at, :], ref.log_sum_exp[at], ref.delta[at]
        return q

    def key(self, start: int | jax.Array, size: int, form: str = PLAIN) -> types.SimpleNamespace:
        """Keys from `start`, with what tiles of a class need."""
        ref, at = self.ref, pl.ds(start, size)
        k = types.SimpleNamespace(at=at, k=ref.k[at, :], v=ref.v[at, :], index=start + jax.lax.iota(jnp.int32, size))
        k.extra = ref.extra_k[at, :] if self.static.has_bias else None
        if self.static.spec.dropout_rate > 0.0:
            k.word = ref.column_word[at]
        k.block = jax.lax.div(jnp.int32(start), jnp.int32(self.static.block_k))
        if self.static.spec.kind == "mixture" and form != EDGE:
            k.b, k.c = ref.b[at, :], ref.c[start]
        return k

    def visit(self, step: Step, carry: Carry, direct: bool | jax.Array = False) -> Carry:
        """step(first, size, carry, class) over what this program's block sees, or is seen by; see triton_inputs.bounds.

        direct: take K element by element in all tiles.
        """
        static = self.static
        lo, before, after, hi, start, stop = (self.ref.bounds[self.block, c] for c in range(6))
        size = static.block_q if static.by_key else static.block_k
        form = MASKED if static.spec.kind == "mixture" else EDGE
        n_before, n_masked = before - lo, before - lo + hi - after
        if form == MASKED and direct is not False:
            carry = self.again(step, carry, direct)
            n_masked, stop = jnp.where(direct, 0, n_masked), jnp.where(direct, start, stop)

        def masked(m, carry):
            m = jnp.where(m < n_before, lo + m, after + m - n_before)
            return step(m * static.masked, static.masked, carry, form)

        carry = jax.lax.fori_loop(jnp.int32(0), n_masked, masked, carry)
        return jax.lax.fori_loop(start, stop, lambda m, carry: step(m * size, size, carry, PLAIN), carry)

    def again(self, step: Step, carry: Carry, when: bool | jax.Array) -> Carry:
        """If `when`, step over all that this program's block sees, element by element."""
        lo, hi = (self.ref.bounds[self.block, c] * (self.static.masked // self.static.edge) for c in (0, 3))
        edge = self.static.edge
        return jax.lax.fori_loop(lo, jnp.where(when, hi, lo), lambda m, x: step(m * edge, edge, x, EDGE), carry)

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
            return self.raised(x if less is None else x - less)
        return self.raised(x * LOG2E if less is None else x * LOG2E - less * LOG2E)

    @property
    def base(self) -> float:
        """log of e to the base of `raised`."""
        return LOG2E if self.static.narrow else 1.0

    def raised(self, x: jax.Array) -> jax.Array:
        """2 ** x; e ** x unless narrow."""
        if not self.static.narrow:
            return jnp.exp(x)
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
        """times * (exp(x) - 1), where product = times * exp(x); narrow: to 3e-6."""
        if not self.static.narrow:
            return times * jnp.expm1(x)
        series: jax.Array | float = 1.0 / 720.0
        for n in range(5, 0, -1):
            series = series * x + 1.0 / math.factorial(n)
        return jnp.where(jnp.abs(x) < 0.5, times * x * series, product - times)

    def rounded(self, x: jax.Array) -> jax.Array:
        """x to the precision of the products, in integers: conversions are slow, and there and back may be dropped."""
        if not self.static.narrow:
            return x
        bits = jax.lax.bitcast_convert_type(x, jnp.int32) + jnp.int32(1 << 15)
        return jax.lax.bitcast_convert_type(bits & jnp.int32(-1 << 16), jnp.float32)

    def kept(self, x: jax.Array, query: types.SimpleNamespace, key: types.SimpleNamespace) -> jax.Array:
        """x where dropout leaves it, which is to be divided by 1 - rate."""
        rate = self.static.spec.dropout_rate
        if rate == 0.0:
            return x
        first, second = (self.of_query(word) for word in query.words)
        keep = reference.kept_by((first, second), self.of_key(key.word), rate)
        # in integers: Triton moves Booleans between layouts byte by byte
        bits = jax.lax.bitcast_convert_type(x, jnp.int32) & jnp.where(keep, jnp.int32(-1), jnp.int32(0))
        return jax.lax.bitcast_convert_type(bits, jnp.float32)
