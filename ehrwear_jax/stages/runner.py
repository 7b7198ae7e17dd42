"""Runs stages in order. What a stage makes is found by what it depends on (artifacts.py), so a stage that has made it
before is skipped, and nothing that another config made is touched."""

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from ehrwear_jax import config as config_lib
from ehrwear_jax.config import RunConfig
from ehrwear_jax.runtime import distributed, exit_codes, run_dir
from ehrwear_jax.stages import ORDER, STUDY, dry_run, embed, evaluate, interpret, parallel, prepare, pretrain, report
from ehrwear_jax.stages.labels import Labels
from ehrwear_jax.stages.plan import Plan
from ehrwear_jax.stages.workdir import Workdir

# each has missing(plan) -> names of what is not there, and run(plan)
STAGES: dict[str, ModuleType] = dict(zip(ORDER, (prepare, pretrain, embed, evaluate, interpret, report), strict=True))
# The report is whole without it, and says that it has not been run.
OPTIONAL = "interpret"
# What only prints: needs no data, leaves nothing behind, runs when it is named and before the others.
PRINTED = {"print_config": dry_run.print_config, "describe": dry_run.describe, "compile": dry_run.compile_step}
TOGETHER = ("pretrain", "embed")  # stages that all processes of a job do; the others are the first one's


def run(
    config: RunConfig, workdir: str | Path, stage_names: Sequence[str], verify: bool = False, processes: int = 1
) -> None:
    """Runs the named stages. Of several processes of a job the first one does; all of them pretrain and embed.

    Args:
      workdir: see workdir.py for what lies in it.
      stage_names: of ORDER and PRINTED; STUDY stands for all of ORDER.
      verify: read all raw inputs again, whatever their size and time of modification say.
      processes: how many networks are pretrained and embedded at a time, each in a process of its own (parallel.py).

    Raises:
      ValueError: an unknown stage, a config that cannot run, a stage before the first named one that is not done (but
        for interpret, without which a report is made all the same).
      OSError: missing input, unwritable workdir.
      RunError: another process works in the workdir, a signal came, training cannot go on.
    """
    if unknown := [s for s in stage_names if s not in (*STAGES, *PRINTED, STUDY)]:
        raise ValueError(f"unknown stage {unknown[0]!r}; stages are {', '.join((*ORDER, *PRINTED, STUDY))}")
    if not stage_names:
        raise ValueError(f"--stages is empty; stages are {', '.join((*ORDER, *PRINTED, STUDY))}")
    if processes < 1:
        raise ValueError(f"--processes={processes}: it must be at least 1")
    for stage in (s for s in PRINTED if s in stage_names):
        PRINTED[stage](config)
    wanted = [s for s in ORDER if s in stage_names or STUDY in stage_names]
    if not wanted:
        return
    config_lib.check(config)
    if distributed.several() and config.finetune.modes and "evaluate" in wanted:
        # its checkpoints would wait for the others, which do not fine-tune
        raise ValueError(
            "config.finetune.modes: fine-tuning is done by a job of one process; run the stages up to embed with "
            "several, and evaluate and the later ones with one"
        )
    if distributed.several() and processes > 1:
        raise ValueError(f"--processes={processes}: the processes of a job train one network together")
    paths = Workdir(workdir)
    if not distributed.is_first():
        return _follow(config, paths)
    try:
        paths.root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"cannot write to the workdir {paths.root}: {error.strerror}") from error
    with run_dir.Lease(paths.root), interruptible():
        _lead(Plan(config, paths, verify), wanted, processes)
        paths.link_config(config)  # a command that fails leaves the config of what was finished
        distributed.from_first("stage", None)


def _follow(config: RunConfig, paths: Workdir) -> None:
    """What the other processes do: wait for a stage that all do together."""
    with interruptible():
        while stage := distributed.from_first("stage", timeout_s=distributed.LONGEST_STAGE_S):
            STAGES[stage].run(Plan(config, paths))


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """A block in which SIGTERM ends a stage as ctrl-C does; what it has done is kept.

    Pretraining saves first (supervision.py).
    """

    def stop(number, frame):
        raise exit_codes.Stopped("stopped by SIGTERM; run it again to go on")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _lead(plan: Plan, wanted: list[str], processes: int) -> None:
    if not plan.config.report.predictions_dir:
        Labels(plan).check()
    for stage in ORDER:
        if stage not in wanted:
            _require(plan, stage, [s for s in ORDER[ORDER.index(stage) :] if s in wanted])
            continue
        plan.workdir.keep_config(plan.config)
        lacking = STAGES[stage].missing(plan)
        if not lacking:
            logging.info("%s: done before, skipped", stage)
            continue
        logging.info("%s: %s", stage, _named(lacking))
        began = time.monotonic()
        if stage in TOGETHER:
            distributed.from_first("stage", stage)
        if stage in TOGETHER and processes > 1:
            parallel.run(STAGES[stage], stage, plan, processes)
        else:
            STAGES[stage].run(plan)
        if lacking := STAGES[stage].missing(plan):
            logging.info("%s: stopped where the config says, not finished: %s", stage, _named(lacking))
            return
        logging.info("%s: done in %.0f s", stage, time.monotonic() - began)


def _require(plan: Plan, stage: str, later: list[str]) -> None:
    """Raises ValueError if a stage that is not run, and that later ones need, has not made everything."""
    # a report of saved predictions stands on no stage before it
    alone = ["report"] if plan.config.report.predictions_dir or stage == OPTIONAL else []
    needing = [s for s in later if s not in alone]
    if needing and (lacking := STAGES[stage].missing(plan)):
        raise ValueError(
            f"the stage {needing[0]} needs {stage}, which has not made {_named(lacking)} for this config and these "
            f"inputs in {plan.workdir.root}: add it to --stages"
        )


def _named(lacking: list[str]) -> str:
    more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
    return ", ".join(lacking[:3]) + more
