"""Draws the latent space: map of patients, learned kernels, geometry, retrieval and uncertainty."""

from collections.abc import Sequence

import numpy as np

from ehrwear_jax.report import charts
from ehrwear_jax.report import result_records as rec
from ehrwear_jax.report.charts import Axis, Line, LineOptions
from ehrwear_jax.report.ledger_tables import ledger_tables
from ehrwear_jax.report.page import Block, Details, FigureGrid, Section, Text
from ehrwear_jax.report.report_data import Entry, Kernels, ReportData
from ehrwear_jax.report.table_model import Column, Group, Row, Table

GROUPS = {
    "all": "All prediction times",
    "failure_group": "Sparse EHR and less than 14 days of wear",
    "others": "All others",
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


def latent_space(data: ReportData) -> Section:
    """The map of patients, the learned kernels, geometry, the ledger of what z holds, retrieval and uncertainty."""
    blocks: list[Block] = []
    panels: list[str] = []
    order = rec.sorted_models(m.model for m in data.maps)
    for i, m in enumerate(sorted(data.maps, key=lambda m: order.index(m.model))):
        title, y_N = rec.short_model_label(m.model), np.asarray(m.y_N, bool)
        panels.append(charts.map_panel(m.xy_Nx2, y_N, title, m.share_2, f"map{i}", points=data.individuals))
    if panels:
        what = "each point is a prediction time" if data.individuals else "hexagons of ten or more"
        task = rec.task_label(data.maps[0].task)
        caption = f"{task}: held-out prediction times on the first two principal components of z ({what})."
        blocks = [FigureGrid(caption, tuple(panels), (), "medium")]
    blocks += _kernel_figures(data.kernels)
    if data.geometry:
        blocks.append(_geometry_table(data.geometry, data.families))
    blocks += ledger_tables(data.ledger)
    if data.retrieval:
        blocks.append(_retrieval_table(data.retrieval))
    if data.uncertainty:
        blocks.append(_uncertainty_table(data.uncertainty))
    blocks = blocks or [Text("Nothing of the latent space was given to show.")]
    return Section("latents", "Latent space", tuple(blocks))


def _kernel_figures(kernels: Sequence[Kernels]) -> list[Block]:
    out: list[Block] = []
    order = rec.sorted_models(k.model for k in kernels)
    for i, k in enumerate(sorted(kernels, key=lambda k: order.index(k.model))):
        if not k.value_LxHxK.size:
            continue
        layers, heads, _ = k.value_LxHxK.shape
        names = [f"head {h + 1}" for h in range(heads)]
        style = charts.series_style(names, by_model=False)
        step = max(1, layers // 6)
        panels, axes = [], (Axis("time gap", True, PERIODS), Axis("K(d) / K(0)"))
        options = LineOptions(limits=(0, 1.05), size=(3.9, 2.4))
        for layer in range(0, layers, step):
            lines = {n: Line(n, k.days_K, k.value_LxHxK[layer, h]) for h, n in enumerate(names)}
            title, name = f"layer {layer + 1}", f"ker{i}-{layer}"
            panels.append(charts.line_panel(lines, style, title, axes, name, options))
        text = f"{rec.short_model_label(k.model)}: learned time kernels of every head, gaps of an hour to ten years."
        legend = charts.legend(names, names, by_model=False) if heads <= 8 else ()
        figure = FigureGrid(text + (" Some layers are left out." if step > 1 else ""), tuple(panels), legend, "medium")
        out.append(figure if not out else Details(rec.model_label(k.model), (figure,)))
    return [Text("The learned decay of attention with the time gap.", ("kernel",)), *out] if out else []


def _geometry_table(geometry: Sequence[Entry], families: Sequence[Entry]) -> Table:
    names = {
        "mmd2_adjacent_mean": "MMD\N{SUPERSCRIPT TWO} of adjacent 30-day slices, mean",
        "mmd2_class": "MMD\N{SUPERSCRIPT TWO} with against without the outcome",
        "effective_rank": "Effective rank",
        "lipschitz_per_day": "Movement of whitened z per day",
    }
    lines: list[Row | Group] = []
    for measure, text in names.items():
        mine = [g for model in rec.sorted_models(g["model"] for g in geometry) for g in geometry
                if (g["model"], g["measure"]) == (model, measure)]  # fmt: skip
        lines += [Group(text)] * bool(mine)
        for g in mine:
            record = {"metric": measure, **{k: g[k] for k in ("value", "lo", "hi")}}
            tests = (rec.format_p_value(g.get(k)) for k in ("p_value", "q_value"))
            cells = (rec.model_label(g["model"]), rec.format_interval(record), *tests, rec.format_count(g["n"]))
            lines.append(Row(cells))
    columns = (Column("Model", "geometry", is_text=True), Column("Value [95% interval]"), Column("p", "p_permutation"),
               Column("q", "q_value"), Column("n"))  # fmt: skip
    notes = rec.family_notes(families, "geometry")
    return Table("Geometry of the latent space.", columns, tuple(lines), notes, "geometry")


def _retrieval_table(retrieval: Sequence[Entry]) -> Table:
    lines = []
    for r in retrieval:
        words = {"ehr_to_wear": "EHR to wearable", "wear_to_ehr": "wearable to EHR"}[r["direction"]]
        record = {"metric": "recall", **{k: r[k] for k in ("value", "lo", "hi")}}
        lines.append(Row((f"{r['source']}, {words}", str(r["k"]), rec.format_interval(record),
                          rec.format_number(r["chance"]), rec.format_count(r["n"]))))  # fmt: skip
    columns = (Column("From one modality to the other", is_text=True), Column("k"), Column("Recall@k [95% interval]"),
               Column("By chance"), Column("People"))  # fmt: skip
    return Table("Cross-modal retrieval of the same person.", columns, tuple(lines), (), "retrieval")


def _uncertainty_table(uncertainty: Sequence[Entry]) -> Table:
    lines: list[Row | Group] = []
    for group in dict.fromkeys(u["group"] for u in uncertainty):
        mine = [u for u in uncertainty if u["group"] == group]
        n = rec.HIDDEN if mine[0]["n"] is None else rec.format_count(mine[0]["n"])
        lines.append(Group(GROUPS.get(group, group), f"n = {n}"))
        for u in mine:
            record = {"metric": u["measure"], **{k: u[k] for k in ("value", "lo", "hi")}}
            lines.append(Row((rec.metric_of(u["measure"]).label, rec.format_interval(record))))
    columns = (Column("Measure, nats", is_text=True), Column("Mean [95% interval]"))
    return Table("Uncertainty by Monte Carlo dropout.", columns, tuple(lines), (), "uncertainty")
