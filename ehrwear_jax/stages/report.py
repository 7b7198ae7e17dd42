"""The report stage: gathers what the stages before it left in the workdir into one page.

With config.report.predictions_dir it needs no stage before it: see stages/report_predictions.py.
"""

import json
import platform
import shutil
from importlib import metadata
from pathlib import Path

import numpy as np
import polars as pl

from ehrwear_jax import config as config_lib
from ehrwear_jax.data.formats import wearable
from ehrwear_jax.data.signals.signal import DAY_US
from ehrwear_jax.report.build import ReportInputs, Trajectory, build_report
from ehrwear_jax.report.result_records import task_label
from ehrwear_jax.stages import marks, prepare, report_evidence, report_predictions

PACKAGES = ("jax", "flax", "optax", "grain", "polars", "scikit-learn")


def run(config, workdir):
    """Writes report/ (report.html, report.md, results.json, tables/) and results.json; prints where they are."""
    workdir = Path(workdir)
    inputs = report_predictions.inputs(config) if config.report.predictions_dir else _inputs(config, workdir)
    path = build_report(inputs, workdir / "report")
    shutil.copyfile(path.parent / "results.json", workdir / "results.json")
    print(_table(inputs.results), flush=True)
    print(
        f"\nreport: {path}\ntables: {path.with_name('report.md')} and, as CSV and LaTeX, {path.parent / 'tables'}"
        f"\nnumbers: {workdir / 'results.json'}",
        flush=True,
    )


def _inputs(config, workdir):
    return ReportInputs(
        title=config.report.title,
        subtitle=f"dataset {config.name}, seed {config.seed}",
        dataset=config.name,
        results=json.loads((workdir / "evaluate" / "results.json").read_text()),
        losses=_losses(config, workdir),
        predictions=_predictions(config, workdir),
        trajectories=_trajectories(config, workdir) if report_evidence.shows_individuals(config) else (),
        cohort=json.loads((workdir / "prepare" / "counts.json").read_text()),
        facts=_facts(config, workdir),
        notes=_notes(config),
        evidence=report_evidence.gather(config, workdir),
    )


def _table(records):
    """The main numbers as lines of text: one block per task, one line per row."""
    lines = []
    for task in dict.fromkeys(r["task"] for r in records):
        mine = {(r["row"], r["metric"]): r for r in records if r["task"] == task}
        first = next(r for r in records if r["task"] == task)
        events = "" if first["n_positive"] is None else f", {first['n_positive']:,} events"
        lines += ["", f"{task}  (n = {first['n']:,}{events})"]
        for row in dict.fromkeys(row for row, _ in mine):
            cells = [
                f"{m} {r['value']:.3f} [{r['lo']:.3f}, {r['hi']:.3f}]"
                for m in ("auroc", "auprc", "c_index", "rmse")
                if (r := mine.get((row, m))) and r["value"] is not None and r["lo"] is not None
            ]
            if cells:
                lines.append(f"  {row:<24}" + "   ".join(cells))
    return "\n".join(lines)


def _losses(config, workdir):
    fold = config_lib.folds(config)[0][0]
    paths = {row: workdir / "pretrain" / fold / row / "metrics.jsonl" for row in config.rows}
    return {row: [json.loads(x) for x in p.read_text().splitlines()] for row, p in paths.items() if p.exists()}


def _predictions(config, workdir):
    out = {}
    for task in config.evaluate.tasks:
        rows = {}
        for path in sorted((workdir / "evaluate" / "predictions" / task).glob("*.parquet")):
            table = pl.read_parquet(path)
            if "predicted_boolean_probability" in table.columns:
                rows[path.stem] = (
                    table["boolean_value"].to_numpy().astype(int),
                    table["predicted_boolean_probability"].to_numpy(),
                )
        if rows and task == (config.report.reliability_task or task):
            out[task] = rows
    return out


def _facts(config, workdir):
    facts = {"config": config.name, "seed": str(config.seed), "python": platform.python_version()}
    facts |= {name: metadata.version(name) for name in PACKAGES}
    fold = config_lib.folds(config)[0][0]
    for row in config.rows:
        path = workdir / "pretrain" / fold / row / "parameters.json"
        facts[f"parameters of {row}"] = f"{json.loads(path.read_text())['parameters']:,}"
    interpreted = () if marks.interpret_fault(config, workdir) else (marks.OPTIONAL,)
    for stage in ("prepare", "pretrain", "embed", "evaluate", *interpreted):
        facts[f"time in {stage}"] = f"{json.loads((workdir / stage / 'stage.json').read_text())['seconds']:.0f} s"
    rows = config.train.rows_per_device
    batch = f"{rows} rows a device" if rows else config.train.batch_size
    facts["steps x batch"] = f"{config.train.steps:,} x {batch}"
    split = f"out-of-fold over {config.data.n_folds} folds" if config.data.n_folds > 1 else "by patient or group, fixed"
    probe = "solved exactly"
    if config.evaluate.probe == "adam":
        hidden = f"one hidden layer of {config.evaluate.probe_hidden}" if config.evaluate.probe_hidden else "linear"
        probe = f"Adam 5e-4, at most 50 epochs, early stopping, {hidden}, seeds {tuple(config.evaluate.probe_seeds)}"
    facts |= {"splits": split, "probe": probe, "resamples of patients": f"{config.evaluate.n_resamples:,}"}
    return facts


