"""Computes derived features of a window: activity entropy, sleep, heart rate and its variability from waves or beats.

They stand beside the summaries of the window's grid (summaries.py). Which are made is said by
`config.prepare.summaries`, a tuple of "channel:kind":

    entropy    how evenly a non-negative channel is spread over the window's steps, see summaries.evenness.
    pulse      a raw pulse wave (PPG, sampled above 7 Hz): beats, then rate, variability and quality, see pulse.py.
    ecg        the same of an electrocardiogram (sampled above 40 Hz).
    intervals  successive intervals between beats in milliseconds, one value per beat, NaN where one is missing.
    sleep      the share of the known time, half an hour at least, that is sleep by the angle of the arm, a channel in
               degrees with a value per 5 s or more (accelerometry.asleep_angle).
    auto       those that are not named and that the data allow: pulse, ecg and intervals (in ms) by the names of
               channels (_NAMES), sleep and the entropy of ENMO where config.prepare.acceleration makes them.

The channels need not be among the model's, but for entropy. A feature uses only samples that are complete at the
window's end and were not in the window before; it is NaN where it cannot be computed.
"""

from collections.abc import Callable, Collection, Iterable, Mapping

import numpy as np

from ehrwear_jax.config.data import AUTO
from ehrwear_jax.data.formats.stretches import Limits, Stretch, channel_limits, sample_edges
from ehrwear_jax.data.signals import accelerometry, grid, overlap, pulse, quality
from ehrwear_jax.data.signals.masks import runs
from ehrwear_jax.data.signals.raw_acceleration import ANGLE, ENMO
from ehrwear_jax.data.signals.summaries import epoch_mean, evenness

# Every kind: the names of its columns, and which of them the model is to predict.
KINDS = {
    "entropy": ("entropy",),
    "pulse": ("heart_rate_bpm", "rmssd_ms", "sdnn_ms", "pnn50_percent", "quality"),
    "ecg": ("heart_rate_bpm", "rmssd_ms", "sdnn_ms", "pnn50_percent", "quality"),
    "intervals": ("heart_rate_bpm", "rmssd_ms", "sdnn_ms", "pnn50_percent"),
    "sleep": ("asleep",),
}
TARGETS = ("entropy", "heart_rate_bpm", "rmssd_ms", "sdnn_ms", "asleep")
_BEATS = ("pulse", "ecg", "intervals")
# Words of a channel's name, between underscores, by which auto knows it
_NAMES = {"ppg": "pulse", "pleth": "pulse", "bvp": "pulse", "ecg": "ecg", "ekg": "ecg",
          **dict.fromkeys(("ibi", "ppi", "rri", "rr", "nn"), "intervals")}  # fmt: skip
MIN_SLEEP_MINUTES = 30  # known, of a window
Wanted = list[tuple[str, str]]
"""(channel, kind) of each derived feature, in the order of the columns."""


def automatic(summaries: Iterable[str], channels: Collection[str], unit_of: Mapping[str, str]) -> tuple[str, ...]:
    """The texts of the config with "auto" replaced by what it stands for.

    Args:
      summaries: "channel:kind" or "auto" each.
      channels: of the grid. unit_of: {channel that the data have, or that is made of them: its unit}.
    """
    named = tuple(s for s in summaries if s != AUTO)
    if len(named) == len(tuple(summaries)):
        return named
    taken = {text.rpartition(":")[0] for text in named if text.rpartition(":")[2] in _BEATS}
    found = [f"{ENMO}:entropy"] if ENMO in channels and ENMO in unit_of else []
    found += [f"{ANGLE}:sleep"] if ANGLE in channels and ANGLE in unit_of else []
    for channel in sorted(unit_of):
        kinds = [_NAMES[word] for word in channel.lower().split("_") if word in _NAMES]
        if kinds and channel not in taken and (kinds[0] != "intervals" or unit_of[channel] == "ms"):
            found.append(f"{channel}:{kinds[0]}")
    return (*named, *(text for text in found if text not in named))


