"""What each artifact depends on: a change of the config makes others of these, and of nothing else."""

import collections
import contextlib
import json
import shutil

import polars as pl
import pytest
import small_run

from ehrwear_jax import config as config_lib
from ehrwear_jax.config import parse
from ehrwear_jax.runtime import checkpoint_manifest, distributed
from ehrwear_jax.stages import embed, evaluate, interpret, predictors, prepare, pretrain, report, tasks
from ehrwear_jax.stages.artifacts import Artifact
from ehrwear_jax.stages.inputs import Inputs
from ehrwear_jax.stages.plan import Plan
from ehrwear_jax.stages.workdir import Workdir


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("plan")
    small_run.write_inputs(root)
    prepare.run(Plan(parse(small(root)), Workdir(root / "run")))
    return root


def small(root):
    config = small_run.small_config(root)
    config.interpret.enabled = True
    config.finetune.update({"models": ("ehr_only",), "modes": ("lora",), "tasks": ("readmission",)})
    return config


def set_key(config, key, value):
    *path, last = key.split(".")
    part = config
    for name in path:
        part = part[name]
    part[last] = value


def of_data(plan):
    """{name: digest} of what is there before any network."""
    return {f"{a.kind}/{a.name}": a.digest for a in prepare.artifacts(plan)}


def of_networks(plan):
    return {f"models/{t.key}": plan.pretrained(t).digest for t in plan.trained()}


def of_results(plan):
    """{name: digest} of everything that is made of networks and labels."""
    out = {f"embeddings/{t.key}": str(plan.embeddings(t)) for t in plan.trained()}
    for name in plan.config.evaluate.tasks:
        task = tasks.read(plan, name)
        for p in predictors.predictors(plan, task):
            out[f"predictions/{name}/{p.name}/{p.seed}"] = predictors.predictions_artifact(plan, task, p).digest
        out[f"scores/{name}"] = evaluate.scores(plan, task).digest
    if plan.config.interpret.enabled:
        out |= {f"interpret/{m}": interpret.artifact(plan, m).digest for m in predictors.probed(plan)}
    return out | {"report": report.artifact(plan).digest}


def changed(one, other):
    """(kinds of those that are others, names that are there in both)."""
    both = one.keys() & other.keys()
    return {k for k in both if one[k] != other[k]}, both


def check_change(root, key, value, expected, artifacts):
    """Of what is there without a change of the config, all is there with it, and these are others."""
    found = []
    for change in (False, True):
        config = small(root)
        if change:
            set_key(config, key, value)
        found.append(artifacts(Plan(parse(config), Workdir(root / "run"))))
    different, both = changed(*found)
    assert different == expected and len(both) == len(found[0])


# options of the network that a run may go on with after it ran out of memory
HOW = {"remat": "full", "wear_remat": "full", "unroll": 2, "wear_unroll": 2, "attention": "xla", "target_chunk": 64}
JOINT = {"models/joint/all-seed0"}
NETWORKS = JOINT | {"models/ehr_only/all-seed0", "models/wear_only/all-seed0"}


