"""Fine-tuning beside frozen probes: a linear head and, by the mode, what the model may change.

    head     nothing: the frozen model, as a control
    lora     low-rank updates of the backbone's kernels (models/lora.py)
    adapter  bottlenecks behind the backbone's sublayers (models/backbone.Adapter)
    full     every parameter that z depends on

Training starts from the frozen probe, the head first and then both, which distorts z less than a random head does
(Kumar et al. 2022). So step 0 is the row that fine-tuning is compared with, and what early stopping returns if nothing
is better on the tuning split. Batches and dropout are functions of (seed, step).

Array suffixes: N reads, D features, B rows of a batch, Q reads in a row.
"""

import dataclasses
import functools
import itertools
import logging
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import polars as pl
from flax import traverse_util

from ehrwear_jax.evals import cox, probes
from ehrwear_jax.evals.trained_probes import efron_loss
from ehrwear_jax.models.joint import batch as batch_lib
from ehrwear_jax.models.joint import examples as pipeline
from ehrwear_jax.models.layers import lora
from ehrwear_jax.training import embedding, schedules, sharding, train
from ehrwear_jax.training.optimizer import decayed

MODES = ("head", "lora", "adapter", "full")
# z does not depend on it, but it is made with the table that z does depend on
NOT_READ = ("ehr/bias",)


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """How one model is fine-tuned for one task.

    Attributes:
      mode: one of MODES.
      steps, warmup_steps: at most so many; a linear warmup, then a cosine.
      batch_size: rows of a batch, each of which holds as many reads as its contexts leave room for.
      learning_rate: peak, of low-rank updates and adapters, which are new. full_learning_rate: of pretrained
        parameters. head_learning_rate: of the head, in units of its standardised features.
      weight_decay: of kernels, as in pretraining; low-rank updates have none. clip_norm: of the whole gradient.
      dropout: as in pretraining; never in mode head, whose model is frozen.
      validate_every, patience: steps between looks at the tuning split; looks without a better loss before the end.
      rank, alpha: of low-rank updates, which are scaled by alpha / rank. kernels: which, by their whole path.
      adapter_width: hidden units of an adapter.
    """

    mode: str
    steps: int = 400
    warmup_steps: int = 20
    batch_size: int = 16
    learning_rate: float = 3e-4
    full_learning_rate: float = 1e-5
    head_learning_rate: float = 1e-3
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    dropout: bool = True
    validate_every: int = 20
    patience: int = 5
    rank: int = 8
    alpha: float = 16.0
    kernels: str = "backbone/blocks/(query|key|value|out|up|down)/kernel"
    adapter_width: int = 32
    seed: int = 0

    def __post_init__(self):
        if self.mode not in MODES:
            raise ValueError(f"unknown mode of fine-tuning {self.mode!r}; it can be {', '.join(MODES)}")
        sizes = (self.steps, self.batch_size, self.validate_every, self.patience, self.rank, self.adapter_width)
        if min(sizes) < 1:
            raise ValueError(f"steps, sizes and patience of fine-tuning must be positive: {self}")


@dataclasses.dataclass(frozen=True)
class Finetuned:
    """What fine-tuning found at its best step.

    Attributes:
      params: the model's, with low-rank updates merged and adapters in their places.
      encode: batch -> z_BxQxD on the host, as embedding.make_encoder.
      probe: the head on z, a probes.LogisticProbe or a cox.CoxModel.
      n_trained: {"model", "head"}: numbers that could change.
      best_step, last_step: of the lowest loss on the tuning split; the last one that was done.
      history: [{"step", "train_loss", "tuning_loss", "skipped"}]; the first is the frozen probe.
      drift: mean squared change of z on the tuning reads over z's variance there, both summed over features.
    """

    params: dict
    encode: Callable
    probe: probes.LogisticProbe | cox.CoxModel
    n_trained: dict
    best_step: int
    last_step: int
    history: list
    drift: float

    def predict(self, patients, reads, batch_size):
        """P(y = 1), or the log-hazard, of each row of reads (subject_id, prediction_time): float64 [N]."""
        z_NxD = embedding.embed(self.encode, patients, reads, batch_size)
        binary = isinstance(self.probe, probes.LogisticProbe)
        return self.probe.predict_proba(z_NxD) if binary else self.probe.log_hazard(z_NxD)


# ------------------------------------------------------------------------------------------------ what may change


def adapted_options(model_options, config):
    """The options of the model that is fine-tuned: those of the pretrained one, with adapters if the mode has them."""
    return model_options | ({"adapter_width": config.adapter_width} if config.mode == "adapter" else {})


