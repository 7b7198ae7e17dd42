"""Draws horizons, decision curves, survival curves, subgroups, robustness and label efficiency."""

from collections.abc import Sequence

from ehrwear_jax.report import charts, paper
from ehrwear_jax.report import result_records as rec
from ehrwear_jax.report.charts import Axis, Dot, Line, LineOptions
from ehrwear_jax.report.page import Block, Details, FigureGrid, Section, Text
from ehrwear_jax.report.report_data import Entry, ReportData
from ehrwear_jax.report.result_records import Record
from ehrwear_jax.report.table_model import Column, Group, Row, Table

DRAWN_MODELS = 7  # as many as there are colours
TREAT_ALL = "treat_all"
SHORT_LEVELS = {
    "sparse": "sparse EHR",
    "rich": "other EHR",
    "short": "wear < 14 d",
    "long": "wear \N{GREATER-THAN OR EQUAL TO} 14 d",
    "under a month": "wear < 30 d",
    "a month or more": "wear \N{GREATER-THAN OR EQUAL TO} 30 d",
    "sparse and short": "sparse EHR,\nwear < 14 d",
    "other": "not both",
}


def _labels(models) -> list[str]:
    return ["Treat all" if m == TREAT_ALL else rec.short_model_label(m) for m in models]


def _drawn(models) -> list[str]:
    return rec.sorted_models(models)[:DRAWN_MODELS]


def _not_drawn(models) -> str:
    rest = rec.sorted_models(models)[DRAWN_MODELS:]
    return f" Not drawn: {', '.join(rec.inline_model_label(m) for m in rest)}." if rest else ""


def horizon_figure(records: Sequence[Record]) -> list[Block]:
    """AUROC and AUPRC against the horizon, for binary tasks that differ by it."""
    found = paper.Lookup(records)
    out: list[Block] = []
    for f, (name, tasks) in enumerate(paper.families(records).items()):
        if len(tasks) < 2:
            continue
        models = rec.sorted_models(m for t in tasks for m in found.models(t, "auroc"))
        style = charts.series_style(_drawn(models))
        days = [horizon[1] for t in tasks if (horizon := rec.horizon_of(t))]
        panels = []
        for metric in ("auroc", "auprc"):
            lines, label = {}, rec.metric_of(metric).label
            for i, model in enumerate(_drawn(models)):
                points = [found.get(t, model, metric) for t in tasks]
                shifted = [d * (1 + 0.045 * (i - (len(style) - 1) / 2)) for d in days]  # intervals do not overlap
                value, lo, hi = ([p[k] if p else None for p in points] for k in ("value", "lo", "hi"))
                lines[model] = Line(model, shifted, value, lo, hi)
            axes = Axis("horizon, days", True, tuple((d, f"{d:g}") for d in days)), Axis(label)
            panels.append(charts.line_panel(lines, style, label, axes, f"hor{f}{metric}", LineOptions(markers=True)))
        caption = (
            f"{rec.task_label(name)} by horizon, with 95% intervals. Prevalence rises with the horizon, and AUPRC "
            "with it." + _not_drawn(models)
        )
        legend = charts.legend(_drawn(models), _labels(_drawn(models)))
        out.append(FigureGrid(caption, tuple(panels), legend, "medium"))
    return out


def decision(records: Sequence[Record], data: ReportData) -> Section:
    """Decision curves: of the main task open, of the others folded."""
    title, curves = "Net benefit", [c for c in data.curves if c["kind"] == "decision"]
    if not curves:
        return Section("decision", title, (Text("No decision curve was computed."),))
    blocks: list[Block] = [
        Text("A model is useful at the thresholds where its curve lies above both grey lines.", ("net_benefit",))
    ]
    tasks = list(dict.fromkeys(c["task"] for c in curves))
    binary = paper.main_task(records, data.main_task)
    main = binary if binary in tasks else tasks[-1]
    for i, task in enumerate([main, *(t for t in tasks if t != main)]):
        figure = _decision_figure([c for c in curves if c["task"] == task], task, f"dca{i}")
        blocks.append(figure if task == main else Details(rec.task_label(task), (figure,)))
    return Section("decision", title, tuple(blocks))


