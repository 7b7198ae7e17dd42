"""A bundle answers as the run that it is of, on the same people and on people who are recorded otherwise."""

import dataclasses
import json
import shutil
import tempfile
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import small_bundle

import ehrwear_jax as ew
from ehrwear_jax.config.training import FinetuneConfig
from ehrwear_jax.data import perturbations
from ehrwear_jax.data.formats import wearable
from ehrwear_jax.inference import bundle as bundle_command
from ehrwear_jax.inference import bundle_files, new_people, trained_model
from ehrwear_jax.inference import predict as predict_command
from ehrwear_jax.runtime import checkpoint_manifest
from ehrwear_jax.stages import embed, finetuned, predictors, tasks
from ehrwear_jax.stages.plan import Plan

TASKS = ["readmission", "relapse"]
SLOW = ("joint", "motor", "cehr_bert")


@pytest.fixture(scope="module", params=["context_clues", *(pytest.param(m, marks=pytest.mark.slow) for m in SLOW)])
def made(tmp_path_factory, request):
    """(folder of everything, plan, bundle, TrainedModel, the people of the run as its bundle reads them)."""
    root = tmp_path_factory.mktemp("bundle")
    plan = small_bundle.run(root, request.param)
    folder = small_bundle.bundle(plan, root / "bundle")
    model = ew.load(folder)
    return root, plan, folder, model, model.read(root / "raw" / "meds", root / "raw" / "wearable")


def of_run(plan):
    """(prediction times, z) of the run."""
    times = embed.prediction_times(plan, "all")
    return times, embed.Embeddings(plan.embeddings(plan.trained()[0])).read(times)


def test_the_people_of_the_run_have_the_embeddings_of_the_run(made):
    _, plan, _, model, people = made
    times, want = of_run(plan)
    got = people.embed(times)
    assert got.columns == ["subject_id", "prediction_time", *(f"z{i}" for i in range(want.shape[1]))]
    assert got.select(embed.KEYS).equals(times.select(embed.KEYS)) and model.tasks == TASKS
    np.testing.assert_allclose(got.drop(embed.KEYS).to_numpy(), want, atol=1e-5)
    assert people.report.shares == {"known": 1.0, "ancestor": 0.0, "unknown": 0.0}
    assert not people.report.units and not people.report.missing_channels


def test_predictions_are_those_of_the_run(made):
    _, plan, _, _, people = made
    for name, column in (("readmission", "predicted_boolean_probability"), ("relapse", "predicted_log_hazard")):
        task = tasks.read(plan, name)
        (predictor,) = [p for p in predictors.predictors(plan, task) if p.name == plan.config.networks[0]]
        with np.load(predictors.predictions_artifact(plan, task, predictor).folder / predictors.PREDICTIONS) as there:
            held, curve = there["held_out"], there.get("curve_NxT")
        got = people.predict(name, task.folds[0].of("held_out"))
        np.testing.assert_allclose(got[column], held, atol=1e-5)
        for days in task.horizons:
            free = curve[:, list(task.times_T).index(days)]
            np.testing.assert_allclose(1 - got[f"predicted_risk_{days:g}d"], free, atol=1e-5)


def test_attributions_add_up_to_the_logit_or_are_refused(made):
    _, plan, _, model, people = made
    times = of_run(plan)[0].filter(pl.col("subject_id").is_in([1, 2])).unique("subject_id", maintain_order=True)
    if model.model.family != "joint":
        with pytest.raises(ValueError, match="has no attribution"):
            people.explain("readmission", times)
        return
    with pytest.raises(ValueError, match="no logistic regression"):
        people.explain("relapse", times)
    found = people.explain("readmission", times)
    assert found["subject_id"].unique().to_list() == [1, 2] and (found["days"] <= 0).all()
    assert (found["completeness_gap"].abs() < 0.05).all() and found["attribution"].abs().max() > 0


