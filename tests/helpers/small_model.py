"""A small joint model with random parameters and a batch of two rows, for tests of its interpretation."""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import random_rows
from flax import linen as nn

from ehrwear_jax.models.joint import batch as batch_lib
from ehrwear_jax.models.joint.batch import Facts
from ehrwear_jax.models.joint.config import MODALITIES, Config, ContextConfig, NetworkConfig

T, Q, W, L, C = 7, 3, 2, 4, 2
WEAR_AT = (2, 4)  # positions of the windows
FACTS = Facts(
    modalities=MODALITIES, vocabulary=8, steps=L, channels=C, derived=0, future_codes=2, history_tokens=2, n_horizons=1,
    future_rates=(0.1, 0.1), value_codes=2,
)  # fmt: skip


@functools.cache
def config(kernel="mixture"):
    """The model's config."""
    return Config(
        context=ContextConfig(tokens=T - W, context_tokens=T - W, windows=W, queries=Q, events=1, future_windows=1,
                              horizons=(30,), future_codes=2, history_tokens=2, patch_steps=2),
        network=NetworkConfig(width=8, n_layers=2, n_heads=2, mlp_width=8, token_width=4, time_features=8,
                              source_width=2, wear_width=8, wear_layers=1, wear_heads=2, n_components=3, count_width=4,
                              kernel=kernel),
    )  # fmt: skip


SPEC = random_rows.spec_of(config(), FACTS)


def make_batch(seed=0):
    """Query 0 sees nothing, query 1 four tokens, query 2 all; the last token of row 1 is padding."""
    rng = np.random.default_rng(seed)
    batch = SPEC.empty(2)
    batch["token"][:] = rng.integers(3, 8, (2, T))
    batch["value"][:] = rng.normal(size=(2, T))
    batch["modality"][:] = batch_lib.MODALITY_EHR
    batch["token"][:, WEAR_AT], batch["modality"][:, WEAR_AT] = batch_lib.WEAR, batch_lib.MODALITY_WEAR
    batch["value"][:, WEAR_AT] = 0
    batch["window"][:, WEAR_AT], batch["window_position"][:] = (0, 1), WEAR_AT
    batch["wear"][:] = rng.normal(size=(2, W, L, C))
    batch["observed"][:] = True
    batch["observed"][0, 1, :2, 0] = False
    batch["wear"][~batch["observed"]] = 0
    batch["time"][:] = np.sort(rng.gamma(1.0, 20.0, (2, T)), axis=1)
    batch["age"][..., 0] = 9000.0 + batch["time"]
    batch["kv_range"][..., 1] = 1 + np.arange(T)
    batch["kv_range"][1, 6] = 6
    batch["modality"][1, 6] = batch_lib.MODALITY_PAD
    batch["query_kv_range"][..., 1] = (0, 4, T - 1)
    batch["query_kv_range"][0, 2, 1] = T
    batch["query_time"][:] = batch["time"][:, [0, 3, 6]] + np.array([-1.0, 0.5, 2.0], np.float32)
    batch["query_age"][..., 0] = 9000.0 + batch["query_time"]
    return batch


@functools.cache
def make_model(kernel="mixture"):
    """(network, params)."""
    _, network, _ = random_rows.model_of(config(kernel), FACTS)
    shapes = jax.eval_shape(network.init, jax.random.key(0), make_batch())["params"]
    return network, random_params(shapes)


def random_params(shapes, seed=0, mean=0.1, spread=0.4):
    """Normal numbers in the places of parameters, whose initial values may hide an input or a leak.

    They depend on a parameter's path and shape alone: networks that differ in an option share what both have.
    """

    def draw(path, x):
        rng = np.random.default_rng([seed, zlib.crc32(jax.tree_util.keystr(path).encode())])
        return jnp.asarray(rng.normal(mean, spread, x.shape), x.dtype)

    return jax.tree_util.tree_map_with_path(draw, nn.meta.unbox(shapes))
