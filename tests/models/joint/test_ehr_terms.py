"""Terms that predict EHR events, against float64 loops over a random batch; certainty, ignorance, censoring."""

import dataclasses
import math

import jax
import numpy as np
import pytest
import term_cases
from term_cases import CONFIG, FACTS, RATE, SPEC, A, B, E, K, M, Q, R, V, mean, nll

from ehrwear_jax.models.joint.batch import PAD
from ehrwear_jax.models.joint.ehr_terms import FutureCodes
from ehrwear_jax.models.joint.terms import active
from ehrwear_jax.models.layers.vocabulary_loss import token_loss

TERMS = ("ehr_masked", "future_event", "future_codes", "ehr_history")
BACK = np.array([*range(A), 254])
ENTROPY = -RATE * np.log(RATE) - (1 - RATE) * np.log(1 - RATE)


def slow_masked(out, batch):
    at = [i for i in np.ndindex(B, M) if batch["masked_position"][i] >= 0]
    return mean([nll(out["ehr_masked/masked"][i], batch["masked_target"][i]) for i in at])


def slow_next(out, batch):
    terms = []
    for name, n in (("event", E), ("query", Q)):
        for i in np.ndindex(B, n):
            if batch[f"{name}_next"][i] != PAD:
                terms.append(nll(out[f"future_event/{name}"][i], batch[f"{name}_next"][i]))
    return mean(terms)


def slow_codes(out, batch):
    per_pair = []
    for b, q in np.ndindex(B, Q):
        if batch["query_segment"][b, q] == 0:
            continue
        for a in range(int(batch["query_horizons"][b, q])):  # later horizons are censored
            for k in range(K):
                sign = 1 if batch["query_code_bin"][b, q, k] <= a else -1
                cost = math.log1p(math.exp(-sign * float(out["future_codes"][b, q, k, a])))
                per_pair.append(cost / ENTROPY[k, a])
    return mean(per_pair)


def slow_history(out, batch):
    real = [i for i in np.ndindex(B, Q) if batch["query_segment"][i] > 0]
    costs = []
    for r, a in np.ndindex(R, A + 1):
        seen = [batch["query_token_bin"][i][r] <= BACK[a] for i in real]
        rate = min(max(mean(seen), 0.01), 0.99)
        entropy = -rate * math.log(rate) - (1 - rate) * math.log(1 - rate)
        for i, s in zip(real, seen, strict=True):
            costs.append(math.log1p(math.exp(-(1 if s else -1) * float(out["ehr_history"][i][r, a]))) / entropy)
    return mean(costs)


SLOW = dict(zip(TERMS, (slow_masked, slow_next, slow_codes, slow_history), strict=True))


@pytest.mark.parametrize("term", TERMS)
def test_term_equals_loops(case, term):
    term_cases.check_loops(case, term, SLOW[term])


def test_diagnostics(case):
    out, batch, _, metrics, _ = case
    asked = batch["masked_position"] >= 0
    right = out["ehr_masked/masked"].argmax(-1) == batch["masked_target"]
    np.testing.assert_allclose(metrics["ehr_masked/accuracy"], right[asked].mean(), rtol=1e-6)
    assert metrics["ehr_masked/count"] == asked.sum()
    known = np.arange(A) < np.where(batch["query_segment"] > 0, batch["query_horizons"], 0)[..., None]
    occurs = (batch["query_code_bin"][..., None] <= np.arange(A)).transpose(0, 1, 3, 2)
    np.testing.assert_allclose(metrics["future_codes/positives"], occurs[known].mean(), rtol=1e-6)
    assert metrics["future_codes/count"] == known.sum() > 10
    seen = (batch["query_token_bin"][..., None] <= BACK)[batch["query_segment"] > 0]
    np.testing.assert_allclose(metrics["ehr_history/seen"], seen.mean(), rtol=1e-6)


def test_nothing_to_learn_from_is_zero_and_has_no_gradient(losses):
    term_cases.check_no_loss_without_targets(losses, TERMS)


def test_padding_changes_nothing(case, losses):
    """What the model says in empty slots, and what stands in them, is irrelevant: also if it is huge."""
    term_cases.check_padding_teaches_nothing(losses, TERMS)
    out, batch, loss, _, grads = case
    assert not grads["ehr_masked/masked"][batch["masked_position"] < 0].any()
    censored = np.arange(A) >= batch["query_horizons"][..., None]
    assert not grads["future_codes"].transpose(0, 1, 3, 2)[censored].any()
    loud = {k: v.copy() for k, v in out.items()}
    loud["ehr_masked/masked"][batch["masked_position"] < 0] = -1e4
    for name in ("future_codes", "ehr_history"):
        loud[name][batch["query_segment"] == 0] = 1e4
    assert losses(loud, batch)[0] == loss


def test_a_code_that_comes_after_follow_up_ends_is_no_negative(case, losses):
    """One query, two of four horizons known: the code of the third horizon is neither positive nor negative."""
    batch, ones = SPEC.empty(B), ENTROPY[1]
    batch["query_segment"][0, 0], batch["query_horizons"][0, 0] = 1, 2
    batch["query_code_bin"][0, 0, 1] = 2
    out = term_cases.quiet(case[0])
    _, metrics, grads = losses(out, batch)
    np.testing.assert_allclose(metrics["loss/future_codes"], (math.log(2) / ENTROPY[:, :2]).mean(), rtol=1e-6)
    assert metrics["future_codes/positives"] == 0.0 and ones.min() > 0
    assert np.all(grads["future_codes"][0, 0, :, :2] > 0) and not grads["future_codes"][0, 0, :, 2:].any()
    batch["query_code_bin"][0, 0, 1] = 1  # within the second horizon, hence not within the first
    grad = losses(out, batch)[2]["future_codes"][0, 0, 1]
    assert grad[0] > 0 and grad[1] < 0


