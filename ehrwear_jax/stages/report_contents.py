"""Gathers the content of a run's report, beside what report_inputs.py does: results, facts, notes, trajectories."""

import json
import platform
from datetime import UTC, datetime
from importlib import metadata

import numpy as np
import polars as pl

from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.evals import disclosure
from ehrwear_jax.report.build import ReportInputs, Trajectory
from ehrwear_jax.report.result_records import task_label
from ehrwear_jax.stages import embed, evaluate, interpret, predictors, prepare, report_inputs, report_provenance, tasks
from ehrwear_jax.stages.labels import Labels
from ehrwear_jax.stages.plan import Plan
from ehrwear_jax.training.pretrain import Model

# What a simulated cohort is, by SimulateConfig.control
CONTROLS = {
    "positive": "a positive control: by construction what the wearable shows means more with a diagnosis that only the "
    "EHR holds, so that a joint model can beat late fusion; it says nothing about real data",
    "redundant": "a negative control (redundant): by construction one modality suffices, and a joint model has nothing "
    "to gain",
    "noise": "a negative control (noise): by construction the wearable says nothing of health, and a joint model has "
    "nothing to gain",
    "changed": "with options of its own: what a joint model can gain is printed by "
    "python -m ehrwear_jax.data.sources.simulator.bounds",
}
PACKAGES = ("jax", "flax", "optax", "grain", "polars", "scikit-learn")


def contents(plan: Plan) -> ReportInputs:
    """Everything that the page shows of a finished run."""
    config = plan.config
    records, details = evaluate.results(plan)
    today = datetime.now(UTC).date()
    return ReportInputs(
        title=report_provenance.title(plan),
        subtitle=report_provenance.subtitle(plan, today),
        dataset=config.name,
        results=records,
        losses=_losses(plan),
        predictions=_predictions(plan, {few["task"] for few in details["too_few"]}),
        trajectories=_trajectories(plan) if report_inputs.shows_individuals(config) else (),
        cohort=disclosure.hide_steps(prepare.counts(plan), config.evaluate.min_per_class),
        facts=report_provenance.facts(plan, today) | _facts(plan),
        notes=notes(plan),
        data=report_inputs.gather(plan, details),
        added=_added(config),
    )


def _added(config):
    """{pretrained model: what it adds to the model of its paper}, of families that have one."""
    out = {}
    for name in config.networks:
        model = Model(**config.model(name, config.seeds[0]))
        if hasattr(model.module, "published"):
            out[name] = model.module.published(model.config, model.train, config.prepare)[1]
    return out


def _losses(plan):
    paths = {m: plan.pretrained(plan.first(m)).folder / "metrics.jsonl" for m in plan.config.pretrained}
    return {model: [json.loads(x) for x in p.read_text().splitlines()] for model, p in paths.items() if p.exists()}


def _predictions(plan, left_out):
    out = {}
    for task in (t for t in tasks.evaluated(plan) if t.name not in left_out):
        by_model = {}
        for path in sorted((evaluate.scores(plan, task).folder / "predictions").glob("*.parquet")):
            table = pl.read_parquet(path)
            if "predicted_boolean_probability" in table.columns and not disclosure.tells_few(
                table["boolean_value"].to_numpy(), table["subject_id"], plan.config.evaluate.min_per_class
            ):
                by_model[path.stem] = (
                    table["boolean_value"].to_numpy().astype(int),
                    table["predicted_boolean_probability"].to_numpy(),
                )
        if by_model:
            out[task.name] = by_model
    return out


def _facts(plan):
    config = plan.config
    facts = {"config": config.name, "seeds": ", ".join(map(str, config.seeds)), "python": platform.python_version()}
    facts |= {name: metadata.version(name) for name in PACKAGES}
    for model in config.pretrained:
        facts[f"parameters of {model}"] = f"{report_inputs.parameters(plan, model):,}"
    for what, made in _made(plan).items():
        facts[f"time of {what}"] = f"{sum(a.seconds for a in made):.0f} s"
    for model in config.pretrained:
        train = config.train_config(model)
        batch = f"{train.rows_per_device} rows a device" if train.rows_per_device else train.batch_size
        facts[f"steps x batch of {model}"] = f"{train.steps:,} x {batch}"
    split = f"out-of-fold over {config.data.n_folds} folds" if config.data.n_folds > 1 else "by patient or group, fixed"
    probe, e = "solved exactly", config.evaluate
    if e.probe == "adam":
        hidden = f"one hidden layer of {e.probe_hidden}" if e.probe_hidden else "linear"
        probe = f"Adam 5e-4, at most 50 epochs, early stopping, {hidden}, seeds {tuple(e.probe_seeds)}"
    return facts | {"splits": split, "probe": probe, "resamples of patients": f"{e.n_resamples:,}"}