def parse(summaries: Iterable[str], channels: Collection[str], declared: Collection[str] | None = None) -> Wanted:
    """Reads the texts of the config.

    Args:
      summaries: "channel:kind" each.
      channels: of the grid.
      declared: channels that the data have; None: not known.

    Raises:
      ValueError: no such kind or channel, one named twice, or the entropy of a channel that is not on the grid.
    """
    found: Wanted = []
    for text in summaries:
        channel, _, kind = text.rpartition(":")
        if not channel or kind not in KINDS:
            raise ValueError(
                f"config.prepare.summaries holds {text!r}, expected 'channel:kind' with a kind of {', '.join(KINDS)}"
            )
        if kind == "entropy" and channel not in channels:
            raise ValueError(f"config.prepare.summaries holds {text!r}: the channel is not in config.prepare.channels")
        if declared is not None and channel not in declared:
            raise ValueError(
                f"config.prepare.summaries holds {text!r}: no such channel in metadata/channels.parquet; there are "
                f"{sorted(declared)}"
            )
        if (channel, kind) in found:
            raise ValueError(f"config.prepare.summaries holds {text!r} twice")
        if kind in _BEATS and any(c == channel and k in _BEATS for c, k in found):
            raise ValueError(f"config.prepare.summaries takes channel {channel!r} for two kinds of heart beats")
        found.append((channel, kind))
    return found


def columns(wanted: Wanted) -> list[str]:
    """Names of the columns of `of_person`: channel__name."""
    return [f"{channel}__{name}" for channel, kind in wanted for name in KINDS[kind]]


def targets(wanted: Wanted) -> list[str]:
    """Names of the columns that the model is to predict."""
    return [name for name in columns(wanted) if name.rpartition("__")[2] in TARGETS]


def of_person(
    rows: Iterable[Stretch],
    end_us_M: np.ndarray,
    values_MxLxC: np.ndarray,
    spec: grid.WindowSpec,
    limits: Limits,
    wanted: Wanted,
) -> tuple[np.ndarray, int]:
    """The derived features of one person's windows.

    Args:
      rows: recorded stretches of the channels that are wanted, at least.
      end_us_M, values_MxLxC: as grid.window_person returns.
      spec: the grid.
      limits: plausible range of each channel.
      wanted: as `parse` returns.

    Returns:
      (float32 [M, X], n_outside): columns as in `columns`; stretches of signal that lie in no window.
    """
    rows, n_outside = list(rows), 0
    out = [np.zeros((len(end_us_M), 0))]
    for channel, kind in wanted:
        if kind == "entropy":
            out.append(evenness(values_MxLxC[:, :, spec.channels.index(channel)])[:, None])
        else:
            table, n = of_signal(rows, end_us_M, spec.window_us, limits, channel, kind)
            n_outside += n
            out.append(table)
    return np.concatenate(out, axis=1).astype(np.float32), n_outside


def of_signal(
    rows: Iterable[Stretch], end_us_M: np.ndarray, window_us: int, limits: Limits, channel: str, kind: str
) -> tuple[np.ndarray, int]:
    """As of_person, for one channel of raw waves, of intervals or of angles.

    Args:
      end_us_M: increasing multiples of window_us, the length of the windows.

    Returns:
      (float64 [M, X], n_outside).
    """
    of_source = overlap.by_source(rows, (channel,))
    table, best_s, n_outside = np.full((len(end_us_M), len(KINDS[kind])), np.nan), np.zeros(len(end_us_M)), 0
    completed = _intervals_completed if kind == "intervals" else _samples_completed
    for source in sorted(of_source):  # the device with the longest signal in a window, as in overlap.py
        stretches, _ = overlap.without_repeats(of_source[source])
        for end_us, parts in _by_window(stretches, completed, window_us).items():
            m = int(np.searchsorted(end_us_M, end_us))
            if m == len(end_us_M) or end_us_M[m] != end_us:
                n_outside += len(parts)
                continue
            observed_s = sum(np.isfinite(v).sum() / rate for rate, v in parts)
            if observed_s > best_s[m]:
                best_s[m] = observed_s
                table[m] = _features(parts, kind, channel_limits(limits, channel))
    return table, n_outside


