"""What pretraining learns: python learning_run.py CONFIG WORKDIR [N_SUBJECTS STEPS [VARIANT [MODEL...]]].

Trains the joint model of an experiment file on its simulated cohort, as configured ("model") and with cross-modal terms
that train their heads but do not shape z ("detached"). Writes WORKDIR/learning.json: for each term the loss on
validation of the models and of predictors that know only frequencies, means or the last value.
"""

import dataclasses
import json
import os
import runpy
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import small_run
from absl import flags

from ehrwear_jax import config as config_lib
from ehrwear_jax.data.sources.simulator import simulate
from ehrwear_jax.models.joint import family
from ehrwear_jax.models.joint.batch import PAD
from ehrwear_jax.models.layers.vocabulary_loss import token_loss
from ehrwear_jax.training import feed
from ehrwear_jax.training.pretrain import Model, pretrain

PENALTIES = ("content_norm", "latent_kl", "event_likelihood", "signal_likelihood")  # predict nothing


def share(hits, count):
    return np.clip(hits / np.maximum(count, 1), 1e-4, 1 - 1e-4)


def logit(rate):
    return np.log(rate) - np.log1p(-rate)


def mean_where(value, mask, axis):
    return np.sum(np.where(mask, value, 0.0), axis) / np.maximum(np.sum(mask, axis), 1)


def frequencies(batches, names, n_codes):
    """log of the smoothed frequency of each code among the targets of these names."""
    count = np.ones(n_codes)
    for batch in batches:
        for name in names:
            target = batch[name]
            count += np.bincount(target[target != PAD].ravel(), minlength=n_codes)
    return np.log(count / count.sum())


def joined(batches, name):
    return np.concatenate([b[name] for b in batches])


def fit(batches, facts):
    """Constants of the trivial predictors, from batches of the training split. facts: joint/batch.py, Facts."""
    horizon, back = np.arange(facts.n_horizons), np.array([*range(facts.n_horizons), 254])
    real = joined(batches, "query_segment") > 0
    known = horizon < np.where(real, joined(batches, "query_horizons"), 0)[..., None]
    occurs = (joined(batches, "query_code_bin")[..., None] <= horizon) & known[:, :, None]
    seen = (joined(batches, "query_token_bin")[..., None] <= back) & real[..., None, None]
    summary, mask = (
        np.concatenate([joined(batches, f"{n}_summary{end}").reshape(-1, facts.summaries) for n in ("event", "query")])
        for end in ("", "_mask")
    )
    return {
        "masked": frequencies(batches, ["masked_target"], facts.vocabulary),
        "next": frequencies(batches, ["event_next", "query_next"], facts.vocabulary),
        "codes": logit(share(occurs.sum((0, 1)), known.sum((0, 1))[None])),
        "history": logit(share(seen.sum((0, 1)), real.sum())),
        "channel": mean_where(joined(batches, "wear"), joined(batches, "observed"), (0, 1, 2)),
        "summary": mean_where(summary, mask, 0),
        "past": mean_where(joined(batches, "query_past"), joined(batches, "query_past_mask"), (0, 1)),
    }


def constants(fitted, batch):
    """{term: what a model that knows rates and means only puts out}."""

    def everywhere(value, *lead):
        return jnp.broadcast_to(jnp.asarray(value, jnp.float32), (batch["token"].shape[0], *lead, *np.shape(value)))

    n_query, n_event = batch["query_time"].shape[1], batch["event_position"].shape[1]
    n_windows, n_steps = batch["wear"].shape[1:3]
    n_future, unit = batch["step_window"].shape[2], everywhere(np.array([1.0]), batch["pair_patient"].shape[1])

    def both(value):
        return {"event": everywhere(value, n_event), "query": everywhere(value, n_query)}

    def tokens(scores, **targets):
        return {name: token_loss(everywhere(scores, x.shape[1]), x) for name, x in targets.items()}

    following = tokens(fitted["next"], event=batch["event_next"], query=batch["query_next"])
    return {
        "ehr_masked": tokens(fitted["masked"], masked=batch["masked_target"]),
        "future_event": following,
        "future_codes": everywhere(fitted["codes"], n_query),
        "ehr_history": everywhere(fitted["history"], n_query),
        "wear_masked": everywhere(fitted["channel"], n_windows, n_steps),
        "future_signal": {
            "step_window": everywhere(fitted["channel"], n_windows, n_future, n_steps),
            "query_window": everywhere(fitted["channel"], n_query, n_future, n_steps),
        },
        "wear_history": everywhere(fitted["past"], n_query),
        "wear_to_ehr": following,
        "ehr_to_wear": both(fitted["summary"]),
        "contrast": {"ehr": unit, "wear": unit, "temperature": jnp.float32(1.0)},
    }


