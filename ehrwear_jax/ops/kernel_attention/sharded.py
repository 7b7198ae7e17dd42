"""Runs kernel attention over the devices of a mesh: batch, heads and sequence may all be split.

Batch rows and heads are independent. Where the *keys'* sequence is split, a device has queries whose keys lie
elsewhere:

    gather: keys, values, bias and key times are gathered (one all-gather each; their gradients come back by one
            reduce-scatter each). Needs room for a whole row's keys, and little else.
    ring:   they travel around the devices (one collective-permute each a step), and partial results are joined by
            their log-sum-exp. Needs room for one part of the keys; only the key times are gathered, which the
            reference time of every row is made of.

Which queries a device has is the layout's business. Late queries of a long context see many keys and early ones few:

    contiguous: one part after the other; the last device has nearly twice the mean to do where a row is one context,
                and as much as the others where rows hold many short ones.
    zigzag:     device i of n computes parts i and 2n - 1 - i of 2n, alike many pairs each: half of its queries travel
                to and from another device (collective-permutes of a part each). Around a ring keys go so too, and each
                step then has as much to do on every device.

The kernel's parameters lie with their heads; their gradients are summed over all other axes (one all-reduce each).
Dropout is that of the whole call, whatever the mesh.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from ehrwear_jax.ops.kernel_attention import reference, zigzag
from ehrwear_jax.ops.kernel_attention.api import kernel_attention
from ehrwear_jax.ops.kernel_attention.fused import no_gradient
from ehrwear_jax.ops.kernel_attention.reference import Kernel

METHODS = ("gather", "ring")
LAYOUTS = ("contiguous", "zigzag")


def sharded_kernel_attention(
    q_BxTxHxD: jax.Array,
    k_BxSxHxD: jax.Array,
    v_BxSxHxD: jax.Array,
    *,
    mesh: Mesh,
    q_spec: PartitionSpec,
    k_spec: PartitionSpec,
    q_time_BxT: jax.Array,
    k_time_BxS: jax.Array,
    kv_range_BxTx2: jax.Array,
    kernel: Kernel,
    source_bias_BxHxMxS: jax.Array | None = None,
    q_modality_BxT: jax.Array | None = None,
    method: str = "gather",
    layout: str = "contiguous",
    **options: Any,
) -> jax.Array:
    """`api.kernel_attention` on global arrays that are split over a mesh.

    Args:
      mesh: a jax.sharding.Mesh. Inside jax.jit the arrays may lie anyhow; XLA moves them to the specs.
      q_spec: PartitionSpec of q [B, T, H, D]; D is not split.
      k_spec: of k and v [B, S, H, D]; B and H as in q_spec, S over at most one mesh axis.
      method: "gather" or "ring", where k_spec splits S.
      layout: "contiguous" or "zigzag", where T lies over the axis that S does; what twice the devices do not divide
        stays contiguous.
      options: further arguments of api.kernel_attention, but return_residuals.

    Returns:
      out_BxTxHxD, split as q_spec says.

    Raises:
      ValueError: specs that disagree, or sizes that the mesh does not divide.
    """
    q_spec, k_spec = (PartitionSpec(*spec, *[None] * (4 - len(spec))) for spec in (q_spec, k_spec))
    batch, queries, heads, _ = q_spec
    keys = k_spec[1]
    if (k_spec[0], k_spec[2]) != (batch, heads) or q_spec[3] is not None or k_spec[3] is not None:
        raise ValueError(f"kernel_attention: q {q_spec} and k {k_spec} must split batch and heads alike, and no depth")
    if isinstance(keys, tuple):
        if len(keys) > 1:
            raise ValueError(f"kernel_attention: keys over several mesh axes {keys}; they can lie over one")
        keys = keys[0] if keys else None
    if method not in METHODS:
        raise ValueError(f"kernel_attention: method {method!r}; there are {METHODS}")
    if layout not in LAYOUTS:
        raise ValueError(f"kernel_attention: layout {layout!r}; there are {LAYOUTS}")
    sizes = {
        "batch": (q_BxTxHxD.shape[0], batch),
        "queries": (q_BxTxHxD.shape[1], queries),
        "heads": (q_BxTxHxD.shape[2], heads),
        "keys": (k_BxSxHxD.shape[1], keys),
    }
    for what, (size, axes) in sizes.items():
        if size % _count(mesh, axes):
            raise ValueError(f"kernel_attention: {size} {what} do not divide over mesh axes {axes}")
    arrays: dict[str, Any] = {
        "q": q_BxTxHxD,
        "k": k_BxSxHxD,
        "v": v_BxSxHxD,
        "q_time": q_time_BxT,
        "k_time": k_time_BxS,
        "kv_range": kv_range_BxTx2,
    }
    n_twice = 2 * _count(mesh, keys)
    turned = layout == "zigzag" and keys is not None and _axes(queries) == _axes(keys)
    turned = turned and q_BxTxHxD.shape[1] % n_twice == 0
    # fields of the batch lie whole on every device, which takes its own parts
    of_queries = None if turned else queries
    specs = {
        "q": q_spec,
        "k": k_spec,
        "v": k_spec,
        "q_time": PartitionSpec(batch, of_queries),
        "k_time": PartitionSpec(batch, k_spec[1]),
        "kv_range": PartitionSpec(batch, of_queries, None),
    }
    if source_bias_BxHxMxS is not None:
        arrays |= {"bias": source_bias_BxHxMxS, "modality": q_modality_BxT}
        specs |= {"bias": PartitionSpec(batch, heads, None, k_spec[1]), "modality": PartitionSpec(batch, of_queries)}
    key = options.pop("dropout_key", None)
    if key is not None:
        arrays["seed"], specs["seed"] = reference.dropout_seed(key), PartitionSpec(None)
    kernel_spec = jax.tree.map(lambda x: PartitionSpec(heads, *[None] * (x.ndim - 1)), kernel)
    turns = layout == "zigzag" and k_BxSxHxD.shape[1] % n_twice == 0
    split = _Split(mesh, batch, queries, heads, keys, method, (turned, turns))
    local = functools.partial(_local, split=split, options=options)
    # check_vma cannot look into a custom derivative with Pallas inside; replicated inputs get summed gradients anyway
    return jax.shard_map(local, mesh=mesh, in_specs=(specs, kernel_spec), out_specs=q_spec, check_vma=False)(
        arrays, kernel
    )


@dataclasses.dataclass(frozen=True)
class _Split:
    """Over which mesh axes each dimension lies; zigzag: whether queries, and keys that go around, lie so."""

    mesh: Mesh
    batch: Any
    queries: Any
    heads: Any
    keys: str | None
    method: str
    zigzag: tuple[bool, bool]

    @property
    def n_parts(self) -> int:
        """Devices among which a row's keys are divided."""
        return _count(self.mesh, self.keys)


