"""The evaluate stage on embeddings that are given: folds, the oracle, fusion, schema and resuming."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import small_run
from scipy import sparse
from sklearn.metrics import log_loss, roc_auc_score
from sksurv.metrics import brier_score
from sksurv.util import Surv
from small_run import FOLDS, value
from statsmodels.duration.hazard_regression import PHReg

from ehrwear_jax.data.sources.simulator import truth
from ehrwear_jax.evals import protocol, stacking, survival
from ehrwear_jax.models.tabular import family as tabular
from ehrwear_jax.stages import (
    evaluate,
    evaluate_fit,
    evaluate_fractions,
    evaluate_subgroups,
    predictors,
    prepare,
    tasks,
    workdir,
)
from ehrwear_jax.stages.embed import KEYS
from ehrwear_jax.stages.labels import Labels
from ehrwear_jax.stages.plan import Trained

SPLITS = ("train", "tuning", "held_out")
STACKED = ("wear_only", "linear_table")  # a network and a model without one
FURTHER = {
    "stacked": {"family": "stacked", "members": STACKED},
    "mean": {"family": "stacked", "members": STACKED, "weights": "equal"},
    "best_fusion": {"family": "late_fusion", "groups": (("joint", "ehr_only"), ("wear_only",))},
    "joint_kernel": {"family": "tabular", "estimator": "kernel", "features": "none", "latents": ("joint",)},
}


def random_latents(width=4):
    """Others in each fold and model."""
    rng = np.random.default_rng(0)
    return lambda trained, times: rng.normal(size=(times.height, width))


def scores(plan, task):
    return evaluate.scores(plan, tasks.read(plan, task))


def predictions(plan, task, model):
    return pl.read_parquet(scores(plan, task).folder / "predictions" / f"{model}.parquet")


@pytest.fixture(scope="module")
def folded(tmp_path_factory):
    """(plan, labels) after an out-of-fold evaluation."""
    root = tmp_path_factory.mktemp("folds")
    labels = small_run.write_inputs(root, folds=FOLDS)
    config = small_run.small_config(root)
    config.data.n_folds = 2
    config.models.update(FURTHER)
    plan = small_run.plan_of(config, root / "run")
    prepare.run(plan)
    small_run.write_embeddings(plan, random_latents())
    evaluate.run(plan)
    return plan, labels


@pytest.mark.parametrize("task", ["readmission", "relapse"])
def test_out_of_fold_predictions_cover_each_person_once(folded, task):
    plan, labels = folded
    expected = labels[task].join(FOLDS.filter(pl.col("fold") >= 0), on="subject_id", how="semi")
    names = {p.stem for p in (scores(plan, task).folder / "predictions").iterdir()}
    assert names == set(plan.config.models)
    for model in names:
        table = predictions(plan, task, model)
        assert not table.select(KEYS).is_duplicated().any()
        assert table.select(KEYS).sort(KEYS).equals(expected.select(KEYS).sort(KEYS))
        label = "boolean_value" if task == "readmission" else "time_to_event_days"
        assert table.sort(KEYS)[label].equals(expected.sort(KEYS)[label])
    records, _ = evaluate.results(plan)
    assert {r["n"] for r in records if r["task"] == task} == {expected.height}


def test_out_of_fold_predictions_come_from_a_probe_that_never_saw_the_person(folded):
    """Refitted here by hand from the embeddings of the fold's own training people."""
    plan, labels = folded
    found = predictions(plan, "readmission", "joint")
    for fold in (0, 1):
        table = given(plan, "joint", fold).join(labels["readmission"], on=KEYS)
        table = table.join(FOLDS, on="subject_id").sort(KEYS)
        x, y = {}, {}
        for split in SPLITS:
            mine = table.filter(pl.col("split") == split)
            assert ((mine["fold"] == fold) == (split == "held_out")).all()
            x[split] = np.stack(mine["embedding"].to_numpy())
            y[split] = mine["boolean_value"].to_numpy().astype(float)
        expected = protocol.predict_binary(x, y).probability["held_out"]
        mine = found.join(FOLDS.filter(pl.col("fold") == fold), on="subject_id", how="semi")
        np.testing.assert_allclose(mine["predicted_boolean_probability"], expected, rtol=1e-6)


def given(plan, name, fold):
    """The embeddings of a network that were given, with the split of each person."""
    subjects = pl.read_parquet(plan.fit(f"fold{fold}").folder / "subjects.parquet").select("subject_id", "split")
    return pl.read_parquet(plan.embeddings(Trained(name, f"fold{fold}", 0)) / "given.parquet").join(
        subjects, on="subject_id"
    )