def trainable(model, params, example, config):
    """What the mode lets change in the model, at its start: "head" nothing, "lora" as lora.init, else nested leaves.

    Args:
      params: of the pretrained model. example: a batch.
    """
    if config.mode == "head":
        return {}
    key = jax.random.key(config.seed)
    if config.mode == "lora":
        return lora.init(key, params, config.kernels, config.rank)

    def read_by_z():
        return traverse_util.flatten_dict(model.init(key, example, method="encode")["params"], sep="/")

    given = traverse_util.flatten_dict(params, sep="/")
    read = [name for name in jax.eval_shape(read_by_z) if name not in NOT_READ]
    if config.mode == "full":
        chosen = {name: given[name] for name in read}
    else:  # what the pretrained model does not have
        new = [name for name in read if name not in given]
        chosen = jax.jit(lambda: {name: x for name, x in read_by_z().items() if name in new})()
    return traverse_util.unflatten_dict(chosen, sep="/")


def merged(params, changed, config):
    """The model's parameters with what `trainable` has become in its place; nothing else changes a bit."""
    if config.mode == "lora":
        return lora.merge(params, changed, config.alpha / config.rank)
    return traverse_util.unflatten_dict(traverse_util.flatten_dict(params) | traverse_util.flatten_dict(changed))


def make_optimizer(config):
    """AdamW for {"model": as `trainable`, "head"}, with a learning rate for each."""

    def adamw(peak, weight_decay):
        rate = schedules.learning_rate(peak, config.warmup_steps, config.steps)
        return optax.adamw(rate, weight_decay=weight_decay, mask=decayed)

    peak = config.full_learning_rate if config.mode == "full" else config.learning_rate
    parts = {"model": adamw(peak, config.weight_decay), "head": adamw(config.head_learning_rate, 0.0)}

    def labels(trained):
        return {name: jax.tree.map(lambda _, name=name: name, part) for name, part in trained.items()}

    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optax.partition(parts, labels))


# ------------------------------------------------------------------------------------------------ reads and their loss


def _is_survival(reads):
    return "event_observed" in reads.columns


def _labels(reads):
    """{name: float32 or bool [N]} of a label table."""
    if _is_survival(reads):
        return {
            "time": reads["time_to_event_days"].to_numpy().astype(np.float32),
            "event": reads["event_observed"].to_numpy().astype(bool),
        }
    return {"label": reads["boolean_value"].to_numpy().astype(np.float32)}


def read_batches(patients, reads, batch_size, seed):
    """Endless batches over the reads in another order each epoch, packed as pipeline.inference_batches packs them.

    Yields:
      (batch, target: "valid" bool [B, Q] and the labels [B, Q] of what each query reads, read_BxQ: rows of reads, -1).
    """
    place = {s: i for i, s in enumerate(patients.index["subject_id"].to_list())}
    place_N = np.array([place[s] for s in reads["subject_id"].to_list()], np.int64)
    time_N = reads["prediction_time"].to_physical().to_numpy()
    labels, drawn = _labels(reads), []

    def order():
        for epoch in itertools.count():
            for n in np.random.default_rng([seed, epoch]).permutation(len(place_N)):
                drawn.append(n)
                yield n

    first, second = itertools.tee(order())
    packed = pipeline.inference_batches(patients, (place_N[n] for n in first), (time_N[n] for n in second), batch_size)
    for batch, where_BxQ in packed:
        read_BxQ = np.where(where_BxQ >= 0, np.array(drawn, np.int64)[np.maximum(where_BxQ, 0)], -1)
        target = {k: v[np.maximum(read_BxQ, 0)] for k, v in labels.items()}
        yield batch, target | {"valid": read_BxQ >= 0}, read_BxQ


def read_loss(eta_BxQ, target):
    """Mean log loss of the reads, or their -log partial likelihood (Efron) per read, with the batch as risk set."""
    valid = target["valid"]
    n = jnp.maximum(valid.sum(), 1)
    if "label" in target:
        loss = jnp.logaddexp(0.0, eta_BxQ) - target["label"] * eta_BxQ
        return jnp.where(valid, loss, 0.0).sum() / n
    # empty slots leave before everybody else: they are in no risk set
    time = jnp.where(valid, target["time"], -1.0).ravel()
    order = jnp.argsort(time)
    eta = jnp.where(valid, eta_BxQ, jnp.finfo(jnp.float32).min).ravel()[order]
    return efron_loss(eta, time[order], (valid & target["event"]).ravel()[order]) * (valid.size / n)


