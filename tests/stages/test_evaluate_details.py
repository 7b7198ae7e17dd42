"""What the evaluate stage adds to the main numbers, each part against its definition or a library."""

import json

import numpy as np
import polars as pl
import pytest
import small_run
from sklearn.metrics import mean_squared_error, roc_auc_score
from sksurv.metrics import (
    concordance_index_ipcw,
    cumulative_dynamic_auc,
    integrated_brier_score,
)
from sksurv.util import Surv
from small_run import value

from ehrwear_jax.evals import classification, recalibration, subgroups, survival
from ehrwear_jax.evals.builders import PredictedCurves
from ehrwear_jax.evals.estimates import Resampling
from ehrwear_jax.evals.protocol import TaskSpec
from ehrwear_jax.evals.survival import FollowUp
from ehrwear_jax.stages import (
    evaluate,
    evaluate_curves,
    evaluate_score,
    evaluate_subgroups,
    predictors,
    prepare,
    tasks,
)
from ehrwear_jax.stages.embed import KEYS
from ehrwear_jax.stages.labels import Labels

TASKS = ("readmission", "relapse", "sleep")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """(config, plan, records, details, labels) after the stage."""
    root = tmp_path_factory.mktemp("details")
    labels = small_run.write_inputs(root)
    rng = np.random.default_rng(1)
    sleep = labels["readmission"].select(KEYS)
    sleep = sleep.with_columns(float_value=pl.Series(rng.normal(size=sleep.height), dtype=pl.Float32))
    sleep.write_parquet(root / "labels" / "sleep.parquet")
    labels["sleep"] = sleep
    config = small_run.small_config(root)
    config.evaluate.update({"tasks": TASKS, "min_patients": 2, "min_per_class": 1, "label_fractions": ()})
    config.evaluate.update({"horizons_days": (90.0, 200.0), "min_horizon_events": 1})
    for name in ("gradient_boosting_ehr", "gradient_boosting_wear"):
        del config.models[name]
    config.models.stacked = {"family": "stacked", "members": ("ehr_only", "wear_only", "age_sex")}
    config.models.stacked_tables = {"family": "stacked", "members": ("linear_table", "age_sex")}
    plan = small_run.plan_of(config, root / "run")
    prepare.run(plan)
    small_run.write_embeddings(plan, small_run.telling_latents(labels))
    evaluate.run(plan)
    return config, plan, *evaluate.results(plan), labels


def predictions(plan, task, model, kind="predictions"):
    return pl.read_parquet(scores(plan, task) / kind / f"{model}.parquet")


def scores(plan, task):
    return evaluate.scores(plan, tasks.read(plan, task)).folder


def train_labels(plan, task):
    subjects = pl.read_parquet(plan.fit("all").folder / "subjects.parquet").filter(pl.col("split") == "train")
    return Labels(plan).table(task).join(subjects, on="subject_id", how="semi")


def test_regression_tasks_are_ridge_probes_scored_in_their_unit(done):
    _, plan, records, *_ = done
    sd = train_labels(plan, "sleep")["float_value"].std()
    for model in ("joint", "linear_table", "training_mean", "late_fusion"):
        table = predictions(plan, "sleep", model)
        rmse = np.sqrt(mean_squared_error(table["float_value"], table["predicted_float_value"]))
        assert value(records, "sleep", model, "rmse") == pytest.approx(rmse, abs=1e-6)
        assert value(records, "sleep", model, "rmse_sd") == pytest.approx(rmse / sd, rel=1e-5)
    mean = predictions(plan, "sleep", "training_mean")["predicted_float_value"].unique().to_list()
    assert mean == [pytest.approx(train_labels(plan, "sleep")["float_value"].mean(), abs=1e-6)]
    assert value(records, "sleep", "joint", "rmse") < value(records, "sleep", "training_mean", "rmse")
    assert value(records, "sleep", "joint - training_mean", "rmse_difference") < 0


