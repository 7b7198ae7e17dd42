"""Another run's parameters in a new one's places: by name where the places have names, by shape elsewhere."""

import cohort
import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
import small_run
import toy_training

from ehrwear_jax import config as config_lib
from ehrwear_jax.models.joint import batch as batch_lib
from ehrwear_jax.runtime import checkpoint, files
from ehrwear_jax.training import train
from ehrwear_jax.training import warm_start as initialise


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """{"old", "new": (patients, parameters)} of two vocabularies: the new cohort lacks one code."""
    root, out = tmp_path_factory.mktemp("runs"), {}
    small_run.write_inputs(root)
    config, raw = small_run.small_config(root), root / "raw"
    options, model_options = config_lib.prepare_config(config), config_lib.model_options(config)
    for seed, name in enumerate(("old", "new")):
        if name == "new":
            for path in (raw / "meds" / "data").rglob("*.parquet"):
                rows = pl.read_parquet(path)
                rows.filter(~pl.col("code").str.starts_with("DX//E11")).write_parquet(path)
        cohort.prepare(raw, options, root / name)
        people = cohort.open_patients(root / name, config_lib.context_config(config, "joint"), "train")
        model = train.make_model(people, model_options)
        example = batch_lib.empty_batch(people.batch_shape(), 1)
        shapes = jax.eval_shape(lambda m=model, e=example: m.init(jax.random.key(0), e)["params"])
        rng = np.random.default_rng(seed)
        params = jax.tree.map(lambda x, rng=rng: rng.normal(size=x.shape).astype(x.dtype), shapes)
        out[name] = people, params
        with checkpoint.Checkpoints(root / f"run_{name}" / "checkpoints") as checkpoints:
            checkpoints.save(5, {"params": jax.tree.map(jnp.asarray, params), "step": jnp.int32(5)})
        initialise.write_names(root / f"run_{name}", people)
    return root, out


def leaves(tree):
    return dict(zip(checkpoint.names(tree), jax.tree.leaves(tree), strict=True))


def test_the_tables_with_names_are_in_the_model(runs):
    """A renamed module would otherwise be copied by its shape, token i to token i."""
    _, out = runs
    people, params = out["old"]
    shapes, named = {k: x.shape for k, x in leaves(params).items()}, initialise.place_names(people)
    for end, axis, kind, per in initialise.BY_NAME:
        (name,) = [k for k in shapes if k.endswith(end)]
        n = {1: 1, "horizons": len(people.config.horizons), "horizons+1": len(people.config.horizons) + 1}[per]
        assert shapes[name][axis] == n * len(named[kind]), name
    sized = [k for k, s in shapes.items() if len(named["token"]) in s]
    assert all(any(k.endswith(rule[0]) for rule in initialise.BY_NAME) for k in sized), sized


def test_a_run_starts_from_one_of_another_vocabulary(runs, tmp_path, caplog):
    root, out = runs
    (old, theirs), (new, mine) = out["old"], out["new"]
    names_old, names_new = (initialise.place_names(p) for p in (old, new))
    assert names_old["token"] != names_new["token"] and len(names_new["token"]) < len(names_old["token"])
    got = initialise.from_run(root / "run_old", jax.tree.map(jnp.asarray, mine), new, tmp_path)
    got, was, there = leaves(got), leaves(mine), leaves(theirs)
    for end, axis, kind, per in initialise.BY_NAME:
        (name,) = [k for k in got if k.endswith(end)]
        n = {1: 1, "horizons": len(new.config.horizons), "horizons+1": len(new.config.horizons) + 1}[per]
        moved, kept, source = (np.moveaxis(np.asarray(t[name]), axis, 0) for t in (got, was, there))
        for i, place in enumerate(names_new[kind]):
            to = slice(i * n, (i + 1) * n)
            if place in names_old[kind]:
                j = names_old[kind].index(place)
                np.testing.assert_array_equal(moved[to], source[j * n : (j + 1) * n])
            else:
                np.testing.assert_array_equal(moved[to], kept[to])
    assert not any(k.endswith(r[0]) for r in initialise.BY_NAME for k in ("rho/kernel",))
    for name in got:
        if not any(name.endswith(r[0]) for r in initialise.BY_NAME):
            np.testing.assert_array_equal(got[name], there[name])
    report = files.read_json(tmp_path / "init_from.json")
    assert report["step"] == 5 and report["taken"] <= report["total"] and report["leaves"].keys() == got.keys()
    found = sum(t in names_old["token"] for t in names_new["token"])
    assert f"{found} of {len(names_new['token'])} tokens by name" in report["summary"]


def test_another_architecture_gives_what_fits_and_says_the_rest():
    names = {"token": ["a", "b"], "future_code": [], "recalled_token": [], "horizons": [1]}
    other = names | {"token": ["b", "c", "a"]}
    mine = {
        "ehr": {"bias": np.zeros(2), "table": {"embedding": np.zeros((2, 3))}},
        "block": {"kernel": np.zeros((2, 2))},
        "x": np.zeros(4),
    }
    theirs = {
        "ehr": {"bias": np.arange(1.0, 4), "table": {"embedding": np.ones((3, 5))}},
        "block": {"kernel": np.ones((3, 2))},
        "y": np.ones(1),
        "x": np.ones(4),
    }
    got, report = initialise.merge(mine, theirs, names, other)
    np.testing.assert_array_equal(got["ehr"]["bias"], [3, 1])
    np.testing.assert_array_equal(got["x"], 1)
    assert not got["ehr"]["table"]["embedding"].any() and not got["block"]["kernel"].any()
    assert report["leaves"]["block/kernel"] == "new: (3, 2) there, (2, 2) here" and report["unused"] == ["y"]
    assert (report["taken"], report["total"]) == (6, 2 + 6 + 4 + 4)
    got, report = initialise.merge(mine, theirs, names, None)  # a run that has no names: only what has the same shape
    assert not got["ehr"]["bias"].any() and got["x"].all()


def test_a_run_resumes_first_then_starts_from_another(runs, tmp_path, monkeypatch):
    root, out = runs
    toy_training.install(monkeypatch.setattr)
    config = small_run.small_config(root)
    people, settings = out["new"][0], config_lib.train_config(config)

    def run(name, **options):
        return train.pretrain(tmp_path / name, people, None, config_lib.model_options(config),
                              train.dataclasses.replace(settings, **options))[0]["w"]  # fmt: skip

    first = run("first")
    started = run("second", init_from=str(tmp_path / "first"), stop_after=1)
    assert np.all(np.abs(started - (0.9 * first + (run("anew", stop_after=1) - 0.09))) < 1e-6)
    files.write_whole(tmp_path / "second" / "init_from.json", "{}")
    run("second", init_from=str(tmp_path / "first"))
    assert files.read_json(tmp_path / "second" / "init_from.json") == {}, "a run that goes on is not started again"
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        run("third", init_from=str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="init_from found no parameter that fits"):
        run("fourth", init_from=str(root / "run_old"))
