"""Models that need others: what is needed is trained first, lies for itself, and is part of what needs it."""

import json
import logging

import jax
import numpy as np
import pytest
import small_run

from ehrwear_jax.config import parse
from ehrwear_jax.config.run import check
from ehrwear_jax.runtime.checkpoint import read_newest
from ehrwear_jax.stages import embed, pretrain, runner
from ehrwear_jax.stages.plan import Plan, Trained
from ehrwear_jax.stages.workdir import Workdir

STUDENT, TEACHER = Trained("student", "all", 0), Trained("bag", "all", 0)


def experiment(root, student=True, **teacher):
    """Two models, the one that is needed named last."""
    config = small_run.one_model(small_run.small_config(root), "joint")
    for name in ("joint", *small_run.TABLES):
        del config.models[name]
    config.evaluate.reference_model = ""
    if student:
        config.models.student = {"family": "toy_families.bag_of_another"}
    config.models.bag = {"family": "toy_families.bag_without_latents"} | teacher
    return config


def plan_of(config, root):
    return Plan(parse(config), Workdir(root / "run"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Prepared, trained and embedded."""
    root = tmp_path_factory.mktemp("needed")
    small_run.write_inputs(root)
    runner.run(parse(experiment(root)), root / "run", ["prepare", "pretrain", "embed"])
    return root


def test_what_is_needed_is_trained_first_and_only_what_has_latents_embeds(run):
    plan = plan_of(experiment(run), run)
    assert plan.trained() == [TEACHER, STUDENT] and plan.config.networks == ["student"]
    assert not pretrain.missing(plan) and not embed.missing(plan)
    assert plan.embeddings(STUDENT).is_dir() and not plan.embeddings(TEACHER).exists()


def test_training_calls_the_network_as_it_was_trained(run):
    """The loss of the last step is against the teacher's z, of its checkpoint; validation's too."""
    plan = plan_of(experiment(run), run)
    model, teacher = plan.model(STUDENT), plan.model(TEACHER)
    store = plan.store("all").view("tuning", pretraining=True)
    examples = model.module.examples(store, model.config, 0, train=False)
    batch = examples.spec.empty(8)
    for g in range(8):
        examples.fill({k: v[g] for k, v in batch.items()}, g)
    (mine, _), (theirs, _) = (
        read_newest(plan.pretrained(t).folder / "checkpoints", ("params", "collections")) for t in (STUDENT, TEACHER)
    )
    network = teacher.module.network(examples.spec, teacher.config)
    target = network.apply({"params": theirs["params"], **theirs["collections"]}, batch, method="encode")
    found = model.module.network(examples.spec, model.config).apply({"params": mine["params"]}, batch, method="encode")
    lines = [json.loads(x) for x in (plan.pretrained(STUDENT).folder / "metrics.jsonl").read_text().splitlines()]
    last = [x for x in lines if "validation/loss/distilled" in x][-1]
    np.testing.assert_allclose(last["validation/loss/distilled"], float(((found - target) ** 2).sum() / 8), rtol=1e-4)
    assert "bag" not in json.dumps(sorted(jax.tree.map(np.shape, mine["params"]))), "nothing of it is stored twice"


def test_a_change_of_what_is_needed_changes_what_needs_it_and_not_the_reverse(run):
    before, after = (plan_of(experiment(run, **more), run) for more in ({}, {"width": 6}))
    assert before.pretrained(TEACHER).digest != after.pretrained(TEACHER).digest
    assert before.pretrained(STUDENT).digest != after.pretrained(STUDENT).digest
    alone = plan_of(experiment(run, student=False), run)
    assert alone.pretrained(TEACHER).digest == before.pretrained(TEACHER).digest
    assert "needs" not in before.pretrained(TEACHER).of and alone.trained() == [TEACHER]


def test_what_needs_an_unfinished_network_waits_for_it(run, tmp_path, caplog):
    config = experiment(run)
    config.models.bag.train = {"stop_after": 2, "steps": 5}
    plan = plan_of(config, run)
    with caplog.at_level(logging.INFO):
        pretrain.run(plan)
    assert any("student/all-seed0 waits for bag/all-seed0" in m for m in caplog.messages)
    assert pretrain.missing(plan) == ["bag/all-seed0", "student/all-seed0"]
    assert not plan.pretrained(STUDENT).folder.exists()
    config.models.bag.train = {"steps": 5}
    plan = plan_of(config, run)
    pretrain.run(plan)
    assert not pretrain.missing(plan)


def test_wrong_needs_are_told(run):
    config = experiment(run)
    config.models.student.teacher = "student"
    with pytest.raises(ValueError, match="config.models.student needs itself"):
        check(parse(config))
    config.models.student.teacher = "nobody"
    with pytest.raises(ValueError, match="config.models.student needs 'nobody', which is no network"):
        check(parse(config))
    config = experiment(run)
    config.models.other = {"family": "toy_families.bag_of_another", "teacher": "student"}
    config.models.student.teacher = "other"
    with pytest.raises(ValueError, match="needs itself, by way of"):
        check(parse(config))
