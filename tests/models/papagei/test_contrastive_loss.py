"""The contrast and the errors of shape, against loops over pairs in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ehrwear_jax.models.papagei.contrastive_loss import AbsoluteError, Contrast

TEMPERATURE = 0.07


def numpy_contrast(e, positive, negative):
    """(mean over positive pairs of -log share, accuracy), pair by pair in float64."""
    e = e.astype(np.float64)
    e = e / np.linalg.norm(e, axis=1, keepdims=True)
    losses, right, anchors = [], 0, 0
    for a in range(len(e)):
        others = [p for p in range(len(e)) if negative[a][p]]
        mine = [p for p in range(len(e)) if positive[a][p]]
        for p in mine:
            shares = np.exp(np.array([e[a] @ e[k] for k in [p, *others]]) / TEMPERATURE)
            losses.append(-np.log(shares[0] / shares.sum()))
        anchors += bool(mine)
        if mine and others:
            right += max(e[a] @ e[p] for p in mine) > max(e[a] @ e[k] for k in others)
    return np.mean(losses), right / anchors


def test_morphology_draws_a_bin_together():
    rng = np.random.default_rng(0)
    person = np.array([[0, 0, 1, 2], [3, 4, -1, 5]], np.int32)
    bins = np.array([[0, 2, 2, 0], [2, 7, 0, 0]], np.int32)
    e = rng.normal(size=(2, 4, 1, 6)).astype(np.float32)
    flat_person, flat_bin = person.ravel(), bins.ravel()
    real = flat_person >= 0

    def pair(same):
        return [[bool(a != b and real[a] and real[b] and (flat_bin[a] == flat_bin[b]) == same) for b in range(8)]
                for a in range(8)]  # fmt: skip

    check({"person": person, "svri_bin": bins}, Contrast(True, 1, TEMPERATURE), e, pair(True), pair(False))


def test_views_draw_a_piece_together_and_no_two_pieces_of_a_person_apart():
    rng = np.random.default_rng(1)
    person = np.array([[0, 0, 1], [2, -1, 3]], np.int32)
    e = rng.normal(size=(2, 3, 2, 5)).astype(np.float32)
    of = np.repeat(person.ravel(), 2)

    def positive(a, b):
        return a != b and a // 2 == b // 2 and of[a] >= 0

    def negative(a, b):
        return of[a] != of[b] and of[a] >= 0 and of[b] >= 0

    table = [[[bool(f(a, b)) for b in range(12)] for a in range(12)] for f in (positive, negative)]
    check({"person": person}, Contrast(False, 2, TEMPERATURE), e, *table)


def check(batch, term, e, positive, negative):
    whole = term.normaliser(batch)
    assert float(whole["pairs"]) == np.sum(positive) > 0
    value, found = term.loss(jnp.asarray(e), batch, whole)
    want, accuracy = numpy_contrast(e.reshape(-1, e.shape[-1]), positive, negative)
    assert float(value) == pytest.approx(want, rel=1e-5) and float(found["accuracy"]) == pytest.approx(accuracy)
    chance = [np.log1p(np.sum(negative[a])) for a, b in np.argwhere(positive)]
    assert float(found["chance"]) == pytest.approx(np.mean(chance), rel=1e-5)
    gradient = jax.grad(lambda x: term.loss(x, batch, whole)[0])(jnp.asarray(e))
    real = np.asarray(batch["person"]) >= 0
    assert np.isfinite(gradient).all() and not np.asarray(gradient)[~real].any()


def test_a_batch_without_pairs_or_negatives_has_a_loss_of_zero():
    e = jnp.asarray(np.random.default_rng(2).normal(size=(1, 2, 1, 4)), jnp.float32)
    for bins in ([[1, 3]], [[1, 1]], [[-1, -1]]):
        batch, term = {"person": np.array([[0, 1]]), "svri_bin": np.array(bins)}, Contrast(True, 1, TEMPERATURE)
        value, gradient = jax.value_and_grad(lambda x: term.loss(x, batch, term.normaliser(batch))[0])(e)  # noqa: B023
        assert float(value) == 0 and np.isfinite(gradient).all()
    zero = term.loss(jnp.zeros((1, 2, 1, 4)), batch, term.normaliser(batch))[0]
    assert np.isfinite(zero)


def test_errors_are_means_over_what_is_defined():
    batch = {"ipa": np.array([[1.0, np.nan], [-3.0, np.nan]], np.float32)}
    term, out = AbsoluteError("ipa"), np.array([[0.5, 9.0], [1.0, 9.0]], np.float32)
    value, found = term.loss(jnp.asarray(out), batch, term.normaliser(batch))
    assert float(value) == pytest.approx((0.5 + 4.0) / 2) and float(found["zero_error"]) == pytest.approx(2.0)
    gradient = jax.grad(lambda x: term.loss(x, batch, term.normaliser(batch))[0])(jnp.asarray(out))
    np.testing.assert_allclose(gradient, [[-0.5, 0.0], [0.5, 0.0]])
