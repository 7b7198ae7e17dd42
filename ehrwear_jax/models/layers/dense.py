"""Makes products whose parameters carry the logical names of their axes, by which they are sharded and adapted.

Names that every family shares: "embed" the width of the residual stream, "mlp" hidden units, "heads", "depth" of a
head, "token" places of an embedding table, "layers" of a scanned stack. training/sharding.py says which mesh axes they
lie over; layers/lora.py takes a kernel whose first axis is "embed" to read the stream, and one whose last axis is to
write to it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax

LAYERS = "layers"
_lecun = nn.initializers.lecun_normal()


def named(init: Callable, *axes: str | None) -> Callable:
    """An initialiser whose parameter carries these names of its axes."""
    return nn.with_logical_partitioning(init, axes)


def scaled(factor: float) -> Callable:
    """The initialiser of `dense`, normal with variance 1 / fan-in, times a factor."""
    return lambda *arguments: factor * _lecun(*arguments) if factor != 1.0 else _lecun(*arguments)


def dense(
    features: int | Sequence[int],
    axes: tuple[str | None, ...],
    *,
    n_inputs: int = 1,
    kernel_init: Callable = _lecun,
    bias_init: Callable = nn.initializers.zeros,
    **options: Any,
) -> nn.DenseGeneral:
    """A product over the last n_inputs axes.

    Args:
      features: width of the result, or the sizes of its axes.
      axes: names of the kernel's axes, inputs first.
      options: of flax.linen.DenseGeneral, such as dtype, use_bias, name.
    """
    return nn.DenseGeneral(
        features,
        axis=tuple(range(-n_inputs, 0)),
        kernel_init=named(kernel_init, *axes),
        # a bias of the stream lies whole: to gather so little would cost a message a layer and save next to nothing
        bias_init=named(bias_init, *(None if a == "embed" else a for a in axes[n_inputs:])),
        **options,
    )


def embedding(n: int, width: int, axes: tuple[str | None, str | None] = ("token", "embed"), **options: Any) -> nn.Embed:
    """A table of n vectors, normal with standard deviation 0.02."""
    return nn.Embed(n, width, embedding_init=named(nn.initializers.normal(0.02), *axes), **options)


class Mlp(nn.Module):
    """One hidden layer with a GELU: [..., D] -> [..., out]."""

    width: int
    out: int
    out_axis: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = nn.gelu(dense(self.width, ("embed", "mlp"), name="hidden")(x))
        return dense(self.out, ("mlp", self.out_axis or "embed"), name="out")(hidden)
