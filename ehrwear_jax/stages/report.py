"""Reports a run: gathers what the stages before it left in the workdir into one page.

A report is an artifact of its config and of what it shows. Its folder holds report.html, report.md, results.json (every
number), tables/, meds_evaluation.json, and the predictions that it is of: predictions/<task>/<model>.parquet and
tuning/<task>/<model>.parquet. `report` in the workdir is a link to the last one.

With config.report.predictions_dir it needs no stage before it: see stages/report_predictions.py.
"""

import json
import shutil

from ehrwear_jax.config import options
from ehrwear_jax.runtime import files
from ehrwear_jax.stages import evaluate, interpret, prepare, tasks
from ehrwear_jax.stages.artifacts import Artifact
from ehrwear_jax.stages.plan import Plan
from ehrwear_jax.stages.workdir import link

REPORT = "report.html"


def artifact(plan: Plan) -> Artifact:
    """Where the report lies."""
    config = plan.config
    shown = {"name": config.name} | {p: options.as_dict(getattr(config, p)) for p in ("report", "evaluate")}
    if config.report.predictions_dir:
        folders = (config.report.predictions_dir, config.report.tuning_dir)
        return plan.artifact("reports", config.name, shown | {"saved": [plan.inputs.digest(f) for f in folders if f]})
    networks = {t.key: plan.pretrained(t).digest for t in plan.trained()}
    interpreted = [interpret.artifact(plan, m).digest for m in interpret.finished(plan)]
    of = {
        "scores": [evaluate.scores(plan, task).digest for task in tasks.evaluated(plan)],
        "networks": networks,
        "interpreted": interpreted,
        "interpret": options.as_dict(config.interpret),
        "embed": options.identity(config.embed),
        "prepared": [a.digest for a in prepare.artifacts(plan)],
    }
    of |= {"left_out": left_out} if (left_out := tasks.left_out(plan)) else {}
    return plan.artifact("reports", config.name, shown | of)


def missing(plan: Plan) -> list[str]:
    """The report, if it is not there or not the last one."""
    made = artifact(plan)
    is_last = plan.workdir.report.is_symlink() and plan.workdir.report.resolve() == made.folder.resolve()
    return [] if made.done and is_last else ["the report"]


def run(plan: Plan) -> None:
    """Writes the report, points `report` to it, and prints where it is."""
    # what draws figures is loaded here: a start that finds everything done does not wait for it
    from ehrwear_jax.report.build import build_report
    from ehrwear_jax.stages import report_contents, report_predictions

    made, saved = artifact(plan), bool(plan.config.report.predictions_dir)
    inputs = report_predictions.inputs(plan.config) if saved else report_contents.contents(plan)
    if not made.done:
        with made.making() as folder:
            build_report(inputs, folder)
            if not saved:
                _copy_predictions(plan, folder)
    link(plan.workdir.report, made.folder)
    folder = plan.workdir.report
    print(_table(inputs.results), flush=True)
    print(
        f"\nreport: {folder / REPORT}\ntables: {folder / 'report.md'} and, as CSV and LaTeX, {folder / 'tables'}"
        f"\nnumbers: {folder / 'results.json'}",
        flush=True,
    )


def _copy_predictions(plan, folder):
    """The predictions of all tasks in the layout of config.report.predictions_dir, so that a report stands alone."""
    meds = {}
    for task in tasks.evaluated(plan):
        scores = evaluate.scores(plan, task).folder
        for kind in ("predictions", "tuning"):
            if (scores / kind).is_dir():
                shutil.copytree(scores / kind, folder / kind / task.name, dirs_exist_ok=True)
        if (scores / evaluate.MEDS_EVALUATION).exists():
            meds[task.name] = json.loads((scores / evaluate.MEDS_EVALUATION).read_text())
    files.write_json(folder / evaluate.MEDS_EVALUATION, meds, indent=1)


def _table(records):
    """The main numbers as lines of text: a block for each task, a line for each model."""
    lines = []
    for task in dict.fromkeys(r["task"] for r in records):
        mine = {(r["model"], r["metric"]): r for r in records if r["task"] == task}
        first = next(r for r in records if r["task"] == task)
        events = "" if first["n_positive"] is None else f", {first['n_positive']:,} events"
        lines += ["", f"{task}  (n = {first['n']:,}{events})"]
        for model in dict.fromkeys(model for model, _ in mine):
            cells = [
                f"{m} {r['value']:.3f} [{r['lo']:.3f}, {r['hi']:.3f}]"
                for m in ("auroc", "auprc", "c_index", "rmse")
                if (r := mine.get((model, m))) and r["value"] is not None and r["lo"] is not None
            ]
            if cells:
                lines.append(f"  {model:<24}" + "   ".join(cells))
    return "\n".join(lines)
