"""Declares the options of PaPaGei: a residual network of raw pulse waves that learns from contrasts between them.

Pillai, Spathis, Kawsar and Malekzadeh, "PaPaGei: open foundation models for optical physiological signals" (ICLR 2025).
The defaults are PaPaGei-S as published, with 5.79 million parameters; PARTICIPANT is PaPaGei-P, with 4.90 million.
TRAIN is how both are trained there, for config.models.<name>.train.
"""

import dataclasses
from typing import Any

from ehrwear_jax.config import options
from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.config.segment_spec import SegmentReading

CHOICES = {"contrast": ("morphology", "views"), "dtype": ("float32", "bfloat16")}
# rows of eight pieces; what a run chooses is the number of steps, 10,000 and 15,000 epochs of one batch there
TRAIN = {"batch_size": 128, "peak_learning_rate": 1e-4, "weight_decay": 0.0, "adam_b2": 0.999}
PARTICIPANT: dict[str, Any] = {
    "contrast": "views",
    "augmentation": {"noise": 0.35, "negation": 0.2, "flip": 0.2, "scaling": 0.4, "crop": 0.5},
}
# entries of config.models: -S and -P
PUBLISHED: dict[str, dict[str, Any]] = {
    "papagei": {"family": "papagei", "train": TRAIN},
    "papagei_views": {"family": "papagei", **PARTICIPANT, "train": TRAIN},
}


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Chances of changes to a piece that is learned from."""

    noise: float = 0.0
    """Chance of normal noise."""
    noise_std: float = 0.05
    """Standard deviation of the noise."""
    negation: float = 0.0
    """Chance of the other sign."""
    flip: float = 0.0
    """Chance of the other direction in time."""
    scaling: float = 0.0
    """Chance of another scale."""
    scale_std: float = 0.1
    """Standard deviation of the factor around 1."""
    crop: float = 0.25
    """Chance that a part, more than half of the piece, is kept and the rest is zero."""
    crop_shape: float = 0.5
    """Both parameters of the beta distribution of the part's share."""

    def __post_init__(self) -> None:
        where, many = "config.models: augmentation", float("inf")
        limits = dict.fromkeys(("noise", "negation", "flip", "scaling", "crop"), (0.0, 1.0))
        limits |= {"noise_std": (0.0, many), "scale_std": (0.0, many), "crop_shape": (1e-6, many)}
        options.require_range(where, self, limits)


@dataclasses.dataclass(frozen=True)
class Config:
    """A model of signal, read at the pieces before a prediction time."""

    signal: SegmentReading = SegmentReading(rate_hz=125.0, seconds=10.0)
    """Which pieces of signal are read."""
    contrast: str = "morphology"
    """What is drawn together. morphology (PaPaGei-S): pieces with the sVRI in the same bin, which also predict IPA and
    skewness; for pulse waves. views (PaPaGei-P): two changed copies of a piece."""
    augmentation: Augmentation = Augmentation()
    """How pieces are changed in training."""
    width: int = 32
    """Of the first blocks; it doubles every four."""
    n_blocks: int = 18
    """Residual blocks; every second one halves the rate."""
    kernel: int = 3
    """Samples that a convolution sees."""
    dropout: float = 0.5
    """Share of activations of the blocks that training drops."""
    out_width: int = 512
    """Width of z in morphology; in views, z has that of the last block."""
    projection: tuple = (256, 128)
    """Hidden and last width of what views are compared by."""
    experts: int = 3
    """Experts of each of the heads of IPA and skewness."""
    temperature: float = 0.07
    """Of the contrast."""
    svri_bins: int = 8
    """Equal bins of sVRI between 0 and 2."""
    weights: tuple = (0.6, 0.2, 0.2)
    """Of the contrast, IPA and skewness."""
    dtype: str = "float32"
    """Of the network's products; losses and norms' statistics are float32."""

    def __post_init__(self) -> None:
        path = "config.models"
        for name, choices in CHOICES.items():
            options.require_choice(path, name, getattr(self, name), choices)
        sizes = (self.width, self.n_blocks, self.kernel, self.out_width, self.experts, self.svri_bins, *self.projection)
        if min(sizes) < 1 or len(self.projection) != 2 or len(self.weights) != 3 or self.temperature <= 0:
            raise ValueError(
                f"{path}: sizes and temperature must be positive, projection {self.projection} has two numbers and "
                f"weights {self.weights} three"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"{path}.dropout is {self.dropout}; it must lie in [0, 1)")
        if self.has_morphology and not self.signal.segments:
            raise ValueError(
                f"{path}: contrast morphology is of pulse waves, and days of the grid have none: set signal.segments, "
                "or contrast to views"
            )

    @property
    def has_morphology(self) -> bool:
        """Whether pieces are compared by their shape."""
        return self.contrast == "morphology"

    @property
    def n_views(self) -> int:
        """Changed copies of a piece in training."""
        return 1 if self.has_morphology else 2

    def check_prepared(self, prepare: PrepareConfig) -> None:
        """Raises ValueError where the records that prepare makes do not hold what is read."""
        self.signal.check_prepared(prepare.segments, prepare.window_hours)
