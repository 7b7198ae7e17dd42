"""Turns records, losses, predictions and counts into the sections of a page.

Every section is always present; where its input is missing it says so in a sentence.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ehrwear_jax.report import figures, paper, table_model
from ehrwear_jax.report import result_records as rec
from ehrwear_jax.report.page import Block, Bullets, Details, FigureGrid, Section, Text, join_words
from ehrwear_jax.report.result_records import Record
from ehrwear_jax.report.trajectories import (
    MAX_SIGNALS,
    Trajectory,
    component_legend,
    principal_components,
    shows_daily_mean,
    trajectory_figure,
)

Predictions = Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]]
FORECAST = ("auroc", "auprc")
SURVIVAL = ("c_index", "uno_c")
CALIBRATION = ("calibration_slope", "calibration_intercept", "ece", "ece_floor", "ece_corrected")
BRIER = ("brier", "brier_null", "brier_skill")
DEGENERATE = "degenerate_resamples"
VALIDATION = "validation/"
LEARNING_RATE = "learning_rate"
BOLD = "Bold marks the best model of a task to three decimals."
ORACLE_NOTE = " The oracle, set apart, is an upper bound and never bold."


def _of(records: Sequence[Record], metrics: Sequence[str]) -> list[Record]:
    return [r for r in records if r["metric"] in metrics]


def _table(records: Sequence[Record], metrics: Sequence[str], caption: str) -> table_model.Table:
    """The performance of all models, with the spread over seeds where there are several."""
    wanted = [*metrics, *(m + rec.SEED_SD for m in metrics)]
    return table_model.performance_table(_of(records, wanted), metrics, caption)


# ---------------------------------------------------------------------------------------------
# Results
# ---------------------------------------------------------------------------------------------


def summary(
    records: Sequence[Record], added: Mapping[str, Sequence[str]], too_few: Sequence[Mapping[str, Any]] = ()
) -> Section:
    """One sentence for each task that compares the main model with the best other one.

    Args:
      added: pretrained model -> what it adds to the model of its paper, which is told first.
      too_few: of ReportData.
    """
    first, items = paper.beside_the_paper(added), []
    for metric in ("auroc", "c_index"):
        scores = [r for r in _of(records, [metric]) if r["value"] is not None]
        for task in rec.tasks_of(scores):
            by_model = {r["model"]: r for r in scores if r["task"] == task}
            main = rec.main_model(by_model)
            if main is not None:
                text = _comparison(main, by_model, records, task, metric)
                items.append((f"{rec.task_label(task)}.", text))
    items += [(f"{rec.task_label(few['task'])}.", f"No numbers, too few: {_how_few(few)}.") for few in too_few]
    if not items:
        return Section("summary", "Summary", (*first, Text("No result was evaluated in this run.")))
    blocks: list[Block] = [*first, Bullets(tuple(items))]
    if any(rec.is_difference(r) for r in records):
        text = "Where the interval of a difference includes zero, the data do not distinguish the two models."
        blocks.append(Text(text, ("difference",)))
    return Section("summary", "Summary", tuple(blocks))


def _how_few(few: Mapping[str, Any]) -> str:
    """`26 people, fewer than 10 events`; those without the event where they are the few."""
    named = {"people": few["people"], "events": few["events"], "without the event": few["others"]}
    told = {what: f"fewer than {few['limit']}" if n == -1 else f"{n:,}" for what, n in named.items() if n is not None}
    return ", ".join(f"{n} {what}" for what, n in told.items())


def _comparison(main: str, by_model: Mapping[str, Record], records: Sequence[Record], task: str, metric: str) -> str:
    label = rec.metric_of(metric).label
    text = f"{rec.short_model_label(main)}: {label} {rec.format_interval(by_model[main])}"
    others = [r for model, r in by_model.items() if model not in (main, rec.ORACLE)]
    if others:
        best = max(others, key=lambda r: r["value"])
        text += f"; best other model, {rec.inline_model_label(best['model'])}: {rec.format_interval(best)}"
    if rec.ORACLE in by_model:
        text += f"; oracle: {rec.format_interval(by_model[rec.ORACLE])}"
    text += "."
    if others:
        name = f"{main} - {best['model']}"
        paired = [r for r in records if (r["model"], r["task"], r["metric"]) == (name, task, metric + rec.DIFFERENCE)]
        if paired:
            relation = table_model.zero_relation(paired[0])
            text += f" Paired difference {rec.format_interval(paired[0])}"
            text += "." if relation == "not given" else f" ({relation})."
    return text


def forecasting(records: Sequence[Record]) -> Section:
    """AUROC and AUPRC of the binary tasks."""
    scores = _of(records, FORECAST)
    if not scores:
        text = "No binary outcome was evaluated in this run, so there is no AUROC and no AUPRC."
        return Section("forecasting", "Forecasting", (Text(text),))
    blocks: list[Block] = [
        Text("How well the predictions discriminate held-out people with the outcome from others.", ("interval",))
    ]
    blocks += _interval_figure(records, "auroc")
    caption = "Discrimination by task and model. " + BOLD + _oracle_note(scores)
    blocks.append(_table(records, FORECAST, caption))
    blocks += _model_notes(scores)
    blocks += [
        Text(
            f"{rec.task_label(r['task'])}: {r['value']:.0f} resamples held one class only; they "
            "have no AUROC and are left out of the intervals."
        )
        for r in _of(records, [DEGENERATE])
        if r["value"]
    ]
    return Section("forecasting", "Forecasting", tuple(blocks))


def survival(records: Sequence[Record]) -> Section:
    """Concordance of the time-to-event tasks."""
    scores = _of(records, SURVIVAL)
    if not scores:
        text = "No time-to-event outcome was evaluated in this run, so there is no C-index."
        return Section("survival", "Survival", (Text(text),))
    caption = "Concordance by task and model. " + BOLD + _oracle_note(scores)
    table = _table(records, SURVIVAL, caption)
    figure = _interval_figure(records, "c_index")
    return Section("survival", "Survival", (*figure, table, *_model_notes(scores)))


def _has_oracle(records: Sequence[Record]) -> bool:
    return any(r["model"] == rec.ORACLE for r in records)


def _oracle_note(records: Sequence[Record]) -> str:
    return ORACLE_NOTE if _has_oracle(records) else ""


def _model_notes(records: Sequence[Record]) -> list[Block]:
    models = {r["model"] for r in records}
    notes = {
        "oracle": "The oracle exists because this cohort is simulated.",
        "late_fusion": "Late fusion combines models that were trained separately.",
        "stacked": "Stacked predictions combine what other models predict, with weights from the tuning split.",
        "tabular": "The tabular models are baselines without pretraining.",
        "kernel_machine": "Kernel machines are probes that are not linear.",
    }
    tabular = ("gradient_boosting", "boosting_counts", "linear_table", "average_table", "age_sex")
    kinds = {"tabular": lambda m: m.startswith(tabular), "kernel_machine": lambda m: "kernel" in m}
    shown = [k for k in notes if k in models or (k in kinds and any(map(kinds[k], models)))]
    text = " ".join(notes[key] for key in shown)
    if "oracle" not in shown:
        text = f"There is no oracle: true risk is known only for simulated cohorts. {text}"
    return [Text(text.strip(), tuple(shown))]


def _interval_figure(records: Sequence[Record], metric: str) -> list[Block]:
    scores = [r for r in _of(records, [metric]) if r["value"] is not None]
    if not scores:
        return []
    ends = [x for r in scores for x in (r["value"], r["lo"], r["hi"]) if x is not None]
    margin = 0.06 * (max(ends) - min(ends)) or 0.01
    limits = (min(ends) - margin, min(1.0, max(ends) + margin))
    label = rec.metric_of(metric).label
    panels = []
    for index, task in enumerate(rec.tasks_of(scores)):
        by_model = {r["model"]: r for r in scores if r["task"] == task}
        bars = [
            figures.Bar(model, rec.short_model_label(model), r["value"], r["lo"], r["hi"])
            for model, r in ((model, by_model[model]) for model in rec.sorted_models(by_model))
        ]
        title = rec.task_label(task)
        panels.append(figures.interval_panel(bars, title, label, limits, f"{metric}{index}"))
    caption = f"{label} with 95% interval, one panel per task, all on the same scale; further right is better."
    if _has_oracle(scores):
        caption += " The dashed line is the oracle, the best attainable value."
    return [FigureGrid(caption, tuple(panels), size="medium")]


def differences(records: Sequence[Record], families: Sequence[Mapping[str, Any]] = ()) -> Section:
    """Paired differences between models; families: of their q-values."""
    if not any(rec.is_difference(r) for r in records):
        return Section(
            "differences",
            "Paired differences",
            (Text("No paired difference between models was computed in this run."),),
        )
    return Section("differences", "Paired differences", (table_model.difference_table(records, families),))


def calibration(records: Sequence[Record], predictions: Predictions) -> Section:
    """Reliability diagrams, Brier score and calibration error."""
    blocks: list[Block] = []
    drawn = {task: models for task, models in predictions.items() if models}
    if drawn:
        # The task with most positives first, as its bins are the most precise; the others are folded.
        positives = {task: max(int(np.sum(y)) for y, _ in models.values()) for task, models in drawn.items()}
        shown = max(drawn, key=lambda task: positives[task])
        blocks.append(Text("On the diagonal, predicted probability and observed share agree.", ("reliability",)))
        blocks.append(_reliability_figure(shown, drawn[shown], 0))
        others = [task for task in drawn if task != shown]
        blocks += [
            Details(rec.task_label(task), (_reliability_figure(task, drawn[task], i),))
            for i, task in enumerate(others, 1)
        ]
    else:
        blocks.append(Text("No predicted probabilities were given, so no reliability is drawn."))
    captions = {
        CALIBRATION: "Calibration by task and model: slope 1 and intercept 0 are perfect; of the ECE, lower is "
        "better. ",
        BRIER: "Brier score by task and model, beside that of the held-out prevalence; lower is better, higher for the "
        "scaled one. ",
    }
    for wanted, caption in captions.items():
        if scores := _of(records, wanted):
            metrics = [m for m in wanted if any(r["metric"] == m for r in scores)]
            blocks.append(_table(records, metrics, caption + BOLD + _oracle_note(scores)))
    if not _of(records, CALIBRATION + BRIER):
        blocks.append(Text("No Brier score or calibration error was computed in this run."))
    return Section("calibration", "Calibration", tuple(blocks))


def _reliability_figure(task: str, models: Mapping[str, tuple], index: int) -> FigureGrid:
    order = rec.sorted_models(models)
    data = {m: (np.asarray(models[m][0], np.float64), np.asarray(models[m][1], np.float64)) for m in order}
    bins = {model: figures.reliability_bins(y_N, p_N) for model, (y_N, p_N) in data.items()}
    limit = figures.reliability_limit(list(bins.values()))
    panels = tuple(
        figures.reliability_panel(data[m][1], bins[m], limit, m, rec.short_model_label(m), f"rel{index}-{i}")
        for i, m in enumerate(order)
    )
    caption = (
        f"{rec.task_label(task)}: observed share against predicted probability in bins of equal "
        "size, with 95% intervals, above a histogram of the predictions. Points above the dashed "
        "line: risk is underestimated; below: overestimated."
    )
    beyond = sum(int(np.sum(p > limit)) for _, p in data.values())
    if beyond:
        caption += f" {beyond:,} predictions above {limit:.2f} are off the histograms."
    return FigureGrid(caption, panels)


# ---------------------------------------------------------------------------------------------
# Patients, training, cohort
# ---------------------------------------------------------------------------------------------


def patients(trajectories: Sequence[Trajectory]) -> Section:
    """Latent state, events and signals of single patients over time."""
    title = "Patients over time"
    if not trajectories:
        return Section("patients", title, (Text("No patient's trajectory was given to draw."),))
    scores, share = principal_components([t.z_NxD for t in trajectories])
    blocks: list[Block] = [
        Text(
            "The latent state z is computed along each record; its principal components are fitted on "
            f"the {len(trajectories)} patients shown together.",
            ("pca",),
        )
    ]
    if not len(share):
        blocks.append(Text("The latent state does not vary over the times shown."))
    flat = np.concatenate([s.ravel() for s in scores]) if len(share) else np.zeros(1)
    margin = 0.08 * float(np.ptp(flat)) or 1.0
    limits = (float(flat.min()) - margin, float(flat.max()) + margin)
    for i, (t, score) in enumerate(zip(trajectories, scores, strict=True)):
        panel = trajectory_figure(t, score, limits, f"traj{i}")
        blocks.append(FigureGrid(_trajectory_caption(t), (panel,), component_legend(share), "wide"))
    return Section("patients", title, tuple(blocks))


def _trajectory_caption(t: Trajectory) -> str:
    text = f"Person {t.number}, outcome: {t.outcome or 'not stated'}. Above, z; then the "
    text += f"record's {len(t.event_time_E):,} events, one tick each, labelled where space permits"
    if t.has_signal:
        names = [name.partition(" (")[0] for name in t.signal_names[:MAX_SIGNALS]]
        text += f"; below, {join_words(names)}, with gaps where nothing was recorded"
        text += " and the daily mean as a bold line." if shows_daily_mean(t) else "."
        if len(t.signal_names) > MAX_SIGNALS:
            text += f" {len(t.signal_names) - MAX_SIGNALS} more signals are not drawn."
    else:
        text += ". This patient has no wearable signal in the time shown."
    if t.prediction_time is not None:
        text += " The dashed line is the prediction time; the shaded part comes after it."
    return text


def pretraining(losses: Mapping[str, Sequence[Mapping[str, Any]]]) -> Section:
    """Loss curves."""
    title = "Pretraining"
    curves, skipped = loss_curves(losses)
    if not curves:
        return Section("pretraining", title, (Text("No losses of a pretraining were logged."),))
    models = rec.sorted_models(model for by_model in curves.values() for model in by_model)
    colors = figures.model_colors(models)
    terms = list(dict.fromkeys(t.removeprefix(VALIDATION) for t in curves))
    panels = tuple(
        figures.loss_panel(
            curves.get(term, {}),
            curves.get(VALIDATION + term, {}),
            rec.term_label(term),
            f"loss{i}",
            {model: i for i, model in enumerate(models)},
        )
        for i, term in enumerate(terms)
    )
    legend = tuple((rec.short_model_label(model), colors[model], figures.svg_dash(i)) for i, model in enumerate(models))
    caption = (
        "Each term of the loss by training step, one line for each pretrained model. Terms of a modality "
        "are missing from the models that are not given it."
    )
    if any(term.startswith(VALIDATION) for term in curves):
        caption += " Circles: the validation split."
    if skipped:
        caption += f" {skipped:,} values that are not finite are left out."
    blocks: list[Block] = [FigureGrid(caption, panels, legend)]
    finals = {rec.term_label(t): by_model for t, by_model in curves.items() if t != LEARNING_RATE}
    if finals:
        blocks.append(Details("First, lowest and last values", (table_model.loss_table(finals),)))
    return Section("pretraining", title, tuple(blocks))


def loss_curves(
    losses: Mapping[str, Sequence[Mapping[str, Any]]],
) -> tuple[dict[str, dict[str, tuple[np.ndarray, np.ndarray]]], int]:
    """Turns the lines of metrics.jsonl of each model into `curves[term][model] = (step, value)`.

    Terms are the keys below `loss/` or `validation/loss/`, the total first, and the learning rate
    last; other keys are not drawn.

    Returns:
      The curves without values that are not finite, and how many those were.

    Raises:
      ValueError: a line has no step or a term's value is not a number.
    """
    points: dict[str, dict[str, list[tuple[float, float]]]] = {}
    skipped = 0
    for model, lines in losses.items():
        for index, line in enumerate(lines):
            where = f"metrics of model {model!r}, line {index}"
            if "step" not in line:
                raise ValueError(f"{where}: no step")
            for term, value in line.items():
                if term != LEARNING_RATE and not term.removeprefix(VALIDATION).startswith("loss/"):
                    continue
                try:
                    value = float("nan" if value is None else value)
                except (TypeError, ValueError) as error:
                    raise ValueError(f"{where}: {term} is {value!r}, not a number") from error
                if np.isfinite(value):
                    by_model = points.setdefault(term, {})
                    by_model.setdefault(model, []).append((float(line["step"]), value))
                else:
                    skipped += 1
    order = sorted(points, key=lambda t: (t == LEARNING_RATE, not t.endswith("loss/total")))
    curves = {term: {m: tuple(np.array(sorted(xy)).T) for m, xy in points[term].items()} for term in order}
    return curves, skipped


def cohort(steps: Sequence[Mapping[str, Any]]) -> Section:
    """Selection of the cohort, step by step."""
    if not steps:
        text = "No counts of the cohort's selection were given."
        return Section("cohort", "Cohort", (Text(text),))
    return Section("cohort", "Cohort", (table_model.cohort_table(steps),))


def facts(run: Mapping[str, str]) -> Section:
    """Configuration, versions and durations."""
    block = table_model.facts_table(run) if run else Text("No facts of the run were recorded.")
    return Section("run", "Run", (block,))


def limitations(notes: Sequence[str]) -> Section:
    """Limitations and remarks."""
    block = Bullets(tuple(("", n) for n in notes)) if notes else Text("No notes were added.")
    return Section("notes", "Limitations and notes", (block,))


def every_number(records: Sequence[Record]) -> Section:
    """All records."""
    if not records:
        return Section("numbers", "Every number", (Text("There are no results."),))
    text = "Every number is of one seed, so the spread between training runs is unknown."
    if any(r["metric"].endswith(rec.SEED_SD) for r in records):
        text = "Numbers of models with several seeds are means over them; the seed below is that of the resamples."
    table = table_model.record_table(records, "The records of results.json.")
    return Section("numbers", "Every number", (Text(text), Details(f"All {len(records):,} records", (table,))))