def test_label_fractions_are_drawn_in_each_fold(folded):
    """Whole they are the out-of-fold predictions; a part leaves everybody's prediction time in its place."""
    plan, _ = folded
    records, details = evaluate.results(plan)
    found = {(r["model"], r["fraction"]): r for r in details["fractions"] if r["metric"] == "auroc"}
    assert {r["task"] for r in details["fractions"]} == {"readmission"}
    assert {m for m, _ in found} == set(plan.config.probed)
    for model in plan.config.probed:
        expected = value(records, "readmission", model, "auroc")
        assert found[model, 1.0]["value"] == pytest.approx(expected, abs=1e-6)
    task = tasks.read(plan, "readmission")
    part = evaluate_fractions.on_fraction(plan, task, 0.5, 0)
    for whole, half in zip(task.folds, part.folds, strict=True):
        assert half.of("held_out").equals(whole.of("held_out"))
        assert whole.of("train").height > half.of("train").height > 0


def test_members_are_fitted_to_the_fraction_whose_predictions_are_stacked(folded):
    plan, _ = folded
    part = evaluate_fractions.on_fraction(plan, tasks.read(plan, "readmission"), 0.5, 3)
    (stack,) = predictors.predict(plan, part, only=("stacked",))
    assert stack.name == "stacked"
    members = predictors.predict(plan, part, only=STACKED)
    assert {m.name for m in members} == set(STACKED)
    assert stack.artifact.of["of"]["stacked"] == [
        next(m.artifact.digest for m in members if m.name == name) for name in STACKED
    ]
    (whole,) = predictors.predict(plan, tasks.read(plan, "readmission"), only=("stacked",))
    assert len(whole.held_out) == len(stack.held_out) and not np.array_equal(whole.held_out, stack.held_out)


@pytest.mark.slow
def test_a_table_with_latents_knows_what_they_know(tmp_path):
    """Late fusion of a network that knows the outcome: so does the table beside it, which alone does not."""
    labels = small_run.write_inputs(tmp_path, folds=FOLDS)
    config = small_run.small_config(tmp_path)
    config.data.n_folds = 2
    config.evaluate.tasks = ("readmission",)
    own = config.models.linear_table.to_dict()
    config.models = {**config.models.to_dict(), "table_z": own | {"latents": ("late_fusion",)}}
    plan = small_run.plan_of(config, tmp_path / "run")
    prepare.run(plan)
    noise = random_latents()

    def latents(trained, times):
        z = noise(trained, times)
        if trained.name == "wear_only":
            known = times.join(labels["readmission"], on=KEYS, how="left", maintain_order="left")["boolean_value"]
            z = 0.01 * z + known.fill_null(False).to_numpy()[:, None]
        return z

    small_run.write_embeddings(plan, latents)
    evaluate.run(plan)
    auroc = {}
    for model in ("linear_table", "table_z"):
        found = predictions(plan, "readmission", model)
        auroc[model] = roc_auc_score(found["boolean_value"], found["predicted_boolean_probability"])
    assert auroc["table_z"] > 0.9 > 0.8 > auroc["linear_table"], auroc
    task = tasks.read(plan, "readmission")
    config.models.wear_only.train = {"steps": 7}
    other = small_run.plan_of(config, tmp_path / "run")
    before, after = (
        {p.name: predictors.predictions_artifact(of, task, p).digest for p in predictors.predictors(of, task)}
        for of in (plan, other)
    )
    assert {name for name in before if before[name] != after[name]} == {"wear_only", "late_fusion", "table_z"}


def test_the_null_and_the_censoring_are_those_of_each_fold(folded):
    """Against scikit-survival, fold by fold."""
    plan, labels = folded
    records, _ = evaluate.results(plan)
    losses, n = 0.0, 0
    for fold in (0, 1):
        subjects = pl.read_parquet(plan.fit(f"fold{fold}").folder / "subjects.parquet")
        mine = labels["relapse"].join(subjects, on="subject_id").sort(KEYS)
        train, held = (
            Surv.from_arrays(t["event_observed"].to_numpy(), t["time_to_event_days"].to_numpy())
            for t in (mine.filter(pl.col("split") == s) for s in ("train", "held_out"))
        )
        held["time"] = np.minimum(held["time"], train["time"].max())  # what comes later has no part in day 90
        null = survival.kaplan_meier(train["time"], train["event"])(90.0)
        losses += len(held) * brier_score(train, held, np.full((len(held), 1), null), [90.0])[1][0]
        n += len(held)
    assert value(records, "relapse", "joint", "brier_90_null") == pytest.approx(losses / n, abs=1e-9)


