"""The watchdog ends a process that hangs, with a code and the stacks; and leaves one that goes on alone."""

import os
import subprocess
import sys
import time

import pytest
from repo import REPO

from ehrwear_jax.runtime import exit_codes
from ehrwear_jax.runtime.watchdog import Watchdog

HANG = """
import sys, time
from ehrwear_jax.runtime.watchdog import Watchdog
def the_step_that_hangs():
    {how}
with Watchdog(sys.argv[1], 0.5, "3", last_words=print, patience_s=1.0) as dog:
    dog.beat("compiling", 1.0)
    time.sleep(0.8)
    for _ in range(6):
        dog.beat("step")
        time.sleep(0.2)
    print("all steps", flush=True)
    the_step_that_hangs()
"""


def run(folder, how):
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", HANG.format(how=how), str(folder)], capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(REPO)}, timeout=60)  # fmt: skip
    return done, time.monotonic() - began


def test_a_step_that_hangs_ends_the_process_with_its_stacks(tmp_path):
    done, _ = run(tmp_path, "time.sleep(50)")
    assert done.returncode == exit_codes.HUNG
    assert "all steps" in done.stdout and "step has hung for" in done.stdout, "and the last words"
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("stacks-") and path.name.endswith("-3.txt")
    for text in (path.read_text(), done.stderr):
        assert "the_step_that_hangs" in text and "step has hung for" in text


def test_a_thread_that_holds_the_interpreter_does_not_help_it(tmp_path):
    """A call that never gives the interpreter back: the second line ends the process, with the stacks."""
    done, seconds = run(tmp_path, "import ctypes; ctypes.PyDLL(None).sleep(50)")
    assert done.returncode == 1 and "the_step_that_hangs" in done.stderr and seconds < 40


@pytest.mark.parametrize("timeout", [0.0, 0.3])
def test_a_run_that_goes_on_is_left_alone(tmp_path, timeout):
    with Watchdog(tmp_path, timeout) as dog:
        for _ in range(8):
            time.sleep(0.1)
            dog.beat("step")
    time.sleep(0.5)  # watches no more
    assert list(tmp_path.iterdir()) == []
