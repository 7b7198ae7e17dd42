"""Every loss against float64 loops over one random batch with padding, and where there is nothing to learn from."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ehrwear_jax.models.joint import batch as batch_lib
from ehrwear_jax.models.joint import losses

V, A, B, S, D = 11, 4, 3, 5, 4  # vocabulary, horizons, rows, width of the common space, width of z
SHAPE = batch_lib.BatchShape(
    tokens=9, windows=5, steps=6, channels=2, patches=3, masked=4, events=4, queries=5, future_windows=3,
    future_codes=4, recalled_tokens=3, pairs=3,
)  # fmt: skip
OUTPUTS = {
    "masked_logits": (SHAPE.masked, V),
    "next_logits_event": (SHAPE.events, V),
    "next_logits_query": (SHAPE.queries, V),
    "pooled_logits_event": (SHAPE.events, V),
    "pooled_logits_query": (SHAPE.queries, V),
    "later_logits": (SHAPE.queries, SHAPE.future_codes, A),
    "recall_logits": (SHAPE.queries, SHAPE.recalled_tokens, A + 1),
    "rebuilt": (SHAPE.windows, SHAPE.steps, SHAPE.channels),
    "ahead_window": (SHAPE.windows, SHAPE.future_windows, SHAPE.steps, SHAPE.channels),
    "ahead_query": (SHAPE.queries, SHAPE.future_windows, SHAPE.steps, SHAPE.channels),
    "summary_event": (SHAPE.events, 3 * SHAPE.channels),
    "summary_query": (SHAPE.queries, 3 * SHAPE.channels),
    "past_summary": (SHAPE.queries, 3 * SHAPE.channels),
    "pair_ehr": (SHAPE.pairs, S),
    "pair_wear": (SHAPE.pairs, S),
    "content": (SHAPE.tokens, D),
    "mean_token": (SHAPE.tokens, D),
    "mean_query": (SHAPE.queries, D),
    "variance_token": (SHAPE.tokens, D),
    "variance_query": (SHAPE.queries, D),
}
PRIOR = {"prior_rate": np.float32([0.02, 0.3, 1.0, 5.0]), "prior_variance": np.float32([0.5, 1.0, 2.0, 1.5])}
TEMPERATURE = np.float32(0.4)
WEIGHTS = {term: 0.25 * (i + 1) for i, term in enumerate(losses.TERMS)}
RATE = np.linspace(0.02, 0.9, SHAPE.future_codes * A).reshape(SHAPE.future_codes, A)


def random_batch(seed):
    """Random targets with holes; the last row is padding throughout."""
    rng = np.random.default_rng(seed)
    batch = batch_lib.empty_batch(SHAPE, B)

    def some(name, values, keep=0.7):
        mask = rng.random(batch[name].shape) < keep
        mask[-1] = False
        batch[name] = np.where(mask, values, batch[name]).astype(batch[name].dtype)

    for name in ("masked", "event", "query"):
        target = "masked_target" if name == "masked" else f"{name}_next"
        some(target, rng.integers(1, V, batch[target].shape))
    some("masked_position", rng.integers(0, SHAPE.tokens, batch["masked_position"].shape))
    some("query_segment", rng.integers(1, 3, batch["query_segment"].shape))
    some("query_horizons", rng.integers(0, A + 1, batch["query_horizons"].shape), 0.9)
    some("query_code_bin", rng.integers(0, A, batch["query_code_bin"].shape), 0.5)
    back = np.array([*range(A), 254])
    some("query_token_bin", rng.choice(back, batch["query_token_bin"].shape), 0.5)
    some("window_position", rng.integers(0, SHAPE.tokens, batch["window_position"].shape))
    for name in ("step_window", "query_window"):
        some(name, rng.integers(0, SHAPE.windows, batch[name].shape), 0.6)
    some("patch_mask", True, 0.5)
    some("observed", True, 0.8)
    batch["wear"] = np.where(batch["observed"], rng.normal(size=batch["wear"].shape), 0).astype(np.float32)
    for name in ("event_summary", "query_summary", "query_past"):
        some(f"{name}_mask", True, 0.6)
        batch[name] = rng.normal(size=batch[name].shape).astype(np.float32)
    some("channel_mask", True, 0.3)
    some("pair_patient", rng.integers(0, 3, batch["pair_patient"].shape), 0.8)
    some("modality", rng.integers(1, 3, batch["modality"].shape), 0.9)
    for name in ("event_pool", "query_pool"):
        some(name, np.sort(rng.integers(0, SHAPE.tokens + 1, batch[name].shape), axis=-1), 1.0)
    fill_states(batch, rng)
    return batch


def fill_states(batch, rng):
    """Two contexts in a row (one in the last but one), with ties, and queries in them; the last row stays empty."""
    for b, starts in ((0, (0, 5)), (1, (1,))):
        for s, begin in enumerate(starts, 1):
            stop = (*starts, SHAPE.tokens)[s]
            batch["segment"][b, begin:stop], batch["kv_range"][b, begin:stop, 0] = s, begin
            batch["kv_range"][b, begin:stop, 1] = 1 + np.arange(begin, stop)
            batch["time"][b, begin:stop] = np.cumsum(rng.choice([0.0, 0.01, 0.3, 40.0], stop - begin))
    for b, q in cells(B - 1, SHAPE.queries):
        known = np.nonzero(batch["segment"][b] == max(batch["query_segment"][b, q], 1))[0]
        hi = rng.integers(0, len(known) + 1) if len(known) else 0
        lo = known[0] if len(known) else 0
        batch["query_kv_range"][b, q] = lo, lo + hi
        last = batch["time"][b, lo + hi - 1] if hi else 0.0
        batch["query_time"][b, q] = last + rng.choice([0.0, 3.0])


def random_outputs(seed):
    rng = np.random.default_rng(seed)
    out = {name: rng.normal(0, 2, (B, *shape)).astype(np.float32) for name, shape in OUTPUTS.items()}
    for name in ("pair_ehr", "pair_wear"):
        out[name] /= np.linalg.norm(out[name], axis=-1, keepdims=True)
    for name in ("variance_token", "variance_query"):
        out[name] = np.exp(0.5 * out[name])
    return out | PRIOR | {
        "later_entropy": -RATE * np.log(RATE) - (1 - RATE) * np.log(1 - RATE), "temperature": TEMPERATURE,
    }  # fmt: skip


@pytest.fixture(scope="module")
def evaluate():
    """(out, batch) -> (loss, metrics, gradient with respect to the float outputs)."""

    @jax.jit
    def run(floats, rest, batch):
        def objective(floats):
            return losses.total({**floats, **rest}, batch, WEIGHTS)

        (loss, metrics), grads = jax.value_and_grad(objective, has_aux=True)(floats)
        return loss, metrics, grads

    def call(out, batch):
        floats = {k: v for k, v in out.items() if k in OUTPUTS}
        return jax.tree.map(np.asarray, run(floats, {k: v for k, v in out.items() if k not in floats}, batch))

    return call


@pytest.fixture(scope="module")
def case(evaluate):
    out, batch = random_outputs(1), random_batch(0)
    return out, batch, *evaluate(out, batch)


# ---------------------------------------------------------------------------------------------- slow recomputation
def mean(values):
    return sum(values) / len(values) if values else 0.0


def nll(logits, target):
    logits = [float(x) for x in logits]
    peak = max(logits)
    return peak + math.log(sum(math.exp(x - peak) for x in logits)) - logits[target]


def cells(*names_and_arrays):
    return np.ndindex(*names_and_arrays)


def slow_masked_ehr(out, batch):
    at = [i for i in cells(B, SHAPE.masked) if batch["masked_position"][i] >= 0]
    return mean([nll(out["masked_logits"][i], batch["masked_target"][i]) for i in at])


def slow_next(out, batch, logits="next_logits", pooled=False):
    terms = []
    for name, n in (("event", SHAPE.events), ("query", SHAPE.queries)):
        for i in cells(B, n):
            there = batch["modality"][i[0], slice(*batch[f"{name}_pool"][i])] == batch_lib.MODALITY_WEAR
            if batch[f"{name}_next"][i] != batch_lib.PAD and (not pooled or there.any()):
                terms.append(nll(out[f"{logits}_{name}"][i], batch[f"{name}_next"][i]))
    return mean(terms)


def slow_later(out, batch):
    per_pair = []
    for b, q in cells(B, SHAPE.queries):
        if batch["query_segment"][b, q] == 0:
            continue
        for a in range(int(batch["query_horizons"][b, q])):  # later horizons are censored
            for k in range(SHAPE.future_codes):
                sign = 1 if batch["query_code_bin"][b, q, k] <= a else -1
                cost = math.log1p(math.exp(-sign * float(out["later_logits"][b, q, k, a])))
                per_pair.append(cost / out["later_entropy"][k, a])
    return mean(per_pair)


def slow_recall(out, batch):
    real = [i for i in cells(B, SHAPE.queries) if batch["query_segment"][i] > 0]
    costs = []
    for r, a in cells(SHAPE.recalled_tokens, A + 1):
        seen = [batch["query_token_bin"][i][r] <= (254 if a == A else a) for i in real]
        rate = min(max(mean(seen), 0.01), 0.99)
        entropy = -rate * math.log(rate) - (1 - rate) * math.log(1 - rate)
        for i, s in zip(real, seen, strict=True):
            costs.append(math.log1p(math.exp(-(1 if s else -1) * float(out["recall_logits"][i][r, a]))) / entropy)
    return mean(costs)


def slow_wear_recall(out, batch):
    difference = out["past_summary"].astype(np.float64) - batch["query_past"]
    return mean((difference[batch["query_past_mask"]] ** 2).tolist())


def slow_masked_wear(out, batch):
    errors, width = [], SHAPE.steps // SHAPE.patches
    for b, w, step, c in cells(B, SHAPE.windows, SHAPE.steps, SHAPE.channels):
        hidden = batch["patch_mask"][b, w, step // width] or batch["channel_mask"][b, w, c]
        if hidden and batch["observed"][b, w, step, c] and batch["window_position"][b, w] >= 0:
            errors.append((float(out["rebuilt"][b, w, step, c]) - float(batch["wear"][b, w, step, c])) ** 2)
    return mean(errors)


def slow_ahead(out, batch):
    total = norm = 0.0
    for h in range(SHAPE.future_windows):
        errors = []
        for prediction, slots in (("ahead_window", "step_window"), ("ahead_query", "query_window")):
            for b, n in cells(*batch[slots].shape[:2]):
                slot = batch[slots][b, n, h]
                if slot >= 0:
                    seen = batch["observed"][b, slot]
                    difference = out[prediction][b, n, h].astype(np.float64) - batch["wear"][b, slot]
                    errors += (difference[seen] ** 2).tolist()
        total, norm = total + 0.7**h * mean(errors), norm + 0.7**h
    return total / norm


def slow_ehr_to_wear(out, batch):
    errors = []
    for name in ("event", "query"):
        mask = batch[f"{name}_summary_mask"]
        errors += ((out[f"summary_{name}"].astype(np.float64) - batch[f"{name}_summary"])[mask] ** 2).tolist()
    return mean(errors)


def slow_contrast(out, batch):
    pairs = [i for i in cells(B, SHAPE.pairs) if batch["pair_patient"][i] >= 0]
    costs = []
    for i in pairs:
        own = math.fsum(out["pair_ehr"][i] * out["pair_wear"][i]) / TEMPERATURE
        others = [j for j in pairs if batch["pair_patient"][j] != batch["pair_patient"][i]]
        scores = [math.fsum(out["pair_ehr"][i] * out["pair_wear"][j]) / TEMPERATURE for j in others]
        costs.append(math.log(math.exp(own) + sum(map(math.exp, scores))) - own)
    return mean(costs)


def slow_content_norm(out, batch):
    return sum(
        mean([np.mean(np.square(out["content"][i].astype(np.float64))) for i in zip(*np.nonzero(batch["modality"] == m),
                                                                                    strict=True)])
        for m in (batch_lib.MODALITY_EHR, batch_lib.MODALITY_WEAR)
    )  # fmt: skip


def slow_latent_kl(out, batch):
    """Dense Gaussian algebra: the covariance of each context's states, in which queries hang on the last seen token."""
    total, n = 0.0, 0
    for b in range(B):
        for s in range(1, batch["segment"][b].max() + 1):
            tokens = np.nonzero(batch["segment"][b] == s)[0]
            clock = dict.fromkeys(tokens[:1], 0.0)  # the prior's time: an hour at least passes between states
            for before, t in zip(tokens, tokens[1:], strict=False):
                gap = float(batch["time"][b, t]) - float(batch["time"][b, before])
                clock[t] = clock[before] + max(gap, 1 / 24)
            states = [("token", t, clock[t], 0.0) for t in tokens]
            for q in np.nonzero(batch["query_segment"][b] == s)[0]:
                lo, hi = batch["query_kv_range"][b, q]
                if hi > lo:
                    gap = max(float(batch["query_time"][b, q]) - float(batch["time"][b, hi - 1]), 1 / 24)
                    states.append(("query", q, clock[hi - 1], gap))
                else:
                    states.append(("query", q, np.inf, 0.0))
            n += len(states)
            total += sum(dense_kl(out, b, states, d) for d in range(D))
        loose = [
            ("query", q, np.inf, 0.0) for q in np.nonzero(batch["query_segment"][b] > batch["segment"][b].max())[0]
        ]
        n += len(loose)
        total += sum(dense_kl(out, b, [x], d) for x in loose for d in range(D))
    return total / n


