"""MOTOR's network: what z may depend on, how training begins, its size, and meshes."""

import functools

import device_traffic
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run
from flax import traverse_util
from motor_cases import batch_of, config_of
from small_model import random_params

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.config.training import MeshConfig
from ehrwear_jax.models.layers import time_encoding
from ehrwear_jax.models.layers.mesh_ops import ONE_DEVICE
from ehrwear_jax.models.motor import family, network
from ehrwear_jax.models.motor.config import DICTIONARY, Config
from ehrwear_jax.training import compile_only, cost, sharding
from ehrwear_jax.training.pretrain import Model


@pytest.fixture(scope="module")
def examples(people):
    return family.examples(small_run.store(people, "train"), config_of())


@pytest.fixture(scope="module")
def batch(examples):
    return batch_of(examples, range(2))


@pytest.fixture(scope="module")
def params(examples, batch):
    """Parameters that hide no input."""
    net = family.network(examples.spec, examples.config)
    return random_params(jax.eval_shape(lambda: net.init(jax.random.key(0), batch))["params"])


@pytest.fixture(scope="module")
def encode(examples, params):
    """batch -> z at all tokens, as places, of the same compiled program: [B, T, D]."""
    net = family.network(examples.spec, examples.config)
    run = jax.jit(lambda b: net.apply({"params": params}, b, method="encode"))

    def of(batch):
        rows, n_tokens = batch["segment"].shape
        everywhere = np.broadcast_to(np.arange(n_tokens, dtype=np.int32), (rows, n_tokens))
        return np.asarray(run({k: batch[k] for k in ("entry", "weight", "age", "kv_range")} | {"site": everywhere}))

    return of


def test_changing_what_comes_later_or_another_person_changes_no_bit(examples, batch, encode):
    """Of a row that several share: later tokens, and all of the others."""
    before, rng = encode(batch), np.random.default_rng(0)
    real = batch["segment"] > 0
    assert batch["segment"].max(axis=1).min() >= 2
    for cut in (3, 17, 30):
        changed = {k: v.copy() for k, v in batch.items()}
        here = (slice(None), slice(cut, None))
        changed["entry"][here] = rng.integers(2, examples.fitted.facts.dictionary, batch["entry"][here].shape)
        changed["weight"][here], changed["age"][here] = 0.7, batch["age"][here] + 33.0
        after = encode(changed)
        np.testing.assert_array_equal(after[:, :cut], before[:, :cut])
        assert np.any(after[:, cut:] != before[:, cut:], axis=-1)[real[:, cut:]].all()
    other = {k: v.copy() for k, v in batch.items()}
    first = batch["segment"] == 1
    other["entry"][first], other["age"][first] = 3, batch["age"][first] + 5.0
    np.testing.assert_array_equal(encode(other)[~first & real], before[~first & real])


def test_z_reaches_as_far_back_as_the_config_says(examples, batch, encode):
    """And no token farther: what tokens_seen counts."""
    reach, at = examples.config.reach, 19
    begin = np.flatnonzero(batch["segment"][0] == batch["segment"][0, at])[0]
    assert at - begin + 1 > reach
    before = encode(batch)[0, at]
    for place in range(begin, at + 1):
        changed = {k: v.copy() for k, v in batch.items()}
        changed["entry"][0, place], changed["weight"][0, place] = 4, 0.37
        changed["age"][0, place, 1] += 0.4
        assert np.any(encode(changed)[0, at] != before) == (place > at - reach), place


def test_a_person_says_the_same_in_any_row_and_place(people, encode):
    """Read in rows that several share, and in rows of their own."""
    found = family.examples(small_run.store(people, None), config_of())
    position = np.repeat(np.arange(0, 30), 2)
    time = np.array([found.people[int(i)].end_us for i in position]) - np.tile([0, 10**13], 30)
    z = [np.zeros((len(position), 8)) for _ in range(2)]
    for of, order in zip(z, (np.arange(len(position)), np.arange(len(position))[::-1]), strict=True):
        for batch, where in found.prediction_batches(position[order], time[order], 2):
            read = np.take_along_axis(encode(batch), np.maximum(batch["site"], 0)[..., None], axis=1)
            of[order[where[where >= 0]]] = read[where >= 0]
    assert np.abs(z[0]).max(axis=1).min() > 0
    np.testing.assert_allclose(z[0], z[1], rtol=2e-5, atol=2e-5)


