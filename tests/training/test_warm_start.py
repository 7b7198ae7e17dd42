"""Another run's parameters in a new one's places: by name where the places have names, by shape elsewhere."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
import small_run
import toy_training
from toy_families import pooled

from ehrwear_jax.config.training import TrainConfig
from ehrwear_jax.models.joint.batch import N_SPECIAL
from ehrwear_jax.runtime import checkpoint, files
from ehrwear_jax.training import sharding, warm_start
from ehrwear_jax.training.pretrain import Model, make_task, pretrain

NAMED = ("token", "future_code", "history_token")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(root, {"old", "new": (examples, Places, parameters)}) of two vocabularies: the new cohort lacks one code."""
    root, out = tmp_path_factory.mktemp("runs"), {}
    small_run.write_inputs(root)
    model = small_run.model_of(small_run.small_config(root))
    for seed, name in enumerate(("old", "new")):
        if name == "new":
            for path in (root / "raw" / "meds" / "data").rglob("*.parquet"):
                rows = pl.read_parquet(path)
                rows.filter(~pl.col("code").str.starts_with("DX//E11")).write_parquet(path)
        small_run.prepare(root / name, root / "raw")
        examples = model.module.examples(small_run.store(root / name, "train"), model.config)
        task = make_task(model, examples.spec, sharding.make_mesh(jax.devices()[:1]))
        shapes, rng = jax.eval_shape(task.init, jax.random.key(0))[0], np.random.default_rng(seed)
        params = jax.tree.map(lambda x, rng=rng: rng.normal(size=x.shape).astype(x.dtype), shapes)
        out[name] = examples, warm_start.Places.of(examples, task.axes), params
        save(root / f"run_{name}", {"params": jax.tree.map(jnp.asarray, params), "step": jnp.int32(5)})
        warm_start.write_names(root / f"run_{name}", examples)
    return root, out


def save(folder, state):
    """Step 5 of a run whose state this is."""
    with checkpoint.Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(5, state)


def leaves(tree):
    return dict(zip(checkpoint.names(tree), jax.tree.leaves(tree), strict=True))


def test_the_tables_with_names_are_in_the_model(runs):
    """A table without a name would be copied by its shape, token i to token i."""
    _, places, params = runs[1]["old"]
    shapes = {k: x.shape for k, x in leaves(params).items()}
    named = {path: found for path in shapes if (found := places.axis(path))}
    assert {kind for _, kind in named.values()} == set(NAMED)
    for path, (axis, kind) in named.items():
        assert shapes[path][axis] == len(places.names[kind]), path
    by_kind = {kind: [p for p, (_, k) in named.items() if k == kind] for kind in NAMED}
    assert sorted(by_kind["token"]) == ["code_head/bias", "ehr/table/embedding", "ehr/value_table/embedding"]
    for kind, head in (("future_code", "future_codes"), ("history_token", "ehr_history")):
        assert sorted(by_kind[kind]) == [f"term_head_{head}/bias", f"term_head_{head}/kernel"]
    sized = [k for k, s in shapes.items() if len(places.names["token"]) in s]
    assert set(sized) <= named.keys(), sized


def test_a_run_starts_from_one_of_another_vocabulary(runs, tmp_path):
    root, out = runs
    (_, before, theirs), (_, places, mine) = out["old"], out["new"]
    assert places.names["token"] != before.names["token"]
    assert len(places.names["token"]) < len(before.names["token"])
    got = warm_start.from_run(root / "run_old", jax.tree.map(jnp.asarray, mine), places, tmp_path)
    got, was, there = leaves(got), leaves(mine), leaves(theirs)
    moved_any = 0
    for name in got:
        if (found := places.axis(name)) is None:
            np.testing.assert_array_equal(got[name], there[name], err_msg=name)
            continue
        axis, kind = found
        moved, kept, source = (np.moveaxis(np.asarray(t[name]), axis, 0) for t in (got, was, there))
        for i, place in enumerate(places.names[kind]):
            known = place in before.names[kind]
            want = source[before.names[kind].index(place)] if known else kept[i]
            np.testing.assert_array_equal(moved[i], want)
            moved_any += known and before.names[kind].index(place) != i
    assert moved_any > N_SPECIAL, "places have changed their numbers"
    report = files.read_json(tmp_path / "init_from.json")
    assert report["step"] == 5 and 0 < report["taken"] <= report["total"] and report["leaves"].keys() == got.keys()
    found = sum(t in before.names["token"] for t in places.names["token"])
    assert f"{found} of {len(places.names['token'])} tokens by name" in report["summary"]


def test_other_horizons_are_another_head(runs):
    """The names of codes mean the same only for the same horizons."""
    _, out = runs
    (_, before, theirs), (_, places, mine) = out["old"], out["new"]
    names = {"names": before.names, "content": {"horizon": ["7", "14", "21", "28"]}}
    got, report = warm_start.merge(mine, theirs, places, names)
    for name in leaves(got):
        if places.axis(name):
            np.testing.assert_array_equal(leaves(got)[name], leaves(mine)[name])
            assert report["leaves"][name].startswith("new")


