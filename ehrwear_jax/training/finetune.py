"""Fine-tunes a trained model for one task beside its frozen probe: a head and, by the mode, what the model may change.

    head     nothing: the frozen model, as a control
    lora     low-rank updates of kernels (models/layers/lora.py)
    adapter  bottlenecks behind the backbone's sublayers, where the family has them
    full     every parameter that z depends on
    scratch  as full, from parameters that nobody trained (training/scratch.py): "trained" below then means initial

Training starts from the frozen probe, the head first and then both, which distorts z less than a random head does
(Kumar et al. 2022). So step 0 is the model that fine-tuning is compared with, and what early stopping returns if
nothing is better on the tuning split. It is a task of the training loop like pretraining, and resumes like it.

Array suffixes: N labelled prediction times, D features, B rows of a batch, S slots of a row.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import polars as pl
from flax import traverse_util

from ehrwear_jax.config.training import FINETUNE_CHOICES, SCRATCH, FinetuneConfig, TrainConfig
from ehrwear_jax.evals import cox, probes
from ehrwear_jax.evals.trained_probes import efron_loss
from ehrwear_jax.models.family import Examples
from ehrwear_jax.models.layers import lora
from ehrwear_jax.runtime import files
from ehrwear_jax.training import embedding, schedules, sharding, step
from ehrwear_jax.training.labelled_batches import EVENT, LABEL, OUTCOME, TIME, VALID, LabelledBatches, is_survival
from ehrwear_jax.training.loop import Job, fit
from ehrwear_jax.training.optimizer import decayed
from ehrwear_jax.training.pretrain import Model, make_task
from ehrwear_jax.training.throughput import Throughput

Probe = probes.LogisticProbe | cox.CoxModel
WHOLE = ("full", SCRATCH)
SURVIVAL_COLUMNS = ("time_to_event_days", "event_observed")


# ------------------------------------------------------------------------------------------------ the task


@dataclasses.dataclass(frozen=True)
class FinetuneTask:
    """A trained network with a head (training/step.py, Task).

    Its parameters are {"model": what the mode lets change, "head"}; frozen are {"params", "collections"} of the trained
    model and "probe", what of the frozen probe does not change.

    Attributes:
      network: with adapters if the mode has them. mode, config: of fine-tuning.
      start: {"model", "head"} at step 0.
    """

    network: nn.Module
    mode: str
    config: FinetuneConfig
    start: Any
    axes: Mapping[str, tuple[str | None, ...]] = dataclasses.field(default_factory=dict)

    @property
    def objective(self) -> "LabelObjective":
        """The loss of the labels."""
        return LabelObjective()

    def init(self, key: jax.Array) -> tuple[dict, dict]:
        """The start; the key draws nothing."""
        del key
        return jax.tree.map(jnp.asarray, self.start), {}

    def apply(
        self, params: dict, collections: dict, frozen: Any, batch: dict, dropout_key: jax.Array | None
    ) -> tuple[Any, dict]:
        """({"output": logits or log-hazards [B, S], "penalty": of the head}, no collections)."""
        # statistics that follow batches belong to the trained model: a network that has some is as at inference
        still = dropout_key is None or self.mode == "head" or not self.config.dropout or bool(frozen["collections"])
        variables = {"params": self.merged(frozen["params"], params["model"]), **frozen["collections"]}
        inputs = {k: v for k, v in batch.items() if not k.startswith(LABEL)}
        rngs = None if dropout_key is None or still else {"dropout": dropout_key}
        z_BxSxD: Any = self.network.apply(variables, inputs, deterministic=still, method="encode", rngs=rngs)
        # the probe's own objective, so that the head starts at its optimum
        penalty = frozen["probe"]["l2"] / 2 * jnp.sum(params["head"]["coef"] ** 2)
        return {"output": head_outputs(params["head"], frozen["probe"], z_BxSxD), "penalty": penalty}, collections

    def merged(self, params: Any, changed: Any) -> Any:
        """The model's parameters with what has become of the start in its place; nothing else changes a bit."""
        if self.mode == "lora":
            return lora.merge(params, changed, self.config.alpha / self.config.rank)
        return traverse_util.unflatten_dict(traverse_util.flatten_dict(params) | traverse_util.flatten_dict(changed))


