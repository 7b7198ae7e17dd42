"""Computes survival metrics under censoring: cumulative/dynamic AUC, Uno's C, Brier(t) and its integral.

Censoring is corrected by inverse probabilities, 1 / G with G the Kaplan-Meier estimate of the
censoring on the *training* rows: fixed under the bootstrap, like the model itself. Times carry any
one unit. `event` is 0 (censored), 1 (event) and, where stated, 2 (a competing event).

Array suffixes as in `weighting`; T times.
"""

import dataclasses

import numpy as np
import numpy.typing as npt

from ehrwear_jax.evals.classification import BinaryRanking
from ehrwear_jax.evals.concordance import Concordance
from ehrwear_jax.evals.cox import check_survival
from ehrwear_jax.evals.weighting import (
    Statistic,
    kept_rows,
    probability,
    ratio,
    vector,
)


@dataclasses.dataclass(frozen=True)
class StepFunction:
    """A survival curve: right-continuous, 1 before the first time, flat after the last."""

    times_T: np.ndarray
    values_T: np.ndarray

    def __call__(self, at: npt.ArrayLike) -> np.ndarray:
        """Values at `at`, any shape."""
        position = np.searchsorted(self.times_T, np.asarray(at, np.float64), "right")
        return np.concatenate([[1.0], self.values_T])[position]


@dataclasses.dataclass(frozen=True)
class FollowUp:
    """Labels of a time-to-event task: time_N in any unit, event_N 0/1 (1 = the event was observed at time_N)."""

    time_N: np.ndarray
    event_N: np.ndarray


def _counts(time_N, event_N):
    """Distinct times [T], the events and the censorings at each, and the number at risk."""
    time_N, event_N = check_survival(time_N, event_N, "survival")
    times, at = np.unique(time_N, return_inverse=True)
    events = np.bincount(at, event_N, len(times))
    leaving = np.bincount(at, minlength=len(times))
    return times, events, leaving - events, np.cumsum(leaving[::-1])[::-1]


def kaplan_meier(time_N: npt.ArrayLike, event_N: npt.ArrayLike) -> StepFunction:
    """Kaplan and Meier's estimate of P(T > t)."""
    times, events, _, at_risk = _counts(time_N, event_N)
    return StepFunction(times, np.cumprod(1 - events / at_risk))


def censoring_survival(time_N: npt.ArrayLike, event_N: npt.ArrayLike) -> StepFunction:
    """Kaplan-Meier estimate of G(t) = P(C > t).

    Events at a time precede the censorings of that time: those who had the event are no longer at
    risk of being censored.
    """
    times, events, censored, at_risk = _counts(time_N, event_N)
    left = at_risk - events
    return StepFunction(times, np.cumprod(1 - censored / np.maximum(left, 1)))


@dataclasses.dataclass(frozen=True)
class TrainingCurves:
    """What is estimated on the training rows: the survival function of the censoring, and that of the event."""

    censoring: StepFunction
    null: StepFunction  # without covariates

    @classmethod
    def fit(cls, train: FollowUp) -> "TrainingCurves":
        """Both by Kaplan and Meier."""
        labels = train.time_N, train.event_N
        return cls(censoring_survival(*labels), kaplan_meier(*labels))


def _inverse(censoring: StepFunction, at, needed) -> np.ndarray:
    """1 / G(at) where needed, 0 elsewhere; ValueError where G is 0."""
    survival = censoring(at)
    if (needed & (survival <= 0)).any():
        late = float(np.broadcast_to(at, needed.shape)[needed & (survival <= 0)].min())
        raise ValueError(
            f"at time {late} nobody of the training rows is under observation: "
            "choose a horizon (tau) inside their follow-up"
        )
    return np.where(needed, ratio(np.ones(survival.shape), survival), 0.0)


