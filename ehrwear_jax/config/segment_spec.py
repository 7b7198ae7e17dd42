"""Declares the options of a set of segments of sub-second signal, and of how a model of such signal reads them."""

import dataclasses
import re
from collections.abc import Mapping

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
    reject: bool = options.added(False)
    """True: samples that the segment itself shows to be artefacts are missing: values that stay equal for a second, and
    parts of about 8 s that are noisy or moved (signals/quality.py, artefacts). Where less than half of the samples are
    left there is no segment. For pulse waves."""

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


@dataclasses.dataclass(frozen=True)
class SegmentReading:
    """What a model of signal reads: pieces of one length, of recorded segments or of the grid."""

    segments: str = "ppg"
    """Set of config.prepare.segments that is read. Empty: the grid, whose channels over `hours` are one piece, where a
    cohort has no sub-second signal."""
    rate_hz: float = 100.0
    """Samples per second that segments are resampled to; of the grid, the step of config.prepare stays."""
    seconds: float = 10.0
    """Length of a piece. A segment that is longer holds several, one after the other, and what is left over is not
    read."""
    hours: int = 24
    """Length of a piece of the grid; a multiple of config.prepare.window_hours that divides a day."""
    min_observed: float = 0.5
    """Least share of samples, in the channel with most of them, that a piece has; others are not read."""
    last: int = 16
    """Most pieces that z at a prediction time is the mean of: the latest ones known then."""
    per_person: int = 1
    """Pieces of each person in an epoch, one after the other; of a person with fewer, all."""
    per_row: int = 8
    """Pieces in a row of a batch."""

    def __post_init__(self) -> None:
        where, many = "config.models", float("inf")
        limits = dict.fromkeys(("last", "per_person", "per_row"), (1, many)) | {"min_observed": (0, 1)}
        options.require_range(where, self, limits | {"rate_hz": (1e-9, many), "hours": (1, 24)})
        if 24 % self.hours or self.samples < 2:
            raise ValueError(
                f"{where}: hours is {self.hours}, which must divide a day, and seconds {self.seconds:g} at rate_hz "
                f"{self.rate_hz:g}, which must be two samples at least"
            )

    @property
    def samples(self) -> int:
        """Samples of a piece of a segment."""
        return round(self.seconds * self.rate_hz)

    def parts(self, spec: SegmentSpec) -> int:
        """Pieces that a segment of a set holds; ValueError if it is shorter than one."""
        if not (n := int(spec.seconds / self.seconds + 1e-6)):
            raise ValueError(
                f"config.prepare.segments.{self.segments}.seconds is {spec.seconds:g}: a model that reads pieces of "
                f"{self.seconds:g} s needs segments that hold one"
            )
        return n

    def check_prepared(self, segments: Mapping[str, SegmentSpec], window_hours: int) -> None:
        """Raises ValueError where the records that prepare makes cannot be read so.

        Args:
          segments, window_hours: of config.prepare.
        """
        if self.segments:
            if self.segments not in segments:
                raise ValueError(
                    f"a model reads segments {self.segments!r}; config.prepare.segments has {sorted(segments)} (empty: "
                    "it reads the grid)"
                )
            self.parts(segments[self.segments])
        elif self.hours % window_hours:
            raise ValueError(
                f"a model reads {self.hours} hours of the grid at a time; config.prepare.window_hours is {window_hours}"
            )
