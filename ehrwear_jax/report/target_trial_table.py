"""Tabulates what every task is a study of: time zero, eligibility, outcome, follow-up, competing events, censoring."""

from collections.abc import Mapping, Sequence
from typing import Any

from ehrwear_jax.report import result_records as rec
from ehrwear_jax.report.page import Block, Details, Section, Text
from ehrwear_jax.report.report_data import Entry, ReportData
from ehrwear_jax.report.table_model import Column, Group, Row, Table, cohort_table

PARTS = {
    "time_zero": "Time zero",
    "eligibility": "Eligibility",
    "outcome": "Outcome",
    "follow_up": "Follow-up",
    "competing_events": "Competing events",
    "censoring": "Censoring",
}
BINARY, SURVIVAL = "binary", "survival"
GIVEN, UNTOLD = "as given by the label table", "Not told by the label table."


def target_trial(data: ReportData) -> Section:
    """The table of every task, what became of the people by horizon, and the steps of the selection."""
    title = "Target trial"
    if not data.trials:
        return Section("trial", title, (Text("Nothing is known of how the tasks were made."),))
    text = (
        "What each task would be as a trial without treatment: whom it is about, from when, until when, and for what."
    )
    lines: list[Row | Group] = []
    for tasks in _alike(data.trials):
        lines.append(Group("; ".join(rec.task_label(t["task"]) for t in tasks)))
        parts = design(tasks[0])
        for part, label in PARTS.items():
            told = parts[part] + (f" {_counted(tasks)}" if part == "eligibility" else "")
            lines.append(Row((label, told.strip())))
    columns = (Column("Part", "target_trial", is_text=True), Column("Of this task", is_text=True))
    blocks: list[Block] = [Text(text), Table("The tasks as target trials.", columns, tuple(lines), (), "target_trial")]
    if any(t["outcomes"] for t in data.trials):
        blocks.append(_outcomes(data.trials))
    for tasks in _alike(data.trials):
        if tasks[0]["steps"]:
            table = cohort_table(tasks[0]["steps"])
            blocks.append(Details(f"Selection step by step: {rec.task_label(tasks[0]['task'])}", (_unnamed(table),)))
    return Section("trial", title, tuple(blocks))


def _alike(trials: Sequence[Entry]) -> list[list[Entry]]:
    """Tasks of one design that differ by their horizon only, together."""
    groups: dict[Any, list[Entry]] = {}
    for t in trials:
        name = (rec.horizon_of(t["task"]) or (t["task"], 0.0))[0].removeprefix("time_to_")
        design = None if t["design"] is None else tuple(sorted(t["design"].items()))
        groups.setdefault((name, t["kind"] if design is None else "", design), []).append(t)
    return list(groups.values())


def design(trial: Entry) -> Mapping[str, str]:
    """The task's design; of a table that somebody else made, what is known of any."""
    if trial["design"] is not None:
        return {part: trial["design"].get(part, UNTOLD) for part in PARTS}
    known = trial["kind"] == SURVIVAL
    competing = (
        "Column competing_event of the label table."
        if trial["competing_known"]
        else "Not told by the label table: nobody is known to have had another event first."
    )
    censored = (
        "Column event_observed of the label table is false where follow-up ended first; why it ended is not told."
        if known
        else "Not told: prediction times without a known label are not in the table; how many there were is not known."
    )
    return {
        "time_zero": f"The prediction time, {GIVEN}.",
        "eligibility": f"The rows of the table, {GIVEN}; who was left out before is not known.",
        "outcome": f"The label, {GIVEN}.",
        "follow_up": "To the time of the label table (time_to_event_days)." if known else UNTOLD,
        "competing_events": competing if trial["kind"] in (SURVIVAL, BINARY) else "None: a measurement, not an event.",
        "censoring": censored if trial["kind"] in (SURVIVAL, BINARY) else UNTOLD,
    }


def _counted(tasks: Sequence[Entry]) -> str:
    """How many people and prediction times have a label, by split; of the task with most."""
    most = max(tasks, key=lambda t: sum(s["times"] or 0 for s in t["splits"]))
    shown = [
        f"{s['split'].replace('_', ' ')} "
        + (rec.HIDDEN if s["people"] is None else f"{s['people']:,} people, {s['times']:,} prediction times")
        for s in most["splits"]
    ]
    return f"With a label at {rec.task_label(most['task']).lower()}: {'; '.join(shown)}." if shown else ""


def _outcomes(trials: Sequence[Entry]) -> Table:
    lines: list[Row | Group] = []
    for t in trials:
        for o in t["outcomes"]:
            horizon = rec.ABSENT if o["days"] is None else f"{o['days']:g}"
            untold = o.get("untold", False)
            cells = []
            for part in ("event", "competing", "censored", "free"):
                not_told = part == "competing" and not t["competing_known"] or untold and part == "censored"
                value = rec.HIDDEN if o[part] is None else rec.format_count(o[part])
                cells.append("not told" if not_told and not o[part] else value)
            lines.append(Row((rec.task_label(t["task"]), horizon, rec.format_count(o["times"]), *cells)))
    heads = ("Horizon, days", "Prediction times", "Event", "Competing event first", "Censored before", "Free of both")
    columns = (Column("Task", is_text=True), *(Column(h) for h in heads))
    note = (
        "All splits. Censored before the horizon: no label there; in time-to-event tasks their time counts up to then. "
        "A competing event first is no event at the horizon."
    )
    return Table("What became of the prediction times.", columns, tuple(lines), (note,), "target_trial_outcomes")


def _unnamed(table: Table) -> Table:
    return Table(table.caption, table.columns, table.rows, table.notes)