def _evaluate(probe, z_NxD, reads):
    """The loss that early stopping looks at: mean log loss, or -log partial likelihood per event, in float64."""
    if not np.isfinite(z_NxD).all():
        return math.nan
    if not _is_survival(reads):
        return probes.log_loss(reads["boolean_value"].to_numpy().astype(np.float64), probe.logit(z_NxD))
    likelihood = cox.PartialLikelihood(reads["time_to_event_days"], reads["event_observed"])
    return -likelihood.value(probe.log_hazard(z_NxD)) / max(likelihood.n_events, 1)


# ------------------------------------------------------------------------------------------------ the head


def _start_head(probe):
    head = {"coef": jnp.asarray(probe.coef_D, jnp.float32)}
    # a Cox model has no intercept: the likelihood does not depend on it
    return head | ({"intercept": jnp.float32(probe.intercept)} if hasattr(probe, "intercept") else {})


def _constants(probe):
    """What of the probe does not change: the standardisation of the frozen features, and the strength of L2."""
    s = probe.standardizer
    scale_D = np.where(s.varies_D, 1.0 / s.scale_D, 0.0)
    return jax.tree.map(np.float32, {"mean": s.mean_D, "scale": scale_D, "l2": probe.l2})


def head_outputs(head, constants, z_BxQxD):
    """What the probe makes of z with the head's coefficients: logits or log-hazards, float32 [B, Q]."""
    standardised = (z_BxQxD - constants["mean"][None, None]) * constants["scale"][None, None]
    return standardised @ head["coef"] + head.get("intercept", 0.0)


def _with_head(probe, head):
    """The probe with the trained coefficients; of step 0 it is the given one, digit for digit."""
    fields = {"coef_D": np.asarray(head["coef"], np.float64)}
    if "intercept" in head:
        fields["intercept"] = float(head["intercept"])
    return dataclasses.replace(probe, **fields)


# ------------------------------------------------------------------------------------------------ training


def init_state(model, optimizer, params, probe, example, config, mesh):
    """The state that finetune_step takes: the mode's start and the probe's coefficients."""
    trained = {"model": trainable(model, params, example, config), "head": _start_head(probe)}
    zero = jnp.zeros((), jnp.int32)
    state = {"step": zero, "skipped": zero, "trained": trained, "optimizer": optimizer.init(trained)}
    # copies, since a step gives its state's memory, which would be that of params, to the next one
    return jax.tree.map(jnp.array, jax.device_put(state, sharding.replicated(mesh)))


def finetune_step(state, params, constants, batch, target, *, model, optimizer, config):
    """One update; a step whose loss or gradient is not finite changes nothing but the counters.

    Args:
      state: {"step", "skipped", "trained": {"model", "head"}, "optimizer"}.
      params, constants: the pretrained model's and the probe's.

    Returns:
      (state, loss of the batch without the head's L2).
    """
    key = jax.random.fold_in(jax.random.key(config.seed), state["step"])
    still = config.mode == "head" or not config.dropout

    def objective(trained):
        variables = {"params": merged(params, trained["model"], config)}
        z_BxQxD = model.apply(variables, batch, deterministic=still, method="encode", rngs={"dropout": key})[1]
        loss = read_loss(head_outputs(trained["head"], constants, z_BxQxD), target)
        # the probe's own objective, so that the head starts at its optimum
        return loss + constants["l2"] / 2 * jnp.sum(trained["head"]["coef"] ** 2), loss

    (total, loss), grads = jax.value_and_grad(objective, has_aux=True)(state["trained"])
    finite = jnp.isfinite(total) & jnp.isfinite(optax.tree.norm(grads))
    updates, optimizer_state = optimizer.update(grads, state["optimizer"], state["trained"])
    new = {"trained": optax.apply_updates(state["trained"], updates), "optimizer": optimizer_state}
    kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, {k: state[k] for k in new})
    return kept | {"step": state["step"] + 1, "skipped": state["skipped"] + ~finite}, loss


# Compiled once for all tasks: models, settings and meshes that are equal give what is there.


@functools.lru_cache(maxsize=4)
def _encode(model):
    return jax.jit(lambda params, batch: model.apply({"params": params}, batch, method="encode")[1])


@functools.lru_cache(maxsize=4)
def _step(model, config, mesh):
    """(optimizer, finetune_step, merged), the latter two compiled."""
    optimizer = make_optimizer(config)
    step = functools.partial(finetune_step, model=model, optimizer=optimizer, config=config)
    compiled = jax.jit(step, donate_argnums=0, out_shardings=sharding.replicated(mesh))
    return optimizer, compiled, jax.jit(functools.partial(merged, config=config))


