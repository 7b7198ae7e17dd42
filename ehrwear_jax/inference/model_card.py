"""Makes the card of a bundled model: its data, cohort, metrics with intervals, limits and intended use.

After Mitchell et al., Model Cards for Model Reporting, FAT* 2019. Counts of few people are not told (evals/
disclosure.py).
"""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from ehrwear_jax.inference.stored_probes import StoredProbe
from ehrwear_jax.stages import evaluate, evaluate_subgroups, tasks
from ehrwear_jax.stages.plan import Plan, Trained
from ehrwear_jax.stages.tasks import SURVIVAL

INTENDED = (
    "Research: representations of records and wearable signals, and risks of the tasks below, of people like those of "
    "the training data. It is no medical device, and no decision about a person should rest on it."
)
SIMULATED = "Trained on a simulated cohort: it knows nothing of real people, and shows how the program is used."
LIMITS = (
    "Risks hold for people, care and coding like those of the training data; look at what was unknown of yours.",
    "Predictions of other data should be validated and recalibrated there before they are used for anything.",
    "Whether the network's parameters tell of single training people was not examined.",
)
_NHANES = (
    "National Health and Nutrition Examination Survey with linked mortality (CDC, National Center for Health "
    "Statistics): public use, for statistics alone and never to find out who somebody is"
)
# config.data.source: whose the data are, and on what terms
TERMS = {
    "nhanes": _NHANES,
    "nhanes_cdc": _NHANES,
    "physionet2012": "PhysioNet/Computing in Cardiology Challenge 2012 (Silva et al., Computing in Cardiology 39, "
    "2012): Open Data Commons Attribution License v1.0",
}
_TOLD = ("auroc", "auprc", "brier", "ece", "calibration_slope", "calibration_intercept", "c_index", "rmse", "mae", "r2")


def of_run(plan: Plan, trained: Trained, about: Mapping[str, Any], probes: Mapping[str, StoredProbe]) -> dict[str, Any]:
    """The card of a network, as JSON holds it.

    Metrics and the cohort's table are there where the tasks are evaluated.

    Args:
      about: what bundle.json says. probes: {task: its probe}.
    """
    config, simulated = plan.config, plan.config.data.source == "synthetic"
    scored = bool(probes) and all(evaluate.scores(plan, tasks.read(plan, name)).done for name in probes)
    train = config.train_config(trained.name)
    splits = pl.read_parquet(plan.fit(trained.fold).folder / "subjects.parquet")["split"].value_counts()
    return {
        "name": f"{config.name}: {trained.name}",
        "family": about["model"]["family"],
        "written_by": f"ehrwear_jax {about['written_by']}",
        "intended_use": INTENDED,
        "data": {
            "name": config.name,
            "source": config.data.source,
            "people": dict(splits.drop_nulls().rows()),
            "terms": TERMS.get(config.data.source, ""),
        },
        "inputs": {
            "modalities": about["modalities"],
            "codes": about["n_codes"],
            "channels": [c for c in about["channels"] if c["channel"] in about["prepare"]["channels"]],
        },
        "training": {
            "steps": about["step"],
            "batch_size": train.batch_size,
            "seed": trained.seed,
            "fold": trained.fold,
        },
        "tasks": [
            {"task": name, "kind": p.kind, "recalibrated": p.calibration is not None, "horizons_days": list(p.horizons)}
            for name, p in probes.items()
        ],
        "metrics": _metrics(plan, trained, probes) if scored else [],
        "cohort": evaluate_subgroups.demographics(evaluate_subgroups.described(plan), config.evaluate.min_per_class)
        if scored
        else [],
        "limits": [
            *([SIMULATED] if simulated else []),
            *LIMITS,
            *_limits(about, probes, scored),
            *_of_fold(plan, trained),
        ],
    }


def _metrics(plan, trained, probes):
    fields = ("task", "metric", "value", "lo", "hi", "n", "n_positive")
    records = evaluate.results(plan)[0]
    mine = [r for r in records if r["model"] == trained.name and r["task"] in probes and r["metric"] in _TOLD]
    return [{name: r[name] for name in fields} for r in mine]


def _limits(about, probes, scored):
    out = [] if scored else ["No metrics: the run was not evaluated."]
    if few := about["values_of_few"]:
        out.append(
            f"It holds quantiles of values of fewer people than min_subjects, of {len(few)} codes: do not pass it on."
        )
    if any(p.kind == SURVIVAL for p in probes.values()):
        out.append("Risks of time-to-event tasks are told at the horizons alone.")
    return out


def _of_fold(plan, trained):
    if (n := plan.config.data.n_folds) < 2:
        return []
    return [f"The metrics are out of fold, of {n} networks; this is that of {trained.fold}, which saw the other folds."]


# ----------------------------------------------------------------------------------------------------------- Markdown


def as_markdown(card: Mapping[str, Any]) -> str:
    """The card for people to read."""
    data, inputs, training = card["data"], card["inputs"], card["training"]
    people = ", ".join(f"{n:,} {split}" for split, n in sorted(data["people"].items()))
    channels = ", ".join(f"{c['channel']} ({c['unit']})" for c in inputs["channels"]) or "none"
    lines = [
        f"# {card['name']}",
        "",
        card["intended_use"],
        "",
        f"- Family `{card['family']}`, {training['steps']} steps of {training['batch_size']} rows.",
        f"- Trained on `{data['name']}` (source {data['source']}); people: {people}.",
        *([f"- Data: {data['terms']}."] if data.get("terms") else []),
        f"- Reads {' and '.join(inputs['modalities'])}: {inputs['codes']:,} codes; channels: {channels}.",
        f"- Written by {card['written_by']}.",
        "",
        "## Limits",
        "",
        *(f"- {text}" for text in card["limits"]),
    ]
    if card["metrics"]:
        rows = [
            (m["task"], m["metric"], *map(_number, (m["value"], m["lo"], m["hi"])), m["n"]) for m in card["metrics"]
        ]
        lines += ["", "## Metrics of held-out people, with 95% intervals", ""]
        lines += _table(("task", "metric", "value", "from", "to", "prediction times"), rows)
    if card["cohort"]:
        rows = [(c["split"], c["measure"], c["value"]) for c in card["cohort"]]
        lines += ["", "## Cohort", "", *_table(("split", "measure", "value"), rows)]
    return "\n".join(lines) + "\n"


def _number(value):
    return "" if value is None else f"{value:.3f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [
        "| " + " | ".join(html.escape(str(x), quote=False).replace("|", "\\|") for x in row) + " |" for row in lines
    ]