def dense_kl(out, b, states, d):
    """KL of independent normals from N(0, K): K = variance * exp(-rate * length of the way between two states)."""
    n, rate = len(states), float(PRIOR["prior_rate"][d])
    way = np.zeros((n, n))
    for i, j in np.ndindex(n, n):
        if i != j:
            at_i, at_j = states[i][2], states[j][2]
            way[i, j] = np.inf if np.isinf([at_i, at_j]).any() else abs(at_i - at_j) + states[i][3] + states[j][3]
    K = float(PRIOR["prior_variance"][d]) * np.exp(-rate * way)
    mu = np.array([out[f"mean_{name}"][b, i, d] for name, i, *_ in states], np.float64)
    sigma = np.diag([float(out[f"variance_{name}"][b, i, d]) for name, i, *_ in states])
    inverse = np.linalg.inv(K)
    logdet = np.linalg.slogdet(K)[1] - np.linalg.slogdet(sigma)[1]
    return 0.5 * (np.trace(inverse @ sigma) + mu @ inverse @ mu - n + logdet)


SLOW = {
    "ehr_masked": slow_masked_ehr,
    "ehr_next": slow_next,
    "ehr_later": slow_later,
    "ehr_recall": slow_recall,
    "wear_masked": slow_masked_wear,
    "wear_ahead": slow_ahead,
    "wear_recall": slow_wear_recall,
    "wear_to_ehr": lambda out, batch: slow_next(out, batch, "pooled_logits", pooled=True),
    "ehr_to_wear": slow_ehr_to_wear,
    "contrast": slow_contrast,
    "content_norm": slow_content_norm,
    "latent_kl": slow_latent_kl,
}


