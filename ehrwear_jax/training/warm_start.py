"""Starting from another run's parameters: what fits is taken, token by token where the vocabularies differ."""

import json
import logging
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from ehrwear_jax.runtime import distributed, files
from ehrwear_jax.runtime.checkpoint import names, read_newest

NAMES, REPORT = "names.json", "init_from.json"
# (end of the path, axis, what its places are, places per name): tables with a place per token or code
BY_NAME = (
    ("ehr/table/embedding", 0, "token", 1),
    ("ehr/value_table/embedding", 0, "token", 1),
    ("ehr/bias", 0, "token", 1),
    ("later/kernel", 1, "future_code", "horizons"),
    ("later/bias", 0, "future_code", "horizons"),
    ("recall/kernel", 1, "recalled_token", "horizons+1"),
    ("recall/bias", 0, "recalled_token", "horizons+1"),
)


def write_names(folder, patients):
    """Notes in the run's folder what the places of its tables are called."""
    if distributed.is_first():
        files.write_whole(Path(folder) / NAMES, json.dumps(place_names(patients)))


def place_names(patients):
    """{"token", "future_code", "recalled_token": names in order; "horizons": days}."""
    tokens = patients.vocabulary.tokens["token"].to_list()
    recalled = patients.vocabulary.recalled_tokens(patients.config.recalled_tokens)
    return {
        "token": tokens,
        "future_code": list(patients.future_codes),
        "recalled_token": [tokens[i] for i in recalled],
        "horizons": list(patients.config.horizons),
    }


def from_run(source, params, patients, folder=None):
    """The given parameters with those of another run in their places; says what matched.

    Args:
      source: folder of a pretraining run; its newest whole checkpoint is taken, its `average` if it has one.
      params: the new run's, as initialised; their layout over the devices is kept.
      folder: receives init_from.json, the report.

    Raises:
      FileNotFoundError, DamagedCheckpoint: there is no checkpoint, or none that is whole.
      ValueError: no parameter fits.
    """
    source = Path(source)
    if not (source / "checkpoints").is_dir() and (source / "pretrain").is_dir():
        raise FileNotFoundError(f"{source}: name one of its runs, such as {source}/pretrain/all/joint")
    parts, step = read_newest(source / "checkpoints", ("params", "average"))
    alike = "average" in parts and jax.tree.structure(parts["average"]) == jax.tree.structure(parts["params"])
    theirs = parts["average" if alike else "params"]
    new, report = merge(_on_host(params), theirs, place_names(patients), files.read_json(source / NAMES))
    report = {"source": str(source), "step": step} | report
    logging.info(
        "init_from %s, step %d: %d of %d parameters taken (%s)",
        source, step, report["taken"], report["total"], "; ".join(report["summary"]),
    )  # fmt: skip
    if folder is not None and distributed.is_first():
        files.write_whole(Path(folder) / REPORT, json.dumps(report, indent=1))
    if not report["taken"]:
        raise ValueError(f"{source}: init_from found no parameter that fits this model")
    return jax.tree.map(
        lambda x, old: jax.make_array_from_callback(old.shape, old.sharding, lambda i: x[i]), new, params
    )


def _on_host(params):
    if all(x.is_fully_addressable or x.is_fully_replicated for x in jax.tree.leaves(params)):
        return jax.device_get(params)
    return multihost_utils.process_allgather(params, tiled=True)


def merge(mine, theirs, my_names, their_names):
    """Parameters of one model with those of another in their places.

    Args:
      mine, theirs: nested dicts of numpy arrays. my_names, their_names: as place_names; the latter may be None.

    Returns:
      (parameters, {"taken", "total": numbers, "summary": sentences, "leaves": {name: what became of it}}).
    """
    source = dict(zip(names(theirs), jax.tree.leaves(theirs), strict=True))
    out, leaves, taken, by_name = [], {}, 0, {}
    for name, x in zip(names(mine), jax.tree.leaves(mine), strict=True):
        y = source.get(name)
        rule = next((r for r in BY_NAME if name.endswith(r[0])), None)
        if y is None:
            leaves[name], n = "new: the other run has none", 0
        elif rule and their_names is not None and my_names["horizons"] == their_names["horizons"]:
            x, n, found = _by_name(x, y, rule, my_names, their_names)
            leaves[name] = f"{found[0]} of {found[1]} {rule[2]}s found by name" if n else f"new: {tuple(y.shape)} there"
            by_name[rule[2]] = found
        elif x.shape == y.shape and (not rule or their_names is None):
            x, n = y.astype(x.dtype), x.size
            leaves[name] = "taken" if not rule else "taken, though the other run has no names for its places"
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


def _by_name(x, y, rule, my_names, their_names):
    """(x with the places of y whose names both have, how many numbers that are, (names found, names))."""
    _, axis, kind, per = rule
    horizons = len(my_names["horizons"])
    per = {1: 1, "horizons": horizons, "horizons+1": horizons + 1}[per]
    here, there = my_names[kind], {name: i for i, name in enumerate(their_names[kind])}
    pairs = [(i, there[name]) for i, name in enumerate(here) if name in there]
    a, b = np.moveaxis(x, axis, 0), np.moveaxis(y, axis, 0)
    if a.shape[1:] != b.shape[1:] or len(a) != per * len(here) or len(b) != per * len(there) or not pairs:
        return x, 0, (0, len(here))
    to, of = (np.array(side)[:, None] * per + np.arange(per) for side in zip(*pairs, strict=True))
    out = a.copy()
    out[to.ravel()] = b[of.ravel()]
    return np.moveaxis(out, 0, axis).astype(x.dtype), to.size * int(np.prod(a.shape[1:])), (len(pairs), len(here))
