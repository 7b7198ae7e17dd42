"""Gains by how much is known of people, and confusion matrices at thresholds, beside another library's counts."""

import numpy as np
from sklearn.metrics import confusion_matrix

from ehrwear_jax.report import supplement
from ehrwear_jax.report.report_data import ReportData
from ehrwear_jax.report.table_model import Group, Row


def cell(level, model, metric, value, task="hrv_rmssd_7d", attribute="wear_month", **changes):
    base = {"task": task, "attribute": attribute, "level": level, "model": model, "metric": metric, "value": value}
    return base | {"lo": value - 0.25, "hi": value + 0.25, "p": 0.0123, "n_patients": 77, "n_positive": None} | changes


def test_gains_are_those_of_each_group_and_say_who_is_suppressed():
    short, long = "under a month", "a month or more"
    found = [
        cell(short, "joint", "rmse", 1.5), cell(short, "wear_only", "rmse", 2.0), cell(short, "r1", "rmse", 9.0),
        cell(short, "joint - wear_only", "rmse_difference", -0.5),
        cell(long, "joint", "suppressed", 0.0),
        cell("sparse", "joint", "c_index", 0.75, "time_to_hospitalization", "ehr"),
        cell("sparse", "joint", "auroc", 0.75, "hospitalization_90d", "ehr"),
    ]  # fmt: skip
    wear, ehr = supplement.gains(ReportData(subgroups=found))
    assert (wear.name, ehr.name) == ("gain_by_wear", "gain_sparse_ehr")
    by_model = {r.cells[0]: r.cells[1:] for r in wear.rows if isinstance(r, Row)}
    assert list(by_model) == ["Joint model (EHR + wearable)", "Wearable only"], "ablations have tables of their own"
    assert by_model["Wearable only"][1].startswith("\N{MINUS SIGN}0.500 [\N{MINUS SIGN}0.750")
    assert by_model["Wearable only"][2] == "0.012" and by_model["Joint model (EHR + wearable)"][1] == "\N{EN DASH}"
    groups = {g.title: g.detail for g in wear.rows if isinstance(g, Group)}
    assert list(groups.values()) == ["suppressed: too few patients", "77 patients"]
    assert any("less than 30 days of wear" in title for title in groups)
    assert [r.cells[1] for r in ehr.rows if isinstance(r, Row)] == ["0.750 [0.500, 1.000]"]
    assert ehr.notes == ("An encounter is a day with an event.",) and wear.notes == ()
    (_, named) = supplement.gains(ReportData(subgroups=found, encounter_codes=("VISIT", "HOSPITAL_ADMISSION")))
    assert named.notes[0].endswith("an event of a code that begins with VISIT or HOSPITAL_ADMISSION.")
    assert supplement.gains(ReportData()) == []


def test_confusion_matrices_are_scikit_learns_and_small_ones_are_hidden():
    rng = np.random.default_rng(0)
    y = rng.random(3000) < 0.2
    p = np.clip(0.2 + 0.15 * rng.standard_normal(3000) + 0.1 * y, 0, 1)
    few = np.where(np.arange(3000) < 5, 0.5, 0.01)
    (folded,) = supplement.confusion({"hospitalization_90d": {"joint": (y, p), "ehr_only": (y, few)}})
    (table,) = folded.blocks
    lines = [r.cells for r in table.rows if isinstance(r, Row)]
    assert len(lines) == 2 * len(supplement.THRESHOLDS)
    for threshold, (joint, ehr) in zip(supplement.THRESHOLDS, zip(lines[::2], lines[1::2], strict=True), strict=True):
        tn, fp, fn, tp = confusion_matrix(y, p >= threshold).ravel()
        assert [int(c.replace(",", "")) for c in joint[1:5]] == [tp, fp, tn, fn]
        assert joint[5:] == tuple(f"{x:.3f}" for x in (tp / (tp + fn), tn / (tn + fp), tp / (tp + fp)))
        assert set(ehr[1:]) == {"hidden"}, "five people are positive, which a rate would tell"
    assert supplement.confusion({}) == []
