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
from ehrwear_jax.runtime import checkpoint_manifest as manifest
from ehrwear_jax.runtime import distributed, files, run_dir
from ehrwear_jax.runtime import exit_codes as exits
from ehrwear_jax.stages import dry_run, evaluate, interpret, marks, model, prepare, report
from ehrwear_jax.stages.marks import ORDER, read_mark, settings, write_mark

WORK = {
    "prepare": prepare.run,
    "pretrain": model.pretrain,
    "embed": model.embed,
    "evaluate": evaluate.run,
    "interpret": interpret.run,
    "report": report.run,
}
# What only prints: needs no data, leaves nothing behind, runs when it is named and before the others.
PRINTED = {"describe": dry_run.describe, "compile": dry_run.compile_step}
TOGETHER = ("pretrain",)  # stages that all processes of a job do; the others are the first one's
LONGEST_STAGE_S = 7 * 86400.0


def run(config, workdir, stage_names):
    """Runs the named stages. Of several processes the first one does; all of them pretrain.

    Args:
      config: ConfigDict as `config.base()`.
      workdir: each stage has a folder of its name in it.

    Raises:
      ValueError: an unknown stage, a config that cannot run, a stage before the first named one that is not done (but
        for interpret, without which a report is made all the same).
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
    inputs = marks.inputs(config)
    wanted = marks.fingerprints(config, inputs)
    for stage in ORDER:
        folder = workdir / stage
        if stage == "report" and not config.report.predictions_dir:
            # known only now: the interpret stage may just have been run
            wanted = marks.fingerprints(config, inputs, marks.interpret_fault(config, workdir))
        mark = read_mark(folder)
        # kept beside the fingerprint that is made of it, to say what changed
        about = {"fingerprint": wanted[stage], "of": settings(config, stage) | (inputs if stage == "prepare" else {})}
        same, done = mark.get("fingerprint") == wanted[stage], bool(mark.get("done"))
        if stage not in stage_names:
            # a report of saved predictions stands on no stage before it
            alone = ["report"] if config.report.predictions_dir or stage == marks.OPTIONAL else []
            later = [s for s in ORDER[ORDER.index(stage) :] if s in stage_names and s not in alone]
            if later and (fault := marks.fault(mark, wanted[stage])):
                raise ValueError(f"the stage {later[0]} needs {stage}, which {fault} in {workdir}: add it to --stages")
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
