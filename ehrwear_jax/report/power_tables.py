"""Says of every task how small a difference between models its events can show."""

from collections.abc import Sequence

from ehrwear_jax.report import result_records as rec
from ehrwear_jax.report.page import Block, Bullets, Section, Text
from ehrwear_jax.report.report_data import Entry, ReportData
from ehrwear_jax.report.result_records import Record
from ehrwear_jax.report.table_model import Column, Group, Row, Table

MDD, ALONE = "_difference_mdd", "_mdd"
CONDITIONS = "80% power at a two-sided level of 5%"


def power(records: Sequence[Record], data: ReportData) -> Section:
    """A sentence for each task, and the smallest difference of every comparison."""
    title, found = "What these numbers can show", [r for r in records if r["metric"].endswith(ALONE)]
    found = [r for r in found if r["value"] is not None]
    if not found:
        text = "No smallest difference was computed: there are no resamples, or no task with events."
        return Section("power", title, (Text(text),))
    held = {p["task"]: p for p in data.prevalence if p["split"] == "held_out"}
    tasks = rec.tasks_of(found)
    sentences = tuple((f"{rec.task_label(t)}.", _sentence([r for r in found if r["task"] == t], held.get(t)))
                      for t in tasks)  # fmt: skip
    lines: list[Row | Group] = []
    for task in tasks:
        lines.append(Group(rec.task_label(task), _people(held.get(task))))
        for r in (r for r in found if r["task"] == task):
            cells = (rec.model_label(r["model"]), rec.metric_of(r["metric"]).label, _events(r), _shown(r["value"]))
            lines.append(Row(cells))
    columns = (Column("Comparison", "mdd", is_text=True), Column("Measure", is_text=True),
               Column("Prediction times with the event"), Column("Smallest difference"))  # fmt: skip
    text = (
        "A difference that was not found may still be there. Below is the smallest true difference that people like "
        "these would show, by their number, their events, and how alike the two models' errors are."
    )
    table = Table("Smallest paired differences.", columns, tuple(lines), (), "smallest_differences")
    blocks: tuple[Block, ...] = (Text(text, ("mdd",)), Bullets(sentences), table)
    return Section("power", title, blocks)


def _sentence(found: Sequence[Record], held: Entry | None) -> str:
    metric, first = rec.metric_of(found[0]["metric"]).label, found[0]
    people = f" ({_people(held)})" if held else ""
    events = "" if first["n_positive"] is None else " with the event"
    text = f"{_events(first)} prediction times{events}{people}. "
    by_size = sorted((r for r in found if r["metric"] == first["metric"]), key=lambda r: r["value"])
    low, high = by_size[0], by_size[-1]
    if not first["metric"].endswith(MDD):
        return text + (
            f"Two models like {rec.inline_model_label(low['model'])} would be told apart with {CONDITIONS} if their "
            f"{metric} differed by {_shown(low['value'])} or more. No two models were compared: their errors are taken "
            "to correlate by 0.5, and prediction times to be independent."
        )
    text += f"With {CONDITIONS} a difference of {metric} is found from {_shown(low['value'])} on"
    if low is high:
        return f"{text} ({rec.model_label(low['model'])})."
    return (
        f"{text} for {rec.model_label(low['model'])}, and from {_shown(high['value'])} on for "
        f"{rec.model_label(high['model'])}."
    )


def _events(r: Record) -> str:
    n = rec.format_count(r["n"])
    return n if r["n_positive"] is None else f"{rec.format_count(r['n_positive'])} of {n}"


def _people(held: Entry | None) -> str:
    if held is None:
        return ""
    if held["people"] is None:
        return ""
    positive, people = held.get("people_positive"), rec.format_count(held["people"])
    return f"{people} people" if positive is None else f"{rec.format_count(positive)} of {people} people"


def _shown(value: float | None) -> str:
    return rec.format_number(value)
