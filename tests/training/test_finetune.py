"""Fine-tuning: it starts as the frozen probe, changes what its mode says and nothing else, and sees no future."""

import copy
import dataclasses
import itertools
from datetime import datetime, timedelta

import cohort
import jax
import numpy as np
import polars as pl
import pytest
from flax import traverse_util
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st

from ehrwear_jax.evals import cox, probes, protocol
from ehrwear_jax.models.joint import batch as batch_lib
from ehrwear_jax.models.joint import examples as pipeline
from ehrwear_jax.training import embedding, finetune, sharding, train
from ehrwear_jax.training.finetune import FinetuneConfig

CONTEXT = {"tokens": 40, "windows": 14, "context_tokens": 40, "queries": 4, "events": 4, "patch_steps": 3,
           "future_windows": 1, "future_codes": 3, "recalled_tokens": 4}  # fmt: skip
MODEL = {"width": 8, "n_layers": 2, "n_heads": 2, "mlp_width": 16, "token_width": 8, "time_features": 8,
         "wear_width": 8, "wear_layers": 1, "wear_heads": 2, "source_width": 4, "n_components": 2,
         "count_width": 0, "attention": "reference"}  # fmt: skip
MODES = ("head", "lora", "adapter", "full")
ROWS = 3  # no divisor of the devices: one is enough


def config(mode, **options):
    defaults = {"steps": 60, "batch_size": ROWS, "validate_every": 15, "warmup_steps": 2, "rank": 2, "alpha": 4.0,
                "adapter_width": 3, "learning_rate": 5e-2, "full_learning_rate": 1e-2,
                "dropout": mode == "lora"}  # fmt: skip
    return FinetuneConfig(mode, **defaults | options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = cohort.write_cohort(tmp_path_factory.mktemp("cohort"), 40)
    return cohort.prepare_cohort(root, step_minutes=60)


@pytest.fixture(scope="module")
def people(folder):
    """Events only: a model without an encoder of signals compiles in a third of the time."""
    return cohort.open_patients(folder, pipeline.ContextConfig(modalities=("ehr",), **CONTEXT))


def random_params(people, options=MODEL):
    """Weights far from zero, so that nothing hides behind a small initial scale."""
    model, example = train.make_model(people, options), batch_lib.empty_batch(people.batch_shape(), 1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), example)["params"]
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    return tree.unflatten([rng.normal(0.05, 0.3, x.shape).astype(x.dtype) for x in leaves])


@pytest.fixture(scope="module")
def params(people):
    return random_params(people)


def encoder(people, params, options=MODEL):
    """As embedding.make_encoder, of the functions that finetune has compiled."""
    mesh = sharding.make_mesh(jax.local_devices()[:1])
    model, params = train.make_model(people, options, mesh), jax.device_put(params, sharding.replicated(mesh))
    return lambda batch: np.asarray(finetune._encode(model)(params, sharding.device_batch(batch, mesh)))


@pytest.fixture(scope="module")
def encode(people, params):
    return encoder(people, params)


@pytest.fixture(scope="module")
def reads(people):
    """{task: {split: labelled reads}}: whether E11 was ever noted by then, which the record tells."""
    split = dict(people.index.select("subject_id", "split").iter_rows())
    code = np.array(people.vocabulary.tokens["code"].to_list())
    rng, rows = np.random.default_rng(0), []
    for i, subject in enumerate(people.index["subject_id"].to_list()):
        person = people[i]
        for day in (150, 300, 450):
            time = datetime(2015, 1, 1) + timedelta(days=day)
            before = person.event_time_K <= (time - datetime(1970, 1, 1)).total_seconds() * 1e6
            has = bool((code[person.event_token_K[before]] == "DX//E11").any())
            rows.append((subject, time, has, float(rng.integers(1, 30) + 20 * (not has)), bool(rng.random() < 0.8)))
    names = ["subject_id", "prediction_time", "boolean_value", "time_to_event_days", "event_observed"]
    table = pl.DataFrame(rows, names, orient="row").with_columns(pl.col("prediction_time").cast(pl.Datetime("us")))
    table = table.with_columns(split=pl.col("subject_id").replace_strict(split))
    columns = {"binary": names[:3], "survival": [*names[:2], *names[3:]]}
    splits = ("train", "tuning", "held_out")
    return {task: {s: table.filter(split=s).select(c) for s in splits} for task, c in columns.items()}


