"""Saves and restores checkpoints of the training state; the only module that imports orbax.

orbax writes the arrays in the background, reads them onto any mesh, and its preservation policies decide what is kept.
What it does not do is done here: a manifest of all files and a commit mark that comes last (checkpoint_manifest.py),
check sums of the arrays as they were in memory, a look at the free space before a save, and the way back to the newest
checkpoint that is whole.

Its training.Checkpointer (tried with orbax 0.12.8) is not used, for it cannot wait for the commit mark:
- It removes old checkpoints as soon as its own rename is done. A mark written after that comes too late: of one
  checkpoint that is kept, a kill between the two leaves none. Its post_finalization_callback comes too early: a file
  of metadata is written again after it, so that digests taken there are wrong.
- Its list holds whatever was renamed, so that a checkpoint without mark, or a damaged one, counts among the newest n.
- After a save that failed, the next save raises that old error and is lost too, and what is to be removed is forgotten.
"""

import functools
import logging
import math
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from ehrwear_jax.runtime import checkpoint_manifest, distributed, files
from ehrwear_jax.runtime.exit_codes import NotSaved

PyTree = Any  # of arrays; State: a dict of them by name
State = dict[str, PyTree]

APART = ("params", "average", "best", "collections")  # parts of a state that are read without the others
MARGIN_BYTES = 1 << 20
HOST_BYTES = 1 << 26


class DamagedCheckpoint(ValueError):
    """A checkpoint is not what was saved."""


@functools.cache
def orbax() -> ModuleType:
    """orbax's v1 API, loaded at first use: a start that finds everything done reads no checkpoint."""
    try:
        from orbax.checkpoint import v1 as ocp
    except ImportError:  # where the v1 API still lives before orbax 1.0
        from orbax.checkpoint.experimental import v1 as ocp
    return ocp


def checksums(tree: PyTree) -> PyTree:
    """A number in 32 bits per leaf, of its bits and their places: the same on any mesh, another if any word changes.

    A sum modulo 2^32 of words times odd numbers, one per place, has no rounding and needs no order. A small state that
    is all here is summed by numpy, for which nothing needs to be compiled.
    """
    leaves, structure = jax.tree.flatten(tree)
    if state_bytes(tree) < HOST_BYTES and all(getattr(x, "is_fully_addressable", True) for x in leaves):
        return jax.tree.unflatten(structure, [_on_host(x) for x in jax.device_get(leaves)])
    return jax.tree.unflatten(structure, [int(x) for x in jax.device_get(_on_devices(leaves))])


def _weigh(bits, place):
    weight = place * np.uint32(0x9E3779B1)
    return (bits + np.uint32(1)) * ((weight ^ (weight >> np.uint32(15))) | np.uint32(1))


def _on_host(x):
    bits = np.ascontiguousarray(x).reshape(-1).view(f"u{x.dtype.itemsize}").astype(np.uint32)
    return int(_weigh(bits, np.arange(bits.size, dtype=np.uint32)).sum(dtype=np.uint32))


@jax.jit
def _on_devices(leaves):
    def one(x):
        if x.dtype == jnp.bool_:
            x = x.astype(jnp.uint8)
        bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}")).astype(jnp.uint32)
        place = jnp.zeros(x.shape, jnp.uint32)
        for axis, size in enumerate(x.shape):
            place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        return jnp.sum(_weigh(bits, place), dtype=jnp.uint32)

    return [one(x) for x in leaves]


def names(tree: PyTree) -> list[str]:
    """Path of each leaf, such as params/backbone/query, in the order of jax.tree.leaves."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]


def state_bytes(state: PyTree) -> int:
    """The size of all arrays of a pytree, each counted once, however many devices hold it."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state))


def _inventory(tree):
    leaves = zip(names(tree), jax.tree.leaves(tree), jax.tree.leaves(checksums(tree)), strict=True)
    return {name: [list(x.shape), str(x.dtype), total] for name, x, total in leaves}


@dataclass(frozen=True)
class _Saved:
    """What orbax's preservation policies ask of a checkpoint."""

    step: int
    time: datetime
    metrics: None = None


