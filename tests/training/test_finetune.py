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
from joint_rows import config_of, examples_of
from small_model import random_params

from ehrwear_jax.config.training import FinetuneConfig, TrainConfig
from ehrwear_jax.data.cache import Cache
from ehrwear_jax.evals import cox, protocol
from ehrwear_jax.models.joint.batch import N_SPECIAL
from ehrwear_jax.runtime import run_dir
from ehrwear_jax.training import embedding, finetune, sharding
from ehrwear_jax.training.pretrain import Model, make_task

CONTEXT = {"tokens": 40, "windows": 14, "context_tokens": 40, "queries": 4, "events": 4, "patch_steps": 3,
           "future_windows": 1, "future_codes": 3, "history_tokens": 4}  # fmt: skip
NETWORK = {"width": 8, "n_layers": 2, "n_heads": 2, "mlp_width": 16, "token_width": 8, "time_features": 8,
           "source_width": 4, "n_components": 2, "count_width": 0, "attention": "reference"}  # fmt: skip
# events only: a model without an encoder of signals compiles in a third of the time
MODEL = Model("ehr_only", "joint", config_of(CONTEXT, ("ehr",), **NETWORK), TrainConfig())
MODES = ("head", "lora", "adapter", "full")
ROWS = 3  # no divisor of the devices: one is enough


def config(**options):
    defaults = {"steps": 60, "batch_size": ROWS, "validate_every": 15, "warmup_steps": 2, "rank": 2, "alpha": 4.0,
                "adapter_width": 8, "learning_rate": 5e-2, "full_learning_rate": 1e-2,
                "dropout": False}  # fmt: skip
    return FinetuneConfig(**defaults | options)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = cohort.write_cohort(tmp_path_factory.mktemp("cohort"), 40)
    return cohort.prepare_cohort(root, step_minutes=60)


@pytest.fixture(scope="module")
def examples(root):
    return examples_of(root, CONTEXT, split=None, augmented=False, modalities=("ehr",), **NETWORK)


def network_of(model, examples):
    return make_task(model, examples.spec, sharding.make_mesh(jax.devices()[:1])).network


@pytest.fixture(scope="module")
def params(examples):
    """Weights far from zero, so that nothing hides behind a small initial scale."""
    network = network_of(MODEL, examples)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), examples.spec.empty(1)))["params"]
    return jax.device_get(random_params(shapes, seed=1, mean=0.05, spread=0.3))


@pytest.fixture(scope="module")
def encode(examples):
    """(parameters, batch) -> z."""
    run = jax.jit(lambda p, b: network_of(MODEL, examples).apply({"params": p}, b, method="encode"))
    return lambda params, batch: np.asarray(run(params, batch))


@pytest.fixture(scope="module")
def times(examples):
    """{task: {split: labelled prediction times}}: whether E11 was ever noted by then, which the record tells."""
    people = examples.people
    split = dict(people.index.select("subject_id", "split").iter_rows())
    code = np.array(people.vocabulary.tokens["code"].to_list())
    rng, rows = np.random.default_rng(0), []
    for i, subject in enumerate(examples.subject_id.tolist()):
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
def z(examples, encode, params, times):
    def at(table):
        return embedding.embed(lambda b: encode(params, b), examples, table, ROWS)

    return {s: at(table) for s, table in times["binary"].items()}


@pytest.fixture(scope="module")
def source(examples, params, times, z):
    """{task: Source}."""
    variables = {"params": params, "collections": {}}
    return {task: finetune.Source(MODEL, examples, variables, of, z) for task, of in times.items()}


def flat(tree):
    return traverse_util.flatten_dict(jax.device_get(tree), sep="/")


def falling():
    """In place of finetune.tuning_loss: every look at the tuning split is a better one."""
    losses = itertools.count(0, -1)
    return lambda *_: float(next(losses))


def logged(folder):
    """{step: what was logged of it}."""
    found = {}
    for line in run_dir.read_lines(folder / "metrics.jsonl"):
        found.setdefault(line["step"], {}).update(line)
    return found


@pytest.fixture(scope="module")
def found(source, tmp_path_factory):
    """{mode: (Finetuned after all its few, fast steps, its folder)}."""
    out, folder = {}, tmp_path_factory.mktemp("found")
    with pytest.MonkeyPatch.context() as patch:
        for mode in MODES:
            patch.setattr(finetune, "tuning_loss", falling())
            settings = config(dropout=mode == "lora")
            out[mode] = finetune.finetune(folder / mode, source["binary"], settings, mode), folder / mode
    return out


