"""Tabulates records and counts, and renders tables as Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ehrwear_jax.report import result_records as rec
from ehrwear_jax.report.result_records import Record


@dataclass(frozen=True)
class Column:
    """A column's heading; `definition` is a key of DEFINITIONS and becomes a footnote."""

    label: str
    definition: str | None = None
    is_text: bool = False


@dataclass(frozen=True)
class Row:
    """One line of cells; `bold` holds positions of cells, `apart` sets the line apart as a bound."""

    cells: tuple[str, ...]
    bold: frozenset[int] = frozenset()
    apart: bool = False


@dataclass(frozen=True)
class Group:
    """A heading inside a table, above the rows that follow it."""

    title: str
    detail: str = ""


@dataclass(frozen=True)
class Table:
    """`name`: of the CSV and LaTeX files of the table; none without it."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row | Group, ...]
    notes: tuple[str, ...] = field(default=())
    name: str = ""

    def definitions(self) -> list[str]:
        """Keys of DEFINITIONS that the headings refer to."""
        return [c.definition for c in self.columns if c.definition]


# ---------------------------------------------------------------------------------------------
# Records to tables
# ---------------------------------------------------------------------------------------------


def performance_table(records: Sequence[Record], metrics: Sequence[str], caption: str) -> Table:
    """One group for each task, one line for each model, one column for each metric.

    The best model of each column is bold; the oracle is set apart and never bold.
    """
    event = "with the event" if "c_index" in metrics else "positive"
    lines: list[Row | Group] = []
    notes: list[str] = []
    for task in rec.tasks_of(records):
        found = {(r["model"], r["metric"]): r for r in records if r["task"] == task}
        models = rec.sorted_models(model for model, _ in found)
        best = {
            metric: rec.best_models(
                {model: found[model, metric]["value"] for model in models if (model, metric) in found},
                rec.metric_of(metric).higher_is_better,
            )
            for metric in metrics
        }
        population = {
            model: rec.format_population(next(r for (m, _), r in found.items() if m == model), event=event)
            for model in models
        }
        common = population[models[0]]
        notes += [
            f"{rec.task_label(task)}: {rec.model_label(model)} was evaluated on other people ({text})."
            for model, text in population.items()
            if text != common
        ]
        lines.append(Group(rec.task_label(task), common))
        for model in models:
            values = [found.get((model, metric)) for metric in metrics]
            cells = (rec.model_label(model), *(rec.format_interval(v) if v else rec.ABSENT for v in values))
            bold = frozenset(i for i, m in enumerate(metrics, 1) if model in best[m])
            lines.append(Row(cells, bold, apart=model == rec.ORACLE))
    columns = [Column("Model", is_text=True)]
    for metric in metrics:
        known = rec.metric_of(metric)
        has_interval = any(r["metric"] == metric and r["lo"] is not None for r in records)
        columns.append(Column(known.label + " [95% interval]" * has_interval, known.definition))
    return Table(caption, tuple(columns), tuple(lines), tuple(notes))


def difference_table(records: Sequence[Record], families: Sequence[Mapping[str, Any]] = ()) -> Table:
    """Every paired difference, by task, with where its interval lies, and its p- and q-values if given.

    Args:
      families: {kind, metric, of, tests} of the q-values, which notes below the table name.
    """
    differences = [r for r in records if rec.is_difference(r)]
    p_of, q_of = (
        {(r["model"], r["task"], r["metric"]): r["value"] for r in records if r["metric"].endswith(end)}
        for end in (rec.P_VALUE, rec.Q_VALUE)
    )
    lines: list[Row | Group] = []
    for task in rec.tasks_of(differences):
        lines.append(Group(rec.task_label(task)))
        for r in (r for r in differences if r["task"] == task):
            cells = [
                rec.model_label(r["model"]),
                rec.metric_of(r["metric"]).label,
                rec.format_interval(r),
                zero_relation(r),
            ]
            if p_of:
                cells.append(rec.format_p_value(p_of.get((r["model"], task, r["metric"] + "_p"))))
            if q_of:
                q = q_of.get((r["model"], task, r["metric"] + "_q"))
                cells.append(rec.format_p_value(q) + (" *" if q is not None and q <= 0.05 else ""))
            lines.append(Row(tuple(cells)))
    columns = [
        Column("Comparison", "difference", is_text=True),
        Column("Measure", is_text=True),
        Column("Difference [95% interval]", "interval"),
        Column("Interval", is_text=True),
    ]
    if p_of:
        columns.append(Column("p", "p_value"))
    if q_of:
        columns.append(Column("q", "q_value"))
    notes = rec.family_notes(families, "primary")
    if notes and any(rec.ORACLE in r["model"].split(" - ") for r in differences):
        notes += ("Comparisons with the oracle are in no family: it is a bound, so they have no q.",)
    if any(rec.metric_of(r["metric"]).higher_is_better is False for r in differences):
        notes += ("Of errors (Brier score, ECE, RMSE), a difference below zero favours the first model.",)
    caption = "Differences between models on the same people."
    return Table(caption, tuple(columns), tuple(lines), notes, "differences")


def zero_relation(record: Record) -> str:
    """Where the interval of a difference lies."""
    if record["lo"] is None:
        return "not given"
    if record["lo"] > 0:
        return "above zero"
    return "below zero" if record["hi"] < 0 else "includes zero"


def record_table(records: Sequence[Record], caption: str) -> Table:
    """Every record on a line of its own, in the order of results.json."""
    return Table(
        caption,
        (
            Column("Task", is_text=True),
            Column("Model", is_text=True),
            Column("Metric", is_text=True),
            Column("Value [95% interval]"),
            Column("n"),
            Column("Positive"),
            Column("Seed"),
        ),
        tuple(
            Row(
                (
                    r["task"],
                    r["model"],
                    r["metric"],
                    rec.format_interval(r),
                    rec.format_count(r["n"]),
                    rec.format_count(r["n_positive"]),
                    rec.ABSENT if r["seed"] is None else str(r["seed"]),
                )
            )
            for r in records
        ),
    )


# ---------------------------------------------------------------------------------------------
# Counts, facts and losses to tables
# ---------------------------------------------------------------------------------------------


def cohort_table(steps: Sequence[Mapping[str, Any]]) -> Table:
    """One line for each step of the cohort's selection; counts of None are hidden.

    Raises:
      ValueError: a step lacks one of step, n, dropped, reason.
    """
    lines = []
    for index, step in enumerate(steps):
        missing = [key for key in ("step", "n", "dropped", "reason") if key not in step]
        if missing:
            raise ValueError(f"cohort step {index} ({step.get('step')}) lacks {', '.join(missing)}")
        remaining, dropped = (rec.HIDDEN if step[k] is None else rec.format_count(step[k]) for k in ("n", "dropped"))
        dropped = rec.ABSENT if step["dropped"] == 0 else dropped
        cells = (str(step["step"]), remaining, dropped, str(step["reason"] or ""))
        lines.append(Row(cells))
    return Table(
        "Numbers that remained after each step, that were dropped, and the reason.",
        (
            Column("Step", is_text=True),
            Column("Remaining"),
            Column("Dropped"),
            Column("Reason", is_text=True),
        ),
        tuple(lines),
        name="flow",
    )


def facts_table(facts: Mapping[str, str]) -> Table:
    """Names and values."""
    return Table(
        "Configuration and environment.",
        (Column("Fact", is_text=True), Column("Value", is_text=True)),
        tuple(Row((str(name), str(value))) for name, value in facts.items()),
    )


def loss_table(
    curves: Mapping[str, Mapping[str, tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray]]],
) -> Table:
    """First, lowest and last finite value of each term and model; `curves[term][model] = (step, value)`."""
    lines: list[Row | Group] = []
    for term, by_model in curves.items():
        lines.append(Group(term))
        for model in rec.sorted_models(by_model):
            steps, values = by_model[model]
            numbers = (rec.format_number(x) for x in (values[0], min(values), values[-1]))
            lines.append(Row((rec.model_label(model), *numbers, rec.format_count(int(steps[-1])))))
    heads = [Column(name) for name in ("First", "Lowest", "Last", "Last step")]
    caption = "Loss terms of the pretraining, as logged."
    return Table(caption, (Column("Model", is_text=True), *heads), tuple(lines))


# ---------------------------------------------------------------------------------------------
# Tables to text
# ---------------------------------------------------------------------------------------------


def markdown_text(text: str) -> str:
    """`text` with the characters that Markdown would read as markup escaped, on one line."""
    for character in "\\|*<`":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())


def to_markdown(table: Table) -> str:
    """A pipe table with its caption above and its notes below; footnotes as `[^key]`."""
    heads = [markdown_text(c.label) + (f"[^{c.definition}]" if c.definition else "") for c in table.columns]
    rule = [":---" if c.is_text else "---:" for c in table.columns]
    lines = [_pipes(heads), _pipes(rule)]
    for row in table.rows:
        if isinstance(row, Group):
            title = f"**{markdown_text(row.title)}**"
            detail = f" ({markdown_text(row.detail)})" if row.detail else ""
            lines.append(_pipes([title + detail] + [""] * (len(table.columns) - 1)))
        else:
            cells = [markdown_text(cell) for cell in row.cells]
            cells = [f"**{c}**" if i in row.bold else c for i, c in enumerate(cells)]
            if row.apart:
                cells[0] = f"_{cells[0]}_"
            lines.append(_pipes(cells))
    notes = [f"\n{markdown_text(note)}" for note in table.notes]
    return "\n".join([markdown_text(table.caption), "", *lines, *notes]) + "\n"


def _pipes(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