def _competing(time_N, event_N) -> tuple[np.ndarray, np.ndarray]:
    event_N = np.asarray(event_N)
    if not np.isin(event_N, (0, 1, 2)).all():
        row = int(np.flatnonzero(~np.isin(event_N, (0, 1, 2)))[0])
        raise ValueError(f"event is {event_N[row]} in row {row}, expected 0, 1 or 2 (competing)")
    return check_survival(time_N, event_N > 0, "survival")[0], event_N.astype(np.int64)


def horizon_labels(time_N: npt.ArrayLike, event_N: npt.ArrayLike, horizon: float) -> tuple[np.ndarray, np.ndarray]:
    """(y_N, known_N), bool: whether the event came by the horizon, and whether that is known.

    Unknown: censored before the horizon. Negative: followed to the horizon without the event, or a
    competing event (code 2) came first.
    """
    time_N, event_N = _competing(time_N, event_N)
    y_N = (event_N == 1) & (time_N <= horizon)
    return y_N, (time_N >= horizon) | (event_N > 0)


def horizon_factor(
    censoring: StepFunction, time_N: npt.ArrayLike, event_N: npt.ArrayLike, horizon: float
) -> np.ndarray:
    """Inverse probability of each row's horizon label being known, 0 where it is unknown.

    As `factor_N` of `BinaryRanking`, `Calibration`, ... it turns a metric of the known rows into
    the estimate for the whole cohort. G is taken at the event's time, as scikit-survival does.

    Args:
      censoring: G, from `censoring_survival` of the training rows.
      time_N, event_N: as in `horizon_labels`.
      horizon: inside the follow-up of the training rows.

    Raises:
      ValueError: G is zero where it is needed.
    """
    time_N, event_N = _competing(time_N, event_N)
    early = (event_N > 0) & (time_N <= horizon)
    late = ~early & (time_N >= horizon)
    at_event = _inverse(censoring, time_N, early)
    return at_event + _inverse(censoring, np.full(len(time_N), float(horizon)), late)


def dynamic_auc(
    censoring: StepFunction,
    time_N: npt.ArrayLike,
    event_N: npt.ArrayLike,
    risk_N: npt.ArrayLike,
    horizon: float,
    *,
    factor_N: npt.ArrayLike | None = None,
) -> Statistic:
    """Cumulative/dynamic AUC at a horizon: {"auc": [B]}.

    Cases had the event by the horizon and weigh 1 / G(t_i); controls were followed beyond it;
    people censored (or with a competing event) before it are neither (Uno et al. 2007; Hung and
    Chiang 2010).

    Args:
      censoring: as in `horizon_factor`.
      time_N, event_N: follow-up and event; risk_N: higher = earlier event.
      horizon: same unit.
      factor_N: see `weighting`.
    """
    time_N, event_N = _competing(time_N, event_N)
    rows, factor = kept_rows(factor_N, len(time_N))
    case = (event_N == 1) & (time_N <= horizon)
    needed = np.zeros(len(time_N), bool)
    needed[rows] = case[rows]
    weight = _inverse(censoring, time_N, needed) + (time_N > horizon)
    kept = np.zeros(len(time_N))
    kept[rows] = factor
    ranking = BinaryRanking(case, risk_N, factor_N=weight * kept, auprc=False)
    return lambda weight_NxB: {"auc": ranking(weight_NxB)["auroc"]}


def uno_c(
    censoring: StepFunction,
    time_N: npt.ArrayLike,
    event_N: npt.ArrayLike,
    risk_N: npt.ArrayLike,
    *,
    tau: float = np.inf,
    factor_N: npt.ArrayLike | None = None,
) -> Concordance:
    """Harrell's C and Uno's C truncated at tau, from one pass: {"c_index": [B], "uno_c": [B]}.

    Events at or after tau enter Uno's C only as those who outlive earlier ones. Arguments as in
    `dynamic_auc`.

    Raises:
      ValueError: G is zero at an event before tau.
    """
    time_N, event_N = check_survival(time_N, event_N, "survival")
    inverse = _inverse(censoring, time_N, event_N & (time_N < tau))
    factors = {"c_index": np.ones(len(time_N)), "uno_c": inverse**2}
    return Concordance(time_N, event_N, risk_N, event_factor=factors, factor_N=factor_N)