def test_survival_metrics_equal_scikit_survival(done):
    _, plan, records, *_ = done
    table, train = predictions(plan, "relapse", "joint"), train_labels(plan, "relapse")
    y_train, y = (Surv.from_arrays(t["event_observed"].to_numpy(), t["time_to_event_days"].to_numpy())
                  for t in (train, table))  # fmt: skip
    risk = table["predicted_log_hazard"].to_numpy()
    auc, _ = cumulative_dynamic_auc(y_train, y, risk, [90.0, 200.0])
    for horizon, expected in zip((90, 200), auc, strict=True):
        assert value(records, "relapse", "joint", f"auc_{horizon}") == pytest.approx(expected, abs=1e-6)
    expected = concordance_index_ipcw(y_train, y, risk, tau=200.0)[0]
    assert value(records, "relapse", "joint", "uno_c") == pytest.approx(expected, abs=1e-6)
    # the integral of the two saved horizons alone, through the same scoring
    horizons = np.array([90.0, 200.0])
    curves = table.select("predicted_survival_90d", "predicted_survival_200d").to_numpy()
    fitted = survival.TrainingCurves.fit(FollowUp(y_train["time"], y_train["event"]))
    found = evaluate_score.score_time(
        TaskSpec("d", "t", resampling=Resampling(0)), {"joint": risk}, FollowUp(y["time"], y["event"]),
        evaluate_score.Cohort(np.arange(len(y))), train=fitted,
        horizons=horizons, curves=PredictedCurves(horizons, {"joint": curves}),
    )  # fmt: skip
    expected = integrated_brier_score(y_train, y, curves, horizons)
    assert value(found["records"], "t", "joint", "ibs") == pytest.approx(expected, abs=1e-6)
    assert value(records, "relapse", "joint", "tau") == 200
    # of the run itself: on its own grid, better than no covariates
    assert value(records, "relapse", "joint", "ibs") < value(records, "relapse", "joint", "ibs_null")


def test_the_confusion_matrix_uses_a_threshold_of_the_tuning_split(done):
    _, plan, records, *_ = done
    tuning = predictions(plan, "readmission", "joint", "tuning")
    held = predictions(plan, "readmission", "joint")
    threshold = value(records, "readmission", "joint", "threshold")
    positive = tuning.filter("boolean_value")["predicted_boolean_probability"].to_numpy()
    assert np.mean(positive >= np.float32(threshold)) >= plan.config.evaluate.sensitivity
    above = np.sort(positive[positive > np.float32(threshold) * (1 + 1e-6)])
    assert len(above) / len(positive) < plan.config.evaluate.sensitivity  # a larger threshold does not reach it
    called = held["predicted_boolean_probability"].to_numpy() >= np.float32(threshold)
    y = held["boolean_value"].to_numpy()
    counts = {
        "tp": (called & y).sum(),
        "fp": (called & ~y).sum(),
        "tn": (~called & ~y).sum(),
        "fn": (~called & y).sum(),
    }
    assert {m: value(records, "readmission", "joint", m) for m in counts} == counts


def test_calibration_and_the_smallest_difference_are_told_of_every_task(done):
    _, plan, records, details, _ = done
    held = predictions(plan, "readmission", "joint")
    y, p = held["boolean_value"].to_numpy(), held["predicted_boolean_probability"].to_numpy().astype(np.float64)
    slope, intercept = recalibration.slope_and_intercept(y, p)
    assert value(records, "readmission", "joint", "calibration_slope") == pytest.approx(slope, abs=1e-4)
    assert value(records, "readmission", "joint", "calibration_intercept") == pytest.approx(intercept, abs=1e-4)
    assert value(records, "readmission", "joint", "brier_null") == pytest.approx(y.mean() * (1 - y.mean()))
    told = {(r["task"], r["metric"]) for r in records if r["metric"].endswith("_difference_mdd") and r["value"] > 0}
    assert told >= {("readmission", "auroc_difference_mdd"), ("relapse", "c_index_difference_mdd"),
                    ("sleep", "rmse_difference_mdd")}  # fmt: skip
    (shown,) = [r for r in details["prevalence"] if r["task"] == "readmission" and r["split"] == "held_out"]
    assert shown["people_positive"] == held.filter("boolean_value")["subject_id"].n_unique()


def test_metrics_are_there_as_the_meds_tool_writes_them(done):
    _, plan, records, *_ = done
    folders = {task: scores(plan, task) for task in TASKS}
    assert {task for task, f in folders.items() if (f / "meds_evaluation.json").exists()} == {"readmission"}
    found = json.loads((folders["readmission"] / "meds_evaluation.json").read_text())
    assert set(found) == set(plan.config.models)
    for model, metrics in found.items():
        expected = value(records, "readmission", model, "auroc")
        assert metrics["samples_equally_weighted"]["roc_auc_score"] == pytest.approx(expected, abs=1e-6)


