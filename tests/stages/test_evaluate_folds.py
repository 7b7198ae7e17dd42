"""What is chosen or estimated in a fold comes from that fold's own training or tuning people, whatever others are."""

import datetime
import types

import numpy as np
import polars as pl
import pytest

from ehrwear_jax.evals import classification, survival
from ehrwear_jax.stages import evaluate, evaluate_censoring, evaluate_score
from ehrwear_jax.stages.embed import KEYS
from ehrwear_jax.stages.tasks import BINARY, Task, TaskFold

N, DAY = 240, datetime.datetime(2020, 1, 1)
HORIZON = 90.0


def split_of(subject, fold):
    """Of two folds: half of the people are held out in each, the others are in training and tuning."""
    return "held_out" if subject % 2 == fold else ("tuning" if subject % 3 == 0 else "train")


def event_times(seed=0):
    """The table time_to_x of N people."""
    rng = np.random.default_rng(seed)
    event, death, end = rng.exponential(150, N), rng.exponential(300, N), rng.uniform(10, 400, N)
    end = np.where(np.arange(N) % 2, end, 1.5 * end)  # the folds' censoring differs
    time = np.round(np.minimum(np.minimum(event, death), end), 3)
    return pl.DataFrame(
        {"subject_id": np.arange(N), "prediction_time": [DAY] * N, "time_to_event_days": time,
         "event_observed": event <= np.minimum(death, end), "competing_event": death < np.minimum(event, end)}
    )  # fmt: skip


def binary_task(times):
    """The task x_90d: the rows whose label is known."""
    code = np.where(times["competing_event"], 2, times["event_observed"].cast(int))
    y, known = survival.horizon_labels(times["time_to_event_days"], code, HORIZON)
    table = times.select(KEYS).with_columns(boolean_value=pl.Series(y)).filter(pl.Series(known))
    folds = []
    for k in (0, 1):
        split = [split_of(s, k) for s in table["subject_id"]]
        with_split = table.with_columns(split=pl.Series(split), group_id=pl.col("subject_id"))
        folds.append(TaskFold(f"fold{k}", k, BINARY, with_split))
    return Task("x_90d", BINARY, "boolean_value", "digest", tuple(folds))


@pytest.fixture
def weights(monkeypatch):
    """times -> (weight of each held-out row, FollowUp), as the stage computes them."""

    def of(times):
        monkeypatch.setattr(evaluate_censoring, "event_times", lambda plan, name: times)
        people = {f"fold{k}": [s for s in range(N) if split_of(s, k) == "train"] for k in (0, 1)}
        monkeypatch.setattr(
            evaluate_censoring, "_training_people", lambda plan, fold: pl.DataFrame({"subject_id": people[fold]})
        )
        task = binary_task(times)
        return task, *evaluate_censoring.time_behind(types.SimpleNamespace(), task)

    return of


def test_weights_of_a_fold_are_those_of_its_training_people(weights):
    times = event_times()
    task, factor, follow_up = weights(times)
    held = task.of("held_out")
    assert follow_up.any_competing and held.height == len(factor)
    for k in (0, 1):
        train = times.filter(pl.Series([split_of(s, k) == "train" for s in range(N)]))
        code = np.where(train["competing_event"], 2, train["event_observed"].cast(int))
        censoring = survival.censoring_survival(train["time_to_event_days"], code)
        mine = task.fold_N == k
        own = follow_up.of(mine)
        expected = survival.horizon_factor(censoring, own.time_N, own.code_N, HORIZON)
        np.testing.assert_array_equal(factor[mine], expected)
    assert factor.sum() == pytest.approx(N, rel=0.06)  # they stand for everybody


