"""Raw windows: short pieces of sub-second signal (30 s by default) at one rate, a few of each wearable window.

A raw window lies inside one step of the grid, hence inside one patch of any size, and is a function of its own samples
alone: how it is filtered, judged and standardised knows nothing before or after it. The best ones of a step are kept;
which steps have room follows a fixed order and depends on where there is signal, not on what it is: else a choice in
one patch would tell of another that is hidden.

Standardisation is by the raw window's own mean and standard deviation, per channel: gain and offset of an optical or
electrical sensor are arbitrary between devices and drift by far more than a beat is high, so that statistics of the
training patients would leave little of the wave in 16 bits; and nothing is fitted. What the level says, as of an
accelerometer, is the business of the grid's channels.
"""

import dataclasses
from fractions import Fraction

import numpy as np
from scipy.signal import resample_poly

from ehrwear_jax.data.signals import grid_quality, overlap

SCORES = ("pulse", "coverage")
MIN_COVERAGE = 0.5  # of the best channel of a raw window
_GOLDEN = (5**0.5 - 1) / 2
_ROUNDING_US = 1000  # by which a stretch may be shorter than its samples
DROPPED = {
    "raw windows outside": "the grid has no value in their step",
    "raw windows with gaps": f"less than {MIN_COVERAGE:.0%} of the samples are known",
    "raw windows beyond the room": "better ones in their step, or enough in other steps of the wearable window",
}


@dataclasses.dataclass(frozen=True)
class RawSpec:
    """What a raw window is.

    Attributes:
      channels: names, in the order of the last array axis; empty: there are none.
      rate_hz: samples per second, to which recordings are resampled. seconds: length.
      per_window: most raw windows of a wearable window.
      score: by which the best are chosen. "pulse": grid_quality.of_wave (of pulse waves; the share of known samples
        where the rate does not hold the pulse band). "coverage": the share of known samples.

    Raises:
      ValueError: one of them cannot be.
    """

    channels: tuple = ()
    rate_hz: float = 25.0
    seconds: float = 30.0
    per_window: int = 4
    score: str = "pulse"

    def __post_init__(self):
        if isinstance(self.channels, str) or len(set(self.channels)) < len(self.channels):
            raise ValueError(
                f"config.prepare.raw_channels is {self.channels!r}; it must be a tuple of different names, as ('ppg',)"
            )
        if not (self.seconds > 0 and self.rate_hz > 0 and self.samples >= 2):
            raise ValueError(
                f"config.prepare.raw_seconds is {self.seconds} and raw_rate_hz {self.rate_hz}: a raw window needs at "
                "least two samples"
            )
        if self.per_window < 1:
            raise ValueError(f"config.prepare.raw_per_window is {self.per_window}; it must be at least 1")
        if self.score not in SCORES:
            raise ValueError(f"config.prepare.raw_score is {self.score!r}; it can be {', '.join(SCORES)}")

    @property
    def samples(self):
        return round(self.seconds * self.rate_hz)

    @property
    def dtype(self):
        """One raw window in a file: its wearable window (counted per person), step there, score and samples [S, A]."""
        values = ("values", "<f2", (self.samples, len(self.channels)))
        return np.dtype([("window", "<i4"), ("step", "<i4"), ("score", "<f4"), values])