def quiet(out):
    """Zeros where a network would speak, entropies of one."""
    ones = {"later_entropy": np.ones((SHAPE.future_codes, A)), "temperature": TEMPERATURE} | PRIOR
    ones |= {k: np.ones_like(v) for k, v in out.items() if k.startswith("variance")}
    return {k: np.zeros_like(v) for k, v in out.items()} | ones


@pytest.mark.parametrize("term", losses.TERMS)
def test_term_equals_loops(case, term):
    out, batch, _, metrics, _ = case
    want = SLOW[term](out, batch)
    assert want > 0.1
    np.testing.assert_allclose(metrics[f"loss/{term}"], want, rtol=2e-5)


def test_total_is_the_weighted_sum(case):
    _, _, loss, metrics, _ = case
    np.testing.assert_allclose(loss, sum(w * metrics[f"loss/{t}"] for t, w in WEIGHTS.items()), rtol=1e-5)
    assert metrics["loss/total"] == loss


def test_diagnostics(case):
    out, batch, _, metrics, _ = case
    asked = batch["masked_position"] >= 0
    right = out["masked_logits"].argmax(-1) == batch["masked_target"]
    np.testing.assert_allclose(metrics["ehr_masked/accuracy"], right[asked].mean(), rtol=1e-6)
    assert metrics["ehr_masked/count"] == asked.sum()
    known = np.arange(A) < np.where(batch["query_segment"] > 0, batch["query_horizons"], 0)[..., None]
    occurs = (batch["query_code_bin"][..., None] <= np.arange(A)).transpose(0, 1, 3, 2)
    np.testing.assert_allclose(metrics["ehr_later/positives"], occurs[known].mean(), rtol=1e-6)
    assert metrics["ehr_later/count"] == known.sum()


