"""The model where a row lies over several devices: around a ring, in zigzag, with keys left out, as on one device."""

import functools

import jax
import numpy as np
import optax
import pytest
from random_rows import make_batch

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.config.training import MeshConfig, TrainConfig
from ehrwear_jax.models.joint import family
from ehrwear_jax.models.joint.config import WEIGHTS, Config, ContextConfig, NetworkConfig
from ehrwear_jax.models.layers.mesh_ops import MeshOps
from ehrwear_jax.ops.kernel_attention import kernel_attention
from ehrwear_jax.training import sharding
from ehrwear_jax.training.pretrain import Model, make_task

ROWS, TOKENS = 2, 32
TERMS = ("ehr_masked", "future_event", "future_codes")
CONTEXT = ContextConfig(tokens=TOKENS, context_tokens=TOKENS, queries=5, events=3, horizons=(30, 90), future_codes=3)
# tokens of a row lie over four devices; five queries do not divide, and stay whole on each of them
SIZES = {"data": 2, "fsdp": 1, "tensor": 1, "context": 4}
ACROSS = {
    "gathered in zigzag": {"context_layout": "zigzag"},
    "around a ring": {"context_attention": "ring"},
    "around a ring in zigzag": {"context_attention": "ring", "context_layout": "zigzag"},
}


def model_of(**network):
    sizes = {"width": 8, "n_layers": 1, "n_heads": 2, "mlp_width": 8, "token_width": 4, "time_features": 4,
             "source_width": 2, "count_width": 0, "dropout": 0.0, "attention_dropout": 0.2}  # fmt: skip
    weights = {t: [float(t in TERMS)] * 2 + [0] for t in WEIGHTS}
    config = Config(modalities=("ehr",), context=CONTEXT, network=NetworkConfig(**sizes | network), weights=weights)
    return Model("joint", "joint", config, TrainConfig(batch_size=ROWS))


SPEC, _ = family.assumed(model_of().config, PrepareConfig(), 12)


@functools.cache
def batch():
    """Rows of one context each, over five years."""
    made = make_batch(ROWS, SPEC)
    made["modality"][:], made["segment"][:], made["query_segment"][:] = 1, 1, 1
    made["time"] = np.sort(np.random.default_rng(1).uniform(0, 1825, (ROWS, TOKENS)), axis=1).astype(np.float32)
    made["query_time"] = np.sort(made["query_time"], axis=1) + 1826
    return made


@functools.cache
def start():
    task = make_task(model_of(), SPEC, sharding.make_mesh(jax.devices()[:1]))
    return jax.device_get(jax.jit(task.init)(jax.random.key(0))[0])


def loss_on(mesh, options=None, **network):
    """(parameters, batch) -> (loss, gradient) as training computes them, with dropout of attention weights."""
    task = make_task(model_of(**network), SPEC, mesh, None if options is None else MeshConfig(**SIZES | options))

    @jax.jit
    def run(params, rows):
        def loss(params):
            out, _ = task.apply(params, {}, {}, rows, jax.random.key(3))
            return task.objective(out, rows, task.objective.weights(0), task.objective.normalisers(rows))[0]

        return jax.value_and_grad(loss)(params)

    return run


def on(mesh, options=None):
    """(loss, gradient of the parameters) of a batch."""
    params = jax.device_put(start(), sharding.replicated(mesh))
    return jax.device_get(loss_on(mesh, options)(params, sharding.device_batch(batch(), mesh)))


@functools.cache
def on_one_device():
    return on(sharding.make_mesh(jax.devices()[:1]))


@pytest.mark.parametrize("name", ACROSS)
def test_a_row_over_four_devices_has_the_loss_and_gradients_of_one(name):
    want, want_gradient = on_one_device()
    got, gradient = on(sharding.make_mesh(config=MeshConfig(**SIZES)), ACROSS[name])
    assert got == pytest.approx(want, rel=1e-5)
    size = optax.tree.norm(want_gradient)
    assert size > 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * size), gradient, want_gradient)


def test_the_options_reach_what_the_devices_do():
    """Messages of attention by kind: around a ring no keys are gathered, in zigzag queries travel."""
    mesh = sharding.make_mesh(config=MeshConfig(**SIZES))

    def sent(**options):
        text = loss_on(mesh, options).lower(start(), batch()).as_text()
        return text.count('"stablehlo.all_gather"'), text.count('"stablehlo.collective_permute"')

    (plain, none), (turned, queries), (ring, parts) = sent(), *(sent(**ACROSS[n]) for n in list(ACROSS)[:2])
    assert none == 0 and turned == plain and queries > 0 and parts > 0
    assert 0 < ring < plain, "times alone"


def test_the_share_that_may_be_left_out_reaches_every_call_of_the_backbone():
    said = []

    def attend(*arrays, skip_tolerance, **options):
        said.append(skip_tolerance)
        return kernel_attention(*arrays, skip_tolerance=skip_tolerance, **options)

    for tolerance in (0.0, 0.01):
        network = family.network(SPEC, model_of(skip_tolerance=tolerance).config, MeshOps(attend=attend))
        jax.eval_shape(network.init, jax.random.key(0), batch())
        assert set(said) == {tolerance} and len(said) >= 2, "of tokens and of queries"
        said.clear()


def test_other_choices_are_refused():
    with pytest.raises(ValueError, match="config.mesh.context_layout is 'spiral'; it can be contiguous, zigzag"):
        MeshConfig(context_layout="spiral")
    with pytest.raises(ValueError, match="skip_tolerance is 1.0; it must lie in"):
        NetworkConfig(skip_tolerance=1.0)
