"""Fills what a row holds beside the grid: the quality of its patches, and raw windows of sub-second signal inside them.

Raw windows show what the grid shows and no more. Hidden (none of its samples are in the batch, only its place) is one

- in a hidden patch, or as near to one as augmentation.time_warp can have moved it;
- in a window of which a channel is hidden, since the raw wave may be what that channel is computed from;
- in a step in which the grid, as shown, has nothing: lost by a perturbation of the record (data/perturbations.py);
- whose own channel, if that is on the grid, was lost there.

Hidden ones take part in the choice of those for which there is room, so that masks do not change the choice.
"""

from typing import TYPE_CHECKING

import numpy as np

from ehrwear_jax.models.joint import patient as patient_lib

if TYPE_CHECKING:
    from ehrwear_jax.models.joint.examples import People


def fill_raw(
    row: dict, first: int, patients: "People", raw: patient_lib.RawWindows, shown: tuple[np.ndarray, int], warp: float
) -> int:
    """Writes the raw windows of a context, and returns how many; the masks and the signal are written before.

    Each window of the context adds its share of the row's room, and raw windows take it in their order. So whether one
    is there depends on the context up to its own window, not on what follows or what else is in the row.

    Args:
      row, patients: see row.fill_row. first: how many raw windows the row has before them.
      raw: patient.RawWindows. shown: (windows of the patient that the context shows, increasing; slot of the first).
      warp: most that a step moves, as a share of a window.
    """
    config, (windows, w0) = patients.config, shown
    place_R = np.searchsorted(windows, raw.window_R)
    inside = np.flatnonzero(np.append(windows, -1)[place_R] == raw.window_R)
    chosen: list[int] = []
    for r in inside.tolist():
        if len(chosen) < config.raw_windows * (place_R[r] + 1) // config.windows:
            chosen.append(r)
    if not chosen:
        return 0
    slot_K, step_K = w0 + place_R[chosen], raw.step_R[chosen]
    s = slice(first, first + len(chosen))
    row["raw_window"][s] = slot_K
    row["raw_patch"][s] = np.minimum(step_K // config.patch_steps, row["patch_mask"].shape[1] - 1)
    observed_KxC = row["observed"][slot_K, step_K]
    visible_K = observed_KxC.any(axis=1) & ~row["channel_mask"][slot_K].any(axis=1)
    if row["patch_mask"][slot_K].any():
        last = row["observed"].shape[1] - 1
        reach = int(np.ceil(warp * last))
        for moved in range(-reach, reach + 1):
            patch_K = np.clip(step_K + moved, 0, last) // config.patch_steps
            visible_K &= ~row["patch_mask"][slot_K, np.minimum(patch_K, row["patch_mask"].shape[1] - 1)]
    on_grid = patients.raw_channel_A >= 0
    visible_KxA = np.where(on_grid, observed_KxC[:, np.where(on_grid, patients.raw_channel_A, 0)], True)
    visible_KxA = visible_KxA & visible_K[:, None]
    values_KxSxA = raw.values_RxSxA[chosen].astype(np.float32)
    seen_KxSxA = np.isfinite(values_KxSxA) & visible_KxA[:, None]
    row["raw_observed"][s] = seen_KxSxA
    row["raw"][s] = np.where(seen_KxSxA, values_KxSxA, np.float32(0))
    return len(chosen)


def fill_quality(row: dict, patients: "People", quality_MxLxC: np.ndarray, windows: np.ndarray, w0: int) -> None:
    """Writes the quality of the patches of a context: the mean over its steps, of which unknown ones count as zero.

    So it is the mean quality of the known steps times their share. What the signal lost (augmentation.drop_channels,
    data/perturbations.py) is unknown; what is hidden by a mask stays, as in `wear`: the model hides it.

    Args:
      row, patients: see row.fill_row. quality_MxLxC: of all windows of the patient, in 255ths.
      windows: those that the context shows. w0: slot of the first of them.
    """
    w = slice(w0, w0 + len(windows))
    known_MxLxC = np.where(row["observed"][w], quality_MxLxC[windows], np.uint8(0))
    n_patches, steps = row["patch_mask"].shape[1], patients.config.patch_steps
    of_patch = known_MxLxC[:, : n_patches * steps].reshape(len(windows), n_patches, steps, known_MxLxC.shape[2])
    row["quality"][w] = of_patch.sum(axis=2, dtype=np.float32) * np.float32(1 / (255 * steps))
