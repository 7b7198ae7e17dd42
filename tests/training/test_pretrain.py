"""Pretraining of any family: what a run is known by, what it leaves; a joint run learns and resumes."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import polars as pl
import pytest
import small_run
from joint_rows import config_of
from random_rows import EVERY_TERM
from toy_families import pooled

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.config.training import MeshConfig, TrainConfig
from ehrwear_jax.models.joint import family as joint_family
from ehrwear_jax.models.joint.config import WEIGHTS, Config, ContextConfig, NetworkConfig
from ehrwear_jax.models.objective import Ramp, WeightedTerms
from ehrwear_jax.runtime import checkpoint_manifest, exit_codes, run_dir
from ehrwear_jax.training import embedding, feed, sharding, step
from ehrwear_jax.training.optimizer import make_optimizer
from ehrwear_jax.training.pretrain import Model, make_task, pretrain, validation, with_rows, without
from ehrwear_jax.training.throughput import TIMINGS

STORE = pooled.Store()
TRAIN = TrainConfig(steps=6, batch_size=16, peak_learning_rate=1e-2, warmup_steps=1, log_every=1, validate_every=3,
                    validate_batches=2, checkpoint_every=3)  # fmt: skip


def pooled_model(**options):
    return Model("toy", "toy_families.pooled", pooled.Config(), dataclasses.replace(TRAIN, **options), seed=1)


def lines(folder):
    found = run_dir.read_lines(folder / "metrics.jsonl")
    return [{k: v for k, v in x.items() if k not in TIMINGS} for x in found]


def same(one, two):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(one), jax.device_get(two))


# ------------------------------------------------------------------------------------------------ what a run is


def test_options_that_change_no_result_are_no_part_of_what_a_model_is():
    def identity(network=None, **train):
        config = Config(network=NetworkConfig(**(network or {})))
        return Model("joint", "joint", config, TrainConfig(**train), seed=3).identity()

    plain = identity()
    json.dumps(plain)
    assert plain["family"] == "joint" and plain["seed"] == 3 and plain["config"]["network"]["width"] == 1024
    for same_result in ({"remat": "full"}, {"unroll": 4}, {"attention": "reference"}):
        assert identity(same_result) == plain
    for of_results in ({"width": 8}, {"dropout": 0.0}, {"dtype": "bfloat16"}):
        assert identity(of_results) != plain
    for same_result in ({"log_every": 3}, {"stop_after": 9}, {"data_workers": 2}, {"validate_every": 9},
                        {"keep": 5}, {"init_from": "there"}):  # fmt: skip
        assert identity(**same_result) == plain
    for of_results in ({"steps": 9}, {"accumulate": 2}, {"ema_decay": 0.5}, {"patience": 3},
                       {"batch_size": 0, "rows_per_device": 4}):  # fmt: skip
        assert identity(**of_results) != plain
    for look in ({"validate_every": 9}, {"validate_batches": 9}):  # decide what patience keeps
        assert identity(patience=3, **look) != identity(patience=3)


def test_a_state_fits_a_model_with_other_options_that_change_no_result():
    """Those that are changed after a run was out of memory: its checkpoints have the same arrays."""

    def arrays(**network):
        config = Config(context=ContextConfig(**CONTEXT), network=NetworkConfig(**NETWORK | network))
        spec, _ = joint_family.assumed(config, PrepareConfig(channels=("a",)), 20)
        mesh = sharding.make_mesh()
        task = make_task(Model("joint", "joint", config), spec, mesh)
        return jax.tree.map(
            lambda x: (x.shape, x.dtype, x.sharding), step.abstract_state(task, make_optimizer(TRAIN), TRAIN, mesh)
        )

    plain = arrays(n_layers=4, wear_layers=2)
    how = {"remat": "full", "wear_remat": "products", "unroll": 2, "wear_unroll": 2, "attention": "xla"}
    assert arrays(n_layers=4, wear_layers=2, target_chunk=64, **how) == plain
    assert {f"network.{name}" for name in (*how, "target_chunk")} == set(Config.NOT_RESULTS)


def test_names_below_one_another_are_left_out():
    values = {"a": 1, "b": {"c": 2, "d": {"e": 3, "f": 4}}}
    assert without(values, ("b.c", "b.d.e", "x", "x.y")) == {"a": 1, "b": {"d": {"f": 4}}}
    assert without(values, ()) == values and values["b"]["c"] == 2, "the given dict stays"
    assert pooled_model().identity() == dataclasses.replace(
        pooled_model(), config=pooled.Config(speed=9)
    ).identity(), "a family outside the package has such options too"  # fmt: skip


def test_rows_for_each_device_are_rows_of_the_global_batch():
    mesh = sharding.make_mesh(config=MeshConfig(2, 2, 2))
    by_device = dataclasses.replace(TRAIN, batch_size=0, rows_per_device=3)
    assert with_rows(by_device, mesh) == dataclasses.replace(TRAIN, batch_size=12)
    assert with_rows(TRAIN, mesh) == TRAIN


def test_micro_batches_that_do_not_divide_over_the_devices_are_refused(tmp_path):
    said = r"config.train.accumulate=4 leaves 4 rows at a time, which do not divide over 8 devices"
    with pytest.raises(ValueError, match=said):
        pretrain(tmp_path, pooled_model(accumulate=4), STORE)


def test_only_what_is_pretrained_on_is_given_to_the_loop(tmp_path, monkeypatch):
    given = []

    def examples(store, config, seed, train=True):
        given.append((store.split, store.pretraining, train))
        return make(store, config, seed, train)

    make = pooled.examples
    monkeypatch.setattr(pooled, "examples", examples)
    pretrain(tmp_path, pooled_model(stop_after=1), STORE)
    assert given == [("train", True, True), ("tuning", True, False)]


def test_patience_needs_a_tuning_split(tmp_path):
    nobody = dataclasses.replace(STORE, n_subjects=2)
    with pytest.raises(ValueError, match="config.train.patience waits for a lower loss on the tuning split"):
        pretrain(tmp_path, pooled_model(patience=2), nobody)


# ------------------------------------------------------------------------------------------------ what a run leaves


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(folder, variables) of a run of the pooled family."""
    folder = tmp_path_factory.mktemp("whole")
    variables, done = pretrain(folder, pooled_model(), STORE)
    assert done == 6 and variables.keys() == {"params", "collections"}
    return folder, variables


