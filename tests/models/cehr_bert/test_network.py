"""CEHR-BERT's network and losses against numpy, what z may depend on, its size, and meshes."""

import functools
import math

import flax.linen as nn
import jax
import numpy as np
import pytest
import small_run
from cehr_cases import config_of
from flax import traverse_util
from motor_cases import batch_of
from published_models import published
from small_model import random_params

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.config.training import MeshConfig
from ehrwear_jax.models.cehr_bert import family
from ehrwear_jax.models.cehr_bert.config import TOKENS, Config
from ehrwear_jax.training import compile_only, cost, sharding
from ehrwear_jax.training.pretrain import Model

CONFIG = {"value_weight": 0.5, "visit_weight": 0.7}


@pytest.fixture(scope="module")
def examples(people):
    return family.examples(small_run.store(people, "train"), config_of(**CONFIG))


@pytest.fixture(scope="module")
def batch(examples):
    """Two rows that several people share; z is read of each."""
    found = batch_of(examples, range(2))
    for r, segment in enumerate(found["segment"]):
        for n in range(min(segment.max(), examples.config.sites)):
            at = np.flatnonzero(segment == n + 1)
            found["site"][r, n] = at[0], at[-1] + 1
    found["value"] *= 8.0  # some beyond the limit
    return found


@pytest.fixture(scope="module")
def net(examples):
    return family.network(examples.spec, examples.config)


@pytest.fixture(scope="module")
def params(net, batch):
    """Parameters that hide no input."""
    return random_params(jax.eval_shape(lambda: net.init(jax.random.key(0), batch))["params"])


@pytest.fixture(scope="module")
def run(examples, net, params):
    """(batch, parameters) -> {states, z, z of cls, predictions, those by the two halves}, compiled once."""
    cls = family.network(examples.spec, config_of(readout="cls", **CONFIG))
    names = ("masked_tokens", "masked_values", "visit_types")

    @jax.jit
    def of(batch, params):
        def apply(method, *more):
            return net.apply({"params": params}, *more, method=method)

        z, more = apply("read", batch)
        return {
            "states": apply("states", batch),
            "z": apply("encode", batch),
            "cls": cls.apply({"params": params}, batch, method="encode"),
            "out": net.apply({"params": params}, batch),
            "halves": [apply("predicted", z, more, batch, (name,)) for name in names],
        }

    return lambda batch, params=params: jax.device_get(of(batch, params))


# ------------------------------------------------------------------------------------------ a direct computation


def gelu(x, exact=True):
    if exact:
        return 0.5 * x * (1 + np.vectorize(math.erf)(x / np.sqrt(2.0)))
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def affine(p, x, n_in=1):
    kernel = np.asarray(p["kernel"], np.float64)
    x = x.reshape(*x.shape[: x.ndim - n_in], -1)
    out = x @ kernel.reshape(x.shape[-1], -1) + np.asarray(p["bias"], np.float64).reshape(-1)
    return out.reshape(*x.shape[:-1], *kernel.shape[n_in:])


def norm(p, x):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12) * p["scale"] + p["bias"]


def attention(p, y, x, ranges):
    q, k, v = affine(p["query"], y), affine(p["key"], x), affine(p["value"], x)
    out = np.zeros_like(q)
    for i, (begin, end) in enumerate(ranges):
        for h in range(q.shape[1]):
            if end > begin:
                logit = k[begin:end, h] @ q[i, h] / np.sqrt(q.shape[-1])
                weight = np.exp(logit - logit.max())
                out[i, h] = weight / weight.sum() @ v[begin:end, h]
    return affine(p["out"], out, 2)


def feed_forward(p, x):
    return affine(p["down"], gelu(affine(p["up"], x)))


def time2vec(p, time):
    return np.sin(time[:, None] * np.float64(p["rate"]) + np.float64(p["phase"]))


def states_of(p, row, config):
    """States of a row's tokens, and features of dates and ages."""
    e, f = p["embedder"], config.time_features
    x = np.asarray(e["table"]["embedding"], np.float64)[row["token"]]
    with_value = np.concatenate([x, np.clip(row["value"], -10, 10)[:, None]], -1)
    x = np.where(row["has_value"][:, None], gelu(affine(e["merge"], with_value), False), x)
    times = time2vec(e["date"], row["date"] / 1000.0), time2vec(e["age"], row["age"] / 100.0)
    angle = row["visit"][:, None] / 10_000.0 ** (np.arange(0, f, 2) / f)
    place = np.zeros((len(x), f))
    place[:, 0::2], place[:, 1::2] = np.sin(angle), np.cos(angle)
    x = gelu(affine(e["join"], np.concatenate([x, *times, place], -1)), False)
    x = x + e["visit_segment"]["embedding"][row["visit_segment"]]
    return blocks(p, x, row, config), times


