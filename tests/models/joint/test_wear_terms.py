"""Terms that predict the signal, against float64 loops over a random batch, and their decoder against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import term_cases
from flax import linen as nn
from term_cases import B, C, H, L, P, W, mean

from ehrwear_jax.models.joint.wear_terms import SignalDecoder

TERMS = ("wear_masked", "future_signal", "wear_history")


def slow_masked(out, batch):
    errors = []
    for b, w, step, c in np.ndindex(B, W, L, C):
        hidden = batch["patch_mask"][b, w, step // (L // P)] or batch["channel_mask"][b, w, c]
        if hidden and batch["observed"][b, w, step, c] and batch["window_position"][b, w] >= 0:
            errors.append((float(out["wear_masked"][b, w, step, c]) - float(batch["wear"][b, w, step, c])) ** 2)
    return mean(errors)


def slow_future(out, batch):
    total = norm = 0.0
    for h in range(H):
        errors = []
        for slots in ("step_window", "query_window"):
            for b, n in np.ndindex(*batch[slots].shape[:2]):
                slot = batch[slots][b, n, h]
                if slot >= 0:
                    seen = batch["observed"][b, slot]
                    difference = out[f"future_signal/{slots}"][b, n, h].astype(np.float64) - batch["wear"][b, slot]
                    errors += (difference[seen] ** 2).tolist()
        total, norm = total + 0.7**h * mean(errors), norm + 0.7**h
    return total / norm


def slow_history(out, batch):
    difference = out["wear_history"].astype(np.float64) - batch["query_past"]
    return mean((difference[batch["query_past_mask"]] ** 2).tolist())


SLOW = dict(zip(TERMS, (slow_masked, slow_future, slow_history), strict=True))


@pytest.mark.parametrize("term", TERMS)
def test_term_equals_loops(case, term):
    term_cases.check_loops(case, term, SLOW[term])


def test_nothing_to_learn_from_is_zero_and_has_no_gradient(losses):
    term_cases.check_no_loss_without_targets(losses, TERMS)


def test_only_hidden_and_measured_steps_teach(case, losses):
    term_cases.check_padding_teaches_nothing(losses, TERMS)
    _, batch, _, metrics, grads = case
    hidden = np.repeat(batch["patch_mask"], L // P, axis=-1)[..., None] | batch["channel_mask"][:, :, None]
    hidden &= batch["observed"]
    assert not grads["wear_masked"][~hidden].any()
    assert metrics["wear_masked/count"] == (hidden & (batch["window_position"] >= 0)[..., None, None]).sum()


def test_to_know_the_signal_costs_nothing(case, losses):
    batch = term_cases.random_batch(5)
    out = term_cases.quiet(case[0])
    out["wear_masked"] = batch["wear"]
    for slots in ("step_window", "query_window"):
        rows = np.arange(B)[:, None, None]
        out[f"future_signal/{slots}"] = batch["wear"][rows, np.maximum(batch[slots], 0)]
    _, metrics, _ = losses(out, batch)
    assert metrics["loss/wear_masked"] == metrics["loss/future_signal"] == metrics["future_signal/last"] == 0.0
    assert metrics["loss/wear_history"] > 0


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def dense(p, x):
    return x @ np.float64(p["kernel"]) + np.float64(p["bias"])


def test_signal_decoder_has_one_trunk_and_a_vector_per_horizon():
    module = SignalDecoder(steps=4, channels=2, n_future=3, width=5)
    z = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    params = jax.jit(lambda k: module.init(k, z, 0))(jax.random.key(0))["params"]
    params = nn.meta.unbox(params)
    params = jax.tree.map(lambda x: x + 0.1 * jnp.arange(x.size, dtype=x.dtype).reshape(x.shape) / x.size, params)
    decode = jax.jit(lambda z, h: module.apply({"params": params}, z, h))
    for h in range(4):
        want = dense(params["out"], gelu(dense(params["trunk"], z) + np.float64(params["horizon"][h])))
        got = decode(z, h)
        assert got.shape == (2, 3, 4, 2)
        np.testing.assert_allclose(got, want.reshape(2, 3, 4, 2), atol=1e-5)
    assert np.abs(decode(z, 1) - decode(z, 2)).max() > 1e-3