def preserved(times: dict[int, datetime], newest: int, every: int = 0) -> list[int]:
    """The steps that are kept of {step: commit time}: the newest ones, and the multiples of `every` (0: none).

    By orbax's policies; which checkpoints are counted and when the others are removed is decided here (see above).
    """
    policies = orbax().training.preservation_policies
    chosen = [policies.LatestN(newest), *([policies.EveryNSteps(every)] if every else [])]
    saved = [_Saved(step, times[step]) for step in sorted(times)]
    kept = policies.AnyPreservationPolicy(chosen).should_preserve(saved, context=policies.PreservationContext())
    return [x.step for x, keep in zip(saved, kept, strict=True) if keep]


def _split(state):
    """State -> what orbax saves, one folder each: {"params": ..., "state": the rest}."""
    rest = {k: v for k, v in state.items() if k not in APART}
    return {k: state[k] for k in APART if k in state} | ({"state": rest} if rest else {})


def _few_slices():
    """Context of orbax that lets devices share the writing of copies only where they are large.

    Each share of each shape is a program of its own to compile: of a small model hundreds, that write a few bytes each.
    """
    context = orbax().Context()
    context.array.saving.min_slice_bytes_for_replica_parallel = 1 << 20
    return context


class _NotWritten(Exception):
    """What processes said of the parts of a checkpoint that they could not write."""


def _sentence(failure):
    """What an exception says, or None."""
    if failure is None:
        return None
    words = " ".join(str(failure).split())[:300]
    return words if isinstance(failure, _NotWritten) else f"{type(failure).__name__}: {words}"


