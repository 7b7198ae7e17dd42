"""Decayed counts against a double loop, and what may and may not influence them."""

import jax
import numpy as np
import pytest
from flax import linen as nn

from ehrwear_jax.models.layers import decayed_counts
from ehrwear_jax.models.layers.decayed_counts import DecayedCounts


def packed(rng, lengths, n_tokens):
    """Times, ranges and starts of contexts packed into one row, padding behind."""
    time, lo = np.zeros(n_tokens, np.float32), np.full((n_tokens, 2), sum(lengths), np.int32)
    at = 0
    for n in lengths:
        time[at : at + n] = np.sort(rng.gamma(1.0, 300.0, n))
        time[at] = 0.0
        lo[at : at + n, 0], lo[at : at + n, 1] = at, at + 1 + np.arange(n)
        at += n
    return time, lo, lo[:, 0] == np.arange(n_tokens)


@pytest.mark.parametrize("seed", [0, 1])
def test_sums_equal_the_double_loop(seed):
    rng = np.random.default_rng(seed)
    rows = [packed(rng, lengths, 19) for lengths in ((7, 1, 9), (19,), (2, 2))]
    time, ranges, starts = (np.stack(x) for x in zip(*rows, strict=True))
    feature = rng.gamma(1.0, 1.0, (3, 19, 4)).astype(np.float32)
    rate = np.array([0.0, 1 / 1000, 1 / 30, 2.0], np.float32)
    got = np.asarray(jax.jit(decayed_counts.decayed_sums)(feature, time, starts, rate))
    for b, i in np.ndindex(3, 19):
        if i >= ranges[b, -1, 0]:
            continue  # padding
        own = slice(ranges[b, i, 0], i + 1)
        weight = np.exp(-rate.astype(np.float64)[:, None] * (np.float64(time[b, i]) - time[b, own])[None])
        np.testing.assert_allclose(got[b, i], weight @ feature[b, own], rtol=2e-5)
    assert np.isfinite(got).all()


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(3)
    time, ranges, _ = packed(rng, (6, 8), 16)
    batch = {
        "time": time[None],
        "kv_range": ranges[None],
        # in the first context before any token is known, between its tokens, after its last; in the second context
        "query_time": np.array([[0.0, time[3] + 0.1, time[5] + 900.0, time[13] + 5.0]], np.float32),
        "query_kv_range": np.array([[(0, 0), (0, 4), (0, 6), (6, 14)]], np.int32),
    }
    x = rng.normal(size=(1, 16, 5)).astype(np.float32)
    module = DecayedCounts(width=3, out_width=7, n_rates=4)
    params = nn.meta.unbox(jax.jit(module.init)(jax.random.key(0), x, batch))
    return batch, x, params, jax.jit(module.apply)


def test_a_query_is_the_state_behind_its_last_token_decayed_by_the_gap(case):
    batch, x, params, apply = case
    at_token, at_query = apply(params, x, batch)
    assert at_token.shape == (1, 16, 7) and at_query.shape == (1, 4, 7)
    p = jax.tree.map(np.float64, params["params"])
    centred = x[0].astype(np.float64) - x[0].mean(-1, keepdims=True, dtype=np.float64)
    norm = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * p["norm"]["scale"] + p["norm"]["bias"]
    feature = np.maximum(norm @ p["feature"]["kernel"] + p["feature"]["bias"], 0.0)
    rate = np.append(np.exp(p["log_rate"]), 0.0)
    for q, (lo, hi) in enumerate(batch["query_kv_range"][0]):
        gap = np.float64(batch["query_time"][0, q]) - batch["time"][0, lo:hi]
        sums = np.exp(-rate[:, None] * gap[None]) @ feature[lo:hi]
        want = np.log1p(sums).ravel() @ p["out"]["kernel"] + p["out"]["bias"]
        np.testing.assert_allclose(np.asarray(at_query)[0, q], want, rtol=1e-4, atol=1e-5)


def test_neither_the_future_nor_a_neighbour_changes_a_bit(case):
    batch, x, params, apply = case
    token, query = map(np.asarray, apply(params, x, batch))
    changed = x.copy()
    changed[0, 4] *= -1.0  # position 4 of the first context, known to its queries 2 and later
    token2, query2 = map(np.asarray, apply(params, changed, batch))
    same, other = np.r_[0:4, 6:16], np.r_[4:6]
    np.testing.assert_array_equal(token[0, same], token2[0, same])
    np.testing.assert_array_equal(query[0, [0, 1, 3]], query2[0, [0, 1, 3]])
    assert np.all(token[0, other] != token2[0, other]) and np.all(query[0, 2] != query2[0, 2])


def test_gradients_are_finite_through_empty_ranges_and_padding(case):
    batch, x, params, apply = case
    grads = jax.jit(jax.grad(lambda p: sum((y**2).sum() for y in apply(p, x, batch))))(params)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert np.all(np.asarray(grads["params"]["log_rate"]) != 0)


def test_with_one_rate_it_counts_and_learns_none(case):
    batch, x, _, _ = case
    module = DecayedCounts(width=3, out_width=7, n_rates=1)
    params = nn.meta.unbox(module.init(jax.random.key(0), x, batch))["params"]
    assert params.keys() == {"norm", "feature", "out"}
    later = {**batch, "query_time": batch["query_time"] + 1000.0, "time": batch["time"] * 3.0}
    for some, others in zip(module.apply({"params": params}, x, batch), module.apply({"params": params}, x, later),
                            strict=True):  # fmt: skip
        np.testing.assert_array_equal(some, others)  # whenever it was