@pytest.fixture(scope="module")
def z(people, encode, reads):
    return {s: embedding.embed(encode, people, table, ROWS) for s, table in reads["binary"].items()}


def batches(people, table):
    return finetune.read_batches(people, table, ROWS, seed=0)


def flat(tree):
    return traverse_util.flatten_dict(jax.device_get(tree), sep="/")


def falling():
    """In place of finetune._evaluate: every look at the tuning split is a better one."""
    losses = itertools.count(0, -1)
    return lambda *_: float(next(losses))


@pytest.fixture(scope="module")
def found(people, params, reads, z):
    """{mode: Finetuned after all its few, fast steps}."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune, "_evaluate", falling())
        return {m: finetune.finetune(people, params, MODEL, reads["binary"], z, config(m)) for m in MODES}


def test_only_what_the_mode_names_changes(found, params):
    """All other parameters keep every bit, and the numbers that could change are counted."""
    kernels = {f"backbone/blocks/{n}/kernel" for n in ("query", "key", "value", "out", "up", "down")}
    before, n_layers, width, hidden = flat(params), 2, MODEL["width"], MODEL["mlp_width"]
    for mode, f in found.items():
        after = flat(f.params)
        changed = {n for n, x in before.items() if x.tobytes() != np.asarray(after[n]).tobytes()}
        new = set(after) - set(before)
        assert f.best_step == f.last_step == 60 and f.n_trained["head"] == width + 1
        if mode == "lora":
            assert changed == kernels and not new
            assert f.n_trained["model"] == n_layers * 2 * (4 * 2 * width + 2 * (width + hidden))
        elif mode == "full":
            assert kernels < changed and not new
            assert f.n_trained["model"] == sum(before[n].size for n in changed)
        else:
            assert not changed and len(new) == (8 if mode == "adapter" else 0)
            assert f.n_trained["model"] == sum(after[n].size for n in new)
        assert (f.drift > 1e-6) == (mode != "head"), f.drift
        assert np.any(f.probe.coef_D != 0)


def test_full_changes_what_z_depends_on(people, params, encode, reads, found):
    """z feels each of those alone, and none of the others: not the heads of pretraining."""
    model, batch = train.make_model(people, MODEL), next(batches(people, reads["binary"]["train"]))[0]
    before, z, rng = flat(params), encode(batch), np.random.default_rng(0)
    read = set(flat(finetune.trainable(model, params, batch, config("full"))))
    after = flat(found["full"].params)
    assert read == {n for n, x in before.items() if x.tobytes() != np.asarray(after[n]).tobytes()}

    def z_without(names):
        other = before | {n: x + rng.normal(0, 1, x.shape).astype(x.dtype) for n, x in before.items() if n in names}
        return encoder(people, traverse_util.unflatten_dict(other, sep="/"))(batch)

    np.testing.assert_array_equal(z_without(before.keys() - read), z)
    assert {"later/kernel", "recall/kernel", "ehr/bias"} < before.keys() - read
    assert all(np.any(z_without({name}) != z) for name in read)


@pytest.mark.parametrize("mode", ["lora", "adapter"])
def test_what_is_new_starts_as_no_change(people, params, encode, reads, mode):
    """z of the model with it equals that of the pretrained one bit for bit, when each operation runs by itself.

    Compiled, they are two programs, and which of their operations XLA fuses, and so rounds together, is up to it.
    """
    settings = config(mode)
    options = finetune.adapted_options(MODEL, settings)
    model, batch = train.make_model(people, options), next(batches(people, reads["binary"]["train"]))[0]
    new = finetune.trainable(model, params, batch, settings)
    assert any(np.any(x) for x in jax.tree.leaves(new))
    with jax.disable_jit():
        after = encoder(people, finetune.merged(params, new, settings), options)(batch)
        np.testing.assert_array_equal(after, encode(batch))


def test_fine_tuning_fits_the_training_reads_better_than_the_head(found, people, reads):
    table = reads["binary"]["train"]
    y = table["boolean_value"].to_numpy().astype(float)
    loss = {}
    for mode, f in found.items():
        p = f.predict(people, table, ROWS)
        loss[mode] = -np.mean(y * np.log(p) + (1 - y) * np.log1p(-p))
        means = [x["train_loss"] for x in f.history[1:]]
        assert f.history[0]["train_loss"] is None and np.isfinite(means).all() and f.history[-1]["skipped"] == 0
    assert max(loss[m] for m in ("lora", "adapter", "full")) < 0.8 * loss["head"], loss


def test_two_runs_are_the_same(found, people, params, reads, z, monkeypatch):
    monkeypatch.setattr(finetune, "_evaluate", falling())
    again, once = finetune.finetune(people, params, MODEL, reads["binary"], z, config("lora")), found["lora"]
    jax.tree.map(np.testing.assert_array_equal, flat(again.params), flat(once.params))
    np.testing.assert_array_equal(again.probe.coef_D, once.probe.coef_D)
    assert [x["train_loss"] for x in again.history] == [x["train_loss"] for x in once.history]


def test_early_stopping_returns_the_best_step(people, params, reads, z, monkeypatch):
    script, seen = [0.9, 0.8, 0.7, np.nan, 0.75, 0.1], []

    def evaluate(probe, z_NxD, reads):
        seen.append((probe.coef_D, z_NxD))
        return script[len(seen) - 1]

    monkeypatch.setattr(finetune, "_evaluate", evaluate)
    f = finetune.finetune(people, params, MODEL, reads["binary"], z, config("lora", patience=2))
    assert (f.best_step, f.last_step) == (30, 60) and [x["tuning_loss"] for x in f.history] == script[:3] + script[3:5]
    coef, features = seen[2]
    np.testing.assert_array_equal(f.probe.coef_D, coef)
    np.testing.assert_array_equal(embedding.embed(f.encode, people, reads["binary"]["tuning"], ROWS), features)
    assert np.any(seen[-1][1] != features), "training went on behind the best step"


def test_without_a_better_step_the_frozen_probe_is_returned(people, params, reads, z, monkeypatch):
    losses = itertools.count()
    monkeypatch.setattr(finetune, "_evaluate", lambda *_: float(next(losses)))
    f = finetune.finetune(people, params, MODEL, reads["binary"], z, config("lora"))
    assert f.best_step == 0 and f.drift == 0
    before, after = flat(params), flat(f.params)
    assert all(x.tobytes() == np.asarray(after[n]).tobytes() for n, x in before.items())
    y = {s: reads["binary"][s]["boolean_value"].to_numpy().astype(float) for s in ("train", "tuning")}
    expected = protocol.predict_binary(z, y).probability["held_out"]
    np.testing.assert_array_equal(f.predict(people, reads["binary"]["held_out"], ROWS), expected)


def test_a_step_that_is_not_finite_changes_nothing(people, params, reads, z):
    settings, mesh = config("lora"), sharding.make_mesh(jax.local_devices()[:1])
    model = train.make_model(people, MODEL, mesh)
    optimizer, compiled, _ = finetune._step(model, settings, mesh)
    probe = finetune._fit_probe(reads["binary"], z)
    batch, target, _ = next(batches(people, reads["binary"]["train"]))
    whole = jax.device_put(params, sharding.replicated(mesh))

    def step(state, batch):
        constants = finetune._constants(probe)
        return compiled(state, whole, constants, *(sharding.device_batch(x, mesh) for x in (batch, target)))

    state = finetune.init_state(model, optimizer, params, probe, batch, settings, mesh)
    before = jax.device_get(state)
    state, loss = step(state, batch | {"value": np.full_like(batch["value"], np.nan)})
    assert not np.isfinite(loss) and state["skipped"] == 1 and state["step"] == 1
    for part in ("trained", "optimizer"):
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(state[part]), before[part])
    state, loss = step(state, batch)
    assert np.isfinite(loss) and state["skipped"] == 1
    assert np.any(np.asarray(state["trained"]["head"]["coef"]) != before["trained"]["head"]["coef"])


# ------------------------------------------------------------------------------------------------ reads


def test_batches_hold_every_read_once_an_epoch_with_its_label_and_its_z(people, encode, reads, z):
    table, drawn = reads["binary"]["train"], []
    y = table["boolean_value"].to_numpy()
    for batch, target, read_BxQ in batches(people, table):
        valid = read_BxQ >= 0
        np.testing.assert_array_equal(target["valid"], valid)
        np.testing.assert_array_equal(target["label"][valid], y[read_BxQ[valid]])
        np.testing.assert_allclose(encode(batch)[valid], z["train"][read_BxQ[valid]], rtol=1e-4, atol=1e-5)
        drawn += read_BxQ[valid].tolist()
        if len(drawn) >= 2 * len(y):
            break
    epochs = drawn[: len(y)], drawn[len(y) : 2 * len(y)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(len(y))) and epochs[0] != epochs[1]
    again = [r[r >= 0].tolist() for _, _, r in itertools.islice(batches(people, table), 3)]
    assert drawn[: sum(map(len, again))] == list(itertools.chain(*again))
    other = next(finetune.read_batches(people, table, ROWS, seed=1))[2]
    assert other[other >= 0].tolist() != again[0]


def test_what_comes_after_a_read_is_in_no_batch(people, reads):
    """Every person's later events are exchanged: the batches are the same, bit for bit."""
    table = reads["binary"]["train"].filter(pl.col("prediction_time") == datetime(2015, 1, 1) + timedelta(days=300))
    end = table["prediction_time"].to_physical()[0]
    other, n_changed = copy.copy(people), 0
    other._cache = {}
    for i in range(len(people)):
        person = people[i]
        later = person.event_time_K > end
        token = np.where(later, batch_lib.N_SPECIAL, person.event_token_K).astype(person.event_token_K.dtype)
        value = np.where(later, np.float32(9), person.event_value_K)
        other._cache[i] = dataclasses.replace(person, event_token_K=token, event_value_K=value)
        n_changed += later.sum()
    assert n_changed > 50 and table.height > 10
    for (a, _, _), (b, _, _) in itertools.islice(zip(batches(people, table), batches(other, table), strict=False), 6):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)
        seen = a["query_kv_range"][..., 1] > a["query_kv_range"][..., 0]
        last = np.take_along_axis(a["time"], np.maximum(a["query_kv_range"][..., 1] - 1, 0), axis=1)
        assert seen.any() and (last <= a["query_time"])[seen].all()


