"""All stages for real on a small cohort: one run, looked at from many sides. Slow only: with all three rows."""

import html
import json
import logging
import re
import shutil

import jax
import numpy as np
import polars as pl
import pytest
import small_run

from ehrwear_jax import config as config_lib
from ehrwear_jax.models.joint import examples as pipeline
from ehrwear_jax.report import result_records
from ehrwear_jax.stages import model, runner
from ehrwear_jax.training import sharding, train

TABULAR = {
    "readmission": {"gradient_boosting", "gradient_boosting_ehr", "gradient_boosting_wear", "logistic_regression"},
    "relapse": {"cox_table", "cox_table_ehr", "cox_table_wear"},
}


@pytest.fixture(scope="module", params=["joint", pytest.param("all", marks=pytest.mark.slow)])
def whole(tmp_path_factory, request):
    """(config, workdir, labels) after a whole run."""
    root = tmp_path_factory.mktemp("whole")
    labels = small_run.write_inputs(root)
    config, workdir = small_run.small_config(root), root / "run"
    if request.param != "all":
        small_run.one_row(config, request.param)
    runner.run(config, workdir, runner.ORDER)
    return config, workdir, labels


@pytest.fixture
def copy(whole, tmp_path):
    """(config, workdir): a copy of the run that a test may damage."""
    config, workdir, _ = whole
    shutil.copytree(workdir, tmp_path / "run")
    return config, tmp_path / "run"


def results(workdir):
    return json.loads((workdir / "results.json").read_text())


def contents(folder):
    return {
        str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()
    }


def unfinish(workdir, stage):
    mark = runner.read_mark(workdir / stage)
    runner.write_mark(workdir / stage, **mark | {"done": False})


def splits(workdir):
    subjects = pl.read_parquet(workdir / "prepare" / "fit" / "all" / "subjects.parquet")
    return {k[0]: set(v["subject_id"]) for k, v in subjects.partition_by("split", as_dict=True).items()}


def test_a_second_run_does_nothing(whole, caplog):
    config, workdir, _ = whole
    before = contents(workdir)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        runner.run(config, workdir, runner.ORDER)
    assert caplog.messages == [f"{s}: done before, skipped" for s in runner.ORDER]
    after = contents(workdir)
    assert before.pop("config.json")[0] == after.pop("config.json")[0] and before == after
    assert not [name for name in after if "partial" in name]


def test_results_have_the_schema_and_every_model(whole):
    config, workdir, labels = whole
    records = results(workdir)
    assert result_records.check_records(records, "small") == records
    assert records == json.loads((workdir / "report" / "results.json").read_text())
    held = splits(workdir)["held_out"]
    for task, metric in (("readmission", "auroc"), ("relapse", "c_index")):
        mine = [r for r in records if r["task"] == task]
        models = {r["model"] for r in mine if r["metric"] == metric}
        fused = {"late_fusion"} if len(config.rows) == 3 else set()
        assert models == {*config.rows, *fused, *TABULAR[task]}, "no oracle: these data are not simulated"
        differences = {r["model"] for r in mine if r["metric"] == f"{metric}_difference"}
        assert differences == {f"joint - {model}" for model in models - {"joint"}}
        table = labels[task].filter(pl.col("subject_id").is_in(list(held)))
        positive = table["boolean_value" if task == "readmission" else "event_observed"].sum()
        assert {(r["n"], r["n_positive"], r["seed"]) for r in mine} == {(table.height, positive, 0)}
        for r in mine:
            if r["metric"] == metric:
                assert 0 <= r["lo"] <= r["hi"] <= 1 and 0 <= r["value"] <= 1


def test_held_out_people_are_never_trained_or_tuned_on(whole):
    config, workdir, _ = whole
    of = splits(workdir)
    assert len(of["train"] | of["tuning"] | of["held_out"]) == sum(map(len, of.values())) == small_run.N_SUBJECTS
    for row in config.rows:
        for split in ("train", "tuning"):
            people = model._patients(config, workdir, "all", row, split)
            rows = pipeline.TrainRows(people, config.seed)
            seen = set(rows.subjects(range(3 * rows.rows_per_epoch)))
            assert seen and seen <= of[split]
        z = pl.read_parquet(workdir / "embed" / "all" / f"{row}.parquet")
        for split, people in of.items():
            assert set(z.filter(pl.col("split") == split)["subject_id"]) == people
    for path in (workdir / "evaluate" / "predictions").rglob("*.parquet"):
        assert set(pl.read_parquet(path)["subject_id"]) == of["held_out"]