def test_only_what_the_mode_names_changes(found, params):
    """All other parameters keep every bit, and the numbers that could change are counted."""
    kernels = {f"backbone/blocks/{n}/kernel" for n in ("query", "key", "value", "out", "up", "down")}
    before, n_layers, width, hidden = flat(params), 2, NETWORK["width"], NETWORK["mlp_width"]
    for mode, (f, _) in found.items():
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


def start_of(examples, params, mode, settings=None):
    """(network of the mode, what of it the mode lets change)."""
    settings = settings or config()
    network = network_of(finetune.adapted(MODEL, settings, mode), examples)
    return network, jax.device_get(finetune._start_model(network, examples.spec, params, mode, settings, 0))


def test_full_changes_what_z_depends_on(examples, params, encode, times, found):
    """z feels each of those alone, and none of the others: not the heads of pretraining."""
    batch, _ = batches(examples, times["binary"]["train"])(0)
    batch = {k: v for k, v in batch.items() if not k.startswith(finetune.LABEL)}
    before, z, rng = flat(params), encode(params, batch), np.random.default_rng(0)
    read = set(flat(start_of(examples, params, "full")[1]))
    after = flat(found["full"][0].params)
    assert read == {n for n, x in before.items() if x.tobytes() != np.asarray(after[n]).tobytes()}

    def z_without(names):
        other = before | {n: x + rng.normal(0, 1, x.shape).astype(x.dtype) for n, x in before.items() if n in names}
        return encode(traverse_util.unflatten_dict(other, sep="/"), batch)

    np.testing.assert_array_equal(z_without(before.keys() - read), z)
    assert {"term_head_future_codes/kernel", "term_head_ehr_history/kernel", "code_head/bias"} < before.keys() - read
    cancels = "backbone/blocks/key/bias"  # in softmax, the same for all keys: only rounding is left of it, or nothing
    assert cancels in read
    assert not [name for name in sorted(read - {cancels}) if np.all(z_without({name}) == z)]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["lora", "adapter"])
def test_what_is_new_starts_as_no_change(examples, params, encode, times, mode):
    """z of the model with it equals that of the pretrained one bit for bit, when each operation runs by itself.

    Compiled, they are two programs, and which of their operations XLA fuses, and so rounds together, is up to it.
    """
    network, new = start_of(examples, params, mode)
    assert any(np.any(x) for x in jax.tree.leaves(new))
    batch, _ = next(examples.prediction_batches([0, 1, 2], [10**15] * 3, ROWS))
    whole = finetune.FinetuneTask(network, mode, config(), None).merged(params, new)
    with jax.disable_jit():
        after = network.apply({"params": whole}, batch, method="encode")
        np.testing.assert_array_equal(after, encode(params, batch))


def test_a_family_without_adapters_says_so():
    toy = Model("toy", "toy_families.pooled", None)
    said = "the family toy_families.pooled has no adapters; fine-tune toy in another mode"
    with pytest.raises(ValueError, match=said):
        finetune.adapted(toy, config(), "adapter")
    assert finetune.adapted(toy, config(), "lora") is toy


def test_fine_tuning_fits_the_training_times_better_than_the_head(found, examples, times):
    table = times["binary"]["train"]
    y = table["boolean_value"].to_numpy().astype(float)
    loss = {}
    for mode, (f, folder) in found.items():
        p = f.predict(examples, table, ROWS)
        loss[mode] = -np.mean(y * np.log(p) + (1 - y) * np.log1p(-p))
        lines = logged(folder)
        assert sorted(lines) == [0, 15, 30, 45, 60] and "loss/total" not in lines[0]
        assert all(np.isfinite(lines[s]["loss/total"]) and lines[s]["skipped"] == 0 for s in (15, 30, 45, 60))
    assert max(loss[m] for m in ("lora", "adapter", "full")) < 0.9 * loss["head"], loss


@pytest.mark.slow
def test_without_a_better_step_the_frozen_probe_is_returned(examples, params, times, z, source, tmp_path, monkeypatch):
    losses = itertools.count()
    monkeypatch.setattr(finetune, "tuning_loss", lambda *_: float(next(losses)))
    f = finetune.finetune(tmp_path, source["binary"], config(dropout=True), "lora")
    assert f.best_step == 0 and f.drift == 0 and f.last_step == 60
    before, after = flat(params), flat(f.params)
    assert all(x.tobytes() == np.asarray(after[n]).tobytes() for n, x in before.items())
    y = {s: times["binary"][s]["boolean_value"].to_numpy().astype(float) for s in ("train", "tuning")}
    expected = protocol.predict_binary(z, y).probability["held_out"]
    np.testing.assert_array_equal(f.predict(examples, times["binary"]["held_out"], ROWS), expected)