def _decision_figure(curves, task, identifier) -> FigureGrid:
    models = [c["model"] for c in curves if c["model"] != TREAT_ALL]
    shown = [*_drawn(models)[: DRAWN_MODELS - 1], TREAT_ALL]
    style = charts.series_style(shown) | {TREAT_ALL: ("muted", 1)}
    lines = {c["model"]: Line(c["model"], c["x"], c["value"], c["lo"], c["hi"]) for c in curves if c["model"] in shown}
    # one band, since several hide each other
    lines |= {m: Line(m, line.x, line.value) for m, line in lines.items() if m != shown[0]}
    lines["none"] = Line("none", curves[0]["x"], [0.0] * len(curves[0]["x"]))
    style["none"] = ("muted", 0)
    best = [v for m in shown if m != TREAT_ALL and m in lines for v in lines[m].value if v is not None]
    top = max(best, default=0.1)
    limits = (-0.35 * max(top, 1e-3), 1.2 * max(top, 1e-3))
    axes = Axis("threshold probability"), Axis("net benefit per person")
    panel = charts.line_panel(lines, style, "", axes, identifier, LineOptions(limits=limits, size=(5.2, 3.2)))
    horizon = f", by {rec.duration(curves[0]['horizon'])} under censoring" if "horizon" in curves[0] else ""
    horizon += ", weighted for labels that are unknown" if curves[0].get("weighted") else ""
    caption = (
        f"{rec.task_label(task)}{horizon}: net benefit, with the 95% band of {rec.inline_model_label(shown[0])}; "
        "the level grey line treats nobody."
    )
    legend = tuple(
        (label, style[m][0], charts.svg_dash(style[m][1])) for m, label in zip(shown, _labels(shown), strict=True)
    )
    return FigureGrid(caption + _not_drawn(models), (panel,), legend, "medium")


def survival_curves(data: ReportData) -> list[Block]:
    """Kaplan-Meier, or the cumulative incidence, by quartile of predicted risk: a panel for each model."""
    curves = [c for c in data.curves if c["kind"] == "kaplan_meier"]
    out: list[Block] = []
    tasks = list(dict.fromkeys(c["task"] for c in curves))
    # horizon tasks of one name share their times: the longest is shown
    longest = {
        (rec.horizon_of(t) or (t, 0))[0]: t for t in sorted(tasks, key=lambda t: (rec.horizon_of(t) or (t, 0))[1])
    }
    for i, task in enumerate(t for t in tasks if t in longest.values()):
        mine = [c for c in curves if c["task"] == task]
        competing = any(c.get("n_competing") for c in mine)
        mine = [_incidence(c) for c in mine] if competing else mine
        models = _drawn(c["model"] for c in mine)
        levels = list(dict.fromkeys(sorted(c["level"] for c in mine)))
        style = charts.series_style(levels, by_model=False)
        panels, low = [], min((v for c in mine for v in c["lo"] if v is not None), default=0.0)
        limits = (max(0.0, low - 0.03), 1.01)
        if competing:
            limits = (0.0, min(max((v for c in mine for v in c["hi"] if v is not None), default=1.0) + 0.03, 1.01))
        options = LineOptions(steps=True, limits=limits, size=(4.1, 2.9))
        shown = "cumulative incidence" if competing else "share without the event"
        axes = Axis("days since the prediction"), Axis(shown)
        for k, model in enumerate(models):
            lines = {
                c["level"]: Line(c["level"], c["x"], c["value"], c["lo"], c["hi"]) for c in mine if c["model"] == model
            }
            title = rec.short_model_label(model)
            panels.append(charts.line_panel(lines, style, title, axes, f"km{i}-{k}", options))
        labels = [
            f"{level} of risk{' (lowest)' * (level[-1] == '1')}{' (highest)' * (level[-1] == '4')}" for level in levels
        ]
        kind = "cumulative incidence (Aalen and Johansen)" if competing else "Kaplan-Meier curves"
        caption = f"{rec.task_label(task)}: {kind} by quartile of the predicted risk, with 95% bands."
        if competing:
            caption += " Those who die, or have another competing event, before the event never have it."
        if rec.horizon_of(task):
            caption += " The time is that to the first event, also beyond the horizon."
        out += [
            Text("The wider the curves are separated, the better the risk ranks people by time.", ("kaplan_meier",))
        ] * (not i)
        out.append(FigureGrid(caption, tuple(panels), charts.legend(levels, labels, by_model=False), "medium"))
    return out


