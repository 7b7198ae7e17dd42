"""Gathers what a report shows beside the records: scores, interpretation, latents, what training took."""

import json
import logging
from typing import Any

import numpy as np
import polars as pl

from ehrwear_jax.config.evaluation import EvaluateConfig
from ehrwear_jax.config.run import RunConfig
from ehrwear_jax.data.formats import wearable
from ehrwear_jax.evals import disclosure, families
from ehrwear_jax.report.report_data import Explained, Kernels, PatientMap, ReportData
from ehrwear_jax.report.result_records import model_label
from ehrwear_jax.report.trajectories import principal_components
from ehrwear_jax.runtime import goodput
from ehrwear_jax.stages import embed, interpret, loaded_run, target_trial, tasks, tokens_seen
from ehrwear_jax.stages.embed import KEYS, Embeddings
from ehrwear_jax.stages.labels import Labels
from ehrwear_jax.stages.plan import Plan
from ehrwear_jax.training import embedding
from ehrwear_jax.training.pretrain import MODEL

MAX_POINTS = 3000  # of a map
# parts that models have each, and those of the reference model
OF_MODELS, OF_REFERENCE = ("robustness", "geometry", "ledger", "posterior"), ("retrieval", "uncertainty", "mechanisms")
NOT_INTERPRETED = (
    ": robustness, geometry, retrieval, uncertainty, learned kernels, mechanisms and single predictions are not shown."
)


def shows_individuals(config: RunConfig) -> bool:
    """Single people are drawn of simulated cohorts, or where the config permits it."""
    return config.data.source == "synthetic" or config.report.individuals


def main_task(plan: Plan) -> str:
    """config.report.reliability_task, "" where it is not evaluated."""
    named = plan.config.report.reliability_task
    return named if named in {task.name for task in tasks.evaluated(plan)} else ""


def gather(plan: Plan, details: dict[str, Any]) -> ReportData:
    """Everything; of the interpret stage only what it made with this config, else a sentence that says so.

    Args:
      details: of evaluate.results.
    """
    trials = target_trial.described(plan, details["trials"])
    interpreted, tested = _with_q(_protected(_interpreted(plan), plan.config.evaluate.min_per_class))
    return ReportData(
        **details | {"families": [*details["families"], *tested], "trials": trials},
        **interpreted,
        maps=_maps(plan),
        individuals=shows_individuals(plan.config),
        compute=_compute(plan),
        encounter_codes=plan.config.evaluate.encounter_prefixes,
        main_task=main_task(plan),
    )


def _interpreted(plan) -> dict[str, Any]:
    """Fields of ReportData that the interpret stage leaves."""
    if not plan.config.interpret.enabled:
        return {"not_interpreted": f"The interpret stage is switched off{NOT_INTERPRETED}"}
    if lacking := interpret.missing(plan):
        return {"not_interpreted": f"The interpret stage has not been run for {', '.join(lacking)}{NOT_INTERPRETED}"}
    reference, found = loaded_run.reference(plan), {}
    folders = {m: interpret.artifact(plan, m).folder for m in interpret.finished(plan)}
    if reference not in folders:
        left_out = f"no interpretation of {reference}"
        which = "no network to interpret" if reference is None else left_out
        return {"not_interpreted": f"The run has {which}{NOT_INTERPRETED}"}
    for part in OF_MODELS:
        paths = (folder / f"{part}.json" for folder in folders.values())
        found[part] = [record for path in paths if path.exists() for record in json.loads(path.read_text())]
    main = folders[reference]
    found |= {part: json.loads((main / f"{part}.json").read_text()) for part in OF_REFERENCE}
    codes = {name: tuple(getattr(plan.config.interpret, f"{name}_prefixes")) for name in ("event", "drug")}
    return found | {"kernels": _kernels(folders), "explained": _people(plan, main), "codes": codes}


