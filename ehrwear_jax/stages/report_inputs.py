"""Gathers what a report shows beside the records: evaluate/details.json, interpret/, embed/ and pretrain/."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrwear_jax import config as config_lib
from ehrwear_jax.report.report_data import Explained, Kernels, PatientMap, ReportData
from ehrwear_jax.report.result_records import model_label
from ehrwear_jax.report.trajectories import principal_components
from ehrwear_jax.runtime import goodput
from ehrwear_jax.stages import marks, prepare

MAX_POINTS = 3000  # of a map
# parts of the interpret stage that are shown as they were written
INTERPRETED = ("robustness", "geometry", "retrieval", "uncertainty", "mechanisms")
NOT_INTERPRETED = (
    ": robustness, geometry, retrieval, uncertainty, learned kernels, mechanisms and single predictions are not shown."
)


def shows_individuals(config: Any) -> bool:
    """Single people are drawn of simulated cohorts, or where the config permits it."""
    return config.data.source == "synthetic" or config.report.individuals


def gather(config: Any, workdir: Path) -> ReportData:
    """Everything; of the interpret stage only what it made with this config, else a sentence that says so."""
    details = json.loads((workdir / "evaluate" / "details.json").read_text())
    return ReportData(
        **details,
        **_interpreted(config, workdir),
        maps=_maps(config, workdir),
        individuals=shows_individuals(config),
        compute=_compute(config, workdir),
        main_task=config.report.reliability_task,
    )


def _interpreted(config, workdir):
    """Fields of ReportData that the interpret stage leaves."""
    if fault := marks.interpret_fault(config, workdir):
        return {"not_interpreted": f"The interpret stage {fault}{NOT_INTERPRETED}"}
    if not config.interpret.enabled:
        return {"not_interpreted": f"The interpret stage is switched off (config.interpret.enabled){NOT_INTERPRETED}"}
    folder = workdir / "interpret"
    found = {name: json.loads((folder / f"{name}.json").read_text()) for name in INTERPRETED}
    codes = {name: tuple(config.interpret[f"{name}_prefixes"]) for name in ("event", "drug")}
    return found | {"kernels": _kernels(folder), "explained": _people(config, workdir), "codes": codes}


def code_names(config: Any, workdir: Path) -> dict[str, str | None]:
    """{code: its description, or None}."""
    path = prepare.meds_dir(config, workdir) / "metadata" / "codes.parquet"
    return dict(pl.read_parquet(path).select("code", "description").iter_rows()) if path.exists() else {}


def _people(config, workdir):
    """people.json and people.npz together, with descriptions instead of codes."""
    folder = workdir / "interpret"
    found = json.loads((folder / "people.json").read_text())
    if not found or not (config.data.source == "synthetic" or config.interpret.individuals):
        return ()
    saved, names = np.load(folder / "people.npz"), code_names(config, workdir)
    out = []
    for i, person in enumerate(found):
        arrays = {name: saved[f"{name}_{i}"] for name in ("attention", "wear", "wear_days")}
        tokens = [t | {"label": _token_label(t["label"], names)} for t in person["tokens"]]
        out.append(Explained(**person | {"tokens": tokens}, **arrays, signals=tuple(saved["channels"].tolist())))
    return tuple(out)


def _token_label(label, names):
    """A code's description, and the bin of its value: `LOINC//8480-6//Q4` is `Systolic blood pressure, Q4`."""
    code, _, value_bin = label.rpartition("//")
    if label not in names and re.fullmatch(r"Q\d+", value_bin) and code in names:
        return f"{names[code] or code}, {value_bin}"
    return names.get(label) or label


def _kernels(folder):
    saved = np.load(folder / "kernels.npz")
    return tuple(Kernels(model, saved["days_K"], saved[model]) for model in saved.files if model != "days_K")


def _maps(config, workdir):
    """Principal components of all prediction times of the first fold; the held-out ones of the main task are drawn."""
    tasks = [t for t in config.evaluate.tasks if prepare.label_table(config, workdir, t).columns[2] == "boolean_value"]
    if not tasks:
        return ()
    task = config.report.reliability_task if config.report.reliability_task in tasks else tasks[-1]
    labels = prepare.label_table(config, workdir, task)
    fold, out = config_lib.folds(config)[0][0], []
    for model in config.rows:
        table = pl.read_parquet(workdir / "embed" / fold / f"{model}.parquet").with_row_index("at")
        z_NxD = np.stack(table["embedding"].to_numpy())
        (scores,), share = principal_components([z_NxD])
        if len(share) < 2:
            logging.info("  %s: the latents have fewer than two principal components: no map", model)
            continue
        held = table.filter(pl.col("split") == "held_out").join(labels, on=["subject_id", "prediction_time"])
        held = held.sort("at").head(MAX_POINTS)
        pair = float(share[0]), float(share[1])
        out.append(PatientMap(model, task, scores[held["at"].to_numpy(), :2], pair, held["boolean_value"].to_numpy()))
    return tuple(out)


def _compute(config, workdir):
    """Per pretrained model, summed over folds: parameters, steps, FLOPs where logged, device-hours, goodput."""
    out = []
    for model in config.rows:
        folders = [workdir / "pretrain" / fold / model for fold, _ in config_lib.folds(config)]
        spent = [json.loads(p.read_text()) for f in folders if (p := f / goodput.NAME).exists()]
        parameters = json.loads((folders[0] / "parameters.json").read_text())["parameters"]
        entry = {"Model": model_label(model), "Parameters": f"{parameters:,}", "Steps": f"{config.train.steps:,}"}
        if spent:
            hours = sum(sum(s["seconds"].values()) for s in spent) / 3600
            steps = sum(s["seconds"]["step"] for s in spent) / 3600
            entry["Hours"] = f"{hours:,.3g}"
            entry |= _devices(spent)
            entry["Goodput"] = f"{100 * steps / hours:.0f}%" if hours else "unknown"
            rate = _tflops(folders[0])
            entry["Model FLOPs"] = f"{rate * 1e12 * steps * 3600:.2e}" if rate else "not logged"
        out.append(entry)
    return out


def _devices(spent):
    """Devices and device-hours by the goodput.json of each fold: each start counts with the devices that it had."""
    used = {}
    for about in spent:
        for kind, mine in about.get("devices", {}).items():
            hours = used[kind][1] if kind in used else 0.0
            used[kind] = mine["count"], hours + mine["seconds"] / 3600
    if not used:
        return {"Devices": "not logged", "Device-hours": "devices not logged"}
    several = len(used) > 1
    hours = (f"{h:,.3g} on {kind}" if several else f"{h:,.3g}" for kind, (_, h) in used.items())
    return {"Devices": ", ".join(f"{n} x {kind}" for kind, (n, _) in used.items()), "Device-hours": ", ".join(hours)}


def _tflops(folder):
    """Mean rate over the logged intervals after the first, in which the program is compiled."""
    path = folder / "metrics.jsonl"
    lines = [json.loads(x) for x in path.read_text().splitlines()] if path.exists() else []
    rates = [x["model_tflops_per_second"] for x in lines if "model_tflops_per_second" in x]
    return float(np.mean(rates[1:] or rates)) if rates else None
