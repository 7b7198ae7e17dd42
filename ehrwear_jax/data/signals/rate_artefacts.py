"""Takes artefacts out of heart and breathing rates, by thresholds on jumps and by the local signal-to-noise ratio.

    range   outside the plausible range of metadata/channels.parquet.
    noise   minutes around which the rate's level is less than MIN_SNR_DB above its noise: the median of the minutes
            within NEAR_MINUTES over the spread of their successive differences.
    jumps   a run between a jump away from the level before it, by a factor of JUMP or more from one value to the next,
            and the jump back to it within JUMP_MINUTES: the sensor slipped, or counted every second beat or each twice.
            A body changes more slowly, and does not return as abruptly.

Channels are those that `config.prepare.artefacts` names; auto: every declared one in beats or breaths a minute. Each is
judged by itself and per device, at the end of each window, by what was recorded up to then: a run whose jump back is
not there yet stays in this window, and what of it lies in the next one is taken out if the jump back comes. Nothing
later changes a window. What is taken out is missing, in the grid and in everything that is made of the channel.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ehrwear_jax.config.data import AUTO
from ehrwear_jax.data.formats import units
from ehrwear_jax.data.formats.stretches import Limits, Stretch, channel_limits, sample_edges
from ehrwear_jax.data.formats.times import HOUR_US, MINUTE_US
from ehrwear_jax.data.signals import grid

# Ours: halving and doubling lie far beyond, and so does what a heart does from one minute to the next.
JUMP = 1.35
JUMP_MINUTES = 10
BRIDGED_MINUTES = 3  # between two values that are called successive
MIN_SNR_DB = 14.0  # noise of a fifth of the level
NEAR_MINUTES = 7
MIN_DIFFERENCES = 5  # fewest for a noise
# Names of the counts and what they say.
COUNTS = {
    "out of range": "outside the plausible range of their channel",
    "noise": f"in minutes in which the level is less than {MIN_SNR_DB:g} dB above the noise",
    "jumps": f"between a jump by a factor of {JUMP:g} or more and the jump back within {JUMP_MINUTES} minutes",
}
_PER_MINUTE = units.UNITS["bpm"]


def parse(texts: Sequence[str], unit_of: Mapping[str, str]) -> tuple[str, ...]:
    """The channels to judge.

    Args:
      texts: of the config: names of channels, or "auto".
      unit_of: {declared channel: its unit}.

    Raises:
      ValueError: no such channel, or one that is no rate.
    """
    rates = [c for c, unit in unit_of.items() if units.UNITS.get(unit) == _PER_MINUTE]
    found = dict[str, None]()
    for text in texts:
        if text != AUTO and text not in rates:
            raise ValueError(
                f"config.prepare.artefacts holds {text!r}, expected 'auto' or a channel in beats or breaths a minute; "
                f"there are {sorted(rates)}"
            )
        found |= dict.fromkeys(rates if text == AUTO else [text])
    return tuple(found)


def remove(
    rows: Iterable[Stretch], channels: Sequence[str], window_us: int, limits: Limits
) -> tuple[list[Stretch], dict[str, int]]:
    """The stretches of one person with NaN in place of artefacts.

    Args:
      rows: recorded stretches.
      channels: as `parse` returns.
      window_us: length of the windows, a multiple of an hour.
      limits: plausible range of each channel.

    Returns:
      (stretches, {name: number of samples} of COUNTS), each sample counted by the first rule that finds it.
    """
    out, counts = list(rows), dict.fromkeys(COUNTS, 0)
    groups: dict[tuple[str, str], list[int]] = {}
    for i, row in enumerate(out):
        if row.channel in channels and len(row.values_N):
            groups.setdefault((row.channel, row.device or ""), []).append(i)
    for (channel, _), mine in groups.items():
        low, high = channel_limits(limits, channel)
        for i in mine:
            values_N = out[i].values_N
            with np.errstate(invalid="ignore"):
                bad_N = (values_N < low) | (values_N > high)
            out[i] = _without(out[i], bad_N)
            counts["out of range"] += int(bad_N.sum())
        for rule, find in (("noise", _noise), ("jumps", _jumps)):
            flags = find([out[i] for i in mine], window_us)
            for i, flag_N in zip(mine, flags, strict=True):
                flag_N = flag_N & np.isfinite(out[i].values_N)
                out[i] = _without(out[i], flag_N)
                counts[rule] += int(flag_N.sum())
    return out, counts


def _without(row, bad_N):
    return row._replace(values_N=np.where(bad_N, np.float32(np.nan), row.values_N)) if bad_N.any() else row


# ----------------------------------------------------------------------------------------------------------- noise
def _noise(rows, window_us):
    """bool [N] of each stretch: the minute in which the sample ends is a noisy one."""
    channel = rows[0].channel
    spec = grid.WindowSpec((channel,), window_us // HOUR_US, step_minutes=1, min_coverage=0.0)
    end_M, value_MxLx1, _ = grid.window_person(rows, spec, {})
    noisy_MxL = noisy_minutes(end_M, value_MxLx1[..., 0].astype(np.float64))
    m, minute = np.nonzero(noisy_MxL)
    bad = np.sort(end_M[m] // MINUTE_US - spec.steps + minute)
    found = []
    for row in rows:
        last_N = (sample_edges(row.start_us, row.rate_hz, len(row.values_N))[1:] - 1) // MINUTE_US
        found.append(np.isin(last_N, bad))
    return found


def noisy_minutes(end_M: np.ndarray, value_MxL: np.ndarray) -> np.ndarray:
    """bool [M, L]: minutes whose level is less than MIN_SNR_DB above the noise around them.

    The level is the median of the minutes within NEAR_MINUTES; the noise, the median absolute difference of successive
    ones of them, as the standard deviation that it is of a normal distribution. A minute knows the window before its
    own, and nothing beyond its own.

    Args:
      end_M: when windows end, increasing, microseconds. value_MxL: means of minutes, NaN where unknown.
    """
    n_steps = value_MxL.shape[1]
    back = min(NEAR_MINUTES + 1, n_steps)
    before_MxL = grid.windows_before(end_M, value_MxL, n_steps * MINUTE_US)
    known = np.concatenate([before_MxL[:, n_steps - back :], value_MxL], axis=1)
    level, _ = _median_around(known[:, 1:])
    spread, count = _median_around(np.abs(np.diff(known, axis=1)))
    noise = 1.4826 / np.sqrt(2) * spread
    with np.errstate(invalid="ignore"):
        noisy = (count >= MIN_DIFFERENCES) & (level < noise * 10 ** (MIN_SNR_DB / 20))
    return noisy[:, -n_steps:]


def _median_around(x_MxT):
    """(median of the known values within NEAR_MINUTES, NaN without any; their number), [M, T] each."""
    padded = np.pad(x_MxT, ((0, 0), (NEAR_MINUTES, NEAR_MINUTES)), constant_values=np.nan)
    near = np.sort(np.lib.stride_tricks.sliding_window_view(padded, 2 * NEAR_MINUTES + 1, axis=1))  # NaN comes last
    count = np.isfinite(near).sum(axis=-1)
    last = np.maximum(count - 1, 0)
    middle = np.stack([last // 2, (last + 1) // 2], axis=-1)
    return np.take_along_axis(near, middle, axis=-1).mean(axis=-1), count


# ----------------------------------------------------------------------------------------------------------- jumps
def _jumps(rows, window_us):
    """bool [N] of each stretch: the sample lies between a jump away and the jump back."""
    ends = [sample_edges(row.start_us, row.rate_hz, len(row.values_N))[1:] for row in rows]
    end_N, value_N = np.concatenate(ends), np.concatenate([row.values_N for row in rows])
    order = np.argsort(end_N, kind="stable")
    order = order[value_N[order] > 0]  # known ones
    time_N, level_N = end_N[order], np.log(value_N[order].astype(np.float64))
    bridged_us = BRIDGED_MINUTES * MINUTE_US + max(1e6 / row.rate_hz for row in rows)
    jumps_N = np.abs(np.diff(level_N, prepend=level_N[:1])) >= np.log(JUMP)
    jump_J = np.flatnonzero(jumps_N & (np.diff(time_N, prepend=time_N[:1]) <= bridged_us))
    window_J = (time_N[jump_J] - 1) // window_us
    whole = np.zeros(len(end_N), bool)
    for window in np.unique(window_J):  # by what is known at its end
        begin_us = window * window_us
        known_J = jump_J[(time_N[jump_J] > begin_us - JUMP_MINUTES * MINUTE_US) & (window_J <= window)]
        for i, j in _there_and_back(time_N, level_N, known_J):
            whole[order[i:j][time_N[i:j] > begin_us]] = True
    return np.split(whole, np.cumsum([len(x) for x in ends])[:-1])


def _there_and_back(time_N, level_N, jump_J):
    """Half-open ranges between a jump and the first one that leads back to the level before it, one after another."""
    found, done = [], 0
    for k, i in enumerate(jump_J):
        for j in jump_J[k + 1 :] if i >= done else ():
            if time_N[j] - time_N[i] > JUMP_MINUTES * MINUTE_US:
                break
            if abs(level_N[j] - level_N[i - 1]) < np.log(JUMP):
                found.append((i, j))
                done = j + 1
                break
    return found
