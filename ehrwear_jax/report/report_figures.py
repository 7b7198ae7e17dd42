"""Sections made of evidence: decision curves, survival curves, subgroups, robustness, labels, latent space, compute."""

from collections.abc import Mapping, Sequence

import numpy as np

from ehrwear_jax.report import charts, paper
from ehrwear_jax.report import result_records as rec
from ehrwear_jax.report.charts import Axis, Dot, Line
from ehrwear_jax.report.page import Block, Details, FigureGrid, Section, Text
from ehrwear_jax.report.report_data import Evidence, Kernels
from ehrwear_jax.report.result_records import Record
from ehrwear_jax.report.table_model import Column, Group, Row, Table

DRAWN_ROWS = 7  # more lines than colours cannot be told apart
TREAT_ALL = "treat_all"
SHORT_LEVELS = {
    "sparse": "sparse EHR",
    "rich": "other EHR",
    "short": "wear < 14 d",
    "long": "wear \N{GREATER-THAN OR EQUAL TO} 14 d",
    "sparse and short": "sparse EHR,\nwear < 14 d",
    "other": "not both",
}
PERIODS = (
    (1 / 24, "1 h"),
    (0.25, "6 h"),
    (1.0, "1 d"),
    (7.0, "1 wk"),
    (30.0, "1 mo"),
    (365.25, "1 yr"),
    (3652.5, "10 yr"),
)


def _labels(rows) -> list[str]:
    return ["Treat all" if r == TREAT_ALL else rec.short_row_label(r) for r in rows]


def _drawn(rows) -> list[str]:
    return rec.sorted_rows(rows)[:DRAWN_ROWS]


def _capped(rows) -> str:
    rest = rec.sorted_rows(rows)[DRAWN_ROWS:]
    return f" Not drawn: {', '.join(rec.inline_row_label(r) for r in rest)}." if rest else ""


def horizon_figure(records: Sequence[Record]) -> list[Block]:
    """AUROC and AUPRC against the horizon, for binary tasks that differ by it."""
    found, out = paper.Lookup(records), []
    for f, (name, tasks) in enumerate(paper.families(records).items()):
        if len(tasks) < 2:
            continue
        rows = rec.sorted_rows(r for t in tasks for r in found.rows(t, "auroc"))
        style = charts.series_style(_drawn(rows))
        days = [paper.horizon_of(t)[1] for t in tasks]
        panels = []
        for metric in ("auroc", "auprc"):
            lines = {}
            for i, row in enumerate(_drawn(rows)):
                points = [found.get(t, row, metric) for t in tasks]
                shifted = [d * (1 + 0.045 * (i - (len(style) - 1) / 2)) for d in days]  # intervals stand side by side
                lines[row] = Line(row, shifted, *([p and p[k] for p in points] for k in ("value", "lo", "hi")))
            ticks = tuple((d, f"{d:g}") for d in days)
            panels.append(
                charts.line_panel(
                    lines,
                    style,
                    rec.metric_of(metric).label,
                    Axis("horizon, days", True, ticks),
                    Axis(rec.metric_of(metric).label),
                    f"hor{f}{metric}",
                    markers=True,
                )  # fmt: skip
            )
        caption = (
            f"{rec.task_label(name)} by horizon, with 95% intervals. Prevalence rises with the horizon, and AUPRC "
            "with it." + _capped(rows)
        )
        legend = charts.legend(_drawn(rows), _labels(_drawn(rows)))
        out.append(FigureGrid(caption, tuple(panels), legend, "medium"))
    return out


def decision(records: Sequence[Record], evidence: Evidence) -> Section:
    title, curves = "Net benefit", [c for c in evidence.curves if c["kind"] == "decision"]
    if not curves:
        return Section("decision", title, (Text("No decision curve was computed."),))
    blocks: list[Block] = [
        Text("Who acts on a risk above the threshold gains what lies above both grey lines.", ("net_benefit",))
    ]
    tasks = list(dict.fromkeys(c["task"] for c in curves))
    binary = paper.main_task(records, evidence.main_task)
    main = binary if binary in tasks else tasks[-1]
    for i, task in enumerate([main, *(t for t in tasks if t != main)]):
        figure = _decision_figure([c for c in curves if c["task"] == task], task, f"dca{i}")
        blocks.append(figure if task == main else Details(rec.task_label(task), (figure,)))
    return Section("decision", title, tuple(blocks))


