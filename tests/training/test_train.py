"""Training on a small random cohort: no leak, exact resume, frozen reads that a cut record repeats."""

import json
import shutil
from datetime import datetime

import cohort
import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.data.formats import meds
from ehrwear_jax.models.joint import batch as batch_lib
from ehrwear_jax.models.joint import examples as pipeline
from ehrwear_jax.models.joint import losses
from ehrwear_jax.training import embedding, schedules, sharding, train

CONTEXT = {"tokens": 64, "windows": 32, "context_tokens": 40, "queries": 8, "events": 8, "patch_steps": 3,
           "future_windows": 3, "future_codes": 5, "pairs": 8, "colocated_days": 90.0,
           "masked_contexts": 1.0, "ehr_mask": 0.4}  # fmt: skip
MODEL = {"width": 16, "n_layers": 2, "n_heads": 2, "mlp_width": 32, "token_width": 8, "time_features": 8,
         "wear_width": 8, "wear_layers": 1, "wear_heads": 2, "source_width": 4, "posterior": "normal",
         "align_width": 8}  # fmt: skip
BATCH = 8


def train_config(**options):
    weights = {term: schedules.Ramp(1.0, 1.0) for term in losses.TERMS}
    weights["wear_to_ehr"] = schedules.Ramp(0.2, 1.0, 5)
    defaults = {"steps": 8, "batch_size": BATCH, "peak_learning_rate": 3e-3, "warmup_steps": 2, "weights": weights,
                "log_every": 1, "validate_every": 4, "validate_batches": 1, "checkpoint_every": 3}  # fmt: skip
    return train.TrainConfig(**defaults | options)


def prepared_config():
    return PrepareConfig(channels=cohort.CHANNELS, log_channels=("activity",), min_subjects=2, min_values=10,
                                 value_bins=4, subjects_per_shard=8, step_minutes=30)  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return cohort.prepare(cohort.write_cohort(tmp_path_factory.mktemp("cohort"), n_subjects=25), prepared_config())


def patients(root, split="train", **options):
    return cohort.open_patients(root, pipeline.ContextConfig(**CONTEXT | options), split)


@pytest.fixture(scope="module")
def setting(root):
    """(patients, rows, model, params, jitted prediction of everything)."""
    people = patients(root)
    model = train.make_model(people, MODEL)
    rows = pipeline.TrainRows(people, 0)
    params = train.init_state(model, train.make_optimizer(train_config()), people, 0, sharding.make_mesh())["params"]
    # weights far from zero, so that a leak cannot hide behind a small initial scale
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    params = tree.unflatten([x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)])
    predict = jax.jit(lambda batch: model.apply({"params": params}, batch))
    return people, rows, model, params, predict


def host(tree):
    return jax.tree.map(np.asarray, tree)


def one_row_batch(rows, g):
    return {k: v[None] for k, v in rows[g].items()}


def busiest(rows):
    """The row with the most context boundaries, masks and windows in it, as a batch of one."""
    score = [(rows[g]["segment"].max() + (rows[g]["masked_position"] >= 0).sum() / 16, g) for g in range(8)]
    return one_row_batch(rows, max(score)[1])


def scramble(batch, tokens, rng):
    """Other content at the given token positions: token, value, age, and signal where they are windows."""
    out = {k: v.copy() for k, v in batch.items()}
    for t in tokens:
        out["token"][0, t] = rng.integers(batch_lib.N_SPECIAL, 15)
        out["value"][0, t] = rng.normal()
        out["age"][0, t] += rng.integers(1, 100)
        if (slot := batch["window"][0, t]) >= 0:
            out["wear"][0, slot] = rng.normal(size=out["wear"].shape[2:])
            out["observed"][0, slot] = rng.random(out["observed"].shape[2:]) < 0.5
            out["patch_mask"][0, slot] = ~out["patch_mask"][0, slot]
    return out