class LabelObjective:
    """Mean log loss of labelled slots, or their -log partial likelihood (Efron) per time, the batch as risk set."""

    def weights(self, at: jax.Array | int) -> dict[str, float]:
        """One term."""
        del at
        return {"labels": 1.0}

    def normalisers(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Labelled slots."""
        return {"labels": jnp.maximum(batch[VALID].sum(), 1)}

    def __call__(
        self, out: Any, batch: Mapping[str, jax.Array], weights: Mapping[str, Any], normalisers: Mapping[str, Any]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(loss with the head's penalty, {"loss/total": without it})."""
        del weights
        value = label_loss(out["output"], batch, normalisers["labels"])
        return value + out["penalty"], {"loss/total": value}


def label_loss(eta_BxS: jax.Array, batch: Mapping[str, jax.Array], count: jax.Array) -> jax.Array:
    """Loss of logits, or of log-hazards where the batch has times and events."""
    valid = batch[VALID]
    if OUTCOME in batch:
        loss = jnp.logaddexp(0.0, eta_BxS) - batch[OUTCOME] * eta_BxS
        return jnp.where(valid, loss, 0.0).sum() / count
    # empty slots leave before everybody else: they are in no risk set
    time = jnp.where(valid, batch[TIME], -1.0).ravel()
    order = jnp.argsort(time)
    eta = jnp.where(valid, eta_BxS, jnp.finfo(jnp.float32).min).ravel()[order]
    return efron_loss(eta, time[order], (valid & batch[EVENT]).ravel()[order]) * (valid.size / count)


# ------------------------------------------------------------------------------------------------ what may change


def _start_model(network, spec, params, mode, config, seed):
    """What the mode lets change in the model, at its start: "head" nothing, "lora" as lora.init, else nested leaves."""
    if mode == "head":
        return {}
    key = jax.random.key(seed)
    if mode == "lora":
        return lora.init(key, params, step.parameter_axes(network, spec), config.kernels, config.rank)

    def read_by_z():
        found = step.split_variables(network.init(key, spec.empty(1), method="encode"))[0]
        return traverse_util.flatten_dict(found, sep="/")

    given, read = traverse_util.flatten_dict(params, sep="/"), list(jax.eval_shape(read_by_z))
    if mode in WHOLE:
        chosen = {name: given[name] for name in read}
    else:  # what the trained model does not have
        new = [name for name in read if name not in given]
        chosen = jax.jit(lambda: {name: x for name, x in read_by_z().items() if name in new})()
    return traverse_util.unflatten_dict(chosen, sep="/")


def make_optimizer(config: FinetuneConfig, mode: str) -> optax.GradientTransformation:
    """AdamW for {"model", "head"}, with a learning rate for each."""

    def adamw(peak, weight_decay):
        rate = schedules.learning_rate(peak, config.warmup_steps, config.steps)
        return optax.adamw(rate, weight_decay=weight_decay, mask=decayed)

    peak = config.full_learning_rate if mode in WHOLE else config.learning_rate
    parts = {"model": adamw(peak, config.weight_decay), "head": adamw(config.head_learning_rate, 0.0)}

    def labels(trained):
        return {name: jax.tree.map(lambda _, name=name: name, part) for name, part in trained.items()}

    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optax.partition(parts, labels))


# ------------------------------------------------------------------------------------------------ the head


def _start_head(probe):
    head = {"coef": np.asarray(probe.coef_D, np.float32)}
    # a Cox model has no intercept: the likelihood does not depend on it
    return head | ({"intercept": np.float32(probe.intercept)} if hasattr(probe, "intercept") else {})


def _constants(probe):
    """What of the probe does not change: the standardisation of the frozen features, and the strength of L2."""
    s = probe.standardizer
    scale_D = np.where(s.varies_D, 1.0 / s.scale_D, 0.0)
    return jax.tree.map(np.float32, {"mean": s.mean_D, "scale": scale_D, "l2": probe.l2})


def head_outputs(head: Mapping[str, jax.Array], constants: Mapping[str, jax.Array], z_BxSxD: jax.Array) -> jax.Array:
    """What the probe makes of z with the head's coefficients: logits or log-hazards, float32 [B, S]."""
    standardised = (z_BxSxD - constants["mean"][None, None]) * constants["scale"][None, None]
    return standardised @ head["coef"] + head.get("intercept", 0.0)


