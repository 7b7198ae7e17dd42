"""What pretraining learns: python learning_run.py CONFIG WORKDIR [N_SUBJECTS STEPS [VARIANT [MODEL...]]].

Trains the joint row of an experiment file on its simulated cohort, as configured ("model") and with cross-modal terms
that train their heads but do not shape z ("detached"). Writes WORKDIR/learning.json: for each term the loss on
validation of the models and of predictors that know only frequencies, means or the last value.
"""

import dataclasses
import json
import runpy
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from ehrwear_jax import config as config_lib
from ehrwear_jax import stages
from ehrwear_jax.models.joint import examples as pipeline
from ehrwear_jax.models.joint import losses
from ehrwear_jax.models.joint.batch import PAD
from ehrwear_jax.stages import prepare
from ehrwear_jax.training import schedules, train


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


def fit(batches, config):
    """Constants of the trivial predictors, from batches of the training split. config: ModelConfig."""
    horizon, back = np.arange(config.horizons), np.array([*range(config.horizons), 254])
    real = joined(batches, "query_segment") > 0
    known = horizon < np.where(real, joined(batches, "query_horizons"), 0)[..., None]
    occurs = (joined(batches, "query_code_bin")[..., None] <= horizon) & known[:, :, None]
    seen = (joined(batches, "query_token_bin")[..., None] <= back) & real[..., None, None]
    summary = [joined(batches, f"{n}_summary").reshape(-1, 3 * config.channels) for n in ("event", "query")]
    summary_mask = [joined(batches, f"{n}_summary_mask").reshape(-1, 3 * config.channels) for n in ("event", "query")]
    codes = config.vocabulary
    return {
        "masked": frequencies(batches, ["masked_target"], codes),
        "next": frequencies(batches, ["event_next", "query_next"], codes),
        "later": logit(share(occurs.sum((0, 1)), known.sum((0, 1))[None])),
        "recall": logit(share(seen.sum((0, 1)), real.sum())),
        "channel": mean_where(joined(batches, "wear"), joined(batches, "observed"), (0, 1, 2)),
        "summary": mean_where(np.concatenate(summary), np.concatenate(summary_mask), 0),
        "past": mean_where(joined(batches, "query_past"), joined(batches, "query_past_mask"), (0, 1)),
    }


def constants(fitted, batch, config):
    """Outputs of a model that knows rates and means only."""

    def everywhere(value, *lead):
        return jnp.broadcast_to(jnp.asarray(value, jnp.float32), (batch["token"].shape[0], *lead, *np.shape(value)))

    n = {name: batch[field].shape[1] for name, field in (("masked", "masked_position"), ("event", "event_position"),
                                                         ("query", "query_time"), ("window", "window_position"),
                                                         ("pair", "pair_patient"))}  # fmt: skip
    ahead, steps = config.future_windows, config.steps
    unit = everywhere(np.array([1.0]), n["pair"])
    out = {f"next_logits_{k}": everywhere(fitted["next"], n[k]) for k in ("event", "query")}
    out |= {f"pooled_logits_{k}": everywhere(fitted["next"], n[k]) for k in ("event", "query")}
    out |= {f"summary_{k}": everywhere(fitted["summary"], n[k]) for k in ("event", "query")}
    out |= {f"ahead_{k}": everywhere(fitted["channel"], n[k], ahead, steps) for k in ("window", "query")}
    return out | {
        "masked_logits": everywhere(fitted["masked"], n["masked"]),
        "later_logits": everywhere(fitted["later"], n["query"]),
        "recall_logits": everywhere(fitted["recall"], n["query"]),
        "rebuilt": everywhere(fitted["channel"], n["window"], steps),
        "past_summary": everywhere(fitted["past"], n["query"]),
        "pair_ehr": unit, "pair_wear": unit, "temperature": jnp.float32(1.0),
    }  # fmt: skip


def last_values(fitted, batch, config):
    """Outputs of a model that repeats the last known value of each channel, the mean where there is none."""
    out = constants(fitted, batch, config)
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
    shape = np.asarray(out["ahead_query"]).shape
    return out | {
        "ahead_window": jnp.broadcast_to(last_BxWxC[:, :, None, None], out["ahead_window"].shape),
        "ahead_query": jnp.broadcast_to(at_query[:, :, None, None], shape),
        "summary_query": jnp.asarray(past, jnp.float32),
    }


def main(config_file, workdir, n_subjects=None, steps=None, variant="contrast", *models):
    config = runpy.run_path(config_file)["get_config"](variant)
    if steps:
        config.simulate.n_subjects, config.train.steps = int(n_subjects), int(steps)
    config.train.update({"validate_every": config.train.steps, "validate_batches": 64})
    config.context.colocated_days = 30.0  # simulated events are sparse
    workdir = Path(workdir)
    stages.run(config, workdir, ["prepare"])
    options, model_options = config_lib.train_config(config), config_lib.model_options(config)
    ramps = {
        name: schedules.Ramp(r.start, r.end, min(r.steps, options.steps // 4)) for name, r in options.weights.items()
    }
    options = dataclasses.replace(options, weights=ramps)
    context = config_lib.context_config(config, "joint")
    people, tuning = (pipeline.Patients(prepare.open_store(workdir, "all", s), context) for s in ("train", "tuning"))
    models = models or ("model", "detached")
    for name in models:
        folder, detached = workdir / name, name == "detached"
        train.pretrain(folder, people, tuning, model_options | {"detach_cross_modal": detached}, options)
    result = {}
    for name in models:
        folder = workdir / name
        lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
        final = next(x for x in reversed(lines) if "validation/loss/total" in x)
        result[name] = {k.removeprefix("validation/loss/"): v for k, v in final.items() if "validation/loss/" in k}
    model_config = train.make_model(people, model_options).config
    seen = pipeline.train_batches(pipeline.TrainRows(people, config.seed), options.batch_size, n_steps=40, threads=0)
    fitted = fit(list(seen), model_config)
    held = train._validation_batches(tuning, options, train.sharding.make_mesh())
    rate = np.clip(np.reshape(model_config.later_rates, (model_config.future_codes, -1)), 0.01, 0.99)
    entropy = {"later_entropy": jnp.asarray(-rate * np.log(rate) - (1 - rate) * np.log1p(-rate), jnp.float32)}
    terms = {t: 1.0 for t in losses.TERMS if t in result["model"] and t not in ("content_norm", "latent_kl")}
    for name, predictor in (("constant", constants), ("last_value", last_values)):
        values = [losses.total(predictor(fitted, b, model_config) | entropy, b, terms)[1] for b in held]
        result[name] = {t: float(np.mean([v[f"loss/{t}"] for v in values])) for t in terms}
    (workdir / "learning.json").write_text(json.dumps(result, indent=1))
    for term in terms:
        print(f"{term:12s}", *(f"{name} {result[name][term]:.4f}" for name in result))


if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()  # grain reads flags
    jax.config.update("jax_platforms", "cpu")
    main(*sys.argv[1:])