PLACES = warm_start.Places(
    {"ehr/bias": ("token",), "ehr/table": ("token", "embed"), "code": ("embed", "code", "horizon")},
    {"token": ["a", "b"], "code": ["x", "y"]},
    {"horizon": ["1"]},
)


def test_another_architecture_gives_what_fits_and_says_the_rest():
    other = {"names": {"token": ["b", "c", "a"], "code": ["y"]}, "content": {"horizon": ["1"]}}
    mine = {
        "ehr": {"bias": np.zeros(2), "table": np.zeros((2, 3))},
        "code": np.zeros((3, 2, 4)),
        "block": {"kernel": np.zeros((2, 2))},
        "x": np.zeros(4),
    }
    theirs = {
        "ehr": {"bias": np.arange(1.0, 4), "table": np.ones((3, 5))},
        "code": np.arange(12.0).reshape(3, 1, 4),
        "block": {"kernel": np.ones((3, 2))},
        "y": np.ones(1),
        "x": np.ones(4),
    }
    got, report = warm_start.merge(mine, theirs, PLACES, other)
    np.testing.assert_array_equal(got["ehr"]["bias"], [3, 1])
    np.testing.assert_array_equal(got["code"][:, 1], theirs["code"][:, 0])
    np.testing.assert_array_equal(got["x"], 1)
    assert not got["code"][:, 0].any() and not got["ehr"]["table"].any() and not got["block"]["kernel"].any()
    assert report["leaves"]["block/kernel"] == "new: (3, 2) there, (2, 2) here" and report["unused"] == ["y"]
    assert report["leaves"]["code"] == "1 of 2 codes found by name"
    assert (report["taken"], report["total"]) == (2 + 12 + 4, 2 + 6 + 24 + 4 + 4)
    got, report = warm_start.merge(mine, theirs, PLACES, None)  # a run that has no names: only what has the same shape
    assert not got["ehr"]["bias"].any() and got["x"].all()


def test_those_parameters_are_taken_that_the_other_run_is_used_with(tmp_path):
    """The best before averaged ones before the last."""

    def w(x):
        return {"x": jnp.full(4, x)}

    parts = {"params": w(1.0), "average": w(2.0), "best": {"variables": {"params": w(3.0)}, "step": jnp.int32(4)}}
    for names, want in ((("params",), 1.0), (("params", "average"), 2.0), (("params", "average", "best"), 3.0)):
        save(tmp_path / str(want), {name: parts[name] for name in names} | {"step": jnp.int32(5)})
        got = warm_start.from_run(tmp_path / str(want), w(0.0), PLACES)
        np.testing.assert_array_equal(got["x"], want)


def test_a_run_resumes_first_then_starts_from_another(runs, tmp_path, monkeypatch):
    root, _ = runs
    toy_training.install(monkeypatch.setattr)
    real = small_run.model_of(small_run.small_config(root))
    model = dataclasses.replace(real, family=toy_training.FAMILY)

    def run(name, **options):
        mine = dataclasses.replace(model, train=dataclasses.replace(model.train, **options))
        return np.asarray(pretrain(tmp_path / name, mine, small_run.store(root / "new"))[0]["params"]["w"])

    first = run("first")
    started = run("second", init_from=str(tmp_path / "first"), stop_after=1)
    assert np.all(np.abs(started - (0.9 * first + (run("anew", stop_after=1) - 0.09))) < 1e-6)
    files.write_text(tmp_path / "second" / "init_from.json", "{}")
    run("second", init_from=str(tmp_path / "first"))
    assert files.read_json(tmp_path / "second" / "init_from.json") == {}, "a run that goes on is not started again"
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        run("third", init_from=str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="init_from found no parameter that fits"):
        run("fourth", init_from=str(root / "run_old"))
    (tmp_path / "experiment" / "models").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="name one of its models, a folder in"):
        run("fifth", init_from=str(tmp_path / "experiment"))


def test_a_warm_start_takes_the_places_of_any_family_by_name_and_the_average_with_it(tmp_path):
    """Features in another order; the average of the new run begins where its parameters do."""
    train = TrainConfig(steps=2, batch_size=8, warmup_steps=1, ema_decay=0.5, checkpoint_every=2, validate_every=2)
    store, order = pooled.Store(), ("c", "e", "a", "new", "b")
    first = Model("first", "toy_families.pooled", pooled.Config(), train)
    variables, _ = pretrain(tmp_path / "first", first, store)
    small = dataclasses.replace(train, init_from=str(tmp_path / "first"), peak_learning_rate=1e-12, weight_decay=0.0)
    second = Model("second", "toy_families.pooled", pooled.Config(features=order), small)
    started, _ = pretrain(tmp_path / "second", second, store)
    was, now = variables["params"], started["params"]
    np.testing.assert_allclose(now["inner"]["kernel"][np.array([0, 1, 2, 4])],
                               was["inner"]["kernel"][np.array([2, 4, 0, 1])], atol=1e-6)  # fmt: skip
    np.testing.assert_allclose(now["outer"]["kernel"], was["outer"]["kernel"], atol=1e-6)
    report = files.read_json(tmp_path / "second" / "init_from.json")
    assert report["leaves"]["inner/kernel"] == "4 of 5 features found by name"