def test_other_codes_units_and_channels(made, tmp_path):
    root, plan, _, model, people = made
    there = small_bundle.elsewhere(root / "raw", tmp_path / "elsewhere")
    others = model.read(there / "meds", there / "wearable")
    report = others.report
    known_as = {
        code: (how, what) for code, how, what in report.codes.select("code", "known_as", "stands_for").iter_rows()
    }
    assert known_as["DX//E11.9"] == ("ancestor", "DX//E11") and known_as["ZZ//1"] == ("unknown", None)
    assert known_as["LAB//hdl"] == ("known", "LAB//hdl")
    n = people.report.codes.filter(pl.col("code") == "DX//E11")["n_events"].item()
    assert report.codes.filter(pl.col("code") == "DX//E11.9")["n_events"].item() == n
    assert report.codes["n_events"].sum() == people.report.codes["n_events"].sum(), "every event is counted"
    factors = {u["what"]: (u["from"], u["to"], round(u["factor"], 3)) for u in report.units}
    assert factors == {"LAB//glucose": ("mmol/L", "mg/dL", 18.016), "heart_rate": ("Hz", "bpm", 60.0)}
    assert report.missing_channels == ["activity"]
    assert any("no activity" in w for w in report.warnings) == ("wear" in model.about["modalities"])
    # what is written otherwise, but is known, is read as the same
    times, _ = of_run(plan)
    i, j = (p.store.index["subject_id"].to_list().index(1) for p in (people, others))
    mine, yours = people.store[i], others.store[j]
    is_glucose = mine.code_K == people.store.codes["code"].to_list().index("LAB//glucose")
    np.testing.assert_allclose(yours.value_K[is_glucose], mine.value_K[is_glucose], rtol=1e-5)
    np.testing.assert_allclose(yours.window_MxLxC[..., 0], mine.window_MxLxC[..., 0], rtol=1e-5)
    assert (
        np.isnan(yours.window_MxLxC[..., 1]).all()
        and np.isfinite(others.embed(times).to_numpy()[:, 2:].astype(float)).all()
    )
    assert json.loads(json.dumps(report.as_dict(), default=str))["not_known"][0]["code"] in {"ZZ//1", "DX//E11.9"}


def test_a_unit_that_does_not_convert_is_refused_by_name(made, tmp_path):
    root, _, _, model, _ = made
    shutil.copytree(root / "raw", tmp_path / "raw")
    small_bundle.describe(tmp_path / "raw" / "meds", {"LAB//glucose": "mm/h"}, {})
    with pytest.raises(ValueError, match="'LAB//glucose' is in 'mm/h' .* 'mg/dL'"):
        model.read(tmp_path / "raw" / "meds")
    mapping = tmp_path / "mapping.csv"
    mapping.write_text("code,target,factor\nLAB//glucose,LAB//glucose,2\n")
    assert not model.read(tmp_path / "raw" / "meds", mapping=mapping).report.units, "the user says what it is"
    channels = wearable.read_channels(root / "raw" / "wearable").with_columns(unit=pl.lit("mV"))
    wearable.write_channels(tmp_path / "raw" / "wearable", channels)
    with pytest.raises(ValueError, match="'heart_rate' is in 'mV', and in 'bpm'|'activity' is in 'mV'"):
        model.read(root / "raw" / "meds", tmp_path / "raw" / "wearable")


def test_signals_unlike_those_of_the_training_data_are_warned_of(made, tmp_path):
    root, _, _, model, people = made
    if "wear" not in model.about["modalities"]:
        pytest.skip("reads no signals")
    assert model.about["rates"] == {"activity": [1 / 60, 1 / 60], "heart_rate": [1 / 60, 1 / 60]}
    assert not [w for w in people.report.warnings if "training data" in w], "its own people are alike"
    shutil.copytree(root / "raw", tmp_path / "raw")
    for path in wearable.list_shards(tmp_path / "raw" / "wearable"):
        rows = pl.read_parquet(path)
        doubled = pl.col("values").list.eval(pl.element() * 2).cast(pl.List(pl.Float32))
        changed = pl.when(pl.col("channel") == "heart_rate").then(doubled).otherwise("values")
        rows.with_columns(values=changed, sample_rate_hz=pl.col("sample_rate_hz") / 3).write_parquet(path)
    told = " ".join(model.read(tmp_path / "raw" / "meds", tmp_path / "raw" / "wearable").report.warnings)
    assert "heart_rate: recorded at 0.00556 Hz, and at 0.0167 Hz in the training data" in told
    assert "heart_rate: the median of" in told and "activity: the median of" not in told


