"""Starts from another run's parameters: what fits is taken, place by place where vocabularies differ."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from ehrwear_jax.models.family import Examples
from ehrwear_jax.runtime import checkpoint_manifest, distributed, files
from ehrwear_jax.runtime.checkpoint import names, read_newest

NAMES, REPORT = "names.json", "init_from.json"


@dataclasses.dataclass(frozen=True)
class Places:
    """What the places along the axes of a model's parameters are called.

    Attributes:
      axes: {path of a parameter: logical names of its axes}.
      names: {logical name: names of its places, in order}, as Examples.place_names.
      content: lists that must be alike for the names to mean the same, as Examples.content_names.
    """

    axes: Mapping[str, tuple[str | None, ...]]
    names: Mapping[str, list[str]]
    content: Mapping[str, list[str]]

    @classmethod
    def of(cls, examples: Examples, axes: Mapping[str, tuple[str | None, ...]]) -> "Places":
        """Of a model that reads these examples."""
        return cls(axes, examples.place_names(), examples.content_names())

    def axis(self, path: str) -> tuple[int, str] | None:
        """(axis, its logical name) of the axis of a parameter whose places have names, or None."""
        found = [(k, a) for k, a in enumerate(self.axes.get(path, ())) if a is not None and a in self.names]
        return found[0] if found else None


def write_names(folder: Path, examples: Examples) -> None:
    """Notes in the run's folder what the places of its tables are called."""
    about = {"names": examples.place_names(), "content": examples.content_names()}
    files.write_json(Path(folder) / NAMES, about)


def identity(source: str | Path) -> str:
    """Digest of the parameters of a trained model's newest checkpoint, as the checkpoint sums them; "" without one."""
    folder = Path(source) / "checkpoints"
    steps = checkpoint_manifest.steps(folder)
    return files.digest(checkpoint_manifest.about(folder / str(steps[-1]))["leaves"]) if steps else ""


def from_run(source: str | Path, params: Any, places: Places, folder: Path | None = None) -> Any:
    """The given parameters with those of another run in their places; says what matched.

    Args:
      source: folder of a trained model; of its newest whole checkpoint those are taken that it is used with: of the
        lowest validation loss if they were kept, else averaged ones, else the last.
      params: the new run's, as initialised; their layout over the devices is kept.
      folder: receives init_from.json, the report.

    Raises:
      FileNotFoundError, DamagedCheckpoint: there is no checkpoint, or none that is whole.
      ValueError: no parameter fits.
    """
    source = Path(source)
    if not (source / "checkpoints").is_dir() and (source / "models").is_dir():
        raise FileNotFoundError(f"{source}: name one of its models, a folder in {source / 'models'}")
    parts, step = read_newest(source / "checkpoints", ("params", "average", "best"))
    theirs = parts["best"]["variables"]["params"] if "best" in parts else parts.get("average", parts["params"])
    new, report = merge(_on_host(params), theirs, places, files.read_json(source / NAMES))
    report = {"source": str(source), "step": step} | report
    logging.info(
        "init_from %s, step %d: %d of %d parameters taken (%s)",
        source, step, report["taken"], report["total"], "; ".join(report["summary"]),
    )  # fmt: skip
    if folder is not None and distributed.is_first():
        files.write_json(Path(folder) / REPORT, report, indent=1)
    if not report["taken"]:
        raise ValueError(f"{source}: init_from found no parameter that fits this model")
    return jax.tree.map(
        lambda x, old: jax.make_array_from_callback(old.shape, old.sharding, lambda i: x[i]), new, params
    )


def _on_host(params):
    if all(x.is_fully_addressable or x.is_fully_replicated for x in jax.tree.leaves(params)):
        return jax.device_get(params)
    return multihost_utils.process_allgather(params, tiled=True)


def merge(mine: Any, theirs: Any, places: Places, their_names: dict | None) -> tuple[Any, dict]:
    """Parameters of one model with those of another in their places.

    Args:
      mine, theirs: nested dicts of numpy arrays. their_names: as write_names notes it; None: unknown.

    Returns:
      (parameters, {"taken", "total": numbers, "summary": sentences, "leaves": {name: what became of it}}).
    """
    source = dict(zip(names(theirs), jax.tree.leaves(theirs), strict=True))
    known = their_names if their_names and their_names["content"] == dict(places.content) else None
    out, leaves, taken, by_name = [], {}, 0, {}
    for name, x in zip(names(mine), jax.tree.leaves(mine), strict=True):
        y, axis = source.get(name), places.axis(name)
        if y is None:
            leaves[name], n = "new: the other run has none", 0
        elif axis and known is not None:
            x, n, found = _by_name(x, y, axis[0], places.names[axis[1]], known["names"].get(axis[1], []))
            what = axis[1].replace("_", " ")
            leaves[name] = f"{found[0]} of {found[1]} {what}s found by name" if n else f"new: {tuple(y.shape)} there"
            by_name[what] = found
        elif x.shape == y.shape and (not axis or their_names is None):
            x, n = y.astype(x.dtype), x.size
            leaves[name] = "taken" if not axis else "taken, though the other run has no names for its places"
        else:
            leaves[name], n = f"new: {tuple(y.shape)} there, {tuple(x.shape)} here", 0
        out.append(x)
        taken += n
    unused = sorted(source.keys() - leaves.keys())
    summary = [f"{found} of {of} {what}s by name" for what, (found, of) in by_name.items()]
    summary += [f"{len(unused)} arrays unused, such as {unused[0]}"] if unused else []
    summary += [f"{n} arrays new" for n in [sum(v.startswith("new") for v in leaves.values())] if n]
    total = sum(x.size for x in out)
    report = {"taken": int(taken), "total": int(total), "summary": summary, "leaves": leaves, "unused": unused}
    return jax.tree.unflatten(jax.tree.structure(mine), out), report


def _by_name(x, y, axis, here, there):
    """(x with the places of y whose names both have, how many numbers that are, (names found, names))."""
    at = {name: i for i, name in enumerate(there)}
    pairs = [(i, at[name]) for i, name in enumerate(here) if name in at]
    a, b = np.moveaxis(x, axis, 0), np.moveaxis(y, axis, 0)
    if a.shape[1:] != b.shape[1:] or len(a) != len(here) or len(b) != len(there) or not pairs:
        return x, 0, (0, len(here))
    to, of = (np.array(side) for side in zip(*pairs, strict=True))
    out = a.copy()
    out[to] = b[of]
    return np.moveaxis(out, 0, axis).astype(x.dtype), to.size * int(np.prod(a.shape[1:])), (len(pairs), len(here))
