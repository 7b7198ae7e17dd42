"""z at prediction times: the mean over its slots, of what is known then; a record cut there gives the same bits."""

import dataclasses
import json
import shutil
import types

import cohort
import jax
import numpy as np
import polars as pl
import pytest
import random_rows
from joint_rows import config_of, examples_of
from small_model import random_params
from toy_families import pooled

from ehrwear_jax.config.training import TrainConfig
from ehrwear_jax.data.formats import meds
from ehrwear_jax.data.store import RecordStore
from ehrwear_jax.models.joint import family
from ehrwear_jax.models.joint.examples import JointExamples
from ehrwear_jax.training import embedding, sharding
from ehrwear_jax.training.pretrain import Model, make_task, pretrain

DAY_US = pooled.DAY_US
STORE = pooled.Store()
EXAMPLES = pooled.examples(STORE, pooled.Config(), train=False)


def index_of(subjects, times_us):
    """Table of prediction times."""
    schema = {"subject_id": pl.Int64, "prediction_time": pl.Int64}
    table = pl.DataFrame({"subject_id": subjects, "prediction_time": times_us}, schema)
    return table.with_columns(pl.col("prediction_time").cast(pl.Datetime("us")))


# ------------------------------------------------------------------------------------------------ any family


def sums(batch):
    """In the place of an encoder: the features, and a number of the row that each slot is in."""
    row = np.broadcast_to(np.arange(len(batch["x"]), dtype=np.float32)[:, None, None], (*batch["valid"].shape, 1))
    return np.concatenate([batch["x"], row], axis=-1)


def test_z_is_the_mean_over_its_slots_in_the_order_of_the_index():
    """Of segments that lie in several slots, rows and batches; NaN where there is none."""
    rng = np.random.default_rng(0)
    subjects = rng.permutation(np.repeat(EXAMPLES.subject_id, 3))
    times = rng.integers(0, 320 * DAY_US, len(subjects))
    z = embedding.embed(sums, EXAMPLES, index_of(subjects, times), batch_size=2)
    assert z.shape == (len(subjects), pooled.FEATURES + 1) and z.dtype == np.float32
    n_seen = []
    for found, subject, time in zip(z, subjects, times, strict=True):
        at, x, _ = STORE.record(subject - 100)
        n_seen.append((at <= time).sum())
        if n_seen[-1]:
            np.testing.assert_allclose(found[:-1], x[at <= time].mean(0), rtol=1e-5, atol=1e-6)
        else:
            assert np.isnan(found).all()
    assert {0, 1} < set(n_seen) and max(n_seen) > 3, "more than a row has slots for"


def test_transforms_change_what_is_read():
    index = index_of(EXAMPLES.subject_id[:6], [300 * DAY_US] * 6)
    last = lambda record, time: tuple(x[record[0] <= time][-1:] for x in record)  # noqa: E731
    z = embedding.embed(sums, EXAMPLES, index, 4, last)
    for k in range(6):
        np.testing.assert_allclose(z[k, :-1], STORE.record(k)[1][-1], rtol=1e-6)


def test_nobody_at_no_time_is_an_empty_array():
    assert embedding.embed(sums, EXAMPLES, index_of([], []), 4).shape == (0, 0)


def test_a_subject_that_was_not_prepared_is_named():
    with pytest.raises(ValueError, match="1 subjects of the labels were not prepared, e.g. 1000000"):
        embedding.embed(sums, EXAMPLES, index_of([10**6], [0]), 4)


def test_embeddings_are_written_with_their_index(tmp_path):
    index = index_of(EXAMPLES.subject_id[:7].tolist(), [300 * DAY_US] * 7)
    z = embedding.embed(sums, EXAMPLES, index, 8)
    embedding.write(tmp_path / "z.parquet", index, z, step=250)
    assert embedding.steps_of(tmp_path) == [250]
    found = pl.read_parquet(tmp_path / "z.parquet")
    assert found.drop("embedding").equals(index) and found.schema["embedding"] == pl.List(pl.Float32)
    np.testing.assert_array_equal(np.array(found["embedding"].to_list(), np.float32), z)
    np.testing.assert_array_equal(embedding.read(tmp_path / "z.parquet"), z)