def of_person(rows, end_us_M, values_MxLxC, spec, limits, raw):
    """The raw windows of one person.

    Candidates follow each other from where a stretch, or a step of the grid, begins. A candidate with at least half of
    its samples in one channel is scored (mean over the channels). Of a wearable window are kept the best of each step,
    then the second of each step, and so on while there is room, the steps in the order of `_turn`; at a tie of scores
    the earlier one. Per candidate and channel the device with most samples is used,
    as in overlap.py.

    Args:
      rows: list of (start_us, rate_hz, channel, values_N, device), of raw.channels at least.
      end_us_M, values_MxLxC: as grid.window_person returns.
      spec: grid.WindowSpec. limits: {channel: (low, high)}, either may be None. raw: RawSpec.

    Returns:
      (raw.dtype [R] in order of time, {reason of DROPPED: number of candidates}).
    """
    dropped = dict.fromkeys(DROPPED, 0)
    sources_A = [_sources(rows, channel, *limits.get(channel, (None, None))) for channel in raw.channels]
    window_us, step_us = spec.window_hours * 3_600_000_000, spec.step_minutes * 60_000_000
    begin_N = _candidates([s for sources in sources_A for s in sources], step_us, round(raw.seconds * 1e6))
    m_N = np.searchsorted(end_us_M, (begin_N // window_us + 1) * window_us)
    step_N = begin_N % window_us // step_us
    there_N = np.append(end_us_M, -1)[m_N] == (begin_N // window_us + 1) * window_us
    there_N[there_N] = np.isfinite(values_MxLxC[m_N[there_N], step_N[there_N]]).any(axis=-1)
    dropped["raw windows outside"] = int((~there_N).sum())
    kept = []
    there = np.flatnonzero(there_N)
    for mine in np.split(there, np.flatnonzero(np.diff(m_N[there])) + 1) if len(there) else ():
        scored = []
        for n in mine:
            begin_us = int(begin_N[n])
            end_us = min(begin_us + round(raw.seconds * 1e6), (begin_us // step_us + 1) * step_us)
            found_A = [_best_source(sources, begin_us, end_us, raw.seconds) for sources in sources_A]
            if max(np.isfinite(x).mean() for x, _ in found_A) >= MIN_COVERAGE:
                scored.append((-np.mean([_score(*f, raw) for f in found_A]), begin_us, int(step_N[n]), found_A))
            else:
                dropped["raw windows with gaps"] += 1
        scored = _in_turn(scored)
        dropped["raw windows beyond the room"] += len(scored[raw.per_window :])
        for worse, _, step, found_A in sorted(scored[: raw.per_window], key=lambda candidate: candidate[1]):
            values_SxA = np.stack([_standardised(_resampled(*f, raw)) for f in found_A], axis=1)
            kept.append((m_N[mine[0]], step, -worse, values_SxA))
    return np.array(kept, raw.dtype), dropped


def _in_turn(scored):
    """Candidates (-score, begin, step, ...) of a wearable window in the order in which they get room."""
    rank, of_step = {}, {}
    for candidate in sorted(scored, key=lambda c: c[:2]):
        begin_us, step = candidate[1:3]
        rank[begin_us] = of_step[step] = of_step.get(step, -1) + 1
    return sorted(scored, key=lambda c: (rank[c[1]], _turn(c[2])))


def _turn(step):
    """Sorts steps so that the first few of any are spread over the window: a low-discrepancy sequence."""
    return step * _GOLDEN % 1.0


@dataclasses.dataclass(frozen=True)
class _Source:
    """Stretches of one channel of one device, by start: (start_us, rate_hz, values_N); NaN where not plausible."""

    stretches: list
    start_N: np.ndarray
    end_N: np.ndarray
    reach_N: np.ndarray  # the latest end up to there


def _sources(rows, channel, low, high):
    """The _Source of each device that recorded the channel, in order of preference."""
    of = {}
    for start_us, rate_hz, name, values_N, device in rows:
        if name == channel and len(values_N):
            of.setdefault(overlap.source(device, rate_hz), []).append((start_us, rate_hz, values_N))
    found = []
    for source in sorted(of):
        stretches = []
        for start_us, rate_hz, values_N in overlap.without_repeats(of[source])[0]:
            good_N = np.isfinite(values_N)
            good_N &= (values_N >= (-np.inf if low is None else low)) & (values_N <= (np.inf if high is None else high))
            stretches.append((start_us, rate_hz, np.where(good_N, values_N, np.nan)))
        start_N = np.array([s[0] for s in stretches], np.int64)
        end_N = start_N + np.array([round(len(v) * 1e6 / rate) for _, rate, v in stretches], np.int64)
        found.append(_Source(stretches, start_N, end_N, np.maximum.accumulate(end_N)))
    return found


def _candidates(sources, step_us, length_us):
    """Where candidates begin, increasing: int64 [N]."""
    spans = sorted(
        (int(a), int(b), 1e6 / rate)
        for s in sources
        for a, b, (_, rate, _) in zip(s.start_N, s.end_N, s.stretches, strict=True)
    )
    joined = []
    for a, b, period_us in spans:  # rows that go on where another ended are one recording
        if joined and a <= joined[-1][1] + period_us:
            joined[-1][1] = max(joined[-1][1], b)
        else:
            joined.append([a, b])
    begins = [np.zeros(0, np.int64)]
    for a, b in joined:
        for step in range(a // step_us, -(-b // step_us)):
            lo, hi = max(a, step * step_us), min(b, (step + 1) * step_us)
            begins.append(lo + length_us * np.arange((hi - lo + _ROUNDING_US) // length_us))
    return np.concatenate(begins)


def _best_source(sources, begin_us, end_us, seconds):
    """(samples [n] with NaN where unknown, rate) of the device with most samples that are complete at end_us."""
    best, best_s = (np.full(1, np.nan), 1.0), 0.0
    for source in sources:
        values_N, rate_hz = None, 0.0
        first, last = np.searchsorted(source.reach_N, begin_us, "right"), np.searchsorted(source.start_N, end_us)
        for start_us, rate, stretch_N in source.stretches[first:last]:
            if values_N is None:
                rate_hz = rate
                values_N = np.full(max(int(seconds * rate + 1e-6), 1), np.nan)
            lo = max(int(np.ceil((begin_us - start_us) * rate / 1e6 - 1e-6)), 0)
            n = max(min(len(stretch_N) - lo, len(values_N) + 1), 0)
            # those that are complete at the end, as signal.complete_by, but not counted from the stretch's beginning
            hi = lo + int(np.searchsorted(start_us + np.round((lo + 1 + np.arange(n)) * (1e6 / rate)), end_us, "right"))
            at = np.rint((start_us - begin_us) * rate_hz / 1e6 + np.arange(lo, hi) * (rate_hz / rate)).astype(np.int64)
            ok = (at >= 0) & (at < len(values_N))
            ok[ok] = np.isfinite(stretch_N[lo:hi][ok])
            values_N[at[ok]] = stretch_N[lo:hi][ok]
        if values_N is not None and np.isfinite(values_N).sum() / rate_hz > best_s:
            best, best_s = (values_N, rate_hz), np.isfinite(values_N).sum() / rate_hz
    return best


def _score(values_N, rate_hz, raw):
    """0 to 1."""
    if raw.score == "coverage":
        return float(np.isfinite(values_N).mean())
    return grid_quality.of_wave(values_N, rate_hz)


def _resampled(values_N, rate_hz, raw):
    """[S] float64 at raw.rate_hz, behind a zero-phase low-pass at the lower one of the two Nyquist frequencies.

    Gaps are bridged by straight lines for the filter's sake and unknown afterwards: a sample is known if the recorded
    ones around it are.
    """
    seen_N, position_N = np.isfinite(values_N), np.arange(len(values_N))
    out_S = np.full(raw.samples, np.nan)
    if not seen_N.any():
        return out_S
    ratio = Fraction(raw.rate_hz / rate_hz).limit_denominator(1000)
    filled_N = np.interp(position_N, position_N[seen_N], values_N[seen_N])
    if ratio != 1:
        filled_N = resample_poly(filled_N, ratio.numerator, ratio.denominator, padtype="line")
    n = min(len(filled_N), raw.samples)
    out_S[:n] = filled_N[:n]
    at_S = np.arange(raw.samples) * (rate_hz / raw.rate_hz)
    left_S = np.clip(np.floor(at_S + 1e-6), 0, len(values_N) - 1).astype(np.int64)
    right_S = np.clip(np.ceil(at_S - 1e-6), 0, len(values_N) - 1).astype(np.int64)
    return np.where(seen_N[left_S] & seen_N[right_S], out_S, np.nan)


def _standardised(values_S):
    """float16, by the mean and standard deviation of what is known, within 10 of these; a flat line is zero."""
    seen_S = np.isfinite(values_S)
    if not seen_S.any():
        return values_S.astype(np.float16)
    centred_S = values_S - values_S[seen_S].mean()
    std = np.sqrt(np.mean(centred_S[seen_S] ** 2))
    flat = std <= 1e-6 * max(np.abs(values_S[seen_S]).max(), 1e-30)
    return np.clip(np.zeros_like(values_S) * values_S if flat else centred_S / std, -10, 10).astype(np.float16)
