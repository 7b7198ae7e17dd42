"""The paper's tables, figures, and the tables as files, on given numbers."""

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from report_samples import inputs, record

from ehrwear_jax import config as config_lib
from ehrwear_jax.config.variants import TABLES
from ehrwear_jax.report import charts, export, paper, report_figures
from ehrwear_jax.report.build import build_report, report_page
from ehrwear_jax.report.charts import MIN_CELL
from ehrwear_jax.report.latent_figures import latent_space
from ehrwear_jax.report.page import Text
from ehrwear_jax.report.report_data import Kernels, PatientMap, ReportData
from ehrwear_jax.report.result_records import check_records
from ehrwear_jax.report.table_model import Column, Group, Row, Table

PAGE = Path(paper.__file__).parent
TASK = "hospitalization_365d"


def cell(attribute, level, metric="auroc", value=0.7, n=40, suppressed=False, **changes):
    base = {"dataset": "simulated", "task": TASK, "model": "joint", "attribute": attribute, "level": level,
            "metric": "suppressed" if suppressed else metric, "value": None if suppressed else value, "lo": None,
            "hi": None, "p": None, "n_patients": n, "n_positive": n and 12, "n_degenerate": 0,
            "suppressed": suppressed}  # fmt: skip
    return base | changes


def report_data(**changes):
    rng = np.random.default_rng(0)
    curve = {"task": TASK, "x": [0.0, 100.0], "value": [1.0, 0.5], "lo": [1.0, None], "hi": [1.0, 0.6]}
    perturbed = {"task": TASK, "model": "joint", "metric": "auroc", "value": 0.8, "lo": 0.7, "hi": 0.9, "n": 90}
    perturbed |= {"change": -0.0123, "change_lo": -0.02, "change_hi": 0.01, "change_p": 0.2, "change_q": 0.3}
    perturbed |= {"n_positive": 30}
    fraction = {"task": TASK, "model": "joint", "n_draws": 5, "n_patients": 44, "metric": "auroc", "value": 0.6543,
                "lo": 0.6, "hi": 0.7, "spread": 0.0321, "difference": None, "difference_lo": None,
                "difference_hi": None}  # fmt: skip
    fewer = {**fraction, "model": "linear_table", "difference": 0.0345, "difference_lo": 0.01, "difference_hi": 0.05}
    fields = {
        "subgroups": [
            cell("all", "all"),
            cell("age", ">65"), cell("age", "<50", suppressed=True, n=None), cell("age", "50-65", n=None),
            cell("device", "watch <x>"), cell("device", "watch <x>", "auroc_gap", -0.0456),
        ],
        "curves": [
            {**curve, "kind": "kaplan_meier", "model": "joint", "level": "quartile 1", "n": 50, "n_events": 9},
            {**curve, "kind": "decision", "model": "joint"}, {**curve, "kind": "decision", "model": "treat_all"},
        ],
        "fractions": [{**x, "fraction": f} for f in (0.1, 1.0) for x in (fraction, fewer)],
        "prevalence": [{"task": TASK, "split": "held_out", "times": 240, "people": 120, "positives": 69,
                        "share": 69 / 240, "median_days": None}],
        "demographics": [{"split": "held_out", "measure": "people", "value": "120"}],
        "robustness": [{**perturbed, "perturbation": p} for p in ("clean", "no wearable")],
        "kernels": [Kernels("joint", np.geomspace(0.04, 3652, 20), rng.random((2, 3, 20)))],
        "maps": [PatientMap("joint", TASK, rng.normal(size=(50, 2)), (0.5, 0.25), np.arange(50) % 3 == 0)],
        "families": [{"kind": "robustness", "metric": "auroc", "of": "models x perturbations", "tests": 4}],
        "individuals": True,
        "compute": [{"Model": "joint", "Parameters": "1,234", "Device-hours": "5.6"}],
    }  # fmt: skip
    return ReportData(**fields | changes)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build_report(inputs(data=report_data()), tmp_path_factory.mktemp("figures")).parent


@pytest.fixture(scope="module")
def markdown(built):
    return (built / "report.md").read_text()