def test_a_run_notes_what_it_is(whole):
    folder, variables = whole
    about = json.loads((folder / "model.json").read_text())
    sizes = {name: sum(x.size for x in jax.tree.leaves(part)) for name, part in variables["params"].items()}
    assert about["parts"] == sizes and about["parameters"] == sum(sizes.values()) and about["name"] == "toy"
    assert about["family"] == "toy_families.pooled" and about["config"]["width"] == 4 and about["seed"] == 1
    assert json.loads((folder / "names.json").read_text())["names"] == {"feature": ["a", "b", "c", "d", "e"]}
    checkpoint = checkpoint_manifest.about(folder / "checkpoints" / "6")
    assert checkpoint["family"] == "toy_families.pooled" and checkpoint["train"]["steps"] == 6
    found = lines(folder)
    assert [x["step"] for x in found if "loss/total" in x] == list(range(1, 7))
    assert [x["step"] for x in found if "validation/loss/total" in x] == [3, 6]


def test_a_run_by_rows_of_each_device_is_the_same_run(whole, tmp_path):
    folder, variables = whole
    pretrain(tmp_path, pooled_model(batch_size=0, rows_per_device=2, stop_after=4), STORE)
    again, _ = pretrain(tmp_path, pooled_model(), STORE)  # and goes on by the size of the batch
    same(again, variables)
    assert lines(tmp_path) == lines(folder)


