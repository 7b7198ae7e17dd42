"""Declares the options of Pulse-PPG: an encoder of raw pulse waves that learns which of them are alike.

Saha, Xu et al., "Pulse-PPG: an open-source field-trained PPG foundation model for wearable applications across lab and
field settings" (2025), and Xu et al., "RelCon" (ICLR 2025), whose loss it is. The defaults are the sizes of the
published code: 28.5 million parameters, by the arithmetic in family.py. Its training is TRAIN, for
config.models.<name>.train; the original goes through all pieces 20 times.
"""

import dataclasses
from typing import Any

from ehrwear_jax.config import options
from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.config.segment_spec import SegmentReading

TRAIN = {"batch_size": 16, "peak_learning_rate": 1e-4, "weight_decay": 0.0, "adam_b2": 0.999}
# entry of config.models
PUBLISHED: dict[str, dict[str, Any]] = {"pulse_ppg": {"family": "pulse_ppg", "train": TRAIN}}


@dataclasses.dataclass(frozen=True)
class Config:
    """A model of signal, read at the pieces before a prediction time."""

    signal: SegmentReading = SegmentReading(rate_hz=50.0, seconds=240.0)
    """Which pieces of signal are read. A row of training holds `within_person` + 1 of one person, whatever per_person
    and per_row say."""
    distance: str = "motif_distance"
    """Model of the config that says how far pieces are from each other, of the family motif_distance; it is trained
    first, and should read the signal that this one reads."""
    highest: float = 5.0
    """Standard deviations above a piece's mean beyond which its samples are clipped; of the grid, none are."""
    width: int = 128
    """Of the first convolution and blocks; see widen_every."""
    kernel: int = 11
    """Samples that a convolution sees; odd."""
    n_blocks: int = 12
    """Of two convolutions each."""
    stride: int = 2
    """Frames that every second block makes one of."""
    widen_every: int = 4
    """Blocks after which the width is doubled; z has that of the last block."""
    dropout: float = 0.5
    """Before each convolution of a block, in training."""
    within_person: int = 1
    """Pieces of a person beside the anchor that are candidates, each at another time."""
    temperature: float = 0.1
    """Of the similarities."""
    dtype: str = "float32"
    """Of the network's products; norms' statistics, similarities and the loss are float32."""

    def __post_init__(self) -> None:
        path = "config.models"
        options.require_choice(path, "dtype", self.dtype, ("float32", "bfloat16"))
        for name in ("width", "kernel", "n_blocks", "stride", "widen_every", "within_person"):
            if getattr(self, name) < 1:
                raise ValueError(f"{path}.{name} is {getattr(self, name)}; it must be positive")
        if self.kernel % 2 == 0 or self.temperature <= 0 or self.highest <= 0:
            raise ValueError(
                f"{path}: kernel {self.kernel} must be odd, temperature {self.temperature:g} and highest "
                f"{self.highest:g} positive"
            )
        options.require_range(path, self, {"dropout": (0.0, 0.9)})

    @property
    def needs(self) -> tuple[str, ...]:
        """Models whose trained networks training calls, see models/family.py."""
        return (self.distance,)

    @property
    def reading(self) -> SegmentReading:
        """The pieces of a row."""
        n = 1 + self.within_person
        return dataclasses.replace(self.signal, per_person=n, per_row=n)

    def check_prepared(self, prepare: PrepareConfig) -> None:
        """Raises ValueError where the records that prepare makes do not hold what is read."""
        self.signal.check_prepared(prepare.segments, prepare.window_hours)