def test_labels_of_held_out_and_of_tuning_people_change_no_weight_of_their_fold(weights):
    """Somebody whose label is unknown is censored earlier: G changes where they are in training, and only there."""
    times = event_times()
    task, before, _ = weights(times)
    censored = times.filter(~pl.col("event_observed") & ~pl.col("competing_event"))
    early = censored.filter(pl.col("time_to_event_days") < 80)["subject_id"].to_list()
    tested = set()
    for subject in early[:8]:
        at = pl.when(pl.col("subject_id") == subject).then(5.0).otherwise(pl.col("time_to_event_days"))
        _, after, _ = weights(times.with_columns(time_to_event_days=at))
        for k in (0, 1):
            changed = bool((after != before)[task.fold_N == k].any())
            assert changed == (split_of(subject, k) == "train")
            tested.add((split_of(subject, k), changed))
    assert tested >= {("held_out", False), ("train", True), ("tuning", False)}


def test_thresholds_of_a_fold_are_those_of_its_tuning_people():
    task, rng = binary_task(event_times()), np.random.default_rng(0)
    p_N = {s: rng.random() for s in range(N)}
    tuning = {"m": np.array([p_N[s] for s in task.of("tuning")["subject_id"]])}
    before = evaluate.operating_points(task, tuning, 0.8)["m"]
    assert len(set(before)) == 2 and len(before) == len(task.fold_N)
    for k, fold in enumerate(task.folds):
        mine = fold.of("tuning")
        p = np.array([p_N[s] for s in mine["subject_id"]])
        expected = classification.sensitivity_threshold(mine["boolean_value"].to_numpy(), p, 0.8)
        assert set(before[task.fold_N == k]) == {expected}
        # everybody else's label may be anything
        other = ~pl.col("boolean_value") if k == 0 else pl.lit(True)
        flipped = pl.when(pl.col("split") == "tuning").then("boolean_value").otherwise(other).alias("boolean_value")
        faulty = TaskFold(fold.name, k, BINARY, fold.times.with_columns(flipped))
        folds = tuple(faulty if i == k else f for i, f in enumerate(task.folds))
        changed = Task(task.name, BINARY, "boolean_value", "digest", folds)
        np.testing.assert_array_equal(evaluate.operating_points(changed, tuning, 0.8)["m"], before)


def test_a_fold_without_positives_to_tune_on_gives_no_threshold():
    task = binary_task(event_times())
    nobody = task.folds[0].times.with_columns(boolean_value=pl.lit(False))
    folds = TaskFold("fold0", 0, BINARY, nobody), task.folds[1]
    tuning = {"m": np.zeros(task.of("tuning").height)}
    assert evaluate.operating_points(Task("x", BINARY, "boolean_value", "", folds), tuning, 0.8) == {}


def test_confusion_matrices_apply_the_threshold_of_the_row_s_fold():
    task, rng = binary_task(event_times()), np.random.default_rng(1)
    y, p = task.of("held_out")["boolean_value"].to_numpy(), rng.random(len(task.fold_N))
    threshold = np.where(task.fold_N == 0, 0.2, 0.7)
    cohort = evaluate_score.Cohort(task.group_N)
    spec = evaluate.task_spec(evaluate.EvaluateConfig(n_resamples=0), "d", "t", 0, task.group_N)
    found = evaluate_score.score_binary(spec, {"m": p}, y, cohort, operating_points={"m": threshold})["records"]
    by_metric = {r["metric"]: r["value"] for r in found}
    assert by_metric["tp"] == (y & (p >= threshold)).sum() and by_metric["fp"] == (~y & (p >= threshold)).sum()
    assert by_metric["threshold"] == pytest.approx(threshold.mean())


def test_a_regression_is_in_standard_deviations_of_the_row_s_fold():
    rng = np.random.default_rng(0)
    y, p, sd = rng.normal(size=40), rng.normal(size=40), np.where(np.arange(40) < 15, 1.0, 3.0)
    spec = evaluate.task_spec(evaluate.EvaluateConfig(n_resamples=0), "d", "t", 0, np.arange(40))
    found = evaluate_score.score_regression(spec, {"m": p}, y, evaluate_score.Cohort(np.arange(40)), train_sd=sd)
    by_metric = {r["metric"]: r["value"] for r in found["records"]}
    assert by_metric["rmse_sd"] == pytest.approx(np.sqrt(np.mean(((y - p) / sd) ** 2)))