def _incidence(curve: Entry) -> Entry:
    """The curve of the event instead of that of being free of it."""
    turned = {
        new: [None if v is None else 1 - v for v in curve[old]]
        for new, old in (("value", "value"), ("lo", "hi"), ("hi", "lo"))
    }
    return {**curve, **turned}


def subgroups(records: Sequence[Record], data: ReportData) -> Section:
    """AUROC of the main task by subgroup, and its gaps."""
    title, task = "Subgroups", paper.main_task(records, data.main_task)
    mine = [r for r in data.subgroups if r["task"] == task]
    if task is None or not mine:
        return Section("subgroups", title, (Text("No subgroup was evaluated: nothing is known of the people."),))
    blocks: list[Block] = []
    models = _drawn(r["model"] for r in mine if " - " not in r["model"] and r["model"] != rec.ORACLE)
    by_cell = {(r["attribute"], r["level"], r["model"], r["metric"]): r for r in mine}
    style, panels = charts.series_style(models), []
    attributes = dict.fromkeys(r["attribute"] for r in mine)
    cells = [(a, v) for a in attributes for v in paper.sorted_levels(r["level"] for r in mine if r["attribute"] == a)]
    for metric, label, zero in (("auroc", "AUROC", False), ("auroc_gap", "AUROC less that of the largest group", True)):
        groups = []
        for attribute, level in cells:
            found = [(model, by_cell.get((attribute, level, model, metric))) for model in models]
            dots = [Dot(model, r["value"], r["lo"], r["hi"]) for model, r in found if r and r["value"] is not None]
            if dots and attribute != "all":
                groups.append((_short_level(attribute, level), dots))
        if groups:
            panels.append(charts.dots_panel(groups, style, label, label, f"sub{metric}", zero=zero))
    if panels:
        caption = f"{rec.task_label(task)} by subgroup, with 95% intervals; groups too small to show are left out."
        blocks.append(FigureGrid(caption, tuple(panels), charts.legend(models, _labels(models)), "medium"))
    else:
        blocks.append(Text("Every subgroup is too small to show.", hint="config.evaluate.min_patients, min_per_class"))
    table = paper.subgroup_table(data, task, "")
    blocks += [Details("The same in numbers, with calibration", (table,))] if table else []
    return Section("subgroups", title, tuple(blocks))


def _short_level(attribute, level) -> str:
    coverage = attribute in ("ehr", "wear", "wear_month", "ehr_and_wear")
    text = SHORT_LEVELS[level] if coverage else paper.level_label(attribute, level)
    return text if len(text) <= 26 else text[:25] + "\N{HORIZONTAL ELLIPSIS}"


def robustness(data: ReportData) -> Section:
    """Change of AUROC under perturbations of the records."""
    title, found = "Robustness", [r for r in data.robustness if r["metric"] == "auroc"]
    if not found:
        text = "Perturbed records were not evaluated (the interpret stage does it)."
        return Section("robustness", title, (Text(text),))
    models = _drawn(r["model"] for r in found)
    perturbations = list(dict.fromkeys(r["perturbation"] for r in found))
    by = {(r["model"], r["perturbation"]): r for r in found}
    groups = []
    for name in perturbations[1:]:
        cells = [(m, by[m, name]) for m in models if (m, name) in by and by[m, name]["change"] is not None]
        groups.append((name, [Dot(m, r["change"], r["change_lo"], r["change_hi"]) for m, r in cells]))
    groups = [g for g in groups if g[1]]
    panels, label = [], "AUROC less that of clean records"
    if groups:
        panels = [charts.dots_panel(groups, charts.series_style(models), "Change of AUROC", label, "robust", zero=True)]
    task = rec.task_label(found[0]["task"])
    caption = (
        f"{task}: change of AUROC when the records of held-out people are perturbed, paired, with 95% intervals. "
        "Zero: no loss."
    )
    figure = FigureGrid(caption, tuple(panels), charts.legend(models, _labels(models)), "medium")
    lines: list[Row | Group] = []
    for name in perturbations:
        lines.append(Group(name, rec.format_population(found[0]) if name == perturbations[0] else ""))
        for model in models:
            if r := by.get((model, name)):
                change = {"metric": rec.DIFFERENCE, "value": r["change"], "lo": r["change_lo"], "hi": r["change_hi"]}
                text = rec.ABSENT if name == perturbations[0] else rec.format_interval(change)
                tests = (rec.format_p_value(r.get(k)) for k in ("change_p", "change_q"))
                lines.append(Row((rec.model_label(model), rec.format_interval(r), text, *tests)))
    columns = (Column("Model", "robustness", is_text=True), Column("AUROC [95% interval]", "auroc"),
               Column("Change [95% interval]"), Column("p", "p_value"), Column("q", "q_value"))  # fmt: skip
    notes = rec.family_notes(data.families, "robustness", ("auroc",))
    table = Table(f"{task}: AUROC from perturbed records.", columns, tuple(lines), notes, "robustness")
    return Section("robustness", title, (figure, Details("The same in numbers", (table,))))