@pytest.mark.parametrize(
    "key, value, expected",
    [
        ("prepare.step_minutes", 30, {"tables/meds", "records/meds", "fit/all", *NETWORKS}),
        ("cohort.min_age_years", 40.0, {"fit/all", *NETWORKS}),
        ("cohort.cutoff", "2015-10-01", {"fit/all", *NETWORKS}),
        ("data.holdout", "temporal:2015-10-01", {"fit/all", *NETWORKS}),
        ("data.holdout", "site:GENDER//F", {"fit/all", *NETWORKS}),
        ("data.split_names", {"internal": "tuning"}, {"tables/meds", "records/meds", "fit/all", *NETWORKS}),
        # the dataset has splits: none are drawn
        ("data.seed", 1, set()),
        ("data.split_fractions", (0.5, 0.25, 0.25), set()),
        ("prepare.subjects_per_shard", 4, {"records/meds", "fit/all", *NETWORKS}),
        ("prepare.min_subjects", 3, {"fit/all", *NETWORKS}),
        ("prepare.impute_gap_minutes", 10.0, {"fit/all", *NETWORKS}),
        ("prepare.artefacts", ("auto",), {"tables/meds", "records/meds", "fit/all", *NETWORKS}),
        ("prepare.acceleration", ("auto",), {"tables/meds", "records/meds", "fit/all", *NETWORKS}),
        ("prepare.ranges_file", "clinical", {"fit/all", *NETWORKS}),
        ("prepare.atc_level", 3, {"tables/meds", "records/meds", "fit/all", *NETWORKS}),
        ("joint.network.width", 16, NETWORKS),
        ("joint.weights.wear_to_ehr", (0.0, 1.0, 4), NETWORKS),
        ("joint.context.queries", 4, NETWORKS),
        ("train.steps", 7, NETWORKS),
        ("models.joint.modalities", ("ehr",), JOINT),
        ("models.joint.train", {"steps": 7}, JOINT),
        ("models.joint.network", {"width": 16}, JOINT),
        # how a result is reached, not what it is; and what this source does not read
        ("prepare.workers", 3, set()),
        *((f"joint.network.{name}", value, set()) for name, value in HOW.items()),
        ("train.log_every", 5, set()),
        ("train.validate_every", 7, set()),
        ("train.validate_batches", 0, set()),
        ("train.gradients_every", 9, set()),
        ("train.data_workers", 2, set()),
        ("train.data_threads", 5, set()),
        ("train.cache_mib", 7, set()),
        ("train.checkpoint_every", 5, set()),
        ("train.stop_after", 3, set()),
        ("simulate.n_subjects", 5, set()),
        ("mesh.fsdp", 2, set()),
        ("mesh.context_attention", "ring", set()),
        # what comes after the networks
        ("name", "other", set()),
        ("evaluate.tasks", ("readmission",), set()),
        ("evaluate.n_resamples", 10, set()),
        ("embed.batch_size", 3, set()),
        ("finetune.rank", 2, set()),
    ],
)
def test_a_change_before_or_in_pretraining(root, key, value, expected):
    check_change(root, key, value, expected, lambda plan: of_data(plan) | of_networks(plan))


ALL_SCORES = {"scores/readmission", "scores/relapse"}
ALL_INTERPRETED = {f"interpret/{m}" for m in ("joint", "ehr_only", "wear_only", "late_fusion")}
BOTH = "readmission", "relapse"
TABULAR = [name for name, model in config_lib.base().models.items() if model.family == "tabular"]
# everything that is made of the latents of joint; those of ehr_only
OF_JOINT = {"embeddings/joint/all-seed0", "interpret/joint", *(f"predictions/{t}/joint/0" for t in BOTH)}
OF_EHR = {"embeddings/ehr_only/all-seed0", "interpret/ehr_only", "interpret/late_fusion",
          *(f"predictions/{t}/{m}/0" for t in BOTH for m in ("ehr_only", "late_fusion")),
          "predictions/readmission/ehr_only_lora/0"}  # fmt: skip


