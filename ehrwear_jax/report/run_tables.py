"""Tabulates the people, the prevalence of outcomes, and the cost of pretraining."""

from collections.abc import Mapping

from ehrwear_jax.report import paper
from ehrwear_jax.report import result_records as rec
from ehrwear_jax.report.page import Block, Section, Text
from ehrwear_jax.report.report_data import ReportData
from ehrwear_jax.report.table_model import Column, Row, Table


def compute(data: ReportData) -> Section:
    """Parameters, hours and devices of each pretraining."""
    if not data.compute:
        return Section("compute", "Compute", (Text("No pretraining was logged, so its cost is unknown."),))
    names = list(dict.fromkeys(k for c in data.compute for k in c))
    columns = tuple(Column(n, is_text=not i) for i, n in enumerate(names))
    lines = tuple(Row(tuple(c.get(n, rec.ABSENT) for n in names)) for c in data.compute)
    note = (
        "Hours: from the first start to the last log line. Device-hours: time of all starts, without that between "
        "them, times the devices of each; the number of devices is that of the last. Goodput: share of the hours in "
        "training steps that were kept."
    )
    return Section("compute", "Compute", (Table("Cost of pretraining.", columns, lines, (note,), "compute"),))


def people_tables(data: ReportData) -> list[Block]:
    """Demographics and prevalence by split."""
    out: list[Block] = []
    if data.demographics:
        splits = list(dict.fromkeys(d["split"] for d in data.demographics))
        by: Mapping = {(d["measure"], d["split"]): d["value"] for d in data.demographics}
        lines = tuple(Row((m, *(by.get((m, s), rec.ABSENT) for s in splits))) for m in dict.fromkeys(m for m, _ in by))
        columns = (Column("Measure", is_text=True), *(Column(s.replace("_", " ")) for s in splits))
        out.append(Table("The people, at their first prediction time.", columns, lines, (), "demographics"))
    if data.prevalence:
        rows = []
        for p in data.prevalence:
            counts = (paper.count(p, k) for k in ("people", "times", "positives"))
            rows.append(Row((rec.task_label(p["task"]), p["split"].replace("_", " "), *counts, paper.share(p))))
        columns = (Column("Task", is_text=True), Column("Split", is_text=True),
                   *(Column(h) for h in ("Patients", "Prediction times", "Positive", "Prevalence")))  # fmt: skip
        out.append(Table("Prevalence of every outcome in every split.", columns, tuple(rows), (), "prevalence"))
    return out
