"""The motif distance: partial convolution by hand, what is hidden stays hidden, and a distance that is a function."""

import functools

import jax
import numpy as np
import pytest

from ehrwear_jax.models.motif_distance import network as lib
from ehrwear_jax.models.motif_distance.config import Config
from ehrwear_jax.models.motif_distance.reconstruction_loss import Reconstruction

LENGTH, CHANNELS = 60, 2


def config_of(**options):
    """A Config of small sizes."""
    small = {"width": 16, "taps": 5, "n_layers": 2, "stride": 4, "hidden_samples": 12, "dropout": 0.0}
    return Config(**small | options)


def signals(n, seed=0, missing=0.1):
    """(signal [n, L, A], known)."""
    rng = np.random.default_rng(seed)
    known = rng.random((n, LENGTH, CHANNELS)) >= missing
    x = rng.normal(size=(n, LENGTH, CHANNELS)).cumsum(axis=1).astype(np.float32)
    return np.where(known, x, 0.0).astype(np.float32), known


@pytest.fixture(scope="module")
def trained():
    """(network, variables, {name: jitted method}) with parameters that are not those of the start."""
    network = lib.MotifNetwork(config_of(), CHANNELS)
    x, known = signals(2)
    batch = {"signal": x[:, None], "observed": known[:, None], "hidden": np.zeros((2, 1, LENGTH), bool)}
    variables = jax.device_get(jax.jit(network.init)(jax.random.key(0), batch))
    variables = jax.tree.map(lambda v: v + 0.05 * np.random.default_rng(v.size).normal(size=v.shape), variables)

    @functools.partial(jax.jit, static_argnames="method")
    def call(*arguments, method):
        return network.apply(variables, *arguments, method=method)

    return network, variables, call


def distance(call, query, key):
    return np.asarray(call(*query, call(*key, method="keys"), method="distance"))


def test_partial_convolution_by_hand():
    x, known = signals(2, missing=0.6)
    known[0, 10:25] = False  # longer than the kernel
    layer = lib.PartialConv(3, 5)
    params = jax.device_get(layer.init(jax.random.key(1), x, known))["params"]
    kernel, bias = params["kernel"].value, np.array([0.5, -1.0, 2.0], np.float32)
    found = layer.apply({"params": {"kernel": kernel, "bias": bias}}, np.where(known, x, np.nan), known)
    for b in range(2):
        for t in range(LENGTH):
            total, n = np.zeros(3), 0
            for k in range(5):
                for a in range(CHANNELS):
                    at = t + k - 2
                    if 0 <= at < LENGTH and known[b, at, a]:
                        total, n = total + x[b, at, a] * kernel[k, a], n + 1
            want = total * 10 / n + bias if n else np.zeros(3)
            np.testing.assert_allclose(found[b, t], want, rtol=1e-4, atol=1e-4)


