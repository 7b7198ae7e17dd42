"""Fuses models late: concatenates their latents, on which a probe is fitted as on those of one model.

No network: a family that is evaluated on what other models have computed (stages/predictors.py).
"""

from collections.abc import Mapping

import numpy as np

from ehrwear_jax.models.late_fusion.config import Config

__all__ = ["Config", "features"]


def features(config: Config, latents: Mapping[str, np.ndarray]) -> np.ndarray:
    """Features of each prediction time.

    Args:
      config: whose members are fused.
      latents: member -> z [N, D].

    Returns:
      float32 [N, sum of D].
    """
    return np.concatenate([latents[member] for member in config.networks], axis=1)