def test_changing_what_comes_later_changes_no_bit(setting):
    """z of a token ignores later tokens and other patients; z of a query ignores what is after its time."""
    _, rows, _, _, predict = setting
    batch = busiest(rows)
    before = host(predict(batch))
    rng = np.random.default_rng(0)
    n = int((batch["segment"][0] > 0).sum())
    moved = 0
    for cut in range(1, n, 5):
        changed = scramble(batch, range(cut, n), rng)
        later = batch["time"][0, cut:n] + rng.uniform(0, 5)
        changed["time"][0, cut:n] = np.maximum.accumulate(later)
        after = host(predict(changed))
        np.testing.assert_array_equal(after["z_token"][0, :cut], before["z_token"][0, :cut])
        blind = np.nonzero(batch["query_kv_range"][0, :, 1] <= cut)[0]
        np.testing.assert_array_equal(after["z_query"][0, blind], before["z_query"][0, blind])
        for name in ("next_logits_query", "later_logits", "ahead_query", "summary_query", "pooled_logits_query"):
            np.testing.assert_array_equal(after[name][0, blind], before[name][0, blind])
        events = np.nonzero((batch["event_position"][0] >= 0) & (batch["event_position"][0] < cut))[0]
        for name in ("next_logits_event", "summary_event", "pooled_logits_event"):
            np.testing.assert_array_equal(after[name][0, events], before[name][0, events])
        windows = np.nonzero((batch["window_position"][0] >= 0) & (batch["window_position"][0] < cut))[0]
        for name in ("rebuilt", "ahead_window"):
            np.testing.assert_array_equal(after[name][0, windows], before[name][0, windows])
        moved += np.any(after["z_token"][0, cut:n] != before["z_token"][0, cut:n])
    assert moved == len(range(1, n, 5)), "the change must reach what may see it"


def test_other_patients_of_the_row_change_no_bit(setting):
    _, rows, _, _, predict = setting
    batch = busiest(rows)
    assert batch["segment"].max() >= 2
    before = host(predict(batch))
    own = batch["segment"][0] == 2
    others = np.nonzero((batch["segment"][0] > 0) & ~own)[0]
    after = host(predict(scramble(batch, others, np.random.default_rng(1))))
    np.testing.assert_array_equal(after["z_token"][0, own], before["z_token"][0, own])
    mine = batch["query_segment"][0] == 2
    np.testing.assert_array_equal(after["z_query"][0, mine], before["z_query"][0, mine])


@pytest.mark.parametrize("kind", ["contiguous", "channel"])
def test_hidden_content_does_not_reach_its_prediction(root, setting, kind):
    """Two records that differ only in what is hidden give the same predictions; the targets differ."""
    people, _, _, _, predict = setting
    rows = pipeline.TrainRows(patients(root, wear_mask_kind=kind), 0)
    found = {"event": 0, "patch": 0}
    for g in range(6):
        batch = one_row_batch(rows, g)
        before = host(predict(batch))
        hidden = np.repeat(batch["patch_mask"], people.config.patch_steps, axis=-1)[..., None]
        hidden = hidden | batch["channel_mask"][:, :, None]
        changed = batch | {
            "wear": np.where(hidden, np.random.default_rng(g).normal(size=batch["wear"].shape), batch["wear"]),
            "observed": np.where(hidden, ~batch["observed"], batch["observed"]),
        }
        changed["wear"] = changed["wear"].astype(np.float32)
        for name in ("masked_target", "event_next", "query_next", "query_code_bin", "event_summary", "query_summary"):
            changed[name] = np.roll(batch[name], 1, axis=-1)  # targets are no inputs
        after = host(predict(changed))
        for name in before:
            np.testing.assert_array_equal(after[name], before[name], err_msg=name)
        found["event"] += int((batch["masked_position"] >= 0).sum())
        found["patch"] += int((hidden & batch["observed"]).sum())
        at = batch["masked_position"][batch["masked_position"] >= 0]
        assert np.all(batch["token"][0, at] == batch_lib.MASK) and not batch["value"][0, at].any()
    assert found["event"] > 5 and found["patch"] > 50


