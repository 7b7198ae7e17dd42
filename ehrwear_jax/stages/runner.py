"""Runs stages in order; a stage is done for one fingerprint of its settings, its inputs and the stages before it."""

import json
import logging
import os
import shutil
import time
from pathlib import Path

from ehrwear_jax import config as config_lib
from ehrwear_jax import files, train
from ehrwear_jax.files import digest
from ehrwear_jax.stages import evaluate, model, prepare, report

WORK = {
    "prepare": prepare.run,
    "pretrain": model.pretrain,
    "embed": model.embed,
    "evaluate": evaluate.run,
    "report": report.run,
}
ORDER = tuple(WORK)
# Which parts of the config each stage reads ("a.b": one value of a part); a change elsewhere leaves its result valid.
READS = {
    "prepare": ("seed", "data", "simulate", "labels", "prepare", "cohort"),
    "pretrain": ("seed", "context", "model", "train", "rows"),
    "embed": ("context", "model", "rows", "embed", "evaluate.tasks", "evaluate.reference_row"),
    "evaluate": ("name", "seed", "evaluate", "rows"),
    "report": ("name", "seed", "report", "evaluate"),
}
# Settings that change how a result is reached but not the result.
NOT_RESULTS = {"train": train.NOT_RESULTS}
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


def fingerprints(config):
    """{stage: fingerprint}, each with those of the stages before it."""
    out, before = {}, ""
    inputs = {k: digest_files(config.data[k]) for k in INPUTS if config.data[k]}
    inputs |= {str(path): digest(Path(path).read_bytes().hex()) for path in config_lib.user_tables(config)}
    for stage in ORDER:
        before = out[stage] = digest([stage, settings(config, stage), inputs if stage == "prepare" else {}, before])
    return out


def read_mark(folder):
    """What stage.json says: {"fingerprint", "done", "seconds"}, or {}."""
    path = folder / "stage.json"
    return json.loads(path.read_text()) if path.exists() else {}


def write_mark(folder, **values):
    partial = folder / "stage.json.partial"
    partial.write_text(json.dumps(values))
    os.replace(partial, folder / "stage.json")


def run(config, workdir, stage_names):
    """Runs the named stages.

    Args:
      config: ConfigDict as `config.base()`.
      workdir: each stage has a folder of its name in it.

    Raises:
      ValueError: an unknown stage, a config that cannot run, a stage before the first named one that is not done.
      OSError: missing input, unwritable workdir.
    """
    workdir = Path(workdir)
    if unknown := [s for s in stage_names if s not in ORDER]:
        raise ValueError(f"unknown stage {unknown[0]!r}; stages are {', '.join(ORDER)}")
    config_lib.check(config)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "config.json.partial").write_text(config.to_json_best_effort(indent=1))
        os.replace(workdir / "config.json.partial", workdir / "config.json")
    except OSError as error:
        raise OSError(f"cannot write to the workdir {workdir}: {error.strerror}") from error
    marks = fingerprints(config)
    for stage in ORDER:
        folder = workdir / stage
        mark = read_mark(folder)
        same, done = mark.get("fingerprint") == marks[stage], bool(mark.get("done"))
        if stage not in stage_names:
            later = [s for s in ORDER[ORDER.index(stage) :] if s in stage_names]
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
            # a long pretraining is worth more than the disk it takes: the last result is kept aside
            aside = workdir / f"{stage}.previous"
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(folder, aside)
            logging.info("%s: config or input changed, runs again (the old result is in %s)", stage, aside.name)
        else:
            logging.info("%s: %s", stage, "resumes" if mark else "starts")
        folder.mkdir(parents=True, exist_ok=True)
        spent = read_mark(folder).get("seconds", 0.0)
        write_mark(folder, fingerprint=marks[stage], done=False, seconds=spent)
        began = time.monotonic()
        try:
            complete = WORK[stage](config, workdir) is not False
        finally:
            write_mark(folder, fingerprint=marks[stage], done=False, seconds=spent + time.monotonic() - began)
        if not complete:
            logging.info("%s: stopped where the config says, not finished", stage)
            return
        seconds = read_mark(folder)["seconds"]
        write_mark(folder, fingerprint=marks[stage], done=True, seconds=seconds)
        logging.info("%s: done in %.0f s", stage, seconds)
