"""The page has every table and figure of the paper, or says in one sentence why not. The list is the paper's."""

import re

import pytest
import report_samples
from report_samples import record

from ehrwear_jax.config.variants import TABLES
from ehrwear_jax.report import build, checklist
from ehrwear_jax.report.page import Text
from ehrwear_jax.report.report_data import ReportData
from ehrwear_jax.report.result_records import check_records

# sections 3.6 to 5.6 and appendix A of the paper
NUMBERED = [f"Table {n}" for n in range(1, 10)]
SUPPLEMENT = [
    "extended ablations", "demographics", "prevalence", "confusion matrices at key thresholds", "effect sizes",
    "age, sex and device", "device-hours", "length of wear", "sparse", "deciles", "decision curves", "share of labels",
    "noise", "mechanistic", "geometry", "trajectories", "attention",
]  # fmt: skip
BINARY = [f"hospitalization_{h}d" for h in (30, 90, 180, 365)]
MODELS = ("joint", "late_fusion", *TABLES["table4"], *TABLES["a6"])


def rows(inputs):
    """({what: (yes or no, where or why)}, the sections) of a page."""
    page = build.report_page(inputs, check_records(inputs.results, inputs.dataset))
    (table,) = next(s for s in page.sections if s.identifier == "listed").blocks
    return {row.cells[0]: row.cells[1:] for row in table.rows}, page.sections


def cell(attribute, level, metric, model="joint", task="time_to_death", value=0.7, **changes):
    base = {"dataset": "simulated", "n_patients": 80, "n_positive": None, "p": 0.25, "lo": 0.6, "hi": 0.8}
    base |= {"task": task, "attribute": attribute, "level": level, "model": model, "metric": metric, "value": value}
    return base | changes


@pytest.fixture(scope="module")
def full():
    """Inputs of a page of all kinds of tasks."""
    results = [record(m, t, metric, 0.7) for m in MODELS for t in BINARY for metric in ("auroc", "auprc", "brier")]
    for metric, value in (("tp", 50.0), ("fp", 60.0), ("tn", 70.0), ("fn", 20.0), ("threshold", 0.2),
                          ("sensitivity", 0.7), ("specificity", 0.5), ("ppv", 0.4)):  # fmt: skip
        results.append(record("joint", BINARY[-1], metric, value, None, None))
    results.append(record("joint - late_fusion", BINARY[-1], "auroc_difference", 0.02, -0.01, 0.05))
    results += [record(m, "sleep_efficiency_7d", metric, 0.1) for m in MODELS[:2] for metric in ("rmse", "r2")]
    results += [record(m, "time_to_death", "c_index", 0.7) for m in MODELS[:2]]
    of_main = (("age", ">65"), ("sex", "female"), ("device", "watch"), ("ehr", "sparse"))
    subgroups = [cell(attribute, level, "auroc", task=BINARY[-1]) for attribute, level in of_main]
    subgroups.append(cell("ehr", "sparse", "c_index"))
    subgroups.append(cell("wear_month", "under a month", "rmse", task="sleep_efficiency_7d"))
    prevalence = {"task": BINARY[-1], "split": "held_out", "people": 100, "times": 200, "positives": 30,
                  "median_days": None, "hidden": False}  # fmt: skip
    data = ReportData(
        subgroups=subgroups,
        prevalence=[prevalence],
        demographics=[{"measure": "people", "split": "held_out", "value": "100"}],
        compute=[{"Model": "joint", "Parameters": "1,234"}],
        curves=[{"kind": "decision", "task": BINARY[-1], "model": "joint", "x": [0.1, 0.2], "value": [0.1, 0.05],
                 "lo": [0.0, 0.0], "hi": [0.2, 0.1]}],
        main_task=BINARY[-1],
    )  # fmt: skip
    predictions = {t: dict(report_samples.predictions()[report_samples.TASKS[0]]) for t in BINARY}
    return report_samples.inputs(results=results, data=data, predictions=predictions)


def test_the_list_is_the_papers(full):
    found, _ = rows(full)
    assert [what.split(":")[0] for what in found][:9] == NUMBERED
    others = list(found)[9:]
    assert len(others) == len(SUPPLEMENT)
    for words, what in zip(SUPPLEMENT, others, strict=True):
        assert words in what


def test_a_run_of_all_kinds_of_tasks_fills_every_numbered_table(full):
    found, sections = rows(full)
    lacking = {what: why for what, (here, why) in found.items() if here == "no"}
    assert [w for w in lacking if w.startswith(("Table", "A.6"))] == []
    assert sorted(w.split(": ")[0] for w in lacking) == [
        "A.7", "Section 4", "Section 5.4", "Section 5.6", "Sections 4 and 5.5"
    ], "of no stage interpret"  # fmt: skip
    paper = next(s for s in sections if s.identifier == "paper")
    assert not [b for b in paper.blocks if isinstance(b, Text) and "not filled" in b.text]
    calibration = next(s for s in sections if s.identifier == "calibration")
    text = str(calibration)
    assert all(f"Hospitalization, {h} days" in text for h in (30, 90, 180, 365)), "reliability at all horizons"


@pytest.mark.parametrize("changes", [{}, {"results": [record("joint", "time_to_death", "c_index", 0.7)]}])
def test_what_is_absent_has_one_sentence_of_why(changes):
    empty = {"results": [], "predictions": {}, "losses": {}, "trajectories": (), "cohort": ()}
    found, _ = rows(report_samples.inputs(**(empty | changes)))
    assert len(found) == len(NUMBERED) + len(SUPPLEMENT)
    for what, (here, why) in found.items():
        if here == "no":
            assert re.fullmatch(r"\S.*\.", why) and len(why) > 20 and "section" not in why.split()[0], what
        else:
            assert (what, changes) in [("Table 3: longitudinal risk", changes)] and changes


def test_every_item_names_a_section_of_the_page(full):
    _, sections = rows(full)
    assert {item.section for item in checklist.ITEMS} <= {s.identifier for s in sections}