def test_gradient_is_zero_where_there_is_no_target(case):
    _, batch, _, _, grads = case
    for name, grad in grads.items():
        assert np.isfinite(grad).all() and np.any(grad != 0), name
        assert not grad[-1].any(), f"{name}: a row of padding teaches nothing"
    assert not grads["masked_logits"][batch["masked_position"] < 0].any()
    censored = np.arange(A) >= batch["query_horizons"][..., None]
    assert not grads["later_logits"].transpose(0, 1, 3, 2)[censored].any()
    hidden = np.repeat(batch["patch_mask"], 2, axis=-1)[..., None] | batch["channel_mask"][:, :, None]
    hidden &= batch["observed"]
    assert not grads["rebuilt"][~hidden].any()


def test_padding_changes_nothing(case, evaluate):
    """What the model says in empty slots, and what stands in them, is irrelevant: also if it is huge."""
    out, batch, loss, _, _ = case
    loud = {k: v.copy() for k, v in out.items()}
    for name in OUTPUTS:
        loud[name][-1] = 1e4
    loud["masked_logits"][batch["masked_position"] < 0] = -1e4
    for name in ("later_logits", "recall_logits", "mean_query"):
        loud[name][batch["query_segment"] == 0] = 1e4
    assert evaluate(loud, batch)[0] == loss