def test_all_data_reach_the_page(markdown):
    for text in (
        "| Joint model (EHR + wearable) | 5 | 0.654 [0.600, 0.700] | 0.032 |",
        "| Joint model (EHR + wearable) | 0.800 [0.700, 0.900] | −0.012 [−0.020, +0.010] | 0.200 | 0.300 |",
        'over the family "robustness: AUROC, models x perturbations", 4 tests.',
        "| Hospitalization, 365 days | 120 | 240 | 69 | 28.8% | – |",
        "| joint | 1,234 | 5.6 |",
        "net benefit",
        "Kaplan-Meier curves by quartile",
        "learned time kernels",
        "each point is a prediction time",
    ):
        assert text in markdown, text


def test_ages_are_in_order_and_small_cells_have_no_number(markdown):
    table = markdown[markdown.index("Table 8:") : markdown.index("Table 9:")]
    assert table.index("age \\<50") < table.index("age 50-65") < table.index("age >65")
    young = table[table.index("age \\<50") : table.index("age 50-65")]
    assert "suppressed: too few patients" in young and not re.search(r"0\.\d", young)
    assert "counts hidden" in table[table.index("age 50-65") : table.index("age >65")]
    assert "| −0.046 | – | – |" in markdown[markdown.index("Table 9:") :]


def test_tables_that_cannot_be_filled_say_why(markdown):
    reasons = {2: "no task with float labels", 4: "pretrained separately", 6: "no tuning predictions"}
    for number, reason in reasons.items():
        assert f"Table {number} is not filled: " in markdown and reason in markdown
    assert "Table 3 is not filled" not in markdown  # the samples have a time-to-event task


def test_a_run_without_a_binary_task_says_so_of_its_tables():
    records = [record(task="time_to_death", metric="c_index", value=0.8)]
    section = paper.paper_tables(check_records(records, "simulated"), ReportData())
    said = [b.text for b in section.blocks if isinstance(b, Text) and "is not filled" in b.text]
    lacking = [text[6] for text in said if text.endswith(": the run has no binary task.")]
    assert lacking == ["1", "6", "7", "8", "9"]


def test_what_the_report_says_of_the_config_is_in_the_config(markdown):
    assert tuple(paper.ABLATIONS) == TABLES["table4"]
    assert tuple(paper.FURTHER_ABLATIONS) == TABLES["a6"]
    (reason,) = re.findall(r"^Table 4 is not filled: .*$", markdown, re.MULTILINE)
    assert [n.replace("\\", "") for n in re.findall(r"\(([\w\\, ]+)\)", reason)[0].split(", ")] == list(paper.ABLATIONS)
    config = config_lib.base()
    named = {m for p in PAGE.glob("*.py") for m in re.findall(r"config\.(\w+\.\w+)", p.read_text())}
    assert len(named) > 5
    for name in named:
        part, option = name.split(".")
        assert option in config[part], name


def test_significance_follows_q_and_ablations_have_their_table():
    records = [
        record("joint", TASK, value=0.8),
        record("late_fusion", TASK, value=0.7),
        record("no_cross_modal", TASK, value=0.6),
        record("r1", TASK, value=0.65),
        record("joint - late_fusion", TASK, "auroc_difference_q", 0.06, None, None),
        record("joint - no_cross_modal", TASK, "auroc_difference_q", 0.05, None, None),
    ]
    section = paper.paper_tables(check_records(records, "simulated"), ReportData())
    by_name = {t.name: t for t in section.blocks if isinstance(t, Table)}
    fourth = [r.cells for r in by_name["table4"].rows]
    assert [c[0] for c in fourth] == ["Joint model (EHR + wearable)", "without both cross-modal losses"]
    assert fourth[1][1].endswith("*") and not fourth[0][1].endswith("*")
    assert [r.cells[0] for r in by_name["a6"].rows] == ["Joint model (EHR + wearable)", "one exponential"]
    assert all("one exponential" not in r.cells[0] for r in by_name["table1_hospitalization_auroc"].rows)
    first = {r.cells[0]: r for r in by_name["table1_hospitalization_auroc"].rows}
    assert "without both cross-modal losses" not in first
    assert not first["Late fusion"].cells[1].endswith("*") and first["Joint model (EHR + wearable)"].bold == {1}