def test_changed_records_answer_what_if_and_change_no_other_answer(made):
    _, _, _, _, people = made
    before = people.embed()
    changed = people.embed(transform=perturbations.truncate(days=20.0))
    assert changed.select(embed.KEYS).equals(before.select(embed.KEYS)) and not changed.equals(before)
    assert people.embed().equals(before)
    risk = people.predict("readmission", transform=perturbations.truncate(days=20.0))
    assert not risk.equals(people.predict("readmission"))


@pytest.mark.slow
def test_fine_tuned_it_predicts_as_the_stage_does(made, tmp_path):
    """The same training from the same latents; another call reads what the first one found."""
    root, plan, _, model, people = made
    settings = FinetuneConfig(steps=4, warmup_steps=1, batch_size=4, validate_every=2)
    given = root / "raw" / "meds", root / "raw" / "wearable", root / "labels", "readmission", tmp_path
    tuned = model.fine_tune(*given, settings, mode="full")
    task = tasks.read(plan, "readmission")
    (fold,) = task.folds
    other = dataclasses.replace(plan.config, finetune=settings)
    want = finetuned.predictions(Plan(other, plan.workdir), task, fold, plan.config.networks[0], "full")["held_out"]
    got = tuned.predict_people(people, fold.of("held_out"))
    np.testing.assert_allclose(got["predicted_boolean_probability"], want, atol=1e-4)
    again = model.fine_tune(*given, settings, mode="full")
    assert again.predict_people(people, fold.of("held_out")).equals(got)
    with pytest.raises(FileNotFoundError, match="no label table death.parquet; there are readmission, relapse"):
        model.fine_tune(*given[:3], "death", tmp_path)


def test_people_without_wearables_and_times_before_any_data(made):
    root, _, _, model, _ = made
    people = model.read(root / "raw" / "meds")
    early = trained_model.at(1, datetime(1999, 1, 1))
    got = people.predict("readmission", early)
    assert got.height == 1 and any("before any data" in w for w in people.report.warnings)
    assert people.report.missing_channels == ["heart_rate", "activity"] and people.report.windows == 0
    last = people.embed()
    index = people.store.index
    assert (
        last["subject_id"].to_list()
        == index.filter(pl.col("n_static") + pl.col("n_events") > 0)["subject_id"].to_list()
    )