def test_an_empty_batch_gives_zero_and_finite_gradients(evaluate):
    loss, metrics, grads = evaluate(random_outputs(2), batch_lib.empty_batch(SHAPE, B))
    assert loss == 0.0 and all(v == 0.0 for v in metrics.values())
    for grad in grads.values():
        assert np.isfinite(grad).all() and not grad.any()


def test_a_code_that_comes_after_follow_up_ends_is_no_negative(case, evaluate):
    """One query, two of four horizons known: the code of the third horizon is neither positive nor negative."""
    batch = batch_lib.empty_batch(SHAPE, B)
    batch["query_segment"][0, 0], batch["query_horizons"][0, 0] = 1, 2
    batch["query_code_bin"][0, 0, 1] = 2
    out = quiet(case[0])
    _, metrics, grads = evaluate(out, batch)
    np.testing.assert_allclose(metrics["loss/ehr_later"], math.log(2), rtol=1e-6)
    assert metrics["ehr_later/positives"] == 0.0
    assert np.all(grads["later_logits"][0, 0, :, :2] > 0) and not grads["later_logits"][0, 0, :, 2:].any()
    batch["query_code_bin"][0, 0, 1] = 1  # within the second horizon, hence not within the first
    grad = evaluate(out, batch)[2]["later_logits"][0, 0, 1]
    assert grad[0] > 0 and grad[1] < 0


