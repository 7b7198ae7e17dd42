"""Draws the paper's mechanisms: z around events and under a raised channel, precursors, signals around drug starts."""

from collections.abc import Mapping, Sequence
from typing import Any

from ehrwear_jax.report import charts
from ehrwear_jax.report import result_records as rec
from ehrwear_jax.report.charts import Axis, Dot, Line, LineOptions
from ehrwear_jax.report.page import Block, Details, FigureGrid, Section, Text, join_words
from ehrwear_jax.report.report_data import ReportData
from ehrwear_jax.report.table_model import Column, Row, Table

Part = Mapping[str, Any]
DOTS = LineOptions(markers=True, zero=True)
AROUND = {"event": "Around the event", "pseudo_event": "The same people, 120 days earlier"}
DISTANCE = "distance of whitened z, SD"
MEASURES = {"rmssd": "HRV (RMSSD)", "hrv": "HRV", "sdnn": "HRV (SDNN)"}  # what the paper calls HRV
FEW_SEEN = 0.5  # below this share of prediction times whose context holds the control's days, a caution is added


def mechanisms(data: ReportData) -> Section:
    """Figures with intervals, each after a sentence on what is shown and what is expected without an effect."""
    title, found = "Mechanisms", data.mechanisms
    if data.not_interpreted:
        return Section("mechanisms", title, (Text(data.not_interpreted),))
    if not found:
        return Section("mechanisms", title, (Text("The paper's mechanisms were not computed."),))
    least = 2 if data.individuals else charts.MIN_CELL
    blocks: list[Block] = [
        Text("Averages over people, of the model or of the data. They are descriptive and do not establish causes.")
    ]
    blocks += _jump_and_drift(found.get("jump"), found.get("drift"), data, least)
    blocks += _precursors(found.get("precursors"), data, least)
    blocks += _drug_start(found.get("drug_start"), data, least)
    return Section("mechanisms", title, tuple(blocks))


def channel_label(name: str) -> str:
    """`heart_rate` becomes `heart rate`."""
    return MEASURES.get(name) or " ".join(name.replace("_", " ").split())


def _codes(data: ReportData, kind: str) -> str:
    prefixes = data.codes.get(kind, ())
    return f" (codes that begin with {join_words([p.rstrip('/') for p in prefixes])})" if prefixes else ""


def _hidden(part: Part, least: int) -> dict[str, list]:
    """mean, lo, hi, with None where fewer than `least` people have a value."""
    return {
        k: [v if n >= least else None for v, n in zip(part[k], part["n"], strict=True)] for k in ("mean", "lo", "hi")
    }


def _people(part: Part) -> str:
    few, many = min(part["n"]), max(part["n"])
    return f"n = {many:,} people" if few == many else f"n = {few:,} to {many:,} people"


def _too_few(least: int, what: str = "people") -> str:
    return f"fewer than {least} {what} have a value, so no mean is shown."


def _caution(n: int) -> str:
    return f" Intervals over fewer than {charts.MIN_CELL} are unreliable." if n < charts.MIN_CELL else ""


def _path(name: str, start: float, part: Part, least: int) -> Line | None:
    """The mean distance by day, from its start, where it is zero; None where nothing may be shown."""
    kept = _hidden(part, least)
    if all(v is None for v in kept["mean"]):
        return None
    return Line(name, [start, *part["offset_days"]], *([0.0, *kept[k]] for k in ("mean", "lo", "hi")))


# ------------------------------------------------------------------------------------------------- jump and drift


def _jump_and_drift(jump: Part | None, drift: Part | None, data: ReportData, least: int) -> list[Block]:
    found = (_jump(jump, data, least), _drift(drift, least))
    blocks: list[Block] = [Text(*said) for said_of_one, _, _ in found for said in said_of_one]
    panels = tuple(panel for _, panel, _ in found if panel)
    if panels:
        legend = charts.legend(list(AROUND), list(AROUND.values()), by_model=False) if found[0][1] else ()
        caption = (
            "Mean distance with 95% intervals over resampled people. Each curve starts at zero, at the time that it is "
            "measured from; dots are the times at which z was computed."
        )
        measured = (jump["event"] if jump else None, drift)
        drawn = [part for part, (_, panel, _) in zip(measured, found, strict=True) if part and panel]
        caption += _caution(min(max(part["n"]) for part in drawn))
        table = _shapes([row for _, _, rows in found for row in rows])
        blocks += [FigureGrid(caption, panels, legend, "medium"), Details("The same in numbers", (table,))]
    return blocks


