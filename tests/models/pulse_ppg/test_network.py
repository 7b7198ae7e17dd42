"""Pulse-PPG's network: who is whose candidate, distances as those of pairs, and what z may depend on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import segment_cases
import small_run
from pulse_cases import batch_of, motif_config, needed_by, pulse_config

from ehrwear_jax.config.training import MeshConfig
from ehrwear_jax.models.layers.mesh_ops import ONE_DEVICE
from ehrwear_jax.models.pulse_ppg import family
from ehrwear_jax.models.pulse_ppg import network as lib
from ehrwear_jax.models.pulse_ppg.examples import PulseExamples
from ehrwear_jax.training import sharding


@pytest.fixture(scope="module")
def examples(people):
    return PulseExamples(small_run.store(people, "train"), pulse_config())


@pytest.fixture(scope="module")
def batch(examples):
    """Four rows, of which the last lacks its candidate."""
    found = batch_of(examples, range(4))
    for name, empty in (("signal", 0.0), ("observed", False), ("person", -1)):
        found[name][3, 1] = empty
    return found


@pytest.fixture(scope="module")
def started(batch):
    """(network, variables that are not those of the start, what it needs)."""
    network = lib.PulseNetwork(pulse_config())
    variables = jax.device_get(jax.jit(network.init)(jax.random.key(0), batch))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: (x + 0.1 * rng.random(x.shape)).astype(np.float32), variables)
    return network, variables, needed_by(batch)


def test_candidates_are_other_anchors_and_own_pieces():
    anchor, candidate = lib.candidates(4, 3)
    assert anchor.tolist() == [0, 3, 6, 9]
    for b in range(4):
        assert sorted(candidate[b].tolist()) == sorted([x for x in (0, 3, 6, 9) if x != 3 * b] + [3 * b + 1, 3 * b + 2])
        assert candidate[b, -2:].tolist() == [3 * b + 1, 3 * b + 2]


def test_distances_are_those_of_each_pair_alone(started, batch):
    """However many signals there are in a batch; of what is missing they are infinite."""
    network, variables, needed = started
    found = np.asarray(jax.jit(lambda v, b: network.apply(v, b, needed=needed))(variables, batch)["relative"][1])
    _, candidate = lib.candidates(4, 2)
    signal, observed = (batch[name].reshape(8, *batch[name].shape[2:]) for name in ("signal", "observed"))
    apply = needed["motif_distance"]

    @jax.jit
    def pair(a, there_a, c, there_c):
        keys = apply(c[None], there_c[None], method="keys")
        return apply(a[None], there_a[None], keys, method="distance")[0]

    for b in range(4):
        for c, at in enumerate(candidate[b]):
            want = pair(signal[2 * b], observed[2 * b], signal[at], observed[at])
            np.testing.assert_allclose(found[b, c], want, rtol=1e-4)
    assert np.isposinf(found[3, 3]) and np.isfinite(found).sum() == 15


def test_the_distance_is_not_trained_and_its_order_is_all_that_counts(started, batch):
    network, variables, _ = started
    objective = family.objective(None, network.config)

    def loss(scale):
        def needed(signal, observed, keys=None, *, method):
            return signal if method == "keys" else scale * jnp.mean((signal - keys) ** 2, axis=(1, 2)) + 1.0

        out = network.apply(variables, batch, needed={"motif_distance": needed})
        return objective(out, batch, objective.weights(0), objective.normalisers(batch))[0]

    value_and_slope = jax.jit(jax.value_and_grad(loss))
    value, slope = value_and_slope(2.0)
    assert slope == 0.0 and value > 0
    np.testing.assert_allclose(value, value_and_slope(50.0)[0], rtol=1e-5)
    with pytest.raises(ValueError, match="needs the network 'motif_distance'"):
        network.apply(variables, batch)


def test_diagnostics_by_hand():
    (term,) = family.objective(None, pulse_config()).terms
    batch = {"observed": np.ones((2, 3, 4, 1), bool)}  # two own pieces: the last two of three candidates
    distance = np.array([[1.0, 2.0, np.inf], [5.0, 3.0, 4.0]], np.float32)
    similar = np.array([[0.5, 0.1, 9.0], [0.3, 0.2, 0.1]], np.float32)
    loss, about = term.loss((similar, distance), batch, term.normaliser(batch))
    want = -np.log(np.exp(0.5) / np.exp([0.5, 0.1]).sum())
    want += sum(-np.log(np.exp(s) / np.exp(of).sum()) for s, of in ((0.2, [0.3, 0.2, 0.1]), (0.1, [0.3, 0.1])))
    np.testing.assert_allclose(loss, want / 2, rtol=1e-5)
    np.testing.assert_allclose(about["of_equal"], (np.log(2) + np.log(3) + np.log(2)) / 2, rtol=1e-5)
    assert (about["nearest_found"], about["nearest_is_own"]) == (0.5, 0.5)


def test_z_is_a_piece_s_own_and_zero_where_there_is_none(started, batch):
    """No gain, level or missing sample is read, nor another piece: batch norm is that of training."""
    network, variables, _ = started
    encode = jax.jit(functools.partial(network.apply, method="encode"))
    z = np.asarray(encode(variables, batch))
    assert z.shape == (4, 2, 16) and np.isfinite(z).all()
    np.testing.assert_array_equal(z[3, 1], 0.0)
    other = {k: v.copy() for k, v in batch.items()}
    other["signal"][1] = 3 * other["signal"][1] + 2
    other["signal"][1][~other["observed"][1]] = 99.0
    other["signal"][2] = 0.5
    found = np.asarray(encode(variables, other))
    np.testing.assert_allclose(found[1], z[1], rtol=1e-4)
    np.testing.assert_array_equal(found[[0, 3]], z[[0, 3]])


def test_nothing_after_a_prediction_time_changes_a_bit_of_z(people, started):
    network, variables, _ = started
    position, time, store = segment_cases.asked(people, network.config.reading)
    examples = PulseExamples(store, network.config)
    encode = jax.jit(functools.partial(network.apply, method="encode"))
    changes = (lambda record, t: record), (lambda record, t: record.until(t))
    both = (examples.prediction_batches(position, time, 4, change) for change in changes)
    n_read = 0
    for (batch, where), (other, there) in zip(*both, strict=True):
        np.testing.assert_array_equal(where, there)
        np.testing.assert_array_equal(encode(variables, batch), encode(variables, other))
        n_read += int((batch["person"] >= 0).sum())
    assert n_read > 20


@pytest.mark.slow
def test_on_a_mesh_of_several_devices_losses_and_gradients_are_those_of_one(started, batch):
    _, variables, needed = started

    def found(mesh_ops):
        network = family.network(None, pulse_config(), mesh_ops)
        objective = family.objective(None, pulse_config())

        def loss(params, batch):
            variables_ = {**variables, "params": params}
            out, _ = network.apply(variables_, batch, False, needed, rngs={"dropout": jax.random.key(0)},
                                   mutable=["batch_stats"])  # fmt: skip
            return objective(out, batch, objective.weights(0), objective.normalisers(batch))[0]

        return jax.jit(jax.value_and_grad(loss))

    one = found(ONE_DEVICE)(variables["params"], batch)
    mesh = sharding.make_mesh(jax.devices()[:4], MeshConfig(data=2, fsdp=2, tensor=1, context=1))
    several = found(sharding.mesh_ops(mesh))(variables["params"], sharding.device_batch(batch, mesh))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(several), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4 * max(1, np.abs(a).max()))


def test_options_that_make_no_network_are_refused():
    for wrong in ({"kernel": 4}, {"temperature": 0.0}, {"n_blocks": 0}, {"dtype": "int8"}, {"dropout": 1.0}):
        with pytest.raises(ValueError, match="config.models"):
            pulse_config(**wrong)
    assert motif_config() and pulse_config(distance="other").needs == ("other",)
