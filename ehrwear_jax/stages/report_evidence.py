"""What the stages of a run left for the report, beside the records: evaluate/details.json, interpret/, pretrain/."""

import json
import logging

import numpy as np
import polars as pl

from ehrwear_jax import config as config_lib
from ehrwear_jax import goodput
from ehrwear_jax.report.evidence import Evidence, Kernels, PatientMap
from ehrwear_jax.report.records import row_label
from ehrwear_jax.report.trajectories import principal_components
from ehrwear_jax.stages import prepare

MAX_POINTS = 3000  # of a map


def shows_individuals(config) -> bool:
    """Single people are drawn of simulated cohorts, or where the config says so."""
    return config.data.source == "synthetic" or config.report.individuals


def gather(config, workdir) -> Evidence:
    folder = workdir / "evaluate"
    details = json.loads((folder / "details.json").read_text())
    found = {name: _json(workdir / "interpret" / f"{name}.json") for name in
             ("robustness", "geometry", "retrieval", "uncertainty")}  # fmt: skip
    return Evidence(
        **details,
        **found,
        kernels=_kernels(workdir),
        maps=_maps(config, workdir),
        individuals=shows_individuals(config),
        compute=_compute(config, workdir),
        main_task=config.report.reliability_task,
    )


def _json(path):
    return json.loads(path.read_text()) if path.exists() else []


def _kernels(workdir):
    path = workdir / "interpret" / "kernels.npz"
    if not path.exists():
        return ()
    saved = np.load(path)
    return tuple(Kernels(row, saved["days_K"], saved[row]) for row in saved.files if row != "days_K")


def _maps(config, workdir):
    """Principal components fitted on all reads of the first fold; the held-out reads of the main task are drawn."""
    tasks = [t for t in config.evaluate.tasks if prepare.label_table(config, workdir, t).columns[2] == "boolean_value"]
    if not tasks:
        return ()
    task = config.report.reliability_task if config.report.reliability_task in tasks else tasks[-1]
    labels = prepare.label_table(config, workdir, task)
    fold, out = config_lib.folds(config)[0][0], []
    for row in config.rows:
        table = pl.read_parquet(workdir / "embed" / fold / f"{row}.parquet").with_row_index("at")
        z_NxD = np.stack(table["embedding"].to_numpy())
        (scores,), share = principal_components([z_NxD])
        if len(share) < 2:
            logging.info("  %s: the latents have fewer than two directions: no map", row)
            continue
        held = table.filter(pl.col("split") == "held_out").join(labels, on=["subject_id", "prediction_time"])
        held = held.sort("at").head(MAX_POINTS)
        pair = float(share[0]), float(share[1])
        out.append(PatientMap(row, task, scores[held["at"].to_numpy(), :2], pair, held["boolean_value"].to_numpy()))
    return tuple(out)


def _compute(config, workdir):
    """Per pretrained row, summed over folds: parameters, steps, FLOPs where logged, device-hours, goodput."""
    out = []
    for row in config.rows:
        folders = [workdir / "pretrain" / fold / row for fold, _ in config_lib.folds(config)]
        spent = [json.loads(p.read_text()) for f in folders if (p := f / goodput.NAME).exists()]
        parameters = json.loads((folders[0] / "parameters.json").read_text())["parameters"]
        entry = {"Model": row_label(row), "Parameters": f"{parameters:,}", "Steps": f"{config.train.steps:,}"}
        if spent:
            hours = sum(sum(s["seconds"].values()) for s in spent) / 3600
            steps = sum(s["seconds"]["step"] for s in spent) / 3600
            devices = _devices(folders[0])
            entry["Hours"] = f"{hours:,.3g}"
            entry["Device-hours"] = f"{hours * devices:,.3g}" if devices else "devices not logged"
            entry["Goodput"] = f"{100 * steps / hours:.0f}%" if hours else "unknown"
            rate = _tflops(folders[0])
            entry["Model FLOPs"] = f"{rate * 1e12 * steps * 3600:.2e}" if rate else "not logged"
        out.append(entry)
    return out


def _devices(folder):
    """Devices that the run was on where its run.json or heartbeat.json says so, else None."""
    for name in ("run.json", "heartbeat.json"):
        about = _json(folder / name) or {}
        if count := about.get("devices"):
            return int(count)
    return None


def _tflops(folder):
    """Mean rate over the logged stretches after the first, in which the program is compiled."""
    path = folder / "metrics.jsonl"
    lines = [json.loads(x) for x in path.read_text().splitlines()] if path.exists() else []
    rates = [x["model_tflops_per_second"] for x in lines if "model_tflops_per_second" in x]
    return float(np.mean(rates[1:] or rates)) if rates else None
