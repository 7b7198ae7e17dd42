"""Computes survival metrics under censoring and competing events: AUC(t), concordance, Brier(t) and its integral.

Censoring is corrected by inverse probabilities, 1 / G with G the Kaplan-Meier estimate of the
censoring on the *training* rows: fixed under the bootstrap, like the model itself. Times carry any
one unit. `event` is 0 (censored), 1 (event) or 2 (a competing event came first, such as death before a diagnosis).

A competing event is no censoring: whoever dies will never have the event, so G counts deaths as observed ends, and the
quantity that is predicted and scored is the cumulative incidence, P(event by t), whose estimate without covariates is
Aalen and Johansen's. In every metric a person with a competing event stays among those without the event for good:
a control of AUC(t) (definition 2 of Blanche, Dartigues and Jacqmin-Gadda, Statistics in Medicine 32, 2013; definition 1
would leave them out), one who outlives every event in the concordance (Wolbers et al., Biostatistics 15, 2014), and
status 0 of the Brier score (Schoop et al., Biometrical Journal 53, 2011). So do the labels of binary tasks with a
horizon, and AUC(t) equals their weighted AUROC. Without competing events the formulas are the usual ones.

Array suffixes as in `weighting`; T times.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ehrwear_jax.evals.classification import BinaryRanking
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
class RowCurves:
    """A curve for each row, of the fold that it belongs to: rows of one fold share a curve.

    Attributes:
      curves: of the folds. fold_N: which of them is a row's.
    """

    curves: Sequence[StepFunction]
    fold_N: np.ndarray

    def __call__(self, at: npt.ArrayLike) -> np.ndarray:
        """Values at `at`, whose first axis is that of the rows, or 1: float64 [N, ...]."""
        at = np.asarray(at, np.float64)
        at = np.broadcast_to(at, (len(self.fold_N), *at.shape[1:]))
        out = np.empty(at.shape)
        for k, curve in enumerate(self.curves):
            mine = self.fold_N == k
            out[mine] = curve(at[mine])
        return out


Curve = StepFunction | RowCurves


@dataclasses.dataclass(frozen=True)
class FollowUp:
    """Labels of a time-to-event task.

    Attributes:
      time_N: to the event, the competing event or the end of observation, in any unit.
      event_N: 0/1, 1 = the event was observed at time_N.
      competing_N: 0/1, 1 = a competing event came first, at time_N; None: for nobody.
    """

    time_N: np.ndarray
    event_N: np.ndarray
    competing_N: np.ndarray | None = None

    @property
    def code_N(self) -> np.ndarray:
        """int64 [N]: 0 censored, 1 event, 2 competing event; ValueError for a row with both, or other values."""
        event_N = check_survival(self.time_N, self.event_N, "event")[1]
        if self.competing_N is None:
            return event_N.astype(np.int64)
        competing_N = check_survival(self.time_N, self.competing_N, "competing event")[1]
        if (event_N & competing_N).any():
            row = int(np.flatnonzero(event_N & competing_N)[0])
            raise ValueError(f"row {row} has both the event and a competing event at its time")
        return np.where(competing_N, 2, event_N.astype(np.int64))

    @property
    def any_competing(self) -> bool:
        """Whether there are competing events."""
        return bool((self.code_N == 2).any())

    def of(self, rows_N: np.ndarray) -> "FollowUp":
        """Of some rows, by a mask or their numbers."""
        competing_N = None if self.competing_N is None else np.asarray(self.competing_N)[rows_N]
        return FollowUp(np.asarray(self.time_N)[rows_N], np.asarray(self.event_N)[rows_N], competing_N)


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


def aalen_johansen(time_N: npt.ArrayLike, event_N: npt.ArrayLike) -> StepFunction:
    """1 less Aalen and Johansen's (1978) cumulative incidence: P(the event has not come by t), under competing events.

    1 - Kaplan-Meier with competing events as censorings would be the risk in a world in which nobody has them, and is
    too high. The curve does not fall to 0: those who have a competing event never have the event.

    Args:
      time_N, event_N: follow-up, and 0 censored, 1 event, 2 competing event.
    """
    time_N, event_N = check_codes(time_N, event_N)
    times, ends, _, at_risk = _counts(time_N, event_N > 0)
    events = np.bincount(np.searchsorted(times, time_N), event_N == 1, len(times))
    free = np.concatenate([[1.0], np.cumprod(1 - ends / at_risk)])
    return StepFunction(times, 1 - np.cumsum(free[:-1] * events / at_risk))


def censoring_survival(time_N: npt.ArrayLike, event_N: npt.ArrayLike) -> StepFunction:
    """Kaplan-Meier estimate of G(t) = P(C > t).

    Events at a time precede the censorings of that time: those who had the event are no longer at
    risk of being censored. Competing events (code 2) end the follow-up as events do: they are no censorings.
    """
    time_N, event_N = check_codes(time_N, event_N)
    times, events, censored, at_risk = _counts(time_N, event_N > 0)
    left = at_risk - events
    return StepFunction(times, np.cumprod(1 - censored / np.maximum(left, 1)))


@dataclasses.dataclass(frozen=True)
class TrainingCurves:
    """What is estimated on the training rows: the survival function of the censoring, and that of the event."""

    censoring: Curve
    null: Curve  # P(no event by t) without covariates

    @classmethod
    def fit(cls, train: FollowUp) -> "TrainingCurves":
        """Both by Kaplan and Meier; with competing events the null is Aalen and Johansen's."""
        labels = train.time_N, train.code_N
        return cls(censoring_survival(*labels), aalen_johansen(*labels) if train.any_competing else
                   kaplan_meier(*labels))  # fmt: skip

    @classmethod
    def fit_folds(cls, train: Sequence[FollowUp], fold_N: np.ndarray) -> "TrainingCurves":
        """Of scored rows whose folds were trained on different people: each fold's curves on its own training rows.

        Args:
          train: of each fold. fold_N: fold of each scored row, int [N] in [0, len(train)).
        """
        fitted = [cls.fit(t) for t in train]
        if len(fitted) == 1:
            return fitted[0]
        return cls(*(RowCurves([getattr(f, name) for f in fitted], fold_N) for name in ("censoring", "null")))

    def last_time(self) -> float:
        """Up to where G > 0 for all rows: tau of weighted metrics must not be later; inf without such a bound.

        G is 0 from the last training time on if somebody is censored then.
        """
        curves = self.censoring.curves if isinstance(self.censoring, RowCurves) else [self.censoring]
        ends = [c.times_T[c.values_T <= 0] for c in curves]
        return min((float(end[0]) for end in ends if len(end)), default=np.inf)


