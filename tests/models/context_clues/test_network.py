"""The networks of ContextClues: what z is, what it may depend on, their losses, sizes, optimiser, and meshes."""

import functools

import context_clues_reference as reference
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_run
from context_clues_cases import config_of
from flax import traverse_util
from motor_cases import batch_of
from published_models import published
from small_model import random_params

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.config.training import MeshConfig, TrainConfig
from ehrwear_jax.models.context_clues import family
from ehrwear_jax.models.context_clues.config import VOCABULARY
from ehrwear_jax.training import compile_only, cost, optimizer, sharding
from ehrwear_jax.training.pretrain import Model

BACKBONES = ("llama", "mamba")


class Case:
    """A backbone over a batch of two rows, with parameters that hide no input."""

    def __init__(self, root, backbone):
        self.config = config_of(backbone)
        self.examples = family.examples(small_run.store(root, "train"), self.config)
        self.batch = batch_of(self.examples, range(2))
        self.net = family.network(self.examples.spec, self.config)
        self.objective = family.objective(self.examples.spec, self.config)
        self.boxed = jax.eval_shape(lambda: self.net.init(jax.random.key(0), self.batch))["params"]
        self.params = random_params(self.boxed, mean=0.0, spread=0.5)
        self.run = jax.jit(lambda b: self.net.apply({"params": self.params}, b, method="read")[0])

    def encode(self, batch):
        """z at all tokens: [B, T, D]."""
        return np.asarray(self.run({k: batch[k] for k in ("token", "kv_range")}))


@pytest.fixture(scope="module", params=BACKBONES)
def case(people, request):
    return Case(people, request.param)