def test_attributes_of_a_person_are_those_of_the_fold_that_holds_them_out(folded):
    plan, _ = folded
    before = evaluate_subgroups.held_out_attributes(plan)
    assert before.select(KEYS).sort(KEYS).equals(predictions(plan, "readmission", "joint").select(KEYS).sort(KEYS))
    path = evaluate_subgroups.attributes_artifact(plan, "fold1").folder / "attributes.parquet"
    whole = pl.read_parquet(path)
    try:
        whole.with_columns(wear_days=pl.lit(-1.0).cast(whole["wear_days"].dtype)).write_parquet(path)
        after = evaluate_subgroups.held_out_attributes(plan)
    finally:
        whole.write_parquet(path)
    changed = after.filter(pl.col("wear_days") == -1)["subject_id"].unique().sort().to_list()
    assert changed == FOLDS.filter(pl.col("fold") == 1)["subject_id"].to_list()
    # everybody is described once, as held out
    _, details = evaluate.results(plan)
    people = [d["value"] for d in details["demographics"] if (d["split"], d["measure"]) == ("held_out", "people")]
    assert {d["split"] for d in details["demographics"]} == {"held_out"}
    assert people == [str(before["subject_id"].n_unique())]


def test_horizons_of_a_task_are_its_own(folded):
    plan, _ = folded
    config = small_run.small_config(Path(plan.config.data.labels_dir).parent)
    config.data.n_folds = 2
    config.models.update(FURTHER)
    config.evaluate.task_horizons_days = {"relapse": (60.0, 120.0, 5000.0)}
    other = small_run.plan_of(config, plan.workdir.root)
    assert tasks.read(plan, "relapse").horizons == (30.0, 90.0, 180.0, 365.0)
    assert tasks.read(other, "relapse").horizons == (60.0, 120.0)  # nobody is followed for 5,000 days
    assert scores(other, "readmission").folder == scores(plan, "readmission").folder
    assert scores(other, "relapse").folder != scores(plan, "relapse").folder
    config.evaluate.min_horizon_events = 10_000
    assert tasks.read(small_run.plan_of(config, plan.workdir.root), "relapse").horizons == ()


def test_late_fusion_is_a_probe_on_the_concatenated_embeddings(folded):
    plan, labels = folded
    found = predictions(plan, "readmission", "late_fusion")
    parts = [given(plan, name, 1).sort(KEYS) for name in ("ehr_only", "wear_only")]
    both = parts[0].with_columns(
        pl.Series("embedding", np.concatenate([np.stack(p["embedding"].to_numpy()) for p in parts], 1).tolist())
    )
    both = both.join(labels["readmission"], on=KEYS).sort(KEYS)
    by = {s: both.filter(pl.col("split") == s) for s in SPLITS}
    x = {s: np.asarray(t["embedding"].to_list(), np.float32) for s, t in by.items()}
    assert x["train"].shape[1] == 8
    y = {s: t["boolean_value"].to_numpy().astype(float) for s, t in by.items()}
    expected = protocol.predict_binary(x, y).probability["held_out"]
    mine = found.join(by["held_out"], on="subject_id", how="semi")
    np.testing.assert_allclose(mine["predicted_boolean_probability"], expected, rtol=1e-6)


@pytest.mark.parametrize("task", ["readmission", "relapse"])
def test_the_member_of_each_group_that_predicts_tuning_people_best_is_fused(folded, task):
    """Its probe is that on both chosen latents side by side; the choice is each fold's own, by loss."""
    plan, _ = folded
    read, begin = tasks.read(plan, task), 0
    (made,) = predictors.predict(plan, read, only=("best_fusion",))
    for fold in read.folds:
        z = {m: predictors.latents(plan, m, 0)(fold) for m in ("joint", "ehr_only", "wear_only")}
        fits = {m: evaluate_fit.exact(read.kind, x, fold.target, read.times_T) for m, x in z.items()}
        if read.kind == "survival":
            time, event = fold.target["tuning"]
            cox = {m: PHReg(time, f.tuning[:, None], status=event, ties="efron") for m, f in fits.items()}
            loss = {m: -model.loglike([1.0]) for m, model in cox.items()}
        else:
            loss = {m: log_loss(fold.target["tuning"], f.tuning, labels=[0, 1]) for m, f in fits.items()}
        best = min(("joint", "ehr_only"), key=loss.__getitem__)
        both = {s: np.concatenate([z[best][s], z["wear_only"][s]], axis=1) for s in SPLITS}
        expected = evaluate_fit.exact(read.kind, both, fold.target, read.times_T).held_out
        np.testing.assert_allclose(made.held_out[begin : begin + len(expected)], expected, rtol=1e-6)
        begin += len(expected)
    assert begin == len(made.held_out)


