"""Eligibility and hold-outs in a run: which prediction times are used, what is cut, and what the counts say."""

import dataclasses
from datetime import datetime, timedelta

import polars as pl
import pytest
import small_run

from ehrwear_jax import config as config_lib
from ehrwear_jax.config.data import CohortConfig, DataConfig
from ehrwear_jax.data.formats import meds
from ehrwear_jax.stages import eligibility, embed, evaluate_subgroups, prepare, tasks
from ehrwear_jax.stages.embed import KEYS
from ehrwear_jax.stages.labels import Labels

DATE = datetime(2016, 1, 15)
CRITERIA = {"min_ehr_days": 200.0, "min_age_years": 25.0, "max_age_years": 80.0}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("eligibility")
    small_run.write_inputs(root)
    return root


def plan_of(root, changes, out="run"):
    config = small_run.small_config(root)
    for part, values in changes.items():
        config[part].update(values)
    config_lib.check(config_lib.parse(config))
    return small_run.plan_of(config, root / out)


def made(root, changes):
    plan = plan_of(root, changes)
    prepare.run(plan)
    return plan


def first_events(plan):
    events = pl.read_parquet(plan.tables.folder / "events" / "*.parquet")
    return dict(events.group_by("subject_id").agg(pl.col("time").min()).iter_rows())


def test_only_eligible_prediction_times_are_evaluated_and_everybody_has_a_record(root):
    plan = made(root, {"cohort": CRITERIA | {"pretraining": "everybody"}})
    first = first_events(plan)
    births = dict(pl.read_parquet(plan.tables.folder / "subjects.parquet").select("subject_id", "birth_time").rows())
    for task in plan.config.evaluate.tasks:
        given, kept = Labels(plan).given(task), Labels(plan).table(task)
        want = [
            (s, t) for s, t in given.select(KEYS).iter_rows()
            if first.get(s) is not None and (t - first[s]).days >= 200 and 25 <= (t - births[s]).days / 365.25 < 81
        ]  # fmt: skip
        assert kept.select(KEYS).rows() == want and 0 < len(want) < given.height
        assert kept.equals(given.join(kept, on=KEYS, how="semi", maintain_order="left")), "labels are as they were"
        assert pl.concat([tasks.read(plan, task).of(s) for s in tasks.SPLITS]).height == len(want)
        steps = [c for c in prepare.counts(plan) if c["step"].startswith(f"{task}: ")]
        assert [c["step"].removeprefix(f"{task}: ") for c in steps] == [
            "prediction times", "people with a prediction time",
            "prediction times with enough EHR history", "people with enough EHR history",
            "prediction times of the right age", "people of the right age",
        ]  # fmt: skip
        assert steps[0]["n"] == given.height and steps[-2]["n"] == len(want)
        assert steps[-1]["n"] == kept["subject_id"].n_unique()
        assert sum(s["dropped"] for s in steps[::2]) == given.height - len(want)
    assert pl.read_parquet(plan.records.folder / "index.parquet").height == small_run.N_SUBJECTS


def test_criteria_on_prediction_times_train_no_network_again_and_change_what_is_scored(root):
    plain = plan_of(root, {})
    judged = plan_of(root, {"cohort": CRITERIA | {"pretraining": "everybody"}})
    other = plan_of(root, {"cohort": CRITERIA | {"pretraining": "everybody", "min_age_years": 30.0}})
    for trained in plain.trained():
        assert plain.pretrained(trained).digest == judged.pretrained(trained).digest
    digests = {Labels(p).digest("readmission") for p in (plain, judged, other)}
    assert len(digests) == 3


def test_the_criteria_stand_in_the_design_of_a_task():
    told = {"time_zero": "A day.", "eligibility": "Alive."}
    config = CohortConfig(min_age_years=18.0)
    assert eligibility.design(config, told) == {
        "eligibility": "Alive. At the prediction time, by what is known then: an age of 18 or more years."
    }
    assert eligibility.design(CohortConfig(), told) == {}


def test_a_task_that_was_not_judged_says_so(root):
    plan = plan_of(root, {"cohort": {"min_wear_days": 2, "pretraining": "everybody"}}, "empty")
    with pytest.raises(FileNotFoundError, match="readmission-.*eligible is not known yet: run the prepare stage"):
        Labels(plan).table("readmission")


# ------------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(("changes", "message"), [
    ({"cohort": {"min_wear_days": 3}}, "set --config.cohort.cutoff to a date.* or --config.cohort.pretraining=every"),
    ({"cohort": {"max_age_years": 89.0, "cutoff": "2019-01-01"}, "prepare": {"max_age_years": 89.0}},
     "config.prepare.max_age_years is 89: older people cannot be told"),
    ({"cohort": {"cutoff": "2019-01-01"}, "prepare": {"shift_days": 30}}, "need true dates, which config.prepare"),
    ({"data": {"holdout": "temporal:2019-01-01"}, "prepare": {"shift_days": 30}}, "need true dates"),
])  # fmt: skip
def test_what_would_select_by_the_future_is_refused(root, changes, message):
    with pytest.raises(ValueError, match=message):
        plan_of(root, changes)


def test_a_cut_off_everybody_or_a_temporal_hold_out_make_criteria_usable(root):
    for more in ({"cutoff": "2016-01-01"}, {"pretraining": "everybody"}):
        plan_of(root, {"cohort": {"min_wear_days": 3} | more})
    plan_of(root, {"cohort": {"min_wear_days": 3}, "data": {"holdout": "temporal:2016-01-01"}})