def blocks(p, x, row, config):
    """States of what embeddings are given."""
    for layer in range(config.n_layers):
        b = jax.tree.map(lambda a, i=layer: np.asarray(a[i], np.float64), p["backbone"]["blocks"])
        x = norm(b["norm_attention"], x + attention(b["attention"], x, x, row["kv_range"]))
        x = norm(b["norm_mlp"], x + feed_forward(b["mlp"], x))
    return x


def losses_of(scores, target):
    log_p = scores - np.log(np.exp(scores - scores.max(-1, keepdims=True)).sum(-1, keepdims=True))
    log_p -= scores.max(-1, keepdims=True)
    return [-log_p[k, t] for k, t in enumerate(target) if t >= 0]


def visit_scores(p, row, states, times):
    x = np.concatenate([p["types"]["embedding"][row["visit_type"]], *(t[row["visit_at"]] for t in times)], -1)
    x = np.tanh(affine(p["join"], x))
    x = norm(p["norm_peers"], x + attention(p["peers"], x, x, row["visit_peers"]))
    x = norm(p["norm_tokens"], x + attention(p["tokens"], x, states, row["visit_sees"]))
    x = norm(p["norm_mlp"], x + feed_forward(p["mlp"], x))
    return x @ np.asarray(p["types"]["embedding"], np.float64).T + p["bias"]


