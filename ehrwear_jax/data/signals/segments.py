"""Cuts segments of sub-second signal (30 s by default) at one rate, a few of each wearable window.

A segment lies inside one cell of the grid: one step, or the fewest steps that divide the window and hold it. It is a
function of its own samples alone: how it is filtered, judged and standardised knows nothing before or after it. The
best ones of a cell are kept; which cells have room follows a fixed order and depends on where there is signal, not on
what it is: else a choice in one patch would tell of another that is hidden.

Standardisation, where it is asked for, is by the segment's own mean and standard deviation, per channel: gain and
offset of an optical or electrical sensor are arbitrary between devices and drift by far more than a beat is high, so
that statistics of the training patients would leave little of the wave in 16 bits; and nothing is fitted. What the
level says, as of an accelerometer, is the business of the grid's channels, or of segments that are not standardised.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import scipy  # its submodules load at first use

from ehrwear_jax.config.segment_spec import SegmentSpec
from ehrwear_jax.data.signals import filters, grid_quality, overlap
from ehrwear_jax.data.signals.grid import WindowSpec

MIN_COVERAGE = 0.5  # of the best channel of a segment
_GOLDEN = (5**0.5 - 1) / 2
_ROUNDING_US = 1000  # by which a stretch may be shorter than its samples
DROPPED = {
    "outside": "the grid has no value in their cell",
    "with gaps": f"less than {MIN_COVERAGE:.0%} of the samples are known",
    "noisy": f"less than {MIN_COVERAGE:.0%} of the samples are left without artefacts, where `reject` is set",
    "beyond the room": "better ones in their cell, or enough in other cells of the wearable window",
}


def dtype(spec: SegmentSpec) -> np.dtype:
    """One segment in a file: its start, us since the epoch, its score, 0 to 1, and its samples [S, A], NaN missing.

    Samples are float16 where they are standardised, else float32 in the channels' units.
    """
    values = ("values", "<f2" if spec.standardise else "<f4", (spec.samples, len(spec.channels)))
    return np.dtype([("start", "<i8"), ("score", "<f4"), values])


def cell_steps(spec: SegmentSpec, grid: WindowSpec) -> int:
    """Steps of the grid in a cell, see above; ValueError if a segment is longer than a window."""
    for n in range(1, grid.steps + 1):
        if grid.steps % n == 0 and spec.seconds <= n * 60 * grid.step_minutes:
            return n
    raise ValueError(
        f"config.prepare.segments: seconds is {spec.seconds:g}; a segment must fit into a window of "
        f"config.prepare.window_hours, {grid.window_hours}"
    )


def of_person(
    rows: Sequence[tuple],
    end_us_M: np.ndarray,
    values_MxLxC: np.ndarray,
    grid: WindowSpec,
    limits: Mapping[str, tuple],
    spec: SegmentSpec,
) -> tuple[np.ndarray, dict[str, int]]:
    """The segments of one person.

    Candidates follow each other from where a stretch, or a cell of the grid, begins. A candidate with at least half of
    its samples in one channel is scored (mean over the channels). Of a wearable window are kept the best of each cell,
    then the second of each cell, and so on while there is room, the cells in the order of `_turn`; at a tie of scores
    the earlier one. Per candidate and channel the device with most samples is used, as in overlap.py.

    Args:
      rows: (start_us, rate_hz, channel, values_N, device) of recorded stretches, of spec.channels at least.
      end_us_M, values_MxLxC: as grid.window_person returns.
      limits: {channel: (low, high)}, either may be None.

    Returns:
      (`dtype` [R] in order of time, {reason of DROPPED: number of candidates}).
    """
    dropped = dict.fromkeys(DROPPED, 0)
    sources_A = [_sources(rows, channel, *limits.get(channel, (None, None))) for channel in spec.channels]
    n_steps = cell_steps(spec, grid)
    window_us, cell_us = grid.window_hours * 3_600_000_000, n_steps * grid.step_minutes * 60_000_000
    begin_N = _candidates([s for sources in sources_A for s in sources], cell_us, spec.length_us)
    m_N = np.searchsorted(end_us_M, (begin_N // window_us + 1) * window_us)
    cell_N = begin_N % window_us // cell_us
    there_N = np.append(end_us_M, -1)[m_N] == (begin_N // window_us + 1) * window_us
    in_cells = (len(end_us_M), grid.steps // n_steps, n_steps * values_MxLxC.shape[2])
    seen_MxK = np.isfinite(values_MxLxC).reshape(in_cells).any(axis=-1)
    there_N[there_N] = seen_MxK[m_N[there_N], cell_N[there_N]]
    dropped["outside"] = int((~there_N).sum())
    kept = []
    there = np.flatnonzero(there_N)
    for mine in np.split(there, np.flatnonzero(np.diff(m_N[there])) + 1) if len(there) else ():
        scored = []
        for n in mine:
            begin_us = int(begin_N[n])
            end_us = min(begin_us + spec.length_us, (begin_us // cell_us + 1) * cell_us)
            found_A = [_best_source(sources, begin_us, end_us, spec.seconds) for sources in sources_A]
            if _covered(found_A) and spec.reject:
                found_A = [(grid_quality.without_artefacts(x, rate_hz), rate_hz) for x, rate_hz in found_A]
                if not _covered(found_A):
                    dropped["noisy"] += 1
                    continue
            if _covered(found_A):
                score = np.mean([_score(x, rate_hz, spec) for x, rate_hz in found_A])
                scored.append((-score, begin_us, int(cell_N[n]), found_A))
            else:
                dropped["with gaps"] += 1
        scored = _in_turn(scored)
        dropped["beyond the room"] += len(scored[spec.per_window :])
        for worse, begin_us, _, found_A in sorted(scored[: spec.per_window], key=lambda candidate: candidate[1]):
            kept.append((begin_us, -worse, np.stack([_samples(x, rate_hz, spec) for x, rate_hz in found_A], axis=1)))
    return np.array(kept, dtype(spec)), dropped


def _covered(found_A):
    """Whether a segment, (samples, rate) of each channel, has enough samples."""
    return max(np.isfinite(x).mean() for x, _ in found_A) >= MIN_COVERAGE


def _in_turn(scored):
    """Candidates (-score, begin, cell, ...) of a wearable window in the order in which they get room."""
    rank: dict[int, int] = {}
    of_cell: dict[int, int] = {}
    for candidate in sorted(scored, key=lambda c: c[:2]):
        begin_us, cell = candidate[1:3]
        rank[begin_us] = of_cell[cell] = of_cell.get(cell, -1) + 1
    return sorted(scored, key=lambda c: (rank[c[1]], _turn(c[2])))


def _turn(cell):
    """Sorts cells so that the first few of any are spread over the window: a low-discrepancy sequence."""
    return cell * _GOLDEN % 1.0


@dataclasses.dataclass(frozen=True)
class _Source:
    """Stretches of one channel of one device, by start: (start_us, rate_hz, values_N); NaN where not plausible."""

    stretches: list
    start_N: np.ndarray
    end_N: np.ndarray
    reach_N: np.ndarray  # the latest end up to there


def _sources(rows, channel, low, high):
    """The _Source of each device that recorded the channel, in order of preference."""
    of: dict[Any, list[tuple]] = {}
    for start_us, rate_hz, name, values_N, device, *_ in rows:
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


def _candidates(sources, cell_us, length_us):
    """Where candidates begin, increasing: int64 [N]."""
    spans = sorted(
        (int(a), int(b), 1e6 / rate)
        for s in sources
        for a, b, (_, rate, _) in zip(s.start_N, s.end_N, s.stretches, strict=True)
    )
    joined: list[list[int]] = []
    for a, b, period_us in spans:  # rows that go on where another ended are one recording
        if joined and a <= joined[-1][1] + period_us:
            joined[-1][1] = max(joined[-1][1], b)
        else:
            joined.append([a, b])
    begins = [np.zeros(0, np.int64)]
    for a, b in joined:
        for cell in range(a // cell_us, -(-b // cell_us)):
            lo, hi = max(a, cell * cell_us), min(b, (cell + 1) * cell_us)
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
            # those that are complete at the end, as in the grid, but not counted from the stretch's beginning
            hi = lo + int(np.searchsorted(start_us + np.round((lo + 1 + np.arange(n)) * (1e6 / rate)), end_us, "right"))
            at = np.rint((start_us - begin_us) * rate_hz / 1e6 + np.arange(lo, hi) * (rate_hz / rate)).astype(np.int64)
            ok = (at >= 0) & (at < len(values_N))
            ok[ok] = np.isfinite(stretch_N[lo:hi][ok])
            values_N[at[ok]] = stretch_N[lo:hi][ok]
        if values_N is not None and np.isfinite(values_N).sum() / rate_hz > best_s:
            best, best_s = (values_N, rate_hz), np.isfinite(values_N).sum() / rate_hz
    return best


def _score(values_N, rate_hz, spec):
    """0 to 1."""
    if spec.score == "coverage":
        return float(np.isfinite(values_N).mean())
    return grid_quality.of_wave(values_N, rate_hz)


def _samples(values_N, rate_hz, spec):
    """[S] as they are stored: resampled, filtered and standardised as the spec says."""
    values_S = _filtered(resampled(values_N, rate_hz, spec.rate_hz, spec.samples), spec)
    return _standardised(values_S) if spec.standardise else values_S.astype(np.float32)


def resampled(values_N: np.ndarray, rate_hz: float, to_hz: float, samples: int) -> np.ndarray:
    """Signal at another rate, behind a zero-phase low-pass at the lower one of the two Nyquist frequencies.

    Gaps are bridged by straight lines for the filter's sake and unknown afterwards: a sample is known if the recorded
    ones around it are.

    Args:
      values_N: float, NaN unknown, at rate_hz.

    Returns:
      float64 [samples] at to_hz from the same beginning, NaN unknown.
    """
    seen_N, position_N = np.isfinite(values_N), np.arange(len(values_N))
    out_S = np.full(samples, np.nan)
    if not seen_N.any():
        return out_S
    ratio = Fraction(to_hz / rate_hz).limit_denominator(1000)
    filled_N = np.interp(position_N, position_N[seen_N], values_N[seen_N])
    if ratio != 1:
        filled_N = scipy.signal.resample_poly(filled_N, ratio.numerator, ratio.denominator, padtype="line")
    n = min(len(filled_N), samples)
    out_S[:n] = filled_N[:n]
    at_S = np.arange(samples) * (rate_hz / to_hz)
    left_S = np.clip(np.floor(at_S + 1e-6), 0, len(values_N) - 1).astype(np.int64)
    right_S = np.clip(np.ceil(at_S - 1e-6), 0, len(values_N) - 1).astype(np.int64)
    return np.where(seen_N[left_S] & seen_N[right_S], out_S, np.nan)


def _filtered(values_S, spec):
    """The samples behind the spec's band-pass; gaps are bridged for its sake and stay gaps."""
    seen_S, position_S = np.isfinite(values_S), np.arange(len(values_S))
    if not spec.filter or not seen_S.any():
        return values_S
    bridged_S = np.interp(position_S, position_S[seen_S], values_S[seen_S])
    return np.where(seen_S, filters.band_pass(bridged_S, spec.rate_hz, *spec.band_hz), np.nan)


def _standardised(values_S):
    """float16, by the mean and standard deviation of what is known, within 10 of these; a flat line is zero."""
    seen_S = np.isfinite(values_S)
    if not seen_S.any():
        return values_S.astype(np.float16)
    centred_S = values_S - values_S[seen_S].mean()
    std = np.sqrt(np.mean(centred_S[seen_S] ** 2))
    flat = std <= 1e-6 * max(np.abs(values_S[seen_S]).max(), 1e-30)
    return np.clip(np.zeros_like(values_S) * values_S if flat else centred_S / std, -10, 10).astype(np.float16)