def test_another_model_or_other_data_cannot_go_on_in_its_folder(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    for model, store, said in (
        (pooled_model(peak_learning_rate=0.5), STORE, "train.peak_learning_rate: 0.01 -> 0.5"),
        (dataclasses.replace(pooled_model(), config=pooled.Config(width=8)), STORE, "config.width: 4 -> 8"),
        (pooled_model(), dataclasses.replace(STORE, seed=9), "data: "),
    ):
        with pytest.raises(exit_codes.Changed, match=said):
            pretrain(tmp_path / "run", model, store)


def test_with_patience_the_best_parameters_are_used(tmp_path):
    """A learning rate that spoils what was learned: the best is not the last."""
    model = pooled_model(steps=30, patience=2, validate_every=2, peak_learning_rate=1.0, warmup_steps=20)
    variables, done = pretrain(tmp_path, model, STORE)
    looks = {x["step"]: x["validation/loss/total"] for x in lines(tmp_path) if "validation/loss/total" in x}
    best = min(looks, key=looks.get)
    assert 0 < best < done < 30 and done == best + 4
    examples, network, restored = embedding.restore(tmp_path, model, STORE)
    same(restored, variables)
    mesh, task = sharding.make_mesh(), make_task(model, examples.spec, sharding.make_mesh())
    held = model.module.examples(STORE.view("tuning"), model.config, model.seed, train=False)
    state = {"params": variables["params"], "collections": variables["collections"]}
    again = validation(held, task, model.train, mesh)(jax.device_put(state, sharding.replicated(mesh)))
    assert again["validation/loss/total"] == pytest.approx(looks[best], rel=1e-6)


# ------------------------------------------------------------------------------------------------ validation


def test_without_batches_nothing_is_validated_or_compiled(monkeypatch, tmp_path):
    compiled = []
    monkeypatch.setattr(step, "validation_step", lambda *args, **named: compiled.append(args))
    model, mesh = pooled_model(steps=10, validate_batches=0), sharding.make_mesh(jax.devices()[:1])
    held = model.module.examples(STORE.view("tuning"), model.config, 1, False)
    task = make_task(model, held.spec, mesh)
    assert validation(held, task, model.train, mesh)({"params": {}}) == {} and not compiled
    with pytest.raises(ValueError, match="validate_batches must be positive"):
        pretrain(tmp_path, pooled_model(steps=10, validate_batches=0, patience=2), STORE)


def test_validation_is_of_the_first_batches_as_of_one_at_the_final_weights():
    """Of the tuning split as recorded, without dropout."""
    model, mesh = pooled_model(steps=10, validate_batches=2), sharding.make_mesh(jax.devices()[:1])
    held = model.module.examples(dataclasses.replace(STORE, n_subjects=200).view("tuning"), model.config, 1, False)
    assert held.rows_per_epoch >= 2 * 16
    task = make_task(model, held.spec, mesh)
    ramped = WeightedTerms(task.objective.terms, {"regression": Ramp(0.0, 3.0, 10)})
    task = dataclasses.replace(task, objective=ramped)
    params, collections = jax.jit(task.init)(jax.random.key(0))
    state = {"params": params, "collections": collections, "step": 0}
    found = validation(held, task, model.train, mesh)(state)
    batches = feed.train_batches(held, 16, n_steps=2, threads=0)
    outputs = [(jax.device_get(task.apply(params, collections, {}, b, None)[0]["regression"]), b) for b in batches]
    errors = [np.square(out - b["y"])[b["valid"]] for out, b in outputs]
    loss, of_batches = np.concatenate(errors).mean(), np.mean([e.mean() for e in errors])
    assert len({e.size for e in errors}) == 2 and abs(of_batches / loss - 1) > 1e-4, "they do not count alike"
    assert found["validation/loss/regression"] == pytest.approx(loss, rel=1e-5)
    assert found["validation/loss/total"] == pytest.approx(3 * loss, rel=1e-5)
    assert found["validation/regression/count"] == sum(b["valid"].sum() for _, b in outputs)


def test_a_split_of_nobody_has_no_validation():
    model, mesh = pooled_model(), sharding.make_mesh(jax.devices()[:1])
    held = model.module.examples(dataclasses.replace(STORE, n_subjects=2).view("tuning"), model.config, 1, False)
    assert validation(held, make_task(model, held.spec, mesh), model.train, mesh)({"params": {}}) == {}


# ------------------------------------------------------------------------------------------------ the joint family

CONTEXT = {"tokens": 64, "windows": 32, "context_tokens": 40, "queries": 8, "events": 8, "patch_steps": 3,
           "future_windows": 2, "future_codes": 5, "pairs": 8, "colocated_days": 90.0, "masked_contexts": 1.0,
           "ehr_mask": 0.4}  # fmt: skip
NETWORK = {"width": 16, "n_layers": 1, "n_heads": 2, "mlp_width": 16, "token_width": 8, "time_features": 8,
           "wear_width": 8, "wear_layers": 1, "wear_heads": 2, "source_width": 4, "align_width": 8}  # fmt: skip


def joint_model(**train):
    options = {"steps": 60, "batch_size": 8, "ema_decay": 0.9, "peak_learning_rate": 1e-2,
               "warmup_steps": 2, "log_every": 1, "validate_every": 100, "validate_batches": 1,
               "checkpoint_every": 31}  # fmt: skip
    weights = EVERY_TERM | {"wear_to_ehr": (0.2, 1.0, 5)}
    config = config_of(CONTEXT, weights=weights, posterior="normal", **NETWORK)
    return Model("joint", "joint", config, TrainConfig(**options | train))


@pytest.fixture(scope="module")
def joint(people, tmp_path_factory):
    """(folder, variables) of a joint model of every term, one of whose batches cannot be learned from."""
    folder = tmp_path_factory.mktemp("joint")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feed, "train_batches", spoiled_at(7))
        variables, done = pretrain(folder, joint_model(), small_run.store(people))
    assert done == 60
    return folder, variables