def _decision_figure(curves, task, identifier) -> FigureGrid:
    rows = [c["row"] for c in curves if c["row"] != TREAT_ALL]
    shown = [*_drawn(rows)[: DRAWN_ROWS - 1], TREAT_ALL]
    style = charts.series_style(shown) | {TREAT_ALL: ("muted", 1)}
    lines = {c["row"]: Line(c["row"], c["x"], c["value"], c["lo"], c["hi"]) for c in curves if c["row"] in shown}
    # one band, since several hide each other
    lines |= {r: Line(r, line.x, line.value) for r, line in lines.items() if r != shown[0]}
    lines["none"] = Line("none", curves[0]["x"], [0.0] * len(curves[0]["x"]))
    style["none"] = ("muted", 0)
    best = [v for r in shown if r != TREAT_ALL and r in lines for v in lines[r].value if v is not None]
    top = max(best, default=0.1)
    limits = (-0.35 * max(top, 1e-3), 1.2 * max(top, 1e-3))
    axes = Axis("threshold probability"), Axis("net benefit per person")
    panel = charts.line_panel(lines, style, "", *axes, identifier, limits=limits, size=(5.2, 3.2))
    horizon = f", by day {curves[0]['horizon']:g} under censoring" if "horizon" in curves[0] else ""
    caption = (
        f"{rec.task_label(task)}{horizon}: net benefit, with the 95% band of {rec.inline_row_label(shown[0])}; "
        "the level grey line treats nobody."
    )
    legend = tuple(
        (label, style[r][0], charts.svg_dash(style[r][1])) for r, label in zip(shown, _labels(shown), strict=True)
    )
    return FigureGrid(caption + _capped(rows), (panel,), legend, "medium")


def survival_curves(evidence: Evidence) -> list[Block]:
    """Kaplan-Meier by quartile of predicted risk: of the main row at once, of the others folded."""
    curves = [c for c in evidence.curves if c["kind"] == "kaplan_meier"]
    out: list[Block] = []
    tasks = list(dict.fromkeys(c["task"] for c in curves))
    # horizon tasks of one name share their times: the longest says it
    longest = {
        (paper.horizon_of(t) or (t, 0))[0]: t for t in sorted(tasks, key=lambda t: (paper.horizon_of(t) or (t, 0))[1])
    }
    for i, task in enumerate(t for t in tasks if t in longest.values()):
        mine = [c for c in curves if c["task"] == task]
        rows = _drawn(c["row"] for c in mine)
        levels = list(dict.fromkeys(sorted(c["level"] for c in mine)))
        style = charts.series_style(levels, by_row=False)
        panels, low = [], min((v for c in mine for v in c["lo"] if v is not None), default=0.0)
        for k, row in enumerate(rows):
            lines = {
                c["level"]: Line(c["level"], c["x"], c["value"], c["lo"], c["hi"]) for c in mine if c["row"] == row
            }
            panels.append(
                charts.line_panel(
                    lines,
                    style,
                    rec.short_row_label(row),
                    Axis("days since the prediction"),
                    Axis("share without the event"),
                    f"km{i}-{k}",
                    steps=True,
                    limits=(max(0.0, low - 0.03), 1.01),
                    size=(4.1, 2.9),
                )  # fmt: skip
            )
        labels = [
            f"{level} of risk{' (lowest)' * (level[-1] == '1')}{' (highest)' * (level[-1] == '4')}" for level in levels
        ]
        caption = f"{rec.task_label(task)}: Kaplan-Meier curves by quartile of the predicted risk, with 95% bands."
        if paper.horizon_of(task):
            caption += " The time is that to the first event, also beyond the horizon."
        out += [
            Text("The further the curves lie apart, the better the risk orders people in time.", ("kaplan_meier",))
        ] * (not i)
        out.append(FigureGrid(caption, tuple(panels), charts.legend(levels, labels, by_row=False), "medium"))
    return out


