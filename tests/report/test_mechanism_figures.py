"""The mechanisms on the page: what was measured is what is drawn and written, and few people are not shown."""

import re

import numpy as np
import pytest
from report_samples import inputs, mechanisms

from ehrwear_jax.report import charts, export, mechanism_figures
from ehrwear_jax.report.build import build_report
from ehrwear_jax.report.page import Details, FigureGrid, Text
from ehrwear_jax.report.report_data import ReportData

CODES = {"event": ("HOSPITAL_ADMISSION",), "drug": ("ATC//", "RX//")}


def section(found, **changes):
    return mechanism_figures.mechanisms(ReportData(**{"mechanisms": found, "codes": CODES} | changes))


def texts(shown):
    return [b.text for b in shown.blocks if isinstance(b, Text)]


def figures(shown):
    return [b for b in shown.blocks if isinstance(b, FigureGrid)]


def tables(shown):
    return {t.name: t for b in shown.blocks if isinstance(b, Details) for t in b.blocks}


@pytest.fixture
def drawn(monkeypatch):
    """What line_panel and dots_panel are called with: [(title, lines or groups, axis labels)]."""
    calls = []
    lines, dots = charts.line_panel, charts.dots_panel

    def line_panel(shown, style, title, axes, identifier, options):
        calls.append((title, shown, tuple(a.label for a in axes), options.zero))
        return lines(shown, style, title, axes, identifier, options)

    def dots_panel(groups, style, title, label, *rest, **more):
        calls.append((title, groups, (label,), more["zero"]))
        return dots(groups, style, title, label, *rest, **more)

    monkeypatch.setattr(charts, "line_panel", line_panel)
    monkeypatch.setattr(charts, "dots_panel", dots_panel)
    return calls


def test_the_figures_draw_the_numbers_with_intervals_units_and_zero(drawn):
    shown = section(mechanisms(n=31))
    jump, drift, weight, gap, drug = drawn
    found = mechanisms(n=31)
    assert jump[0] == "At an event, n = 31 people" and drift[0] == "Heart rate raised by 1 SD, n = 30 people"
    for name in ("event", "pseudo_event"):
        line, part = jump[1][name], found["jump"][name]
        assert line.x == [-1.0, *part["offset_days"]], "from z a day before"
        for field, key in (("value", "mean"), ("lo", "lo"), ("hi", "hi")):
            assert getattr(line, field) == [0.0, *part[key]]
    assert drift[1]["drift"].x == [0.0, 1.0, 7.0, 14.0] and drift[1]["drift"].value == [0.0, 0.25, 0.75, 1.5]
    ((channel, dots),) = weight[1]
    assert channel == "HRV (RMSSD)" and [(d.value, d.lo, d.hi) for d in dots] == [
        (0.25, 0.125, 0.375),
        (0.0625, 0.0, 0.1875),
    ]
    ((_, (dot,)),) = gap[1]  # the control against itself is no dot
    assert (dot.value, dot.lo, dot.hi) == (0.1875, 0.0625, 0.25)
    line = drug[1]["drug"]
    assert line.x == [-10.5, -3.5, 3.5, 10.5] and line.value == [0.0, 0.0, -0.375, None], (
        "a week of 3 people is left out"
    )
    units = [*jump[2], *drift[2], *weight[2], *gap[2], *drug[2]]
    assert all(re.search(r"days|SD|log-odds", label) for label in units)
    assert all(zero for *_, zero in drawn)
    assert len(figures(shown)) == 3 and all("n =" in f.caption or "n up to" in f.caption or "intervals" in f.caption
                                            for f in figures(shown))  # fmt: skip


def test_each_is_defined_with_what_no_effect_looks_like_and_its_codes():
    said = texts(section(mechanisms()))
    for start, ends in (
        ("Jump at an event (codes that begin with HOSPITAL_ADMISSION)", "the two curves would coincide"),
        ("Drift under heart rate raised by 1 SD", "the curve would lie at zero"),
        ("Precursors: ", "the differences would lie about zero"),
        ("Start of a drug (codes that begin with ATC and RX)", "the means would stay at zero"),
    ):
        (mine,) = [t for t in said if t.startswith(start)]
        assert ends in mine