def test_gradient_of_a_prediction_is_zero_for_what_it_may_not_see(setting):
    people, rows, model, params, _ = setting
    batch = busiest(rows)
    n = int((batch["segment"][0] > 0).sum())
    events = np.append(0, np.cumsum(batch["modality"][0] == batch_lib.MODALITY_EHR))
    q = int(np.argmax(events[batch["query_kv_range"][0]] @ [-1, 1]))  # the one that sees the most events

    def read(value, wear):
        out = model.apply({"params": params}, batch | {"value": value, "wear": wear})
        return jnp.sum(out["z_query"][0, q] * jnp.arange(1.0, 17.0))

    value, wear = jax.jit(jax.grad(read, argnums=(0, 1)))(jnp.asarray(batch["value"]), jnp.asarray(batch["wear"]))
    lo, hi = batch["query_kv_range"][0, q]
    seen = np.zeros(batch["value"].shape[1], bool)
    seen[lo:hi] = True
    assert np.all(np.asarray(value)[0, ~seen] == 0) and np.any(np.asarray(value)[0, seen] != 0)
    position = batch["window_position"][0]
    blind = (position < lo) | (position >= hi)
    assert np.all(np.asarray(wear)[0, blind] == 0)
    hidden = np.repeat(batch["patch_mask"][0], people.config.patch_steps, axis=-1)
    assert np.all(np.asarray(wear)[0][hidden] == 0)
    assert n > 10


