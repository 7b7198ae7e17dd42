"""Fine-tuning as a run of the loop, by a family with running statistics: killed, resumed, stopped early; its losses."""

import dataclasses
import itertools

import jax
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from toy_families import pooled

from ehrwear_jax.config.training import FinetuneConfig, TrainConfig
from ehrwear_jax.evals import cox, probes
from ehrwear_jax.runtime import exit_codes, run_dir
from ehrwear_jax.training import embedding, finetune
from ehrwear_jax.training.pretrain import Model, pretrain
from ehrwear_jax.training.throughput import TIMINGS

STORE = pooled.Store(n_subjects=64)
DAY_US = pooled.DAY_US
CONFIG = FinetuneConfig(steps=12, batch_size=8, validate_every=2, warmup_steps=1, learning_rate=1e-2, rank=2,
                        full_learning_rate=1e-2, patience=9, kernels="(inner|outer)/kernel")  # fmt: skip
LATEST = 250  # days


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A trained model with two labelled times of everybody: does the mean of the first feature lie above zero?"""
    folder = tmp_path_factory.mktemp("source")
    train = TrainConfig(steps=10, batch_size=16, warmup_steps=1, peak_learning_rate=1e-2, checkpoint_every=10)
    model = Model("toy", "toy_families.pooled", pooled.Config(), train, seed=3)
    variables, _ = pretrain(folder, model, STORE)
    examples = model.module.examples(STORE.view(None), model.config, model.seed, train=False)
    rng, rows = np.random.default_rng(0), []
    for i in range(STORE.n_subjects):
        at, x, _ = STORE.record(i)
        for time in rng.integers(100 * DAY_US, LATEST * DAY_US, 2) if len(at) else ():
            known = x[at <= time][:, 0]
            if len(known):
                rows.append((100 + i, int(time), bool(known.mean() > 0), pooled.SPLITS[i % 4]))
    table = pl.DataFrame(rows, ["subject_id", "prediction_time", "boolean_value", "split"], orient="row")
    table = table.with_columns(pl.col("prediction_time").cast(pl.Datetime("us")))
    times = {s: table.filter(split=s).drop("split") for s in ("train", "tuning")}
    encode = embedding.encoder(model.module.network(examples.spec, model.config), variables)
    z = {s: embedding.embed(encode, examples, of, 8) for s, of in times.items()}
    return finetune.Source(model, examples, jax.device_get(variables), times, z)


def lines(folder):
    found = run_dir.read_lines(folder / "metrics.jsonl")
    return [{k: v for k, v in x.items() if k not in TIMINGS} for x in found]


def same(one, two):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(one), jax.device_get(two))


def assert_same_run(one, two):
    same(one.params, two.params)
    np.testing.assert_array_equal(one.probe.coef_D, two.probe.coef_D)
    assert (one.best_step, one.last_step, one.drift, one.n_trained) == (
        two.best_step, two.last_step, two.drift, two.n_trained
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """(folder, Finetuned) of a run that nobody interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, finetune.finetune(folder, source, CONFIG, "lora")


class Interrupted(Exception):
    pass


def killed_at(step):
    """LabelledBatches of a process that ends when the batch of a step is asked for, whatever it had saved before."""
    real = finetune.LabelledBatches

    class Killed(real):
        def __call__(self, at):
            if at + 1 == step:
                raise Interrupted
            return super().__call__(at)

    return Killed


FURTHER = [pytest.param(s, marks=pytest.mark.slow) for s in ((1,), (9, 12))]


@pytest.mark.parametrize("steps", [(6,), (2, 3, 5), *FURTHER])
def test_a_killed_run_goes_on_as_if_nothing_had_been(source, whole, tmp_path, monkeypatch, steps):
    """Before its first checkpoint, behind one, between two, several times: every bit and every logged loss."""
    for step in steps:
        with monkeypatch.context() as patch:
            patch.setattr(finetune, "LabelledBatches", killed_at(step))
            with pytest.raises(Interrupted):
                finetune.finetune(tmp_path, source, CONFIG, "lora")
    again = finetune.finetune(tmp_path, source, CONFIG, "lora")
    assert_same_run(again, whole[1])
    # what was done and not saved is done, and logged, again: the last of each is that of the whole run
    assert {x["step"]: x for x in lines(tmp_path) if "loss/total" in x} == {
        x["step"]: x for x in lines(whole[0]) if "loss/total" in x
    }


def test_two_runs_are_the_same_and_a_finished_one_does_nothing_more(source, whole, tmp_path):
    one = finetune.finetune(tmp_path, source, CONFIG, "lora")
    assert_same_run(one, whole[1])
    before = lines(tmp_path)
    assert before == lines(whole[0])
    assert_same_run(finetune.finetune(tmp_path, source, CONFIG, "lora"), one)
    assert lines(tmp_path) == before


def test_a_run_goes_on_when_more_is_to_be_fine_tuned(source, whole):
    """Which models, modes and tasks there are says nothing about how one of them is tuned."""
    wider = dataclasses.replace(CONFIG, modes=("head", "lora"), tasks=("another",))
    before = lines(whole[0])
    assert_same_run(finetune.finetune(whole[0], source, wider, "lora"), whole[1])
    assert lines(whole[0]) == before


def test_other_labels_another_mode_or_other_options_cannot_go_on_in_its_folder(source, whole):
    flipped = source.times | {"train": source.times["train"].with_columns(~pl.col("boolean_value"))}
    for other, config, mode in (
        (dataclasses.replace(source, times=flipped), CONFIG, "lora"),
        (source, CONFIG, "full"),
        (source, dataclasses.replace(CONFIG, learning_rate=0.5), "lora"),
        (dataclasses.replace(source, model=dataclasses.replace(source.model, seed=9)), CONFIG, "lora"),
    ):
        with pytest.raises(exit_codes.Changed):
            finetune.finetune(whole[0], other, config, mode)