@pytest.mark.parametrize(
    "key, value, expected",
    [
        ("models.joint.train", {"steps": 7}, {*OF_JOINT, *ALL_SCORES, "report"}),
        ("models.ehr_only.train", {"steps": 7}, {*OF_EHR, *ALL_SCORES, "report"}),
        ("models.linear_table.features", "counts", {*(f"predictions/{t}/linear_table/None" for t in BOTH), *ALL_SCORES,
                                          "report"}),
        ("evaluate.feature_ranges_days", (7.0,), {*(f"predictions/{t}/{m}/None" for t in BOTH for m in TABULAR),
                                                  *ALL_SCORES, *ALL_INTERPRETED, "report"}),
        ("finetune.rank", 2, {"predictions/readmission/ehr_only_lora/0", "scores/readmission", "report"}),
        ("evaluate.n_resamples", 10, {*ALL_SCORES, *ALL_INTERPRETED, "report"}),
        ("evaluate.reference_model", "ehr_only", {*ALL_SCORES, "interpret/joint", "interpret/ehr_only", "report"}),
        ("evaluate.probe", "adam", {f"predictions/{t}/{m}/0" for t in BOTH for m in
                                    ("joint", "ehr_only", "wear_only", "late_fusion")} | {*ALL_SCORES, "report"}),
        ("name", "other", {*ALL_SCORES, *ALL_INTERPRETED, "report"}),
        ("interpret.people", 1, {*ALL_INTERPRETED, "report"}),
        ("embed.trajectories", 1, {"report"}),
        ("report.title", "Another title", {"report"}),
        ("train.log_every", 5, set()),
        # what is new changes the scores, which compare, and nothing that they are made of
        ("models.more", {"family": "joint"}, {*ALL_SCORES, "report"}),
        ("seeds", (0, 1), {*ALL_SCORES, "report"}),
    ],
)  # fmt: skip
def test_a_change_of_what_is_made_of_networks(root, key, value, expected):
    check_change(root, key, value, expected, of_results)


@pytest.mark.parametrize(
    "key, value, moves",
    [
        ("models.ehr_only.train", {"steps": 7}, True),
        ("models.linear_table.features", "counts", True),
        ("models.joint.train", {"steps": 7}, False),
        ("models.age_sex.sex_prefixes", ("X//",), False),
    ],
)
def test_stacked_predictions_are_made_of_those_of_their_members(root, key, value, moves):
    config = small(root)
    before = of_results(Plan(parse(config), Workdir(root / "run")))
    config.models.mix = {"family": "stacked", "members": ("ehr_only", "linear_table")}
    made = of_results(Plan(parse(config), Workdir(root / "run")))
    mine = {f"predictions/{task}/mix/0" for task in BOTH}
    assert made.keys() - before.keys() == mine and changed(before, made)[0] == {*ALL_SCORES, "report"}
    set_key(config, key, value)
    different, _ = changed(made, of_results(Plan(parse(config), Workdir(root / "run"))))
    assert (different & mine == mine) if moves else not different & mine


def test_models_on_tables_that_are_fitted_in_another_way_are_fitted_anew(root, monkeypatch):
    plan = Plan(parse(small(root)), Workdir(root / "run"))
    before = of_results(plan)
    monkeypatch.setattr(predictors.tabular, "REVISION", -1)
    different, _ = changed(before, of_results(plan))
    assert different == {*(f"predictions/{t}/{m}/None" for t in BOTH for m in TABULAR), *ALL_SCORES, "report"}


def test_a_task_more_or_fewer_leaves_the_other_tasks_predictions(root):
    """And their scores, as long as the same people are held out in any of them, whose resamples all tasks share."""
    found = []
    for chosen in (BOTH, ("readmission",)):
        config = small(root)
        config.evaluate.tasks = chosen
        found.append(of_results(Plan(parse(config), Workdir(root / "run"))))
    different, both = changed(*found)
    assert different == {"report"} and {k for k in both if k.startswith("predictions/readmission")}


def test_options_that_were_added_change_no_digest_at_their_defaults(root):
    """The identities of before name none of them; what they are set to is named."""
    config = small(root)
    config.prepare.segments = {"ppg": {"channels": ("ppg",)}}
    added = {"acceleration", "artefacts", "impute_gap_minutes", "ranges_codes", "ranges_usual_units", "atc_level"}
    plan = Plan(parse(config), Workdir(root / "run"))
    assert not added & (plan.tables.of["prepare"].keys() | plan.fit("all").of["prepare"].keys())
    assert list(plan.tables.of["prepare"]["segments"]["ppg"]) == [
        "channels", "rate_hz", "seconds", "filter", "per_window", "score", "standardise"
    ]  # fmt: skip
    config.prepare.segments.ppg.reject = True
    config.prepare.update({"artefacts": ("heart_rate",), "impute_gap_minutes": 5.0})
    other = Plan(parse(config), Workdir(root / "run"))
    assert other.tables.of["prepare"]["segments"]["ppg"]["reject"] is True
    assert other.tables.of["prepare"]["artefacts"] == ("heart_rate",)
    assert other.fit("all").of["prepare"]["impute_gap_minutes"] == 5.0
    ranges = {"ranges_file": "clinical", "ranges_codes": {"LAB//glucose": "glucose"}, "ranges_usual_units": True}
    config.prepare.update(ranges | {"atc_level": 1})
    third = Plan(parse(config), Workdir(root / "run"))
    assert third.tables.of["prepare"]["atc_level"] == 1 and plan.fit("all").of["ranges"] == ""
    assert third.fit("all").of["prepare"].items() >= ranges.items() and third.fit("all").of["ranges"]["table"]


