"""Risks solved on a grid of latent states: closed forms, other grids, Monte Carlo."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from synthetic_risks import expected_auroc

from ehrwear_jax.data.sources.simulator import admission_risk, latent_process


def test_risk_with_constant_hazards_is_the_closed_form():
    process = latent_process.HealthProcess(
        admission_per_year=0.5,
        death_per_year=0.2,
        age_effect=0.0,
        admission_effects=(0.0, 0.0, 0.0),
        death_effects=(0.0, 0.0, 0.0),
        disease_effect=np.log(2.0),
    )
    table = admission_risk.solve_risk(process, (1, 30, 365), (-1.0, 1.0), n_component=6)
    for horizon in (1, 30, 365):
        offset = np.array([-0.7, 0.0, 0.4])
        p_a = -np.expm1(-0.5 / 365.25 * np.exp(offset) * np.array([1, 2, 1]))
        p_d = -np.expm1(-0.2 / 365.25 * np.exp(2 * offset))
        stay = (1 - p_a) * (1 - p_d)
        expected = p_a * (1 - stay**horizon) / (1 - stay)
        got = table(horizon, offset, [0.3, -1.0, 2.0], [0.1, 0.0, -3.0], [0, 1, 3], [False, True, False])
        np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_risk_does_not_depend_on_the_resolution_of_the_grid():
    process = latent_process.HealthProcess()
    coarse = admission_risk.solve_risk(process, (90,), (-2, 2))
    fine = admission_risk.solve_risk(process, (90,), (-2, 2), n_component=80, n_offset=20)
    rng = np.random.default_rng(0)
    state = (
        rng.uniform(-2, 2, 500),
        *rng.normal(0, 1.4, (2, 500)).clip(-4.9, 6.9),
        rng.integers(0, 4, 500),
        rng.random(500) < 0.5,
    )
    np.testing.assert_allclose(coarse(90, *state), fine(90, *state), atol=2e-4)


def test_monte_carlo_from_the_state_gives_the_solved_risk():
    """Per state and in all: 150 states, 120 paths each, 180 days."""
    process = latent_process.HealthProcess()
    horizon, n_states, n_paths = 180, 150, 120
    rng = np.random.default_rng(11)
    offset = rng.uniform(-1.0, 1.2, n_states)
    start = (
        *rng.standard_normal((2, n_states)),
        rng.choice(latent_process.N_SHOCK, n_states, p=(0.7, 0.1, 0.1, 0.1)),
    )
    disease = np.arange(n_states) % 2 == 0
    risk = admission_risk.solve_risk(process, (horizon,), (-2, 2))(horizon, offset, *start, disease)
    paths = latent_process.simulate_paths(
        process,
        np.repeat(offset, n_paths),
        np.repeat(disease, n_paths),
        rng.standard_normal((n_states * n_paths, horizon + 1, 2)),
        rng.random((n_states * n_paths, horizon + 1, latent_process.N_UNIFORM)),
        start=tuple(np.repeat(x, n_paths) for x in start),
    )
    admitted = paths.admitted_NxD.any(axis=1).reshape(n_states, n_paths)
    spread = risk * (1 - risk)
    z = (admitted.mean(axis=1) - risk) / np.sqrt(spread / n_paths)
    assert abs((admitted.sum() - n_paths * risk.sum()) / np.sqrt(n_paths * spread.sum())) < 3
    assert 0.7 < np.mean(z**2) < 1.35  # chi-squared / 150: standard deviation 0.115
    # the AUROC that the risks promise is the AUROC that the paths show
    promised = expected_auroc(risk)
    shown = [roc_auc_score(admitted[:, k], risk) for k in range(n_paths)]
    assert abs(np.mean(shown) - promised) < 4 * np.std(shown) / np.sqrt(n_paths)


def test_table_refuses_what_it_was_not_solved_for():
    table = admission_risk.solve_risk(latent_process.HealthProcess(), (1,), (-1, 1), n_component=5, n_offset=3)
    with pytest.raises(ValueError, match="horizon of 30 days"):
        table(30, [0.0], [0.0], [0.0], [0], [True])
    with pytest.raises(ValueError, match="offset lies outside"):
        table(1, [1.5], [0.0], [0.0], [0], [True])
    with pytest.raises(ValueError, match="whole days"):
        admission_risk.solve_risk(latent_process.HealthProcess(), (0,), (-1, 1))
