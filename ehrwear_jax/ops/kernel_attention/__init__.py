"""Computes attention whose logits carry the log of a learned function of the time gap."""

from ehrwear_jax.ops.kernel_attention.api import kernel_attention
from ehrwear_jax.ops.kernel_attention.reference import ExponentialMixture, RationalQuadratic

__all__ = ["ExponentialMixture", "RationalQuadratic", "kernel_attention"]
