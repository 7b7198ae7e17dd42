"""Records what a refactoring must not change, and compares it: losses, latents and scores of configs/tiny.py.

    python tests/goldens.py record FILE [--repo=DIR] [--demo]     run the code of DIR and write FILE
    python tests/goldens.py compare FILE [--repo=DIR] [--demo]    run it again and say what differs from FILE

--set=KEY=VALUE changes the config, e.g. --set=joint.network.dropout=0: which mask a weight gets depends on the path of
its module, so that moves of modules show as other masks. --run=DIR takes the workdir of a run of STEPS steps that is
there instead of running one.

What is recorded: every loss of each of the first 30 steps of each pretrained model, z at 50 prediction times after
them, and with --demo the AUROC of every model and task of the whole run. The same bits are only to be expected on the
same machine with the same libraries; `compare` prints the largest relative difference of each part beside "same bits".
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
STEPS, N_TIMES = 30, 50
SHORT = {"steps": STEPS, "log_every": 1, "validate_every": STEPS, "checkpoint_every": STEPS}
# Names of models and of terms of the loss that have changed since figures were recorded.
RENAMED = {
    "logistic_regression": "linear_table",
    "ehr_next": "future_event",
    "ehr_later": "future_codes",
    "ehr_recall": "ehr_history",
    "wear_recall": "wear_history",
    "wear_ahead": "future_signal",
}
# What differs between two runs of the same code.
TIMINGS = ("per_second", "waiting_share", "mfu")


def run(repo: Path, workdir: Path, *flags: str) -> None:
    """Runs main on configs/tiny.py with the code in `repo`; raises CalledProcessError if it fails."""
    command = [sys.executable, "-m", "ehrwear_jax.main", "--config=configs/tiny.py", f"--workdir={workdir}", *flags]
    subprocess.run(command, cwd=repo, check=True)


def losses(workdir: Path) -> dict[str, list[dict[str, float]]]:
    """{model: [{metric: value} of each step]}, validation apart."""
    found = {}
    for path in sorted(workdir.rglob("metrics.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        steps = [line for line in lines if "loss/total" in line]
        found[_model(path.parent)] = [
            {_renamed(k): v for k, v in line.items() if not any(t in k for t in TIMINGS)} for line in steps[:STEPS]
        ]
    return found


def _renamed(name: str) -> str:
    return "/".join(RENAMED.get(part, part) for part in name.split("/"))


def _model(folder: Path) -> str:
    """Name of the model that was trained in a folder: <name>/<fold>... or <name> alone."""
    about = folder / "model.json"
    return json.loads(about.read_text())["name"] if about.exists() else folder.name


def latents(workdir: Path) -> dict[str, list[list[float]]]:
    """{model: z at the first N_TIMES prediction times by subject and time}."""
    import polars as pl

    found = {}
    for path in sorted(workdir.rglob("*.parquet")):
        if "embedding" in pl.read_parquet_schema(path):
            table = pl.read_parquet(path).sort("subject_id", "prediction_time").head(N_TIMES)
            parts = path.relative_to(workdir).parts
            found[parts[1] if parts[0] == "embeddings" else path.stem] = table["embedding"].to_list()
    return found


def aurocs(workdir: Path) -> dict[str, float]:
    """{"<task>/<model>": AUROC} of results.json."""
    path = next(iter(sorted(workdir.rglob("results.json"), key=lambda p: len(p.parts))))
    records = [r | {"model": r.get("model", r.get("row"))} for r in json.loads(path.read_text())]
    aurocs = [r for r in records if r["metric"] == "auroc"]
    return {f"{r['task']}/{RENAMED.get(r['model'], r['model'])}": r["value"] for r in aurocs}


def collect(options: argparse.Namespace) -> dict:
    """Runs the code of a repository and returns what is recorded of it."""
    changes = [f"--config.{change}" for change in options.set]
    with tempfile.TemporaryDirectory() as scratch:
        short, whole = options.run or Path(scratch) / "short", Path(scratch) / "whole"
        if options.run is None:
            steps = (f"--config.train.{k}={v}" for k, v in SHORT.items())
            run(options.repo, short, "--stages=prepare,pretrain,embed", *steps, *changes)
        found = {"losses": losses(short), "z": latents(short)}
        if options.demo:
            run(options.repo, whole, *changes)
            found["auroc"] = aurocs(whole)
    return found


def _flat(value, name="") -> dict[str, float]:
    if isinstance(value, dict):
        return {k: v for key, x in value.items() for k, v in _flat(x, f"{name}/{key}").items()}
    if isinstance(value, list):
        return {k: v for i, x in enumerate(value) for k, v in _flat(x, f"{name}/{i}").items()}
    return {name: float(value)}


def differences(old: dict, new: dict) -> list[str]:
    """A sentence per part and model: how many numbers differ, and by how much at most."""
    sentences = []
    for part in old.keys() & new.keys():
        for model in sorted(old[part].keys() | new[part].keys()):
            a, b = (_flat(x[part].get(model, {})) for x in (old, new))
            a = {_renamed(k): v for k, v in a.items()}
            common = a.keys() & b.keys()
            scale = max((abs(v) for v in a.values()), default=1.0) if part == "z" else 0.0
            apart = {k: abs(a[k] - b[k]) / max(abs(a[k]), scale, 1e-12) for k in common if a[k] != b[k]}
            apart = {k: v for k, v in apart.items() if not (math.isnan(a[k]) and math.isnan(b[k]))}
            worst = max(apart, key=apart.get, default=None)
            what = f"{len(common)} numbers, same bits"
            if worst:
                what = f"{len(apart)} of {len(common)} numbers differ, at most by {apart[worst]:.2e} of {worst}"
            only = f"; {len(a.keys() ^ b.keys())} numbers on one side only" if a.keys() ^ b.keys() else ""
            sentences.append(f"{part} {model}: {what}{only}")
    return sentences


def main() -> None:
    """Records or compares as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("record", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--repo", type=Path, default=REPO)
    parser.add_argument("--demo", action="store_true")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--run", type=Path)
    options = parser.parse_args()
    found = collect(options)
    if options.what == "record":
        options.file.write_text(json.dumps(found))
    else:
        print("\n".join(differences(json.loads(options.file.read_text()), found)))


if __name__ == "__main__":
    main()
