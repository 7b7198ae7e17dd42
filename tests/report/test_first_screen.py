"""The first sentences of the page are those of the main outcome, with its numbers, and say what they do not know."""

import pytest
from report_samples import TASKS, record, results

from ehrwear_jax.report.first_screen import UNTESTED, at_a_glance
from ehrwear_jax.report.page import Bullets
from ehrwear_jax.report.report_data import ReportData

TASK = TASKS[1]  # the longest horizon
COHORT = [
    {"step": "all people", "n": 1010, "dropped": 0, "reason": ""},
    {"step": "people who are followed", "n": 990, "dropped": 20, "reason": "record < 30 days"},
    {"step": "people of the right age", "n": 900, "dropped": 90, "reason": "younger than 18"},
    {"step": "events of frequent codes", "n": 5, "dropped": 7_000, "reason": "rare"},
    {"step": f"{TASKS[0]}: people with enough wear", "n": 860, "dropped": 39, "reason": "too little wear"},
    {"step": f"fold0, {TASK}: people with enough wear", "n": 860, "dropped": 40, "reason": "too little wear"},
    {"step": f"fold1, {TASK}: people with enough wear", "n": 860, "dropped": 38, "reason": "too little wear"},
]
DESIGN = {"time_zero": "The end of a day.", "outcome": "The first admission.", "eligibility": "All."}


def subgroup(level, metric="auroc_gap", hi=0.1, attribute="age", **changes):
    fields = {"task": TASK, "model": "joint", "attribute": attribute, "level": level, "metric": metric, "value": -0.05}
    return fields | {"lo": -0.2, "hi": hi, "p": 0.1, "n_patients": 99, "n_positive": 9, "suppressed": False} | changes


def data(**changes):
    held = {"people": "400", "age, years: median (IQR)": "61.0 (50.0 to 70.0)", "sex: F": "220 (55.0%)"}
    fields = {
        "demographics": [{"split": "held_out", "measure": k, "value": v} for k, v in held.items()],
        "trials": [{"task": t, "kind": "binary", "competing_known": False, "design": DESIGN} for t in TASKS],
        "subgroups": [subgroup("<50"), subgroup(">=65", hi=-0.01), subgroup("M", "suppressed", attribute="sex",
                                                                              suppressed=True, value=None)],
    }  # fmt: skip
    return ReportData(**fields | changes)


def told(records=None, given=None, cohort=COHORT):
    blocks = at_a_glance(results() if records is None else records, given or data(), cohort)
    (bullets,) = [b for b in blocks if isinstance(b, Bullets)]
    return dict(bullets.items)


def test_the_five_sentences_are_of_the_main_outcome():
    found = told()
    assert list(found) == ["What was asked.", "Of whom.", "How good.", "How sure.", "For whom not."]
    assert found["What was asked."] == (
        "Hospitalization, 365 days. The first admission. Predicted at: the end of a day."
    )
    assert found["Of whom."] == (
        "1,000 predictions of 400 people from whom no model had learned; the outcome followed 120 of them (12.0%). Of "
        "these people: age, years 61.0 (50.0 to 70.0), F 220 (55.0%)."
    )
    assert found["How good."].startswith("Joint: AUROC 0.820 [0.790, 0.850]. Of 100 pairs")
    assert "the higher risk in 82; chance would in 50. What one would use instead: gradient boosting 0.810" in (
        found["How good."].replace("Gradient", "gradient")
    )
    assert "not told apart from the best other model" in found["How sure."] and "0.790 to 0.850" in found["How sure."]


def test_warnings_are_counted_where_there_is_a_threshold():
    of = {"sensitivity": 0.8, "ppv": 0.25, "tp": 96, "fp": 288}
    records = results() + [record("joint", TASK, m, v, None, None) for m, v in of.items()]
    text = told(records)["How good."]
    assert "it warned at 38% of the predictions, found 80% of the outcomes, and 25 of 100 warnings were right" in text
    hidden = results() + [record("joint", TASK, m, None if m == "tp" else v, None, None) for m, v in of.items()]
    assert "warned" not in told(hidden)["How good."]


@pytest.mark.parametrize("lo, hi, side", [(0.01, 0.03, "better than"), (-0.03, -0.01, "worse than"),
                                          (-0.01, 0.02, "not told apart from")])  # fmt: skip
def test_the_best_other_model_is_told_apart_by_the_interval(lo, hi, side):
    records = [r for r in results() if r["metric"] != "auroc_difference"]
    records.append(record("joint - gradient_boosting", TASK, "auroc_difference", (lo + hi) / 2, lo, hi))
    assert f"It is {side} the best other model" in told(records)["How sure."]


def test_who_was_left_out_who_fares_worse_and_who_is_too_few():
    text = told()["For whom not."]
    told_of = "Left out: 90 (younger than 18); 40 (too little wear); 20 (record < 30 days)."
    assert text.startswith(told_of) and "7,000" not in text and "39" not in text, "of this outcome, and of people"
    assert "Worse than in the largest group of their kind: age >=65" in text and "age <50" not in text
    assert "Too few to tell: " in text and text.endswith(UNTESTED)
    alike = told(given=data(subgroups=[subgroup("<50")]))["For whom not."]
    assert "No subgroup that is large enough to be shown was told apart" in alike
    assert "No subgroup was evaluated." in told(given=data(subgroups=[]), cohort=[])["For whom not."]


def test_what_is_not_known_is_said_or_left_out():
    records = [r for r in results() if r["task"] == "mortality"]  # a time to an event alone
    found = told(records, ReportData(), [])
    assert found["What was asked."] == "Mortality."
    assert found["Of whom."].endswith("Their age and sex are not known.")
    assert "C-index 0.770" in found["How good."] and "had it first" in found["How good."]
    alone = [r | {"lo": None, "hi": None} for r in records if r["model"] == "joint"]
    assert told(alone, ReportData(), [])["How sure."] == "No interval was computed."
    assert at_a_glance([], ReportData(), []) == []
