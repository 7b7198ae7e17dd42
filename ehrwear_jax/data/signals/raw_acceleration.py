"""Makes channels of raw three-axis acceleration, in epochs of 5 s: ENMO and the angle of the arm.

    enmo       mg: mean over the samples of accelerometry.enmo.
    arm_angle  degrees: accelerometry.arm_angle of the epoch's mean vector; the last of the three axes is the one whose
               angle to the horizontal plane is taken.

The axes of a device are calibrated by gravity first (gravity_calibration.py), window by window, with the still times of
the same device and rate up to the window's end: nothing later changes a window. Until they point in enough directions a
window keeps the readings of the device.

A sample takes part if all three axes are known: beside one of the first axis, the latest of each other axis that was
complete when it was and reaches into its time. Recordings of fewer than 5 Hz are left out, since ENMO of means over so
long is too low.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from ehrwear_jax.config.data import ACCELERATION_CHANNELS
from ehrwear_jax.data.formats.stretches import Limits, Stretch, channel_limits
from ehrwear_jax.data.signals import accelerometry, gravity_calibration, overlap
from ehrwear_jax.data.signals.masks import runs

ENMO, ANGLE = ACCELERATION_CHANNELS
UNITS = {ENMO: "mg", ANGLE: "deg"}
MIN_RATE_HZ = 5.0
MIN_COVERAGE = 0.5  # share of an epoch without which it has no value
CALIBRATED = "windows of acceleration calibrated by gravity"
NOT_CALIBRATED = "windows of acceleration not calibrated"
# Names of the counts and what they say.
COUNTS = {
    "samples of an axis alone": "acceleration of which not all three axes are known",
    "samples of slow axes": f"acceleration of less than {MIN_RATE_HZ:g} Hz, of which no ENMO is made",
}
_EPOCH_US = round(accelerometry.ANGLE_EPOCH_S * 1e6)
_AT_ONCE = 1 << 19  # samples
_Pieces = Iterator[tuple[np.ndarray, np.ndarray]]


def of_person(
    rows: Iterable[Stretch], axes: Sequence[str], in_g: Mapping[str, float], window_us: int, limits: Limits
) -> tuple[list[Stretch], dict[str, int]]:
    """The channels of one person.

    Args:
      rows: recorded stretches; those of other channels are ignored.
      axes: three channels. in_g: factor that brings each one's unit to g.
      window_us: length of the windows, a multiple of an hour.
      limits: values outside the plausible range of their channel count as missing.

    Returns:
      (stretches of UNITS at one value per epoch, {name: number} of COUNTS, CALIBRATED and NOT_CALIBRATED).
    """
    counts = dict.fromkeys((*COUNTS, CALIBRATED, NOT_CALIBRATED), 0)
    by_source, made = overlap.by_source(rows, axes), list[Stretch]()
    for source in sorted({source for _, source in by_source}):
        parts = [
            [
                (start_us, rate_hz, _in_g(values_N, in_g[axis], *channel_limits(limits, axis)))
                for start_us, rate_hz, values_N in overlap.without_repeats(by_source.get((axis, source), []))[0]
            ]
            for axis in axes
        ]
        n_known = sum(int(np.isfinite(values_N).sum()) for part in parts for _, _, values_N in part)
        if max(rate_hz for part in parts for _, rate_hz, _ in part) < MIN_RATE_HZ:
            counts["samples of slow axes"] += n_known
            continue
        device = None if source[0] else source[1]
        stretches, n_used, n_calibrated, n_windows = _of_source(parts, device, window_us)
        made += stretches
        counts["samples of an axis alone"] += n_known - n_used
        counts[CALIBRATED] += n_calibrated
        counts[NOT_CALIBRATED] += n_windows - n_calibrated
    return made, counts


def _in_g(values_N, factor, low, high):
    return np.where((values_N >= low) & (values_N <= high), values_N * np.float32(factor), np.float32(np.nan))


def _of_source(parts, device, window_us):
    """(stretches, samples of all axes used, windows calibrated, windows) of the three axes of a device at one rate."""
    rate_hz = float(np.median([rate for part in parts for _, rate, _ in part]))
    sums = []
    for edge_N, g_Nx3 in _pieces(parts):
        x_Nx3 = g_Nx3.astype(np.float64)
        one_N = np.full((len(x_Nx3), 1), 1.0)
        sums.append(_by_epoch(edge_N, window_us, np.concatenate([one_N, x_Nx3, x_Nx3**2], axis=1)))
    epoch_K, sum_Kx7 = _added(sums, 7)
    if not len(epoch_K):
        return [], 0, 0, 0
    window_W, gain_offset_Wx2x3 = _calibration(epoch_K, sum_Kx7, window_us, rate_hz)
    movement = []
    for edge_N, g_Nx3 in _pieces(parts):
        of_N = np.searchsorted(window_W, (edge_N[1:] - 1) // window_us)
        gain_Nx3, offset_Nx3 = gain_offset_Wx2x3[of_N, 0], gain_offset_Wx2x3[of_N, 1]
        value_N = accelerometry.enmo(gain_Nx3 * (g_Nx3 - offset_Nx3))
        movement.append(_by_epoch(edge_N, window_us, value_N[:, None]))
    _, movement_Kx1 = _added(movement, 1)
    count_K = sum_Kx7[:, 0]
    gain_offset_Kx2x3 = gain_offset_Wx2x3[np.searchsorted(window_W, epoch_K * _EPOCH_US // window_us)]
    mean_Kx3 = gain_offset_Kx2x3[:, 0] * (sum_Kx7[:, 1:4] / count_K[:, None] - gain_offset_Kx2x3[:, 1])
    enough_K = count_K >= MIN_COVERAGE * rate_hz * accelerometry.ANGLE_EPOCH_S
    values = {ENMO: movement_Kx1[:, 0] / count_K, ANGLE: accelerometry.arm_angle(mean_Kx3)}
    stretches = []
    known = epoch_K[enough_K]
    there = np.zeros(int(epoch_K[-1] - epoch_K[0]) + 1, bool)
    there[known - epoch_K[0]] = True
    for first, last in runs(there):
        at = slice(*np.searchsorted(known, (first + epoch_K[0], last + epoch_K[0])))
        for channel, value_K in values.items():
            run = value_K[enough_K][at].astype(np.float32)
            start_us = int(known[at][0]) * _EPOCH_US
            stretches.append(Stretch(start_us, 1e6 / _EPOCH_US, channel, run, device))
    changed_W = (gain_offset_Wx2x3 != gravity_calibration.IDENTITY).any(axis=(1, 2))
    return stretches, 3 * int(count_K.sum()), int(changed_W.sum()), len(window_W)


def _calibration(epoch_K, sum_Kx7, window_us, rate_hz):
    """(windows, counted from the epoch [W]; gain and offset [W, 2, 3], from what was recorded up to each one's end)."""
    cell_s = gravity_calibration.CELL_S
    cell_C, of_K = np.unique(epoch_K // round(cell_s * 1e6 / _EPOCH_US), return_inverse=True)
    sum_Cx7 = np.zeros((len(cell_C), 7))
    np.add.at(sum_Cx7, of_K.ravel(), sum_Kx7)
    window_C = cell_C * cell_s * 1_000_000 // window_us
    window_W, first_W = np.unique(window_C, return_index=True)
    seen, found = gravity_calibration.NONE, []
    for sum_Nx7 in np.split(sum_Cx7, first_W[1:]):
        still = gravity_calibration.still(sum_Nx7[:, 0], sum_Nx7[:, 1:4], sum_Nx7[:, 4:], cell_s * rate_hz)
        seen = gravity_calibration.add(seen, gravity_calibration.postures(still))
        found.append(gravity_calibration.fit(seen))
    return window_W, np.array(found)


def _pieces(parts) -> _Pieces:
    """(edges [N + 1], us; float32 [N, 3], g, NaN where an axis is not known) of the samples of the first axis."""
    first, *others = parts
    for start_us, rate_hz, values_N in first:
        for a in range(0, len(values_N), _AT_ONCE):
            mine_N = values_N[a : a + _AT_ONCE]
            edge_N = _edges(start_us, rate_hz, a, a + len(mine_N))
            yield edge_N, np.stack([mine_N, *(_beside(edge_N, part) for part in others)], axis=1)


def _edges(start_us, rate_hz, first, last):
    """As stretches.sample_edges, from sample `first` to the end of the one before `last`."""
    return start_us + np.round(np.arange(first, last + 1) * (1e6 / rate_hz)).astype(np.int64)


def _beside(edge_N, stretches):
    """float32 [N]: of each sample's time, the latest value of another axis that is complete at its end."""
    out_N = np.full(len(edge_N) - 1, np.nan, np.float32)
    for start_us, rate_hz, values_M in stretches:
        first, last = ((t - start_us) * rate_hz / 1e6 for t in (edge_N[0], edge_N[-1]))
        a, b = max(int(first) - 2, 0), min(int(last) + 2, len(values_M))
        if a >= b:
            continue
        edge_M = _edges(start_us, rate_hz, a, b)
        at_N = np.searchsorted(edge_M[1:], edge_N[1:], side="right") - 1
        ok_N = (at_N >= 0) & (edge_M[1:][np.maximum(at_N, 0)] > edge_N[:-1])
        found_N = values_M[a:b][np.maximum(at_N, 0)]
        out_N = np.where(ok_N & np.isfinite(found_N), found_N, out_N)
    return out_N


def _by_epoch(edge_N, window_us, value_NxC):
    """(epochs, increasing [K]; sums of the rows without NaN [K, C]); a sample belongs where grid.pool_row puts it."""
    good_N = np.isfinite(value_NxC).all(axis=1)
    epoch_N = np.maximum(edge_N[:-1], (edge_N[1:] - 1) // window_us * window_us)[good_N] // _EPOCH_US
    if not len(epoch_N):
        return epoch_N, np.zeros((0, value_NxC.shape[1]))
    first_K = np.flatnonzero(np.append(True, epoch_N[1:] != epoch_N[:-1]))
    return epoch_N[first_K], np.add.reduceat(value_NxC[good_N], first_K, axis=0)


def _added(parts, n_columns):
    """Of several pieces, as one: (epochs [K], sums [K, C])."""
    epoch = np.concatenate([np.zeros(0, np.int64), *(epoch_K for epoch_K, _ in parts)])
    epoch_K, of = np.unique(epoch, return_inverse=True)
    sum_KxC = np.zeros((len(epoch_K), n_columns))
    np.add.at(sum_KxC, of.ravel(), np.concatenate([np.zeros((0, n_columns)), *(sums for _, sums in parts)]))
    return epoch_K, sum_KxC
