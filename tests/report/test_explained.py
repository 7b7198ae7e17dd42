"""Single predictions on the page: parts, the axis of days before the prediction time, escaping, and size."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_samples import inputs, person

from ehrwear_jax.report import explained, export
from ehrwear_jax.report.build import build_report
from ehrwear_jax.report.page import Details, FigureGrid, Text
from ehrwear_jax.report.report_data import ReportData
from ehrwear_jax.report.timelines import BINS, TimeAxis

TASK = [{"task": "hospitalization_365d", "metric": "auprc"}]


def section(*people, **changes):
    return explained.explained(ReportData(explained=people, robustness=TASK, **changes))


def words(svg):
    return [e.text for e in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


# --- the axis of days ----------------------------------------------------------------------------


@given(st.lists(st.floats(0, 4000), min_size=1, max_size=50), st.integers(0, 2**31))
def test_shares_by_time_lose_nothing_and_lie_where_the_tokens_do(days, seed):
    weight = np.random.default_rng(seed).random((2, 3, len(days)))
    axis = TimeAxis(max(days))
    share = axis.share(weight, days)
    assert share.shape == (2, 3, BINS)
    np.testing.assert_allclose(np.nansum(share, -1), weight.sum(-1))
    edges = axis.edges
    at, k = axis.position(days), axis.bins(days)
    assert (edges[k] <= at + 1e-9).all() and (at <= edges[k + 1] + 1e-9).all()
    assert (np.isfinite(share[0, 0]) == np.isin(np.arange(BINS), k)).all(), "blank where there is no token"


@given(st.floats(0, 30000))
def test_ticks_begin_at_the_prediction_time_and_do_not_overlap(reach):
    axis = TimeAxis(reach)
    days = axis.ticks()
    assert days[0] == 0 and days == sorted(set(days)) and len(days) <= 14
    gaps = np.diff(-np.asarray(axis.position(days)))
    assert (gaps > 0.07 * axis.reach).all()


def test_a_share_by_hand():
    axis = TimeAxis(36.0)  # bins of a sixth of a root day
    share = axis.share([0.5, 0.25, 0.25], [36.0, 0.01, 0.0])
    assert share[0] == 0.5 and share[-1] == 0.5 and np.isnan(share[1:-1]).all()


# --- what is shown -------------------------------------------------------------------------------


def test_the_first_person_is_open_the_others_folded_and_numbers_are_theirs():
    one, two = person(), person(seed=1, risk=0.2, labels=("ICD10//E11",))
    shown = section(one, two)
    first = [b for b in shown.blocks if not isinstance(b, Details)]
    _, folded = [b for b in shown.blocks if isinstance(b, Details)]
    assert folded.summary == "Prediction 2, risk 20.0%"
    said = " ".join(b.text for b in first if isinstance(b, Text))
    total = sum(t["gradient"] for t in one.tokens)
    assert "The 2 held-out people at highest predicted risk of hospitalization, 365 days" in said
    assert "Prediction 1: risk 34.6% (logit \N{MINUS SIGN}0.638) from 7 tokens" in said
    assert f"{total:+.3f}".replace("-", "\N{MINUS SIGN}") in said and "gap of +0.012" in said
    assert len([b for b in folded.blocks if isinstance(b, FigureGrid)]) == 2


def test_the_panels_hold_parts_effects_and_axes_with_units():
    one = person()
    why, attention = [b for b in section(one).blocks if isinstance(b, FigureGrid)]
    parts, top, changed = (words(p) for p in why.panels)
    assert {"part, log-odds", "rollout, share", "days before the prediction time"} <= set(parts)
    assert [label for label, *_ in why.legend] == [
        "EHR codes, circles",
        "heart rate, triangles",
        "HRV (RMSSD), squares",
    ]
    largest = max((t for t in one.tokens if "window" not in t["label"]), key=lambda t: abs(t["gradient"]))
    assert f"{largest['label']}, {-largest['days']:,.0f} d" in top
    assert f"{largest['gradient']:+.3f}".replace("-", "\N{MINUS SIGN}") in top
    assert {"HRV (RMSSD) window, 0.0 d", "part of the logit, log-odds"} <= set(top)
    for text in ("Codes hidden", "ICD10", "\N{MINUS SIGN}0.432", "Only part of the record", "\N{MINUS SIGN}1.23",
                 "Counterfactuals", "without ATC", "heart rate raised by 1 SD", "+0.136",
                 "change of the logit, log-odds"):  # fmt: skip
        assert text in changed, text
    assert "GENDER" not in changed, "what changes nothing is left out"
    assert len(attention.panels) == 2
    for n, panel in enumerate(attention.panels):
        assert {f"Layer {n + 1}", "uniform", "head 1", "head 3", "days before the prediction time",
                "share of attention"} <= set(words(panel))  # fmt: skip


def test_the_numbers_are_a_table_too():
    one = person()
    (folded,) = [b for b in section(one).blocks if isinstance(b, Details)]
    lines = export.to_csv(folded.blocks[0]).splitlines()
    largest = max((t["gradient"] for t in one.tokens if "window" not in t["label"]), key=abs)
    assert lines[1].startswith("Largest parts of the logit,") and lines[1].endswith(f"{largest:+.3f}")
    dash = "\N{EN DASH}"
    assert f"Counterfactuals,without ATC,{dash},-0.543" in lines and f"Codes hidden,ICD10,{dash},-0.432" in lines
    long = "A long description of a laboratory value, in mg/dl, Q3"  # cut in the figure, whole in the table
    shown = [b for b in section(person(labels=(long,))).blocks if not isinstance(b, Text)]
    assert long in export.to_csv(shown[-1].blocks[0])
    assert "A long description of a la\N{HORIZONTAL ELLIPSIS}, 300 d" in words(shown[0].panels[1])
    assert len(lines) == 1 + 3 + 8 + 5, "codes, signals of 4 windows, changes that change something"


def test_the_colours_of_the_heat_map_are_the_shares():
    """Attention to one token only: one cell of the line differs from those of the other tokens."""
    attention = np.zeros((1, 1, 3))
    attention[0, 0, 1] = 1.0
    one = person(labels=("A//1", "B//2", "C//3"), windows=0, attention=attention)
    _, figure = [b for b in section(one).blocks if isinstance(b, FigureGrid)]
    (svg,) = figure.panels
    mesh = re.search(r'QuadMesh_1">(.*?)</g>', svg, re.DOTALL)[1]
    fills = [m for m in re.findall(r"fill: ([^;\"]+)", mesh) if m != "none"]
    even, head = fills[:3], fills[3:]
    assert len(set(even)) == 1 and len(head) == 3
    assert head[0] == head[2] != head[1] and head[1] == "#fee838", "the top of the scale"


def test_wearable_parts_are_by_signal_and_sum_to_those_of_the_tokens():
    one = person()
    parts = explained._parts(one)
    ends = [t["gradient"] for t in one.tokens if t["label"] == "wearable window"]
    np.testing.assert_allclose(np.sum([p.value for n, p in parts.items() if n != "EHR codes"], 0), ends)
    many = person(wear=np.random.default_rng(0).normal(size=(4, 9)), signals=tuple(f"c{i}" for i in range(9)))
    parts = explained._parts(many)
    assert len(parts) == 2 + explained.DRAWN_SIGNALS and "other signals" in parts
    total = sum(np.sum(p.value) for n, p in parts.items() if n != "EHR codes")
    assert total == pytest.approx(many.wear.sum())
    assert set(explained._parts(person(windows=0))) == {"EHR codes"}
    assert set(explained._parts(person(labels=()))) == {"heart rate", "HRV (RMSSD)"}


def test_nobody_is_shown_without_permission_and_it_is_said():
    shown = section()
    (text,) = shown.blocks
    assert "simulated cohorts, or where it was permitted" in text.text and "config.interpret" in text.hint
    assert section(not_interpreted="x").blocks[0].text == "Not computed."


# --- escaping and size ---------------------------------------------------------------------------

NASTY = ("<script>alert(1)</script>", 'ICD10//"><img src=x>', "a & b // $x^2$ $", "line\nbreak </svg>")


def test_malicious_labels_stay_text(tmp_path):
    one = person(labels=NASTY, groups={"<script>": -0.5}, counterfactuals={"without <b>$": 0.5},
                 signals=("</text><script>", "&amp;"))  # fmt: skip
    text = build_report(inputs(data=ReportData(explained=[one], robustness=TASK)), tmp_path).read_text()
    assert not re.search(r"<(img|b)\b", text) and text.count("<script") == 1, "the page's own alone"
    for shown in ("&lt;script&gt;alert(1)&lt;/script&gt;", "ICD10//&quot;&gt;&lt;img src=x&gt;".replace("&quot;", '"'),
                  "a &amp; b // $x^2$ $", "line break &lt;/svg&gt;", "without &lt;b&gt;$"):  # fmt: skip
        assert shown in text, shown
    panels = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(panels) > 10 and all(ET.fromstring(p) is not None for p in panels if "xmlns" in p)


@pytest.mark.slow
def test_a_full_model_stays_far_below_ten_megabytes(tmp_path):
    labels = tuple(f"LOINC//{i % 97}" for i in range(1500))
    people = [person(24, 16, labels, 500, seed=i) for i in range(7)]
    path = build_report(inputs(data=ReportData(explained=people, robustness=TASK)), tmp_path)
    text = path.read_text()
    assert path.stat().st_size < 8e6
    assert "6 of 24 layers are drawn" in text and "Only the 300 largest parts are drawn" in text
    assert text.count(", risk 34.6%</summary>") == explained.DRAWN_PEOPLE - 1