def test_certainty_costs_nothing_and_extreme_logits_stay_finite(case, losses):
    batch = term_cases.random_batch(5)
    out = term_cases.quiet(case[0])
    for logits, target in (("ehr_masked/masked", "masked_target"), ("future_event/event", "event_next")):
        out[logits] = 1e4 * np.eye(V, dtype=np.float32)[batch[target]]
    occurs = batch["query_code_bin"][..., None] <= np.arange(A)
    out["future_codes"] = np.where(occurs, 1e4, -1e4).astype(np.float32)
    seen = batch["query_token_bin"][..., None] <= BACK
    out["ehr_history"] = np.where(seen, 1e4, -1e4).astype(np.float32)
    _, metrics, _ = losses(out, batch)
    for term in ("ehr_masked", "future_codes", "ehr_history"):
        assert metrics[f"loss/{term}"] == 0.0
    assert metrics["ehr_masked/accuracy"] == 1.0
    out["future_codes"], out["ehr_history"] = -out["future_codes"], -out["ehr_history"]
    _, metrics, grads = losses(out, batch)
    known = np.arange(A) < np.where(batch["query_segment"] > 0, batch["query_horizons"], 0)[..., None]
    want = np.mean((1e4 / ENTROPY.T[None, None]).repeat(B, 0).repeat(Q, 1)[known])
    np.testing.assert_allclose(metrics["loss/future_codes"], want, rtol=1e-5)
    assert all(np.isfinite(g).all() for g in grads.values())


def test_the_squared_log_sum_is_weighed_per_target(case):
    out, batch, _, metrics, _ = case
    config = dataclasses.replace(CONFIG, z_loss=0.01)
    (term,) = (t for t in active(config, FACTS) if t.name == "ehr_masked")
    scores, (target, mask) = out["ehr_masked/masked"], term.asked(batch)["masked"]
    value, _ = term.loss({"masked": token_loss(scores, target)}, batch, term.normaliser(batch))
    log_sum = np.log(np.exp(np.float64(scores)).sum(-1))
    want = float(metrics["loss/ehr_masked"]) + 0.01 * np.square(log_sum)[np.asarray(mask)].mean()
    np.testing.assert_allclose(value, want, rtol=1e-5)


def test_knowing_the_rates_alone_costs_about_one():
    """The unit of future codes and history: entropy at the rate of the outcome."""
    rng = np.random.default_rng(0)
    batch, out = term_cases.random_batch(10), term_cases.random_outputs(1, ("future_codes", "ehr_history"))
    batch["query_segment"][:], batch["query_horizons"][:] = 1, A
    batch["query_code_bin"] = np.where(rng.random(batch["query_code_bin"].shape) < 0.3, 0, 255).astype(np.uint8)
    rate = (batch["query_code_bin"] == 0).mean((0, 1))[:, None].repeat(A, 1)
    out["future_codes"][:] = np.log(rate / (1 - rate))
    batch["query_token_bin"] = np.where(rng.random(batch["query_token_bin"].shape) < 0.4, 0, 255).astype(np.uint8)
    seen = (batch["query_token_bin"] == 0).mean((0, 1))[:, None]
    out["ehr_history"][:] = np.log(seen / (1 - seen))
    facts = dataclasses.replace(FACTS, future_rates=tuple(rate.ravel()))
    metrics = term_cases.Losses(("future_codes", "ehr_history"), facts)(out, batch)[1]
    np.testing.assert_allclose(metrics["loss/future_codes"], 1.0, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss/ehr_history"], 1.0, rtol=1e-5)


def test_the_head_of_future_codes_starts_at_the_rates():
    """So does an untrained model, whose latents say nothing, know them; impossible and certain codes stay finite."""
    rates = np.append(RATE.ravel()[:-2], [0.0, 1.0])
    term = FutureCodes(dataclasses.replace(FACTS, future_rates=tuple(rates)), CONFIG)
    z = np.zeros((2, Q, CONFIG.network.width), np.float32)
    out, _ = term.head().init_with_output(jax.random.key(0), z)
    assert out.shape == (2, Q, K, A)
    np.testing.assert_allclose(jax.nn.sigmoid(out[0, 0]).ravel(), np.clip(rates, 1e-5, 1 - 1e-5), rtol=1e-4)


def test_a_term_needs_nothing_of_the_others():
    out, batch = term_cases.random_outputs(1, ("ehr_masked",)), term_cases.random_batch(10)
    losses = term_cases.Losses(("ehr_masked",))
    own = {k: v for k, v in batch.items() if k.startswith("masked")}
    loss, metrics, _ = losses(out, own)
    np.testing.assert_allclose(loss, CONFIG.weights["ehr_masked"][0] * slow_masked(out, batch), rtol=1e-5)
    assert metrics.keys() == {"loss/ehr_masked", "loss/total", "ehr_masked/accuracy", "ehr_masked/count"}