def test_subgroups_are_those_of_the_people(done, monkeypatch):
    _, plan, _, details, _ = done
    known = evaluate_subgroups.attributes(plan, "all")
    monkeypatch.setattr(evaluate_subgroups, "_TIMES_AT_ONCE", 5)
    assert evaluate_subgroups._make_attributes(plan, "all").equals(known), "some at a time"
    held = predictions(plan, "readmission", "joint").join(known, on=KEYS)
    births = pl.read_parquet(plan.fit("all").folder / "subjects.parquet").select("subject_id", "birth_time")
    age = held.join(births, on="subject_id", maintain_order="left")
    days = (age["prediction_time"] - age["birth_time"]).dt.total_days().to_numpy()
    np.testing.assert_allclose(age["age_years"].fill_null(-1), np.where(np.isfinite(days), days / 365.25, -1))
    checked = 0
    for attribute, levels in evaluate_subgroups.levels(plan.config.evaluate, held).items():
        for level in {x for x in levels if x is not None}:
            mine = [r for r in details["subgroups"] if (r["task"], r["model"], r["attribute"], r["level"], r["metric"])
                    == ("readmission", "joint", attribute, str(level), "auroc")]  # fmt: skip
            part = held.filter(levels == level)
            if mine:
                expected = roc_auc_score(part["boolean_value"], part["predicted_boolean_probability"])
                assert mine[0]["value"] == pytest.approx(expected, abs=1e-6)
                checked += 1
    assert checked >= 3


def test_every_p_value_of_a_candidate_has_its_q_value(done):
    _, _, records, details, _ = done
    ends = {end: {(r["task"], r["model"], r["metric"][:-1]): r["value"] for r in records
                  if r["metric"].endswith(f"_difference_{end}")} for end in "pq"}  # fmt: skip
    assert {k for k in ends["p"] if "training_mean" not in k[1]} == set(ends["q"]) < set(ends["p"])
    assert {m.removesuffix("_difference_") for *_, m in ends["q"]} >= {"auroc", "auprc", "brier", "ece", "rmse"}
    sizes = {f["metric"]: f["tests"] for f in details["families"] if f["kind"] == "primary"}
    assert sizes["rmse"] == sum(q is not None for (_, _, m), q in ends["q"].items() if m == "rmse_difference_")
    tested = [r for r in details["subgroups"] if r["p"] is not None and r["attribute"] != "all"]
    assert tested and all((r["q"] is None) == (r["model"].endswith("training_mean")) for r in tested)
    assert all(q >= ends["p"][k] for k, q in ends["q"].items() if q is not None)
    compared = {name.removesuffix("_difference_") for task, _, name in ends["p"] if task == "relapse"}
    assert compared == {"c_index", "uno_c", "auc_90", "auc_200", "ibs", "ibs_skill"}
    for metric in ("auc_90", "ibs"):
        difference = value(records, "relapse", "joint - wear_only", f"{metric}_difference")
        single = [value(records, "relapse", m, metric) for m in ("joint", "wear_only")]
        assert difference == pytest.approx(single[0] - single[1], abs=1e-12)


def censored_labels(n=20_000, days=365.0):
    """(generator, times to the event [N], observed times and events, labels, which of them are known [N], weights)."""
    rng = np.random.default_rng(0)
    event_time, censor_time = rng.exponential(400, n), rng.exponential(300, n)
    time, event = np.minimum(event_time, censor_time), event_time <= censor_time
    y, known = survival.horizon_labels(time, event, days)
    factor = survival.horizon_factor(survival.censoring_survival(time, event), time, event, days)
    return rng, event_time, (time, event), y, known, factor[known]


def test_weights_of_known_labels_undo_the_selection_by_censoring():
    """Censoring that hits low risks: known labels alone have too many events, the weighted share does not."""
    rng, event_time, _, y, known, factor = censored_labels()
    task = TaskSpec("d", "t", resampling=Resampling(0), suppression=subgroups.Suppression(0, 0))
    p = np.clip(0.6 + 0.1 * rng.normal(size=known.sum()), 0, 1)
    cohort = evaluate_score.Cohort(np.arange(known.sum()))
    found = evaluate_score.score_binary(task, {"model": p}, y[known], cohort, known_factor_N=factor)
    truth = np.mean(event_time <= 365)
    assert value(found["records"], "t", "model", "prevalence_ipcw") == pytest.approx(truth, abs=0.015)
    assert value(found["records"], "t", "model", "prevalence") > truth + 0.1