def finetune(patients, params, model_options, reads, z_by_split, config):
    """Fine-tunes a pretrained model for one binary or survival task.

    Args:
      patients: pipeline.Patients that hold all subjects of reads.
      params: of the pretrained model, made with model_options.
      reads: {"train", "tuning": table of subject_id, prediction_time (datetime us) and boolean_value, or
        time_to_event_days and event_observed}.
      z_by_split: {"train", "tuning": float [N, D]}, z of these reads by the pretrained model (embedding.embed).
      config: FinetuneConfig.

    Returns:
      Finetuned.

    Raises:
      ValueError: the frozen probe cannot be fitted (one class, no event), or nothing matches config.kernels.
    """
    start = _fit_probe(reads, z_by_split)
    # rows over this process's devices, each with the whole model
    n_devices = math.gcd(config.batch_size, jax.local_device_count())
    mesh = sharding.make_mesh(jax.local_devices()[:n_devices])
    model = train.make_model(patients, adapted_options(model_options, config), mesh)
    example = batch_lib.empty_batch(patients.batch_shape(), 1)
    params = jax.device_put(jax.device_get(params), sharding.replicated(mesh))
    optimizer, step_fn, put_together = _step(model, config, mesh)
    state = init_state(model, optimizer, params, start, example, config, mesh)
    n_trained = {name: sum(x.size for x in jax.tree.leaves(part)) for name, part in state["trained"].items()}

    def encoder(whole):
        return lambda batch: np.asarray(_encode(model)(whole, sharding.device_batch(batch, mesh)))

    def features(trained, split):
        encode = encoder(put_together(params, trained["model"]))
        return embedding.embed(encode, patients, reads[split], config.batch_size)

    def look(trained):
        return _evaluate(_with_head(start, trained["head"]), features(trained, "tuning"), reads["tuning"])

    constants = _constants(start)
    best = jax.device_get(state["trained"])
    loss = look(best)
    history = [{"step": 0, "train_loss": None, "tuning_loss": loss, "skipped": 0}]
    best_step, best_loss, seen = 0, loss, []
    batches = read_batches(patients, reads["train"], config.batch_size, config.seed)
    for step in range(1, config.steps + 1):
        batch, target, _ = next(batches)
        batch, target = (sharding.device_batch(x, mesh) for x in (batch, target))
        state, loss = step_fn(state, params, constants, batch, target)
        seen.append(loss)
        if step % config.validate_every and step < config.steps:
            continue
        loss, now = look(state["trained"]), jax.device_get(state["trained"])
        of_train = float(np.mean(jax.device_get(seen)))
        history.append({"step": step, "train_loss": of_train, "tuning_loss": loss, "skipped": int(state["skipped"])})
        seen = []
        if loss < best_loss:
            best_step, best_loss, best = step, loss, now
        elif step - best_step >= config.patience * config.validate_every:
            break
    z_new, z_old = features(best, "tuning"), np.asarray(z_by_split["tuning"])
    probe = start if best_step == 0 else _with_head(start, best["head"])
    if best_step and _is_survival(reads["train"]):
        labels = reads["train"]["time_to_event_days"], reads["train"]["event_observed"]
        baseline = cox.breslow(*labels, probe.log_hazard(features(best, "train")))
        probe = dataclasses.replace(probe, event_times_T=baseline[0], cumulative_hazard_T=baseline[1])
    whole = put_together(params, best["model"])
    logging.info(
        "fine-tuning (%s): %d + %d parameters, best step %d of %d, tuning loss %.4f -> %.4f",
        config.mode, n_trained["model"], n_trained["head"], best_step, step, history[0]["tuning_loss"], best_loss,
    )  # fmt: skip
    variance = max(np.var(z_old, axis=0).sum(), np.finfo(np.float32).tiny)
    drift = float(np.square(z_new - z_old).sum(axis=1).mean() / variance)
    return Finetuned(whole, encoder(whole), probe, n_trained, best_step, step, history, drift)


def _fit_probe(reads, z_by_split):
    columns = ("time_to_event_days", "event_observed") if _is_survival(reads["train"]) else ("boolean_value",)
    fit = cox.fit_cox if _is_survival(reads["train"]) else probes.fit_logistic
    labels = {s: [reads[s][c].cast(pl.Float64).to_numpy() for c in columns] for s in ("train", "tuning")}
    return fit(z_by_split["train"], *labels["train"], z_by_split["tuning"], *labels["tuning"])