def survey_note(config: EvaluateConfig) -> str:
    """What measures and intervals are of, where people stand for others."""
    units, strata = " and ".join(config.survey_units) or "people", " and ".join(config.survey_strata) or "everybody"
    return (
        f"Measures are those of the surveyed population: people weigh by {config.survey_weight}. Their intervals are "
        f"over resamples of sampling units ({units} within {strata}; Rao, Wu and Yue 1992) in the place of people. "
        "Counts of people, models, thresholds and what the interpret stage computes are unweighted."
    )


def privacy_note(limit: int) -> str:
    """What is said of hidden counts."""
    return (
        f"Counts of fewer than {limit} people are hidden, with as many others of their "
        "table as would tell them, and with what can be computed from them alone: prevalence, and the rates of a "
        "confusion matrix. Single tables are protected, not what follows from several pages or from what is known "
        "elsewhere."
    )


def _protected(found: dict[str, Any], limit: int) -> dict[str, Any]:
    """What was interpreted, without counts of few: groups of uncertainty, positives of robustness."""
    groups = {u["group"]: u["n"] for u in found.get("uncertainty", ()) if u["group"] != "all"}
    hidden = disclosure.hidden_parts(list(groups.values()), limit)
    hidden_groups = {g for g, is_hidden in zip(groups, hidden, strict=True) if is_hidden}
    shown = [u for u in found.get("uncertainty", ()) if not disclosure.is_small(u["n"], limit)]
    kept = [u | ({"n": None} if u["group"] in hidden_groups else {}) for u in shown]
    robustness = [
        r | ({"n_positive": None} if _few(r["n"], r["n_positive"], limit) else {}) for r in found.get("robustness", ())
    ]
    return found | {k: v for k, v in (("uncertainty", kept), ("robustness", robustness)) if k in found}


def _few(n: int, n_positive: int, limit: int) -> bool:
    return disclosure.is_small(n_positive, limit) or disclosure.is_small(n - n_positive, limit)


def _with_q(found: dict[str, Any]) -> tuple[dict[str, Any], list[dict]]:
    """(what was interpreted with q beside its p-values, the families of the tests)."""
    out, tested = dict(found), []
    for part, adjust in (("robustness", families.of_robustness), ("geometry", families.of_geometry)):
        out[part], mine = adjust(found.get(part, ()))
        tested += mine
    if precursors := (found.get("mechanisms") or {}).get("precursors"):
        with_q, mine = families.of_precursors(precursors)
        out["mechanisms"] = found["mechanisms"] | {"precursors": with_q}
        tested += mine
    return out, tested


def code_names(plan: Plan) -> dict[str, str | None]:
    """{code: its description, or None}."""
    path = plan.records.folder / "codes.parquet"
    return dict(pl.read_parquet(path).select("code", "description").iter_rows())


def channel_units(plan: Plan) -> dict[str, str]:
    """{wearable channel: its unit}."""
    folder = plan.wearable_dir
    if folder is None or not folder.is_dir():  # a run is reported without its raw data too
        return {}
    return dict(wearable.read_channels(folder).select("channel", "unit").iter_rows())


def parameters(plan: Plan, model: str) -> int:
    """Number of parameters of a network."""
    trained = plan.first(model)
    return json.loads((plan.pretrained(trained).folder / MODEL).read_text())["parameters"]


def _people(plan, folder):
    """people.json and people.npz together, with descriptions instead of codes."""
    found = json.loads((folder / "people.json").read_text())
    if not found or not (plan.config.data.source == "synthetic" or plan.config.interpret.individuals):
        return ()
    saved, names = np.load(folder / "people.npz"), code_names(plan)
    out = []
    for i, person in enumerate(found):
        arrays = {name: saved[f"{name}_{i}"] for name in ("attention", "wear", "wear_days")}
        tokens = [t | {"label": _token_label(t["label"], names)} for t in person["tokens"]]
        out.append(Explained(**person | {"tokens": tokens}, **arrays, signals=tuple(saved["channels"].tolist())))
    return tuple(out)


def _token_label(label, names):
    """A code's description, and its result: `LOINC//8480-6//Q4` is `Systolic blood pressure, Q4`."""
    code, _, result = label.rpartition("//")
    if label not in names and code in names:
        return f"{names[code] or code}, {result}"
    return names.get(label) or label


