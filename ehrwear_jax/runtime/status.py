"""Prints where a run stands: python -m ehrwear_jax.runtime.status RUN_DIR [--verify]

Reads what the run writes and changes nothing. Needs no accelerator and no jax.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ehrwear_jax.runtime import checkpoint_manifest, files, goodput, run_dir

STALE_S = 60.0  # a heartbeat comes every 5 seconds
SHOWN_EVENTS = 5


def lease_line(folder: Path | str) -> str:
    """Who holds a folder."""
    lease, age = run_dir.holder(folder)
    if lease is None or age is None:
        return "nobody works here"
    who = f"process {lease['pid']} on {lease['place'][0]}"
    if run_dir.is_dead(lease):
        return f"nobody works here: {who} is dead and left its lease"
    return f"{who} works here, seen {goodput.duration(age)} ago"


def artifact_lines(workdir: Path | str) -> list[str]:
    """A line per kind of what was made, and one for each that was begun and is not done (stages/artifacts.py)."""
    begun = [files.read_json(p, {}) for p in sorted(Path(workdir).glob("*/**/artifact.json"), key=_modified)]
    lines = []
    for kind in dict.fromkeys(about.get("kind", "?") for about in begun):
        mine = [about for about in begun if about.get("kind", "?") == kind]
        spent = goodput.duration(sum(about.get("seconds", 0.0) for about in mine))
        lines.append(f"{kind:<12} {sum(bool(a.get('done')) for a in mine)} done, {spent} of work")
        lines += [f"  {a['name']}: begun, not done" for a in mine if not a.get("done")]
    return lines


def _modified(path):
    return path.stat().st_mtime


def training_lines(folder: Path | str, verify: bool = False) -> list[str]:
    """Lines on one network's folder: progress, heartbeat, checkpoints, goodput, events."""
    folder, now = Path(folder), time.time()
    beat = files.read_json(folder / run_dir.HEARTBEAT, {})
    logged = [x for x in run_dir.read_lines(folder / "metrics.jsonl") if "loss/total" in x]
    step, steps = max(beat.get("step", 0), logged[-1]["step"] if logged else 0), beat.get("steps", 0)
    lines = [f"step {step} of {steps}" + (f" ({step / steps:.0%})" if steps else "")]
    if logged:
        rate = logged[-1].get("steps_per_second", 0.0)
        lines[0] += f", loss {logged[-1]['loss/total']:.4g}"
        if rate and step < steps:
            lines[0] += f", {rate:.3g} steps/s, {goodput.duration((steps - step) / rate)} to go at that rate"
    if beat:
        age = now - beat["time"]
        over = beat["phase"].split(":")[0] in ("ended", "stopped", "failed")
        silent = "" if over or age < STALE_S else "; NO SIGN OF LIFE since"
        lines.append(f"heartbeat {goodput.duration(age)} ago: {beat['phase']}{silent}")
    lines += checkpoint_lines(folder / "checkpoints", verify)
    seconds, starts = goodput.read(folder)
    if seconds:
        lines.append(goodput.sentence(seconds, starts))
    lines += event_lines(folder)
    return lines


def checkpoint_lines(folder: Path, verify: bool) -> list[str]:
    """The checkpoints, newest first; verify: with what is wrong with their files."""
    steps = checkpoint_manifest.steps(folder)
    if not steps:
        return ["no checkpoint"]
    lines = []
    for step in reversed(steps):
        path = folder / str(step)
        age = time.time() - (path / checkpoint_manifest.COMMIT).stat().st_mtime
        line = f"checkpoint {step}: {files.folder_bytes(path) / 1e6:.1f} MB, {goodput.duration(age)} ago"
        if verify:
            line += "; " + ("; ".join(checkpoint_manifest.faults(path)) or "whole")
        lines.append(line)
    damaged = sorted(p.name for p in folder.glob("*.damaged"))
    return lines + ([f"set aside: {', '.join(damaged)}"] if damaged else [])


def event_lines(folder: Path | str) -> list[str]:
    """Counts of what happened by kind, and the last few."""
    events = run_dir.read_lines(Path(folder) / run_dir.EVENTS)
    if not events:
        return []
    counts: dict[str, int] = {}
    for event in events:
        counts[event["kind"]] = counts.get(event["kind"], 0) + 1
    lines = ["events: " + ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items()))]
    for event in events[-SHOWN_EVENTS:]:
        rest = {k: v for k, v in event.items() if k not in ("time", "step", "kind")}
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["time"]))
        detail = ", ".join(f"{k} {v}" for k, v in rest.items())
        lines.append(f"  {when}  step {event['step']}  {event['kind']}  {detail}"[:200].rstrip())
    return lines


def report(folder: Path | str, verify: bool = False) -> str:
    """The text for a workdir, or for the folder of one network.

    Raises:
      FileNotFoundError: it is neither.
    """
    folder = Path(folder)
    networks = sorted({p.parent for name in (run_dir.ABOUT, run_dir.HEARTBEAT) for p in folder.rglob(name)})
    artifacts = artifact_lines(folder)
    if not networks and not artifacts:
        raise FileNotFoundError(f"{folder}: no run; name a --workdir of main, or the folder of one network")
    lines = [f"{folder}: {lease_line(folder)}", *artifacts]
    for network in networks:
        lines += ["", f"{network.relative_to(folder) if network != folder else network}"]
        lines += ["  " + line for line in training_lines(network, verify)]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; exits with one sentence if the folder is none of a run."""
    parser = argparse.ArgumentParser(
        prog="python -m ehrwear_jax.runtime.status", description="Prints where a run stands."
    )
    parser.add_argument("run_dir")
    parser.add_argument("--verify", action="store_true", help="compare all files of all checkpoints with their digests")
    options = parser.parse_args(arguments)
    try:
        print(report(options.run_dir, options.verify))
    except FileNotFoundError as error:
        sys.exit(f"ehrwear_jax: {error}")


if __name__ == "__main__":
    main()
