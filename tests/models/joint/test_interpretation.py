"""The joint model opened for interpretation: attributions of its inputs are complete and causal; kernels; contexts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_rows
import small_model
from joint_rows import examples_of
from small_model import random_params

from ehrwear_jax.evals.generative import CodeSums, SignalSums
from ehrwear_jax.interpret import attention, attribution
from ehrwear_jax.models.joint import interpretation
from ehrwear_jax.models.joint.config import LIKELIHOODS, WEIGHTS
from ehrwear_jax.models.joint.wear_terms import hidden_steps

CONTEXT = {"tokens": 64, "windows": 32, "context_tokens": 40, "queries": 8, "events": 8, "patch_steps": 3}


@pytest.fixture(scope="module")
def explained():
    model, params = small_model.make_model()
    batch = small_model.make_batch()
    direction = np.random.default_rng(3).normal(size=8).astype(np.float32)

    def head(z_BxQxD):
        return z_BxQxD[:, 1] @ direction

    inputs, baseline = interpretation.embedded_inputs(model, params, batch)
    score = interpretation.score_of_embedded(model, params, batch, head)
    plain = jax.jit(lambda b: head(model.apply({"params": params}, b, method="encode")))(batch)
    return plain, attribution.integrated_gradients(score, inputs, baseline, n_steps=64)


def test_the_models_attributions_are_complete(explained):
    plain, found = explained
    np.testing.assert_allclose(found.score_B, plain, atol=1e-5)  # entering behind the embedding changes nothing
    change = found.score_B - found.baseline_score_B
    assert np.abs(change).min() > 0.05
    np.testing.assert_allclose(found.gap_B, 0.0, atol=5e-3 * np.abs(change).min())
    token_BxT, wear_BxWxC = attribution.by_token(found)
    np.testing.assert_allclose(token_BxT.sum(1) + wear_BxWxC.sum((1, 2)), change, atol=1e-3)


def test_what_the_prediction_does_not_see_has_no_part(explained):
    """Query 1 sees four tokens, one of them the first window. A wearable token's id is not read."""
    token_BxT, wear_BxWxC = attribution.by_token(explained[-1])
    assert not token_BxT[:, 4:].any() and not token_BxT[:, 2].any() and not wear_BxWxC[:, 1].any()
    # what is not seen is exactly zero above: any part at all is one of what is seen
    assert (np.abs(token_BxT[:, [0, 1, 3]]) > 1e-6).all() and (np.abs(wear_BxWxC[:, 0]) > 1e-6).all()


@pytest.mark.parametrize("kernel", ["mixture", "rational_quadratic", "none"])
def test_the_kernels_of_time_are_those_of_the_backbone(kernel):
    """At no gap each is 1, and the learned ones fall from there."""
    found = interpretation.time_kernels(small_model.config(kernel), small_model.make_model(kernel)[1])
    assert found[1:] == (kernel, 2, 3, 1.0)
    curve = attention.learned_kernels(*found, np.array([0.0, 1.0, 30.0]))
    assert curve.shape == (1 if kernel == "none" else 2, 2, 3)
    np.testing.assert_allclose(curve[..., 0], 1.0, rtol=1e-6)
    assert (curve == 1).all() if kernel == "none" else (np.diff(curve) < 0).all()


