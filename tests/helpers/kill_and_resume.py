"""Ends a small pretraining at random moments, lets it go on, and compares it with one that nobody touched.

    python tests/helpers/kill_and_resume.py --times=20 [--signal=TERM] [--seed=0] [--folder=DIR]

Every other time the signal comes while a checkpoint is being written. Prints a line per time and exits with 1 if any
loss of any step, or any bit of the final state, differs.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import small_run

from ehrwear_jax.runtime import checkpoint_manifest, exit_codes, files
from ehrwear_jax.runtime.checkpoint import read_newest
from ehrwear_jax.training.throughput import TIMINGS

REPO = Path(__file__).resolve().parents[2]
STEPS = 60
PREPARED = ("tables", "records", "fit")
CONFIG = """
import pathlib, small_run

def get_config(variant=""):
    config = small_run.one_model(small_run.small_config(pathlib.Path({root!r})), "ehr_only")
    config.train.update({{"steps": {steps}, "validate_every": 20, "checkpoint_every": {every}}})
    return config
"""


STAGES = "prepare,pretrain"


def write_experiment(root, stages=STAGES, every=3):
    """Inputs, a config small.py and, below whole/, the run that is not interrupted; returns what that printed."""
    small_run.write_inputs(root)
    (root / "small.py").write_text(CONFIG.format(root=str(root), steps=STEPS, every=every))
    output, code = finish(start(root, "whole", stages=stages))
    assert code == 0, output
    return output


def start(root, name, *flags, stages=STAGES, config="small.py"):
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{REPO}{os.pathsep}{REPO / 'tests' / 'helpers'}"}
    command = [sys.executable, "-m", "ehrwear_jax.main", f"--config={root}/{config}", f"--workdir={root / name}"]
    return subprocess.Popen(
        [*command, f"--stages={stages}", *flags], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process, timeout=600):
    output, _ = process.communicate(timeout=timeout)
    return output, process.returncode


def network(workdir):
    """The folder of the one network that is trained below a workdir; None before there is one."""
    return next((p for p in workdir.glob("models/*/*") if p.is_dir()), None)


def metrics(workdir):
    """[(step, {metric: value})] without what is measured by the clock."""
    lines = [json.loads(x) for x in (network(workdir) / "metrics.jsonl").read_text().splitlines()]
    return sorted(({k: v for k, v in x.items() if k not in TIMINGS} for x in lines), key=lambda x: (x["step"], len(x)))


def state_hash(workdir):
    """(last step, SHA-256 of the parameters' bytes, digest of the whole state's check sums)."""
    checkpoints = network(workdir) / "checkpoints"
    parts, step = read_newest(checkpoints)
    leaves = checkpoint_manifest.about(checkpoints / str(step))["leaves"]
    bits = hashlib.sha256(b"".join(x.tobytes() for x in jax.tree.leaves(parts["params"]))).hexdigest()
    return step, bits, files.digest(leaves)


def is_saving(checkpoints):
    """Whether a checkpoint is being written: a temporary folder, or one without its commit mark."""
    names = os.listdir(checkpoints) if checkpoints.is_dir() else []
    return any("tmp" in n or (n.isdigit() and not checkpoint_manifest.is_committed(checkpoints / n)) for n in names)


def interrupt(root, name, number, rng, while_saving):
    """Starts a run and sends the signal at a random step; -> {"step", "saving", "code", "output"}."""
    shutil.rmtree(root / name, ignore_errors=True)
    (root / name).mkdir()
    for kind in PREPARED:
        shutil.copytree(root / "whole" / kind, root / name / kind)
    folder = root / name / network(root / "whole").relative_to(root / "whole")
    process, checkpoints = start(root, name), folder / "checkpoints"
    log, at = folder / "metrics.jsonl", rng.randrange(2, STEPS - 10)
    while process.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") >= at):
        time.sleep(0.002)
    while while_saving and process.poll() is None and not is_saving(checkpoints):
        pass
    time.sleep(rng.random() * (0.01 if while_saving else 0.03))
    process.send_signal(number)
    if number == signal.SIGKILL:
        process.wait()
    saving = is_saving(checkpoints)
    output, code = finish(process)
    return {"step": at, "saving": saving, "code": code, "output": output}


def is_same(root, name):
    return metrics(root / name) == metrics(root / "whole") and state_hash(root / name) == state_hash(root / "whole")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--signal", default="KILL", choices=("KILL", "TERM", "INT"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder")
    options = parser.parse_args()
    root, rng = Path(options.folder or tempfile.mkdtemp()), random.Random(options.seed)
    number = getattr(signal, f"SIG{options.signal}")
    write_experiment(root)
    same = saving = 0
    for i in range(options.times):
        ended = interrupt(root, "part", number, rng, while_saving=i % 2 == 1)
        expected = exit_codes.STOPPED if number != signal.SIGKILL else -signal.SIGKILL
        output, code = finish(start(root, "part"))
        good = ended["code"] == expected and code == 0 and is_same(root, "part")
        same, saving = same + good, saving + ended["saving"]
        print(
            f"{i + 1:3d}: SIG{options.signal} after step {ended['step']}"
            f"{' while saving' if ended['saving'] else ''}, exit code {ended['code']}: "
            + ("the same losses and state" if good else f"DIFFERENT (exit code {code})\n{ended['output']}\n{output}"),
            flush=True,
        )
    print(f"{same} of {options.times} the same, {saving} of them ended while saving")
    sys.exit(same != options.times)


if __name__ == "__main__":
    main()
