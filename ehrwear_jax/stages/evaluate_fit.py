"""Fits the models that are evaluated on frozen features, one model and one fold at a time."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ehrwear_jax.evals import cox, probes, protocol, trained_probes
from ehrwear_jax.models.tabular import estimators

BINARY, SURVIVAL, REGRESSION = "binary", "survival", "regression"
VALUE_COLUMN = {"boolean_value": BINARY, "time_to_event_days": SURVIVAL, "float_value": REGRESSION}


@dataclasses.dataclass(frozen=True)
class Fitted:
    """Predictions of one fold: probability, log-hazard or value, float64 [N].

    Attributes:
      held_out, tuning: of the two splits.
      curve_NxT: P(no event by each time) of the held-out rows of a survival task.
      seeds_SxN: held-out predictions by seed of the probe, where it has seeds.
      l2: strength of the penalty, where there is one.
    """

    held_out: np.ndarray
    tuning: np.ndarray
    curve_NxT: np.ndarray | None = None
    seeds_SxN: np.ndarray | None = None
    l2: float | None = None


def probe(
    config: Any, kind: str, x: Mapping[str, np.ndarray], target: Mapping[str, Any], times_T: npt.ArrayLike = ()
) -> Fitted:
    """The probe of config.evaluate on frozen features.

    Args:
      kind: BINARY, SURVIVAL or REGRESSION.
      x: {split: float [N, D]} for train, tuning and held_out.
      target: {split: labels [N]}; of a survival task {split: (time [N], event [N])}.
      times_T: days at which survival curves are wanted.
    """
    if config.evaluate.probe == "adam":
        return _trained(config, kind, x, target, times_T)
    return _exact(kind, x, target, times_T)


def _exact(kind, x, target, times_T):
    if kind == BINARY:
        fitted = protocol.predict_binary(x, target)
        p = fitted.probability
        return Fitted(p["held_out"], p["tuning"], l2=fitted.l2)
    if kind == SURVIVAL:
        time, event = ({s: target[s][k] for s in target} for k in (0, 1))
        fitted = protocol.predict_survival(x, time, event)
        curve = fitted.model.survival(x["held_out"], times_T)
        return Fitted(fitted.risk["held_out"], fitted.risk["tuning"], curve, l2=fitted.l2)
    model = probes.fit_ridge(x["train"], target["train"], x["tuning"], target["tuning"])
    return Fitted(model.predict(x["held_out"]), model.predict(x["tuning"]), l2=float(model.l2_K[0]))


def _trained(config, kind, x, target, times_T):
    """The paper's training; predictions are averaged over the seeds (of survival: the log-hazards)."""
    settings = trained_probes.ProbeSettings(
        hidden=config.evaluate.probe_hidden, seeds=tuple(config.evaluate.probe_seeds)
    )
    model = trained_probes.fit_probe(kind, x["train"], target["train"], x["tuning"], target["tuning"], settings)
    predict = model.predict_proba if kind == BINARY else model.output
    seeds_SxN = predict(x["held_out"])
    curve = model.survival(x["held_out"], times_T).mean(0) if kind == SURVIVAL else None
    return Fitted(seeds_SxN.mean(0), predict(x["tuning"]).mean(0), curve, seeds_SxN, float(np.median(model.l2_S)))


def from_table(
    kind: str, suffix: str, x: Mapping[str, np.ndarray], target: Mapping[str, Any], times_T: npt.ArrayLike = ()
) -> dict[str, Fitted]:
    """{model: Fitted} of the models on hand-made features, NaN = missing; boosting and logistic, Cox, or ridge."""
    if kind == BINARY:
        fits = {"gradient_boosting": estimators.fit_gradient_boosting}
        if not suffix:
            fits["logistic_regression"] = estimators.fit_logistic_regression
        out = {}
        for name, fit in fits.items():
            model = fit(x["train"], target["train"], x["tuning"], target["tuning"])
            out[name + suffix] = Fitted(model.predict_proba(x["held_out"]), model.predict_proba(x["tuning"]))
        return out
    encoder = estimators.TableEncoder(x["train"])
    encoded = {s: encoder(v) for s, v in x.items()}
    name = {SURVIVAL: "cox_table", REGRESSION: "ridge_table"}[kind] + suffix
    return {name: _exact(kind, encoded, target, times_T)}


def finetuned(
    kind: str, found: Mapping[str, np.ndarray], target: Mapping[str, Any], times_T: npt.ArrayLike = ()
) -> Fitted:
    """Predictions of a fine-tuned model as they are; survival curves with the tuning split's baseline hazard."""
    curve = None
    if kind == SURVIVAL:
        times, hazard = cox.breslow(*target["tuning"], found["tuning"])
        baseline_T = np.concatenate([[0.0], hazard])[np.searchsorted(times, np.asarray(times_T, np.float64), "right")]
        curve = np.exp(-np.exp(found["held_out"])[:, None] * baseline_T)
    return Fitted(found["held_out"], found["tuning"], curve)


def training_mean(target: Mapping[str, np.ndarray]) -> Fitted:
    """The null model of a regression: the mean of the training split."""
    constant = functools.partial(np.full, fill_value=float(np.mean(target["train"])))
    return Fitted(constant(len(target["held_out"])), constant(len(target["tuning"])))