def test_early_stopping_returns_the_best_step(source, tmp_path, monkeypatch):
    script, seen = [0.9, 0.8, 0.7, np.nan, 0.75, 0.1], []

    def look(probe, z_NxD, times):
        seen.append((probe.coef_D, z_NxD))
        return script[len(seen) - 1]

    monkeypatch.setattr(finetune, "tuning_loss", look)
    f = finetune.finetune(tmp_path, source, dataclasses.replace(CONFIG, patience=2), "full")
    assert (f.best_step, f.last_step) == (4, 8) and len(seen) == 5
    coef, features = seen[2]
    np.testing.assert_array_equal(f.probe.coef_D, coef)
    np.testing.assert_array_equal(embedding.embed(f.encode, source.examples, source.times["tuning"], 8), features)
    assert np.any(seen[-1][1] != features), "training went on behind the best step"


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_running_statistics_stay_those_of_the_trained_model(source, tmp_path, monkeypatch, mode):
    """What the parameters have become gives the new z with the statistics that were there, and only with them."""
    losses = itertools.count(0, -1)
    monkeypatch.setattr(finetune, "tuning_loss", lambda *_: float(next(losses)))
    f = finetune.finetune(tmp_path, source, dataclasses.replace(CONFIG, steps=4), mode)
    assert f.drift > 1e-4 and f.best_step == f.last_step == 4
    given, network = source.variables, source.model.module.network(source.examples.spec, source.model.config)
    batch, _ = next(source.examples.prediction_batches([0, 1], [LATEST * DAY_US] * 2, 8))

    def z(collections):
        return embedding.encoder(network, {"params": f.params, "collections": collections})(batch)

    np.testing.assert_allclose(f.encode(batch), z(given["collections"]), rtol=1e-6, atol=1e-6)
    other = jax.tree.map(lambda x: x + 1.0, given["collections"])
    assert np.abs(f.encode(batch) - z(other)).max() > 1e-3


# ------------------------------------------------------------------------------------------------ labelled batches


def test_batches_are_a_function_of_the_seed_and_the_step(source):
    """In whatever order they are asked for, as a resumed run asks."""
    table = source.times["train"]
    made = finetune.LabelledBatches(source.examples, table, 4, seed=1)
    again = finetune.LabelledBatches(source.examples, table, 4, seed=1)
    other = finetune.LabelledBatches(source.examples, table, 4, seed=2)
    later = again.since(5)
    for at in (7, 0, 5, 6, 100):
        (one, times_BxS), (two, _) = made(at), again(at)
        assert one.keys() == two.keys() and all(np.array_equal(one[k], two[k], equal_nan=True) for k in one)
        assert set(times_BxS[times_BxS >= 0]) <= set(made.chosen(at))
    for at in (5, 6, 7):
        batch = next(later)
        assert all(np.array_equal(batch[k], x, equal_nan=True) for k, x in made(at)[0].items())
    assert not np.array_equal(made.chosen(0), other.chosen(0))


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_every_time_is_shown_equally_often(source, batch_size):
    """Each epoch once, in another order: also where an epoch ends within a batch, and where one batch holds it all."""
    made = finetune.LabelledBatches(source.examples, source.times["train"], batch_size, seed=1)
    n = source.times["train"].height
    assert 1 <= made.per_batch <= n and (made.per_batch == n) == (batch_size == 64)
    drawn = np.concatenate([made.chosen(at) for at in range(-(-4 * n // made.per_batch))])
    epochs = [drawn[k * n : (k + 1) * n] for k in range(4)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(n))
    assert not np.array_equal(epochs[0], epochs[1])
    assert all(len(made.chosen(at)) == made.per_batch for at in range(9))


# ------------------------------------------------------------------------------------------------ losses


@given(st.integers(0, 10**6))
@settings_of_hypothesis(max_examples=20)
def test_the_losses_are_those_of_the_labelled_times_alone(seed):
    """Of a Cox batch: -log partial likelihood per time (Efron) of the valid slots; others have no gradient."""
    rng = np.random.default_rng(seed)
    eta, valid = rng.normal(0, 3, (3, 4)).astype(np.float32), rng.random((3, 4)) < 0.6
    valid[0, 0] = True
    time, event = rng.integers(0, 5, (3, 4)).astype(np.float32), rng.random((3, 4)) < 0.7
    label = (rng.random((3, 4)) < 0.5).astype(np.float32)
    likelihood = cox.PartialLikelihood(time[valid], event[valid])
    expected = {
        "survival": -likelihood.value(eta[valid].astype(np.float64)) / valid.sum(),
        "binary": probes.log_loss(label[valid], eta[valid].astype(np.float64)),
    }
    labels = {"survival": {finetune.TIME: time, finetune.EVENT: event}, "binary": {finetune.OUTCOME: label}}
    for task, mine in labels.items():
        batch = mine | {finetune.VALID: valid}
        loss, gradient = LOSS(eta, batch, finetune.LabelObjective().normalisers(batch)["labels"])
        np.testing.assert_allclose(loss, expected[task], rtol=1e-5, atol=1e-6)
        assert np.isfinite(gradient).all() and not np.any(gradient[~valid])


LOSS = jax.jit(jax.value_and_grad(finetune.label_loss))


@pytest.mark.parametrize("options, said", [({"modes": ("qlora",)}, "qlora"), ({"rank": 0}, "rank is 0")])
def test_settings_that_cannot_run_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        FinetuneConfig(**options)
