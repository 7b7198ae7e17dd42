"""The target-trial table: every part of every task, in its own words or as what is not known."""

from report_samples import inputs

from ehrwear_jax.report import target_trial_table
from ehrwear_jax.report.build import build_report
from ehrwear_jax.report.report_data import ReportData
from ehrwear_jax.report.table_model import Group, Table, to_markdown

DESIGN = {part: f"{part} in words." for part in target_trial_table.PARTS}
SPLITS = [{"split": "train", "people": 1200, "times": 3400}, {"split": "held_out", "people": None, "times": None}]


def outcome(days=90.0, **changes):
    base = {"days": days, "times": 4321, "event": 321, "competing": 45, "censored": 955, "free": 3000}
    return base | changes


def trial(task="hospitalization_90d", **changes):
    base = {"task": task, "kind": "binary", "competing_known": True, "design": DESIGN, "splits": SPLITS,
            "outcomes": [outcome()]}  # fmt: skip
    steps = [{"step": "prediction times", "n": 5000, "dropped": None, "reason": ""}]
    return base | {"steps": steps} | changes


def tables(*trials):
    section = target_trial_table.target_trial(ReportData(trials=trials))
    return [b for b in section.blocks if isinstance(b, Table)]


def test_tasks_of_one_design_share_their_parts_and_have_their_own_outcomes():
    design, outcomes = tables(trial(), trial("hospitalization_365d", outcomes=[outcome(365.0, competing=None)]),
                              trial("death_90d", design=DESIGN | {"outcome": "Death."}))  # fmt: skip
    titles = [r.title for r in design.rows if isinstance(r, Group)]
    assert titles == ["Hospitalization, 90 days; Hospitalization, 365 days", "Death, 90 days"]
    rows = [r.cells for r in design.rows if not isinstance(r, Group)]
    assert [r[0] for r in rows] == ["Time zero", "Eligibility", "Outcome", "Follow-up", "Competing events",
                                    "Censoring"] * 2  # fmt: skip
    assert rows[0][1] == "time_zero in words." and rows[8][1] == "Death."
    assert rows[1][1] == ("eligibility in words. With a label at hospitalization, 90 days: train 1,200 people, 3,400 "
                          "prediction times; held out hidden.")  # fmt: skip
    assert [r.cells for r in outcomes.rows][:2] == [
        ("Hospitalization, 90 days", "90", "4,321", "321", "45", "955", "3,000"),
        ("Hospitalization, 365 days", "365", "4,321", "321", "hidden", "955", "3,000"),
    ]


def test_of_tables_made_elsewhere_it_says_what_is_not_known():
    untold = outcome(None, competing=None, censored=None, untold=True)
    binary = trial(design=None, competing_known=False, outcomes=[untold], steps=[])
    survival = trial("death", kind="survival", design=None, competing_known=True, steps=[])
    design, outcomes = tables(binary, survival, trial("sleep", kind="regression", design=None, outcomes=[], steps=[]))
    text = to_markdown(design)
    assert text.count("by the label table") >= 11 and "in words" not in text
    assert (
        "Column competing\\_event of the label table." in text or "Column competing_event of the label table." in text
    )
    assert "None: a measurement, not an event." in text
    assert outcomes.rows[0].cells[1:] == ("–", "4,321", "321", "not told", "not told", "3,000")


def test_every_report_has_the_section(tmp_path):
    build_report(inputs(data=ReportData(trials=[trial()])), tmp_path / "with")
    text = (tmp_path / "with" / "report.md").read_text()
    assert "## Target trial" in text and "| Time zero | time_zero in words. |" in text
    assert "| prediction times | 5,000 | hidden |" in text
    assert (tmp_path / "with" / "tables" / "target_trial.csv").exists()
    build_report(inputs(), tmp_path / "without")
    assert "Nothing is known of how the tasks were made." in (tmp_path / "without" / "report.md").read_text()
