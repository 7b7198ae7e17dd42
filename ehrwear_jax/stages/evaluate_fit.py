"""Fits what predicts a task on frozen features, one model and one fold at a time: probes, models on tables.

Where a time-to-event task has competing events, a second, cause-specific hazard is fitted to them on the same features,
and the predicted curves are 1 less the cumulative incidence that follows from both.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ehrwear_jax.config.evaluation import EvaluateConfig
from ehrwear_jax.evals import cox, probes, protocol, stacking, trained_probes
from ehrwear_jax.evals.cox import Hazard
from ehrwear_jax.models.tabular import family as tabular
from ehrwear_jax.stages.tasks import BINARY, SURVIVAL

Split = Mapping[str, np.ndarray]  # {"train", "tuning", "held_out": [N, ...]}


@dataclasses.dataclass(frozen=True)
class Fitted:
    """Predictions of one fold: probability, log-hazard or value, float64 [N].

    Attributes:
      held_out, tuning: of the two splits.
      curve_NxT: P(no event by each time) of the held-out rows of a survival task, under its competing events.
      seeds_SxN: held-out predictions by seed of the probe, where it has seeds.
      l2: strength of the penalty, where there is one.
    """

    held_out: np.ndarray
    tuning: np.ndarray
    curve_NxT: np.ndarray | None = None
    seeds_SxN: np.ndarray | None = None
    l2: float | None = None


def probe(
    config: EvaluateConfig,
    kind: str,
    x: Split,
    target: Mapping[str, Any],
    times_T: npt.ArrayLike = (),
    competing: Split | None = None,
) -> Fitted:
    """The probe of config.evaluate on frozen features.

    Args:
      kind: BINARY, SURVIVAL or REGRESSION.
      x: float [N, D] by split.
      target: labels [N] by split; of a survival task (time [N], event [N]).
      times_T: days at which survival curves are wanted.
      competing: of a survival task, whether a competing event came first, bool [N] by split; None: for nobody.
    """
    if config.probe == "adam":
        return _trained(config, kind, x, target, times_T, competing)
    return exact(kind, x, target, times_T, competing)


def exact(
    kind: str, x: Split, target: Mapping[str, Any], times_T: npt.ArrayLike = (), competing: Split | None = None
) -> Fitted:
    """Logistic regression, Cox or ridge, solved; the penalty is chosen on the tuning split."""
    model = exact_model(kind, x, target)
    if isinstance(model, probes.LogisticProbe):
        return Fitted(model.predict_proba(x["held_out"]), model.predict_proba(x["tuning"]), l2=model.l2)
    if isinstance(model, probes.RidgeProbe):
        return Fitted(model.predict(x["held_out"]), model.predict(x["tuning"]), l2=float(model.l2_K[0]))
    held_out, tuning = (model.log_hazard(x[split]) for split in ("held_out", "tuning"))
    curve = model.survival(x["held_out"], times_T)
    if other := competing_hazard(x, target, competing):
        curve = cox.event_free(Hazard(held_out, *baseline(model)), other, times_T)
    return Fitted(held_out, tuning, curve, l2=model.l2)


def exact_model(
    kind: str, x: Split, target: Mapping[str, Any]
) -> probes.LogisticProbe | cox.CoxModel | probes.RidgeProbe:
    """What `exact` predicts with, beside the competing hazard of a survival task."""
    if kind == BINARY:
        return protocol.predict_binary(x, target).model
    if kind == SURVIVAL:
        return protocol.predict_survival(x, *({s: target[s][k] for s in target} for k in (0, 1))).model
    return probes.fit_ridge(x["train"], target["train"], x["tuning"], target["tuning"])


def tuning_loss(kind: str, fitted: Fitted, target: Mapping[str, Any]) -> float:
    """How badly tuning people are predicted, by what the strengths of probes are chosen by.

    The mean log loss; of a survival task the negative log partial likelihood of an event, of a regression the mean
    squared error. Arguments as in `probe`.
    """
    observed = target["tuning"]
    if kind == BINARY:
        return probes.log_loss(observed, stacking.log_odds(fitted.tuning))
    if kind == SURVIVAL:
        likelihood = cox.PartialLikelihood(*observed)
        return -likelihood.value(fitted.tuning) / likelihood.n_events
    return float(np.mean((fitted.tuning - observed) ** 2))


def competing_hazard(x: Split, target: Mapping[str, Any], competing: Split | None) -> Hazard | None:
    """The cause-specific hazard of the competing events of the held-out rows, None where none is in training."""
    model = competing_model(x, target, competing)
    return None if model is None else Hazard(model.log_hazard(x["held_out"]), *baseline(model))


def baseline(model: cox.CoxModel) -> tuple[np.ndarray, np.ndarray]:
    """(Times, cumulative hazard) of a Cox model at log-hazard zero."""
    return model.event_times_T, model.cumulative_hazard_T


def competing_model(x: Split, target: Mapping[str, Any], competing: Split | None) -> cox.CoxModel | None:
    """What `competing_hazard` predicts with.

    A ridge Cox model of the features; without a competing event in the tuning split, which would choose its strength,
    the hazard of the training rows without covariates: coefficients of zero.
    """
    if competing is None or not competing["train"].any():
        return None
    if competing["tuning"].any():
        return protocol.predict_survival(x, {s: target[s][0] for s in target}, competing).model
    hazard = cox.breslow(target["train"][0], competing["train"], np.zeros(len(competing["train"])))
    none_D = np.zeros(x["train"].shape[1])
    return cox.CoxModel(probes.Standardizer(none_D, none_D + 1, none_D > 0), none_D, np.inf, {}, *hazard)


Probe = probes.LogisticProbe | cox.CoxModel | probes.RidgeProbe | trained_probes.TrainedProbe


def probe_model(config: EvaluateConfig, kind: str, x: Split, target: Mapping[str, Any]) -> Probe:
    """What `probe` predicts with, beside the competing hazard of a survival task."""
    return trained_probe(config, kind, x, target) if config.probe == "adam" else exact_model(kind, x, target)


def trained_probe(
    config: EvaluateConfig, kind: str, x: Split, target: Mapping[str, Any]
) -> trained_probes.TrainedProbe:
    """The paper's training."""
    settings = trained_probes.ProbeSettings(hidden=config.probe_hidden, seeds=tuple(config.probe_seeds))
    return trained_probes.fit_probe(kind, x["train"], target["train"], x["tuning"], target["tuning"], settings)