def test_a_kernel_is_fitted_to_the_latents_alone(folded):
    plan, _ = folded
    task = tasks.read(plan, "readmission")
    made = {p.name: p for p in predictors.predict(plan, task)}
    config, expected = plan.config.model_config("joint_kernel"), []
    for fold in task.folds:
        z = predictors.latents(plan, "joint", 0)(fold)
        columns = pl.DataFrame(schema={"name": pl.String, "kind": pl.String})
        nothing = tabular.Table(columns, lambda s, f=fold: sparse.csr_matrix((f.of(s).height, 0), dtype=np.float32))
        expected.append(tabular.scores(config, task.kind, tabular.with_latents(nothing, "joint", z), fold.target))
    score_N = np.concatenate([e["held_out"] for e in expected])
    np.testing.assert_allclose(made["joint_kernel"].held_out, 1 / (1 + np.exp(-score_N)), rtol=1e-5)


@pytest.mark.parametrize("task", ["readmission", "relapse"])
def test_equal_weights_are_the_mean_of_the_members(folded, task):
    plan, _ = folded
    made, kind = {p.name: p for p in predictors.predict(plan, tasks.read(plan, task))}, tasks.read(plan, task).kind
    assert made["mean"].artifact.of["of"]["weights"] == "equal" and "weights" not in made["stacked"].artifact.of["of"]
    x = np.stack([made[m].held_out for m in STACKED], axis=1)
    expected = x.mean(1) if kind == "survival" else 1 / (1 + np.exp(-np.log(x / (1 - x)).mean(1)))
    np.testing.assert_allclose(made["mean"].held_out, expected, rtol=1e-6)


@pytest.mark.parametrize("task", ["readmission", "relapse"])
def test_predictions_are_stacked_with_weights_of_each_folds_own_tuning_people(folded, task):
    plan, labels = folded
    made = {p.name: p for p in predictors.predict(plan, tasks.read(plan, task))}
    read, begin = tasks.read(plan, task), {"tuning": 0, "held_out": 0}
    for fold in read.folds:
        x, mine = {}, {}
        for split in begin:
            part = slice(begin[split], begin[split] + fold.of(split).height)
            begin[split] = part.stop
            scores_N = [getattr(made[m], split)[part] for m in STACKED]
            x[split] = np.stack(scores_N if read.kind == "survival" else [np.log(p / (1 - p)) for p in scores_N], 1)
            mine[split] = getattr(made["stacked"], split)[part]
        stack = stacking.fit_stack(read.kind, x["tuning"], fold.target["tuning"])
        for split in begin:
            expected = stack(x[split]) if read.kind == "survival" else 1 / (1 + np.exp(-stack(x[split])))
            np.testing.assert_allclose(mine[split], expected, rtol=1e-6)
    assert begin["held_out"] == len(made["stacked"].held_out)
    if read.kind == "survival":  # later times, less survival; a higher log-hazard, too
        curve = made["stacked"].curve_NxT
        assert curve.shape == (begin["held_out"], len(read.times_T)) and (np.diff(curve, axis=1) <= 1e-12).all()
    metric = "auroc" if task == "readmission" else "c_index"
    records, _ = evaluate.results(plan)
    assert 0 < value(records, task, "stacked", metric) < 1
    assert value(records, task, "joint - stacked", f"{metric}_difference") == pytest.approx(
        value(records, task, "joint", metric) - value(records, task, "stacked", metric), abs=1e-6
    )


def test_nothing_is_stacked_where_a_member_does_not_predict(folded):
    """As a model on tables has no columns of its own where the data have one modality."""
    plan, _ = folded
    task = tasks.read(plan, "readmission")
    silent = predictors.Predictor("silent", None, "nothing", lambda task, fold: None)
    (network,) = [p for p in predictors.predictors(plan, task) if p.name == "joint"]
    with predictors.predictions_artifact(plan, task, silent).making() as folder:
        predictors._write(folder / predictors.PREDICTIONS, [])
    both = predictors._stacked(plan, task, "both", 0, [network, silent])
    assert both.fit(task, task.folds[1]) is None
    twice = predictors._stacked(plan, task, "twice", 0, [network, network])
    assert len(twice.fit(task, task.folds[1]).held_out) == task.folds[1].of("held_out").height