def test_losses_are_those_of_a_direct_computation(examples, batch, params, run):
    """All of it in float64: embeddings, blocks, the table tied to the scores, values, the decoder of visits."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    found = run(batch)
    states, out = found["states"], found["out"]
    of_tokens, of_visits, squares = [], [], []
    for r in range(2):
        row = {k: v[r] for k, v in batch.items()}
        x, times = states_of(p, row, examples.config)
        real = row["segment"] > 0
        np.testing.assert_allclose(states[r][real], x[real], rtol=2e-4, atol=2e-4)
        head = p["token_head"]
        vector = norm(head["norm"], gelu(affine(head["transform"], x)))
        of_tokens += losses_of(vector @ p["embedder"]["table"]["embedding"].T + head["bias"], row["target"])
        value = affine(p["value_out"], gelu(affine(p["value_hidden"], x), False))[:, 0]
        squares += ((value - row["value_target"]) ** 2)[row["has_value_target"]].tolist()
        of_visits += losses_of(visit_scores(p["visit_decoder"], row, x, times), row["visit_target"])
    assert min(map(len, (of_tokens, of_visits, squares))) > 2
    objective = family.objective(examples.spec, examples.config)
    total, found = objective(out, batch, objective.weights(0), objective.normalisers(batch))
    want = {"masked_tokens": np.mean(of_tokens), "masked_values": np.mean(squares), "visit_types": np.mean(of_visits)}
    for name, value in want.items():
        assert float(found[f"loss/{name}"]) == pytest.approx(value, rel=2e-4), name
    whole = want["masked_tokens"] + 0.5 * want["masked_values"] + 0.7 * want["visit_types"]
    assert float(total) == pytest.approx(whole, rel=2e-4)
    assert 0 <= float(found["masked_tokens/accuracy"]) <= 1


def test_dates_have_parameters_of_their_own(batch, params, run):
    """The published implementation embeds dates with the sines of ages."""
    before = run(batch)["states"]
    for name, field in (("date", "age"), ("age", "date")):
        embedder = params["embedder"]
        changed = params | {"embedder": embedder | {name: jax.tree.map(lambda x: x + 0.3, embedder[name])}}
        zeroed = batch | {field: np.zeros_like(batch[field])}
        assert np.abs(run(batch, changed)["states"] - before).max() > 1e-3, name
        assert np.abs(run(zeroed, changed)["states"] - run(zeroed)["states"]).max() > 1e-3, name


# ------------------------------------------------------------------------------------------------ what z depends on


def test_z_is_the_mean_of_the_states_of_its_context_or_the_first_of_them(batch, run):
    """Never of padding, over which the published implementation averages too."""
    found = run(batch)
    states, z, first = found["states"], found["z"], found["cls"]
    for r, n in np.ndindex(*batch["site"].shape[:2]):
        begin, end = batch["site"][r, n]
        want = states[r, begin:end].mean(0) if end > begin else np.zeros(states.shape[-1])
        np.testing.assert_allclose(z[r, n], want, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(first[r, n], states[r, begin] if end > begin else want, rtol=1e-4, atol=1e-5)


def test_changing_another_person_changes_no_bit_and_any_own_token_every_state(batch, run):
    before = run(batch)
    states, z = before["states"], before["z"]
    other = {k: v.copy() for k, v in batch.items()}
    first = batch["segment"] == 1
    other["token"][first], other["age"][first], other["date"][first] = 30, batch["age"][first] + 5.0, 77.0
    after = run(other)
    rest = ~first & (batch["segment"] > 0)
    assert rest.any()
    np.testing.assert_array_equal(after["states"][rest], states[rest])
    np.testing.assert_array_equal(after["z"][:, 1:], z[:, 1:])
    last = {k: v.copy() for k, v in batch.items()}
    end = batch["site"][0, 0, 1]
    last["token"][0, end - 1] = 30
    changed = np.any(run(last)["states"] != states, axis=-1)
    assert changed[0, :end].all() and not changed[0, end:].any() and not changed[1].any()


def test_a_person_says_the_same_in_any_row_and_place(people, examples, run):
    """Read in rows that several share, in two orders."""
    found = family.examples(small_run.store(people, None), examples.config)
    position = np.repeat(np.arange(0, 30), 2)
    ends = [int(found.people[int(i)].known_K[-1]) if len(found.people[int(i)].known_K) else 0 for i in position]
    time = np.array(ends) - np.tile([0, 10**13], 30)
    z = [np.zeros((len(position), 8)) for _ in range(2)]
    for of, order in zip(z, (np.arange(len(position)), np.arange(len(position))[::-1]), strict=True):
        for batch, where in found.prediction_batches(position[order], time[order], 2):
            of[order[where[where >= 0]]] = run(batch)["z"][where >= 0]
    assert np.abs(z[0]).max(axis=1).min() > 0
    np.testing.assert_allclose(z[0], z[1], rtol=2e-5, atol=2e-5)


# ------------------------------------------------------------------------------------------------------------- sizes


def test_the_original_has_as_many_parameters_as_by_hand():
    """20,000 concepts, d128, 12 layers of 8 heads and 2,048 hidden units, three blocks of 16 features of time.

    By hand without BERT's pooler, which no loss trains: 9.75 million.
    """
    d, f, layers, hidden = 128, 16, 12, 2048
    embeddings = TOKENS * d + 3 * d + 2 * 2 * f + (d + 1) * d + d + (d + 3 * f) * d + d
    block = 4 * (d * d + d) + d * hidden + hidden + hidden * d + d + 2 * 2 * d
    head = d * d + d + 2 * d + TOKENS
    by_hand = embeddings + layers * block + head
    spec, _ = family.assumed(published("cehr_bert"), PrepareConfig(), TOKENS)
    parts = compile_only.parameters(Model("cehr_bert", "cehr_bert", published("cehr_bert")), spec)
    print(f"parameters of the original: {sum(parts.values()):,}, by hand {by_hand:,}; {parts}")
    assert sum(parts.values()) == pytest.approx(by_hand, rel=0.01) and by_hand == 9_752_800
    spec, _ = family.assumed(Config(), PrepareConfig(), TOKENS)
    more = compile_only.parameters(Model("cehr_bert", "cehr_bert", Config()), spec)["visit_decoder"]
    types, dff = spec.facts.visit_types, 512
    decoder = 8 * (d * d + d) + 2 * d * dff + dff + d + 3 * 2 * d + (d + 2 * f) * d + d + types * (d + 1)
    assert more == decoder


@pytest.mark.parametrize(
    ("config", "tokens", "others"),
    [
        (published("behrt"), 5_000, 288 * (1440 + 3)),
        (published("med_bert"), 82_603, 192 * (1000 + 512) + 192 * 193 + 2 * 193),
    ],
)
def test_behrt_and_med_bert_have_as_many_parameters_as_by_hand(config, tokens, others):
    """Sums of embeddings and their norm, six blocks, the head with the table; of long stays two products."""
    d, hidden = config.width, config.mlp_width
    block = 4 * (d * d + d) + d * hidden + hidden + hidden * d + d + 2 * 2 * d
    by_hand = tokens * d + others + 2 * d + 6 * block + d * d + d + 2 * d + tokens
    spec, _ = family.assumed(config, PrepareConfig(), tokens)
    assert sum(compile_only.parameters(Model(config.inputs, "cehr_bert", config), spec).values()) == by_hand


def summed_inputs(p, row, inputs):
    """Embeddings of BEHRT or Med-BERT."""
    x = p["table"]["embedding"][row["token"]]
    if inputs == "behrt":
        d, month = x.shape[-1], np.minimum(np.floor(row["age"] * np.float32(12)).astype(int), 1439)
        angle = row["visit"][:, None] / 10_000.0 ** (np.arange(0, d, 2) / d)
        x = x + p["month"]["embedding"][month] + p["visit_segment"]["embedding"][row["visit_segment"]]
        x = x + np.stack([np.sin(angle), np.cos(angle)], -1).reshape(len(x), d)
    else:
        place = np.arange(len(x)) - [np.flatnonzero(row["segment"] == s)[0] for s in row["segment"]]
        x = x + p["visit"]["embedding"][row["visit"]] + p["place"]["embedding"][np.minimum(place, 23)]
    return norm(p["norm"], x)


@pytest.mark.parametrize("inputs", ["behrt", "med_bert"])
def test_summed_inputs_and_long_stays_by_a_direct_computation(people, inputs):
    config = config_of(inputs=inputs, visit_weight=0.0, long_stay_weight=1.0, n_layers=1)
    examples = family.examples(small_run.store(people, "train"), config)
    batch = batch_of(examples, range(2))
    batch["long_stay"][:, 0], batch["age"][0, 0] = 1, 200.0  # an age beyond the table
    net = family.network(examples.spec, config)
    params = random_params(jax.eval_shape(lambda: net.init(jax.random.key(0), batch))["params"])
    out, states = jax.jit(lambda b: [net.apply({"params": params}, b, method=m) for m in (None, "states")])(batch)
    p, want = jax.tree.map(lambda x: np.asarray(x, np.float64), params), []
    for r in range(2):
        row = {k: v[r] for k, v in batch.items()}
        x = blocks(p, summed_inputs(p["embedder"], row, inputs), row, config)
        real = row["segment"] > 0
        np.testing.assert_allclose(states[r][real], x[real], rtol=2e-4, atol=2e-4)
        scores = affine(p["long_stay"], np.tanh(affine(p["pooler"], x[row["first_at"]])))
        want += losses_of(scores, row["long_stay"])
    objective = family.objective(examples.spec, config)
    found = objective(out, batch, objective.weights(0), objective.normalisers(batch))[1]
    assert float(found["loss/long_stays"]) == pytest.approx(np.mean(want), rel=1e-4) and len(want) > 2
    assert set(objective.weights(0)) == {"masked_tokens", "long_stays"}


def test_halves_and_micro_batches_add_up_to_the_whole(examples, batch, run, capfd):
    objective = family.objective(examples.spec, examples.config)
    shared, weights = objective.normalisers(batch), objective.weights(0)
    found = run(batch)
    whole = float(objective(found["out"], batch, weights, shared)[0])
    halves = {name: x for half in found["halves"] for name, x in half.items()}
    assert float(objective(halves, batch, weights, shared)[0]) == pytest.approx(whole, rel=1e-5)
    parts, empty = 0.0, examples.spec.empty(1)
    for r in range(2):
        part = {k: np.concatenate([v[r : r + 1], empty[k]]) for k, v in batch.items()}
        parts += float(objective(run(part)["out"], part, weights, shared)[0])
    assert parts == pytest.approx(whole, rel=1e-5)
    assert capfd.readouterr().out == ""


def test_every_kernel_has_names_of_its_axes_and_layers_are_stacked(net, examples, batch):
    boxed = jax.eval_shape(lambda: net.init(jax.random.key(0), batch))["params"]
    spec = traverse_util.flatten_dict(nn.get_partition_spec(boxed), sep="/")
    names = {name: tuple(axes) for name, axes in spec.items() if axes is not None}
    assert names["backbone/blocks/attention/query/kernel"] == ("layers", "embed", "heads", "depth")
    assert names["backbone/blocks/mlp/down/kernel"] == ("layers", "mlp", "embed")
    assert names["embedder/table/embedding"] == ("token", "embed") and names["token_head/bias"] == ("token",)
    assert names["visit_decoder/types/embedding"] == ("visit_type", "embed")
    assert all(any(names.get(name, ())) for name in spec if name.endswith(("/table/embedding", "query/kernel")))
    adapted = family.network(examples.spec, family.adapted(examples.config, 2))
    more = cost.parameters(jax.eval_shape(lambda: adapted.init(jax.random.key(0), batch))["params"])
    n_adapter = 2 * examples.config.n_layers * (2 * 8 * 2 + 2 + 8)
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
        # of all: biases of keys have no gradient but rounding
        largest = max(np.abs(a).max() for a in jax.tree.leaves(one[1]))
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(several), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5 * largest)