class Checkpoints:
    """Numbered checkpoints in a folder, saved in the background.

    With several processes all of them call every method, in the same order; the first one writes manifests and decides
    what is restored.

    Args:
      keep, keep_every: how many of the newest are kept, and those at multiples of a step (0: none).
      about: JSON-able dict that each checkpoint says about itself, beside its step: seed, config, data.
    """

    def __init__(
        self, folder: Path | str, keep: int = 2, keep_every: int = 0, about: dict[str, Any] | None = None
    ) -> None:
        self.folder = Path(folder).absolute()
        if distributed.is_first():
            self.folder.mkdir(parents=True, exist_ok=True)
        self._keep, self._keep_every, self._about = keep, keep_every, about or {}
        self._saving: tuple[int, Path] | None = None
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def steps(self) -> list[int]:
        """Steps of the committed checkpoints, ascending."""
        self.wait()
        return checkpoint_manifest.steps(self.folder)

    # ------------------------------------------------------------------------------------------------------- saving

    def save(self, step: int, state: State) -> None:
        """Starts saving a dict of pytrees of arrays; waits for the save before it.

        Raises:
          NotSaved: no room, or the save before failed. The checkpoints before are untouched.
          RuntimeError: the step is not after the newest one.
        """
        self.wait()  # also, orbax cannot save twice at a time
        if reason := distributed.from_first("checkpoint/before", self._refusal(step, state)):
            kind, sentence = reason
            raise (NotSaved if kind == "room" else RuntimeError)(sentence)
        about = self._about | {"step": step, "processes": jax.process_count(), "leaves": _inventory(state)}
        target = self.folder / str(step)
        self._saving, response, failure = (step, target), None, None
        try:
            with _few_slices():
                response = orbax().save_checkpointables_async(target, _split(state))
        except Exception as error:
            failure = error
        arguments = (response, failure, target, about)
        self._thread = threading.Thread(target=self._finish, args=arguments, name="checkpoint")
        self._thread.start()
        if failure and not distributed.several():  # of several all hear of it when they next wait
            self.wait()

    def _refusal(self, step, state):
        if not distributed.is_first():
            return None
        newest = max(checkpoint_manifest.steps(self.folder), default=None)
        if newest is not None and newest >= step:
            return "order", f"{self.folder}: step {step} was not saved; the newest is {newest}"
        checkpoint_manifest.tidy(self.folder)
        need, free = state_bytes(state) + MARGIN_BYTES, shutil.disk_usage(self.folder).free
        if free < need:
            return "room", (
                f"{self.folder}: no room for the checkpoint of step {step}: it needs {need / 1e6:.1f} MB, "
                f"{free / 1e6:.1f} MB are free; the newest checkpoint is {newest}"
            )
        return None

    def _finish(self, response, failure, target, about):
        """In a thread: waits for orbax; if all processes' parts are written the first one seals, and removes old ones.

        What one of them alone knew would let it save again while the others go on with the next step.
        """
        try:
            if response is not None:
                response.result()
        except BaseException as error:
            failure = error
        try:
            said = distributed.from_all(f"checkpoint/written/{target.name}", _sentence(failure))
            found = [f"process {i}: {reason}" if len(said) > 1 else reason for i, reason in enumerate(said) if reason]
            if found:
                raise _NotWritten("; ".join(found)) from failure
            if distributed.is_first():
                files.write_json(target / checkpoint_manifest.ABOUT, about)
                checkpoint_manifest.seal(target)
                times = checkpoint_manifest.commit_times(self.folder)
                for old in times.keys() - preserved(times, self._keep, self._keep_every):
                    checkpoint_manifest.remove(self.folder / str(old))
        except BaseException as error:  # raised in the main thread by wait
            self._failure = error

    @property
    def saving(self) -> int | None:
        """The step whose save was begun and not waited for, or None."""
        return None if self._saving is None else self._saving[0]

    def finished(self) -> bool:
        """Whether a save is over that nobody has waited for; on the first process."""
        return self._saving is not None and (self._thread is None or not self._thread.is_alive())

    def wait(self) -> None:
        """Returns when what was saved is on disk and committed.

        Raises:
          NotSaved: it could not be written. What is left of it is removed; the checkpoints before are untouched.
        """
        if self._saving is None:
            return
        if self._thread is not None:
            self._thread.join()
        (step, target), failure = self._saving, self._failure
        self._saving = self._thread = self._failure = None
        # all know whether the parts were written; only the first knows how sealing them went
        reason = distributed.from_first(f"checkpoint/{step}", _sentence(failure)) or _sentence(failure)
        if reason:
            if distributed.is_first():
                checkpoint_manifest.remove(target)
                checkpoint_manifest.tidy(self.folder)
            raise NotSaved(f"{self.folder}: the checkpoint of step {step} was not written: {reason}") from failure

    # ----------------------------------------------------------------------------------------------------- restoring

    def faults(self, step: int) -> list[str]:
        """What is wrong with the files of a checkpoint: sentences, none if it is whole."""
        return checkpoint_manifest.faults(self.folder / str(step))

    def restore(self, step: int, like: State) -> State:
        """The state saved at `step`, laid out like the pytree `like` of arrays or ShapeDtypeStructs with shardings.

        Raises:
          FileNotFoundError: there is no such checkpoint.
          DamagedCheckpoint: a file of it is damaged, truncated or missing, or the arrays are not those saved.
          ValueError: it holds another structure or other shapes.
        """
        self.wait()
        target = self.folder / str(step)
        exists, faults = distributed.from_first(
            "checkpoint/faults", [target.is_dir(), self.faults(step)] if distributed.is_first() else None
        )
        if not exists:
            raise FileNotFoundError(f"{self.folder}: there is no checkpoint {step}")
        if faults:
            raise DamagedCheckpoint(f"{self.folder}: checkpoint {step} is damaged: {'; '.join(faults)}")
        return _load(target, like)

    def restore_newest(self, like: State, set_aside: bool = False) -> tuple[int | None, State | None, list[str]]:
        """The newest checkpoint that is whole.

        Args:
          set_aside: rename what is damaged to <step>.damaged; for the one writer of the folder.

        Returns:
          (step, state, [what was skipped and why, a sentence each]); (None, None, []) if there is no checkpoint.

        Raises:
          DamagedCheckpoint: there are checkpoints, and none is whole.
          ValueError: the newest whole one holds another structure or other shapes.
        """
        skipped = {}
        here = [self.steps(), checkpoint_manifest.unfinished(self.folder)]
        whole, cut_off = distributed.from_first("checkpoint/steps", here)
        for step in reversed(whole):
            try:
                state = self.restore(step, like)
            except DamagedCheckpoint as error:
                skipped[step] = str(error)
                logging.warning("skipped: %s", error)
                continue
            if set_aside and distributed.is_first():
                for damaged in skipped:
                    checkpoint_manifest.set_aside(self.folder / str(damaged))
            notes = [f"{self.folder}: checkpoint {s}: {checkpoint_manifest.CUT_OFF}" for s in cut_off if s > step]
            for note in notes:
                logging.warning("skipped: %s", note)
            return step, state, [*notes, *skipped.values()]
        if skipped:
            raise DamagedCheckpoint(f"no checkpoint is whole: {'; '.join(skipped.values())}")
        return None, None, []

    def close(self) -> None:
        """As `wait`."""
        self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif self._thread is not None:  # what failed is not hidden by what also failed
            self._thread.join()