# ------------------------------------------------------------------------------------------------------- hold-outs
def test_a_temporal_hold_out_leaves_no_later_time_or_outcome_to_training(root):
    plan = made(root, {"data": {"holdout": f"temporal:{DATE:%Y-%m-%d}", "holdout_gap_days": 30.0}})
    times = embed.prediction_times(plan, "all")
    later, held = times["prediction_time"] >= DATE, times["split"] == "held_out"
    assert (later == held).all() and 0 < held.sum() < times.height
    days = (pl.lit(DATE) - pl.col("prediction_time")).dt.total_microseconds() / 86_400e6
    for task in plan.config.evaluate.tasks:
        found, given = tasks.read(plan, task), Labels(plan).given(task)
        learned = pl.concat([found.of(s) for s in ("train", "tuning")])
        assert learned.height and found.of("held_out").height
        if task == "relapse":
            assert (learned["time_to_event_days"] <= learned.select(days).to_series() + 1e-9).all()
            before = learned.join(given, on=KEYS, suffix="_given", maintain_order="left")
            censored = before.filter(pl.col("time_to_event_days") != pl.col("time_to_event_days_given"))
            assert censored.height > 3 and not censored["event_observed"].any()
            same = before.filter(pl.col("time_to_event_days") == pl.col("time_to_event_days_given"))
            assert (same["event_observed"] == same["event_observed_given"]).all() and same.height
        else:
            assert (learned.select(days).to_series() >= 30).all()
        steps = [c for c in prepare.counts(plan) if c["step"].startswith(f"{task}: ")]
        splits = [c for s in tasks.SPLITS for c in steps if f" {s} " in c["step"]]
        assert [c["n"] for c in splits] == [found.of(s).height for s in tasks.SPLITS]
        assert sum(c["n"] + c["dropped"] for c in splits) == given.height
    assert set(evaluate_subgroups.attributes(plan, "all").select(KEYS).rows()) == set(times.select(KEYS).rows())


def test_outcomes_that_were_not_known_at_the_date_go_whatever_they_are():
    day = timedelta(days=1)
    rows = [(1, DATE - 31 * day, True, "train"), (2, DATE - 29 * day, True, "train"),
            (3, DATE - 29 * day, False, "tuning"), (4, DATE + day, True, "held_out")]  # fmt: skip
    columns = ["subject_id", "prediction_time", "boolean_value", "split"]
    table = pl.DataFrame(rows, columns, orient="row").cast({"prediction_time": pl.Datetime("us")})
    data = DataConfig(holdout=f"temporal:{DATE:%Y-%m-%d}")
    got = eligibility.known_by_then(table, "hospitalization_30d", data)
    assert got["subject_id"].to_list() == [1, 4]
    gap = dataclasses.replace(data, holdout_gap_days=10.0)
    assert eligibility.known_by_then(table, "mortality", gap)["subject_id"].to_list() == [1, 2, 3, 4]
    assert eligibility.known_by_then(table, "mortality", DataConfig()).equals(table)
    with pytest.raises(
        ValueError, match="outcome of mortality is known cannot be told .*--config.data.holdout_gap_days"
    ):
        eligibility.known_by_then(table, "mortality", data)


def test_a_competing_event_after_the_date_is_not_known_either():
    table = pl.DataFrame(
        {
            "subject_id": [1, 2],
            "prediction_time": [DATE - timedelta(days=100)] * 2,
            "time_to_event_days": [50.0, 150.0],
            "event_observed": [False, False],
            "competing_event": [True, True],
            "split": ["train", "train"],
        }
    ).cast({"prediction_time": pl.Datetime("us")})
    got = eligibility.known_by_then(table, "x", DataConfig(holdout=f"temporal:{DATE:%Y-%m-%d}"))
    assert got["time_to_event_days"].to_list() == [50.0, 100.0] and got["competing_event"].to_list() == [True, False]


# ------------------------------------------------------------------------------------------------------- seeds
def digests(plan):
    return {f"{a.kind}/{a.name}": a.digest for a in prepare.artifacts(plan)}


def test_people_times_labels_and_splits_depend_on_the_seed_of_the_data_and_on_no_seed_of_a_model(tmp_path):
    small_run.write_inputs(tmp_path, small_run.FOLDS)
    meds.splits_path(tmp_path / "raw" / "meds").unlink()

    def plan(seeds, seed, n_folds=0):
        config = small_run.small_config(tmp_path)
        config.seeds = seeds
        config.data.update({"labels_dir": "", "seed": seed, "n_folds": n_folds})
        config.evaluate.update({"tasks": ("hospitalization_30d", "hospitalization_90d")})
        config.report.reliability_task = ""
        return small_run.plan_of(config, tmp_path / "run")

    for n_folds in (0, 2):
        one, more, other = plan((0,), 0, n_folds), plan((3, 4, 5), 0, n_folds), plan((0,), 1, n_folds)
        assert digests(one) == digests(more), (
            "what is made of the data is the same folder, whatever models are seeded by"
        )
        changed = {k for k, v in digests(one).items() if digests(other)[k] != v}
        folds = {f"fit/fold{k}" for k in range(n_folds)} or {"fit/all"}
        assert changed == {"labels/hospitalization", *folds}
    one, other = plan((0,), 0), plan((0,), 1)
    for p in (one, other):
        prepare.run(p)
    times = [Labels(p).prediction_times(p.config.evaluate.tasks) for p in (one, other)]
    splits = [pl.read_parquet(p.fit("all").folder / "subjects.parquet")["split"] for p in (one, other)]
    assert not times[0].equals(times[1]) and not splits[0].equals(splits[1])


def test_simulated_people_depend_on_the_seed_of_the_data_alone():
    def raw(seeds, seed):
        config = config_lib.base()
        config.seeds = seeds
        config.data.update({"source": "synthetic", "seed": seed})
        return small_run.plan_of(config, "nowhere").raw.digest

    assert raw((0,), 0) == raw((1, 2), 0) != raw((0,), 1)