def _jump(part: Part | None, data: ReportData, least: int):
    """([(text, definitions)], panel or None, lines of the table)."""
    codes = _codes(data, "event")
    if part is None:
        text = (
            f"No jump at events is shown: fewer than two held-out people have such an event{codes} with 122 days of "
            "record before it, or the model is not given the EHR."
        )
        return [(text,)], None, []
    text = (
        f"Jump at an event{codes}: how far the latent state is from where it was a day before the first event, and how "
        "far the same people's state moved over the same days 120 days earlier. If events changed nothing, the two "
        "curves would coincide."
    )
    said = [(text, ("whitened_distance",))]
    lines = {k: line for k in AROUND if (line := _path(k, -1.0, part[k], least)) is not None}
    if not lines:
        return [*said, (f"Jump at an event: {_too_few(least)}",)], None, []
    ticks = tuple((d, f"{d:g}") for d in (0.0, *part["event"]["offset_days"][1:]))
    panel = charts.line_panel(
        lines, charts.series_style(list(AROUND), by_model=False), f"At an event, {_people(part['event'])}",
        (Axis("days after the event", ticks=ticks), Axis(DISTANCE)), "mechjump", DOTS,
    )  # fmt: skip
    return said, panel, [_shape_row(AROUND[k], part[k]) for k in lines]


def _drift(part: Part | None, least: int):
    """As `_jump`."""
    if part is None:
        text = (
            "No drift under a raised channel is shown: the channel is not there, or "
            "fewer than two held-out people wore a device for two weeks."
        )
        return [(text,)], None, []
    raised = f"{channel_label(part['channel'])} raised by {part['raised_sd']:g} SD"
    head = raised[:1].upper() + raised[1:]
    text = (
        f"Drift under {raised} from day 0 on: distance between the latent state of the changed and of the unchanged "
        "record of the same people. If it changed nothing, the curve would lie at zero; a slow drift grows with the "
        "days, a jump occurs on the first."
    )
    said, line = [(text, ("whitened_distance",))], _path("drift", 0.0, part, least)
    if line is None:
        return [*said, (f"Drift: {_too_few(least)}",)], None, []
    ticks = tuple((d, f"{d:g}") for d in (0.0, *part["offset_days"]))
    panel = charts.line_panel(
        {"drift": line}, {"drift": (charts.SERIES[2], 2)}, f"{head}, {_people(part)}",
        (Axis("days since it was raised", ticks=ticks), Axis(DISTANCE)), "mechdrift", DOTS,
    )  # fmt: skip
    return said, panel, [_shape_row(head, part)]


def _shape_row(text: str, part: Part) -> Row:
    days = part["offset_days"]
    ends = [
        rec.format_interval({"metric": "", "value": part["mean"][k], "lo": part["lo"][k], "hi": part["hi"][k]})
        for k in (0, -1)
    ]
    shape = [rec.ABSENT if part[k] is None else f"{part[k]:.2f}" for k in ("first_share", "half_days")]
    linear = f"{days[0] / days[-1]:.2f}", f"{days[-1] / 2:.2f}"
    return Row((text, f"{max(part['n']):,}", *ends, *(f"{s} ({x})" for s, x in zip(shape, linear, strict=True))))


def _shapes(rows: Sequence[Row]) -> Table:
    columns = (Column("Distance in whitened z, SD", "whitened_distance", is_text=True), Column("People"),
               Column("First time [95% interval]"), Column("Last time [95% interval]"),
               Column("First share (if linear)"), Column("Days to half (if linear)"))  # fmt: skip
    note = (
        "Medians over people. First share: distance at the first time over the largest distance. In brackets, the "
        "values of a linear drift over the same days; a jump has a first share near 1 and half within the first day."
    )
    return Table("Jump against drift.", columns, tuple(rows), (note,), "mechanisms_jump_drift")


# ----------------------------------------------------------------------------------------------------- precursors