def test_attention_turns_by_differences_of_ages():
    """Products of turned queries and keys are the same when both are years older; fractions of a day count."""
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 1, 1, 1, 8)).astype(np.float32)
    cycles = network.rotation_cycles(4)
    np.testing.assert_allclose(2 * np.pi * cycles, [1.0, 10.0 ** (-8 / 3), 10.0 ** (-16 / 3), 1e-8], rtol=1e-12)

    def product(*ages):
        turned = []
        for x, age in zip((q, k), ages, strict=True):
            sin_cos = time_encoding.encode(np.array([[[np.floor(age), age % 1.0]]], np.float32), cycles)[:, :, None]
            turned.append(network.rotated(jnp.asarray(x), *jnp.split(sin_cos, 2, axis=-1)))
        return float((turned[0] * turned[1]).sum())

    young, old = product(10.25, 3.0), product(20_010.25, 20_003.0)
    assert young == pytest.approx(old, abs=1e-5) and abs(product(10.75, 3.0) - young) > 1e-3
    assert product(5.0, 5.0) == pytest.approx(float((q * k).sum()), abs=1e-5)


def test_training_begins_at_the_rates(examples, batch):
    """The loss is nearly that of constant hazards, each code's rate: the bias, while vectors of codes are short."""
    facts, (rows, n_sites) = examples.fitted.facts, batch["site"].shape
    head = network.TimeToEventHead(facts, 4, "float32", ONE_DEVICE)
    z = np.random.default_rng(0).normal(size=(rows, n_sites, 8)).astype(np.float32)  # as a norm leaves it
    found, variables = jax.jit(head.init_with_output)(jax.random.key(1), z, batch)
    params = nn.meta.unbox(variables)["params"]
    np.testing.assert_allclose(np.exp(params["bias"]), np.tile(facts.rates, (len(facts.bin_days), 1)), rtol=1e-5)
    trivial = np.asarray(head.apply({"params": params | {"kernel": jnp.zeros((4, facts.tasks))}}, z, batch))
    real = batch["site_days"] > 0
    assert abs(np.asarray(found)[real].mean() / trivial[real].mean() - 1) < 0.1
    rates, days = np.array(facts.rates), batch["site_days"][0, 0]
    mine = batch["pair_site"][0] == 0
    until = np.full(facts.tasks, days)
    until[batch["pair_task"][0][mine]] = batch["pair_days"][0][mine]
    want = (rates * until).sum() - np.log(rates[batch["pair_task"][0][mine]]).sum()
    assert trivial[0, 0] == pytest.approx(want, rel=1e-4)


def test_the_published_sizes_have_143_million_parameters():
    spec, _ = family.assumed(Config(), PrepareConfig(), DICTIONARY)
    parts = compile_only.parameters(Model("motor", "motor", Config()), spec)
    assert sum(parts.values()) == pytest.approx(143e6, rel=0.01)


def test_halves_and_micro_batches_add_up_to_the_whole(examples, batch, params, capfd):
    """Of rows that several share, and with nothing printed."""
    net, objective = family.network(examples.spec, examples.config), family.objective(examples.spec, examples.config)
    shared, weights = objective.normalisers(batch), objective.weights(0)

    @jax.jit
    def loss(part):
        return objective(net.apply({"params": params}, part), part, weights, shared)[0]

    z, more = net.apply({"params": params}, batch, method="read")
    out = net.apply({"params": params}, z, more, batch, ("time_to_event",), method="predicted")
    whole = float(objective(out, batch, weights, shared)[0])
    halves = [{k: v[r : r + 1] for k, v in batch.items()} for r in range(2)]
    assert sum(float(loss(half)) for half in halves) == pytest.approx(whole, rel=1e-5)
    assert capfd.readouterr().out == ""