def test_a_row_shows_the_tokens_known_at_the_prediction_with_their_parts(few_people):
    """One prediction time a row: its tokens and windows, how long before it, and what each is called."""
    rows = examples_of(few_people, CONTEXT, None)
    people = rows.people
    place = [i for i in range(len(people)) if people.n_windows[i] > 2 and people.n_events[i] > 2][:3]
    times = [int(people[i].time_N[-2]) for i in place]
    batch = interpretation.one_time_a_row(rows, place, times)
    assert (batch["query_segment"][:, 0] == 1).all() and not batch["query_segment"][:, 1:].any()
    names = people.vocabulary.tokens["token"].to_list()
    rng, n_seen = np.random.default_rng(0), 0
    token_BxT, wear_BxWxC = rng.normal(size=batch["token"].shape), rng.normal(size=(3, 32, 2))
    for b, (i, t) in enumerate(zip(place, times, strict=True)):
        ends = interpretation.window_ends(rows, i, t)
        patient = people[i]
        known = patient.window_end_M[patient.window_end_M <= t]
        np.testing.assert_array_equal(ends, known[len(known) - len(ends) :])
        shown = interpretation.shown(rows, batch, b, token_BxT, wear_BxWxC)
        assert len(shown.known) == np.count_nonzero(batch["segment"][b]) and (shown.days_T[shown.known] <= 1e-3).all()
        np.testing.assert_allclose(shown.wear_days_W, (ends - t) / 86_400_000_000, atol=1e-3)
        np.testing.assert_array_equal(shown.wear_WxC, wear_BxWxC[b, : len(ends)])
        is_wear = batch["window"][b, shown.known] >= 0
        assert is_wear.sum() == len(ends)
        parts = np.where(is_wear, 0.0, token_BxT[b, shown.known])
        parts[is_wear] = shown.wear_WxC.sum(-1)
        np.testing.assert_allclose(shown.gradient_T[shown.known], parts)
        labels = [shown.label_T[k] for k in shown.known]
        assert labels == ["wearable window" if w else names[v]
                          for w, v in zip(is_wear, batch["token"][b, shown.known], strict=True)]  # fmt: skip
        n_seen += len(ends)
    assert n_seen > 5


# ------------------------------------------------------------------------------------------- draws of the posterior

LEVELS = (0.5, 1.0)


def test_sums_are_those_of_what_is_hidden_at_states_that_hardly_vary():
    on = ("latent_kl", "ehr_masked", "wear_masked", *LIKELIHOODS)
    weights = {name: (1.0, 1.0, 0) if name in on else (0.0, 0.0, 0) for name in WEIGHTS}
    config = dataclasses.replace(random_rows.CONFIG, weights=weights)
    assert interpretation.has_posterior(config)
    spec, network, _ = random_rows.model_of(config)
    params = random_params(jax.eval_shape(lambda: network.init(jax.random.key(0), spec.empty(1)))["params"])
    params["posterior"]["log_variance"] = {"kernel": jnp.zeros((8, 8)), "bias": jnp.full(8, -10.0)}  # least
    batch = random_rows.make_batch(4, spec)
    found = interpretation.generated(network, params, [batch, batch], 3, 0, LEVELS)
    codes, signal = CodeSums(**found["code"]), SignalSums(**found["signal"])
    out = jax.jit(lambda b: network.apply({"params": params}, b))(batch)

    real = batch["masked_position"] >= 0
    nll = np.where(real, out["ehr_masked"]["masked"].nll, 0.0).sum(1)
    np.testing.assert_allclose(codes.log_p_R, np.tile(-nll, 2), rtol=0.02, atol=0.02)
    np.testing.assert_allclose(codes.expected_RxV.sum(1), np.tile(real.sum(1), 2), rtol=1e-4)
    for row, target, there in zip(codes.observed_RxV, batch["masked_target"], real, strict=False):
        np.testing.assert_array_equal(row, np.bincount(target[there], minlength=row.size))
    np.testing.assert_array_equal(codes.inside_RxA[:, 1], codes.observed_RxV.sum(1))
    assert np.all(codes.inside_RxA[:, 0] <= codes.inside_RxA[:, 1])

    hidden = np.asarray(hidden_steps(batch))
    np.testing.assert_array_equal(signal.n_RxC, np.tile(hidden.sum((1, 2)), (2, 1)))
    np.testing.assert_allclose(signal.observed_RxC, np.tile((batch["wear"] * hidden).sum((1, 2)), (2, 1)), rtol=1e-5)
    decoded = (np.asarray(out["wear_masked"]) * hidden).sum((1, 2))
    np.testing.assert_allclose(signal.decoded_RxC, np.tile(decoded, (2, 1)), rtol=0.03, atol=0.03)
    np.testing.assert_array_equal(signal.inside_RxCxA[..., 1], signal.n_RxC)
    assert np.all(signal.decoded_square_RxC >= signal.n_RxC * 0.9 * np.exp(2 * params_log_sd(params)))


def params_log_sd(params):
    """Of the one channel, as the likelihood takes it."""
    return float(np.clip(params["term_head_signal_likelihood"]["log_sd"], -4.0, 2.0)[0])