def _by_window(
    stretches: list[overlap.Samples], completed: Callable[..., np.ndarray], window_us: int
) -> dict[int, list[tuple[float, np.ndarray]]]:
    """{end of a window: [(rate_hz, values)] of the samples that became complete in it}."""
    found: dict[int, list] = {}
    for start_us, rate_hz, values_N in stretches:
        values_N = np.asarray(values_N, np.float64)
        window_N = (completed(start_us, rate_hz, values_N) - 1) // window_us
        first = np.flatnonzero(np.append(True, window_N[1:] != window_N[:-1]))
        for a, b in zip(first, np.append(first[1:], len(values_N)), strict=True):
            if np.isfinite(values_N[a:b]).any():
                found.setdefault(int(window_N[a] + 1) * window_us, []).append((rate_hz, values_N[a:b]))
    return found


def _samples_completed(start_us: int, rate_hz: float, values_N: np.ndarray) -> np.ndarray:
    """When each sample is complete, microseconds [N]."""
    return sample_edges(start_us, rate_hz, len(values_N))[1:]


def _intervals_completed(start_us: int, rate_hz: float, values_N: np.ndarray) -> np.ndarray:
    """When each interval is complete: after those before it, and not before the rate of the stretch says so."""
    period_ms = 1000 / rate_hz
    ended_ms = np.cumsum(np.where(np.isfinite(values_N) & (values_N > 0), values_N, period_ms))
    by_value_N = start_us + np.round(1000 * ended_ms).astype(np.int64)
    return np.maximum(by_value_N, _samples_completed(start_us, rate_hz, values_N))


def _features(parts: list[tuple[float, np.ndarray]], kind: str, low_high: tuple[float, float]) -> list[np.ndarray]:
    """The columns of one window, a number each."""
    low, high = low_high
    if kind == "sleep":
        return [_asleep([(rate_hz, np.where((v >= low) & (v <= high), v, np.nan)) for rate_hz, v in parts])]
    if kind != "intervals":
        worn = [
            (rate_hz, v[a:b])  # what is missing for long is no part of the stretch
            for rate_hz, v in parts
            for a, b in runs(~quality.long_gaps(v, rate_hz))
        ]
        found = pulse.summarise(worn, low, high, pulse.ECG if kind == "ecg" else pulse.PPG)
    else:
        joined = []
        for _, v in parts:  # a NaN behind each stretch: what follows it is no neighbour
            joined += [pulse.trustworthy(np.where((v >= low) & (v <= high), v, np.nan)), np.full(1, np.nan)]
        interval_N = np.concatenate(joined)
        found = {"heart_rate_bpm": pulse.heart_rate(interval_N), **pulse.hrv(interval_N)}
    return [found[name] for name in KINDS[kind]]


def _asleep(parts: list[tuple[float, np.ndarray]]) -> np.ndarray:
    """Share of the known epochs that are sleep; NaN of less than MIN_SLEEP_MINUTES, or of too slow an angle."""
    found = [np.zeros(0)]
    for rate_hz, angle_N in parts:
        per_epoch = round(rate_hz * accelerometry.ANGLE_EPOCH_S)
        if per_epoch >= 1:
            found.append(accelerometry.asleep_angle(epoch_mean(angle_N, per_epoch)))
    asleep_T = np.concatenate(found)
    asleep_T = asleep_T[np.isfinite(asleep_T)]
    enough = len(asleep_T) * accelerometry.ANGLE_EPOCH_S >= 60 * MIN_SLEEP_MINUTES
    return np.asarray(asleep_T.mean() if enough else np.nan)
