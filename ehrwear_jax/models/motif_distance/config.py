"""Declares the options of the motif distance, a network that is trained for Pulse-PPG and needed by it.

Its training is TRAIN, for config.models.<name>.train; the original goes through all pieces 20 times.
"""

import dataclasses
from typing import Any, ClassVar

from ehrwear_jax.config import options
from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.config.segment_spec import SegmentReading

TRAIN = {"batch_size": 16, "peak_learning_rate": 1e-3, "weight_decay": 0.0, "adam_b2": 0.999}
# entry of config.models
PUBLISHED: dict[str, dict[str, Any]] = {"motif_distance": {"family": "motif_distance", "train": TRAIN}}


@dataclasses.dataclass(frozen=True)
class Config:
    """A distance between signals: the error of reconstructing hidden samples of one from the other.

    The defaults are those of Pulse-PPG, for 4 minutes at 50 Hz.
    """

    HAS_LATENTS: ClassVar[bool] = False  # nothing is predicted from it

    signal: SegmentReading = SegmentReading(rate_hz=50.0, seconds=240.0, per_row=1)
    """Which pieces of signal are read."""
    highest: float = 5.0
    """Standard deviations above a piece's mean beyond which its samples are clipped; of the grid, none are."""
    width: int = 64
    """Features of a frame; a multiple of 8, as convolutions are an eighth as wide inside."""
    taps: int = 15
    """Samples that a convolution takes, at each dilation; odd."""
    n_layers: int = 5
    """Residual convolutions, each with twice the dilation of the one before."""
    stride: int = 10
    """Samples for a frame; frames are compared and reconstructed."""
    hidden_samples: int = 300
    """Consecutive samples that are hidden in training."""
    distance_share: float = 0.5
    """Share of the samples that are hidden for a distance."""
    distance_seed: int = 0
    """Draws which they are, once for all signals."""
    dropout: float = 0.1
    """Of attention weights, in training."""
    dtype: str = "float32"
    """Of the convolutions' products."""

    def __post_init__(self) -> None:
        path = "config.models"
        options.require_choice(path, "dtype", self.dtype, ("float32", "bfloat16"))
        if self.highest <= 0:
            raise ValueError(f"{path}.highest is {self.highest}; it must be positive")
        for name in ("width", "taps", "n_layers", "stride", "hidden_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{path}.{name} is {getattr(self, name)}; it must be positive")
        if self.width % 8 or not self.taps % 2:
            raise ValueError(f"{path}: width is {self.width}, a multiple of 8, and taps {self.taps}, an odd number")
        options.require_range(path, self, {"distance_share": (0.01, 0.99), "dropout": (0.0, 0.9)})

    def check_prepared(self, prepare: PrepareConfig) -> None:
        """Raises ValueError where the records that prepare makes do not hold what is read."""
        self.signal.check_prepared(prepare.segments, prepare.window_hours)
