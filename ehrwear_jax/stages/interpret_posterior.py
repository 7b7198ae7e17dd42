"""Writes what the posterior of z is worth: uncertainty against errors, calibration and generative consistency.

posterior.json   [{model, measure, of (channel, or ""), level (of a predictive set or interval, or null), value, lo, hi,
                 n}] of a network whose z is a distribution (config.joint.network.posterior), else empty:
  predictions    predictive_entropy, expected_entropy, mutual_information (mean, nats; of draws of z through the frozen
                 probe), and as <measure>_of_errors their rank correlation with the squared error of the mean.
  codes, signal  see evals/generative.py; of events and steps hidden from held-out records, by draws of their states.
                 Signals are in standard deviations of the training windows.
"""

from typing import Any

import numpy as np

from ehrwear_jax.evals import generative
from ehrwear_jax.interpret import mechanisms, uncertainty
from ehrwear_jax.stages.loaded_run import LoadedRun
from ehrwear_jax.training import embedding, feed

MEASURES = ("predictive_entropy", "expected_entropy", "mutual_information")


def compute(run: LoadedRun, name: str, folder: Any) -> list[dict]:
    """The entries of a network; none without a posterior, or with fewer than two draws (interpret.dropout_samples)."""
    del folder
    loaded, n_draws = run.network(name), run.config.interpret.dropout_samples
    has_posterior = getattr(loaded.interpretation, "has_posterior", None)
    if has_posterior is None or not has_posterior(loaded.model.config) or n_draws < 2:
        return []
    found = _generated(run, loaded, n_draws)
    if run.task is not None:
        found = _predictions(run, name, loaded, n_draws) + found
    return [{"model": name, **record} for record in found]


def _predictions(run, name, loaded, n_draws):
    """Of draws of z at the held-out prediction times, through the probe that was fitted on means."""
    probe, seed, n_resamples = run.probe(name), run.config.data.seed, run.config.evaluate.n_resamples
    encode = embedding.encoder(loaded.network, loaded.variables, draw_seed=seed)
    p_SxN = uncertainty.sample(lambda _: probe.predict_proba(run.embed(name, run.held, encode=encode)), n_draws)
    entropies = uncertainty.decompose(p_SxN)
    error_N = np.square(run.held["boolean_value"].to_numpy().astype(float) - entropies.mean_NxK[:, 1])
    group_N, out = run.held["group_id"].to_numpy(), []
    for measure, value_N in zip(MEASURES, entropies[1:], strict=True):
        mean = mechanisms.profile(value_N[:, None], group_N, n_resamples=n_resamples)
        of_errors = generative.of_uncertainty(value_N, error_N, group_N, n_resamples, seed)
        found = {measure: (mean.mean_K[0], mean.lo_K[0], mean.hi_K[0]), f"{measure}_of_errors": of_errors}
        for what, (value, lo, hi) in found.items():
            record = {"measure": what, "of": "", "level": None, "value": value, "lo": lo, "hi": hi}
            out.append({**record, "n": len(value_N)})
    return out


def _generated(run, loaded, n_draws):
    """Of what is hidden from the contexts of held-out people, one epoch of them."""
    module, size, seed = loaded.interpretation, run.config.embed.batch_size, run.config.data.seed
    config = module.masked(loaded.model.config)
    held = loaded.model.module.examples(run.store.view("held_out"), config, seed, train=False)
    n_rows = held.rows_per_epoch
    batches = feed.train_batches(held, size, n_steps=-(-n_rows // size), threads=0)
    params, n_resamples = loaded.variables["params"], run.config.evaluate.n_resamples
    sums = module.generated(loaded.network, params, batches, n_draws, seed, generative.LEVELS)
    # the last batch goes on with the next epoch, in which the same people would count again
    sums = {kind: {name: x_R[:n_rows] for name, x_R in of_rows.items()} for kind, of_rows in sums.items()}
    out = []
    if "code" in sums:
        out += generative.of_codes(generative.CodeSums(**sums["code"]), n_resamples, seed)
    if "signal" in sums:
        signal = generative.SignalSums(**sums["signal"])
        out += generative.of_signal(signal, run.store.channels, n_resamples, seed)
    return out