def test_certainty_costs_nothing_and_extreme_logits_stay_finite(case, evaluate):
    batch = random_batch(5)
    out = quiet(case[0])
    for logits, target in (("masked_logits", "masked_target"), ("next_logits_event", "event_next")):
        out[logits] = 1e4 * np.eye(V, dtype=np.float32)[batch[target]]
    out["rebuilt"] = batch["wear"]
    occurs = batch["query_code_bin"][..., None] <= np.arange(A)
    out["later_logits"] = np.where(occurs, 1e4, -1e4).astype(np.float32)
    seen = batch["query_token_bin"][..., None] <= np.array([*range(A), 254])
    out["recall_logits"] = np.where(seen, 1e4, -1e4).astype(np.float32)
    _, metrics, grads = evaluate(out, batch)
    for term in ("ehr_masked", "wear_masked", "ehr_later", "ehr_recall"):
        assert metrics[f"loss/{term}"] == 0.0
    assert metrics["ehr_masked/accuracy"] == 1.0
    out["later_logits"], out["recall_logits"] = -out["later_logits"], -out["recall_logits"]
    _, metrics, grads = evaluate(out, batch)
    np.testing.assert_allclose(metrics["loss/ehr_later"], 1e4, rtol=1e-5)
    assert all(np.isfinite(g).all() for g in grads.values())


def test_knowing_the_rates_alone_costs_about_one(evaluate):
    """The unit of later codes and recall: entropy at the rate of the outcome."""
    rng = np.random.default_rng(0)
    batch, out = random_batch(0), random_outputs(1)
    batch["query_segment"][:], batch["query_horizons"][:] = 1, A
    batch["query_code_bin"] = np.where(rng.random(batch["query_code_bin"].shape) < 0.3, 0, 255).astype(np.uint8)
    rate = (batch["query_code_bin"] == 0).mean((0, 1))[:, None].repeat(A, 1)
    out["later_entropy"] = -rate * np.log(rate) - (1 - rate) * np.log(1 - rate)
    out["later_logits"][:] = np.log(rate / (1 - rate))
    batch["query_token_bin"] = np.where(rng.random(batch["query_token_bin"].shape) < 0.4, 0, 255).astype(np.uint8)
    seen = (batch["query_token_bin"] == 0).mean((0, 1))[:, None]
    out["recall_logits"][:] = np.log(seen / (1 - seen))
    metrics = evaluate(out, batch)[1]
    np.testing.assert_allclose(metrics["loss/ehr_later"], 1.0, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss/ehr_recall"], 1.0, rtol=1e-5)


def test_terms_that_are_not_asked_for_need_no_outputs():
    out, batch = random_outputs(1), random_batch(0)
    only = {"masked_logits": out["masked_logits"]}
    loss, metrics = losses.total(only, batch, {"ehr_masked": 2.0})
    np.testing.assert_allclose(loss, 2 * slow_masked_ehr(out, batch), rtol=1e-5)
    assert not any("wear" in k for k in metrics)
    assert set(losses.NEED_WEAR) | set(losses.NEED_EHR) <= set(losses.TERMS)


def test_masked_mean_ignores_what_is_masked_and_half_precision_overflow():
    value = jnp.full((4, 100), 2.0**15, jnp.float16)
    mask = jnp.arange(4)[:, None] < 3
    assert losses.masked_mean(value.at[3].set(jnp.nan), mask) == 2.0**15
    assert losses.masked_mean(value, jnp.zeros((4, 1), bool)) == 0.0
