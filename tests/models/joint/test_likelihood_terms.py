"""The ELBO: its terms against loops, and the bound against the exact likelihood of a linear Gaussian process."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_rows
import term_cases
from random_rows import model_of
from small_model import random_params
from term_cases import LOG_SD, known_events, known_steps, nll, observed_of

from ehrwear_jax.config import options
from ehrwear_jax.models.joint import family
from ehrwear_jax.models.joint.batch import MODALITY_WEAR, Facts
from ehrwear_jax.models.joint.config import LIKELIHOODS, WEIGHTS, Config, ContextConfig, NetworkConfig
from ehrwear_jax.models.joint.cross_terms import ou_kl

TERMS = LIKELIHOODS


def slow_events(out, batch):
    costs = [nll(out["event_likelihood/token"][i], token) for i, token in known_events(batch).items()]
    return sum(costs) / observed_of(batch)


def slow_signal(out, batch):
    total = 0.0
    for i in known_steps(batch):
        sd = float(np.exp(np.float64(LOG_SD[i[-1]])))
        error = (float(out["signal_likelihood/mean"][i]) - float(batch["wear"][i])) / sd
        total += 0.5 * error**2 + np.log(sd * np.sqrt(2 * np.pi))
    return total / observed_of(batch)


@pytest.mark.parametrize(("term", "slow"), [("event_likelihood", slow_events), ("signal_likelihood", slow_signal)])
def test_term_equals_loops(case, term, slow):
    term_cases.check_loops(case, term, slow)


def test_what_is_hidden_counts_as_what_is_shown(case):
    """Targets are of both kinds, and counted once."""
    _, batch, _, metrics, _ = case
    hidden = {(b, p) for b, row in enumerate(batch["masked_position"]) for p in row if p >= 0}
    assert hidden & known_events(batch).keys() and known_events(batch).keys() - hidden
    assert metrics["event_likelihood/count"] == len(known_events(batch))
    assert metrics["signal_likelihood/count"] == len(known_steps(batch))


def test_padding_changes_nothing(losses):
    term_cases.check_padding_teaches_nothing(losses, TERMS)
    term_cases.check_no_loss_without_targets(losses, TERMS)


# ------------------------------------------------------------------------------- the bound, of a process that is known

N, SD, RATE, STATIONARY = 4, 0.6, 0.4, 1.3  # states of a context, noise of observations, 1/day, variance
KNOWN = Config(
    modalities=("wear",),
    context=ContextConfig(windows=N, queries=1, events=1, horizons=(30,), patch_steps=1),
    network=NetworkConfig(width=1, posterior="normal"),
    weights=dict.fromkeys(WEIGHTS, (0.0, 0.0, 0)) | dict.fromkeys(("latent_kl", "signal_likelihood"), (1.0, 1.0, 0)),
)
OF_WEAR = Facts(modalities=("wear",), vocabulary=4, steps=1, channels=1, derived=0, future_codes=0, history_tokens=0,
                n_horizons=1, future_rates=())  # fmt: skip


def rows_of(time_N, x_N, n_rows):
    """A batch of a context of N windows of one step, over and over: a row for each draw of its states."""
    batch = random_rows.spec_of(KNOWN, OF_WEAR).empty(n_rows)
    batch["time"][:], batch["wear"][:, :, 0, 0], batch["observed"][:] = time_N, x_N, True
    batch["segment"][:], batch["modality"][:] = 1, MODALITY_WEAR
    batch["window_position"][:], batch["kv_range"][..., 1] = np.arange(N), 1 + np.arange(N)
    return batch


@jax.jit
def estimates(batch, z_BxN, mean_N, variance_N):
    """The bound as it is logged, by the objective of a model of these terms; nats of a context, mean over rows."""
    n_rows = z_BxN.shape[0]
    q = {f"{name}_token": jnp.broadcast_to(x[None, :, None], (n_rows, N, 1))
         for name, x in (("mean", mean_N), ("variance", variance_N))}  # fmt: skip
    q |= {"mean_query": jnp.zeros((n_rows, 1, 1)), "variance_query": jnp.ones((n_rows, 1, 1))}
    prior = {"prior_rate": jnp.float32([RATE]), "prior_variance": jnp.float32([STATIONARY])}
    signal = {"mean": z_BxN[:, :, None, None], "log_sd": jnp.log(jnp.float32([SD]))}
    objective = family.objective(random_rows.spec_of(KNOWN, OF_WEAR), KNOWN)
    out = {"latent_kl": q | prior, "signal_likelihood": signal}
    return objective(out, batch, objective.weights(0), objective.normalisers(batch))[1]["elbo/bound"] * N


def bound_of(time_N, x_N, mean_N, variance_N, n_rows=10_000):
    """(Monte Carlo estimate of the bound in nats, its standard error by ten parts)."""
    noise = np.random.default_rng(1).normal(size=(10, n_rows // 10, N))
    batch, mean_N, variance_N = rows_of(time_N, x_N, n_rows // 10), np.float32(mean_N), np.float32(variance_N)
    parts = [float(estimates(batch, np.float32(mean_N + np.sqrt(variance_N) * e), mean_N, variance_N)) for e in noise]
    return np.mean(parts), np.std(parts, ddof=1) / np.sqrt(10)


def kalman(time_N, x_N):
    """log p(x) of noisy observations of a stationary Ornstein-Uhlenbeck process, forwards."""
    mean, variance, total = 0.0, STATIONARY, 0.0
    for i, x in enumerate(x_N):
        if i:
            decay = np.exp(-RATE * (time_N[i] - time_N[i - 1]))
            mean, variance = decay * mean, decay**2 * variance + STATIONARY * (1 - decay**2)
        spread = variance + SD**2
        total -= 0.5 * ((x - mean) ** 2 / spread + np.log(2 * np.pi * spread))
        gain = variance / spread
        mean, variance = mean + gain * (x - mean), (1 - gain) * variance
    return total


def posterior_of(time_N, x_N):
    """Mean and covariance of the states given all observations, by dense algebra."""
    prior = STATIONARY * np.exp(-RATE * np.abs(time_N[:, None] - time_N[None]))
    precision = np.linalg.inv(prior) + np.eye(N) / SD**2
    covariance = np.linalg.inv(precision)
    return covariance @ x_N / SD**2, covariance


X = np.array([0.9, -0.4, 1.7, 0.2])
CLOSE, FAR = np.array([0.0, 0.5, 1.1, 4.0]), np.array([0.0, 100.0, 250.0, 400.0])


def test_the_bound_touches_the_exact_likelihood_at_the_exact_posterior():
    """States far apart are independent given the data, so that the posterior is one of those that q can be."""
    mean_N, covariance = posterior_of(FAR, X)
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=1e-12)
    found, error = bound_of(FAR, X, mean_N, np.diag(covariance))
    assert abs(found - kalman(FAR, X)) < 4 * error + 1e-4 and error < 0.03


@pytest.mark.parametrize("q", ["best", "filter", "prior", "wrong"])
def test_the_bound_never_exceeds_the_exact_likelihood_and_falls_short_by_the_divergence(q):
    """log p(x) - bound is KL(q || exact posterior), here of normal distributions."""
    exact_mean, covariance = posterior_of(CLOSE, X)
    precision = np.linalg.inv(covariance)
    mean_N, variance_N = {
        "best": (exact_mean, 1 / np.diag(precision)),  # the closest one of independent states
        "filter": (exact_mean, np.diag(covariance)),
        "prior": (np.zeros(N), np.full(N, STATIONARY)),
        "wrong": (np.array([1.0, 1.0, -1.0, 0.0]), np.array([0.1, 2.0, 0.5, 0.01])),
    }[q]
    off = mean_N - exact_mean
    short = 0.5 * (precision.diagonal() @ variance_N + off @ precision @ off - N)
    short -= 0.5 * (np.log(variance_N).sum() - np.linalg.slogdet(covariance)[1])
    found, error = bound_of(CLOSE, X, mean_N, variance_N)
    assert found < kalman(CLOSE, X) + 4 * error and short > 0.05
    np.testing.assert_allclose(kalman(CLOSE, X) - found, short, atol=4 * error + 1e-3)


def test_divergence_by_simulation_and_under_another_unit_of_time():
    """log q - log p of draws has the closed form as its mean; the rate times the gap is all that time is."""
    rng, gap, prior = np.random.default_rng(0), 0.7, (np.float64([0.5, 2.0]), np.float64([1.0, 0.4]))
    state, before = (np.array([0.3, -1.0]), np.array([0.2, 0.6])), (np.array([-0.5, 0.8]), np.array([0.4, 0.1]))
    z = state[0] + np.sqrt(state[1]) * rng.normal(size=(200_000, 2))
    z_before = before[0] + np.sqrt(before[1]) * rng.normal(size=z.shape)

    def log_normal(x, mean, variance):
        return -0.5 * ((x - mean) ** 2 / variance + np.log(2 * np.pi * variance)).sum(-1)

    decay = np.exp(-prior[0] * gap)
    drawn = log_normal(z, *state) - log_normal(z, decay * z_before, prior[1] * (1 - decay**2))
    now, then = (tuple(jnp.float32(x) for x in pair) for pair in (state, before))

    def closed(gap, rate):
        return float(ou_kl(now, then, jnp.float32(gap), jnp.array(False), (jnp.float32(rate), jnp.float32(prior[1]))))

    np.testing.assert_allclose(closed(gap, prior[0]), drawn.mean(), atol=4 * drawn.std() / np.sqrt(len(drawn)))
    np.testing.assert_allclose(closed(24 * gap, prior[0] / 24), closed(gap, prior[0]), rtol=1e-5)
    first = ou_kl(now, then, jnp.float32(1.0), jnp.array(True), tuple(jnp.float32(x) for x in prior))
    np.testing.assert_allclose(closed(1e6, prior[0]), float(first), rtol=1e-5)


# ------------------------------------------------------------------------------------------------ in the network


@pytest.fixture(scope="module")
def model():
    """(objective, batch, parameters, (batch, changed parameters) -> output at inference) of a small model."""
    on = ("latent_kl", *LIKELIHOODS, "content_norm")
    weights = {name: (1.0, 1.0, 0) if name in on else (0.0, 0.0, 0) for name in WEIGHTS}
    config = dataclasses.replace(random_rows.CONFIG, weights=weights)
    spec, network, objective = model_of(config)
    params = random_params(jax.eval_shape(lambda: network.init(jax.random.key(0), spec.empty(1)))["params"])
    batch = random_rows.make_batch(4, spec)
    batch["token"] = np.where(batch["modality"] == 1, np.maximum(batch["token"], 3), batch["token"])
    jitted = jax.jit(lambda b, p: network.apply({"params": p}, b))
    return objective, batch, params, lambda b, **changed: jitted(b, params | changed)


def test_the_bound_of_micro_batches_adds_up(model):
    objective, batch, _, run = model
    whole, weights = objective.normalisers(batch), objective.weights(0)
    assert {"elbo/bound"} == set(objective.bounds) and "content_norm" not in objective.bounds["elbo/bound"]
    _, metrics = objective(run(batch), batch, weights, whole)
    parts = [{k: v[i : i + 2] for k, v in batch.items()} for i in (0, 2)]
    each = [objective(run(part), part, weights, whole)[1] for part in parts]
    for name in ("elbo/bound", "latent_kl/token", *(f"loss/{t}" for t in LIKELIHOODS)):
        np.testing.assert_allclose(sum(m[name] for m in each), metrics[name], rtol=1e-4, err_msg=name)
    want = -sum(metrics[f"loss/{t}"] for t in (*LIKELIHOODS, "latent_kl"))
    np.testing.assert_allclose(metrics["elbo/bound"], want, rtol=1e-6)


def test_a_bound_that_is_validated_is_of_draws_too(model):
    """Without noise the likelihoods would be those at the mean of q, which no variance changes."""
    _, batch, params, run = model
    zeros = jnp.zeros((8, 8))
    quiet, loud, again = (
        run(batch, posterior=params["posterior"] | {"log_variance": {"kernel": zeros, "bias": jnp.full(8, bias)}})
        for bias in (-9.0, -1.0, -1.0)
    )
    for name in ("mean_token", "mean_query"):
        np.testing.assert_array_equal(quiet["latent_kl"][name], loud["latent_kl"][name])
    moved = jnp.abs(loud["signal_likelihood"]["mean"] - quiet["signal_likelihood"]["mean"])
    assert moved.max() > 1e-3, "decoded from draws"
    np.testing.assert_array_equal(loud["signal_likelihood"]["mean"], again["signal_likelihood"]["mean"])


def test_models_of_before_keep_their_digest():
    assert not set(LIKELIHOODS) & options.identity(Config())["weights"].keys()
    on = options.identity(KNOWN)["weights"]
    assert on["signal_likelihood"] == (1.0, 1.0, 0) and "event_likelihood" not in on and "latent_kl" in on


def test_likelihoods_without_a_prior_are_no_bound():
    with pytest.raises(ValueError, match="weights.event_likelihood is part of the ELBO"):
        Config(weights={"event_likelihood": (1.0, 1.0, 0)})