def test_every_statistic_is_evaluated_once_on_every_resample(monkeypatch):
    """Values, intervals, differences, p-values, z and subgroups come from one evaluation of each ranking."""
    rng, calls, evaluate_once = np.random.default_rng(0), [], classification.BinaryRanking.__call__
    y, group, sex = rng.random(300) < 0.4, np.arange(300) // 2, np.where(np.arange(300) < 120, "f", "m")
    predictions = {name: np.clip(0.3 + 0.3 * y + 0.2 * rng.normal(size=300), 0, 1) for name in ("a", "b", "c")}

    def counted(self, weight_NxB):
        calls.append(weight_NxB.shape[1])
        return evaluate_once(self, weight_NxB)

    monkeypatch.setattr(classification.BinaryRanking, "__call__", counted)
    limits = subgroups.Suppression(2, 1)
    task = TaskSpec("d", "t", "a", Resampling(40), limits)
    found = evaluate_score.score_binary(task, predictions, y, evaluate_score.Cohort(group, {"sex": sex}))
    # the cohort and two cells of three models, once as they are and once on one block of 40 resamples
    assert sorted(calls) == [1] * 9 + [40] * 9
    names = {(r["model"], r["metric"]) for r in found["records"]}
    assert {("a - b", f"auroc_difference{end}") for end in ("", "_p", "_z")} < names
    assert {r["level"] for r in found["subgroups"]} == {"all", "f", "m"}


def test_a_subgroup_of_everybody_has_the_numbers_of_the_cohort(done):
    _, _, records, details, _ = done
    whole = [r for r in details["subgroups"] if r["attribute"] == "all" and " - " not in r["model"]]
    checked = [r for r in whole if r["metric"] in ("auroc", "auprc", "brier", "ece", "c_index", "rmse")]
    assert len(checked) > 10
    for r in checked:
        (same,) = [x for x in records if all(x[k] == r[k] for k in ("task", "model", "metric"))]
        assert [same[k] for k in ("value", "lo", "hi")] == [r[k] for k in ("value", "lo", "hi")]


def test_probes_can_be_trained_as_in_the_paper(done):
    config, plan, *_ = done
    before, times = small_run.contents(plan.workdir.root), small_run.written_at(plan.workdir.root)
    config = config.copy_and_resolve_references()
    config.evaluate.update({"probe": "adam", "probe_seeds": (0, 1), "tasks": ("readmission",)})
    for name in ("gradient_boosting", "boosting_counts", "linear_table", "age_sex", "stacked", "stacked_tables"):
        del config.models[name]
    trained = small_run.plan_of(config, plan.workdir.root)
    evaluate.run(trained)
    records, _ = evaluate.results(trained)
    assert value(records, "readmission", "joint", "auroc") > 0.6
    task = tasks.read(trained, "readmission")
    y_N = task.of("held_out")["boolean_value"]
    for p in predictors.predictors(trained, task):
        saved = np.load(predictors.predictions_artifact(trained, task, p).folder / "predictions.npz")
        aurocs = [roc_auc_score(y_N, seed_N) for seed_N in saved["seeds_SxN"]]
        assert len(aurocs) == 2
        expected = pytest.approx(np.std(aurocs, ddof=1), abs=1e-9)
        assert value(records, "readmission", p.name, "auroc_probe_sd") == expected
    # seeds of a probe are orders of its rows: no spread of the model, and no effect size
    assert not [r for r in records if r["metric"].endswith(("_seed_sd", "_difference_d"))]
    # the exact probes' predictions and scores lie beside them, as they were
    assert scores(trained, "readmission") != scores(plan, "readmission")
    assert before.items() <= small_run.contents(plan.workdir.root).items()
    assert times.items() <= small_run.written_at(plan.workdir.root).items()


