"""Declares a set of segments: short pieces of a signal, cut at one rate."""

import dataclasses
import re

from ehrwear_jax.config import options

SEGMENT_SCORES = ("pulse", "coverage")
_BAND = re.compile(r"bandpass:(\d+\.?\d*)-(\d+\.?\d*)")


@dataclasses.dataclass(frozen=True)
class SegmentSpec:
    """A set of segments: short pieces of signal at one rate, a few of each wearable window (signals/segments.py)."""

    channels: tuple = ()
    """Channels of the signal, in the order of the last array axis; they need not be among those of the grid."""
    rate_hz: float = 25.0
    """Samples per second, to which recordings are resampled."""
    seconds: float = 30.0
    """Length of a segment; at most that of a window."""
    filter: str = ""
    """Filter of each segment. Empty: none. "bandpass:LOW-HIGH", in Hz: a zero-phase Butterworth band-pass, inside the
    segment only."""
    per_window: int = 4
    """Most segments of a wearable window."""
    score: str = "pulse"
    """Score by which the best segments are chosen: pulse (quality of a pulse wave) or coverage (share of samples)."""
    standardise: bool = True
    """True: each channel of a segment is standardised by its own mean and standard deviation; False: it keeps its
    unit."""

    def __post_init__(self) -> None:
        where = "config.prepare.segments"
        if not self.channels or len(set(self.channels)) < len(self.channels):
            raise ValueError(f"{where}: channels is {self.channels!r}; it must hold different names, as in ('ppg',)")
        if not (self.seconds > 0 and self.rate_hz > 0 and self.samples >= 2):
            raise ValueError(
                f"{where}: seconds is {self.seconds} and rate_hz {self.rate_hz}; a segment needs at least two samples"
            )
        if self.per_window < 1:
            raise ValueError(f"{where}: per_window is {self.per_window}; it must be at least 1")
        options.require_choice(where, "score", self.score, SEGMENT_SCORES)
        if self.filter:
            low, high = self.band_hz
            if not 0 < low < high < self.rate_hz / 2 or self.seconds < 2 / low:
                raise ValueError(
                    f"{where}: filter is {self.filter!r}; the band must lie between 0 and rate_hz / 2, "
                    f"{self.rate_hz / 2:g} Hz, and a segment must hold two periods of its lower end"
                )

    @property
    def samples(self) -> int:
        """Samples of a segment."""
        return round(self.seconds * self.rate_hz)

    @property
    def length_us(self) -> int:
        """Length of a segment, microseconds."""
        return round(self.seconds * 1e6)

    @property
    def band_hz(self) -> tuple[float, float]:
        """The ends of the filter's band; ValueError if it is not written as it must be."""
        found = _BAND.fullmatch(self.filter)
        if not found:
            raise ValueError(
                f"config.prepare.segments: filter is {self.filter!r}; it can be empty or as in 'bandpass:0.5-12'"
            )
        return float(found[1]), float(found[2])