def _axes(axes):
    return () if axes is None else axes if isinstance(axes, tuple) else (axes,)


def _count(mesh, axes):
    count = 1
    for axis in _axes(axes):
        count *= mesh.shape[axis]
    return count


def _first(axes, size):
    """Global index of this device's first entry along a dimension that is split over `axes`."""
    return jax.lax.axis_index(_axes(axes)) * size if _axes(axes) else jnp.int32(0)


QUERIES = {"q": 1, "q_time": 1, "kv_range": 1, "modality": 1}  # what belongs to queries, and along which axis


def _local(arrays, kernel, *, split, options):
    """What one device does with its parts."""
    n_query, keys, n = arrays["q"].shape[1], split.keys, split.n_parts
    first = _first(split.batch, arrays["q"].shape[0]), _first(split.heads, arrays["q"].shape[2])
    starts = [_first(split.queries, n_query)]
    if split.zigzag[0]:
        n_query //= 2
        starts = zigzag.starts(jax.lax.axis_index(keys), n, n_query)
        mine = {"q": zigzag.spread(arrays["q"], keys, n, 1)}
        for name in QUERIES.keys() & arrays.keys() - mine.keys():
            parts = [jax.lax.dynamic_slice_in_dim(arrays[name], start, n_query, axis=1) for start in starts]
            mine[name] = jnp.concatenate(parts, axis=1)
        arrays = arrays | mine
    if keys is not None and n > 1 and split.method == "ring":
        out = _ring(arrays, kernel, (first, starts), split, options)
    else:
        if keys is not None:
            gather = functools.partial(jax.lax.all_gather, axis_name=keys, tiled=True)
            arrays = arrays | {name: gather(arrays[name], axis=1) for name in ("k", "v", "k_time")}
            if "bias" in arrays:
                arrays = arrays | {"bias": gather(arrays["bias"], axis=3)}
        parts = [
            _attend(part, kernel, (*first, start, 0), options)
            for part, start in zip(_parts(arrays, QUERIES, len(starts)), starts, strict=True)
        ]
        out = jnp.concatenate(parts, axis=1)
    return zigzag.collected(out, keys, n, 1) if split.zigzag[0] else out