def _with_head(probe, head):
    """The probe with the trained coefficients."""
    fields: dict[str, Any] = {"coef_D": np.asarray(head["coef"], np.float64)}
    if "intercept" in head:
        fields["intercept"] = float(head["intercept"])
    return dataclasses.replace(probe, **fields)


def tuning_loss(probe: Probe, z_NxD: np.ndarray, times: pl.DataFrame) -> float:
    """The loss that early stopping looks at: mean log loss, or -log partial likelihood per event, in float64."""
    if not np.isfinite(z_NxD).all():
        return math.nan
    if isinstance(probe, probes.LogisticProbe):
        return probes.log_loss(times["boolean_value"].to_numpy().astype(np.float64), probe.logit(z_NxD))
    likelihood = cox.PartialLikelihood(times["time_to_event_days"], times["event_observed"])
    return -likelihood.value(probe.log_hazard(z_NxD)) / max(likelihood.n_events, 1)


def fit_probe(times: Mapping[str, pl.DataFrame], z_by_split: Mapping[str, np.ndarray]) -> Probe:
    """The frozen probe of a task, fitted on train with its strength chosen on tuning.

    Raises:
      ValueError: one class, or no event.
    """
    z_train, z_tuning = z_by_split["train"], z_by_split["tuning"]
    if is_survival(times["train"]):
        days, seen = ([_column(times[s], c) for s in ("train", "tuning")] for c in SURVIVAL_COLUMNS)
        return cox.fit_cox(z_train, days[0], seen[0], z_tuning, days[1], seen[1])
    y_train, y_tuning = (_column(times[s], "boolean_value") for s in ("train", "tuning"))
    return probes.fit_logistic(z_train, y_train, z_tuning, y_tuning)


def _column(table, name):
    return table[name].cast(pl.Float64).to_numpy()


# ------------------------------------------------------------------------------------------------ the run


@dataclasses.dataclass(frozen=True)
class Finetuned:
    """What fine-tuning found at its best step.

    Attributes:
      params: the model's, with what changed in its place. encode: batch -> z [B, S, D] on the host.
      probe: the head on z, a probes.LogisticProbe or a cox.CoxModel.
      n_trained: {"model", "head"}: numbers that could change.
      best_step, last_step: of the lowest loss on the tuning split; the last one that was done.
      drift: mean squared change of z at the tuning times over z's variance there, both summed over features.
    """

    params: dict
    encode: embedding.Encoder
    probe: Probe
    n_trained: dict
    best_step: int
    last_step: int
    drift: float

    def predict(self, examples: Examples, times: pl.DataFrame, batch_size: int) -> np.ndarray:
        """P(y = 1), or the log-hazard, at each time (subject_id, prediction_time): float64 [N]."""
        z_NxD = embedding.embed(self.encode, examples, times, batch_size)
        if isinstance(self.probe, probes.LogisticProbe):
            return self.probe.predict_proba(z_NxD)
        return self.probe.log_hazard(z_NxD)


@dataclasses.dataclass(frozen=True)
class Source:
    """A trained model and what a task knows of it.

    Attributes:
      model: what it is. examples: of all people. variables: {"params", "collections"}.
      times: {"train", "tuning": subject_id, prediction_time (datetime us) and boolean_value, or time_to_event_days and
        event_observed}. z_by_split: {"train", "tuning": z at these times by the trained model}.
    """

    model: Model
    examples: Examples
    variables: dict
    times: Mapping[str, pl.DataFrame]
    z_by_split: Mapping[str, np.ndarray]


def adapted(model: Model, config: FinetuneConfig, mode: str) -> Model:
    """The model that is fine-tuned: the trained one, with adapters if the mode has them.

    Raises:
      ValueError: the family has no adapters.
    """
    if mode != "adapter":
        return model
    if not hasattr(model.module, "adapted"):
        raise ValueError(f"the family {model.family} has no adapters; fine-tune {model.name} in another mode")
    return dataclasses.replace(model, config=model.module.adapted(model.config, config.adapter_width))


