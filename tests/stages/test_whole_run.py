"""All stages for real on a small cohort: one run, looked at from many sides. Slow only: with all three networks."""

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

from ehrwear_jax.config import parse
from ehrwear_jax.report import result_records
from ehrwear_jax.stages import embed, evaluate, interpret, predictors, runner, tasks
from ehrwear_jax.stages import workdir as workdir_lib
from ehrwear_jax.stages.embed import Embeddings
from ehrwear_jax.stages.plan import Plan
from ehrwear_jax.stages.workdir import Workdir
from ehrwear_jax.training import sharding
from ehrwear_jax.training.optimizer import make_optimizer
from ehrwear_jax.training.pretrain import make_task
from ehrwear_jax.training.step import init_state

TABULAR = {"readmission": {*small_run.TABLES}, "relapse": {*small_run.TABLES}}
KEYS = ["subject_id", "prediction_time"]


@pytest.fixture(scope="module", params=["joint", pytest.param("all", marks=pytest.mark.slow)])
def whole(tmp_path_factory, request):
    """(config, plan, labels) after a whole run."""
    root = tmp_path_factory.mktemp("whole")
    labels = small_run.write_inputs(root)
    config = small_run.small_config(root)
    if request.param != "all":
        small_run.one_model(config, request.param)
    plan = Plan(parse(config), Workdir(root / "run"))
    runner.run(plan.config, plan.workdir.root, runner.ORDER)
    return config, plan, labels


@pytest.fixture
def copy(whole, tmp_path):
    """(config, plan): a copy of the run that a test may damage."""
    config, plan, _ = whole
    shutil.copytree(plan.workdir.root, tmp_path / "run", symlinks=True)
    return config, Plan(plan.config, Workdir(tmp_path / "run"))


def results(plan):
    return json.loads((plan.workdir.report / "results.json").read_text())


def splits(plan):
    subjects = pl.read_parquet(plan.fit("all").folder / "subjects.parquet")
    return {k[0]: set(v["subject_id"]) for k, v in subjects.partition_by("split", as_dict=True).items()}


def predictions(plan, task):
    return evaluate.scores(plan, tasks.read(plan, task)).folder / "predictions"


def test_a_second_run_does_nothing(whole, caplog):
    _, plan, _ = whole
    before = small_run.written(plan.workdir.root)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        runner.run(plan.config, plan.workdir.root, runner.ORDER)
    assert caplog.messages == [f"{s}: done before, skipped" for s in runner.ORDER]
    after = small_run.written(plan.workdir.root)
    assert before == after and not [name for name in after if "partial" in name]


def test_results_have_the_schema_and_every_model(whole):
    _, plan, labels = whole
    records = results(plan)
    assert result_records.check_records(records, "small") == records == evaluate.results(plan)[0]
    held = splits(plan)["held_out"]
    for task, metric in (("readmission", "auroc"), ("relapse", "c_index")):
        mine = [r for r in records if r["task"] == task]
        models = {r["model"] for r in mine if r["metric"] == metric}
        assert models == {*predictors.probed(plan), *TABULAR[task]}, "no oracle: these data are not simulated"
        assert ("late_fusion" in models) == (len(plan.config.networks) == 3)
        differences = {r["model"] for r in mine if r["metric"] == f"{metric}_difference"}
        assert differences == {f"joint - {model}" for model in models - {"joint"}}
        table = labels[task].filter(pl.col("subject_id").is_in(list(held)))
        positive = table["boolean_value" if task == "readmission" else "event_observed"].sum()
        few = min(positive, table.height - positive) < plan.config.evaluate.min_per_class
        assert {(r["n"], r["n_positive"], r["seed"]) for r in mine} == {(table.height, None if few else positive, 0)}
        for r in mine:
            if r["metric"] == metric:
                assert 0 <= r["lo"] <= r["hi"] <= 1 and 0 <= r["value"] <= 1


