"""Stores fitted probes as plain arrays, and predicts with them.

The baseline hazard of a time-to-event task is kept at the times at which curves are evaluated and not where it jumps,
which are the times of single people's events. Curves at those times are the same; where there are competing events,
which are weighed between them, nearly so.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from ehrwear_jax.evals import cox, probes, recalibration, trained_probes
from ehrwear_jax.evals.cox import CoxModel, Hazard
from ehrwear_jax.evals.probes import LogisticProbe, RidgeProbe, Standardizer
from ehrwear_jax.evals.trained_probes import TrainedProbe
from ehrwear_jax.stages.evaluate_fit import Probe, baseline
from ehrwear_jax.stages.tasks import BINARY, SURVIVAL

MIN_EVENTS = 10  # of each class in the tuning split, for a recalibration
_TYPES = {"logistic": LogisticProbe, "cox": CoxModel, "ridge": RidgeProbe, "trained": TrainedProbe}


@dataclasses.dataclass(frozen=True)
class StoredProbe:
    """The probe of a task.

    Attributes:
      kind: BINARY, SURVIVAL or REGRESSION. model: fitted on the training split.
      competing: hazard of competing events, None without any.
      times_T: days at which curves are known. horizons: those among them that the task is about.
      calibration: (a, b) of logit P = a + b logit p on the tuning split, None where it has too few of a class.
    """

    kind: str
    model: Probe
    competing: CoxModel | None = None
    times_T: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0))
    horizons: tuple[float, ...] = ()
    calibration: tuple[float, float] | None = None

    def score(self, z_NxD: np.ndarray) -> np.ndarray:
        """Probability, log-hazard or value, as the evaluation has it: float64 [N]."""
        if isinstance(self.model, TrainedProbe):
            return (self.model.predict_proba if self.kind == BINARY else self.model.output)(z_NxD).mean(0)
        if isinstance(self.model, LogisticProbe):
            return self.model.predict_proba(z_NxD)
        return self.model.log_hazard(z_NxD) if isinstance(self.model, CoxModel) else self.model.predict(z_NxD)

    def event_free(self, z_NxD: np.ndarray) -> np.ndarray:
        """P(no event by each of times_T) of a survival task: float64 [N, T]."""
        if isinstance(self.model, TrainedProbe):
            hazards = [Hazard(e, *b) for e, b in zip(self.model.output(z_NxD), self.model.baselines, strict=True)]
        else:
            hazards = [Hazard(self.score(z_NxD), *baseline(self.model))]  # type: ignore[arg-type]
        if self.competing is None:
            none = Hazard(np.zeros(len(z_NxD)), self.times_T, np.zeros(len(self.times_T)))
            return np.mean([cox.event_free(h, none, self.times_T) for h in hazards], axis=0)
        other = Hazard(self.competing.log_hazard(z_NxD), *baseline(self.competing))
        return np.mean([cox.event_free(h, other, self.times_T) for h in hazards], axis=0)

    def predict(self, z_NxD: np.ndarray) -> pl.DataFrame:
        """Columns of predictions; null where z is not finite, as before any data.

        Of a binary task predicted_boolean_probability, as evaluated, and calibrated_risk, recalibrated on the tuning
        split (null where that has too few events); of a time-to-event task predicted_log_hazard and
        predicted_risk_<days>d, of the event coming by then; of a regression predicted_float_value.
        """
        known_N = np.isfinite(z_NxD).all(axis=1)
        columns = self._columns(z_NxD[known_N]) if known_N.any() else self._columns(np.zeros((1, z_NxD.shape[1])))
        out = {}
        for name, value_K in columns.items():
            full_N = np.full(len(z_NxD), np.nan)
            full_N[known_N] = value_K[: known_N.sum()]
            out[name] = pl.Series(name, full_N).fill_nan(None)
        return pl.DataFrame(out)

    def _columns(self, z):
        score = self.score(z)
        if self.kind == BINARY:
            return {"predicted_boolean_probability": score, "calibrated_risk": self.recalibrated(score)}
        if self.kind != SURVIVAL:
            return {"predicted_float_value": score}
        out, free_NxT = {"predicted_log_hazard": score}, self.event_free(z)
        for days in self.horizons:
            out[f"predicted_risk_{days:g}d"] = 1 - free_NxT[:, int(np.searchsorted(self.times_T, days))]
        return out

    def recalibrated(self, p_N: np.ndarray) -> np.ndarray:
        """Probabilities after `calibration`, NaN without."""
        if self.calibration is None:
            return np.full(len(p_N), np.nan)
        a, b = self.calibration
        p_N = np.clip(p_N, recalibration.CLIP, 1 - recalibration.CLIP)
        return probes.sigmoid(a + b * np.log(p_N / (1 - p_N)))


def calibrate(y_N: np.ndarray, p_N: np.ndarray) -> tuple[float, float] | None:
    """StoredProbe.calibration of labels and predictions of the tuning split."""
    if min(y_N.sum(), len(y_N) - y_N.sum()) < MIN_EVENTS:
        return None
    a, b = recalibration.Recalibration(y_N, p_N).line()
    return (a, b) if np.isfinite(a + b) and b > 0 else None


def on_grid(model: CoxModel, times_T: np.ndarray) -> CoxModel:
    """The model with its baseline hazard at these times alone."""
    hazard_T = np.append(0.0, model.cumulative_hazard_T)[np.searchsorted(model.event_times_T, times_T, "right")]
    return dataclasses.replace(model, event_times_T=np.asarray(times_T, np.float64), cumulative_hazard_T=hazard_T)


# ------------------------------------------------------------------------------------------------------------- storage


def to_arrays(probe: StoredProbe) -> tuple[dict, dict]:
    """(nested dict of arrays, JSON-able dict) of a probe; `of_arrays` is the inverse."""
    arrays: dict[str, Any] = {"times": np.asarray(probe.times_T, np.float64), "model": _model_arrays(probe.model)}
    if probe.competing is not None:
        arrays["competing"] = _model_arrays(probe.competing)
    type_ = next(name for name, cls in _TYPES.items() if isinstance(probe.model, cls))
    about = {"kind": probe.kind, "type": type_, "horizons": list(probe.horizons), "calibration": probe.calibration}
    return arrays, about


def of_arrays(arrays: Mapping[str, Any], about: Mapping[str, Any]) -> StoredProbe:
    """The inverse of `to_arrays`."""
    other = arrays.get("competing")
    return StoredProbe(
        about["kind"],
        _model(about["type"], arrays["model"], about["kind"]),
        None if other is None else _model("cox", other, SURVIVAL),
        arrays["times"],
        tuple(about["horizons"]),
        None if about["calibration"] is None else tuple(about["calibration"]),
    )


def _model_arrays(model):
    """The arrays that predicting takes."""
    out: dict[str, Any] = {
        "standardizer": {k: np.asarray(v) for k, v in dataclasses.asdict(model.standardizer).items()}
    }
    if isinstance(model, LogisticProbe):
        return out | {"coef": model.coef_D, "intercept": np.float64(model.intercept)}
    if isinstance(model, CoxModel):
        return out | {"coef": model.coef_D, "times": model.event_times_T, "hazard": model.cumulative_hazard_T}
    if isinstance(model, RidgeProbe):
        return out | {"coef": model.coef_DxK, "intercept": model.intercept_K}
    params = {layer: {k: np.asarray(v) for k, v in part.items()} for layer, part in model.params.items()}
    found = {"params": params, "scale": np.array([model.centre, model.scale], np.float64)}
    return out | found | {f"baseline{s}": np.stack(b) for s, b in enumerate(model.baselines)}


def _model(type_, arrays, kind):
    scale = Standardizer(**arrays["standardizer"])
    if type_ == "logistic":
        return LogisticProbe(scale, arrays["coef"], float(arrays["intercept"]), np.nan, {})
    if type_ == "cox":
        return CoxModel(scale, arrays["coef"], np.nan, {}, arrays["times"], arrays["hazard"])
    if type_ == "ridge":
        none = np.empty(0)
        return RidgeProbe(scale, arrays["coef"], arrays["intercept"], none, none, True)
    baselines = tuple(tuple(arrays[f"baseline{s}"]) for s in range(sum(k.startswith("baseline") for k in arrays)))
    centre, factor = arrays["scale"].tolist()
    none = np.empty(0)
    return trained_probes.TrainedProbe(kind, scale, arrays["params"], none, none, none, centre, factor, baselines)
