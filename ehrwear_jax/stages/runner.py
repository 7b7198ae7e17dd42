"""Runs stages in order; a stage is done for one fingerprint of its settings, its inputs and the stages before it."""

import contextlib
import json
import logging
import os
import shutil
import signal
import threading
import time
from pathlib import Path

from ehrwear_jax import config as config_lib
from ehrwear_jax import distributed, exits, files, manifest, run_dir, train
from ehrwear_jax.files import digest
from ehrwear_jax.stages import dry_run, evaluate, interpret, model, prepare, report

WORK = {
    "prepare": prepare.run,
    "pretrain": model.pretrain,
    "embed": model.embed,
    "evaluate": evaluate.run,
    "interpret": interpret.run,
    "report": report.run,
}
ORDER = tuple(WORK)
# What only prints: needs no data, leaves nothing behind, runs when it is named and before the others.
PRINTED = {"describe": dry_run.describe, "compile": dry_run.compile_step}
# Which parts of the config each stage reads ("a.b": one value of a part); a change elsewhere leaves its result valid.
READS = {
    "prepare": ("seed", "data", "simulate", "labels", "prepare", "cohort"),
    "pretrain": ("seed", "context", "model", "train", "rows"),
    "embed": ("context", "model", "rows", "embed", "evaluate.tasks", "evaluate.reference_row"),
    "evaluate": ("name", "seed", "evaluate", "finetune", "rows"),
    "interpret": ("name", "seed", "interpret", "evaluate", "report.reliability_task", "rows"),
    "report": ("name", "seed", "report", "evaluate"),
}
# Settings that change how a result is reached but not the result.
NOT_RESULTS = {"train": train.NOT_RESULTS, "prepare": ("scheduler", "workers", "worker_memory_gb")}
TOGETHER = ("pretrain",)  # stages that all processes of a job do; the others are the first one's
LONGEST_STAGE_S = 7 * 86400.0
INPUTS = ("meds_dir", "wearable_dir", "labels_dir", "source_dir")


def digest_files(folder):
    """SHA-256 over the names and contents of all files below a folder."""
    return digest(list(files.digests(folder).items()))


def settings(config, stage):
    """The part of the config that decides the stage's result."""
    out = {}
    for key in READS[stage]:
        part, _, name = key.partition(".")
        value = config[part][name] if name else config[part]
        value = value.to_dict() if hasattr(value, "to_dict") else value
        if isinstance(value, dict):
            value = {
                k: v
                for k, v in value.items()
                if k not in NOT_RESULTS.get(key, ()) and not (key == "data" and k in INPUTS)
            }
        out[key] = value
    if stage == "prepare" and config.data.source != "synthetic":
        out.pop("simulate")
    return out


def fingerprints(config, inputs=None):
    """{stage: fingerprint}, each with those of the stages before it; inputs: of `_inputs`, where they are known."""
    out, before = {}, ""
    inputs = _inputs(config) if inputs is None else inputs
    for stage in ORDER:
        given = {"prepare": inputs, "report": _saved(config)}.get(stage, {})
        before = out[stage] = digest([stage, settings(config, stage), given, before])
    return out


def _saved(config):
    """{setting: SHA-256 of its files} of the saved predictions that the report is of."""
    return {k: digest_files(config.report[k]) for k in ("predictions_dir", "tuning_dir") if config.report[k]}


def _inputs(config):
    """{input: SHA-256 of its files}."""
    inputs = {k: digest_files(config.data[k]) for k in INPUTS if config.data[k]}
    return inputs | {str(path): digest(Path(path).read_bytes().hex()) for path in config_lib.user_tables(config)}


def read_mark(folder):
    """What stage.json says: {"fingerprint", "done", "seconds"}, or {}."""
    path = folder / "stage.json"
    return json.loads(path.read_text()) if path.exists() else {}


def write_mark(folder, **values):
    files.write_whole(folder / "stage.json", json.dumps(values, default=str))