def test_embeddings_are_there_for_every_labelled_time(whole):
    config, workdir, labels = whole
    key = ["subject_id", "prediction_time"]
    index = pl.concat([t.select(key) for t in labels.values()]).unique().sort(key)
    for row in config.rows:
        table = pl.read_parquet(workdir / "embed" / "all" / f"{row}.parquet")
        assert table.schema["embedding"] == pl.List(pl.Float32) and table.select(key).equals(index)
        z = np.stack(table["embedding"].to_numpy())
        assert z.shape == (index.height, config.model.width) and np.isfinite(z).all() and z.std() > 0.1


def test_people_with_one_modality_are_predicted_by_every_row(whole):
    _, workdir, labels = whole
    index = pl.read_parquet(workdir / "prepare" / "records" / "index.parquet")
    counts = {r["subject_id"]: (r["n_events"] > 0, r["n_windows"] > 0) for r in index.iter_rows(named=True)}
    assert counts[small_run.EHR_ONLY] == (True, False) and counts[small_run.WEAR_ONLY] == (False, True)
    for task in labels:
        for path in (workdir / "evaluate" / "predictions" / task).iterdir():
            column = "predicted_boolean_probability" if task == "readmission" else "predicted_log_hazard"
            table = pl.read_parquet(path)
            for subject in (small_run.EHR_ONLY, small_run.WEAR_ONLY):
                mine = table.filter(pl.col("subject_id") == subject)[column].to_numpy()
                assert len(mine) == 2 and np.isfinite(mine).all(), path


def test_pretraining_leaves_its_losses_and_checkpoints(whole):
    config, workdir, _ = whole
    for row in config.rows:
        folder = workdir / "pretrain" / "all" / row
        lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [x["step"] for x in lines if "loss/total" in x] == list(range(1, 7))
        assert [x["step"] for x in lines if "validation/loss/total" in x] == [3, 6]
        terms = {k for x in lines for k in x if k.startswith("loss/")}
        assert ("loss/ehr_masked" in terms) == (row != "wear_only")
        assert ("loss/wear_masked" in terms) == (row != "ehr_only")
        assert ("loss/wear_to_ehr" in terms) == (row == "joint")
        assert json.loads((folder / "parameters.json").read_text())["parameters"] > 500
        assert list((folder / "tensorboard").iterdir())
        kept = sorted(int(re.findall(r"\d+", p.name)[-1]) for p in (folder / "checkpoints").iterdir())
        assert kept == [4, 6], "the newest two"


def test_the_training_step_is_compiled_once(whole):
    """A weakly typed parameter would come back strongly typed and compile the step a second time."""
    config, workdir, _ = whole
    people = model._patients(config, workdir, "all", "joint", "train")
    optimizer = train.make_optimizer(config_lib.train_config(config))
    state = jax.eval_shape(
        lambda: train.init_state(
            train.make_model(people, config_lib.model_options(config)), optimizer, people, 0, sharding.make_mesh()
        )
    )
    weak = [jax.tree_util.keystr(path) for path, x in jax.tree.leaves_with_path(state) if x.weak_type]
    assert weak == []


def test_the_report_is_one_file_with_the_numbers_of_the_results(whole):
    _, workdir, _ = whole
    page = (workdir / "report" / "report.html").read_text()
    markdown = (workdir / "report" / "report.md").read_text()
    assert "A small run" in page
    # nothing is fetched: every source is inline data or a place in the page
    for target in re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", page):
        assert target.startswith(("#", "data:")), target
    assert not re.search(r"@import|url\(\s*['\"]?(?!data:|#)|<(script|link|iframe)[^>]+(src|href)", page)
    text = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())
    for r in results(workdir):
        if r["metric"] in ("auroc", "auprc", "c_index") and r["value"] is not None:
            shown = result_records.format_interval(r)
            assert shown in text and shown in markdown, (r["model"], r["task"], r["metric"])
    for word in ("Readmission", "Relapse", "Joint", "EHR rows kept as events", "patients"):
        assert word in text


