"""Makes convolutions over time whose kernels carry the logical names of their axes, and batch norm of what is there.

Axes: R pieces of signal, S samples or frames, D features.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from ehrwear_jax.models.layers.dense import named

_he = nn.initializers.he_uniform()
READS, WRITES = ("embed", "mlp"), ("mlp", "embed")  # (inputs, outputs) of a block's first and last product


def conv(
    width: int, kernel: int, axes: tuple[str | None, str | None] = READS, *, stride: int = 1,
    init: Callable = _he, **options: Any,
) -> nn.Conv:  # fmt: skip
    """A convolution [R, S, D] -> [R, ceil(S / stride), width].

    Args:
      kernel: samples; padded with zeros by half of it on either side, if it is odd, whatever the stride.
      options: of flax.linen.Conv.
    """
    padding = options.pop("padding", [(kernel // 2, kernel // 2)])
    return nn.Conv(width, (kernel,), stride, padding=padding, kernel_init=named(init, None, *axes), **options)


class BatchNorm(nn.Module):
    """Batch norm over pieces and frames: statistics of a batch's pieces that are there, at inference those kept.

    Pieces are not mixed at inference. Kept statistics move by a tenth in each step.
    """

    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_RxSxD: jax.Array, there_R: jax.Array, deterministic: bool) -> jax.Array:
        """there_R: bool, which pieces are some; x may lack the axis of frames. Under `jax.jit` the batch is global."""
        mask = there_R.reshape(-1, *(1,) * (x_RxSxD.ndim - 1))
        norm = nn.BatchNorm(deterministic, momentum=0.9, epsilon=1e-5, dtype=self.dtype, name="norm")
        return norm(x_RxSxD, mask=mask)