def test_numbers_of_several_seeds_are_means_with_their_spread(done):
    config, plan, records, _, labels = done
    config = config.copy_and_resolve_references()
    config.seeds = (0, 1, 2)
    seeded = small_run.plan_of(config, plan.workdir.root)
    latents = small_run.telling_latents(labels)
    small_run.write_embeddings(seeded, latents)
    evaluate.run(seeded)
    found, _ = evaluate.results(seeded)
    task, by_model = tasks.read(seeded, "readmission"), {}
    for p in predictors.predictors(seeded, task):
        saved = np.load(predictors.predictions_artifact(seeded, task, p).folder / "predictions.npz")
        auroc = roc_auc_score(task.of("held_out")["boolean_value"], saved["held_out"])
        by_model.setdefault(p.name, []).append(auroc)
    several = {m for m, aurocs in by_model.items() if len(aurocs) == 3}
    assert several == {"joint", "ehr_only", "wear_only", "late_fusion", "stacked"}  # of tables alone: one seed
    for model, aurocs in by_model.items():
        assert value(found, "readmission", model, "auroc") == pytest.approx(np.mean(aurocs), abs=1e-6)
        if model in several:
            assert value(found, "readmission", model, "auroc_seed_sd") == pytest.approx(
                np.std(aurocs, ddof=1), abs=1e-6
            )
    name, difference = "joint - ehr_only", np.subtract(by_model["joint"], by_model["ehr_only"])
    assert value(found, "readmission", name, "auroc_difference") == pytest.approx(difference.mean(), abs=1e-6)
    expected = pytest.approx(difference.mean() / difference.std(ddof=1), rel=1e-4)
    assert value(found, "readmission", name, "auroc_difference_d") == expected
    assert {r["model"] for r in found if r["metric"] == "auroc_difference_d"} == {
        f"joint - {model}" for model in several - {"joint"}
    }  # one seed of a tabular model has no spread
    for task_name, metric in (("relapse", "c_index"), ("sleep", "rmse")):
        told = {r["model"] for r in found if (r["task"], r["metric"]) == (task_name, f"{metric}_seed_sd")}
        assert told == several
        assert value(found, task_name, "joint", metric) != value(records, task_name, "joint", metric)
    # the same people, whatever the seed
    assert {r["n"] for r in found if r["task"] == "readmission"} == {
        r["n"] for r in records if r["task"] == "readmission"
    }