# ------------------------------------------------------------------------------------------------ losses


@given(st.integers(0, 10**6))
@settings_of_hypothesis(max_examples=20)
def test_the_losses_are_those_of_the_reads_alone(seed):
    """Of a Cox batch: -log partial likelihood per read (Efron) of the valid slots; others have no gradient."""
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
    targets = {"survival": {"time": time, "event": event}, "binary": {"label": label}}
    for task, target in targets.items():
        loss, gradient = LOSS(eta, target | {"valid": valid})
        np.testing.assert_allclose(loss, expected[task], rtol=1e-5, atol=1e-6)
        assert np.isfinite(gradient).all() and not np.any(gradient[~valid])


LOSS = jax.jit(jax.value_and_grad(finetune.read_loss))


def test_a_survival_head_lowers_the_partial_likelihood_of_tuning(people, params, reads, z):
    """By a risk set of a batch; the baseline hazard is fitted again to the new log-hazards."""
    f = finetune.finetune(people, params, MODEL, reads["survival"], z, config("head", head_learning_rate=1e-4))
    train_reads = reads["survival"]["train"]
    labels = train_reads["time_to_event_days"], train_reads["event_observed"]
    start = finetune._fit_probe(reads["survival"], z)
    likelihood = cox.PartialLikelihood(reads["survival"]["tuning"]["time_to_event_days"],
                                       reads["survival"]["tuning"]["event_observed"])  # fmt: skip
    expected = -likelihood.value(start.log_hazard(z["tuning"])) / likelihood.n_events
    assert f.history[0]["tuning_loss"] == pytest.approx(expected, rel=1e-5)
    assert min(x["tuning_loss"] for x in f.history) == next(
        x["tuning_loss"] for x in f.history if x["step"] == f.best_step
    )
    times, hazard = cox.breslow(*labels, f.predict(people, train_reads, ROWS))
    np.testing.assert_array_equal(f.probe.event_times_T, times)
    np.testing.assert_allclose(f.probe.cumulative_hazard_T, hazard, rtol=1e-6)


@pytest.mark.parametrize("options, said", [({"mode": "qlora"}, "qlora"), ({"mode": "lora", "rank": 0}, "positive")])
def test_settings_that_cannot_run_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        FinetuneConfig(**options)
