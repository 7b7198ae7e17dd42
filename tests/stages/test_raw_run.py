"""Segments from the recordings through the stages: the encoder of raw windows learns, and embeddings are made."""

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from raw_cohort import with_waves
from small_run import one_row, small_config, write_inputs

from ehrwear_jax import config as config_lib
from ehrwear_jax.models.joint import batch as batch_lib
from ehrwear_jax.models.joint import examples as pipeline
from ehrwear_jax.models.joint import losses
from ehrwear_jax.stages import model as model_stage
from ehrwear_jax.stages import prepare as prepare_stage
from ehrwear_jax.training import train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    root = tmp_path_factory.mktemp("raw")
    write_inputs(root)
    with_waves(root / "raw")
    config = one_row(small_config(root), "joint")
    config.prepare.segments = {"ppg": {"channels": ("ppg",)}}
    config.context.raw_segments, config.context.raw_windows, config.model.raw_width = "ppg", 16, 8
    config.embed.trajectories = 0
    config_lib.check(config)
    prepare_stage.run(config, root / "work")
    model_stage.pretrain(config, root / "work")
    return config, root / "work"


def test_the_raw_encoder_is_trained(ran):
    config, work = ran
    patients, params = model_stage.restored(config, work, "all", "joint")
    # biases begin at zero, and weight decay leaves zero alone
    bias = params["raw"]["block_0"]["conv_out"]["bias"], params["raw"]["out"]["bias"]
    assert all(np.all(np.asarray(b) != 0) for b in bias)
    rows = pipeline.TrainRows(patients, 0)
    row = max((rows[g] for g in range(8)), key=lambda r: r["raw_observed"].any((1, 2)).sum())
    assert row["raw_observed"].any((1, 2)).sum() >= 2
    batch = {k: v[None] for k, v in row.items()}
    batch_lib.check_batch(batch, patients.batch_shape(), 1)
    model = train.make_model(patients, config_lib.model_options(config))

    def loss(raw):
        out = model.apply({"params": params | {"raw": raw}}, batch)
        return losses.total(out, batch, dict.fromkeys(train.active_terms(model, patients), 1.0))[0]

    grads = jax.jit(jax.grad(loss))(params["raw"])
    size = {jax.tree_util.keystr(k): float(jnp.abs(g).max()) for k, g in jax.tree_util.tree_leaves_with_path(grads)}
    assert all(0 < n < np.inf for n in size.values()), size


def test_everyone_is_embedded(ran):
    config, work = ran
    model_stage.embed(config, work)
    table = pl.read_parquet(work / "embed" / "all" / "joint.parquet")
    assert table.height == prepare_stage.prediction_index(config, work).height
    assert np.isfinite(np.stack(table["embedding"].to_list())).all()