def follow_up(n=400, seed=0, end=np.inf):
    """(FollowUp with a competing event, risk) of days; everybody is censored at `end`, and some before."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    event, death = rng.exponential(200 * np.exp(-x)), rng.exponential(500, n)
    stop = np.minimum(rng.uniform(0, 900, n), end)
    time = np.minimum(np.minimum(event, death), stop)
    return FollowUp(time, time == event, time == death), x


def scored(held, risk, train, **options):
    spec = TaskSpec("d", "t", "a", Resampling(200))
    n = len(held.time_N)
    curves = {m: np.exp(-np.exp(r - 5)[:, None] * [90.0, 300.0]) for m, r in risk.items()}
    return evaluate_score.score_time(
        spec, risk, held, evaluate_score.Cohort(np.arange(n)), train=survival.TrainingCurves.fit(train),
        curves=PredictedCurves(np.array([90.0, 300.0]), curves), horizons=(90.0, 300.0), **options,
    )  # fmt: skip


def test_differences_of_auc_and_integrated_brier_have_intervals_and_p_values():
    held, x = follow_up()
    noise = np.random.default_rng(1).normal(size=(2, len(x)))
    records = scored(held, {"a": x, "same": x.copy(), "worse": x + 3 * noise[0]}, follow_up(seed=1)[0])["records"]
    found = {(r["model"], r["metric"]): r for r in records}
    for metric in ("auc_90", "auc_300", "uno_c", "ibs", "ibs_skill"):
        same, worse = (found[f"a - {m}", f"{metric}_difference"] for m in ("same", "worse"))
        assert same["value"] == same["lo"] == same["hi"] == 0
        assert found["a - same", f"{metric}_difference_p"]["value"] == 1
        assert found["a - worse", f"{metric}_difference_p"]["value"] <= 0.02
        better = worse["hi"] < 0 if metric == "ibs" else worse["lo"] > 0
        assert better, metric
        assert worse["value"] == pytest.approx(found["a", metric]["value"] - found["worse", metric]["value"])


def test_curves_by_quartile_are_cumulative_incidences_under_competing_events():
    held, x = follow_up()
    found = scored(held, {"a": x}, held)  # its curves rank people as x does
    curves = [c for c in found["curves"] if c["kind"] == "kaplan_meier"]
    assert len(curves) == 4 and all(c["n_competing"] > 0 for c in curves)
    for q, curve in enumerate(curves):
        rows = np.searchsorted(np.quantile(x, (0.25, 0.5, 0.75)), x, "left") == q
        mine = held.of(rows)
        expected = survival.aalen_johansen(mine.time_N, mine.code_N)(curve["x"])
        np.testing.assert_allclose(curve["value"], expected, atol=1e-12)
    decisions = {c["model"]: c for c in found["curves"] if c["kind"] == "decision"}
    # treating everybody: the rate of events is the cumulative incidence at the horizon
    rate = 1 - survival.aalen_johansen(held.time_N, held.code_N)(300.0)
    expected = [rate - (1 - rate) * t / (1 - t) for t in decisions["treat_all"]["x"]]
    np.testing.assert_allclose(decisions["treat_all"]["value"], expected, atol=1e-12)


def test_tau_falls_back_to_where_training_people_are_under_observation():
    """Without a horizon: events of held-out people after everybody in training was censored are outlived only."""
    held, x = follow_up()
    train, _ = follow_up(seed=1, end=250.0)
    spec = TaskSpec("d", "t", resampling=Resampling(0))
    fitted = survival.TrainingCurves.fit(train)
    cohort = evaluate_score.Cohort(np.arange(len(x)))
    records = evaluate_score.score_time(spec, {"a": x}, held, cohort, train=fitted)["records"]
    assert value(records, "t", "a", "tau") == 250
    assert 0.6 < value(records, "t", "a", "uno_c") < 1
    assert (held.event_N & (held.time_N > 250)).any()
    # a horizon behind it is no longer usable, and without a bound there is none to record
    assert evaluate_score.usable_horizons((90, 250, 300), held, np.arange(len(x)), [train]) == [90]
    unbounded = FollowUp(np.array([1.0, 900.0]), np.array([False, True]))
    records = evaluate_score.score_time(
        spec, {"a": x}, held, cohort, train=survival.TrainingCurves.fit(unbounded)
    )["records"]  # fmt: skip
    assert not [r for r in records if r["metric"] == "tau"]


def test_horizons_with_too_few_people_who_have_had_the_event_are_left_out(caplog):
    time, event = np.array([10.0, 20, 20, 50, 90]), np.array([1, 1, 1, 1, 0])
    held, group = FollowUp(time, event), np.array([1, 2, 2, 3, 4])
    with caplog.at_level("INFO"):
        assert evaluate_score.usable_horizons((15, 30, 60), held, group, min_events=2) == [30, 60]
    assert "horizon of 15 days left out: 1 people have the event by then" in caplog.text
    assert evaluate_score.usable_horizons((30, 60), held, group, min_events=3) == [60]  # people, not rows


def test_weighted_curves_of_a_binary_task_stand_for_everybody():
    """Known labels alone hold too many events; their decision curve and quartiles are weighted."""
    rng, event_time, (time, event), y, known, factor = censored_labels()
    task = TaskSpec("d", "t", resampling=Resampling(0), suppression=subgroups.Suppression(0, 0))
    p, group = rng.random(known.sum()), np.arange(known.sum())
    found = evaluate_score.score_binary(task, {"m": p}, y[known], evaluate_score.Cohort(group), known_factor_N=factor)
    everybody = next(c for c in found["curves"] if c["model"] == "treat_all")
    rate, t = np.mean(event_time <= 365), everybody["x"][10]
    assert everybody["weighted"]
    assert everybody["value"][10] == pytest.approx(rate - (1 - rate) * t / (1 - t), abs=0.02)
    mine = FollowUp(time[known], event[known])
    curves = evaluate_curves.by_quartile(task, "m", p, mine, group, factor)
    naive = evaluate_curves.by_quartile(task, "m", p, mine, group)
    for weighted, plain in zip(curves, naive, strict=True):
        k = np.searchsorted(weighted["x"], 300)
        truth = np.mean(event_time > weighted["x"][k])
        assert weighted["value"][k] == pytest.approx(truth, abs=0.04)
        assert plain["value"][k] < truth - 0.06
