"""Segments from the recordings through the stages: the encoder of raw windows learns, and embeddings are made."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from raw_cohort import with_waves
from small_run import one_model, plan_of, small_config, write_inputs

from ehrwear_jax import config as config_lib
from ehrwear_jax.stages import embed, prepare, pretrain
from ehrwear_jax.training import embedding

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """(plan, network) after pretraining."""
    root = tmp_path_factory.mktemp("raw")
    write_inputs(root)
    with_waves(root / "raw")
    config = one_model(small_config(root), "joint")
    config.prepare.segments = {"ppg": {"channels": ("ppg",)}}
    config.joint.context.raw_segments, config.joint.context.raw_windows = "ppg", 16
    config.joint.network.raw_width = 8
    config.embed.trajectories = 0
    plan = plan_of(config, root / "work")
    config_lib.check(plan.config)
    prepare.run(plan)
    pretrain.run(plan)
    (trained,) = plan.trained()
    return plan, trained


def test_the_raw_encoder_is_trained(ran):
    plan, trained = ran
    assert pretrain.missing(plan) == []
    model, store = plan.model(trained), plan.store(trained.fold)
    _, network, variables = embedding.restore(plan.pretrained(trained).folder, model, store)
    params = variables["params"]
    # biases begin at zero, and weight decay leaves zero alone
    bias = params["raw"]["block_0"]["conv_out"]["bias"], params["raw"]["out"]["bias"]
    assert all(np.all(np.asarray(b) != 0) for b in bias)
    examples = model.module.examples(store.view("train"), model.config, model.seed)
    row = max((row_of(examples, g) for g in range(8)), key=lambda r: r["raw_observed"].any((1, 2)).sum())
    assert row["raw_observed"].any((1, 2)).sum() >= 2
    batch = {k: v[None] for k, v in row.items()}
    examples.spec.check(batch, 1)
    objective = model.module.objective(examples.spec, model.config)
    weights = {t.name: 1.0 for t in objective.terms}

    def loss(raw):
        out = network.apply({"params": params | {"raw": raw}}, batch)
        return objective(out, batch, weights, objective.normalisers(batch))[0]

    grads = jax.jit(jax.grad(loss))(params["raw"])
    size = {jax.tree_util.keystr(k): float(jnp.abs(g).max()) for k, g in jax.tree_util.tree_leaves_with_path(grads)}
    assert all(0 < n < np.inf for n in size.values()), size


def row_of(examples, g):
    row = {name: x[0] for name, x in examples.spec.empty(1).items()}
    examples.fill(row, g)
    return row


def test_everyone_is_embedded(ran):
    plan, trained = ran
    assert embed.missing(plan) == [trained.key]
    embed.run(plan)
    assert embed.missing(plan) == []
    times = embed.prediction_times(plan, trained.fold)
    z_NxD = embed.Embeddings(plan.embeddings(trained)).read(times)
    assert z_NxD.shape == (times.height, 8) and np.isfinite(z_NxD).all()
