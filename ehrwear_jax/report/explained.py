"""Draws attributions of single predictions: integrated gradients, rollout, attention, and effects of perturbations.

Only for people of simulated cohorts, or where the config permits it. A prediction has a number on the page and no id;
times are days before the prediction time.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from ehrwear_jax.report import charts, timelines
from ehrwear_jax.report import result_records as rec
from ehrwear_jax.report.figures import SERIES, svg_dash
from ehrwear_jax.report.mechanism_figures import channel_label
from ehrwear_jax.report.page import Block, Details, FigureGrid, Section, Text
from ehrwear_jax.report.report_data import Explained, ReportData
from ehrwear_jax.report.table_model import Column, Group, Row, Table
from ehrwear_jax.report.timelines import Points, TimeAxis

Bars = Sequence[tuple[str, float]]  # text, value
WINDOW = "wearable window"  # as interpret_people labels the tokens of a wearable
DRAWN_PEOPLE = 5
DRAWN_LAYERS = 6
DRAWN_SIGNALS = 4
DRAWN_POINTS = 300
TOP = 14
TOP_EFFECTS = 10
SMALL = 0.0005  # a change of the logit below this is shown as 0.000
LABEL_LENGTH = 34
EFFECTS = (
    ("groups", "Codes hidden"),
    ("channels", "Signals hidden"),
    ("histories", "Only part of the record"),
    ("counterfactuals", "Counterfactuals"),
)


def explained(data: ReportData) -> Section:
    """Single people, the first open and the others folded."""
    title, people = "Single predictions", data.explained
    if not people:
        if data.not_interpreted:
            return Section("explained", title, (Text("Not computed."),))
        text = "No single prediction is explained: it is done for simulated cohorts, or where it was permitted."
        return Section("explained", title, (Text(text, hint="config.interpret.individuals"),))
    task = f" of {rec.task_label(data.robustness[0]['task']).lower()}" if data.robustness else ""
    shown = people[:DRAWN_PEOPLE]
    blocks: list[Block] = [
        Text(
            f"The {len(shown)} held-out people at highest predicted risk{task}, of those with every kind of record. "
            "Everything here describes the model and not causes of disease. A token without influence has a part of "
            "zero; a perturbation of the record without influence leaves the logit, the log-odds of the risk, "
            "unchanged.",
            ("integrated_gradients", "rollout", "counterfactual"),
        )
    ]
    for i, person in enumerate(shown):
        mine = _person(i + 1, person)
        blocks += mine if not i else [Details(f"Prediction {i + 1}, risk {_percent(person.risk)}", tuple(mine))]
    return Section("explained", title, tuple(blocks))


def _percent(risk: float) -> str:
    return f"{100 * risk:.1f}%"


def _person(number: int, person: Explained) -> list[Block]:
    parts = _parts(person)
    total = sum(float(np.sum(p.value)) for p in parts.values())
    gap = rec.format_number(person.completeness_gap, signed=True)
    text = (
        f"Prediction {number}: risk {_percent(person.risk)} (logit "
        f"{rec.format_number(person.logit, signed=True)}) from {len(person.tokens):,} tokens. Their parts sum to "
        f"{rec.format_number(total, signed=True)}, the difference to the logit of the record without contents, with a "
        f"completeness gap of {gap}."
    )
    top, (effects, left) = _top(person, parts), _effects(person)
    return [
        Text(text),
        _contributions(number, person, parts, top, effects, left),
        *_attention(number, person),
        Details("The same in numbers", (_numbers(number, top, effects),)),
    ]


def _numbers(number: int, top: Sequence[tuple[str, float, float]], effects: Sequence[tuple[str, Bars]]) -> Table:
    lines: list[Row | Group] = [Group("Largest parts of the logit")]
    lines += [Row((text, f"{abs(days):,.1f}", rec.format_number(v, signed=True))) for text, days, v in top]
    for heading, bars in effects:
        lines.append(Group(heading))
        lines += [Row((text, rec.ABSENT, rec.format_number(value, signed=True))) for text, value in bars]
    columns = (Column("Token, or perturbation", is_text=True), Column("Days before"),
               Column("Log-odds"))  # fmt: skip
    caption = f"Prediction {number}: parts of the logit, and its change from perturbed records."
    return Table(caption, columns, tuple(lines), (), f"prediction{number}")


# ------------------------------------------------------------------------------------------------- parts of the logit


def _parts(person: Explained) -> dict[str, Points]:
    """Name of a kind of token -> its parts: EHR codes, the signals with the largest parts, all others together."""
    ehr = [t for t in person.tokens if t["label"] != WINDOW]
    out = {"EHR codes": Points([-t["days"] for t in ehr], [t["gradient"] for t in ehr], SERIES[0])} if ehr else {}
    wear_WxC = np.asarray(person.wear, np.float64)
    if wear_WxC.size:
        order = np.argsort(-np.abs(wear_WxC).sum(0), kind="stable")
        named = order[:DRAWN_SIGNALS] if len(order) > DRAWN_SIGNALS + 1 else order
        days = -np.asarray(person.wear_days, np.float64)
        for hue, c in zip(SERIES[1:], named, strict=False):
            out[channel_label(str(person.signals[c]))] = Points(days, wear_WxC[:, c], hue)
        if len(named) < len(order):
            out["other signals"] = Points(days, wear_WxC[:, order[len(named) :]].sum(1), SERIES[6])
    return out


def _largest(parts: Mapping[str, Points], n: int) -> dict[str, Points]:
    """The n points of largest absolute value over all kinds."""
    every = np.sort(np.concatenate([np.abs(np.asarray(p.value, np.float64)) for p in parts.values()]))
    least = every[-n] if len(every) > n else 0.0
    out = {}
    for name, p in parts.items():
        keep = np.abs(np.asarray(p.value, np.float64)) >= least
        out[name] = Points(np.asarray(p.days)[keep], np.asarray(p.value)[keep], p.hue)
    return out


def _short(text: str, end: str = "") -> str:
    """Text that fits beside a bar, with its end kept."""
    room = LABEL_LENGTH - len(end)
    return (text if len(text) <= room else text[: room - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}") + end


def _when(days: float) -> str:
    return f", {abs(days):.1f} d" if days < 10 else f", {days:,.0f} d"  # zero may carry a sign


def _top(person: Explained, parts: Mapping[str, Points]) -> list[tuple[str, float, float]]:
    """(label, days before the prediction time, part) of the tokens and single-signal windows with the largest parts."""
    found = [(t["label"], -t["days"], t["gradient"]) for t in person.tokens if t["label"] != WINDOW]
    for name, p in parts.items():
        if name != "EHR codes":
            found += [(f"{name} window", d, v) for d, v in zip(p.days, p.value, strict=True)]
    found.sort(key=lambda x: -abs(x[2]))
    return [(" ".join(str(text).split()), float(days), float(value)) for text, days, value in found[:TOP] if value]


def _effects(person: Explained) -> tuple[list[tuple[str, Bars]], int]:
    """([(heading, [(text, change of the logit)])], number of perturbations that are left out)."""
    groups: list[tuple[str, Bars]] = []
    left = 0
    for field, heading in EFFECTS:
        known = [(name, v) for name, v in getattr(person, field).items() if v and abs(v) >= SMALL]
        if field != "histories":
            known.sort(key=lambda x: -abs(x[1]))
        shown = known[:TOP_EFFECTS]
        left += len(getattr(person, field)) - len(shown)
        names = [channel_label(n) if field != "groups" else " ".join(n.split()) for n, _ in shown]
        groups += [(heading, list(zip(names, [v for _, v in shown], strict=True)))] * bool(shown)
    return groups, left


def _contributions(
    number: int,
    person: Explained,
    parts: Mapping[str, Points],
    top: Sequence[tuple[str, float, float]],
    effects: Sequence[tuple[str, Bars]],
    left: int,
) -> FigureGrid:
    days = np.array([-t["days"] for t in person.tokens], np.float64)
    axis, identifier = TimeAxis(float(days.max(initial=0.0))), f"why{number}"
    drawn = _largest(parts, DRAWN_POINTS) if parts else {}
    rollout = np.array([t["rollout"] for t in person.tokens], np.float64)
    even_T = np.full(len(days), rollout.sum() / max(len(days), 1))
    panels = [
        timelines.contribution_panel(drawn, axis.share(rollout, days), axis.share(even_T, days), axis,
                                     "Integrated gradients and rollout", f"{identifier}-t"),
    ]  # fmt: skip
    if top:
        bars = [(_short(label, _when(days)), value) for label, days, value in top]
        panels.append(
            charts.bars_panel([("", bars)], "Largest parts", "part of the logit, log-odds", f"{identifier}-p")
        )
    if effects:
        groups = [(heading, [(_short(text), value) for text, value in bars]) for heading, bars in effects]
        panels.append(charts.bars_panel(groups, "The same prediction, record perturbed",
                                        "change of the logit, log-odds", f"{identifier}-c"))  # fmt: skip
    caption = (
        f"Prediction {number}. First, part of the logit of each token (signals: of each window), log-odds; below, the "
        "rollout by time, with a dotted line for uniform attention. Then the tokens with the largest parts, with their "
        "days before the prediction time; Q0 to Q9 are bins of a code's values, the lowest first. Last, how the logit "
        "changes when part of the record is hidden or changed."
    )
    if sum(len(p.days) for p in parts.values()) > DRAWN_POINTS:
        caption += f" Only the {DRAWN_POINTS} largest parts are drawn."
    if left:
        caption += f" {left} perturbations with little or no effect are left out."
    shapes = (timelines.MARKERS[timelines.marker(i)] for i in range(len(parts)))
    legend = tuple((f"{n}, {s}", p.hue, svg_dash(0)) for (n, p), s in zip(parts.items(), shapes, strict=True))
    return FigureGrid(caption, tuple(panels), legend, "medium")


# ---------------------------------------------------------------------------------------------------------- attention


def _attention(number: int, person: Explained) -> list[Block]:
    weight_NxHxT = np.asarray(person.attention, np.float64)
    if not weight_NxHxT.size:
        return []
    days = np.array([-t["days"] for t in person.tokens], np.float64)
    axis = TimeAxis(float(days.max(initial=0.0)))
    share_NxHxB, even_B = axis.share(weight_NxHxT, days), axis.share(np.full(len(days), 1.0 / len(days)), days)
    layers = _spread(len(weight_NxHxT), DRAWN_LAYERS)
    top = max(float(np.nanmax(share_NxHxB[layers])), float(np.nanmax(even_B)), 1e-6)
    names = ["uniform", *(f"head {h + 1}" for h in range(weight_NxHxT.shape[1]))]
    panels = tuple(
        timelines.attention_panel(np.concatenate([even_B[None], share_NxHxB[n]]), names, top, axis, f"Layer {n + 1}",
                                  f"att{number}-{n}")
        for n in layers
    )  # fmt: skip
    caption = (
        f"Prediction {number}: attention of each head of each layer at the prediction time, as shares by time before "
        "it; a line sums to 1. Blank: no token in that time. The line at the top is uniform attention."
    )
    if len(layers) < len(weight_NxHxT):
        caption += f" {len(layers)} of {len(weight_NxHxT)} layers are drawn."
    return [FigureGrid(caption, panels, (), "medium")]


def _spread(n: int, most: int) -> Sequence[int]:
    """At most `most` of 0..n-1, the first and the last among them, evenly spread."""
    return list(dict.fromkeys(np.linspace(0, n - 1, min(n, most)).round().astype(int).tolist()))