def test_wrong_questions_have_one_sentence(made, tmp_path):
    _, _, folder, model, people = made
    with pytest.raises(ValueError, match="no task 'x'; it has readmission, relapse"):
        model.predict("x", "nowhere")
    with pytest.raises(ValueError, match="1 people of the prediction times are not in the data, e.g. 999"):
        people.embed(trained_model.at(999, datetime(2016, 1, 1)))
    with pytest.raises(ValueError, match="times: no column 'prediction_time'"):
        people.embed(pl.DataFrame({"subject_id": [1]}))
    with pytest.raises(FileNotFoundError, match=r"nowhere.*data"):
        model.read(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no such bundle or run"):
        ew.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is a bundle, which holds one network"):
        ew.load(folder, model="joint")


@pytest.mark.parametrize(
    "name", ["weights.npz", "codes.parquet", "card.json", "manifest.json", "COMMIT", "bundle.json"]
)
@pytest.mark.parametrize("fault", ["missing", "damaged"])
def test_a_file_that_is_damaged_or_missing_is_named(made, tmp_path, name, fault):
    shutil.copytree(made[2], tmp_path / "copy")
    path = tmp_path / "copy" / name
    whole = path.read_bytes()
    path.unlink() if fault == "missing" else path.write_bytes(whole[:-3] + b"xyz")
    with pytest.raises(ValueError, match=name if name != "COMMIT" else "COMMIT") as error:
        ew.load(tmp_path / "copy")
    assert "\n" not in str(error.value)


def test_a_later_format_is_refused(made, tmp_path):
    shutil.copytree(made[2], tmp_path / "copy")
    about = json.loads((tmp_path / "copy" / "bundle.json").read_text())
    (tmp_path / "copy" / "bundle.json").write_text(json.dumps(about | {"format": 99}))
    with pytest.raises(ValueError, match="bundle.json: the bundle has format 99, .* reads format 1"):
        ew.load(tmp_path / "copy")


def test_nothing_of_a_person_is_in_it_and_no_pickle(made):
    root, plan, folder, _, _ = made
    assert checkpoint_manifest.faults(folder) == []
    for path in folder.iterdir():
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as saved:
                assert all(saved[name].dtype.kind in "fiub" for name in saved.files)
        if path.suffix == ".parquet":
            assert not {"subject_id", "time", "group_id"} & set(pl.read_parquet_schema(path))
    secrets = [str(root), "subject_splits", "key_file"]
    assert not [s for s in secrets for p in folder.glob("*.json") if s in p.read_text()]
    subjects = pl.read_parquet(folder / "code_statistics.parquet")
    assert (subjects["alias"] == subjects["code_id"]).all(), "rare codes are left out"
    arrays = bundle_files.read_arrays(folder / "probes.npz")
    assert len(arrays["1"]["model"]["times"]) == len(tasks.read(plan, "relapse").times_T), "no times of single events"


def test_half_precision_is_near(made, tmp_path):
    root, plan, folder, _, people = made
    half = small_bundle.bundle(plan, tmp_path / "half", half=True)
    with np.load(half / "weights.npz") as saved:
        assert {saved[name].dtype for name in saved.files} == {np.dtype(np.float16)}
    got = ew.load(half).variables
    whole = bundle_files.read_arrays(folder / "weights.npz")
    for a, b in zip(_leaves(got), _leaves(whole), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


def _leaves(tree):
    return [x for k in sorted(tree) for x in (_leaves(tree[k]) if isinstance(tree[k], dict) else [tree[k]])]


def test_the_commands(made, tmp_path, capsys):
    root, plan, _, _, people = made
    assert bundle_command.main([str(plan.workdir.root), str(tmp_path / "b"), "--half"]) == 0
    assert bundle_command.main([str(plan.workdir.root), str(tmp_path / "b")]) == 2
    assert bundle_command.main([str(tmp_path), str(tmp_path / "c")]) == 2
    assert bundle_command.main([str(plan.workdir.root), str(tmp_path / "c"), "--model=x"]) == 2
    times, _ = of_run(plan)
    times.select(embed.KEYS).head(3).write_parquet(tmp_path / "times.parquet")
    asked = [str(tmp_path / "b"), f"--meds_dir={root / 'raw' / 'meds'}", f"--wearable_dir={root / 'raw' / 'wearable'}"]
    assert predict_command.main([*asked, f"--times={tmp_path / 'times.parquet'}", f"--out={tmp_path / 'out'}"]) == 0
    said = capsys.readouterr()
    assert "the run has no model 'x'" in said.err and "is there already" in said.err and "neither a bundle" in said.err
    z = pl.read_parquet(tmp_path / "out" / "embeddings.parquet")
    np.testing.assert_allclose(z["z0"], people.embed(times.head(3))["z0"], atol=0.02)
    assert {p.stem for p in (tmp_path / "out" / "predictions").iterdir()} == set(TASKS)
    assert json.loads((tmp_path / "out" / "unknown.json").read_text())["people"] == people.report.people
    assert predict_command.main([*asked, f"--out={tmp_path / 'out'}"]) == 2


def test_a_run_is_loaded_like_a_bundle(made, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model = ew.load(made[1].workdir.root)
    assert model.tasks == TASKS and model.card["name"] == f"small: {made[1].config.networks[0]}"
    del model
    assert not list(Path(tmp_path).iterdir()), "what it was read from goes with it"


def test_the_split_of_new_people_is_not_looked_at(made):
    assert made[4].report.people == 30 and set(made[4].store.index["split"]) == {new_people.SPLIT}