def _kernels(folders):
    found = {m: np.load(folder / "kernels.npz") for m, folder in folders.items() if (folder / "kernels.npz").exists()}
    return tuple(Kernels(model, saved["days_K"], saved["kernel"]) for model, saved in found.items())


def _maps(plan):
    """Principal components of all prediction times of the first fold; the held-out ones of the main task are drawn."""
    config, labels = plan.config, Labels(plan)
    binary = [t.name for t in tasks.evaluated(plan) if t.kind == tasks.BINARY]
    if not binary:
        return ()
    task = config.report.reliability_task if config.report.reliability_task in binary else binary[-1]
    fold, out = config.folds[0][0], []
    times = embed.prediction_times(plan, fold)
    held = times.with_row_index("at").filter(pl.col("split") == "held_out").join(labels.table(task), on=KEYS)
    held = held.sort("at").head(MAX_POINTS)
    for model in config.networks:
        z_NxD = Embeddings(plan.embeddings(plan.first(model))).read(times)
        (scores,), share = principal_components([z_NxD])
        if len(share) < 2:
            logging.info("  %s: the latents have fewer than two principal components: no map", model)
            continue
        pair = float(share[0]), float(share[1])
        out.append(PatientMap(model, task, scores[held["at"].to_numpy(), :2], pair, held["boolean_value"].to_numpy()))
    return tuple(out)


def _compute(plan):
    """Per network, summed over folds and seeds: parameters, steps, FLOPs where logged, device-hours, goodput.

    And what it sees of a record at a prediction time, of the first fold.
    """
    out = []
    for model in plan.config.pretrained:
        folders = [plan.pretrained(t).folder for t in plan.trained(model)]
        spent = [json.loads(p.read_text()) for f in folders if (p := f / goodput.NAME).exists()]
        steps = embedding.last_step(folders[0]) or plan.config.train_config(model).steps
        entry = {"Model": model_label(model), "Parameters": f"{parameters(plan, model):,}", "Steps": f"{steps:,}"}
        if embedded := embedding.steps_of(plan.embeddings(plan.first(model))):
            entry["Step of z"] = ", ".join(f"{step:,}" for step in embedded)
        if spent:
            hours = sum(sum(s["seconds"].values()) for s in spent) / 3600
            steps_hours = sum(s["seconds"]["step"] for s in spent) / 3600
            entry["Hours"] = f"{hours:,.3g}"
            entry |= _devices(spent)
            entry["Goodput"] = f"{100 * steps_hours / hours:.0f}%" if hours else "unknown"
            rate = _tflops(folders[0])
            entry["Model FLOPs"] = f"{rate * 1e12 * steps_hours * 3600:.2e}" if rate else "not logged"
        out.append(entry | tokens_seen.columns(plan.embeddings(plan.first(model))))
    return out


def _devices(spent):
    """Devices and device-hours by the goodput.json of each fold: each start counts with the devices that it had."""
    used: dict[str, tuple[int, float]] = {}
    for about in spent:
        for kind, mine in about.get("devices", {}).items():
            hours = used[kind][1] if kind in used else 0.0
            used[kind] = mine["count"], hours + mine["seconds"] / 3600
    if not used:
        return {"Devices": "not logged", "Device-hours": "devices not logged"}
    several = len(used) > 1
    texts = (f"{h:,.3g} on {kind}" if several else f"{h:,.3g}" for kind, (_, h) in used.items())
    return {"Devices": ", ".join(f"{n} x {kind}" for kind, (n, _) in used.items()), "Device-hours": ", ".join(texts)}


def _tflops(folder):
    """Mean rate over the logged intervals after the first, in which the program is compiled."""
    path = folder / "metrics.jsonl"
    lines = [json.loads(x) for x in path.read_text().splitlines()] if path.exists() else []
    rates = [x["model_tflops_per_second"] for x in lines if "model_tflops_per_second" in x]
    return float(np.mean(rates[1:] or rates)) if rates else None
