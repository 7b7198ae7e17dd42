"""Reconstructs hidden parts of raw windows: the raw encoder's own share of masked modelling."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ehrwear_jax.models.family import Batch, Field
from ehrwear_jax.models.joint import masking
from ehrwear_jax.models.joint.layout import Contexts
from ehrwear_jax.models.joint.raw_encoder import shown
from ehrwear_jax.models.joint.terms import Arrays, Latents, Loss, Term, take
from ehrwear_jax.models.layers.dense import dense
from ehrwear_jax.models.objective import masked_mean, n_true


class RawDecoder(nn.Module):
    """A raw window from its own vector and z of the wearable window that it lies in."""

    samples: int
    channels: int

    @nn.compact
    def __call__(self, h_BxNxD: jax.Array, z_BxNxE: jax.Array) -> jax.Array:
        """[B, N, S, A], float32."""
        width = h_BxNxD.shape[-1]
        own = dense(4 * width, ("embed", "mlp"), name="own")(h_BxNxD)
        around = dense(4 * width, ("embed", "mlp"), use_bias=False, name="around")(z_BxNxE)
        out = dense(self.samples * self.channels, ("mlp", "embed"), name="out")(nn.gelu(own + around))
        return out.reshape(*h_BxNxD.shape[:2], self.samples, self.channels)


class RawMasked(Term):
    """L_wear^rec (paper, section 3.3) of raw windows: squared error on their hidden, measured samples.

    A share wear_mask of a raw window is hidden, one run of parts (appendix A.4: 25% of 30 s windows), in the contexts
    that have masks. The decoder reads the raw window's vector beside z, for z is not to carry where each wave lies.
    """

    name = "raw_masked"
    needs = ("wear",)
    targets = {"raw_mask": Field("NV", np.bool_, False, "parts of a raw window that are hidden")}

    def has_targets(self) -> bool:
        return self.facts.raw_samples > 0 and self.config.network.raw_width > 0

    def fill(self, batch: Batch, c: Contexts) -> None:
        n_parts, n_raw_B = batch["raw_mask"].shape[2], (batch["raw_window"] >= 0).sum(axis=1)
        slot_C, n_windows_C, row_C = c.in_row(c.bound_M), np.diff(c.bound_M), c.row_C.tolist()
        for k in np.flatnonzero(c.hides_C).tolist():
            r = row_C[k]
            # raw windows lie in the order of their windows, and these in that of their contexts
            of_windows = batch["raw_window"][r, : n_raw_B[r]]
            mine = slice(*np.searchsorted(of_windows, [slot_C[k], slot_C[k] + n_windows_C[k]]).tolist())
            hidden = masking.mask_patches(c.rngs[k], mine.stop - mine.start, n_parts, self.config.context.wear_mask)
            shown_N = np.asarray(batch["raw_observed"][r, mine].any(axis=(1, 2)))
            batch["raw_mask"][r, mine] = hidden & shown_N[:, None]

    def head(self) -> nn.Module:
        return RawDecoder(self.facts.raw_samples, self.facts.raw_channels)

    def predict(self, network: nn.Module, head: Any, z: Latents, batch: Arrays) -> Any:
        window_BxN = jnp.maximum(batch["raw_window"], 0)
        position_BxN = jnp.take_along_axis(batch["window_position"], window_BxN, axis=1)
        return head(z.raw_BxNxD, take(z.token_BxTxD, position_BxN))

    def normaliser(self, batch: Arrays) -> jax.Array:
        return n_true(_hidden(batch))

    def loss(self, out: Any, batch: Arrays, normaliser: Any) -> Loss:
        mask = _hidden(batch)
        return masked_mean(jnp.square(out - batch["raw"]), mask, normaliser), {"count": n_true(mask)}


def _hidden(batch):
    return batch["raw_observed"] & ~shown(batch)


TERMS = (RawMasked,)
