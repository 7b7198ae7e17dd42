"""Defines what a bundle is: a folder that holds one trained network and all that it needs away from its training data.

    bundle.json                model (family, config, seed), options of prepare, channels, their units and rates, sizes
    weights.npz                the variables that z is computed with, as float16 or float32
    codes.parquet, code_statistics.parquet, texts.parquet, text_statistics.parquet, signal_statistics.json,
    fit.json                   the code table with its units and what prepare fitted (data/store.py)
    value_ranges.parquet, family_facts.json, mapping-<n>.<suffix>    where there are any
    date_only.parquet          codes that carry dates without times
    latents.npz                mean and standard deviation of z over the training people's prediction times
    probes.npz, probes.json    the probe of each task with its calibration
    card.json, card.md         the model card
    manifest.json, COMMIT      sizes and digests of all of these, and the digest of that (checkpoint_manifest.py)

Arrays are stored without pickle. Nothing is of a single person: codes that fewer than config.prepare.min_subjects
training patients have are left out, people and their times are nowhere.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from ehrwear_jax.runtime import checkpoint_manifest

FORMAT = 1  # of what this module's docstring says; a later program reads all earlier ones
ABOUT, WEIGHTS, LATENTS, PROBES, PROBES_ABOUT = "bundle.json", "weights.npz", "latents.npz", "probes.npz", "probes.json"
CARD, CARD_TEXT, FIT, DATE_ONLY = "card.json", "card.md", "fit.json", "date_only.parquet"
_HALF_MOST = float(np.finfo(np.float16).max) / 2  # an array with more stays float32
_SEPARATOR = "/"


def is_bundle(folder: Path) -> bool:
    """Whether a folder looks like a bundle, whole or not."""
    return (folder / ABOUT).exists() or (folder / WEIGHTS).exists()


def seal(folder: Path) -> None:
    """Writes the manifest, last of all."""
    checkpoint_manifest.seal(folder)


def read_about(folder: Path) -> dict[str, Any]:
    """bundle.json of a bundle all of whose files are as they were written.

    Raises:
      FileNotFoundError: there is no such folder. ValueError: it is of a later format, or a file is damaged or missing,
        which it names.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such bundle")
    found = _format_of(folder)  # first: the files of a later format may be others
    if isinstance(found, int) and found != FORMAT:
        raise ValueError(
            f"{folder / ABOUT}: the bundle has format {found}, and this version of ehrwear_jax reads format {FORMAT}: "
            "use the version that wrote it, or a later one"
        )
    if faults := checkpoint_manifest.faults(folder):
        raise ValueError(f"{folder}: {faults[0]}")
    if not isinstance(found, int):
        raise ValueError(f"{folder / ABOUT}: it names no format of bundles")
    return json.loads((folder / ABOUT).read_text())


def _format_of(folder):
    try:
        return json.loads((folder / ABOUT).read_text()).get("format")
    except (OSError, ValueError, AttributeError):
        return None  # which the manifest will say


# ------------------------------------------------------------------------------------------------------------- arrays


def write_arrays(path: Path, tree: dict, half: bool = False) -> None:
    """Writes nested dicts of arrays as an .npz file; half: float32 arrays as float16 where that can hold them."""
    flat = traverse_util.flatten_dict(tree, sep=_SEPARATOR)
    with open(path, "wb") as f:
        np.savez_compressed(f, **{name: _stored(np.asarray(x), half) for name, x in flat.items()})


def _stored(x, half):
    small = half and x.dtype == np.float32 and np.all(np.abs(x) < _HALF_MOST)
    return x.astype(np.float16) if small else x


def read_arrays(path: Path) -> dict:
    """What `write_arrays` wrote, float16 as float32.

    Raises:
      ValueError: it holds something else than plain arrays.
    """
    with np.load(path, allow_pickle=False) as saved:
        flat = {name: saved[name] for name in saved.files}
    flat = {name: x.astype(np.float32) if x.dtype == np.float16 else x for name, x in flat.items()}
    return traverse_util.unflatten_dict(flat, sep=_SEPARATOR)