def test_predictions_are_in_the_meds_prediction_schema_and_give_the_result(folded):
    plan, _ = folded
    records, _ = evaluate.results(plan)
    made = predictors.predict(plan, tasks.read(plan, "readmission"))
    for path in (scores(plan, "readmission").folder / "predictions").iterdir():
        table = pl.read_parquet(path)
        assert table.schema == {
            "subject_id": pl.Int64,
            "prediction_time": pl.Datetime("us"),
            "boolean_value": pl.Boolean,
            "predicted_boolean_value": pl.Boolean,
            "predicted_boolean_probability": pl.Float32,
        }
        (found,) = [f for f in made if f.name == path.stem]
        np.testing.assert_array_equal(table["predicted_boolean_probability"], found.held_out.astype(np.float32))
        auroc = roc_auc_score(table["boolean_value"], found.held_out)
        assert value(records, "readmission", path.stem, "auroc") == pytest.approx(auroc, abs=1e-6)
    table = predictions(plan, "relapse", "joint")
    assert {"predicted_log_hazard", "time_to_event_days", "event_observed"} < set(table.columns)


def test_a_half_done_evaluation_resumes_with_what_is_missing(folded):
    plan, _ = folded
    root, whole = plan.workdir.root, evaluate.results(plan)
    relapse = tasks.read(plan, "relapse")
    (of_table,) = [p for p in predictors.predictors(plan, relapse) if p.name == "linear_table"]
    (features,) = root.glob("features/fold1-*")
    resumed = scores(plan, "relapse"), predictors.predictions_artifact(plan, relapse, of_table)
    resumed += (plan.artifact("features", "fold1", workdir.read_about(features)["of"]),)
    before, times = small_run.contents(root), small_run.written_at(root)
    for artifact, name in zip(resumed, ("scores.json", "predictions.npz", "columns.parquet"), strict=True):
        assert artifact.done
        small_run.interrupted(artifact, name)
    assert evaluate.missing(plan) == ["relapse"]
    evaluate.run(plan)
    assert evaluate.missing(plan) == [] and all(a.done for a in resumed)
    assert evaluate.results(plan) == whole
    folders = [str(a.folder.relative_to(root)) for a in resumed]
    after = small_run.written_at(root)
    touched = {p for p in after if after[p] != times.get(p)}
    assert all(any(p.startswith(f) for f in folders) for p in touched)
    assert {f"{f}/artifact.json" for f in folders} < touched
    left = {p for p in small_run.contents(root) if p.endswith(".partial")}
    assert {p: b for p, b in small_run.contents(root).items() if p not in left} == before


def test_the_oracle_is_a_model_of_simulated_data_only(folded, tmp_path, monkeypatch):
    plan, _ = folded
    assert not any(r["model"].startswith("oracle") for r in evaluate.results(plan)[0])

    config = small_run.one_model(small_run.small_config(tmp_path), "ehr_only")
    for name in small_run.TABLES:
        del config.models[name]
    config.data.update({"source": "synthetic", "meds_dir": "", "wearable_dir": "", "labels_dir": ""})
    config.simulate.update({"n_subjects": 80, "wear_days": 2, "ppg_subjects_fraction": 0.0,
                            "admission_per_year": 0.3, "train_fraction": 0.4, "tuning_fraction": 0.2})  # fmt: skip
    task = "hospitalization_365d"
    config.evaluate.tasks = (task,)
    plan = small_run.plan_of(config, tmp_path)
    prepare.run(plan)
    small_run.write_embeddings(plan, random_latents())
    asked, whole = [], truth.oracle_risk
    monkeypatch.setattr(evaluate, "_TRUTHS_AT_ONCE", 7)
    monkeypatch.setattr(truth, "oracle_risk", lambda at, times, of: asked.append(len(times)) or whole(at, times, of))
    evaluate.run(plan)
    records, _ = evaluate.results(plan)
    assert len(asked) > 1 and max(asked) == 7  # the truth of some people at a time
    held = pl.read_parquet(plan.fit("all").folder / "subjects.parquet").filter(pl.col("split") == "held_out")
    labels = Labels(plan).table(task).join(held, on="subject_id", how="semi").sort(KEYS)
    risk = whole(plan.raw.folder / "truth", labels.select(KEYS), 365)
    auroc = roc_auc_score(labels["boolean_value"], risk)
    assert value(records, task, "oracle", "auroc") == pytest.approx(auroc, abs=1e-9)
    assert 0.6 < auroc < 1.0 and {r["n"] for r in records} == {labels.height}
    differences = {r["model"] for r in records if r["metric"] == "auroc_difference"}
    assert differences == {"ehr_only - oracle"}