class BrierCurve:
    """Brier score at each time and its integral, beside those of the Kaplan-Meier null.

    The score at t is the mean of S(t)^2 / G(t_i) over those with the event by t and of
    (1 - S(t))^2 / G(t) over those followed beyond t (Graf et al. 1999). The integral is the
    trapezoid rule over the times, divided by their span. Per row both are fixed numbers, so a
    resample is a weighted mean.
    """

    def __init__(
        self,
        censoring: StepFunction,
        time_N: npt.ArrayLike,
        event_N: npt.ArrayLike,
        survival_NxT: npt.ArrayLike,
        times_T: npt.ArrayLike,
        *,
        null: StepFunction | None = None,
        factor_N: npt.ArrayLike | None = None,
    ) -> None:
        """Args:
        censoring: as in `horizon_factor`.
        time_N, event_N: follow-up and event of the rows that are scored.
        survival_NxT: predicted P(T > t) at times_T.
        times_T: increasing, inside the follow-up of training and scored rows.
        null: survival curve of the training rows without covariates (`kaplan_meier`).
        factor_N: see `weighting`.
        """
        time_N, event_N = check_survival(time_N, event_N, "survival")
        times_T = vector(times_T, "times")
        survival_NxT = np.asarray(survival_NxT, np.float64)
        if survival_NxT.shape != (len(time_N), len(times_T)):
            raise ValueError(f"survival must be [{len(time_N)}, {len(times_T)}], got {survival_NxT.shape}")
        probability(survival_NxT.ravel(), "survival probability")
        if (np.diff(times_T) <= 0).any():
            raise ValueError("times must increase")
        self.times_T, self._n = times_T, len(time_N)
        self._rows, self._factor = kept_rows(factor_N, self._n)
        had = event_N[:, None] & (time_N[:, None] <= times_T)
        beyond = time_N[:, None] > times_T
        at_event = _inverse(censoring, time_N[:, None], had.any(1, keepdims=True))
        at_time = _inverse(censoring, times_T[None], beyond.any(0, keepdims=True))
        self._case_NxT, self._alive_NxT = had * at_event, beyond * at_time
        self._loss_RxN = self._losses(survival_NxT)
        self._null_RxN = None if null is None else self._losses(null(times_T)[None])

    def _losses(self, survival_NxT) -> np.ndarray:
        """Loss of the kept rows at each time and, in the last row, integrated: [T + 1, M]."""
        loss_NxT = self._case_NxT * survival_NxT**2 + self._alive_NxT * (1 - survival_NxT) ** 2
        span = self.times_T[-1] - self.times_T[0]
        integral_N = np.trapezoid(loss_NxT, self.times_T, axis=1) / span if span > 0 else loss_NxT[:, 0]
        return np.concatenate([loss_NxT.T, integral_N[None]])[:, self._rows] * self._factor

    def __call__(self, weight_NxB: np.ndarray) -> dict[str, np.ndarray]:
        """{"brier_0": [B], .., "brier_<T-1>", "ibs"}; with a null also the same names ending in
        "_null", and "ibs_skill" = 1 - ibs / ibs_null.
        """
        weight_MxB = weight_NxB if len(self._rows) == self._n else weight_NxB[self._rows]
        total_B = self._factor @ weight_MxB
        names = [*(f"brier_{i}" for i in range(len(self.times_T))), "ibs"]
        scores = [ratio(v, total_B) for v in self._loss_RxN @ weight_MxB]
        result = dict(zip(names, scores, strict=True))
        if self._null_RxN is not None:
            nulls = [ratio(v, total_B) for v in self._null_RxN @ weight_MxB]
            result |= {f"{name}_null": v for name, v in zip(names, nulls, strict=True)}
            result["ibs_skill"] = 1 - ratio(result["ibs"], result["ibs_null"])
        return result
