"""What each term asks of z: norms that are known, shares that weights are set to, a run that is resumed with them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from random_rows import EVERY_TERM, make_batch, model_of
from toy_families import two_heads

from ehrwear_jax.config.training import MeshConfig, TrainConfig
from ehrwear_jax.runtime import run_dir
from ehrwear_jax.training import feed, gradients, sharding, step
from ehrwear_jax.training.loop import Job, fit
from ehrwear_jax.training.loss_weights import MOST, averaged, balanced
from ehrwear_jax.training.optimizer import make_optimizer
from ehrwear_jax.training.pretrain import Model, make_task
from ehrwear_jax.training.throughput import TIMINGS, Throughput

ROWS = 16
EXAMPLES = two_heads.Rows()


def model_with(halves=True, **train):
    options = {"steps": 8, "batch_size": ROWS, "warmup_steps": 1, "log_every": 1, "checkpoint_every": 3,
               "peak_learning_rate": 1e-3}  # fmt: skip
    return Model("two", "toy_families.two_heads", two_heads.Config(halves), TrainConfig(**options | train))


def job_in(folder, **train):
    model, mesh = model_with(**train), sharding.make_mesh()
    task = make_task(model, EXAMPLES.spec, mesh)
    return Job(
        folder=folder,
        task=task,
        optimizer=make_optimizer(model.train),
        config=model.train,
        seed=0,
        mesh=mesh,
        batches=lambda begin: feed.train_batches(EXAMPLES, ROWS, start_step=begin, threads=0),
        validate=lambda state: {},
        measure=gradients.measurement(task, model.train, mesh),
        throughput=lambda begin: Throughput(EXAMPLES.counts, lambda counts: 0.0, mesh, begin),
        subjects=lambda done: [],
        about={"data": "none"},
    )


def logged(folder, prefix):
    """{step: {term: value}} of the lines that have such keys."""
    found = {}
    for line in run_dir.read_lines(folder / "metrics.jsonl"):
        if mine := {k.removeprefix(prefix): v for k, v in line.items() if k.startswith(prefix)}:
            found[line["step"]] = mine
    return found


def same(one, two):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(one), jax.device_get(two))


# ------------------------------------------------------------------------------------------------ norms


@pytest.mark.parametrize("sizes", [(8, 1, 1, 1), (2, 2, 2, 1)])
def test_norms_are_those_of_the_whole_batch_on_any_mesh(sizes):
    mesh, model = sharding.make_mesh(config=MeshConfig(*sizes)), model_with()
    task = make_task(model, EXAMPLES.spec, mesh)
    batch = sharding.device_batch(next(feed.train_batches(EXAMPLES, ROWS, threads=0)), mesh)
    params, _ = task.init(jax.random.key(0))
    found = jax.jit(lambda p, b: gradients.gradient_norms(task, {"params": p}, b))(params, batch)
    assert {k: float(v) for k, v in found.items()} == pytest.approx(two_heads.norms(ROWS, ROWS // 2), rel=1e-5)


def test_norms_of_the_joint_model_are_those_of_differentiating_all_of_it():
    """What is added to z before all heads: the gradient of each loss there, of the network as training calls it."""
    spec, network, objective = model_of()
    batch, task = make_batch(3, spec), step.NetworkTask(network, spec, objective)
    params, _ = jax.jit(task.init)(jax.random.key(0))
    names = [t.name for t in network.terms]
    assert names == list(EVERY_TERM)

    def losses(out):
        metrics = objective(out, batch, objective.weights(0), objective.normalisers(batch))[1]
        return {name: metrics[f"loss/{name}"] for name in names}

    @jax.jit
    def both_ways(params):
        z, more = network.apply({"params": params}, batch, method="read")

        def from_z(z):
            found = losses(network.apply({"params": params}, z, more, batch, names, method="predicted"))
            return found, found

        by_term, again = jax.jacrev(from_z, has_aux=True)(z)
        want = {name: optax.tree.norm(gradient) for name, gradient in by_term.items()}
        whole = losses(network.apply({"params": params}, batch))
        return gradients.gradient_norms(task, {"params": params}, batch), want, again, whole

    found, want, again, whole = both_ways(params)
    for name in names:
        np.testing.assert_allclose(again[name], whole[name], rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(found[name], want[name], rtol=1e-4, err_msg=name)
    silent = {name for name, norm in found.items() if norm == 0}
    assert silent == {"contrast", "content_norm"}, "what compares contents, and no other, does not read z"


def test_a_part_of_an_accumulated_batch_is_measured():
    """Row r is in part r % 4; only those of part 0 are read, of which all are real."""
    mesh = sharding.make_mesh(jax.devices()[:2])
    model = model_with(accumulate=4)
    task = make_task(model, EXAMPLES.spec, mesh)
    state = step.init_state(task, make_optimizer(model.train), model.train, mesh, 0)
    batch = sharding.device_batch(next(feed.train_batches(EXAMPLES, ROWS, threads=0)), mesh)
    after, found = gradients.measurement(task, model.train, mesh)(state, batch)
    assert after is state
    want = {f"gradient/{k}": v for k, v in two_heads.norms(ROWS // 4, ROWS // 4).items()}
    assert {k: v for k, v in found.items() if k in want} == pytest.approx(want, rel=1e-5)


def test_what_cannot_be_measured_is_not_and_is_said_where_it_is_needed():
    mesh = sharding.make_mesh()
    task = make_task(model_with(halves=False), EXAMPLES.spec, mesh)
    assert gradients.measurement(task, model_with().train, mesh) is None
    whole = make_task(model_with(), EXAMPLES.spec, mesh)
    assert gradients.measurement(whole, model_with(gradients_every=0).train, mesh) is None
    with pytest.raises(ValueError, match="the family's network has no methods read and predicted"):
        gradients.measurement(task, model_with(weights_from_gradients=True).train, mesh)
    with pytest.raises(ValueError, match="config.train.gradients_every is 0"):
        model_with(weights_from_gradients=True, gradients_every=0)


# ------------------------------------------------------------------------------------------------ weights


def test_multipliers_give_each_term_its_share_and_keep_the_sum():
    weights, norms = {"a": 3.0, "b": 1.0, "c": 0.0, "d": 0.5}, {"a": 0.2, "b": 10.0, "c": 1.0, "d": 0.0}
    found = balanced(weights, {k: jnp.float32(v) for k, v in norms.items()})
    asked = {k: float(found[k]) * norms[k] for k in "abc"}
    assert asked == pytest.approx({"a": 0.75 * 10.6, "b": 0.25 * 10.6, "c": 0.0}, rel=1e-6)
    assert found["d"] == 0.5, "what does not read z keeps its weight"
    assert {k: float(v) for k, v in balanced(weights, dict.fromkeys(norms, jnp.float32(0))).items()} == weights
    vanished = balanced({"a": 1.0, "b": 1.0}, {"a": jnp.float32(1e-9), "b": jnp.float32(1.0)})
    assert float(vanished["a"]) == MOST


def test_measurements_are_averaged_and_empty_ones_are_none():
    before = jnp.float32(2.0)
    assert float(averaged(jnp.float32(0), jnp.float32(3.0), 0.9)) == 3.0, "the first is taken as it is"
    assert float(averaged(before, jnp.float32(4.0), 0.75)) == 2.5
    for nothing in (0.0, np.nan, np.inf):
        assert float(averaged(before, jnp.float32(nothing), 0.75)) == 2.0


def test_a_run_reaches_the_wished_shares(tmp_path):
    """Hand-set weights leave a few hundredths to the soft term; else it has what the ramp of its weight says."""
    fit(job_in(tmp_path / "hand", gradients_every=2))
    hand = logged(tmp_path / "hand", "share/")
    assert list(hand) == [2, 4, 6, 8] and hand[2]["soft"] < 0.03
    assert not logged(tmp_path / "hand", "weight/")
    state, _ = fit(job_in(tmp_path / "shares", gradients_every=2, weights_from_gradients=True))
    shares = logged(tmp_path / "shares", "share/")
    assert list(shares) == [1, 2, 4, 6, 8], "also after the first step"
    for at, found in shares.items():
        soft = 1 + 2 * min(at / 4, 1)
        wanted = {"loud": 1 / (1 + soft), "soft": soft / (1 + soft), "quiet": 0.0}
        assert found == pytest.approx(wanted, abs=0.01), at
    weights = logged(tmp_path / "shares", "weight/")
    assert weights[1] == {k: w[0] for k, w in two_heads.WEIGHTS.items()}, "as they are, before anything is known"
    assert weights[8]["soft"] > 10 * weights[8]["loud"] and weights[8]["quiet"] == 0.25
    assert all(np.isfinite(float(x)) for x in state["gradients"].values())


def test_a_run_in_parts_weighs_as_the_run_in_one(tmp_path):
    options = {"gradients_every": 3, "weights_from_gradients": True}
    whole, _ = fit(job_in(tmp_path / "one", **options))
    for stop in (2, 3, 5, None):
        state, _ = fit(job_in(tmp_path / "parts", stop_after=stop, **options))
    same(state, whole)
    one, parts = (
        [{k: v for k, v in line.items() if k not in TIMINGS} for line in run_dir.read_lines(folder / "metrics.jsonl")]
        for folder in (tmp_path / "one", tmp_path / "parts")
    )
    assert one == parts


def test_what_is_measured_is_part_of_a_model_only_where_weights_come_of_it():
    plain = model_with().identity()
    for same_result in ({"gradients_every": 7}, {"gradients_decay": 0.5}):
        assert model_with(**same_result).identity() == plain
        assert model_with(weights_from_gradients=True, **same_result).identity() != (
            model_with(weights_from_gradients=True).identity()
        )
    assert model_with(weights_from_gradients=True).identity() != plain