def test_folds_share_tables_and_records(root):
    config = small(root)
    config.data.n_folds = 2
    plan = Plan(parse(config), Workdir(root / "run"))
    one = Plan(parse(small(root)), Workdir(root / "run"))
    assert plan.records.digest == one.records.digest and plan.fit("fold0").digest != plan.fit("fold1").digest
    assert len(plan.trained()) == 6 and len({plan.pretrained(t).digest for t in plan.trained()}) == 6


def test_inputs_that_lie_elsewhere_are_the_same_inputs(root, tmp_path):
    (tmp_path / "link").symlink_to(root)
    plans = [Plan(parse(small(r)), Workdir(tmp_path / "run")) for r in (root, tmp_path / "link")]
    assert of_data(plans[0]) | of_networks(plans[0]) == of_data(plans[1]) | of_networks(plans[1])


def test_labels_are_identified_by_the_bytes_of_their_table(root, tmp_path):
    config = small(root)
    shutil.copytree(root / "labels", tmp_path / "labels")
    config.data.labels_dir, config.finetune.tasks = str(tmp_path / "labels"), ()
    one = of_results(Plan(parse(config), Workdir(root / "run")))
    table = pl.read_parquet(root / "labels" / "readmission.parquet")
    table.with_columns(~pl.col("boolean_value")).write_parquet(tmp_path / "labels" / "readmission.parquet")
    other = of_results(Plan(parse(config), Workdir(root / "run")))
    assert changed(one, other)[0] == {n for n in one if "readmission" in n or n == "report"} | {
        f"interpret/{m}" for m in ("joint", "ehr_only", "wear_only", "late_fusion") if f"interpret/{m}" in one
    }


def test_another_key_of_pseudonyms_makes_other_tables(root, tmp_path):
    config, digests = small(root), []
    config.prepare.update({"pseudonymise": True, "key_file": str(tmp_path / "key")})
    for key in ("a secret key of one kind", "a secret key of one kind", "a secret key of another kind"):
        (tmp_path / "key").write_text(key)
        digests.append(Plan(parse(config), Workdir(root / "run")).tables.digest)
    assert digests[0] == digests[1] != digests[2]


def test_a_model_started_from_another_depends_on_what_that_one_has_learned(root, tmp_path):
    config, digests = small(root), []
    config.train.init_from = str(tmp_path / "source")
    for steps, value in (((), 0), ((4,), 1), ((4,), 1), ((4,), 2), ((4, 8), 3)):
        for step in steps:
            folder = tmp_path / "source" / "checkpoints" / str(step)
            folder.mkdir(parents=True, exist_ok=True)
            about = {"step": step, "leaves": {"params/w": [[1], "float32", value]}}
            (folder / checkpoint_manifest.ABOUT).write_text(json.dumps(about))
            checkpoint_manifest.seal(folder)
        plan = Plan(parse(config), Workdir(root / "run"))
        digests.append(plan.pretrained(plan.first("joint")).digest)
    assert digests[1] == digests[2] and len(set(digests)) == 4
    (tmp_path / "source").rename(tmp_path / "elsewhere")  # once it was started from, it need not be there
    plan = Plan(parse(config), Workdir(root / "run"))
    assert plan.pretrained(plan.first("joint")).digest == digests[-1]
    config.train.init_from = str(tmp_path / "elsewhere")
    plan = Plan(parse(config), Workdir(root / "run"))
    assert plan.pretrained(plan.first("joint")).digest == digests[-1], "what it holds counts, and not where it lies"