def inverse_probability(censoring: Curve, at: np.ndarray, needed: np.ndarray) -> np.ndarray:
    """1 / G(at) where needed, 0 elsewhere; ValueError where G is 0."""
    survival = censoring(at)
    wrong = needed & (survival <= 0)
    if wrong.any():
        late = float(np.broadcast_to(at, wrong.shape)[wrong].min())
        raise ValueError(
            f"at time {late} nobody of the training rows is under observation: "
            "choose a horizon (tau) inside their follow-up"
        )
    return np.where(needed, ratio(np.ones(survival.shape), survival), 0.0)


def check_codes(time_N: npt.ArrayLike, event_N: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """(time float64 [N], code int64 [N]); ValueError on bad shapes or values, or a code other than 0, 1 and 2."""
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
    time_N, event_N = check_codes(time_N, event_N)
    y_N = (event_N == 1) & (time_N <= horizon)
    return y_N, (time_N >= horizon) | (event_N > 0)


def horizon_factor(censoring: Curve, time_N: npt.ArrayLike, event_N: npt.ArrayLike, horizon: float) -> np.ndarray:
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
    time_N, event_N = check_codes(time_N, event_N)
    early = (event_N > 0) & (time_N <= horizon)
    late = ~early & (time_N >= horizon)
    at_event = inverse_probability(censoring, time_N, early)
    return at_event + inverse_probability(censoring, np.full(len(time_N), float(horizon)), late)


def dynamic_auc(
    censoring: Curve,
    time_N: npt.ArrayLike,
    event_N: npt.ArrayLike,
    risk_N: npt.ArrayLike,
    horizon: float,
    *,
    factor_N: npt.ArrayLike | None = None,
) -> Statistic:
    """Cumulative/dynamic AUC at a horizon: {"auc": [B]}.

    Cases had the event by the horizon and weigh 1 / G(t_i); controls were followed beyond it without
    the event, or had a competing event before: they weigh 1 / G(horizon) and 1 / G(t_i). People
    censored before it are neither (Uno et al. 2007; Hung and Chiang 2010; Blanche et al. 2013, definition 2).

    Args:
      censoring: as in `horizon_factor`.
      time_N, event_N: follow-up, and 0 censored, 1 event, 2 competing event.
      risk_N: higher = earlier event.
      horizon: same unit.
      factor_N: see `weighting`.
    """
    time_N, event_N = check_codes(time_N, event_N)
    rows, factor = kept_rows(factor_N, len(time_N))
    kept = np.zeros(len(time_N))
    kept[rows] = factor
    early = (time_N <= horizon) & (kept > 0)
    case, other, late = early & (event_N == 1), early & (event_N == 2), time_N > horizon
    control = late.astype(np.float64)  # of one weight, which cancels
    if other.any() or isinstance(censoring, RowCurves):
        control = inverse_probability(censoring, np.full(len(time_N), float(horizon)), late & (kept > 0))
        control += inverse_probability(censoring, time_N, other)
    weight = inverse_probability(censoring, time_N, case) + control
    ranking = BinaryRanking(case, risk_N, factor_N=weight * kept, auprc=False)
    return lambda weight_NxB: {"auc": ranking(weight_NxB)["auroc"]}


class BrierCurve:
    """Brier score at each time and its integral, beside those of a null without covariates.

    S(t) is the predicted P(no event by t). The score at t is the mean of S(t)^2 / G(t_i) over those with
    the event by t and of (1 - S(t))^2 over those without it: over G(t) where they were followed beyond t
    (Graf et al. 1999), over G(t_i) where a competing event came first (Schoop et al. 2011). The integral
    is the trapezoid rule over the times, divided by their span. Per row both are fixed numbers, so a
    resample is a weighted mean.
    """

    def __init__(
        self,
        censoring: Curve,
        time_N: npt.ArrayLike,
        event_N: npt.ArrayLike,
        survival_NxT: npt.ArrayLike,
        times_T: npt.ArrayLike,
        *,
        null: Curve | None = None,
        factor_N: npt.ArrayLike | None = None,
    ) -> None:
        """Args:
        censoring: as in `horizon_factor`.
        time_N, event_N: follow-up of the rows that are scored, and 0 censored, 1 event, 2 competing event.
        survival_NxT: predicted P(no event by t) at times_T: 1 less the cumulative incidence.
        times_T: increasing, inside the follow-up of training and scored rows.
        null: the same of the training rows without covariates (`TrainingCurves`).
        factor_N: see `weighting`.
        """
        time_N, event_N = check_codes(time_N, event_N)
        times_T = vector(times_T, "times")
        survival_NxT = np.asarray(survival_NxT, np.float64)
        if survival_NxT.shape != (len(time_N), len(times_T)):
            raise ValueError(f"survival must be [{len(time_N)}, {len(times_T)}], got {survival_NxT.shape}")
        probability(survival_NxT.ravel(), "survival probability")
        if (np.diff(times_T) <= 0).any():
            raise ValueError("times must increase")
        self.times_T, self._n = times_T, len(time_N)
        self._rows, self._factor = kept_rows(factor_N, self._n)
        beyond = time_N[:, None] > times_T
        had, other = ~beyond & (event_N == 1)[:, None], ~beyond & (event_N == 2)[:, None]
        at_event = inverse_probability(censoring, time_N[:, None], np.any(had | other, axis=1, keepdims=True))
        by_row = isinstance(censoring, RowCurves)
        needed = beyond if by_row else np.any(beyond, axis=0, keepdims=True)
        at_time = inverse_probability(censoring, times_T[None], needed)
        self._case_NxT, self._alive_NxT = had * at_event, beyond * at_time + other * at_event
        self._loss_RxN = self._losses(survival_NxT)
        self._null_RxN = None if null is None else self._losses(null(times_T[None]))

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