def test_a_frame_sees_what_the_layers_reach(trained):
    """And no more: 5 taps, and 4 more for dilation 1, 8 for dilation 2."""
    network, variables, _ = trained
    x = np.zeros((1, LENGTH, CHANNELS), np.float32)
    part = {"params": variables["params"]["of_key"]}

    def features(signal):  # before a norm that sees all of the signal
        return lib.DilatedConvs(network.config).apply(part, signal, np.ones_like(x, bool))

    plain = lib.instance_normed
    try:
        lib.instance_normed = lambda v: v
        gradient = jax.grad(lambda s: features(s)[0, 7].sum())(x)
    finally:
        lib.instance_normed = plain
    seen = np.flatnonzero(np.abs(gradient[0]).sum(-1))
    assert (seen.min(), seen.max()) == (28 - 8, 28 + 8) and features(x).shape == (1, LENGTH // 4, 16)
    assert lib.DilatedConvs(Config()).config.taps + 14 * (1 + 2 + 4 + 8 + 16) == 449


def test_hidden_samples_of_the_query_are_not_read(trained):
    """Training and distance alike: other values there change no reconstruction, bit by bit."""
    network, variables, call = trained
    query, key = signals(3, 1), signals(3, 2)
    keys = call(*key, method="keys")
    hidden = lib.hidden_samples(LENGTH, 0.5, 0)
    left = query[1] & ~hidden[None, :, None]
    changed = np.where(hidden[None, :, None], 77.0, query[0]).astype(np.float32)
    found = [np.asarray(call(x, left, keys, method="reconstruct")) for x in (query[0], changed)]
    np.testing.assert_array_equal(*found)
    assert hidden.sum() == LENGTH // 2


def test_a_distance_is_a_function_of_two_signals_and_the_seed(trained):
    """The original draws what it hides at every call, for all rows of a batch together."""
    network, variables, call = trained
    query, key = signals(4, 1), signals(4, 2)
    first = distance(call, query, key)
    np.random.seed(3)  # noqa: NPY002
    np.testing.assert_array_equal(distance(call, query, key), first)
    turned = [tuple(x[[2, 0, 3, 1]] for x in both) for both in (query, key)]
    np.testing.assert_allclose(distance(call, *turned), first[[2, 0, 3, 1]], rtol=1e-5)
    other = lib.MotifNetwork(config_of(distance_seed=1), CHANNELS)
    keys = call(*key, method="keys")
    assert not np.allclose(jax.jit(functools.partial(other.apply, method="distance"))(variables, *query, keys), first)
    assert np.isfinite(first).all() and (first > 0).all()


def test_missing_samples_are_not_read(trained):
    _, _, call = trained
    query, key = signals(3, 1), signals(3, 2)
    junk = [(np.where(known, x, -50.0).astype(np.float32), known) for x, known in (query, key)]
    np.testing.assert_array_equal(distance(call, *junk), distance(call, query, key))
    nothing = np.zeros_like(query[1])
    assert np.isposinf(distance(call, (query[0], nothing), key)).all()
    assert np.isposinf(distance(call, query, (key[0], nothing))).all()


def test_a_distance_is_in_the_units_of_the_query_by_the_statistics_of_the_key(trained):
    """Scaled and shifted together they are as far, by the unit squared; a key of another gain alone is farther off."""
    _, _, call = trained
    query, key = signals(3, 1, missing=0.0), signals(3, 2, missing=0.0)
    together = [(3.0 * x + 5.0, known) for x, known in (query, key)]
    np.testing.assert_allclose(distance(call, *together), 9 * distance(call, query, key), rtol=2e-2)
    loud = (100.0 * key[0], key[1])
    assert (distance(call, query, loud) > 10 * distance(call, query, key)).all()


def test_the_loss_is_the_mean_over_hidden_known_samples_of_frames(trained):
    network, variables, _ = trained
    x, known = signals(3, 4)
    hidden = np.zeros((3, LENGTH), bool)
    hidden[0, 8:20], hidden[1, 3:15] = True, True  # nothing hidden in the last
    batch = {"signal": x[:, None], "observed": known[:, None], "hidden": hidden[:, None]}
    out = network.apply(variables, batch)["reconstruction"]
    term = Reconstruction(4)
    loss, about = term.loss(out, batch, term.normaliser(batch))
    errors, of_mean = [], []
    for b in range(3):
        for t in range(0, LENGTH, 4):
            for a in range(CHANNELS):
                if hidden[b, t] and known[b, t, a]:
                    errors.append((out[b, t // 4, a] - x[b, t, a]) ** 2)
                    rest = x[b, known[b, :, a] & ~hidden[b], a]
                    of_mean.append((rest.mean() - x[b, t, a]) ** 2)
    np.testing.assert_allclose(loss, np.mean(errors), rtol=1e-5)
    np.testing.assert_allclose(about["of_mean"], np.mean(of_mean), rtol=1e-4)
    parts = [{k: v[i : i + 1] for k, v in batch.items()} for i in range(3)]
    whole = term.normaliser(batch)
    total = sum(float(term.loss(out[i : i + 1], part, whole)[0]) for i, part in enumerate(parts))
    np.testing.assert_allclose(total, loss, rtol=1e-5)


def test_options_that_make_no_network_are_refused():
    for wrong in ({"width": 12}, {"taps": 4}, {"stride": 0}, {"distance_share": 1.0}, {"dtype": "int8"}):
        with pytest.raises(ValueError, match="config.models"):
            config_of(**wrong)
