"""What a target-trial table says: outcomes by horizon against counts by hand, few people hidden, designs as written."""

import json
from datetime import datetime

import numpy as np
import polars as pl
import pytest
import small_run

from ehrwear_jax.evals.survival import FollowUp
from ehrwear_jax.stages import prepare, target_trial

DESIGN = {part: f"{part} in words (3 people), for (40 people)." for part in
          ("time_zero", "eligibility", "outcome", "follow_up", "competing_events", "censoring")}  # fmt: skip


def followed(counts):
    """FollowUp and people of counts = {(days, code): people}, one prediction time each."""
    time, code = (np.concatenate([np.full(n, key[k]) for key, n in counts.items()]) for k in (0, 1))
    return FollowUp(time.astype(float), code == 1, code == 2), np.arange(len(time))


def test_outcomes_at_a_horizon_are_counted_once_each():
    counts = {(10, 1): 30, (90, 1): 20, (91, 1): 15, (50, 2): 12, (90, 2): 3, (200, 2): 11, (40, 0): 25, (90, 0): 14,
              (300, 0): 50}  # fmt: skip
    found = target_trial.outcomes(*followed(counts), 90.0, limit=1)
    # followed up to the horizon itself is free of both; an event on its day is one
    assert found == {"days": 90.0, "times": 180, "event": 50, "competing": 15, "censored": 25, "free": 90}
    later = target_trial.outcomes(*followed(counts), 250.0, limit=1)
    assert (later["event"], later["competing"], later["censored"], later["free"]) == (65, 26, 39, 50)


def test_few_people_are_hidden_with_the_part_that_would_tell_them():
    follow_up, people = followed({(10, 1): 30, (50, 2): 4, (40, 0): 25, (300, 0): 50})
    found = target_trial.outcomes(follow_up, people, 90.0, limit=10)
    assert (found["event"], found["competing"], found["censored"], found["free"]) == (30, None, None, 50)
    one_person = target_trial.outcomes(follow_up, np.where(people < 30, 0, people), 90.0, limit=10)
    assert one_person["event"] is None  # thirty prediction times of one person
    times = pl.DataFrame({"subject_id": [*range(12), 1, 2], "split": ["train"] * 5 + ["held_out"] * 9})
    assert target_trial.splits(times, 6) == [{"split": "train", "people": None, "times": None},
                                             {"split": "held_out", "people": 9, "times": 9}]  # fmt: skip


def test_counts_of_few_people_leave_the_words():
    assert target_trial.without_few("To death (1,200 people), or a guess (45 people).", 10).count("people") == 2
    assert target_trial.without_few("To death (1,200 people), or a guess (5 people).", 10) == "To death, or a guess."


def test_steps_of_a_task_are_those_that_name_it(tmp_path, monkeypatch):
    small_run.write_inputs(tmp_path)
    config = small_run.small_config(tmp_path)
    plan = small_run.plan_of(config, tmp_path / "run")
    names = ("people", "prediction times", "events of relapse up to the end of follow-up", "label rows relapse_30d",
             "label rows relapse_90d", "label rows other_90d", "relapse_90d: age")  # fmt: skip
    steps = [{"step": name, "n": 1000 + i, "dropped": 0, "reason": ""} for i, name in enumerate(names)]
    monkeypatch.setattr(prepare, "counts", lambda plan: steps)
    (tmp_path / "labels" / "design.json").write_text(json.dumps(DESIGN))
    found = target_trial.described(plan, [{"task": "relapse_90d"}, {"task": "readmission"}, {"task": "relapse"}])
    assert [s["step"] for s in found[0]["steps"]] == [names[1], names[2], names[4], names[6]]
    assert found[0]["design"] is None  # the folder has no such table
    assert found[1]["design"] == {part: f"{part} in words, for." for part in DESIGN}


def test_saved_predictions_have_what_their_labels_tell():
    base = {"subject_id": np.arange(100), "prediction_time": [datetime(2020, 1, 1)] * 100}
    binary = target_trial.of_saved("death_90d", pl.DataFrame(base | {"boolean_value": np.arange(100) < 20}), 10)
    assert binary["design"] is None and not binary["competing_known"]
    (o,) = binary["outcomes"]
    assert (o["days"], o["times"], o["event"], o["free"], o["censored"]) == (90.0, 100, 20, 80, None)
    days = {"time_to_event_days": np.linspace(1, 400, 100), "event_observed": np.arange(100) % 2 == 0}
    survival = target_trial.of_saved("death", pl.DataFrame(base | days), 10, (30.0, 365.0, 1000.0))
    assert [o["days"] for o in survival["outcomes"]] == [30.0, 365.0]  # follow-up ends before the last
    for o in survival["outcomes"]:
        at = days["time_to_event_days"] <= o["days"]
        if o["event"] is not None:
            assert o["event"] == (at & days["event_observed"]).sum() == pytest.approx(o["event"])
    assert target_trial.of_saved("sleep", pl.DataFrame(base | {"float_value": np.ones(100)}), 10)["outcomes"] == []