def test_a_survival_head_is_judged_by_its_partial_likelihood(examples, times, z, source, tmp_path, monkeypatch):
    """By the risk set of a batch in training; the baseline hazard is fitted again to the new log-hazards."""
    real, looks, losses = finetune.tuning_loss, [], falling()

    def look(*arguments):
        looks.append(real(*arguments))
        return losses()

    monkeypatch.setattr(finetune, "tuning_loss", look)
    f = finetune.finetune(tmp_path, source["survival"], config(steps=30), "head")
    train, tuning = times["survival"]["train"], times["survival"]["tuning"]
    start = finetune.fit_probe(times["survival"], z)
    likelihood = cox.PartialLikelihood(tuning["time_to_event_days"], tuning["event_observed"])
    assert looks[0] == pytest.approx(-likelihood.value(start.log_hazard(z["tuning"])) / likelihood.n_events, rel=1e-5)
    assert len(set(looks)) == 3 and f.best_step == 30
    assert np.all(f.probe.coef_D != start.coef_D)
    times_T, hazard = cox.breslow(
        train["time_to_event_days"], train["event_observed"], f.predict(examples, train, ROWS)
    )
    np.testing.assert_array_equal(f.probe.event_times_T, times_T)
    np.testing.assert_allclose(f.probe.cumulative_hazard_T, hazard, rtol=1e-6)
    assert np.any(np.abs(hazard / start.cumulative_hazard_T - 1) > 1e-4)


# ------------------------------------------------------------------------------------------------ labelled times


def batches(examples, table, seed=0):
    return finetune.LabelledBatches(examples, table, ROWS, seed)


def test_batches_hold_every_time_once_an_epoch_with_its_label_and_its_z(examples, encode, params, times, z):
    table, drawn = times["binary"]["train"], []
    y, made = table["boolean_value"].to_numpy(), batches(examples, table)
    for at in itertools.count():
        batch, time_BxS = made(at)
        valid = time_BxS >= 0
        np.testing.assert_array_equal(batch[finetune.VALID], valid)
        np.testing.assert_array_equal(batch[finetune.OUTCOME][valid], y[time_BxS[valid]])
        inputs = {k: v for k, v in batch.items() if not k.startswith(finetune.LABEL)}
        examples.spec.check(inputs, ROWS)
        np.testing.assert_allclose(encode(params, inputs)[valid], z["train"][time_BxS[valid]], rtol=1e-4, atol=1e-5)
        drawn += time_BxS[valid].tolist()
        if len(drawn) >= 2 * len(y):
            break
    # one that does not fit into its batch waits for another epoch
    counts = np.bincount(drawn[: 2 * len(y)], minlength=len(y))
    assert counts.max() <= 3 and counts.mean() > 1.9 and np.count_nonzero(counts) > 0.9 * len(y)


def test_what_comes_after_a_prediction_time_is_in_no_batch(examples, times):
    """Every person's later events are exchanged: the batches are the same, bit for bit."""
    at_300 = pl.col("prediction_time") == datetime(2015, 1, 1) + timedelta(days=300)
    table = times["binary"]["train"].filter(at_300)
    end = table["prediction_time"].to_physical()[0]
    other, n_changed = copy.copy(examples), 0
    other.people = copy.copy(examples.people)
    other.people.cache = Cache(0)
    for i in range(len(examples)):
        person = examples.people[i]
        later = person.event_time_K > end
        token = np.where(later, N_SPECIAL, person.event_token_K).astype(person.event_token_K.dtype)
        value = np.where(later, np.float32(9), person.event_value_K)
        other.people.cache.held[i] = dataclasses.replace(person, event_token_K=token, event_value_K=value)
        n_changed += later.sum()
    assert n_changed > 50 and table.height > 10
    one, two = batches(examples, table), batches(other, table)
    for at in range(6):
        (a, _), (b, _) = one(at), two(at)
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)
        seen = a["query_kv_range"][..., 1] > a["query_kv_range"][..., 0]
        last = np.take_along_axis(a["time"], np.maximum(a["query_kv_range"][..., 1] - 1, 0), axis=1)
        assert seen.any() and (last <= a["query_time"])[seen].all()