def test_the_report_draws_held_out_people_who_have_a_record(whole):
    config, workdir, _ = whole
    drawn = sorted(int(p.stem) for p in (workdir / "embed" / "all" / "trajectories").iterdir())
    assert len(drawn) == 2 and set(drawn) <= splits(workdir)["held_out"]
    for subject in drawn:
        saved = np.load(workdir / "embed" / "all" / "trajectories" / f"{subject}.npz")
        assert saved["z"].shape == (12, config.model.width) and np.isfinite(saved["z"]).all()
        assert (np.diff(saved["time_us"]) >= 0).all() and saved["z"].std(axis=0).max() > 0


def test_people_without_a_token_of_the_drawn_row_have_no_trajectory(whole):
    config, workdir, _ = whole
    config = small_run.small_config(workdir.parent)
    config.embed.trajectories = 100
    rows = pl.read_parquet(workdir / "embed" / "all" / "joint.parquet").drop("embedding")
    held = splits(workdir)["held_out"]
    for row, lacking in (("joint", set()), ("wear_only", {small_run.EHR_ONLY}), ("ehr_only", {small_run.WEAR_ONLY})):
        config.evaluate.reference_model = row
        found = set(model._trajectory_subjects(config, workdir, "all", rows))
        assert lacking.isdisjoint(found) and lacking <= held and found <= held and len(found) >= 4


def test_a_half_done_embed_resumes_with_the_row_that_is_missing(copy):
    config, workdir = copy
    before = contents(workdir / "embed")
    name = f"all/{list(config.rows)[-1]}.parquet"
    missing = workdir / "embed" / name
    missing.unlink()
    # a part that was finished before the interruption is used, half a file is not
    parts = workdir / "embed" / name.replace(".parquet", ".parts")
    parts.mkdir()
    (parts / "000000000.parquet.partial").write_text("half")
    unfinish(workdir, "embed")
    runner.run(config, workdir, runner.ORDER)
    after = contents(workdir / "embed")
    assert set(after) == set(before)
    kept = set(before) - {name, "stage.json"}
    assert {k: after[k] for k in kept} == {k: before[k] for k in kept}
    assert pl.read_parquet(before[name][0]).equals(pl.read_parquet(missing))


def test_a_half_done_evaluate_and_report_resume_to_the_same_results(copy):
    config, workdir = copy
    before = results(workdir)
    (workdir / "evaluate" / "relapse.json").unlink()
    (workdir / "results.json").unlink()
    (workdir / "report" / "report.html").unlink()
    unfinish(workdir, "evaluate")
    unfinish(workdir, "report")
    runner.run(config, workdir, runner.ORDER)
    assert results(workdir) == before


def test_a_report_without_the_interpret_stage_is_whole_and_says_so(copy):
    config, workdir = copy
    before = (workdir / "report" / "report.md").read_text()
    shutil.rmtree(workdir / "interpret")
    runner.run(config, workdir, ["evaluate", "report"])
    page, markdown = ((workdir / "report" / f"report.{x}").read_text() for x in ("html", "md"))
    assert page.count("The interpret stage has not been run: ") == 1 and not (workdir / "interpret").exists()
    changed = set(before.splitlines()) ^ set(markdown.splitlines())
    assert all("interpret" in line for line in changed) and changed, "the rest is as it was"
    assert re.search(r"\| Device-hours \|", markdown) and "not logged" not in markdown
    cells = next(x for x in markdown.splitlines() if x.startswith("| Joint") and " x " in x).split(" | ")
    assert cells[4] == f"{jax.device_count()} x {jax.devices()[0].device_kind}" and float(cells[5]) > 0


def test_a_change_of_the_evaluation_leaves_pretraining_alone(copy):
    config, workdir = copy
    config = config.copy_and_resolve_references()
    config.evaluate.n_resamples = 20
    before = contents(workdir / "pretrain") | contents(workdir / "embed")
    runner.run(config, workdir, runner.ORDER)
    assert contents(workdir / "pretrain") | contents(workdir / "embed") == before
    old = json.loads((workdir / "evaluate.previous" / "results.json").read_text())
    new = results(workdir)
    assert [r["value"] for r in new if r["metric"] == "auroc"] == [r["value"] for r in old if r["metric"] == "auroc"]
    assert [r["lo"] for r in new] != [r["lo"] for r in old]