def test_the_tables_hold_the_numbers():
    found = tables(section(mechanisms(n=31)))
    shape = export.to_csv(found["mechanisms_jump_drift"]).splitlines()
    assert shape[1] == 'Around the event,31,"2.500 [2.375, 2.625]","2.000 [1.875, 2.125]",0.97 (0.03),0.50 (15.00)'
    assert shape[3].endswith("0.11 (0.07),6.50 (7.00)")
    before = export.to_csv(found["mechanisms_precursors"]).splitlines()
    assert before[1] == '"HRV (RMSSD), 30 to 7 days","0.250 [0.125, 0.375]","+0.188 [+0.062, +0.250]",0.012,0.034,31'
    weeks = export.to_csv(found["mechanisms_drug_start"]).splitlines()
    assert weeks[3] == '0 to 7,"-0.375 [-0.500, -0.250]",31' and weeks[4] == "7 to 14,\N{EN DASH},< 10"


@pytest.mark.parametrize("individuals, least", [(False, charts.MIN_CELL), (True, 2)])
def test_means_over_few_people_are_not_shown(individuals, least, drawn):
    shown = section(mechanisms(n=least - 1), individuals=individuals)
    assert not figures(shown) and not tables(shown) and not drawn
    assert sum(bool(re.search(f"fewer than {least} (people|prediction times)", t)) for t in texts(shown)) == 4
    assert len(figures(section(mechanisms(n=least), individuals=individuals))) == 3


def test_what_the_cohort_has_not_is_said_part_by_part():
    none = dict.fromkeys(mechanisms())
    said = texts(section(none))
    assert [t.split(" is shown")[0] for t in said[1:]] == [
        "No jump at events", "No drift under a raised channel", "No precursor",
        "No signal around the start of a drug"]  # fmt: skip
    for name in none:
        shown = section(none | {name: mechanisms()[name]})
        assert len(figures(shown)) == 1, name
    assert texts(section({})) == ["The paper's mechanisms were not computed."]


def test_few_contexts_that_hold_the_control_are_warned_of():
    for seen, warned in ((0.75, False), (0.25, True)):
        found = mechanisms()["precursors"]
        found = {k: v | {"control_seen": seen} for k, v in found.items()}
        (figure,) = figures(section({"precursors": found}))
        assert f"The context of {100 * seen:.0f}% of them" in figure.caption
        assert ("are unreliable" in figure.caption) == warned


@pytest.mark.parametrize("n, warned", [(charts.MIN_CELL - 1, True), (charts.MIN_CELL + 1, False)])
def test_intervals_over_few_are_shown_of_simulated_people_with_a_warning(n, warned):
    captions = [f.caption for f in figures(section(mechanisms(n), individuals=True))]
    assert len(captions) == 3 and all((f"fewer than {charts.MIN_CELL} are unreliable" in c) == warned for c in captions)


def test_undefined_numbers_leave_gaps():
    found = mechanisms()
    found["drug_start"] |= {"mean": [None, 0.0, None, None], "lo": [None] * 4, "hi": [None] * 4}
    found["jump"]["event"] |= {"first_share": None, "half_days": None}
    shown = section(found)
    assert len(figures(shown)) == 3
    assert "\N{EN DASH} (0.03)" in tables(shown)["mechanisms_jump_drift"].rows[0].cells


def test_without_the_interpret_stage_the_page_says_so_once(tmp_path):
    sentence = "The interpret stage has not been run: nothing of it is shown."
    text = build_report(inputs(data=ReportData(not_interpreted=sentence)), tmp_path).read_text()
    assert text.count(sentence) == 1
    assert 'id="mechjump' not in text and len(re.findall("<h2 ", text)) > 15
    whole = build_report(inputs(data=ReportData(mechanisms=mechanisms(), codes=CODES)), tmp_path).read_text()
    assert "interpret stage has not" not in whole and 'id="mechjump' in whole and 'id="mechdrug' in whole
    assert np.all([f"mechanisms_{n}.csv" in {p.name for p in (tmp_path / "tables").iterdir()}
                   for n in ("jump_drift", "precursors", "drug_start")])  # fmt: skip