def spoiled_at(step):
    """train_batches whose batch of one step holds a value that is not finite."""
    train_batches = feed.train_batches

    def spoiled(*arguments, start_step=0, n_steps=None, **options):
        batches = train_batches(*arguments, start_step=start_step, n_steps=n_steps, **options)
        for at, batch in enumerate(batches, start=start_step + 1):
            if at == step and n_steps is None:
                batch["value"][0, 0] = np.nan
            yield batch

    return spoiled


@pytest.mark.slow
def test_training_lowers_every_loss(joint):
    found = [x for x in lines(joint[0]) if "loss/total" in x]
    for term in set(WEIGHTS) - {"raw_masked"}:  # the cohort has no raw windows
        values = np.array([x[f"loss/{term}"] for x in found if x["finite"]])
        assert np.mean(values[-10:]) < np.mean(values[:10]), term


@pytest.mark.slow
def test_a_step_that_is_not_finite_is_not_applied(joint):
    """One value of one row is enough for it to be left out, and nothing of it stays."""
    found = [x for x in lines(joint[0]) if "loss/total" in x]
    assert [x["step"] for x in found if not x["finite"]] == [7]
    assert all(np.isfinite(x["loss/total"]) == (x["step"] != 7) for x in found)
    (event,) = [e for e in run_dir.read_lines(joint[0] / run_dir.EVENTS) if e["kind"] == "not_finite"]
    assert event["step"] == 7 and event["examples"]


@pytest.mark.slow
def test_a_resumed_joint_run_has_the_same_losses_and_parameters(people, joint, tmp_path):
    """From its own checkpoint in the middle of it: dropout, draws of z, moments and averages are all in the state."""
    folder, variables = joint
    shutil.copytree(folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "60")
    again, done = pretrain(tmp_path / "run", joint_model(), small_run.store(people))
    assert done == 60
    same(again, variables)
    one, two = ({x["step"]: x for x in lines(f) if "loss/total" in x} for f in (folder, tmp_path / "run"))
    assert [one[s] for s in range(32, 61)] == [two[s] for s in range(32, 61)]
    assert len({x["loss/total"] for x in one.values()}) == 60


@pytest.mark.slow
def test_what_is_restored_is_what_training_returned(people, joint):
    folder, variables = joint
    examples, _, restored = embedding.restore(folder, joint_model(), small_run.store(people))
    same(restored, variables)
    assert len(examples.subject_id) == 25 and not examples.augmented


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["ehr", "wear"])
def test_one_modality_trains_and_embeds_everyone(people, tmp_path, modality):
    context = {k: v for k, v in CONTEXT.items() if k != "pairs"}
    config = config_of(context, (modality,), **NETWORK)
    train = dataclasses.replace(joint_model().train, steps=2, checkpoint_every=2)
    model = Model(f"{modality}_only", "joint", config, train)
    variables, done = pretrain(tmp_path, model, small_run.store(people))
    logged = {k for x in lines(tmp_path) for k in x}
    assert ("loss/ehr_masked" in logged) == (modality == "ehr")
    assert ("loss/wear_masked" in logged) == (modality == "wear")
    examples, network, restored = embedding.restore(tmp_path, model, small_run.store(people))
    same(restored, variables)
    index = pl.DataFrame({"subject_id": examples.subject_id}).with_columns(
        prediction_time=pl.datetime(2016, 1, 1, time_unit="us")
    )
    z = embedding.embed(embedding.encoder(network, restored), examples, index, 4)
    assert z.shape == (25, 16) and np.all(np.isfinite(z)) and done == 2
