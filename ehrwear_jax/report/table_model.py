"""Records and counts to tables, and tables to Markdown and HTML."""

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ehrwear_jax.report import result_records as rec
from ehrwear_jax.report.definitions import DEFINITIONS
from ehrwear_jax.report.result_records import Record


@dataclass(frozen=True)
class Column:
    """A column's heading; `definition` is a key of DEFINITIONS and becomes a footnote."""

    label: str
    definition: str | None = None
    is_text: bool = False


@dataclass(frozen=True)
class Row:
    """One line of cells; `bold` names cells by position, `apart` sets the line off as a bound."""

    cells: tuple[str, ...]
    bold: frozenset[int] = frozenset()
    apart: bool = False


@dataclass(frozen=True)
class Group:
    """A heading inside a table, over the rows that follow it."""

    title: str
    detail: str = ""


@dataclass(frozen=True)
class Table:
    """`name`: of the CSV and LaTeX files that hold the table too; none without it."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row | Group, ...]
    notes: tuple[str, ...] = field(default=())
    name: str = ""

    def definitions(self) -> list[str]:
        return [c.definition for c in self.columns if c.definition]


# ---------------------------------------------------------------------------------------------
# Records to tables
# ---------------------------------------------------------------------------------------------


def performance_table(records: Sequence[Record], metrics: Sequence[str], caption: str) -> Table:
    """One group per task, one line per row of comparison, one column per metric.

    The best row of each column is bold; the oracle is set apart and never bold.
    """
    event = "with the event" if "c_index" in metrics else "positive"
    lines: list[Row | Group] = []
    notes: list[str] = []
    for task in rec.tasks_of(records):
        cells = {(r["row"], r["metric"]): r for r in records if r["task"] == task}
        rows = rec.sorted_rows(row for row, _ in cells)
        best = {
            metric: rec.best_rows(
                {row: cells[row, metric]["value"] for row in rows if (row, metric) in cells},
                rec.metric_of(metric).higher_is_better,
            )
            for metric in metrics
        }
        population = {
            row: rec.format_population(next(r for (x, _), r in cells.items() if x == row), event=event) for row in rows
        }
        common = population[rows[0]]
        notes += [
            f"{rec.task_label(task)}: {rec.row_label(row)} was evaluated on other people ({text})."
            for row, text in population.items()
            if text != common
        ]
        lines.append(Group(rec.task_label(task), common))
        for row in rows:
            values = [cells.get((row, metric)) for metric in metrics]
            lines.append(
                Row(
                    (
                        rec.row_label(row),
                        *(rec.format_interval(v) if v else rec.ABSENT for v in values),
                    ),
                    frozenset(i for i, m in enumerate(metrics, 1) if row in best[m]),
                    apart=row == rec.ORACLE,
                )
            )
    columns = [Column("Row", is_text=True)]
    for metric in metrics:
        known = rec.metric_of(metric)
        has_interval = any(r["metric"] == metric and r["lo"] is not None for r in records)
        columns.append(Column(known.label + " [95% interval]" * has_interval, known.definition))
    return Table(caption, tuple(columns), tuple(lines), tuple(notes))


def difference_table(records: Sequence[Record]) -> Table:
    """Every paired difference, by task, with where its interval lies and its p-value if given."""
    differences = [r for r in records if rec.is_difference(r)]
    p_of, q_of = (
        {(r["row"], r["task"], r["metric"]): r["value"] for r in records if r["metric"].endswith(end)}
        for end in (rec.P_VALUE, rec.Q_VALUE)
    )
    lines: list[Row | Group] = []
    for task in rec.tasks_of(differences):
        lines.append(Group(rec.task_label(task)))
        for r in (r for r in differences if r["task"] == task):
            cells = [
                rec.row_label(r["row"]),
                rec.metric_of(r["metric"]).label,
                rec.format_interval(r),
                zero_relation(r),
            ]
            if p_of:
                cells.append(rec.format_p_value(p_of.get((r["row"], task, r["metric"] + "_p"))))
            if q_of:
                q = q_of.get((r["row"], task, r["metric"] + "_q"))
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
    return Table("Differences between rows on the same people.", tuple(columns), tuple(lines), name="differences")


def zero_relation(record: Record) -> str:
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
            Column("Row", is_text=True),
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
                    r["row"],
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
    """One line per step of the cohort's flow.

    Raises:
      ValueError: a step lacks one of step, n, dropped, reason.
    """
    lines = []
    for index, step in enumerate(steps):
        missing = [key for key in ("step", "n", "dropped", "reason") if key not in step]
        if missing:
            raise ValueError(f"cohort step {index} ({step.get('step')}) lacks {', '.join(missing)}")
        dropped = rec.format_count(step["dropped"]) if step["dropped"] else rec.ABSENT
        cells = (str(step["step"]), rec.format_count(step["n"]), dropped, str(step["reason"] or ""))
        lines.append(Row(cells))
    return Table(
        "What remained after each step, what was dropped and why.",
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
    return Table(
        "What was run.",
        (Column("Fact", is_text=True), Column("Value", is_text=True)),
        tuple(Row((str(name), str(value))) for name, value in facts.items()),
    )


def loss_table(
    curves: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
) -> Table:
    """First, lowest and last finite value per term and row; `curves[term][row] = (step, value)`."""
    lines: list[Row | Group] = []
    for term, rows in curves.items():
        lines.append(Group(term))
        for row in rec.sorted_rows(rows):
            steps, values = rows[row]
            numbers = (rec.format_number(x) for x in (values[0], min(values), values[-1]))
            lines.append(Row((rec.row_label(row), *numbers, rec.format_count(int(steps[-1])))))
    numbers = [Column(name) for name in ("First", "Lowest", "Last", "Last step")]
    caption = "Loss terms of the pretraining, as logged."
    return Table(caption, (Column("Row", is_text=True), *numbers), tuple(lines))


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


def to_html(table: Table, footnote: Callable[[str], str]) -> str:
    """A `<figure>` with caption, table and notes.

    Args:
      footnote: maps a key of DEFINITIONS to the markup of its reference.
    """
    heads = "".join(
        f'<th scope="col"{_text_class(c)}>{html.escape(c.label)}'
        f"{footnote(c.definition) if c.definition in DEFINITIONS else ''}</th>"
        for c in table.columns
    )
    body = "".join(_row_html(row, table.columns) for row in table.rows)
    many = ' class="many"' if len(table.columns) > 4 else ""
    notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in table.notes)
    return (
        f'<figure class="table"><figcaption>{html.escape(table.caption)}</figcaption>'
        f'<div class="scroll"><table{many}><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>'
        f"</div>{notes}</figure>\n"
    )


def _text_class(column: Column) -> str:
    return ' class="text"' if column.is_text else ""


def _row_html(row: Row | Group, columns: Sequence[Column]) -> str:
    if isinstance(row, Group):
        detail = f" <span>{html.escape(row.detail)}</span>" if row.detail else ""
        title = html.escape(row.title)
        return f'<tr class="group"><th colspan="{len(columns)}">{title}{detail}</th></tr>'
    cells = []
    for index, (cell, column) in enumerate(zip(row.cells, columns, strict=True)):
        text = html.escape(cell).replace(", ", ",\N{NO-BREAK SPACE}") if not column.is_text else html.escape(cell)
        text = f"<strong>{text}</strong>" if index in row.bold else text
        tag = 'th scope="row"' if index == 0 else "td"
        cells.append(f"<{tag}{_text_class(column)}>{text}</{tag.split()[0]}>")
    kind = ' class="apart"' if row.apart else ""
    return f"<tr{kind}>{''.join(cells)}</tr>"