def test_people_are_drawn_only_where_allowed():
    xy = np.concatenate([np.zeros((MIN_CELL, 2)), [[9.0, 9.0], [9.0, 9.1]]])
    shown = PatientMap("joint", TASK, xy, (0.5, 0.2), np.arange(len(xy)) % 2 == 0)
    drawn = {}
    for individuals in (False, True):
        section = latent_space(ReportData(maps=[shown], individuals=individuals))
        svg = section.blocks[0].panels[0]
        cells = re.search(r'PolyCollection_1">(.*?)</g>\s*</g>', svg, re.DOTALL)
        marks = re.findall(r'<g clip-path="[^"]*">\s*((?:<use[^>]*/>\s*)+)</g>', svg)
        drawn[individuals] = cells[1].count("<use") if cells else sum(m.count("<use") for m in marks)
        assert ("share with the event" in svg) != individuals
    assert drawn[True] == len(xy)
    assert drawn[False] == 1  # the two points apart are fewer than a hexagon needs


def test_files_hold_the_tables(built):
    content = report_page(inputs(data=report_data()), check_records(inputs().results, "simulated"))
    tables = export.named_tables(content)
    assert {export.file_name(t) for t in tables} == {p.stem for p in (built / "tables").iterdir()}
    for table in tables:
        lines = list(csv.reader(io.StringIO((built / "tables" / f"{export.file_name(table)}.csv").read_text())))
        assert len(lines) == 1 + sum(isinstance(r, Row) for r in table.rows)
        assert len({len(line) for line in lines}) == 1
        tex = (built / "tables" / f"{export.file_name(table)}.tex").read_text()
        assert tex.count("{") == tex.count("}") and tex.count(r"\\") == len(table.rows) + 1


def test_latex_and_csv_escape_what_would_be_read_as_code():
    row = Row(("=SUM(A1)", "−0.5 [a, b]"))
    table = Table("100% & more_", (Column("A", is_text=True), Column("#")), (Group("g_1", "x"), row), ("$", "~"), "t")
    tex = export.to_latex(table)
    assert r"100\% \& more\_" in tex and r"g\_1" in tex and r"\textminus{}0.5 {[}a, b]" in tex and r"\$" in tex
    assert list(csv.reader(io.StringIO(export.to_csv(table))))[1] == ["g_1 (x)", "'=SUM(A1)", "-0.5 [a, b]"]


def test_data_without_numbers_are_drawn_without_error(tmp_path):
    empty = {"value": [None, None], "lo": [None, None], "hi": [None, None], "x": [0.1, 0.2], "task": TASK}
    none = report_data(
        curves=[{**empty, "kind": "decision", "model": "joint"}],
        subgroups=[cell("sex", "female", suppressed=True, n=None)],
        robustness=[], fractions=[], kernels=[], maps=[], compute=[],
    )  # fmt: skip
    text = build_report(inputs(data=none), tmp_path).read_text()
    for sentence in (
        "Every subgroup is too small to show",
        "Perturbed records were not evaluated",
        "No model was fitted on a fraction",
        "Nothing of the latent space",
        "its cost is unknown",
    ):
        assert sentence in text
    assert json.loads((tmp_path / "results.json").read_text())


def test_curves_under_competing_events_are_drawn_as_incidences(monkeypatch):
    curve = {"kind": "kaplan_meier", "task": TASK, "model": "joint", "n": 50, "n_events": 9, "x": [0.0, 100.0]}
    curve |= {"value": [1.0, 0.7], "lo": [1.0, 0.6], "hi": [1.0, None]}
    drawn = []
    monkeypatch.setattr(charts, "line_panel", lambda lines, *args: drawn.append((lines, args)) or "")
    for n_competing in (0, 4):
        curves = [{**curve, "level": "quartile 1", "n_competing": n_competing}]
        blocks = report_figures.survival_curves(report_data(curves=curves))
        assert ("Aalen and Johansen" in blocks[-1].caption) == bool(n_competing)
    (plain, _), (incidence, arguments) = drawn
    assert plain["quartile 1"].value == [1.0, 0.7]
    line = incidence["quartile 1"]
    assert line.value == pytest.approx([0, 0.3]) and line.hi == pytest.approx([0, 0.4])
    assert line.lo == [0, None]
    assert arguments[2][1].label == "cumulative incidence"


def test_survival_tables_show_the_last_horizon_of_a_follow_up_of_years():
    for days, shown in (((90, 365), "AUC@365 days"), ((365, 1826, 3652), "AUC@10 years")):
        made = [record("joint", "death", f"auc_{d}", 0.7) for d in days]
        made += [record("joint", "death", m, v) for m, v in (("c_index", 0.7), ("tau", float(days[-1])))]
        (table,) = paper._survival(paper.Lookup(made), made)
        assert shown in [c.label for c in table.columns]
        assert any("Uno's C up to" in note for note in table.notes)
