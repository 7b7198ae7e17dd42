"""Probes trained by Adam against exact solvers, and what training all settings at once must not change."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ehrwear_jax.evals import classification, concordance, cox, probes, trained_probes

# Long and in full batches, so that Adam arrives where the exact solvers do.
CONVERGED = trained_probes.ProbeSettings(
    learning_rate=0.02, max_epochs=400, patience=400, batch_size=0, l2_grid=(1e-5,), seeds=(0,)
)
SHORT = trained_probes.ProbeSettings(
    max_epochs=4, batch_size=64, l2_grid=(0.1, 0.001), seeds=(3, 8), learning_rate=0.01
)


def problem(n=500, d=4, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * [1, 5, 0.2, 1] + 3
    z = x[:, 0] - 3 - 0.3 * (x[:, 1] - 3)
    time = np.ceil(rng.exponential(8 * np.exp(-z)))  # many ties
    targets = {
        "binary": rng.random(n) < 1 / (1 + np.exp(1 - z)),
        "survival": (time, rng.random(n) < 0.6),
        "regression": 100 + 20 * z + rng.normal(size=n),
    }
    return x, targets


def half(target, rows):
    return tuple(t[rows] for t in target) if isinstance(target, tuple) else target[rows]


def fit(objective, settings, n=500):
    x, targets = problem(n)
    a, b = slice(0, n // 2), slice(n // 2, n)
    data = x[a], half(targets[objective], a), x[b], half(targets[objective], b)
    return trained_probes.fit_probe(objective, *data, settings), data


def test_efron_loss_and_gradient_equal_the_reference_under_ties():
    rng = np.random.default_rng(0)
    time, event, eta = np.sort(rng.integers(0, 9, 60)), rng.random(60) < 0.6, rng.normal(size=60)
    likelihood = cox.PartialLikelihood(time, event)
    loss, gradient = jax.value_and_grad(trained_probes.efron_loss)(
        jnp.asarray(eta), jnp.asarray(time), jnp.asarray(event)
    )
    assert loss == pytest.approx(-likelihood.value(eta) / 60, rel=1e-5)
    expected, _ = likelihood.gradient_hessian(np.eye(60), eta)
    np.testing.assert_allclose(gradient, -expected / 60, atol=1e-6)


@pytest.mark.parametrize("objective", trained_probes.OBJECTIVES)
def test_long_training_arrives_at_the_exact_solution(objective):
    """Validated on the training rows, or early stopping would rightly stop before."""
    x, targets = problem()
    target = targets[objective]
    data = x, target, x, target
    probe = trained_probes.fit_probe(objective, *data, CONVERGED)
    output = probe.output(x)[0]
    if objective == "survival":
        exact = cox.fit_cox(x, *target, x, *target, l2_grid=CONVERGED.l2_grid)
        # Only differences of log-hazards mean anything, but both have the training mean at 0.
        np.testing.assert_allclose(output, exact.log_hazard(x), atol=0.01)
        times = [2.0, 8.0, 20.0]
        np.testing.assert_allclose(probe.survival(x, times)[0], exact.survival(x, times), atol=0.003)
        losses = np.array(list(exact.validation_loss.values())) * target[1].mean()
    elif objective == "binary":
        exact = probes.fit_logistic(*data, l2_grid=CONVERGED.l2_grid)
        np.testing.assert_allclose(output, exact.logit(x), atol=0.01)
        losses = list(exact.validation_loss.values())
    else:
        exact = probes.fit_ridge(*data, l2_grid=CONVERGED.l2_grid)
        np.testing.assert_allclose(output, exact.predict(x), atol=0.01 * target.std())
        losses = exact.validation_mse_LxK[:, 0] / target.var() / 2
    np.testing.assert_allclose(probe.validation_loss_SxL[0], losses, rtol=0.01)


@pytest.mark.parametrize("objective", trained_probes.OBJECTIVES)
def test_all_at_once_equals_one_at_a_time(objective):
    together, data = fit(objective, SHORT)
    for s, seed in enumerate(SHORT.seeds):
        for k, l2 in enumerate(SHORT.l2_grid):
            alone = trained_probes.fit_probe(objective, *data, dataclasses.replace(SHORT, seeds=(seed,), l2_grid=(l2,)))
            assert alone.validation_loss_SxL[0, 0] == pytest.approx(together.validation_loss_SxL[s, k], rel=1e-5)
            if l2 == together.l2_S[s]:
                np.testing.assert_allclose(alone.output(data[2])[0], together.output(data[2])[s], rtol=1e-4, atol=1e-4)
    assert together.output(data[2]).shape == (2, 250)


def test_a_hidden_layer_reads_what_a_linear_probe_cannot():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1200, 2))
    y = x[:, 0] * x[:, 1] > 0
    settings = trained_probes.ProbeSettings(learning_rate=0.01, l2_grid=(1e-4,), seeds=(0, 1), batch_size=100)
    auroc = {}
    for hidden in (0, 32):
        probe = trained_probes.fit_probe(
            "binary", x[:800], y[:800], x[800:1000], y[800:1000], dataclasses.replace(settings, hidden=hidden)
        )
        auroc[hidden] = [classification.auroc(y[1000:], p) for p in probe.predict_proba(x[1000:])]
    assert max(auroc[0]) < 0.65 and min(auroc[32]) > 0.9


def test_early_stopping_returns_the_best_epoch_not_the_last():
    """Labels are noise: training on gets worse on validation, and more so the weaker the penalty."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(120, 30)), rng.random(120) < 0.5
    settings = trained_probes.ProbeSettings(
        hidden=64, learning_rate=0.02, max_epochs=60, patience=4, batch_size=20, l2_grid=(1e-6,), seeds=(0,)
    )
    probe = trained_probes.fit_probe("binary", x[:60], y[:60], x[60:], y[60:], settings)
    assert probe.epochs_SxL[0, 0] <= 10
    assert probes.log_loss(y[60:], probe.output(x[60:])[0]) == pytest.approx(probe.validation_loss_SxL[0, 0], rel=1e-4)
    patient = dataclasses.replace(settings, max_epochs=int(probe.epochs_SxL[0, 0]) + 4)
    again = trained_probes.fit_probe("binary", x[:60], y[:60], x[60:], y[60:], patient)
    np.testing.assert_array_equal(again.output(x), probe.output(x))