def _parts(arrays, axes, n):
    """The arrays n times, each with one of the n equal parts of those that `axes` names."""
    cut = {name: jnp.split(arrays[name], n, axis=axis) for name, axis in axes.items() if name in arrays}
    return [arrays | {name: parts[i] for name, parts in cut.items()} for i in range(n)]


def _attend(arrays, kernel, first_index, options):
    return kernel_attention(
        arrays["q"],
        arrays["k"],
        arrays["v"],
        q_time_BxT=arrays["q_time"],
        k_time_BxS=arrays["k_time"],
        kv_range_BxTx2=arrays["kv_range"],
        kernel=kernel,
        source_bias_BxHxMxS=arrays.get("bias"),
        q_modality_BxT=arrays.get("modality"),
        first_index=first_index,
        dropout_key=arrays.get("seed"),
        **options,
    )


def _ring(arrays, kernel, first, split, options):
    """Attention to the keys of all devices of `axis`, part by part."""
    axis, n_device, (first, query_starts) = split.keys, split.n_parts, first
    travelling = {name: dim for name, dim in (("k", 1), ("v", 1), ("bias", 3)) if name in arrays}
    all_times = jax.lax.all_gather(arrays["k_time"], axis, axis=1, tiled=True)
    newest = reference.newest_visible(all_times, arrays["kv_range"])
    constants = {n: x for n, x in arrays.items() if n not in (*travelling, "q", "k_time")}
    constants |= {"all_times": all_times, "newest": newest, "first": jnp.stack(first), "me": jax.lax.axis_index(axis)}
    constants["starts"] = jnp.stack(query_starts)
    around = {name: arrays[name] for name in travelling}
    if split.zigzag[1]:
        around = {name: zigzag.spread(x, axis, n_device, travelling[name]) for name, x in around.items()}
    n_kinds = 1 + split.zigzag[1]
    n_part = arrays["k"].shape[1] // n_kinds
    onward = [(i, (i + 1) % n_device) for i in range(n_device)]

    def part(q, moving, kernel, constants, step, kind):
        """(out, log_sum_exp) of a part of the keys that have come here after `step` steps."""
        origin = (constants["me"] - step) % n_device
        start = zigzag.starts(origin, n_device, n_part)[kind] if n_kinds > 1 else origin * n_part
        keys = constants | _parts(moving, travelling, n_kinds)[kind] | {"q": q}
        keys["k_time"] = jax.lax.dynamic_slice_in_dim(constants["all_times"], start, n_part, axis=1)
        keys["kv_range"] = jnp.clip(constants["kv_range"] - start, 0, n_part)
        found = []
        for i, piece in enumerate(_parts(keys, QUERIES | {"newest": 1}, len(query_starts))):
            more = {"newest_time_BxT": piece["newest"], "return_residuals": True}
            found.append(_attend(piece, kernel, (*constants["first"], constants["starts"][i], start), options | more))
        out, log_sum_exp = (jnp.concatenate(x, axis=k) for k, x in enumerate(zip(*found, strict=True), start=1))
        return out.astype(jnp.promote_types(out.dtype, jnp.float32)), log_sum_exp

    def pass_on(moving):
        return jax.tree.map(lambda x: jax.lax.ppermute(x, axis, onward), moving)

    def forward(q, moving, kernel, constants):
        def step(carry, i):
            out, log_sum_exp, moving = carry
            for kind in range(n_kinds):
                more, log_more = part(q, moving, kernel, constants, i, kind)
                joined = jnp.logaddexp(log_sum_exp, log_more)
                out = _share(log_sum_exp, joined) * out + _share(log_more, joined) * more
                log_sum_exp = joined
            return (out, log_sum_exp, pass_on(moving)), None

        dtype = jnp.promote_types(q.dtype, jnp.float32)
        start = jnp.zeros((*q.shape[:3], moving["v"].shape[-1]), dtype)
        nothing = jnp.full((q.shape[0], q.shape[2], q.shape[1]), -jnp.inf, dtype)
        (out, log_sum_exp, _), _ = jax.lax.scan(step, (start, nothing, moving), jnp.arange(n_device))
        return out, log_sum_exp

    @jax.custom_vjp
    def ring(q, moving, kernel, constants):
        return forward(q, moving, kernel, constants)[0].astype(q.dtype)

    def ring_fwd(q, moving, kernel, constants):
        out, log_sum_exp = forward(q, moving, kernel, constants)
        return out.astype(q.dtype), (q, moving, kernel, constants, out, log_sum_exp)

    def ring_bwd(saved, d_out):
        """Once more around, each part's gradients travelling with its keys until they are home again."""
        q, moving, kernel, constants, out, log_sum_exp = saved
        d_out = d_out.astype(out.dtype)
        mean = jnp.sum(d_out * out, axis=-1)

        def step(carry, i):
            dq, d_kernel, moving, d_moving = carry
            add = functools.partial(jax.tree.map, lambda a, b: a + b.astype(a.dtype))
            for kind in range(n_kinds):
                run = functools.partial(part, constants=constants, step=i, kind=kind)
                (more, log_more), pull = jax.vjp(run, q, moving, kernel)
                share = _share(log_more, log_sum_exp)
                d_log = jnp.moveaxis(share[..., 0] * (jnp.sum(d_out * more, axis=-1) - mean), 1, 2)
                to_q, to_moving, to_kernel = pull((share * d_out, d_log))
                dq, d_kernel, d_moving = add(dq, to_q), add(d_kernel, to_kernel), add(d_moving, to_moving)
            return (dq, d_kernel, *pass_on((moving, d_moving))), None

        wide = functools.partial(jax.tree.map, lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)))
        start = (wide(q), wide(kernel), moving, wide(moving))
        (dq, d_kernel, _, d_moving), _ = jax.lax.scan(step, start, jnp.arange(n_device))
        narrow = functools.partial(jax.tree.map, lambda g, x: g.astype(x.dtype))
        return narrow(dq, q), narrow(d_moving, moving), narrow(d_kernel, kernel), jax.tree.map(no_gradient, constants)

    ring.defvjp(ring_fwd, ring_bwd)
    return ring(arrays["q"], around, kernel, constants)


def _share(log_part_BxHxT, log_whole_BxHxT):
    """Weight of a part in the whole, [B, T, H, 1]; 0 for an empty part."""
    share = jnp.where(jnp.isfinite(log_part_BxHxT), jnp.exp(log_part_BxHxT - log_whole_BxHxT), 0.0)
    return jnp.moveaxis(share, 1, 2)[..., None]
