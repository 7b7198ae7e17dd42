"""Tabulates what the paper's text and supplement name beside its numbered tables: gains by how much is known of a
person, confusion matrices at several thresholds."""

from collections.abc import Mapping, Sequence

import numpy as np

from ehrwear_jax.report import charts, paper
from ehrwear_jax.report import result_records as rec
from ehrwear_jax.report.page import Block, Details
from ehrwear_jax.report.report_data import Entry, ReportData
from ehrwear_jax.report.table_model import Column, Group, Row, Table

# metric -> (attribute, name of the table, caption); sections 5.2 and 5.3
GAINS = {
    "rmse": ("wear_month", "gain_by_wear", "Physiology by length of wear"),
    "c_index": ("ehr", "gain_sparse_ehr", "Time to event by density of the EHR"),
}
THRESHOLDS = (0.05, 0.1, 0.2, 0.3)  # of the range of the paper's decision curves, section 5.1


def gains(data: ReportData) -> list[Block]:
    """RMSE by length of wear and the C-index by density of the EHR, with paired differences; [] without any."""
    out: list[Block] = []
    for metric, (attribute, name, caption) in GAINS.items():
        mine = [r for r in data.subgroups if r["attribute"] == attribute]
        lines: list[Row | Group] = []
        for task in dict.fromkeys(r["task"] for r in mine if r["metric"] == metric):
            lines += _of_task([r for r in mine if r["task"] == task], task, attribute, metric)
        if lines:
            label = rec.metric_of(metric).label
            columns = (Column("Group", "subgroup", is_text=True), Column(f"{label} [95% interval]", metric),
                       Column("First model less this one", "difference"), Column("p", "p_value"))  # fmt: skip
            notes = (data.encounter,) if attribute == "ehr" else ()
            out.append(Table(f"{caption}: {label} and paired differences.", columns, tuple(lines), notes, name))
    return out


def _of_task(mine: Sequence[Entry], task: str, attribute: str, metric: str) -> list[Row | Group]:
    cells: Mapping = {(r["level"], r["model"], r["metric"]): r for r in mine}
    models = rec.sorted_models(r["model"] for r in mine if " - " not in r["model"])
    models = [m for m in models if m not in paper.ALL_ABLATIONS]
    lines: list[Row | Group] = []
    for level in paper.sorted_levels(r["level"] for r in mine):
        there = {m: r for m in models if (r := cells.get((level, m, metric)))}
        found = next(iter(there.values()), None)
        detail = "suppressed: too few patients"
        if found is not None:
            patients = found["n_patients"]
            detail = "counts hidden" if patients is None else f"{patients:,} patients"
        lines.append(Group(f"{rec.task_label(task)}, {paper.level_label(attribute, level)}", detail))
        for model, r in there.items():
            pair = next((d for (v, pair, m), d in cells.items() if v == level and m == f"{metric}_difference"
                         and pair.endswith(f" - {model}")), None)  # fmt: skip
            difference = rec.format_interval({**pair, "metric": rec.DIFFERENCE}) if pair else rec.ABSENT
            p = rec.format_p_value(pair["p"]) if pair else rec.ABSENT
            lines.append(Row((rec.model_label(model), rec.format_interval(r), difference, p)))
    return lines


def confusion(predictions: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]]) -> list[Block]:
    """A confusion matrix of each model at each of THRESHOLDS, a folded table for each task; [] without predictions.

    A matrix with a count below ten is hidden, as the others and the sums would tell it.

    Args:
      predictions: task -> model -> (outcome 0/1 [N], probability [N]).
    """
    tables = [_matrices(task, models) for task, models in predictions.items() if models]
    return [Details("Confusion matrices at several thresholds", tuple(tables))] if tables else []


def _matrices(task: str, models: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Table:
    lines: list[Row | Group] = []
    for threshold in THRESHOLDS:
        lines.append(Group(f"probability of {threshold:g} or more"))
        for model in rec.sorted_models(models):
            y_N, positive_N = np.asarray(models[model][0], bool), np.asarray(models[model][1]) >= threshold
            tp, fp = int((y_N & positive_N).sum()), int((~y_N & positive_N).sum())
            fn, tn = int(y_N.sum()) - tp, int((~y_N).sum()) - fp
            counts = (tp, fp, tn, fn)
            shown: tuple[str, ...] = (rec.HIDDEN,) * 7
            if min(counts) >= charts.MIN_CELL:
                rates = (tp / (tp + fn), tn / (tn + fp), tp / (tp + fp))
                shown = (*(f"{c:,}" for c in counts), *(rec.format_number(r) for r in rates))
            lines.append(Row((rec.model_label(model), *shown)))
    heads = ("True positives", "False positives", "True negatives", "False negatives", "Sensitivity", "Specificity",
             "PPV")  # fmt: skip
    columns = (Column("Model", "confusion", is_text=True), *(Column(h) for h in heads))
    caption = f"Confusion matrices at fixed probabilities, {rec.task_label(task).lower()}."
    note = f"Matrices with a count below {charts.MIN_CELL} are hidden."
    return Table(caption, columns, tuple(lines), (note,), f"confusion_thresholds_{task}")