def finetune(folder: str | Path, source: Source, config: FinetuneConfig, mode: str) -> Finetuned:
    """Fine-tunes a trained model for one binary or survival task; resumes from the folder.

    Raises:
      ValueError: the frozen probe cannot be fitted (one class, no event), or nothing matches config.kernels.
      RunError: as training/loop.py.
    """
    folder, seed = Path(folder), source.model.seed
    probe = fit_probe(source.times, source.z_by_split)
    # rows over this process's devices, each with the whole model
    mesh = sharding.make_mesh(jax.local_devices()[: math.gcd(config.batch_size, jax.local_device_count())])
    network = make_task(adapted(source.model, config, mode), source.examples.spec, mesh).network
    params = jax.device_get(source.variables["params"])
    start = {
        "model": jax.device_get(_start_model(network, source.examples.spec, params, mode, config, seed)),
        "head": _start_head(probe),
    }
    task = FinetuneTask(network, mode, config, start)
    frozen = {"params": params, "collections": source.variables["collections"], "probe": _constants(probe)}
    frozen = jax.device_put(frozen, sharding.replicated(mesh))
    batches = LabelledBatches(source.examples, source.times["train"], config.batch_size, seed)
    looks = _Looks(source, task, frozen, probe, mesh)
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in FINETUNE_CHOICES}
    job = Job(
        folder=folder,
        task=task,
        optimizer=make_optimizer(config, mode),
        config=_train_config(config),
        seed=seed,
        mesh=mesh,
        frozen=frozen,
        batches=batches.since,
        validate=lambda state: {"validation/loss/total": looks.loss(state["params"])},
        throughput=lambda begin: Throughput(source.examples.counts, lambda counts: 0.0, mesh, begin),
        subjects=lambda done: sorted(set(source.times["train"]["subject_id"].gather(batches.chosen(done - 1)))),
        about={"model": source.model.identity(), "finetune": settings, "mode": mode,
               "labels": _digest(source.times)},
    )  # fmt: skip
    state, done = fit(job)
    return _found(source, looks, state, done)


def _train_config(config):
    """Options of the loop."""
    return TrainConfig(
        steps=config.steps,
        batch_size=config.batch_size,
        validate_every=config.validate_every,
        checkpoint_every=config.validate_every,
        patience=config.patience,
        log_every=config.validate_every,
        keep=1,
    )


def _digest(times):
    """Of the labels."""
    return {split: files.digest(table.sort(table.columns[:2]).write_csv()) for split, table in times.items()}


class _Looks:
    """z of what is being fine-tuned at labelled times, and its loss on the tuning split."""

    def __init__(self, source, task, frozen, probe, mesh) -> None:
        self.source, self.task, self.probe, self.mesh, self._frozen = source, task, probe, mesh, frozen
        self._merge = jax.jit(task.merged)
        self._encode = jax.jit(functools.partial(task.network.apply, method="encode"))

    def whole(self, changed):
        """The model's parameters."""
        return self._merge(self._frozen["params"], changed)

    def encoder(self, changed):
        """batch -> z on the host."""
        variables = {"params": self.whole(changed), **self._frozen["collections"]}
        return lambda batch: np.asarray(self._encode(variables, sharding.device_batch(batch, self.mesh)))

    def latents(self, changed, split):
        """z at the times of a split."""
        source, size = self.source, self.task.config.batch_size
        return embedding.embed(self.encoder(changed), source.examples, source.times[split], size)

    def loss(self, params):
        """The tuning loss."""
        head = _with_head(self.probe, jax.device_get(params["head"]))
        return tuning_loss(head, self.latents(params["model"], "tuning"), self.source.times["tuning"])


def _found(source, looks, state, done):
    best, best_step = step.best_variables(state)["params"], int(state["best"]["step"])
    # of step 0 it is the given probe, digit for digit
    probe = looks.probe if best_step == 0 else _with_head(looks.probe, jax.device_get(best["head"]))
    z_new, z_old = looks.latents(best["model"], "tuning"), np.asarray(source.z_by_split["tuning"])
    train = source.times["train"]
    if best_step and is_survival(train):
        labels = train["time_to_event_days"], train["event_observed"]
        baseline = cox.breslow(*labels, probe.log_hazard(looks.latents(best["model"], "train")))
        probe = dataclasses.replace(probe, event_times_T=baseline[0], cumulative_hazard_T=baseline[1])
    variance = max(np.var(z_old, axis=0).sum(), np.finfo(np.float32).tiny)
    drift = float(np.square(z_new - z_old).sum(axis=1).mean() / variance)
    n_trained = {name: sum(x.size for x in jax.tree.leaves(part)) for name, part in state["params"].items()}
    whole = looks.whole(best["model"])
    return Finetuned(whole, looks.encoder(best["model"]), probe, n_trained, best_step, done, drift)