def test_packed_contexts_equal_contexts_alone(root, setting):
    """Reads from packed rows equal reads from rows that hold one context each."""
    _, _, model, params, _ = setting
    encode = jax.jit(lambda b: model.apply({"params": params}, b, method="encode")[1])
    reads = {}
    for queries in (8, 1):  # one query slot leaves room for one context per row
        people = patients(root, split=None, queries=queries)
        index = np.arange(12)
        times = np.array([people[i].time_N[len(people[i].time_N) // 2] if len(people[i].time_N) else 0 for i in index])
        z = np.zeros((12, 16), np.float32)
        for batch, where in pipeline.inference_batches(people, index, times, 4):
            z[where[where >= 0]] = np.asarray(encode(batch))[where >= 0]
        reads[queries] = z
    np.testing.assert_allclose(reads[8], reads[1], atol=2e-5)
    assert np.std(reads[8]) > 0.1


def cut_cohort(source, target, times):
    """The same raw data without anything after each subject's cut."""
    cut = pl.DataFrame(
        {"subject_id": list(times), "cut": list(times.values())}, {"subject_id": pl.Int64, "cut": pl.Datetime("us")}
    )
    for path in meds.list_shards(source / "meds"):
        events = meds.read_shard(path).join(cut, on="subject_id", how="left")
        events = events.filter(pl.col("time").is_null() | pl.col("cut").is_null() | (pl.col("time") <= pl.col("cut")))
        meds.write_shard(target / path.relative_to(source), events.drop("cut"))
    for path in (source / "wearable").rglob("*.parquet"):
        rows = pl.read_parquet(path)
        if "values" in rows.columns:
            kept = []
            for row in rows.join(cut, on="subject_id", how="left").iter_rows(named=True):
                limit = (
                    (row["cut"] - row["start_time"]).total_seconds() * row["sample_rate_hz"] if row["cut"] else np.inf
                )
                values = row["values"][: max(0, int(np.floor(min(limit, 1e9))))]
                if values:
                    kept.append(row | {"values": values})
            rows = pl.DataFrame(kept, rows.schema | {"cut": pl.Datetime("us")}).drop("cut")
        (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
        rows.write_parquet(target / path.relative_to(source))
    for path in (source / "meds" / "metadata").iterdir():
        (target / "meds" / "metadata").mkdir(parents=True, exist_ok=True)
        (target / "meds" / "metadata" / path.name).write_bytes(path.read_bytes())


def test_a_record_cut_at_t_gives_the_same_z_at_t_as_the_whole(root, setting, tmp_path):
    """From the raw tables on: nothing that prepare or the pipeline does lets the future touch z(t)."""
    _, _, model, params, _ = setting
    people = patients(root, split=None)
    held = [i for i in range(len(people)) if len(people[i].time_N) > 4]
    times = pl.Series("prediction_time", [int(people[i].time_N[len(people[i].time_N) * 2 // 3]) for i in held])
    index = pl.DataFrame([people.index["subject_id"].gather(held), times.cast(pl.Datetime("us"))])
    cut_cohort(root, tmp_path, dict(index.iter_rows()))
    # the table of codes and what was fitted stay those of training, as for a new patient
    (tmp_path / "records").mkdir()
    for name in ("codes.parquet", "texts.parquet", "meta.json"):
        (tmp_path / "records" / name).write_bytes((root / "records" / name).read_bytes())
    cohort.prepare(tmp_path, prepared_config())
    shutil.rmtree(tmp_path / "fit")
    shutil.copytree(root / "fit", tmp_path / "fit")
    encode = embedding.make_encoder(people, MODEL, params)
    whole = embedding.embed(encode, people, index, 4)
    cut = embedding.embed(encode, patients(tmp_path, split=None), index, 4)
    np.testing.assert_array_equal(cut, whole)
    assert len(index) > 10 and np.std(whole) > 0.1


def losses_of(folder):
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    return {x["step"]: x["loss/total"] for x in lines if "loss/total" in x}


def test_resume_gives_the_same_losses_and_parameters(root, tmp_path):
    """With micro-batches and averaged weights, which a checkpoint holds beside those that are trained."""
    people, tuning = patients(root), patients(root, "tuning")
    options = {"batch_size": 2 * BATCH, "accumulate": 2, "ema_decay": 0.9}  # a micro-batch has a row per device
    by_device = train_config(**options | {"batch_size": 0, "rows_per_device": 2})  # the same on 8 devices
    whole, _ = train.pretrain(tmp_path / "whole", people, tuning, MODEL, by_device)
    for stop in (2, 5, None):  # before, on neither side of a checkpoint, to the end
        config = train_config(stop_after=stop, **options)
        params, step = train.pretrain(tmp_path / "parts", people, tuning, MODEL, config)
    assert step == 8 and losses_of(tmp_path / "whole") == losses_of(tmp_path / "parts")
    assert len(losses_of(tmp_path / "whole")) == 8 and len(set(losses_of(tmp_path / "whole").values())) == 8
    jax.tree.map(np.testing.assert_array_equal, host(whole), host(params))
    # a finished run does nothing more
    again, _ = train.pretrain(tmp_path / "parts", people, tuning, MODEL, train_config(**options))
    jax.tree.map(np.testing.assert_array_equal, host(again), host(params))
    read, at = embedding.restore_params(tmp_path / "parts", people, MODEL, train_config(**options))
    jax.tree.map(np.testing.assert_array_equal, host(read), host(params))
    assert at == 8


def test_micro_batches_that_do_not_divide_over_the_devices_are_refused(root, tmp_path):
    with pytest.raises(ValueError, match=r"accumulate=2 leaves 4 rows at a time, which do not divide over 8 devices"):
        train.pretrain(tmp_path, patients(root), None, MODEL, train_config(accumulate=2))


def test_a_step_that_is_not_finite_is_not_applied(root, tmp_path, caplog):
    people = patients(root)
    model, optimizer, mesh = train.make_model(people, MODEL), train.make_optimizer(train_config()), sharding.make_mesh()
    state = train.init_state(model, optimizer, people, 0, mesh, averaged=True)
    curriculum = schedules.curriculum(train_config().weights, train.active_terms(model, people))
    options = {"model": model, "optimizer": optimizer, "curriculum": curriculum, "seed": 0, "ema_decay": 0.5}
    step = jax.jit(lambda s, b: train.train_step(s, b, **options))
    batch = next(pipeline.train_batches(pipeline.TrainRows(people, 0), BATCH))
    batch["value"][0, 0] = np.nan
    new, metrics = step(state, sharding.device_batch(batch, mesh))
    assert metrics["finite"] == 0 and metrics["skipped"] == 1 and new["step"] == 1
    jax.tree.map(np.testing.assert_array_equal, host(new["params"]), host(state["params"]))
    good = sharding.device_batch(next(pipeline.train_batches(pipeline.TrainRows(people, 0), BATCH)), mesh)
    newer, metrics = step(new, good)
    assert metrics["finite"] == 1 and metrics["skipped"] == 0
    for before, after in ((state, new), (new, newer)):  # the average follows the weights, or stays with them
        decay = min(0.5, (1 + int(before["step"])) / (10 + int(before["step"])))
        want = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * p, before["average"], after["params"])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), host(after["average"]), host(want))
    changed = jax.tree.map(lambda a, b: np.any(np.asarray(a) != np.asarray(b)), newer["params"], new["params"])
    assert any(jax.tree.leaves(changed))


def test_training_lowers_every_loss(root, tmp_path):
    config = train_config(steps=60, peak_learning_rate=1e-2, validate_every=100, checkpoint_every=100)
    train.pretrain(tmp_path, patients(root), None, MODEL, config)
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for term in losses.TERMS:
        values = [x[f"loss/{term}"] for x in lines if f"loss/{term}" in x]
        assert np.mean(values[-10:]) < np.mean(values[:10]), term


@pytest.mark.parametrize("modality", ["ehr", "wear"])
def test_one_modality_trains_and_embeds_everyone(root, tmp_path, modality):
    people = patients(root, modalities=(modality,))
    params, step = train.pretrain(tmp_path, people, None, MODEL, train_config(steps=3))
    terms = {k for x in (tmp_path / "metrics.jsonl").read_text().splitlines() for k in json.loads(x)}
    assert ("loss/ehr_masked" in terms) == (modality == "ehr") and ("loss/wear_masked" in terms) == (modality == "wear")
    everyone = patients(root, split=None, modalities=(modality,))
    ids = everyone.index["subject_id"]
    when = pl.Series("prediction_time", [datetime(2016, 1, 1)] * len(ids), pl.Datetime("us"))
    index = pl.DataFrame([ids, when])
    encode = embedding.make_encoder(everyone, MODEL, params)
    z = embedding.embed(encode, everyone, index, 4)
    assert z.shape == (25, 16) and np.all(np.isfinite(z)) and step == 3


def test_changed_examples_have_every_loss_and_validation_leaves_them_unchanged(root, setting):
    _, _, _, _, predict = setting
    options = {"wear_mask_kind": "channel", "patient_days": 1.0, "interest_codes": ("DX//",), "time_warp": 0.05,
               "noise": 0.2, "channel_dropout": 0.2, "drop_ehr": 0.2, "drop_wear": 0.2}  # fmt: skip
    people, config = patients(root, **options), train_config()
    rows, plain = (pipeline.TrainRows(people, config.seed, augmented=a) for a in (True, False))
    values = []
    for g in range(6):
        batch = one_row_batch(rows, g)
        values.append(host(losses.total(predict(batch), batch, dict.fromkeys(losses.TERMS, 1.0))[1]))
    assert all(np.isfinite(v) for metrics in values for v in metrics.values())
    assert all(any(metrics[f"loss/{term}"] > 0 for metrics in values) for term in losses.TERMS)
    assert any(np.any(rows[g]["wear"] != plain[g]["wear"]) for g in range(6))
    held = train._validation_batches(people, config, sharding.make_mesh())[0]
    for g in range(2):
        np.testing.assert_array_equal(held["wear"][g], plain[g]["wear"])


def test_embed_names_a_subject_that_was_not_prepared(root, setting):
    people, _, _, params, _ = setting
    index = pl.DataFrame({"subject_id": [10**6], "prediction_time": [0]}).with_columns(
        pl.col("prediction_time").cast(pl.Datetime("us"))
    )
    with pytest.raises(ValueError, match="1 subjects of the labels were not prepared, e.g. 1000000"):
        embedding.embed(lambda b: None, people, index, 4)
