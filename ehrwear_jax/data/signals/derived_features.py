"""Summaries of a window beyond those of its grid (`signal.summaries`): activity entropy, pulse and its variability.

Which are made is said by `config.prepare.summaries`, a tuple of "channel:kind":

    entropy    how evenly a non-negative channel is spread over the window's steps, see rest_activity.evenness.
    pulse      a raw pulse wave (PPG, sampled above 7 Hz): beats, then rate, variability and quality, see pulse.py.
    ecg        the same of an electrocardiogram (sampled above 40 Hz).
    intervals  successive intervals between beats in milliseconds, one value per beat, NaN where one is missing.

The channels of the last three need not be among the model's. A summary uses only samples that are complete at the
window's end and were not in the window before; it is NaN where it cannot be computed.
"""

import numpy as np

from ehrwear_jax.data.signals import overlap, pulse, rest_activity, signal

# Every kind: the names of its columns, and which of them the model is to predict.
KINDS = {
    "entropy": ("entropy",),
    "pulse": ("heart_rate_bpm", "rmssd_ms", "sdnn_ms", "pnn50_percent", "quality"),
    "ecg": ("heart_rate_bpm", "rmssd_ms", "sdnn_ms", "pnn50_percent", "quality"),
    "intervals": ("heart_rate_bpm", "rmssd_ms", "sdnn_ms", "pnn50_percent"),
}
TARGETS = ("entropy", "heart_rate_bpm", "rmssd_ms", "sdnn_ms")


def parse(summaries, channels, declared=None):
    """[(channel, kind)] of the texts of the config.

    Args:
      channels: of the grid.
      declared: channels that the data have; None: not known.

    Raises:
      ValueError: no such kind or channel, one named twice, or the entropy of a channel that is not on the grid.
    """
    found = []
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
        if kind != "entropy" and any(c == channel and k != "entropy" for c, k in found):
            raise ValueError(f"config.prepare.summaries takes channel {channel!r} for two kinds of heart beats")
        found.append((channel, kind))
    return found


def columns(wanted):
    """Names of the columns of `of_person`: channel__name."""
    return [f"{channel}__{name}" for channel, kind in wanted for name in KINDS[kind]]


def targets(wanted):
    """Names of the columns that the model is to predict."""
    return [name for name in columns(wanted) if name.rpartition("__")[2] in TARGETS]


def of_person(rows, end_us_M, values_MxLxC, spec, limits, wanted):
    """The summaries of one person's windows.

    Args:
      rows: list of (start_us, rate_hz, channel, values_N, device) of the channels that are wanted, at least.
      end_us_M, values_MxLxC: as signal.window_person returns.
      spec: WindowSpec. limits: {channel: (low, high)}, either may be None.
      wanted: as `parse` returns.

    Returns:
      (float32 [M, X], n_outside): columns as in `columns`; stretches of signal that lie in no window.
    """
    out, n_outside = [np.zeros((len(end_us_M), 0))], 0
    for channel, kind in wanted:
        if kind == "entropy":
            out.append(rest_activity.evenness(values_MxLxC[:, :, spec.channels.index(channel)])[:, None])
        else:
            table, n = of_signal(rows, end_us_M, spec.window_hours * 3_600_000_000, limits, channel, kind)
            n_outside += n
            out.append(table)
    return np.concatenate(out, axis=1).astype(np.float32), n_outside


def of_signal(rows, end_us_M, window_us, limits, channel, kind):
    """As of_person, for one channel of raw waves or of intervals.

    Args:
      end_us_M: increasing multiples of window_us, the length of the windows.

    Returns:
      (float64 [M, X], n_outside).
    """
    low, high = limits.get(channel, (None, None))
    low, high = -np.inf if low is None else low, np.inf if high is None else high
    of_source, n_outside = {}, 0
    for start_us, rate_hz, name, values_N, device in rows:
        if name == channel and len(values_N):
            of_source.setdefault(overlap.source(device, rate_hz), []).append((start_us, rate_hz, values_N))
    table, best_s = np.full((len(end_us_M), len(KINDS[kind])), np.nan), np.zeros(len(end_us_M))
    cut = _cut_intervals if kind == "intervals" else _cut_wave
    for source in sorted(of_source):  # the device with the longest signal in a window, as in overlap.py
        stretches, _ = overlap.without_repeats(of_source[source])
        for end_us, parts in _by_window(stretches, cut, window_us).items():
            m = int(np.searchsorted(end_us_M, end_us))
            if m == len(end_us_M) or end_us_M[m] != end_us:
                n_outside += len(parts)
                continue
            observed_s = sum(np.isfinite(v).sum() / rate for rate, v in parts)
            if observed_s > best_s[m]:
                best_s[m] = observed_s
                table[m] = _numbers(parts, kind, low, high)
    return table, n_outside


def _by_window(stretches, cut, window_us):
    """{end of a window: [(rate_hz, values)] of the samples that became complete in it}."""
    found = {}
    for start_us, rate_hz, values_N in stretches:
        values_N = np.asarray(values_N, np.float64)
        window_N = (cut(start_us, rate_hz, values_N) - 1) // window_us
        first = np.flatnonzero(np.append(True, window_N[1:] != window_N[:-1]))
        for a, b in zip(first, np.append(first[1:], len(values_N)), strict=True):
            if np.isfinite(values_N[a:b]).any():
                found.setdefault(int(window_N[a] + 1) * window_us, []).append((rate_hz, values_N[a:b]))
    return found


def _cut_wave(start_us, rate_hz, values_N):
    """When each sample is complete."""
    return overlap.sample_edges(start_us, rate_hz, len(values_N))[1:]


def _cut_intervals(start_us, rate_hz, values_N):
    """When each interval is complete: after those before it, and not before the rate of the stretch says so."""
    period_ms = 1000 / rate_hz
    ended_ms = np.cumsum(np.where(np.isfinite(values_N) & (values_N > 0), values_N, period_ms))
    return np.maximum(start_us + np.round(1000 * ended_ms).astype(np.int64), _cut_wave(start_us, rate_hz, values_N))


def _numbers(parts, kind, low, high):
    """The columns of one window."""
    if kind != "intervals":
        worn = [
            (rate_hz, v[a:b])  # what is missing for long is no part of the stretch
            for rate_hz, v in parts
            for a, b in signal.runs(~signal.long_gaps(v, rate_hz))
        ]
        found = pulse.summarise(worn, low, high, wave=pulse.ECG if kind == "ecg" else pulse.PPG)
    else:
        joined = []
        for _, v in parts:  # a NaN behind each stretch: what follows it is no neighbour
            joined += [pulse.trustworthy(np.where((v >= low) & (v <= high), v, np.nan)), np.full(1, np.nan)]
        interval_N = np.concatenate(joined)
        found = {"heart_rate_bpm": pulse.heart_rate(interval_N), **pulse.hrv(interval_N)}
    return [found[name] for name in KINDS[kind]]
