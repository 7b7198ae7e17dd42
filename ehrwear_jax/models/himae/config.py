"""Declares the options of HiMAE: a convolutional masked autoencoder of raw pulse waves.

Lee et al., "HiMAE: hierarchical masked autoencoders discover resolution-specific structure in wearable time series"
(2025). The defaults are the sizes of the published code: 1,245,953 parameters, of which z reads 700,672. TRAIN is how
it is trained there, for config.models.<name>.train.
"""

import dataclasses
from typing import Any

from ehrwear_jax.config import options
from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.config.segment_spec import SegmentReading

CHOICES = {"dtype": ("float32", "bfloat16")}
# rows of eight pieces; what a run chooses is the number of steps, a tenth of which is the warmup
TRAIN = {"batch_size": 128, "peak_learning_rate": 1e-3, "weight_decay": 1e-3, "adam_b2": 0.999, "decay": "linear"}
# entry of config.models
PUBLISHED: dict[str, dict[str, Any]] = {"himae": {"family": "himae", "train": TRAIN}}


@dataclasses.dataclass(frozen=True)
class Config:
    """A model of signal, read at the pieces before a prediction time."""

    signal: SegmentReading = SegmentReading(rate_hz=100.0, seconds=10.0)
    """Which pieces of signal are read."""
    widths: tuple = (16, 32, 64, 128, 256)
    """Of the encoder's blocks, each of which halves the rate; z has the last one."""
    kernel: int = 5
    """Samples that a convolution sees; odd."""
    patch: int = 5
    """Samples of a patch, which is hidden as a whole."""
    mask_ratio: float = 0.8
    """Share of the patches that are hidden in training."""
    dtype: str = "float32"
    """Of the network's products; the loss and norms' statistics are float32."""

    def __post_init__(self) -> None:
        path = "config.models"
        for name, choices in CHOICES.items():
            options.require_choice(path, name, getattr(self, name), choices)
        if not self.widths or min((*self.widths, self.kernel, self.patch)) < 1 or self.kernel % 2 == 0:
            raise ValueError(f"{path}: widths {self.widths}, kernel {self.kernel} (odd) and patch must be positive")
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"{path}.mask_ratio is {self.mask_ratio}; it must lie between 0 and 1")

    def check_prepared(self, prepare: PrepareConfig) -> None:
        """Raises ValueError where the records that prepare makes do not hold what is read."""
        self.signal.check_prepared(prepare.segments, prepare.window_hours)