def test_z_and_losses_are_those_of_plain_loops(case):
    """Context by context in float64, though rows hold several: in lieu of the published implementations."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), case.params)
    z, batch = case.encode(case.batch), case.batch
    losses = np.asarray(case.net.apply({"params": case.params}, batch)["next_code"].nll)
    assert batch["segment"].max(axis=1).min() >= 2
    for row in range(2):
        for number in range(1, batch["segment"][row].max() + 1):
            mine = batch["segment"][row] == number
            want = reference.hidden(params, batch["token"][row][mine], case.config)
            np.testing.assert_allclose(z[row][mine], want, rtol=1e-4, atol=1e-4)
            log_p = reference.log_probabilities(params, want, case.config)
            nll = -np.take_along_axis(log_p, batch["target"][row][mine][:, None], axis=1)[:, 0]
            np.testing.assert_allclose(losses[row][mine], nll, rtol=1e-4, atol=1e-4)
    assert not losses[batch["target"] < 0].any()


def test_changing_what_comes_later_or_another_person_changes_no_bit(case):
    """Of a row that several share: later tokens, and all of the others."""
    batch, before, rng = case.batch, case.encode(case.batch), np.random.default_rng(0)
    real = batch["segment"] > 0
    for cut in (3, 17, 30):
        changed = {k: v.copy() for k, v in batch.items()}
        here = (slice(None), slice(cut, None))
        changed["token"][here] = (batch["token"][here] + rng.integers(1, 9, batch["token"][here].shape)) % 12
        after = case.encode(changed)
        np.testing.assert_array_equal(after[:, :cut], before[:, :cut])
        assert np.any(after[:, cut:] != before[:, cut:], axis=-1)[real[:, cut:]].all()
    for number in (1, 2):
        other = {k: v.copy() for k, v in batch.items()}
        theirs = batch["segment"] == number
        other["token"][theirs] = 3
        np.testing.assert_array_equal(case.encode(other)[~theirs & real], before[~theirs & real])


def test_z_reaches_back_to_the_first_token_of_its_context(case):
    at = int(np.flatnonzero(case.batch["segment"][0] == 1)[-1])
    changed = {k: v.copy() for k, v in case.batch.items()}
    changed["token"][0, 0] = 5
    assert np.any(case.encode(changed)[0, at] != case.encode(case.batch)[0, at])


def test_a_person_says_the_same_in_any_row_and_place(people, case):
    found = family.examples(small_run.store(people, None), case.config)
    position = np.repeat(np.arange(0, 30), 2)
    end = [int(found.people[int(i)].time_K.max(initial=0)) for i in position]
    time, z = np.array(end) - np.tile([0, 10**13], 30), [np.zeros((60, 8)) for _ in range(2)]
    for of, order in zip(z, (np.arange(60), np.arange(60)[::-1]), strict=True):
        for batch, where in found.prediction_batches(position[order], time[order], 2):
            read = np.take_along_axis(case.encode(batch), np.maximum(batch["site"], 0)[..., None], axis=1)
            of[order[where[where >= 0]]] = read[where >= 0]
    assert np.abs(z[0]).max(axis=1).min() > 0
    np.testing.assert_allclose(z[0], z[1], rtol=1e-4, atol=1e-4)


def test_log_probabilities_are_what_the_loss_is_made_of(case):
    batch = case.batch | {"site": np.tile(np.arange(12, dtype=np.int32), (2, 1))}
    found = np.asarray(case.net.apply({"params": case.params}, batch, method="log_probabilities"))
    np.testing.assert_allclose(np.exp(found).sum(-1), 1.0, rtol=1e-5)
    nll = np.asarray(case.net.apply({"params": case.params}, batch)["next_code"].nll)[:, :12]
    own = np.take_along_axis(found, batch["target"][:, :12, None], axis=-1)[..., 0]
    np.testing.assert_allclose(-own, nll, rtol=1e-4, atol=1e-5)


def test_halves_and_micro_batches_add_up_to_the_whole(case):
    net, objective, batch = case.net, case.objective, case.batch
    shared, weights = objective.normalisers(batch), objective.weights(0)

    @jax.jit
    def loss(part):
        return objective(net.apply({"params": case.params}, part), part, weights, shared)

    z, more = net.apply({"params": case.params}, batch, method="read")
    out = net.apply({"params": case.params}, z, more, batch, ("next_code",), method="predicted")
    whole, metrics = objective(out, batch, weights, shared)
    parts = [loss({k: v[r : r + 1] for k, v in batch.items()}) for r in range(2)]
    assert sum(float(value) for value, _ in parts) == pytest.approx(float(whole), rel=1e-5)
    accuracy = sum(float(found["next_code/accuracy"]) for _, found in parts)
    assert accuracy == pytest.approx(float(metrics["next_code/accuracy"]), rel=1e-5) and 0 <= accuracy <= 1


def test_every_kernel_has_names_of_its_axes_and_layers_are_stacked(case):
    spec = traverse_util.flatten_dict(nn.get_partition_spec(case.boxed), sep="/")
    names = {name: tuple(axes) for name, axes in spec.items() if axes is not None}
    blocks = {"llama": {"key/kernel": ("embed", "heads", "depth"), "down/kernel": ("mlp", "embed")},
              "mamba": {"in/kernel": ("embed", None, "mlp"), "log_rate": ("mlp", None),
                        "convolution/kernel": (None, "mlp")}}[case.config.backbone]  # fmt: skip
    assert {k: names[f"backbone/blocks/{k}"] for k in blocks} == {k: ("layers", *v) for k, v in blocks.items()}
    assert names["dictionary/embedding"] == ("token", "embed")
    assert case.config.tied_head or names["head/kernel"] == ("embed", "token")
    assert all(names.get(name) for name in spec if name.endswith(("kernel", "embedding")))
    adapted = family.network(case.examples.spec, family.adapted(case.config, 2))
    more = cost.parameters(jax.eval_shape(lambda: adapted.init(jax.random.key(0), case.batch))["params"])
    assert more["backbone"] - cost.parameters(nn.meta.unbox(case.boxed))["backbone"] == 2 * (2 * 8 * 2 + 2 + 8)


def test_the_optimiser_decays_weights_and_uses_its_betas(case):
    """Kernels shrink where there is no gradient, and nothing else. The original builds Adam, without its options."""
    decays = traverse_util.flatten_dict(optimizer.decayed(case.params), sep="/")
    assert {name.endswith("/kernel") for name, x in decays.items() if x} == {True}
    assert not any(x for name, x in decays.items() if not name.endswith("/kernel"))

    def trained(gradients, **options):
        params = {"norm": {"scale": jnp.ones(3)}, "out": {"kernel": jnp.ones((2, 3))}}
        config = TrainConfig(steps=100, warmup_steps=1, peak_learning_rate=0.1, clip_norm=1e9, **options)
        made = optimizer.make_optimizer(config)
        state = made.init(params)
        for gradient in gradients:
            update, state = made.update(jax.tree.map(lambda x, g=gradient: g * jnp.ones_like(x), params), state, params)
            params = optax.apply_updates(params, update)
        return params["norm"]["scale"][0], params["out"]["kernel"][0, 0]

    assert trained([0.0], weight_decay=0.5) == pytest.approx((1.0, 0.95), rel=1e-5)
    one, other = (trained([9.0, 1.0], weight_decay=0.0, adam_b2=b2)[0] for b2 in (0.95, 0.5))
    assert abs(one - other) > 1e-3


def test_the_published_sizes():
    """By hand, of 39,811 tokens: 123 and 121 million parameters."""
    v, d = VOCABULARY, 768
    llama = 8 * (2 * d * d + 2 * d * 256 + 3 * d * 2688 + 2 * d)
    inner, rank, state = 2 * d, 48, 16
    mamba = 24 * (2 * d * inner + 5 * inner + inner * (rank + 2 * state) + rank * inner + inner + inner * state + inner
                  + inner * d + d)  # fmt: skip
    for name, backbone, total in (("context_clues", llama, 123.3e6), ("context_clues_mamba", mamba, 121.1e6)):
        config = published(name)
        spec, _ = family.assumed(config, PrepareConfig(), v)
        parts = compile_only.parameters(Model("clues", "context_clues", config), spec)
        assert parts["backbone"] == backbone + d
        assert sum(parts.values()) == backbone + d + v * d * (1 if config.tied_head else 2)
        assert sum(parts.values()) == pytest.approx(total, rel=0.001)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
def test_half_precision_and_recomputation_give_the_same_gradients_but_for_rounding(people, backbone):
    """Of the loss by all parameters."""
    base = Case(people, backbone)

    def gradient(**options):
        net = family.network(base.examples.spec, config_of(backbone, **options))

        def loss(params):
            out = net.apply({"params": params}, base.batch, deterministic=False)
            shared = base.objective.normalisers(base.batch)
            return base.objective(out, base.batch, {"next_code": 1.0}, shared)[0]

        return traverse_util.flatten_dict(jax.jit(jax.grad(loss))(base.params), sep="/")

    want = gradient()
    for options, tolerance in (({"remat": "full"}, 1e-5), ({"remat": "attention"}, 1e-5), ({"unroll": 2}, 1e-5),
                               ({"dtype": "bfloat16"}, 0.1)):  # fmt: skip
        for name, x in gradient(**options).items():
            error = np.linalg.norm(x - want[name]) / np.linalg.norm(want[name])
            assert error < tolerance, (options, name, error)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
def test_on_a_mesh_of_several_devices_losses_and_gradients_are_those_of_one(people, backbone):
    base = Case(people, backbone)
    batch = batch_of(base.examples, range(4))

    def found(mesh_ops):
        net = functools.partial(family.network, mesh_ops=mesh_ops)(base.examples.spec, base.config)

        def loss(params):
            out = net.apply({"params": params}, batch)
            return base.objective(out, batch, {"next_code": 1.0}, base.objective.normalisers(batch))[0]

        return jax.jit(jax.value_and_grad(loss))(base.params)

    one = found(sharding.mesh_ops(sharding.make_mesh(jax.devices()[:1])))
    for shape in ({"data": 2, "fsdp": 2}, {"data": 2, "tensor": 2}):
        config = MeshConfig(**{"data": 1, "fsdp": 1, "tensor": 1, "context": 1} | shape)
        several = found(sharding.mesh_ops(sharding.make_mesh(jax.devices()[:4], config)))
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(several), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5 * np.abs(a).max())