def subgroups(records: Sequence[Record], evidence: Evidence) -> Section:
    title, task = "Subgroups", paper.main_task(records, evidence.main_task)
    mine = [r for r in evidence.subgroups if r["task"] == task]
    if not mine:
        return Section("subgroups", title, (Text("No subgroup was evaluated: nothing is known of the people."),))
    blocks: list[Block] = []
    rows = _drawn(r["row"] for r in mine if " - " not in r["row"] and r["row"] != rec.ORACLE)
    by_cell = {(r["attribute"], r["level"], r["row"], r["metric"]): r for r in mine}
    style, panels = charts.series_style(rows), []
    attributes = dict.fromkeys(r["attribute"] for r in mine)
    cells = [(a, v) for a in attributes for v in paper.sorted_levels(r["level"] for r in mine if r["attribute"] == a)]
    for metric, label, zero in (("auroc", "AUROC", False), ("auroc_gap", "AUROC less that of the largest group", True)):
        groups = []
        for attribute, level in cells:
            found = [(row, by_cell.get((attribute, level, row, metric))) for row in rows]
            dots = [Dot(row, r["value"], r["lo"], r["hi"]) for row, r in found if r and r["value"] is not None]
            if dots and attribute != "all":
                groups.append((_short_level(attribute, level), dots))
        if groups:
            panels.append(charts.dots_panel(groups, style, label, label, f"sub{metric}", zero=zero))
    if panels:
        caption = f"{rec.task_label(task)} by subgroup, with 95% intervals; groups too small to show are left out."
        blocks.append(FigureGrid(caption, tuple(panels), charts.legend(rows, _labels(rows)), "medium"))
    else:
        blocks.append(Text("Every subgroup is too small to show (config.evaluate.min_patients, min_per_class)."))
    table = paper.subgroup_table(evidence, task, "")
    blocks += [Details("The same in numbers, with calibration", (table,))] if table else []
    return Section("subgroups", title, tuple(blocks))


def _short_level(attribute, level) -> str:
    text = (
        SHORT_LEVELS.get(level) if attribute in ("ehr", "wear", "ehr_and_wear") else paper.level_label(attribute, level)
    )
    return text if len(text) <= 26 else text[:25] + "\N{HORIZONTAL ELLIPSIS}"


def robustness(evidence: Evidence) -> Section:
    title, found = "Robustness", [r for r in evidence.robustness if r["metric"] == "auroc"]
    if not found:
        text = "Changed records were not evaluated (the interpret stage does it)."
        return Section("robustness", title, (Text(text),))
    rows = _drawn(r["row"] for r in found)
    conditions = list(dict.fromkeys(r["condition"] for r in found))
    by = {(r["row"], r["condition"]): r for r in found}
    groups = []
    for c in conditions[1:]:
        cells = [(row, by[row, c]) for row in rows if (row, c) in by and by[row, c]["change"] is not None]
        groups.append((c, [Dot(row, r["change"], r["change_lo"], r["change_hi"]) for row, r in cells]))
    groups = [g for g in groups if g[1]]
    panels, label = [], "AUROC less that of clean records"
    if groups:
        panels = [charts.dots_panel(groups, charts.series_style(rows), "Change of AUROC", label, "robust", zero=True)]
    task = rec.task_label(found[0]["task"])
    caption = (
        f"{task}: change of AUROC when the records of held-out people are changed, paired, with 95% intervals. "
        "Zero: no loss."
    )
    figure = FigureGrid(caption, tuple(panels), charts.legend(rows, _labels(rows)), "medium")
    lines: list[Row | Group] = []
    for c in conditions:
        lines.append(Group(c, rec.format_population(found[0]) if c == conditions[0] else ""))
        for row in rows:
            if r := by.get((row, c)):
                change = {"metric": rec.DIFFERENCE, "value": r["change"], "lo": r["change_lo"], "hi": r["change_hi"]}
                text = rec.ABSENT if c == conditions[0] else rec.format_interval(change)
                lines.append(Row((rec.row_label(row), rec.format_interval(r), text, rec.format_p_value(r["change_p"]))))
    columns = (Column("Row", "robustness", is_text=True), Column("AUROC [95% interval]", "auroc"),
               Column("Change [95% interval]"), Column("p", "p_value"))  # fmt: skip
    table = Table(f"{task}: AUROC from changed records.", columns, tuple(lines), (), "robustness")
    return Section("robustness", title, (figure, Details("The same in numbers", (table,))))