def test_held_out_people_are_never_trained_or_tuned_on(whole):
    _, plan, _ = whole
    of = splits(plan)
    assert len(of["train"] | of["tuning"] | of["held_out"]) == sum(map(len, of.values())) == small_run.N_SUBJECTS
    for name in plan.config.networks:
        model = plan.model(plan.first(name))
        for split in ("train", "tuning"):
            examples = model.module.examples(plan.store("all", split), model.config, model.seed)
            seen = set(examples.subjects(range(3 * examples.rows_per_epoch)))
            assert seen and seen <= of[split]
    for task in ("readmission", "relapse"):
        for path in predictions(plan, task).iterdir():
            assert set(pl.read_parquet(path)["subject_id"]) == of["held_out"]


def test_embeddings_are_there_for_every_labelled_time(whole):
    config, plan, labels = whole
    index = pl.concat([t.select(KEYS) for t in labels.values()]).unique().sort(KEYS)
    for name in plan.config.networks:
        (path,) = plan.embeddings(plan.first(name)).glob("*.parquet")
        table = pl.read_parquet(path)
        assert table.schema["embedding"] == pl.List(pl.Float32) and table.select(KEYS).equals(index)
        z = Embeddings(plan.embeddings(plan.first(name))).read(index)
        assert z.shape == (index.height, config.joint.network.width) and np.isfinite(z).all() and z.std() > 0.1


def test_people_with_one_modality_are_predicted_by_every_model(whole):
    _, plan, labels = whole
    index = pl.read_parquet(plan.records.folder / "index.parquet")
    counts = {r["subject_id"]: (r["n_events"] > 0, r["n_windows"] > 0) for r in index.iter_rows(named=True)}
    assert counts[small_run.EHR_ONLY] == (True, False) and counts[small_run.WEAR_ONLY] == (False, True)
    for task in labels:
        for path in predictions(plan, task).iterdir():
            column = "predicted_boolean_probability" if task == "readmission" else "predicted_log_hazard"
            table = pl.read_parquet(path)
            for subject in (small_run.EHR_ONLY, small_run.WEAR_ONLY):
                mine = table.filter(pl.col("subject_id") == subject)[column].to_numpy()
                assert len(mine) == 2 and np.isfinite(mine).all(), path


def test_pretraining_leaves_its_losses_and_checkpoints(whole):
    _, plan, _ = whole
    for name in plan.config.networks:
        folder = plan.pretrained(plan.first(name)).folder
        lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [x["step"] for x in lines if "loss/total" in x] == list(range(1, 7))
        assert [x["step"] for x in lines if "validation/loss/total" in x] == [3, 6]
        terms = {k for x in lines for k in x if k.startswith("loss/")}
        assert ("loss/ehr_masked" in terms) == (name != "wear_only")
        assert ("loss/wear_masked" in terms) == (name != "ehr_only")
        assert ("loss/wear_to_ehr" in terms) == (name == "joint")
        assert json.loads((folder / "model.json").read_text())["parameters"] > 500
        assert list((folder / "tensorboard").iterdir())
        kept = sorted(int(re.findall(r"\d+", p.name)[-1]) for p in (folder / "checkpoints").iterdir())
        assert kept == [4, 6], "the newest two"


def test_the_training_step_is_compiled_once(whole):
    """A weakly typed parameter would come back strongly typed and compile the step a second time."""
    _, plan, _ = whole
    model, mesh = plan.model(plan.first("joint")), sharding.make_mesh()
    spec = model.module.examples(plan.store("all", "train"), model.config, model.seed).spec
    task = make_task(model, spec, mesh)
    state = init_state(task, make_optimizer(model.train), model.train, mesh, 0)
    weak = [jax.tree_util.keystr(path) for path, x in jax.tree.leaves_with_path(state) if x.weak_type]
    assert weak == []