def test_scores_depend_on_the_times_that_weights_of_censoring_are_made_of(root, tmp_path):
    """Not only on the task's own table: predictions stay, scores are made anew."""
    config = small(root)
    shutil.copytree(root / "labels", tmp_path / "labels")
    config.data.labels_dir = str(tmp_path / "labels")
    config.evaluate.tasks, config.report.reliability_task = ("early_90d",), ""
    shutil.copy(tmp_path / "labels" / "readmission.parquet", tmp_path / "labels" / "early_90d.parquet")
    config.finetune.tasks = ()
    found = []
    for change in (None, 1.0, 2.0):
        if change is not None:
            times = pl.read_parquet(root / "labels" / "relapse.parquet")
            times.with_columns(pl.col("time_to_event_days") + change).write_parquet(
                tmp_path / "labels" / "time_to_early.parquet"
            )
        found.append(of_results(Plan(parse(config), Workdir(root / "run"))))
    for one, other in ((found[0], found[1]), (found[1], found[2])):
        assert changed(one, other)[0] == {"scores/early_90d", "report"}


class Job:
    """Two processes of a job, one after the other in this one: what the first says is kept for the second."""

    def __init__(self, monkeypatch):
        self._monkeypatch, self._said = monkeypatch, collections.defaultdict(list)
        monkeypatch.setattr(distributed, "from_first", self._from_first)

    def _from_first(self, name, value=None, timeout_s=0.0):
        if distributed.is_first():
            self._said[name].append(json.dumps(value))
            return value
        return json.loads(self._said[name].pop(0))

    def goes_on_as_another(self):
        """From here on this is a process that must not look at a raw input."""

        def refuse(*arguments):
            raise AssertionError("a raw input was looked at")

        self._monkeypatch.setattr(distributed, "is_first", lambda: False)
        for method in ("digest", "of_files", "has", "noted"):
            self._monkeypatch.setattr(Inputs, method, refuse)


def test_the_other_processes_of_a_job_read_no_raw_input(root, monkeypatch):
    """Not even to know where their work lies: the first process, which knows, says so."""
    config, job, trained = parse(small(root)), Job(monkeypatch), []

    def stand_in(folder, model, store, mesh, needed):
        trained.append((folder, model, store.digest(), mesh, needed))
        return None, model.train.steps

    monkeypatch.setattr(pretrain, "pretrain", stand_in)
    monkeypatch.setattr(Artifact, "making", lambda artifact: contextlib.nullcontext(artifact.folder))
    pretrain.run(Plan(config, Workdir(root / "run")))
    first, trained[:] = list(trained), []
    job.goes_on_as_another()
    pretrain.run(Plan(config, Workdir(root / "run")))
    assert trained == first and len(first) == len(NETWORKS)


@pytest.mark.parametrize("criteria", [{}, {"min_age_years": 1.0, "pretraining": "everybody"}])
def test_the_other_processes_of_a_job_embed_without_a_look_at_raw_inputs(root, criteria, monkeypatch):
    """The same prediction times of the same networks, with and without judged ones."""
    config = small(root)
    config.cohort.update(criteria)
    config, job, embedded = parse(config), Job(monkeypatch), []
    plan = Plan(config, Workdir(root / "run"))
    if criteria:
        prepare.run(plan)

    def stand_in(plan, trained, places, lacking, undrawn):
        embedded.append((trained, places, lacking.rows(), plan.model(trained)))

    monkeypatch.setattr(embed, "_embed", stand_in)
    monkeypatch.setattr(embed, "_meet", lambda *arguments: None)
    embed.run(plan)
    first, embedded[:] = list(embedded), []
    assert first[0][1].embeddings == plan.embeddings(first[0][0]) and first[0][2]
    job.goes_on_as_another()
    embed.run(Plan(config, Workdir(root / "run")))
    assert embedded == first and len(first) == len(NETWORKS)