def _precursors(found: Mapping[str, Part] | None, data: ReportData, least: int) -> list[Block]:
    if found is None:
        return [Text("No precursor is shown: fewer than two people have an event with wearable windows 30 to 7 days "
                     "before it in the context, none of the precursors' channels exists, or there is no "
                     "binary task.", hint="config.interpret.precursor_channels")]  # fmt: skip
    by = {tuple(name.rpartition(", ")[::2]): part for name, part in found.items()}
    channels, periods = (list(dict.fromkeys(k[i] for k in by)) for i in (0, 1))
    n = max(part["n"] for part in found.values())
    words = join_words([channel_label(c) for c in channels])
    text = (
        f"Precursors: how much the probe's logit just before an event{_codes(data, 'event')} changes, in absolute "
        f"value, when {words} 30 to 7 days before it are hidden, against hiding the same 53 to 30 days before it. If "
        "these days were not informative, both changes would be alike and the differences would lie about zero."
    )
    if n < least:
        return [Text(text, ("precursor",)), Text(f"Precursors: {_too_few(least, 'prediction times')}")]
    style = charts.series_style(periods, by_model=False)
    weights, gaps, rows = [], [], []
    for channel in channels:
        mine = [(p, by[channel, p]) for p in periods if (channel, p) in by]
        weights.append(
            (channel_label(channel), [Dot(p, x["mean"], x["lo"], x["hi"]) for p, x in mine if x["mean"] is not None])
        )
        others = [(p, x) for p, x in mine if not p.endswith("(control)") and x["difference"] is not None]
        gaps.append(
            (
                channel_label(channel),
                [Dot(p, x["difference"], x["difference_lo"], x["difference_hi"]) for p, x in others],
            )
        )
        rows += [_precursor_row(f"{channel_label(channel)}, {p}", x) for p, x in mine]
    drawn = (
        ("Effect of hiding", "mean |change of the logit|, log-odds", weights),
        ("Beyond the control", "difference of the means, log-odds", gaps),
    )
    panels = tuple(
        charts.dots_panel([g for g in groups if g[1]], style, title, label, f"mechpre{i}", zero=True)
        for i, (title, label, groups) in enumerate(drawn)
        if any(dots for _, dots in groups)
    )
    seen = max(part["control_seen"] for part in found.values())
    caption = f"n = {n:,} prediction times just before an event, with 95% intervals over resampled people. "
    caption += f"The context of {100 * seen:.0f}% of them holds windows of the control's days"
    caption += "; so few that the differences are unreliable." if seen < FEW_SEEN else "."
    caption += _caution(n)
    legend = charts.legend(periods, [f"{p} before" if "(" not in p else p for p in periods], by_model=False)
    columns = (Column("Hidden", "precursor", is_text=True), Column("Mean |change| [95% interval]"),
               Column("Beyond the control [95% interval]"), Column("p", "p_value"), Column("q", "q_value"),
               Column("Prediction times"))  # fmt: skip
    caption_of_table = "Effect of hiding signals before an event, log-odds."
    notes = rec.family_notes(data.families, "mechanisms")
    table = Table(caption_of_table, columns, tuple(rows), notes, "mechanisms_precursors")
    return [Text(text, ("precursor",)), FigureGrid(caption, panels, legend, "medium"),
            Details("The same in numbers", (table,))]  # fmt: skip


def _precursor_row(text: str, part: Part) -> Row:
    mean = {"metric": "", "value": part["mean"], "lo": part["lo"], "hi": part["hi"]}
    gap = {
        "metric": rec.DIFFERENCE,
        **{k: part[f"difference{e}"] for k, e in (("value", ""), ("lo", "_lo"), ("hi", "_hi"))},
    }
    is_control = text.endswith("(control)")
    return Row((text, rec.format_interval(mean), rec.ABSENT if is_control else rec.format_interval(gap),
                *(rec.format_p_value(part.get(k)) for k in ("p_value", "q_value")), f"{part['n']:,}"),
               apart=is_control)  # fmt: skip


# ----------------------------------------------------------------------------------------------- start of a drug


def _drug_start(found: Part | None, data: ReportData, least: int) -> list[Block]:
    if found is None:
        return [Text("No signal around the start of a drug is shown: fewer than two people wore a device before and "
                     f"after their first drug code{_codes(data, 'drug')}, or no channel of "
                     "heart rate variability exists.", hint="config.interpret.response_channels")]  # fmt: skip
    channel, edges = channel_label(found["channel"]), found["edge_days"]
    text = (
        f"Start of a drug{_codes(data, 'drug')}: {channel} by week from the first drug code, as the change from "
        f"the same person's mean over the {-edges[0]:g} days before, in SD of the training windows. It describes the "
        "data, not the model. Without a change the means would stay at zero; before day 0 they lie about it."
    )
    kept = _hidden(found, least)
    if all(v is None for v in kept["mean"]):
        return [Text(text, ("drug_start",)), Text(f"Start of a drug: {_too_few(least)}")]
    middle = [(a + b) / 2 for a, b in zip(edges[:-1], edges[1:], strict=True)]
    panel = charts.line_panel(
        {"drug": Line("drug", middle, kept["mean"], kept["lo"], kept["hi"])}, {"drug": (charts.SERIES[0], 0)}, "",
        (Axis("days from the first drug code", ticks=tuple((e, f"{e:g}".replace("-", rec.MINUS)) for e in edges)),
         Axis(f"change of {channel}, SD")), "mechdrug", DOTS,
    )  # fmt: skip
    rows = []
    for k, n in enumerate(found["n"]):
        record = {"metric": rec.DIFFERENCE, "value": kept["mean"][k], "lo": kept["lo"][k], "hi": kept["hi"][k]}
        shown = f"{n:,}" if n >= least or not n else f"< {least}"
        rows.append(
            Row((f"{edges[k]:g} to {edges[k + 1]:g}".replace("-", rec.MINUS), rec.format_interval(record), shown))
        )
    caption = f"Mean change by week with 95% intervals over resampled people, n up to {max(found['n']):,} a week."
    caption += f" Weeks with fewer than {least} people are left out." + _caution(max(found["n"]))
    columns = (Column("Days from the first drug code", "drug_start", is_text=True), Column(f"Change of {channel}, SD"),
               Column("People"))  # fmt: skip
    table = Table("A signal around the start of a drug.", columns, tuple(rows), (), "mechanisms_drug_start")
    return [Text(text, ("drug_start",)), FigureGrid(caption, (panel,), (), "medium"),
            Details("The same in numbers", (table,))]  # fmt: skip