def test_the_report_is_one_file_with_the_numbers_of_the_results(whole):
    _, plan, _ = whole
    page = (plan.workdir.report / "report.html").read_text()
    markdown = (plan.workdir.report / "report.md").read_text()
    assert "A small run" in page
    # nothing is fetched: every source is inline data or a place in the page
    for target in re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", page):
        assert target.startswith(("#", "data:")), target
    assert not re.search(r"@import|url\(\s*['\"]?(?!data:|#)|<(script|link|iframe)[^>]+(src|href)", page)
    text = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())
    for r in results(plan):
        if r["metric"] in ("auroc", "auprc", "c_index") and r["value"] is not None:
            shown = result_records.format_interval(r)
            assert shown in text and shown in markdown, (r["model"], r["task"], r["metric"])
    for word in ("Readmission", "Relapse", "Joint", "EHR rows kept as events", "patients"):
        assert word in text
    for task in ("readmission", "relapse"):  # the predictions behind the numbers lie beside the page
        for path in predictions(plan, task).iterdir():
            assert (plan.workdir.report / "predictions" / task / path.name).read_bytes() == path.read_bytes()


def test_the_report_draws_held_out_people_who_have_a_record(whole):
    config, plan, _ = whole
    paths = embed.trajectories(plan)
    drawn = sorted(int(p.stem.split("-")[0]) for p in paths)
    assert len(drawn) == 2 and set(drawn) <= splits(plan)["held_out"]
    for path in paths:
        saved = np.load(path)
        assert saved["z"].shape == (12, config.joint.network.width) and np.isfinite(saved["z"]).all()
        assert (np.diff(saved["time_us"]) >= 0).all() and saved["z"].std(axis=0).max() > 0


def test_people_without_a_token_of_the_drawn_model_have_no_trajectory(whole):
    _, plan, _ = whole
    held, root = splits(plan)["held_out"], plan.workdir.root.parent
    for name, lacking in (("joint", set()), ("wear_only", {small_run.EHR_ONLY}), ("ehr_only", {small_run.WEAR_ONLY})):
        config = small_run.one_model(small_run.small_config(root), name)
        config.embed.trajectories = 100
        found = {int(p.stem.split("-")[0]) for p in embed.trajectories(Plan(parse(config), plan.workdir))}
        assert lacking.isdisjoint(found) and lacking <= held and found <= held and len(found) >= 4


def test_a_half_done_embed_resumes_with_the_times_that_are_missing(copy):
    _, plan = copy
    folder = plan.workdir.root / "embeddings"
    before = small_run.written(folder)
    trained = plan.first(plan.config.networks[-1])
    (missing,) = plan.embeddings(trained).glob("*.parquet")
    name = str(missing.relative_to(folder))
    missing.unlink()
    missing.with_suffix(".parquet.partial").write_text("half")  # what an interruption leaves is not used
    runner.run(plan.config, plan.workdir.root, runner.ORDER)
    after = small_run.written(folder)
    assert set(after) == set(before)
    assert {k: after[k] for k in set(before) - {name}} == {k: before[k] for k in set(before) - {name}}
    assert pl.read_parquet(before[name][0]).equals(pl.read_parquet(missing))


def test_a_half_done_evaluate_and_report_resume_to_the_same_results(copy):
    _, plan = copy
    before, scores = results(plan), evaluate.scores(plan, tasks.read(plan, "relapse"))
    (plan.workdir.report / "report.html").unlink()
    small_run.interrupted(scores, evaluate.SCORES)
    (report,) = (plan.workdir.root / "reports").iterdir()
    workdir_lib.write_about(report, workdir_lib.read_about(report) | {"done": False})
    runner.run(plan.config, plan.workdir.root, runner.ORDER)
    assert results(plan) == before and (plan.workdir.report / "report.html").exists()