def label_efficiency(data: ReportData) -> Section:
    """AUROC, or C, of models fitted to the labels of shares of the training patients."""
    title, found = "Label efficiency", [r for r in data.fractions if r["metric"] in ("auroc", "c_index")]
    if not found:
        return Section("labels", title, (Text("No model was fitted on a fraction of the labels."),))
    tasks = list(dict.fromkeys(r["task"] for r in found))
    main = data.main_task if data.main_task in tasks else tasks[-1]
    models, panels = _drawn(r["model"] for r in found), []
    style = charts.series_style(models)
    for i, task in enumerate(tasks):
        mine = [r for r in found if r["task"] == task]
        ticks = tuple((f, f"{100 * f:g}%") for f in sorted({r["fraction"] for r in mine}))
        series = {}
        for model in models:
            points = sorted((r for r in mine if r["model"] == model), key=lambda r: r["fraction"])
            k = 1 + 0.06 * (models.index(model) - len(models) / 2)
            series[model] = Line(
                model, [k * p["fraction"] for p in points], *([p[x] for p in points] for x in ("value", "lo", "hi"))
            )
        axes = Axis("share of the training patients", True, ticks), Axis(rec.metric_of(mine[0]["metric"]).label)
        title_of_panel, options = rec.task_label(task), LineOptions(markers=True)
        panels.append(charts.line_panel(series, style, title_of_panel, axes, f"frac{i}", options))
    caption = "Models by the share of training patients to whose labels they are fitted, with 95% intervals."
    table = _fractions_table([r for r in found if r["task"] == main], models, main)
    figure = FigureGrid(caption, tuple(panels), charts.legend(models, _labels(models)), "medium")
    return Section("labels", title, (figure, Details("The same in numbers", (table,))))


def _fractions_table(mine: Sequence[Entry], models: Sequence[str], task: str) -> Table:
    lines: list[Row | Group] = []
    for fraction in sorted({r["fraction"] for r in mine}):
        n = next(r["n_patients"] for r in mine if r["fraction"] == fraction)
        lines.append(Group(f"{100 * fraction:g}% of the training patients", f"{n:,} patients"))
        for model in models:
            for r in (r for r in mine if (r["model"], r["fraction"]) == (model, fraction)):
                less = {"metric": rec.DIFFERENCE} | {n: r[f"difference{end}"] for n, end in
                        (("value", ""), ("lo", "_lo"), ("hi", "_hi"))}  # fmt: skip
                lines.append(Row((rec.model_label(model), str(r["n_draws"]), rec.format_interval(r),
                                  rec.format_number(r["spread"]),
                                  rec.ABSENT if less["value"] is None else rec.format_interval(less))))  # fmt: skip
    metric = mine[0]["metric"]
    columns = (Column("Model", "fractions", is_text=True), Column("Draws"),
               Column(f"{rec.metric_of(metric).label} [95% interval]", metric), Column("SD over draws"),
               Column("First model less this one"))  # fmt: skip
    return Table(f"Label efficiency, {rec.task_label(task).lower()}.", columns, tuple(lines), (), "label_efficiency")