def run(config, workdir, stage_names):
    """Runs the named stages. Of several processes the first one does; all of them pretrain.

    Args:
      config: ConfigDict as `config.base()`.
      workdir: each stage has a folder of its name in it.

    Raises:
      ValueError: an unknown stage, a config that cannot run, a stage before the first named one that is not done.
      OSError: missing input, unwritable workdir.
      RunError: another process works in the workdir, a pretraining under way would be given up, a signal came.
    """
    workdir = Path(workdir)
    if unknown := [s for s in stage_names if s not in ORDER and s not in PRINTED]:
        raise ValueError(f"unknown stage {unknown[0]!r}; stages are {', '.join((*ORDER, *PRINTED))}")
    for stage in (s for s in PRINTED if s in stage_names):
        PRINTED[stage](config)
    stage_names = [s for s in stage_names if s in ORDER]
    if not stage_names:
        return
    config_lib.check(config)
    if not distributed.is_first():
        return _follow(config, workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        files.write_whole(workdir / "config.json", config.to_json_best_effort(indent=1))
    except OSError as error:
        raise OSError(f"cannot write to the workdir {workdir}: {error.strerror}") from error
    with run_dir.Lease(workdir), _interruptible():
        _lead(config, workdir, stage_names)
        distributed.from_first("stage", None)


def _follow(config, workdir):
    """What the other processes do: wait for a stage that all do together."""
    with _interruptible():
        while stage := distributed.from_first("stage", timeout_s=LONGEST_STAGE_S):
            WORK[stage](config, workdir)


@contextlib.contextmanager
def _interruptible():
    """SIGTERM ends a stage as ctrl-C does; what it has done is kept. Pretraining saves first (supervision.py)."""

    def stop(number, frame):
        raise exits.Stopped("stopped by SIGTERM; run it again to go on")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _checkpoints(folder):
    """The last step that any row below a pretraining folder has saved, or 0."""
    return max((s for path in folder.glob("*/*/checkpoints") for s in manifest.steps(path)), default=0)


def _lead(config, workdir, stage_names):
    inputs = _inputs(config)
    marks = fingerprints(config, inputs)
    for stage in ORDER:
        folder = workdir / stage
        mark = read_mark(folder)
        # kept beside the fingerprint that is made of it, to say what changed
        about = {"fingerprint": marks[stage], "of": settings(config, stage) | (inputs if stage == "prepare" else {})}
        same, done = mark.get("fingerprint") == marks[stage], bool(mark.get("done"))
        if stage not in stage_names:
            # a report of saved predictions stands on no stage before it
            alone = ["report"] if config.report.predictions_dir else []
            later = [s for s in ORDER[ORDER.index(stage) :] if s in stage_names and s not in alone]
            if later and not (same and done):
                state = (
                    "has not been run"
                    if not mark
                    else "is not finished"
                    if same
                    else "is out of date (config or input changed)"
                )
                raise ValueError(f"the stage {later[0]} needs {stage}, which {state} in {workdir}: add it to --stages")
            continue
        if stage == "pretrain" and set(stage_names) & set(ORDER[ORDER.index("embed") :]):
            prepare.prediction_index(config, workdir)  # a label table that is not there is said before the long work
        if same and done:
            logging.info("%s: done before, skipped", stage)
            continue
        if mark and not same:
            changed = run_dir.difference(mark.get("of", {}), json.loads(json.dumps(about["of"], default=str)))[:8]
            if stage == "pretrain" and not done and (begun := _checkpoints(folder)):
                what = "; ".join(changed) or "a stage before it changed"
                raise exits.Changed(
                    f"{folder} holds an unfinished pretraining (step {begun}) of other settings or data ({what}). "
                    f"Give it back what it was started with, take another --workdir, or move the folder away"
                )
            # a long pretraining is worth more than the disk it takes: the last result is kept aside
            aside = workdir / f"{stage}.previous"
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(folder, aside)
            logging.info("%s: config or input changed, runs again (the old result is in %s)", stage, aside.name)
            for sentence in changed:
                logging.info("%s: %s", stage, sentence)
        else:
            logging.info("%s: %s", stage, "resumes" if mark else "starts")
        folder.mkdir(parents=True, exist_ok=True)
        spent = read_mark(folder).get("seconds", 0.0)
        write_mark(folder, **about, done=False, seconds=spent)
        began = time.monotonic()
        try:
            if stage in TOGETHER:
                distributed.from_first("stage", stage)
            complete = WORK[stage](config, workdir) is not False
        finally:
            write_mark(folder, **about, done=False, seconds=spent + time.monotonic() - began)
        if not complete:
            logging.info("%s: stopped where the config says, not finished", stage)
            return
        seconds = read_mark(folder)["seconds"]
        write_mark(folder, **about, done=True, seconds=seconds)
        logging.info("%s: done in %.0f s", stage, seconds)