def test_a_report_without_the_interpret_stage_is_whole_and_says_so(copy):
    config, plan = copy
    before = (plan.workdir.report / "report.md").read_text()
    config = config.copy_and_resolve_references()
    config.interpret.enabled = True
    other = Plan(parse(config), plan.workdir)
    assert interpret.missing(other)
    runner.run(other.config, plan.workdir.root, ["evaluate", "report"])
    page, markdown = ((plan.workdir.report / f"report.{x}").read_text() for x in ("html", "md"))
    assert page.count("The interpret stage has not been run for ") == 1
    assert not (plan.workdir.root / "interpret").exists()
    changed = set(before.splitlines()) ^ set(markdown.splitlines())
    assert all("interpret" in line for line in changed) and changed, "the rest is as it was"
    assert re.search(r"\| Device-hours \|", markdown) and "not logged" not in markdown
    head = next(x for x in markdown.splitlines() if "| Device-hours |" in x).split(" | ")
    cells = next(x for x in markdown.splitlines() if x.startswith("| Joint") and " x " in x).split(" | ")
    found = dict(zip(head, cells, strict=True))
    assert found["Devices"] == f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    assert float(found["Device-hours"]) > 0


def test_a_report_needs_no_raw_data(copy, monkeypatch):
    """Those who hold a run and not the patients' tables can have its page made again."""
    config, plan = copy
    before = (plan.workdir.report / "report.md").read_text()
    config = config.copy_and_resolve_references()
    config.report.title = "The same, elsewhere"
    opened, scan = [], pl.read_parquet

    def watched(path, *args, **kwargs):
        opened.append(str(path))
        return scan(path, *args, **kwargs)

    monkeypatch.setattr(pl, "read_parquet", watched)
    runner.run(parse(config), plan.workdir.root, ["report"])
    raw = str(config.data.meds_dir), str(config.data.wearable_dir)
    assert opened and not [p for p in opened if p.startswith(raw) and "/data/" in p]
    markdown = (plan.workdir.report / "report.md").read_text()
    assert markdown.replace("The same, elsewhere", "A small run").splitlines()[1:] == before.splitlines()[1:]


def test_a_change_of_the_evaluation_makes_new_scores_and_leaves_the_old_ones(copy):
    config, plan = copy
    config = config.copy_and_resolve_references()
    config.evaluate.n_resamples = 20
    before, old = small_run.written(plan.workdir.root), results(plan)
    runner.run(parse(config), plan.workdir.root, runner.ORDER)
    after, new = small_run.written(plan.workdir.root), results(plan)
    assert {k: after[k] for k in before} == before
    assert {k.split("/")[0] for k in after.keys() - before.keys()} == {"configs", "scores", "reports"}
    assert [r["value"] for r in new if r["metric"] == "auroc"] == [r["value"] for r in old if r["metric"] == "auroc"]
    assert [r["lo"] for r in new] != [r["lo"] for r in old]


def test_a_further_task_makes_what_is_new_and_touches_nothing_else(copy):
    """Its prediction times that are new are embedded beside the others; nothing is trained."""
    config, plan = copy
    config = config.copy_and_resolve_references()
    labels = plan.workdir.root.parent / "labels"
    shutil.copytree(config.data.labels_dir, labels)
    table = pl.read_parquet(labels / "readmission.parquet")
    later = table.with_columns(pl.col("prediction_time") + pl.duration(days=pl.col("subject_id") % 2))
    later.write_parquet(labels / "later.parquet")
    config.data.labels_dir = str(labels)
    config.evaluate.tasks = ("readmission", "relapse", "later")
    before = small_run.written(plan.workdir.root)
    runner.run(parse(config), plan.workdir.root, runner.ORDER)
    after = small_run.written(plan.workdir.root)
    changed = {k for k in before if after[k] != before[k]}
    assert changed <= {"inputs.json"}, "the labels lie elsewhere now"
    new = after.keys() - before.keys()
    assert not [k for k in new if k.startswith(("models", "tables", "records", "fit"))]
    added = [k for k in new if k.startswith("embeddings")]
    assert len(added) == 2 * len(plan.config.networks), "latents, and what was seen"
    n_new = later.join(table, on=KEYS, how="anti").height
    assert all(pl.read_parquet(plan.workdir.root / k).height == n_new for k in added)
    assert {r["task"] for r in results(plan)} == {"readmission", "relapse", "later"}