def last_values(fitted, batch):
    """The same of a model that repeats the last known value of each channel, the mean where there is none."""
    out = constants(fitted, batch)
    observed, wear = np.asarray(batch["observed"]), np.asarray(batch["wear"])
    at = observed.shape[2] - 1 - np.argmax(observed[:, :, ::-1], axis=2)
    last = np.take_along_axis(wear, at[:, :, None], axis=2)[:, :, 0]
    last_BxWxC = np.where(observed.any(2), last, fitted["channel"])
    position, seen = np.asarray(batch["window_position"]), np.asarray(batch["query_kv_range"])
    inside = (position[:, None] >= seen[..., :1]) & (position[:, None] < seen[..., 1:]) & (position >= 0)[:, None]
    slot = inside.shape[-1] - 1 - np.argmax(inside[..., ::-1], axis=-1)
    at_query = np.take_along_axis(last_BxWxC, slot[..., None], axis=1)
    at_query = np.where(inside.any(-1)[..., None], at_query, fitted["channel"])
    past = np.where(batch["query_past_mask"], batch["query_past"], fitted["summary"])
    ahead = {
        name: jnp.broadcast_to(value[:, :, None, None], out["future_signal"][name].shape)
        for name, value in (("step_window", last_BxWxC), ("query_window", at_query))
    }
    of_summary = out["ehr_to_wear"] | {"query": jnp.asarray(past, jnp.float32)}
    return out | {"future_signal": ahead, "ehr_to_wear": of_summary}


def model_of(config, steps):
    """The joint model of a config, whose ramps are over within the first quarter of the run."""
    model = Model(**config_lib.parse(config).model("joint", 0))
    weights = {name: (start, end, min(n, steps // 4)) for name, (start, end, n) in model.config.weights.items()}
    return dataclasses.replace(model, config=dataclasses.replace(model.config, weights=weights))


def trained(folder, model, store, detached):
    """Validation losses of the last look of a model that is trained in a folder."""
    network = dataclasses.replace(model.config.network, detach_cross_modal=detached)
    config = dataclasses.replace(model.config, network=network)
    pretrain(folder, dataclasses.replace(model, config=config), store)
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    final = next(x for x in reversed(lines) if "validation/loss/total" in x)
    return {k.removeprefix("validation/loss/"): v for k, v in final.items() if "validation/loss/" in k}


def main(config_file, workdir, n_subjects=None, steps=None, variant="contrast", *models):
    config = runpy.run_path(config_file)["get_config"](variant)
    if steps:
        config.simulate.n_subjects, config.train.steps = int(n_subjects), int(steps)
    config.train.update({"validate_every": config.train.steps, "validate_batches": 64})
    config.joint.context.colocated_days = 30.0  # simulated events are sparse
    workdir, run = Path(workdir), config_lib.parse(config)
    simulate.simulate(workdir / "raw", run.simulate, workers=os.cpu_count() or 1)
    store = small_run.store(small_run.prepare(workdir, workdir / "raw", run.prepare))
    model, train = model_of(config, run.train.steps), run.train
    result = {name: trained(workdir / name, model, store, name == "detached")
              for name in models or ("model", "detached")}  # fmt: skip

    examples = model.module.examples(store.view("train"), model.config, model.seed)
    fitted = fit(list(feed.train_batches(examples, train.batch_size, n_steps=40, threads=0)), examples.facts)
    held = model.module.examples(store.view("tuning"), model.config, model.seed, train=False)
    n = min(train.validate_batches, max(1, held.rows_per_epoch // train.batch_size))
    predicted = {name: (0.0, 0.0, 0) if name in PENALTIES else ramp for name, ramp in model.config.weights.items()}
    objective = family.objective(held.spec, dataclasses.replace(model.config, weights=predicted))
    terms = [t.name for t in objective.terms]
    for name, predictor in (("constant", constants), ("last_value", last_values)):
        values = [
            objective(predictor(fitted, b), b, dict.fromkeys(terms, 1.0), objective.normalisers(b))[1]
            for b in feed.train_batches(held, train.batch_size, n_steps=n, threads=0)
        ]
        result[name] = {t: float(np.mean([v[f"loss/{t}"] for v in values])) for t in terms}
    (workdir / "learning.json").write_text(json.dumps(result, indent=1))
    for term in terms:
        print(f"{term:13s}", *(f"{name} {result[name][term]:.4f}" for name in result))


if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()  # grain reads flags
    jax.config.update("jax_platforms", "cpu")
    main(*sys.argv[1:])