def label_efficiency(evidence: Evidence) -> Section:
    title, found = "Label efficiency", [r for r in evidence.fractions if r["metric"] == "auroc"]
    if not found:
        return Section("labels", title, (Text("No probe was fitted on a fraction of the labels."),))
    tasks = list(dict.fromkeys(r["task"] for r in found))
    main = evidence.main_task if evidence.main_task in tasks else tasks[-1]
    rows, panels, lines = _drawn(r["row"] for r in found), [], []
    style = charts.series_style(rows)
    for i, task in enumerate(tasks):
        mine = [r for r in found if r["task"] == task]
        ticks = tuple((f, f"{100 * f:g}%") for f in sorted({r["fraction"] for r in mine}))
        series = {}
        for row in rows:
            points = sorted((r for r in mine if r["row"] == row), key=lambda r: r["fraction"])
            k = 1 + 0.06 * (rows.index(row) - len(rows) / 2)
            series[row] = Line(
                row, [k * p["fraction"] for p in points], *([p[x] for p in points] for x in ("value", "lo", "hi"))
            )
        axis = Axis("share of the training patients", True, ticks)
        panels.append(
            charts.line_panel(series, style, rec.task_label(task), axis, Axis("AUROC"), f"frac{i}", markers=True)
        )
        if task == main:
            for f, _ in ticks:
                n = next(r["n_patients"] for r in mine if r["fraction"] == f)
                lines.append(Group(f"{100 * f:g}% of the training patients", f"{n:,} patients"))
                for row in rows:
                    for r in (r for r in mine if (r["row"], r["fraction"]) == (row, f)):
                        lines.append(Row((rec.row_label(row), str(r["n_draws"]), rec.format_interval(r),
                                          rec.format_number(r["spread"]))))  # fmt: skip
    caption = "AUROC of probes by the share of training patients that they see, with 95% intervals."
    columns = (Column("Row", "fractions", is_text=True), Column("Draws"), Column("AUROC [95% interval]", "auroc"),
               Column("SD over draws"))  # fmt: skip
    table = Table(f"Label efficiency, {rec.task_label(main).lower()}.", columns, tuple(lines), (), "label_efficiency")
    figure = FigureGrid(caption, tuple(panels), charts.legend(rows, _labels(rows)), "medium")
    return Section("labels", title, (figure, Details("The same in numbers", (table,))))


def latent_space(evidence: Evidence) -> Section:
    """The map of patients, the learned kernels, geometry, retrieval and uncertainty."""
    blocks: list[Block] = []
    order = rec.sorted_rows(m.row for m in evidence.maps)
    for i, m in enumerate(sorted(evidence.maps, key=lambda m: order.index(m.row))):
        drawn = charts.map_panel(m.xy_Nx2, np.asarray(m.y_N, bool), rec.short_row_label(m.row), m.share_2, f"map{i}",
                                 points=evidence.individuals)  # fmt: skip
        blocks.append(drawn)
    if blocks:
        what = "each point is a read" if evidence.individuals else "hexagons of ten reads or more"
        task = rec.task_label(evidence.maps[0].task)
        caption = f"{task}: held-out reads on the first two principal components of z ({what})."
        blocks = [FigureGrid(caption, tuple(blocks), (), "medium")]
    blocks += _kernel_figures(evidence.kernels)
    if evidence.geometry:
        blocks.append(_geometry_table(evidence.geometry))
    if evidence.retrieval:
        blocks.append(_retrieval_table(evidence.retrieval))
    if evidence.uncertainty:
        blocks.append(_uncertainty_table(evidence.uncertainty))
    blocks = blocks or [Text("Nothing of the latent space was given to show.")]
    return Section("latents", "Latent space", tuple(blocks))