def _trained(config, kind, x, target, times_T, competing):
    """The paper's training; predictions are averaged over the seeds (of survival: the log-hazards)."""
    model = trained_probe(config, kind, x, target)
    predict = model.predict_proba if kind == BINARY else model.output
    seeds_SxN = predict(x["held_out"])
    curve = model.survival(x["held_out"], times_T).mean(0) if kind == SURVIVAL else None
    if kind == SURVIVAL and (other := competing_hazard(x, target, competing)):
        hazards = [Hazard(eta_N, *b) for eta_N, b in zip(seeds_SxN, model.baselines, strict=True)]
        curve = np.mean([cox.event_free(h, other, times_T) for h in hazards], axis=0)
    return Fitted(seeds_SxN.mean(0), predict(x["tuning"]).mean(0), curve, seeds_SxN, float(np.median(model.l2_S)))


def from_table(
    config: tabular.Config,
    kind: str,
    features: tabular.Table,
    target: Mapping[str, Any],
    times_T: npt.ArrayLike = (),
    competing: Split | None = None,
) -> Fitted:
    """A model on hand-made features: probabilities, log-hazards or values; survival curves as `finetuned` has them.

    Their baseline is that of the tuning split, of linear models too: what has so many features knows its own training
    rows better than others.
    """
    return _of_scores(kind, tabular.scores(config, kind, features, target), target, times_T, competing)


def stacked(
    kind: str,
    members: Sequence[Fitted],
    target: Mapping[str, Any],
    times_T: npt.ArrayLike = (),
    competing: Split | None = None,
    weights: str = "fitted",
) -> tuple[Fitted, np.ndarray]:
    """(predictions of several models combined, the weight of each [K]); curves as `from_table` has them.

    Args:
      members: predictions of one fold. weights: of stacked.Config; see evals/stacking.py for what is fitted on the
        tuning split.
    """
    x = {s: np.stack([getattr(m, s) for m in members], axis=1) for s in ("tuning", "held_out")}
    if kind == BINARY:
        x = {s: stacking.log_odds(p_NxK) for s, p_NxK in x.items()}
    equal = weights == "equal"
    stack = stacking.mean_stack(kind, x["tuning"]) if equal else stacking.fit_stack(kind, x["tuning"], target["tuning"])
    scores = {s: stack(x_NxK) for s, x_NxK in x.items()}
    return _of_scores(kind, scores, target, times_T, competing), stack.weight_K


def _of_scores(kind, found, target, times_T, competing):
    """Predictions of log-odds, log-hazards or values of "tuning" and "held_out", with the tuning split's baseline."""
    if kind == BINARY:
        return Fitted(probes.sigmoid(found["held_out"]), probes.sigmoid(found["tuning"]))
    target = {**target, "train": target["tuning"]}
    competing = {**competing, "train": competing["tuning"]} if competing is not None else None
    return finetuned(kind, {**found, "train": found["tuning"]}, target, times_T, competing)


def finetuned(
    kind: str, found: Split, target: Mapping[str, Any], times_T: npt.ArrayLike = (), competing: Split | None = None
) -> Fitted:
    """Predictions of a model as they are; survival curves with the training split's baseline hazard.

    The hazard of competing events is a Cox model whose one feature is the model's log-hazard.
    """
    curve = None
    if kind == SURVIVAL:
        time, event = target["train"]
        times, hazard = cox.breslow(time, event, found["train"])
        baseline_T = np.concatenate([[0.0], hazard])[np.searchsorted(times, np.asarray(times_T, np.float64), "right")]
        curve = np.exp(-np.exp(found["held_out"])[:, None] * baseline_T)
        if other := competing_hazard({s: v[:, None] for s, v in found.items()}, target, competing):
            curve = cox.event_free(Hazard(found["held_out"], times, hazard), other, times_T)
    return Fitted(found["held_out"], found["tuning"], curve)


def training_mean(target: Mapping[str, np.ndarray]) -> Fitted:
    """The null model of a regression: the mean of the training split."""
    mean = float(np.mean(target["train"]))
    held_out, tuning = (np.full(len(target[s]), mean) for s in ("held_out", "tuning"))
    return Fitted(held_out, tuning)