def _notes(config):
    notes = [
        "Intervals are 95% percentile intervals over resampled patients (or groups of patients where the dataset has "
        "them); all rows of a task share the resamples.",
        "Probes read frozen representations; their penalty is chosen on the tuning split.",
        "q-values: Benjamini and Hochberg over all comparisons of one measure in this report, false discovery rate 5%.",
        "Rows censored before the horizon without an event are left out; a death before it counts as no event.",
    ]
    if config.data.source == "synthetic":
        notes.append(
            "The cohort is simulated. The oracle knows each person's latent state and the process: no model can be "
            "expected to do better."
        )
    if config.data.n_folds > 1:
        notes.append("No probe is fitted on fractions of the labels. Censoring is estimated on all training people.")
        notes.append(
            f"Out-of-fold over {config.data.n_folds} folds; every person is predicted by a model that never saw them. "
            "Loss curves are of the first fold."
        )
    if not report_evidence.shows_individuals(config):
        notes.append("No single person is drawn (config.report.individuals).")
    return notes


def _trajectories(config, workdir):
    fold = config_lib.folds(config)[0][0]
    tables = prepare.tables_dir(workdir)
    events = pl.scan_parquet(sorted((tables / "events").glob("*.parquet")))
    windows = sorted((tables / "windows").glob("*.parquet"))
    names = report_evidence.code_names(config, workdir)
    folder = prepare.wearable_dir(config, workdir)
    units = dict(wearable.read_channels(folder).select("channel", "unit").iter_rows()) if folder else {}
    task = config.report.reliability_task or config.evaluate.tasks[-1]
    labels = prepare.label_table(config, workdir, task)
    out = []
    for number, path in enumerate(sorted((workdir / "embed" / fold / "trajectories").glob("*.npz")), 1):
        subject = int(path.stem)
        saved = np.load(path)
        origin = int(saved["time_us"][0])
        mine = events.filter((pl.col("subject_id") == subject) & pl.col("time").is_not_null()).collect().sort("time")
        mine = mine.filter(pl.col("time").to_physical().is_between(origin, int(saved["time_us"][-1])))
        signal_time, signal, signal_names = None, None, ()
        if windows:
            table = (
                pl.concat([pl.scan_parquet(p).filter(pl.col("subject_id") == subject) for p in windows])
                .collect()
                .sort("time")
            )
            means = [c for c in table.columns if c.endswith("__mean")]
            if table.height:
                signal_time = (table["time"].to_physical().to_numpy() - origin) / DAY_US
                signal = table.select(means).cast(pl.Float64).fill_null(float("nan")).to_numpy()
                signal_names = tuple(_signal_name(config, c.removesuffix("__mean"), units) for c in means)
        last = labels.filter(pl.col("subject_id") == subject).sort("prediction_time").tail(1)
        when, outcome = None, "no label"
        if last.height:
            when = (int(last["prediction_time"].to_physical()[0]) - origin) / DAY_US
            outcome = _outcome(task, last)
        out.append(
            Trajectory(
                number=number,
                time_days_N=(saved["time_us"] - origin) / DAY_US,
                z_NxD=saved["z"].astype(np.float64),
                event_time_E=(mine["time"].to_physical().to_numpy() - origin) / DAY_US,
                event_label_E=[_label(c, names) for c in mine["code"]],
                signal_time_M=signal_time,
                signal_MxC=signal,
                signal_names=signal_names,
                prediction_time=when,
                outcome=outcome,
            )
        )
    return tuple(out)


def _label(code, names):
    """The code's kind, which chooses its lane, and what it means."""
    kind = code.split("//")[0]
    return f"{kind}//{names.get(code) or code.split('//', 1)[-1]}"


def _signal_name(config, channel, units):
    """`heart rate (bpm)`; what stands in brackets is read as the unit."""
    name, unit = channel.replace("_", " "), units.get(channel)
    if channel in config.prepare.log_channels:
        return f"log {name} (log of 1 + {unit or 'value'})"
    return f"{name} ({unit})" if unit else name


def _outcome(task, row):
    if "event_observed" in row.columns:
        what = "event" if row["event_observed"][0] else "censored"
        return f"{task_label(task)}: {what} after {row['time_to_event_days'][0]:.0f} days"
    if "float_value" in row.columns:
        return f"{task_label(task)}: {row['float_value'][0]:.3g}"
    return f"{task_label(task)}: {'yes' if row['boolean_value'][0] else 'no'}"