def _kernel_figures(kernels: Sequence[Kernels]) -> list[Block]:
    out: list[Block] = []
    order = rec.sorted_rows(k.row for k in kernels)
    for i, k in enumerate(sorted(kernels, key=lambda k: order.index(k.row))):
        if not k.value_LxHxK.size:
            continue
        layers, heads, _ = k.value_LxHxK.shape
        names = [f"head {h + 1}" for h in range(heads)]
        style = charts.series_style(names, by_row=False)
        step = max(1, layers // 6)
        panels, axes = [], (Axis("time back", True, PERIODS), Axis("K(d) / K(0)"))
        for layer in range(0, layers, step):
            lines = {n: Line(n, k.days_K, k.value_LxHxK[layer, h]) for h, n in enumerate(names)}
            title, name = f"layer {layer + 1}", f"ker{i}-{layer}"
            panels.append(charts.line_panel(lines, style, title, *axes, name, limits=(0, 1.05), size=(3.9, 2.4)))
        text = f"{rec.short_row_label(k.row)}: learned time kernels of every head, from an hour to ten years back."
        legend = charts.legend(names, names, by_row=False) if heads <= 8 else ()
        figure = FigureGrid(text + (" Some layers are left out." if step > 1 else ""), tuple(panels), legend, "medium")
        out.append(figure if not out else Details(rec.row_label(k.row), (figure,)))
    return [Text("What the model learned of how long things matter.", ("kernel",)), *out] if out else []


def _geometry_table(geometry) -> Table:
    names = {
        "mmd2_adjacent_mean": "MMD\N{SUPERSCRIPT TWO} of adjacent 30-day slices, mean",
        "mmd2_class": "MMD\N{SUPERSCRIPT TWO} with against without the outcome",
        "effective_rank": "Effective rank",
        "lipschitz_per_day": "Movement of whitened z per day",
    }
    lines: list[Row | Group] = []
    for measure, text in names.items():
        mine = [g for r in rec.sorted_rows(g["row"] for g in geometry) for g in geometry
                if (g["row"], g["measure"]) == (r, measure)]  # fmt: skip
        lines += [Group(text)] * bool(mine)
        for g in mine:
            record = {"metric": measure, **{k: g[k] for k in ("value", "lo", "hi")}}
            p = rec.ABSENT if g["p_value"] is None else rec.format_p_value(g["p_value"])
            lines.append(Row((rec.row_label(g["row"]), rec.format_interval(record), p, rec.format_count(g["n"]))))
    columns = (Column("Row", "geometry", is_text=True), Column("Value [95% interval]"), Column("p"), Column("n"))
    return Table("Geometry of the latent space.", columns, tuple(lines), (), "geometry")


def _retrieval_table(retrieval) -> Table:
    lines = []
    for r in retrieval:
        words = {"ehr_to_wear": "EHR to wearable", "wear_to_ehr": "wearable to EHR"}[r["direction"]]
        record = {"metric": "recall", **{k: r[k] for k in ("value", "lo", "hi")}}
        lines.append(Row((f"{r['source']}, {words}", str(r["k"]), rec.format_interval(record),
                          rec.format_number(r["chance"]), rec.format_count(r["n"]))))  # fmt: skip
    columns = (Column("From one modality to the other", is_text=True), Column("k"), Column("Recall@k [95% interval]"),
               Column("By chance"), Column("People"))  # fmt: skip
    return Table("Cross-modal retrieval of the same person.", columns, tuple(lines), (), "retrieval")


def _uncertainty_table(uncertainty) -> Table:
    lines: list[Row | Group] = []
    for group in dict.fromkeys(u["group"] for u in uncertainty):
        mine = [u for u in uncertainty if u["group"] == group]
        text = {"all": "All reads", "failure_group": "Sparse EHR and less than 14 days of wear", "others": "All others"}
        lines.append(Group(text.get(group, group), f"n = {mine[0]['n']:,}"))
        for u in mine:
            record = {"metric": u["measure"], **{k: u[k] for k in ("value", "lo", "hi")}}
            lines.append(Row((rec.metric_of(u["measure"]).label, rec.format_interval(record))))
    columns = (Column("Measure, nats", is_text=True), Column("Mean [95% interval]"))
    return Table("Uncertainty by Monte Carlo dropout.", columns, tuple(lines), (), "uncertainty")


def compute(evidence: Evidence) -> Section:
    if not evidence.compute:
        return Section("compute", "Compute", (Text("No pretraining was logged, so its cost is unknown."),))
    names = list(dict.fromkeys(k for c in evidence.compute for k in c))
    columns = tuple(Column(n, is_text=not i) for i, n in enumerate(names))
    lines = tuple(Row(tuple(c.get(n, rec.ABSENT) for n in names)) for c in evidence.compute)
    note = (
        "Hours: from the first start to the last word. Device-hours: time of all starts, without that between them, "
        "times the devices that each had; the number of devices is that of the last. Goodput: share of the hours in "
        "steps that count."
    )
    return Section("compute", "Compute", (Table("What pretraining took.", columns, lines, (note,), "compute"),))


def people_tables(evidence: Evidence) -> list[Block]:
    """Demographics and prevalence by split."""
    out: list[Block] = []
    if evidence.demographics:
        splits = list(dict.fromkeys(d["split"] for d in evidence.demographics))
        by: Mapping = {(d["measure"], d["split"]): d["value"] for d in evidence.demographics}
        lines = tuple(Row((m, *(by.get((m, s), rec.ABSENT) for s in splits))) for m in dict.fromkeys(m for m, _ in by))
        columns = (Column("Measure", is_text=True), *(Column(s.replace("_", " ")) for s in splits))
        out.append(Table("The people, at their first read.", columns, lines, (), "demographics"))
    if evidence.prevalence:
        rows = []
        for p in evidence.prevalence:
            counts = (rec.format_count(p[k]) for k in ("people", "reads", "positives"))
            rows.append(Row((rec.task_label(p["task"]), p["split"].replace("_", " "), *counts, paper.share(p))))
        columns = (Column("Task", is_text=True), Column("Split", is_text=True),
                   *(Column(h) for h in ("Patients", "Reads", "Positive reads", "Prevalence")))  # fmt: skip
        out.append(Table("Prevalence of every outcome in every split.", columns, tuple(rows), (), "prevalence"))
    return out
