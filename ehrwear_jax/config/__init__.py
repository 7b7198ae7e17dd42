"""Holds the options of every part as plain dataclasses, their defaults and what checks them; imports no jax."""

from ehrwear_jax.config.base import add_kernel_probes, base
from ehrwear_jax.config.data import SIMULATED
from ehrwear_jax.config.families import published
from ehrwear_jax.config.run import RunConfig, check, parse, read
from ehrwear_jax.config.time_scale import set_time_scale
from ehrwear_jax.config.variants import VARIANTS, apply_variants, chosen_base, variants

__all__ = [
    "SIMULATED",
    "VARIANTS",
    "RunConfig",
    "add_kernel_probes",
    "apply_variants",
    "base",
    "check",
    "chosen_base",
    "parse",
    "published",
    "read",
    "set_time_scale",
    "variants",
]