def _made(plan):
    """{what: artifacts} whose times are told."""
    read = tasks.evaluated(plan)
    predictions = [predictors.predictions_artifact(plan, t, p) for t in read for p in predictors.predictors(plan, t)]
    return {
        "preparing": prepare.artifacts(plan),
        "pretraining": [plan.pretrained(t) for t in plan.trained()],
        "evaluating": [*predictions, *(evaluate.scores(plan, t) for t in read)],
        "interpreting": [interpret.artifact(plan, m) for m in interpret.finished(plan)],
    }


def notes(plan: Plan) -> list[str]:
    """What the page says of its numbers, and of the tasks that are not evaluated."""
    config = plan.config
    found = [f"{task_label(name)} is not evaluated: {why}." for name, why in tasks.left_out(plan).items()]
    found += [
        "Intervals are 95% percentile intervals over resampled patients (or groups of patients where the dataset has "
        "them); all models of a task share the resamples.",
        "Probes are fitted on frozen representations; their penalty is chosen on the tuning split.",
        "q-values: Benjamini and Hochberg within the families named below the tables, false discovery rate 5%. The "
        "oracle and the mean of the training split are in none.",
        "Prediction times censored before the horizon without an event are left out; a death before it counts as no "
        "event.",
    ]
    found.append(report_inputs.privacy_note(config.evaluate.min_per_class))
    if config.evaluate.survey_weight:
        found.append(report_inputs.survey_note(config.evaluate))
    if config.data.source == "synthetic":
        found.append(
            f"The cohort is simulated, {CONTROLS[config.simulate.control]}. The oracle knows each person's latent "
            "state and the process: its value is the highest that can be expected."
        )
    if config.data.n_folds > 1:
        found.append("Censoring is estimated on all training people.")
        found.append(
            f"Out-of-fold over {config.data.n_folds} folds; every person is predicted by a model that was not trained "
            "on them. Loss curves are of the first fold."
        )
    if not report_inputs.shows_individuals(config):
        found.append("No single person is drawn.")
    return found


def _trajectories(plan):
    events = pl.scan_parquet(sorted((plan.tables.folder / "events").glob("*.parquet")))
    names = report_inputs.code_names(plan)
    task = report_inputs.main_task(plan) or tasks.evaluated(plan)[-1].name
    labels = Labels(plan).table(task)
    out = []
    for number, path in enumerate(embed.trajectories(plan), 1):
        subject = int(path.stem.rpartition("-")[0])
        saved = np.load(path)
        origin = int(saved["time_us"][0])
        mine = events.filter((pl.col("subject_id") == subject) & pl.col("time").is_not_null()).collect().sort("time")
        mine = mine.filter(pl.col("time").to_physical().is_between(origin, int(saved["time_us"][-1])))
        signal_time, signal, signal_names = _signals(plan, subject, origin)
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


def _signals(plan, subject, origin):
    """(days since `origin` [M], window means [M, C], names with units) of a person; (None, None, ()) without."""
    windows = sorted((plan.tables.folder / "windows").glob("*.parquet"))
    if not windows:
        return None, None, ()
    mine = [pl.scan_parquet(p).filter(pl.col("subject_id") == subject) for p in windows]
    table = pl.concat(mine).collect().sort("time")
    if not table.height:
        return None, None, ()
    units = report_inputs.channel_units(plan)
    means = [c for c in table.columns if c.endswith("__mean")]
    time = (table["time"].to_physical().to_numpy() - origin) / DAY_US
    signal = table.select(means).cast(pl.Float64).fill_null(float("nan")).to_numpy()
    return time, signal, tuple(_signal_name(c.removesuffix("__mean"), units) for c in means)


def _label(code, names):
    """The code's vocabulary, which determines its lane, and its description."""
    kind = code.split("//")[0]
    return f"{kind}//{names.get(code) or code.split('//', 1)[-1]}"


def _signal_name(channel, units):
    """`heart rate (bpm)`; the text in brackets is taken for the unit."""
    name, unit = channel.replace("_", " "), units.get(channel)
    return f"{name} ({unit})" if unit else name


def _outcome(task, label):
    if "event_observed" in label.columns:
        what = "event" if label["event_observed"][0] else "censored"
        return f"{task_label(task)}: {what} after {label['time_to_event_days'][0]:.0f} days"
    if "float_value" in label.columns:
        return f"{task_label(task)}: {label['float_value'][0]:.3g}"
    return f"{task_label(task)}: {'yes' if label['boolean_value'][0] else 'no'}"