def test_log_hazards_are_what_the_loss_is_made_of(examples, batch, params):
    net, facts = family.network(examples.spec, examples.config), examples.fitted.facts
    found = np.asarray(net.apply({"params": params}, batch, method="log_hazards"), np.float64)
    assert found.shape == (*batch["site"].shape, len(facts.bin_days), facts.tasks)
    loss = np.asarray(net.apply({"params": params}, batch)["time_to_event"])
    days = batch["site_days"][0, 1]
    until, happens = np.full(facts.tasks, days), np.zeros(facts.tasks, bool)
    mine = batch["pair_site"][0] == 1
    until[batch["pair_task"][0][mine]], happens[batch["pair_task"][0][mine]] = batch["pair_days"][0][mine], True
    bounds, want = [*facts.bin_days, np.inf], 0.0
    for k, (begin, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
        exposed = np.clip(until - begin, 0, end - begin)
        here = happens & (until >= begin) & (until < end)
        want += (np.exp(found[0, 1, k]) * exposed - here * found[0, 1, k]).sum()
    assert loss[0, 1] == pytest.approx(want, rel=1e-4)


def test_every_kernel_has_names_of_its_axes_and_layers_are_stacked(examples, batch):
    net = family.network(examples.spec, examples.config)
    boxed = jax.eval_shape(lambda: net.init(jax.random.key(0), batch))["params"]
    spec = traverse_util.flatten_dict(nn.get_partition_spec(boxed), sep="/")
    names = {name: tuple(axes) for name, axes in spec.items() if axes is not None}
    assert names["backbone/blocks/query/kernel"] == ("layers", "embed", "heads", "depth")
    assert names["backbone/blocks/down/kernel"] == ("layers", "mlp", "embed")
    assert names["dictionary/embedding"] == ("token", "embed") and names["head/kernel"] == (None, "future_code")
    assert all(names.get(name) for name in spec if name.endswith(("kernel", "embedding")))
    adapted = family.network(examples.spec, family.adapted(examples.config, 2))
    more = cost.parameters(jax.eval_shape(lambda: adapted.init(jax.random.key(0), batch))["params"])
    n_adapter = examples.config.n_layers * (2 * 8 * 2 + 2 + 8)
    assert more["backbone"] - cost.parameters(nn.meta.unbox(boxed))["backbone"] == n_adapter


@pytest.mark.slow
def test_on_a_mesh_of_several_devices_losses_and_gradients_are_those_of_one(examples):
    batch = batch_of(examples, range(4))

    def found(mesh_ops):
        net, objective = (f(examples.spec, examples.config) for f in (
            functools.partial(family.network, mesh_ops=mesh_ops), family.objective))  # fmt: skip
        params = random_params(jax.eval_shape(lambda: net.init(jax.random.key(0), batch))["params"])

        def loss(params):
            weights, normalisers = objective.weights(0), objective.normalisers(batch)
            return objective(net.apply({"params": params}, batch), batch, weights, normalisers)[0]

        return jax.jit(jax.value_and_grad(loss))(params)

    one = found(sharding.mesh_ops(sharding.make_mesh(jax.devices()[:1])))
    for shape in ({"data": 2, "fsdp": 2}, {"data": 2, "tensor": 2}):
        config = MeshConfig(**{"data": 1, "fsdp": 1, "tensor": 1, "context": 1} | shape)
        several = found(sharding.mesh_ops(sharding.make_mesh(jax.devices()[:4], config)))
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(several), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5 * np.abs(a).max())


def test_what_devices_send_each_other_does_not_grow_with_them(people):
    """Of the whole network: no token, place or pair of other devices' rows."""
    sizes = {"tokens": 96, "sites": 48, "pairs": 480}
    examples = family.examples(small_run.store(people, "train"), config_of(**sizes))
    fields = examples.spec.empty(1)
    device_traffic.does_not_grow(lambda ops: family.network(examples.spec, examples.config, ops), fields)
