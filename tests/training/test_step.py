"""One update: what is not finite changes nothing, statistics that have no gradient follow, the best is kept."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from toy_families import pooled

from ehrwear_jax.config.training import MeshConfig, TrainConfig
from ehrwear_jax.training import feed, sharding, step
from ehrwear_jax.training.optimizer import make_optimizer
from ehrwear_jax.training.pretrain import Model, make_task

EXAMPLES = pooled.examples(pooled.Store(split="train"), pooled.Config())
ROWS = 8
MODEL = Model("pooled", "toy_families.pooled", pooled.Config())


def config(**options):
    return TrainConfig(steps=20, batch_size=ROWS, peak_learning_rate=1e-2, warmup_steps=1, **options)


@functools.cache
def setting(**options):
    """(task, first state, compiled step, config, mesh of eight devices)."""
    mesh, train = sharding.make_mesh(), config(**options)
    task, optimizer = make_task(MODEL, EXAMPLES.spec, mesh), make_optimizer(train)
    state = step.init_state(task, optimizer, train, mesh, seed=5)
    compiled = step.jit_step(task, optimizer, train, 5, state)

    def run(state, batch):  # which gives up the memory of its state
        return compiled(jax.tree.map(jnp.copy, state), {}, sharding.device_batch(batch, mesh))

    return task, state, run, train, mesh


def batches(n=None):
    return feed.train_batches(EXAMPLES, ROWS, n_steps=n, threads=0)


def host(tree):
    return jax.tree.map(np.asarray, tree)


def same(one, two):
    jax.tree.map(np.testing.assert_array_equal, host(one), host(two))


def differ(one, two):
    """Whether any leaf differs."""
    return any(jax.tree.leaves(jax.tree.map(lambda a, b: bool(np.any(a != b)), host(one), host(two))))


def spoiled(batch):
    out = {k: v.copy() for k, v in batch.items()}
    out["x"][0, 0] = np.nan
    return out


def test_the_state_has_the_parts_that_the_options_ask_for():
    _, plain, *_ = setting()
    assert plain.keys() == {"step", "params", "optimizer", "skipped", "collections"}
    assert plain["collections"].keys() == {"batch_stats"}, "what the network sows is no state"
    _, more, *_ = setting(ema_decay=0.5, patience=2)
    assert more.keys() - plain.keys() == {"average", "best"}
    assert more["best"].keys() == {"variables", "loss", "step"} and more["best"]["loss"] == np.inf
    same(more["average"], more["params"])
    same(more["best"]["variables"], {"params": more["params"], "collections": more["collections"]})


def test_the_first_state_is_the_one_that_is_described_and_a_function_of_the_seed():
    task, state, _, train, mesh = setting(ema_decay=0.5, patience=2)
    like = step.abstract_state(task, make_optimizer(train), train, mesh)
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), state) == jax.tree.map(
        lambda x: (x.shape, x.dtype, x.sharding), like
    )
    again, other = (step.init_state(task, make_optimizer(train), train, mesh, seed) for seed in (5, 6))
    same(state, again)
    assert differ(state["params"], other["params"])


def test_compiled_in_haste_the_first_state_has_the_same_bits():
    task, state, _, train, _ = setting(ema_decay=0.5, patience=2)
    same(state, jax.jit(step._initial(task, make_optimizer(train), train, 5))())


def test_a_step_that_is_not_finite_changes_nothing_but_the_counters():
    """Neither parameters nor moments nor running statistics; the average follows the weights, or stays with them."""
    _, state, run, _, _ = setting(ema_decay=0.5, patience=2)
    batch = next(batches())
    new, metrics = run(state, spoiled(batch))
    assert metrics["finite"] == 0 and metrics["skipped"] == 1 and new["step"] == 1
    assert not np.isfinite(metrics["loss/total"])
    for part in ("params", "optimizer", "collections", "best"):
        same(new[part], state[part])
    twice, metrics = run(new, spoiled(batch))
    assert metrics["skipped"] == 2 and twice["step"] == 2
    newer, metrics = run(twice, batch)
    assert metrics["finite"] == 1 and metrics["skipped"] == 0 and metrics["gradient_norm"] > 0
    for part in ("params", "optimizer", "collections"):
        assert differ(newer[part], twice[part]), part
    for before, after in ((state, new), (twice, newer)):
        decay = min(0.5, (1 + int(before["step"])) / (10 + int(before["step"])))
        want = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * p, before["average"], after["params"])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), host(after["average"]), host(want))


def test_steps_are_a_function_of_the_state_and_the_batch():
    """So dropout is one of (seed, step): the same from the same state, and other masks in the next step."""
    _, state, run, _, _ = setting()
    batch = next(batches())
    one, again = run(state, batch), run(state, batch)
    same(one, again)
    later = run(state | {"step": state["step"] + 1}, batch)
    assert one[1]["loss/total"] != later[1]["loss/total"]


# --------------------------------------------------------------------------------------------- running statistics


def statistics_by_hand(state, batch, parts):
    """Means and variances after each part of the rows has moved them in turn; parts: slices of the rows."""
    params, stats = host(state["params"]), host(state["collections"])
    for rows in parts:
        valid = batch["valid"][rows].reshape(-1)
        x = (batch["x"][rows] @ params["inner"]["kernel"] + params["inner"]["bias"]).reshape(len(valid), -1)[valid]
        old = stats["batch_stats"]["norm"]
        new = {"mean": 0.9 * old["mean"] + 0.1 * x.mean(0), "var": 0.9 * old["var"] + 0.1 * x.var(0)}
        stats = {"batch_stats": {"norm": new}}
    return stats


@pytest.mark.parametrize("accumulate", [1, 4])
def test_statistics_move_once_for_every_micro_batch_by_its_own_rows(accumulate):
    """Row r is in micro-batch r % accumulate; each sees the statistics that the one before it left."""
    mesh = sharding.make_mesh(jax.devices()[:2])
    train = config(accumulate=accumulate)
    task, optimizer = make_task(MODEL, EXAMPLES.spec, mesh), make_optimizer(train)
    state = step.init_state(task, optimizer, train, mesh, 0)
    batch = next(batches())
    want = statistics_by_hand(state, batch, [slice(i, None, accumulate) for i in range(accumulate)])
    before = host(state["params"])
    new, metrics = step.jit_step(task, optimizer, train, 0, state)(state, {}, sharding.device_batch(batch, mesh))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), host(new["collections"]), want)
    assert differ(new["params"], before) and metrics["regression/count"] == batch["valid"].sum()


def test_validation_uses_the_statistics_and_changes_none():
    task, state, _, _, mesh = setting()
    batch = sharding.device_batch(next(batches()), mesh)
    variables = step.read_variables(state)
    moved = jax.tree.map(lambda x: x + 1.0, variables["collections"])
    given = {"task": task, "weights": task.objective.weights(0), "normalisers": task.objective.normalisers(batch)}
    validate = jax.jit(lambda v, b: step.validation_step(v, b, **given))
    one, again = (validate(variables, batch) for _ in range(2))
    same(one, again)
    assert validate(variables | {"collections": moved}, batch)["loss/total"] != one["loss/total"]
    assert one.keys() == {"loss/total", "loss/regression", "regression/count"}


# ------------------------------------------------------------------------------------------------ what is used


def test_averaged_weights_are_used_where_there_are_any_and_the_best_before_them():
    _, plain, *_ = setting()
    assert step.read_variables(plain)["params"] is plain["params"]
    _, state, run, _, _ = setting(ema_decay=0.5, patience=2)
    new, _ = run(state, next(batches()))
    assert step.read_variables(new)["params"] is new["average"]
    assert step.read_variables(new)["collections"] is new["collections"]
    assert step.best_variables(new) is new["best"]["variables"]
    assert step.best_variables(plain)["params"] is plain["params"]


def test_the_lowest_loss_is_noted_and_nan_is_no_lower_loss():
    def variables(x):
        return {"params": {"w": jnp.full(3, x)}}

    best = {"variables": variables(0.0), "loss": jnp.float32(jnp.inf), "step": jnp.int32(0)}
    for k, (loss, kept) in enumerate([(2.0, 1), (3.0, 1), (np.nan, 1), (1.0, 4), (1.0, 4)], start=1):
        best = step.note_best(best, variables(float(k)), jnp.float32(loss), jnp.int32(k))
        assert int(best["step"]) == kept and np.all(np.asarray(best["variables"]["params"]["w"]) == kept)
    assert best["loss"] == 1.0


def test_parameters_carry_the_names_of_their_axes():
    axes = make_task(MODEL, EXAMPLES.spec, sharding.make_mesh()).axes
    assert axes["inner/kernel"] == ("feature", "mlp") and axes["outer/kernel"] == ("mlp", "embed")
    assert "norm/scale" not in axes and "outer/bias" not in axes, "no name, no entry"


def test_state_is_split_by_the_names_and_moments_and_averages_with_it():
    mesh = sharding.make_mesh(config=MeshConfig(2, 2, 2))
    train = config(ema_decay=0.5, patience=2)
    task = make_task(MODEL, EXAMPLES.spec, mesh)
    like = step.abstract_state(task, make_optimizer(train), train, mesh)
    found = {sharding.path_name(p): tuple(x.sharding.spec) for p, x in jax.tree_util.tree_leaves_with_path(like)}
    split = {path for path, spec in found.items() if any(spec)}
    places = ("params", "average", "best/variables/params", "optimizer/1/0/mu", "optimizer/1/0/nu")
    for name, spec in (("inner/kernel", (None, "tensor")), ("outer/kernel", ("tensor", "fsdp")),
                       ("head/kernel", ("fsdp", None))):  # fmt: skip
        assert all(found[f"{place}/{name}"] == spec for place in places), name
    assert split == {f"{p}/{n}" for p in places for n in ("inner/kernel", "inner/bias", "outer/kernel", "head/kernel")}


def test_what_a_network_sows_or_perturbs_is_no_state():
    boxed = {"params": {"w": nn.Partitioned(jnp.ones(2), ("mlp",))}, "intermediates": 1, "perturbations": 2,
             "batch_stats": {"m": 3}}  # fmt: skip
    params, collections = step.split_variables(boxed)
    np.testing.assert_array_equal(params["w"], 1.0)
    assert collections == {"batch_stats": {"m": 3}}
