"""What the report says: records, losses, predictions and counts to the sections of a page.

Every section is always there; where its input is missing it says so in a sentence.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ehrwear_jax.report import figures
from ehrwear_jax.report import result_records as rec
from ehrwear_jax.report import table_model as tables
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
CALIBRATION = ("brier", "ece", "ece_floor", "ece_corrected")
DEGENERATE = "degenerate_resamples"
VALIDATION = "validation/"
LEARNING_RATE = "learning_rate"
BOLD = "Bold marks the best row of a task to three decimals."
ORACLE_NOTE = " The oracle, set apart, bounds what can be reached and is never bold."


def _of(records: Sequence[Record], metrics: Sequence[str]) -> list[Record]:
    return [r for r in records if r["metric"] in metrics]


# ---------------------------------------------------------------------------------------------
# Results
# ---------------------------------------------------------------------------------------------


def summary(records: Sequence[Record]) -> Section:
    """One sentence per task on how the main row stands beside the best other one."""
    items = []
    for metric in ("auroc", "c_index"):
        scores = [r for r in _of(records, [metric]) if r["value"] is not None]
        for task in rec.tasks_of(scores):
            by_row = {r["row"]: r for r in scores if r["task"] == task}
            main = rec.main_row(by_row)
            if main is not None:
                text = _standing(main, by_row, records, task, metric)
                items.append((f"{rec.task_label(task)}.", text))
    if not items:
        return Section("summary", "At a glance", (Text("No result was evaluated in this run."),))
    blocks: list[Block] = [Bullets(tuple(items))]
    if any(rec.is_difference(r) for r in records):
        text = "Where a difference's interval includes zero, these people do not tell the two apart."
        blocks.append(Text(text, ("difference",)))
    return Section("summary", "At a glance", tuple(blocks))


def _standing(main: str, by_row: Mapping[str, Record], records: Sequence[Record], task: str, metric: str) -> str:
    label = rec.metric_of(metric).label
    text = f"{rec.short_row_label(main)}: {label} {rec.format_interval(by_row[main])}"
    others = [r for row, r in by_row.items() if row not in (main, rec.ORACLE)]
    if others:
        rival = max(others, key=lambda r: r["value"])
        text += f"; best other row, {rec.inline_row_label(rival['row'])}: {rec.format_interval(rival)}"
    if rec.ORACLE in by_row:
        text += f"; oracle: {rec.format_interval(by_row[rec.ORACLE])}"
    text += "."
    if others:
        name = f"{main} - {rival['row']}"
        paired = [r for r in records if (r["row"], r["task"], r["metric"]) == (name, task, metric + rec.DIFFERENCE)]
        if paired:
            relation = tables.zero_relation(paired[0])
            text += f" Paired difference {rec.format_interval(paired[0])}"
            text += "." if relation == "not given" else f" ({relation})."
    return text


def forecasting(records: Sequence[Record]) -> Section:
    scores = _of(records, FORECAST)
    if not scores:
        text = "No binary outcome was evaluated in this run, so there is no AUROC and no AUPRC."
        return Section("forecasting", "Forecasting", (Text(text),))
    blocks: list[Block] = [
        Text("How well the predictions tell held-out people with the outcome from others.", ("interval",))
    ]
    blocks += _interval_figure(records, "auroc")
    caption = "Discrimination by task and row. " + BOLD + _oracle_note(scores)
    blocks.append(tables.performance_table(scores, FORECAST, caption))
    blocks += _row_notes(scores)
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
    scores = _of(records, SURVIVAL)
    if not scores:
        text = "No time-to-event outcome was evaluated in this run, so there is no C-index."
        return Section("survival", "Survival", (Text(text),))
    caption = "Concordance by task and row. " + BOLD + _oracle_note(scores)
    table = tables.performance_table(scores, SURVIVAL, caption)
    figure = _interval_figure(records, "c_index")
    return Section("survival", "Survival", (*figure, table, *_row_notes(scores)))


def _has_oracle(records: Sequence[Record]) -> bool:
    return any(r["row"] == rec.ORACLE for r in records)


def _oracle_note(records: Sequence[Record]) -> str:
    return ORACLE_NOTE if _has_oracle(records) else ""


def _row_notes(records: Sequence[Record]) -> list[Block]:
    rows = {r["row"] for r in records}
    notes = {
        "oracle": "The oracle exists because this cohort is simulated.",
        "late_fusion": "Late fusion joins models that were trained apart.",
        "tabular": "The tabular rows are what one would use without pretraining.",
    }
    tabular = ("gradient_boosting", "logistic_regression", "cox_table")
    has_tabular = any(row.startswith(tabular) for row in rows)
    shown = [k for k in notes if k in rows or (k == "tabular" and has_tabular)]
    text = " ".join(notes[key] for key in shown)
    if "oracle" not in shown:
        text = f"There is no oracle row: true risk is known only for simulated cohorts. {text}"
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
        by_row = {r["row"]: r for r in scores if r["task"] == task}
        bars = [
            figures.Bar(row, rec.short_row_label(row), r["value"], r["lo"], r["hi"])
            for row, r in ((row, by_row[row]) for row in rec.sorted_rows(by_row))
        ]
        title = rec.task_label(task)
        panels.append(figures.interval_panel(bars, title, label, limits, f"{metric}{index}"))
    caption = f"{label} with 95% interval, one panel per task, all on the same scale; further right is better."
    if _has_oracle(scores):
        caption += " The dashed line is the oracle: what lies left of it is still to be gained."
    return [FigureGrid(caption, tuple(panels), size="medium")]


def differences(records: Sequence[Record]) -> Section:
    if not any(rec.is_difference(r) for r in records):
        return Section(
            "differences",
            "Paired differences",
            (Text("No paired difference between rows was computed in this run."),),
        )
    return Section("differences", "Paired differences", (tables.difference_table(records),))


def calibration(records: Sequence[Record], predictions: Predictions) -> Section:
    blocks: list[Block] = []
    drawn = {task: rows for task, rows in predictions.items() if rows}
    if drawn:
        # The task with most positives first: its bins say most. The others are one click away.
        positives = {task: max(int(np.sum(y)) for y, _ in rows.values()) for task, rows in drawn.items()}
        shown = max(drawn, key=lambda task: positives[task])
        blocks.append(Text("On the diagonal, a predicted 20% happens 20% of the time.", ("reliability",)))
        blocks.append(_reliability_figure(shown, drawn[shown], 0))
        others = [task for task in drawn if task != shown]
        blocks += [
            Details(rec.task_label(task), (_reliability_figure(task, drawn[task], i),))
            for i, task in enumerate(others, 1)
        ]
    else:
        blocks.append(Text("No predicted probabilities were given, so no reliability is drawn."))
    scores = _of(records, CALIBRATION)
    if scores:
        metrics = [m for m in CALIBRATION if any(r["metric"] == m for r in scores)]
        caption = "Calibration by task and row; lower is better. " + BOLD + _oracle_note(scores)
        blocks.append(tables.performance_table(scores, metrics, caption))
    else:
        blocks.append(Text("No Brier score or calibration error was computed in this run."))
    return Section("calibration", "Calibration", tuple(blocks))


def _reliability_figure(task: str, rows: Mapping[str, tuple], index: int) -> FigureGrid:
    order = rec.sorted_rows(rows)
    data = {row: tuple(np.asarray(x, np.float64) for x in rows[row]) for row in order}
    bins = {row: figures.reliability_bins(*data[row]) for row in order}
    limit = figures.reliability_limit(list(bins.values()))
    panels = tuple(
        figures.reliability_panel(data[row][1], bins[row], limit, row, rec.short_row_label(row), f"rel{index}-{i}")
        for i, row in enumerate(order)
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
    title = "Patients over time"
    if not trajectories:
        return Section("patients", title, (Text("No patient's trajectory was given to draw."),))
    scores, share = principal_components([t.z_NxD for t in trajectories])
    blocks: list[Block] = [
        Text(
            "The latent state z is read along each record; its principal components are fitted on "
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
    text += f"record's {len(t.event_time_E):,} events, one tick each, labelled where there is room"
    if t.has_signal:
        names = [name.partition(" (")[0] for name in t.signal_names[:MAX_SIGNALS]]
        text += f"; below, {join_words(names)}, with gaps where nothing was recorded"
        text += " and the daily mean as a bold line." if shows_daily_mean(t) else "."
        if len(t.signal_names) > MAX_SIGNALS:
            text += f" {len(t.signal_names) - MAX_SIGNALS} more signals are not drawn."
    else:
        text += ". This patient has no wearable signal in the time shown."
    if t.prediction_time is not None:
        text += " The dashed line is the prediction time; what is shaded came after it."
    return text


def pretraining(losses: Mapping[str, Sequence[Mapping[str, Any]]]) -> Section:
    title = "Pretraining"
    curves, skipped = loss_curves(losses)
    if not curves:
        return Section("pretraining", title, (Text("No losses of a pretraining were logged."),))
    rows = rec.sorted_rows(row for by_row in curves.values() for row in by_row)
    colors = figures.row_colors(rows)
    terms = list(dict.fromkeys(t.removeprefix(VALIDATION) for t in curves))
    panels = tuple(
        figures.loss_panel(
            curves.get(term, {}),
            curves.get(VALIDATION + term, {}),
            rec.term_label(term),
            f"loss{i}",
            {row: i for i, row in enumerate(rows)},
        )
        for i, term in enumerate(terms)
    )
    legend = tuple((rec.short_row_label(row), colors[row], figures.svg_dash(i)) for i, row in enumerate(rows))
    caption = (
        "Each term of the loss by training step, one line per pretrained model. Terms of one kind "
        "of data are missing from the models that do not see it."
    )
    if any(term.startswith(VALIDATION) for term in curves):
        caption += " Circles are people held back from training."
    if skipped:
        caption += f" {skipped:,} values that are not finite are left out."
    blocks: list[Block] = [FigureGrid(caption, panels, legend)]
    finals = {rec.term_label(t): by_row for t, by_row in curves.items() if t != LEARNING_RATE}
    if finals:
        blocks.append(Details("First, lowest and last values", (tables.loss_table(finals),)))
    return Section("pretraining", title, tuple(blocks))


def loss_curves(
    losses: Mapping[str, Sequence[Mapping[str, Any]]],
) -> tuple[dict[str, dict[str, tuple[np.ndarray, np.ndarray]]], int]:
    """Lines of metrics.jsonl per row to `curves[term][row] = (step, value)`.

    Terms are the keys below `loss/` or `validation/loss/`, the total first, and the learning rate
    last; other keys are not drawn.

    Returns:
      The curves without values that are not finite, and how many those were.

    Raises:
      ValueError: a line has no step or a term's value is not a number.
    """
    points: dict[str, dict[str, list[tuple[float, float]]]] = {}
    skipped = 0
    for row, lines in losses.items():
        for index, line in enumerate(lines):
            where = f"metrics of row {row!r}, line {index}"
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
                    by_row = points.setdefault(term, {})
                    by_row.setdefault(row, []).append((float(line["step"]), value))
                else:
                    skipped += 1
    order = sorted(points, key=lambda t: (t == LEARNING_RATE, not t.endswith("loss/total")))
    return {term: {row: tuple(np.array(sorted(xy)).T) for row, xy in points[term].items()} for term in order}, skipped


def cohort(steps: Sequence[Mapping[str, Any]]) -> Section:
    if not steps:
        text = "No counts of the cohort's selection were given."
        return Section("cohort", "Cohort", (Text(text),))
    return Section("cohort", "Cohort", (tables.cohort_table(steps),))


def facts(run: Mapping[str, str]) -> Section:
    block = tables.facts_table(run) if run else Text("No facts of the run were recorded.")
    return Section("run", "Run", (block,))


def limitations(notes: Sequence[str]) -> Section:
    block = Bullets(tuple(("", n) for n in notes)) if notes else Text("No notes were added.")
    return Section("notes", "Limitations and notes", (block,))


def every_number(records: Sequence[Record]) -> Section:
    if not records:
        return Section("numbers", "Every number", (Text("There are no results."),))
    text = "Every number comes from one seed, so the spread between training runs is unknown."
    table = tables.record_table(records, "The records of results.json.")
    return Section("numbers", "Every number", (Text(text), Details(f"All {len(records):,} records", (table,))))