def test_the_papers_settings_find_the_signal_on_enough_rows():
    """A.4 as written: Adam at 5e-4, 50 epochs; survival curves fall and rank like the risk."""
    settings = trained_probes.ProbeSettings(l2_grid=(1e-2, 1e-4), seeds=(0,))
    probe, data = fit("survival", settings, n=3000)
    risk = probe.output(data[2])[0]
    assert concordance.concordance_index(*data[3], risk) > 0.7
    curves = probe.survival(data[2], [1.0, 5.0, 10.0])[0]
    assert (np.diff(curves, axis=1) <= 0).all() and ((curves >= 0) & (curves <= 1)).all()


def test_bad_input_is_named():
    x, targets = problem(60)
    y = targets["binary"]
    with pytest.raises(ValueError, match="one class only"):
        trained_probes.fit_probe("binary", x, np.zeros(60), x, y)
    with pytest.raises(ValueError, match="no event"):
        trained_probes.fit_probe("survival", x, (y + 1.0, np.zeros(60)), x, (y + 1.0, y))
    with pytest.raises(ValueError, match="objective must be"):
        trained_probes.fit_probe("ranking", x, y, x, y)
    with pytest.raises(ValueError, match="its target 59"):
        trained_probes.fit_probe("regression", x, targets["regression"][1:], x, targets["regression"])
    with pytest.raises(ValueError, match="x_train has 60 rows, its target 59"):
        trained_probes.fit_probe("survival", x, (y[1:] + 1.0, y[1:]), x, (y + 1.0, y))
    with pytest.raises(ValueError, match="needs a seed"):
        trained_probes.ProbeSettings(seeds=())
    with pytest.raises(ValueError, match="not a survival one"):
        fit("binary", SHORT)[0].survival(x, [1.0])