def test_shards_hold_whole_people_and_stay_when_some_are_done():
    times_of = [3, 1, 2, 5, 1, 1, 4]
    index = index_of(np.repeat(np.arange(7) * 10, times_of), np.arange(17))
    parts = embedding.shards(index, 2)
    assert [p["subject_id"].unique(maintain_order=True).to_list() for p in parts] == [[0, 10], [20, 30], [40, 50], [60]]
    assert pl.concat(parts).equals(index)
    left = pl.concat([parts[0], parts[2], parts[3]])
    assert all(a.equals(b) for a, b in zip(embedding.shards(left, 2), [parts[0], parts[2], parts[3]], strict=True))
    assert embedding.shards(index_of([], []), 2) == []


def test_a_shard_of_people_with_nothing_to_read_has_the_width_of_the_others():
    z = embedding.embed(sums, EXAMPLES, index_of(EXAMPLES.subject_id[:3].tolist(), [-(10**6) * DAY_US] * 3), 4)
    assert z.shape == (3, pooled.FEATURES + 1) and np.isnan(z).all()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(folder, model, variables) of the pooled family, with running statistics and averaged weights."""
    folder = tmp_path_factory.mktemp("pooled")
    train = TrainConfig(steps=4, batch_size=16, warmup_steps=1, peak_learning_rate=1e-2, ema_decay=0.9,
                        checkpoint_every=2, validate_every=4)  # fmt: skip
    model = Model("toy", "toy_families.pooled", pooled.Config(dropout=0.0), train)
    return folder, model, pretrain(folder, model, STORE)[0]


def test_a_trained_model_is_restored_with_its_statistics(trained):
    folder, model, variables = trained
    examples, network, restored = embedding.restore(folder, model, STORE)
    jax.tree.map(np.testing.assert_array_equal, restored, jax.device_get(variables))
    assert len(examples.subject_id) == 32 and not examples.train
    batch, _ = next(examples.prediction_batches([0, 1], [300 * DAY_US] * 2, 4))
    z = embedding.encoder(network, restored)(batch)
    params, stats = restored["params"], restored["collections"]["batch_stats"]["norm"]
    x = batch["x"] @ params["inner"]["kernel"] + params["inner"]["bias"]
    x = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * params["norm"]["scale"] + params["norm"]["bias"]
    want = np.asarray(jax.nn.gelu(x)) @ params["outer"]["kernel"] + params["outer"]["bias"]
    np.testing.assert_allclose(z, want, rtol=1e-5, atol=1e-6)


def test_what_cannot_be_restored_is_said(trained, tmp_path):
    folder, model, _ = trained
    with pytest.raises(FileNotFoundError, match="no checkpoint; run the pretrain stage first"):
        embedding.restore(tmp_path, model, STORE)
    wider = dataclasses.replace(model, config=pooled.Config(width=8))
    with pytest.raises(ValueError, match="checkpoint 4 is of another model than the config says"):
        embedding.restore(folder, wider, STORE)


def test_of_a_training_that_ended_no_earlier_step_is_taken(trained, tmp_path):
    """The checkpoint of step 2 is whole, and another model."""
    folder, model, _ = trained
    assert embedding.last_step(folder) == 4 and embedding.read_variables(folder, model)[1] == 4
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    manifest = json.loads((copy / "checkpoints" / "4" / "manifest.json").read_text())
    damaged = max(manifest["files"], key=lambda name: manifest["files"][name]["bytes"])
    (copy / "checkpoints" / "4" / damaged).write_bytes(b"x")
    with pytest.raises(
        ValueError, match="checkpoint 4 is damaged: .* remove .*checkpoints/4 and run the stage pretrain"
    ):
        embedding.read_variables(copy, model)
    shutil.rmtree(copy / "checkpoints" / "4")
    with pytest.raises(ValueError, match="checkpoint 4 is damaged: there is no folder"):
        embedding.read_variables(copy, model)
    _, done = pretrain(copy, model, STORE)
    assert done == 4 and embedding.read_variables(copy, model)[1] == 4, "made again from step 2"


def test_dropout_cannot_stay_on_alone_where_statistics_follow_batches(trained):
    _, model, variables = trained
    task = make_task(model, EXAMPLES.spec, sharding.make_mesh(jax.devices()[:1]))
    with pytest.raises(ValueError, match="in a network that changes its batch_stats"):
        embedding.encoder(task.network, variables, dropout_seed=1)


# ------------------------------------------------------------------------------------------------ the joint family

CONTEXT = {"tokens": 64, "windows": 32, "context_tokens": 40, "queries": 8, "events": 8, "patch_steps": 3,
           "future_windows": 2, "future_codes": 5}  # fmt: skip
NETWORK = {"width": 16, "n_layers": 2, "n_heads": 2, "mlp_width": 16, "token_width": 8, "time_features": 8,
           "wear_width": 8, "wear_layers": 1, "wear_heads": 2, "source_width": 4}  # fmt: skip


@pytest.fixture(scope="module")
def joint(people):
    """(examples of everybody, network, variables) with parameters far from their start, and the encoder."""
    examples = examples_of(people, CONTEXT, split=None, augmented=False, **NETWORK)
    network = family.network(examples.spec, config_of(CONTEXT, **NETWORK))
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), examples.spec.empty(1), method="encode"))
    variables = {"params": random_params(shapes["params"]), "collections": {}}
    return examples, network, variables, embedding.encoder(network, variables)


def test_packed_contexts_equal_contexts_alone(people, joint):
    """Predictions from packed rows equal those from rows that hold one context each."""
    examples, _, _, encode = joint
    index = np.arange(12)
    times = [int(p.time_N[len(p.time_N) // 2]) if len(p.time_N) else 0 for p in map(examples.people.__getitem__, index)]
    z = {}
    for queries in (8, 1):  # one query slot leaves room for one context per row
        mine = examples_of(people, CONTEXT | {"queries": queries}, split=None, augmented=False, **NETWORK)
        z[queries] = np.zeros((12, 16), np.float32)
        for batch, where in mine.prediction_batches(index, times, 4):
            z[queries][where[where >= 0]] = encode(batch)[where >= 0]
    np.testing.assert_allclose(z[8], z[1], atol=2e-5)
    assert np.std(z[8]) > 0.1


def test_devices_that_share_a_batch_read_the_same(joint):
    examples, network, variables, encode = joint
    devices = jax.devices()[:4]
    assert len(devices) == 4
    of_mesh = family.network(examples.spec, examples.config, sharding.mesh_ops(sharding.make_mesh(devices)))
    shared = embedding.encoder(of_mesh, variables, devices=devices)
    index = np.arange(16)
    times = np.array([int(examples.people[i].end_us) for i in index])
    for batch, where in examples.prediction_batches(index, times, 4):
        np.testing.assert_allclose(shared(batch)[where >= 0], encode(batch)[where >= 0], atol=2e-5)


@pytest.mark.parametrize(
    ("platform", "batch_size", "n"), [("gpu", 32, 8), ("gpu", 12, 6), ("gpu", 7, 7), ("cpu", 32, 1)]
)
def test_accelerators_share_what_divides_evenly_and_one_cpu_takes_all(monkeypatch, platform, batch_size, n):
    devices = [types.SimpleNamespace(platform=platform, id=i) for i in range(8)]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert embedding.row_devices(batch_size) == devices[:n]


def test_times_of_a_person_share_a_context_and_see_what_they_would_alone(people, joint):
    """Five times each: before the first record, thrice within, and a year after the last."""
    *_, encode = joint
    short = CONTEXT | {"context_tokens": 12}
    examples = examples_of(people, short, split=None, augmented=False, **NETWORK)
    index, times = [], []
    for i, p in enumerate(map(examples.people.__getitem__, range(24))):
        if len(p.time_N):
            index += [i] * 5
            times += [p.time_N[0] - DAY_US, *np.quantile(p.time_N, (0.2, 0.5, 0.8)), p.time_N[-1] + 365 * DAY_US]
    times, order = np.array(times, np.int64), np.random.default_rng(0).permutation(len(times))
    times, index = times[order], np.array(index)[order]

    def read(transform):
        z, n_context = np.full((len(times), 16), np.nan, np.float32), 0
        for batch, where in examples.prediction_batches(index, times, 4, transform):
            z[where[where >= 0]] = encode(batch)[where >= 0]
            n_context += batch["segment"].max(axis=1).sum()
        return z, n_context

    (shared, n_shared), (alone, n_alone) = read(None), read(lambda record, _: record)
    np.testing.assert_allclose(shared, alone, atol=2e-5)
    assert n_shared < 0.7 * n_alone and np.std(shared) > 0.1
    assert examples.tokens_seen(index, times)["events_left_out"].any(), "some are longer than a context"


def test_masks_of_dropout_follow_the_seed_and_the_number_of_the_call(joint):
    examples, network, variables, encode = joint
    person = next(i for i in range(len(examples)) if len(examples.people[i].time_N) > 8)
    batch, where = next(examples.prediction_batches([person] * 2, [int(examples.people[person].end_us)] * 2, 2))
    at = where >= 0
    runs = {seed: embedding.encoder(network, variables, dropout_seed=seed) for seed in (1, 2)}
    one, two = runs[1](batch)[at], runs[1](batch)[at]
    again = embedding.encoder(network, variables, dropout_seed=1)
    np.testing.assert_array_equal(again(batch)[at], one)
    np.testing.assert_array_equal(again(batch)[at], two)
    for other in (two, runs[2](batch)[at], encode(batch)[at]):
        assert np.all(np.any(other != one, axis=-1))


def test_draws_of_z_vary_about_its_mean_by_their_deviation_alone():
    """Dropout at a rate of a half would move them farther."""
    often = dataclasses.replace(random_rows.CONFIG.network, dropout=0.5)
    config = dataclasses.replace(random_rows.CONFIG, modalities=("ehr",), network=often)
    spec, network, _ = random_rows.model_of(config, dataclasses.replace(random_rows.FACTS, modalities=("ehr",)))
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    params = random_params(jax.eval_shape(lambda: network.init(keys, spec.empty(1), method="encode_drawn"))["params"])
    params["posterior"]["log_variance"] = {"kernel": np.zeros((8, 8), np.float32), "bias": np.full(8, -10, np.float32)}
    variables, batch = {"params": params, "collections": {}}, random_rows.make_batch(4, spec)
    draw = embedding.encoder(network, variables, draw_seed=1)
    off = np.stack([draw(batch), draw(batch)]) - embedding.encoder(network, variables)(batch)
    assert np.abs(off).max() < 6 * np.exp(-5.0) and 0.7 < np.std(off) / np.exp(-5.0) < 1.3
    assert np.all(off[0] != off[1]), "others at each call"


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


def test_a_record_cut_at_t_gives_the_same_z_at_t_as_the_whole(people, joint, tmp_path):
    """From the raw tables on: nothing that prepare or the examples do lets the future touch z(t)."""
    examples, _, _, encode = joint
    records = examples.people
    # one of those who died stays whole, or the code of a death would be unknown to the cut dataset
    whole = next(i for i in range(len(records)) if records[i].died)
    held = [i for i in range(len(records)) if len(records[i].time_N) > 4 and i != whole]
    assert any(records[i].died for i in held)
    times = [int(records[i].time_N[len(records[i].time_N) * 2 // 3]) for i in held]
    index = index_of(examples.subject_id[held], times)
    cut_cohort(people, tmp_path, dict(index.iter_rows()))
    cohort.prepare_cohort(tmp_path, subjects_per_shard=8)
    store = RecordStore(tmp_path / "records", people / "fit" / "all")  # new patients of a trained model
    cut = JointExamples(store, examples.config, augmented=False)
    assert sum(len(cut.people[i].time_N) for i in held) < sum(len(records[i].time_N) for i in held)
    z = embedding.embed(encode, examples, index, 4)
    np.testing.assert_array_equal(embedding.embed(encode, cut, index, 4), z)
    assert len(index) > 10 and np.std(z) > 0.1
