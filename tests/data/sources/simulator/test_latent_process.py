"""The latent process: stationarity and autocorrelation of its components, transitions of its shock chain."""

import numpy as np

from ehrwear_jax.data.sources.simulator import latent_process


def test_shock_transition_is_that_of_advance():
    process = latent_process.HealthProcess(shock_per_year=60.0)
    rng = np.random.default_rng(0)
    n = 40_000
    for level in range(latent_process.N_SHOCK):
        zero = np.zeros(n)
        _, _, after = process.advance(zero, zero, np.full(n, level), rng.standard_normal((n, 2)), rng.random((n, 2)))
        share = np.bincount(after, minlength=latent_process.N_SHOCK) / n
        np.testing.assert_allclose(share, process.shock_transition()[level], atol=0.012)


def test_the_components_are_stationary_with_the_autocorrelation_of_an_ornstein_uhlenbeck_process():
    """Without admissions, which do harm; 400 people for ten relaxation times."""
    process = latent_process.HealthProcess(admission_per_year=1e-9, relaxation_days=(20.0, 60.0))
    rng = np.random.default_rng(1)
    noise = [latent_process.draw_noise(rng, 600) for _ in range(400)]
    paths = latent_process.simulate_paths(
        process, np.zeros(400), np.zeros(400, bool), np.stack([z for z, _ in noise]), np.stack([u for _, u in noise])
    )
    for x_NxD, days in ((paths.ehr_NxD, 20), (paths.wearable_NxD, 60)):
        assert abs(x_NxD.mean()) < 0.05 and abs(x_NxD.std() - 1) < 0.05
        lagged = np.corrcoef(x_NxD[:, :-days].ravel(), x_NxD[:, days:].ravel())[0, 1]
        assert abs(lagged - np.exp(-1)) < 0.05
    one = paths.person(7)
    np.testing.assert_array_equal(one.wearable_D, paths.wearable_NxD[7])
    np.testing.assert_array_equal(one.in_hospital_D, paths.in_hospital_NxD[7])
