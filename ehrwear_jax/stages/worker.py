"""Does one network's part of a stage in a process of its own; stages/parallel.py starts it.

    python -m ehrwear_jax.stages.worker WORKDIR CONFIG STAGE NETWORK

CONFIG is the JSON of the run in its workdir, NETWORK such as joint/all-seed0. Exit codes: runtime/exit_codes.py. When
the standard input ends, the process that started this one is gone: it saves and stops, as at SIGTERM.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from ehrwear_jax import config as config_lib
from ehrwear_jax.runtime import distributed, run_dir
from ehrwear_jax.stages import runner
from ehrwear_jax.stages.plan import Plan
from ehrwear_jax.stages.workdir import Workdir

_LEFT_ALONE_S = 120.0  # within which the worker of a run that was killed has saved and is gone


def work(workdir: Path, config: Path, stage: str, key: str) -> None:
    """Does the stage's part of the network of this key.

    Raises:
      RunError, ValueError, OSError: as the stage.
    """
    plan, module = Plan(config_lib.read(config), Workdir(workdir)), runner.STAGES[stage]
    trained = next(t for t in plan.trained() if t.key == key)
    with runner.interruptible():
        _wait_for_another(module.folder_of(plan, trained))
        module.one(plan, trained)


def _wait_for_another(folder):
    """Until nobody trains there: the process of an earlier run that was killed may be about to save."""
    until = time.monotonic() + _LEFT_ALONE_S
    while time.monotonic() < until:
        lease, _ = run_dir.holder(folder)
        if lease is None or run_dir.is_dead(lease):
            return
        time.sleep(0.5)


def _stop_with_parent():
    while os.read(0, 1):  # sys.stdin would hold a lock that the interpreter waits for at its end
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main(arguments: Sequence[str]) -> None:
    """The command line."""
    workdir, config, stage, key = arguments
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)  # imports have set handlers of their own
    for name in ("absl", "jax", "orbax", "distributed"):  # chatter of libraries, as in main
        logging.getLogger(name).setLevel(logging.WARNING)
    flags.FLAGS.mark_as_parsed()  # processes that make batches read it
    threading.Thread(target=_stop_with_parent, name="parent", daemon=True).start()
    distributed.to_the_end(lambda: work(Path(workdir), Path(config), stage, key))


if __name__ == "__main__":
    main(sys.argv[1:])