def _load(target, like):
    """Reads a checkpoint whose files are whole, and compares the arrays with the check sums of their saving."""
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
    want = checkpoint_manifest.about(target)["leaves"]
    if reason := _mismatch(abstract, want):
        raise ValueError(f"{target.parent}: checkpoint {target.name} is of another model: {reason}")
    parts = orbax().load_checkpointables(target, _split(abstract))
    state = {k: parts[k] for k in APART if k in parts} | parts.get("state", {})
    got = _inventory(state)
    if wrong := [name for name in got if got[name] != want[name]]:
        raise DamagedCheckpoint(f"{target.parent}: checkpoint {target.name}: {wrong[0]} is not what was saved")
    return {k: state[k] for k in like}


def _mismatch(like, want):
    """Why a state of these leaves is not the one that was saved; None if it may be."""
    found = {n: [list(x.shape), str(x.dtype)] for n, x in zip(names(like), jax.tree.leaves(like), strict=True)}
    for name in sorted(found.keys() - want.keys()):
        return f"it has no {name}"
    for name in sorted(want.keys() - found.keys()):
        return f"it has {name}, which this model has not"
    for name, (shape, dtype) in found.items():
        if (shape, dtype) != tuple(want[name][:2]):
            return f"{name} has shape {tuple(want[name][0])} {want[name][1]}, not shape: {tuple(shape)} {dtype}"
    return None


def read_parts(folder: Path | str, parts: Sequence[str] = ("params",)) -> dict[str, PyTree]:
    """Parts of a checkpoint as they were saved, on this process alone: {part: nested dict of numpy arrays}.

    For what has no model yet, or another one. The part must be made of dicts, as parameters are.

    Raises:
      DamagedCheckpoint: a file is damaged, truncated or missing.
    """
    folder = Path(folder).absolute()
    if faults := checkpoint_manifest.faults(folder):
        raise DamagedCheckpoint(f"{folder.parent}: checkpoint {folder.name} is damaged: {'; '.join(faults)}")
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    tree: dict[str, Any] = {}
    about = checkpoint_manifest.about(folder)
    for name, (shape, dtype, _) in about["leaves"].items():
        *path, last = name.split("/")
        if path and path[0] in parts:
            node = tree
            for key in path:
                node = node.setdefault(key, {})
            node[last] = jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype), sharding=here)
    me = jax.process_index()
    alone = orbax().Context()
    alone.multiprocessing.primary_host = me
    alone.multiprocessing.active_processes = {me}
    alone.multiprocessing.barrier_sync_key_prefix = f"read{me}"
    with alone:
        out = jax.device_get(orbax().load_checkpointables(folder, tree))
    for name, x in zip(names(out), jax.tree.leaves(out), strict=True):
        if _on_host(x) != about["leaves"][name][2]:
            raise DamagedCheckpoint(f"{folder.parent}: checkpoint {folder.name}: {name} is not what was saved")
    return out


def read_newest(folder: Path | str, parts: Sequence[str] = ("params",)) -> tuple[dict[str, PyTree], int]:
    """Parts of the newest checkpoint that is whole, as `read_parts`, and its step.

    Raises:
      FileNotFoundError: there is no checkpoint. DamagedCheckpoint: there are some, and none is whole.
    """
    skipped = []
    for step in reversed(checkpoint_manifest.steps(folder)):
        try:
            return read_parts(Path(folder) / str(step), parts), step
        except DamagedCheckpoint as error:
            skipped.append(str(error))
            logging.warning("skipped: %s", error)
    if skipped:
        raise DamagedCheckpoint(f"no checkpoint is whole: {'; '.join(skipped)}")
    raise FileNotFoundError(f"{folder}: no checkpoint")
