"""Defines what tabular models minimise: log loss, Cox's partial likelihood, squared error.

A loss takes a score per row (log-odds, log-hazard, value) and gives its mean, and derivatives per row of the sum.
Array suffix: N rows.
"""

import abc
from collections.abc import Mapping
from typing import Any

import numpy as np

BINARY, SURVIVAL, REGRESSION = "binary", "survival", "regression"


class Loss(abc.ABC):
    """The loss of some rows with their targets."""

    n_terms: int
    """Terms of the sum: rows, or events of a partial likelihood."""
    target: np.ndarray
    """What LightGBM is given as labels, [N]."""
    boosting: Mapping[str, str] = {}
    """LightGBM's own name of the loss, and of its mean; empty where it has none."""
    unknown_is_missing = True
    """Whether trees read what is unknown as missing, or as the training mean."""

    @abc.abstractmethod
    def mean(self, score_N: np.ndarray) -> float:
        """Of the terms."""

    @abc.abstractmethod
    def derivatives(self, score_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(first, diagonal second) derivatives of the sum, float64 [N]."""


class LogLoss(Loss):
    """Of 0/1 labels, from log-odds."""

    boosting = {"objective": "binary", "metric": "binary_logloss"}

    def __init__(self, y_N: np.ndarray) -> None:
        self.target, self.n_terms = y_N, len(y_N)

    def mean(self, score_N: np.ndarray) -> float:
        return float(np.mean(np.logaddexp(0.0, score_N) - self.target * score_N))

    def derivatives(self, score_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        p_N = np.exp(-np.logaddexp(0.0, -score_N))
        return p_N - self.target, p_N * (1 - p_N)


class SquaredError(Loss):
    """Half the squared error."""

    boosting = {"objective": "regression", "metric": "l2"}

    def __init__(self, y_N: np.ndarray) -> None:
        self.target, self.n_terms = y_N, len(y_N)

    def mean(self, score_N: np.ndarray) -> float:
        return float(np.mean((score_N - self.target) ** 2) / 2)

    def derivatives(self, score_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return score_N - self.target, np.ones(len(score_N))


class PartialLikelihood(Loss):
    """Negative log of Cox's partial likelihood (JRSS B 34, 1972), with Breslow's risk sets for ties, per event."""

    # LightGBM reckons rows from second derivatives, which differ too much here: with missing rows it found, on NHANES,
    # splits that leave one side empty, and failed
    unknown_is_missing = False

    def __init__(self, time_N: np.ndarray, event_N: np.ndarray) -> None:
        self._event_N, self.n_terms, self.target = event_N.astype(bool), int(event_N.sum()), time_N
        self._order_N = np.argsort(time_N, kind="stable")
        time = time_N[self._order_N]
        self._event = self._event_N[self._order_N]
        # in the order of time: where the risk set of each row begins, and behind which rows its time ends
        self._begin, self._end = np.searchsorted(time, time, "left"), np.searchsorted(time, time, "right")

    def _risk_sums(self, score_N):
        score = score_N[self._order_N].astype(np.float64)
        shift = score.max()
        hazard = np.exp(score - shift)
        return score, shift, hazard, np.cumsum(hazard[::-1])[::-1][self._begin]

    def mean(self, score_N: np.ndarray) -> float:
        score, shift, _, at_risk = self._risk_sums(score_N)
        return float((np.log(at_risk) + shift - score)[self._event].mean())

    def derivatives(self, score_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        _, _, hazard, at_risk = self._risk_sums(score_N)
        inverse = self._event / at_risk
        passed, squared = (np.cumsum(x)[self._end - 1] for x in (inverse, inverse / at_risk))
        first, second = np.empty_like(hazard), np.empty_like(hazard)
        first[self._order_N] = hazard * passed - self._event
        second[self._order_N] = np.maximum(hazard * passed - hazard**2 * squared, 1e-12)
        return first, second


def of(kind: str, target: Any, name: str) -> Loss:
    """The loss of a kind of task.

    Args:
      target: labels [N]; of a survival task (time [N], event [N]). name: of the rows, for the message.

    Raises:
      ValueError: one class only, or no event.
    """
    if kind == SURVIVAL:
        time_N, event_N = target
        if not np.any(event_N):
            raise ValueError(f"{name}: no event among {len(time_N)} rows")
        return PartialLikelihood(np.asarray(time_N), np.asarray(event_N))
    y_N = np.asarray(target, np.float64)
    if not len(y_N) or not np.isfinite(y_N).all():
        raise ValueError(f"{name}: no rows, or a target that is not finite")
    if kind == REGRESSION:
        return SquaredError(y_N)
    if not np.isin(y_N, (0, 1)).all():
        raise ValueError(f"{name}: labels other than 0 and 1")
    if name == "train" and len(np.unique(y_N)) < 2:
        raise ValueError(f"train holds one class only ({y_N[0]:g}, {len(y_N)} rows)")
    return LogLoss(y_N)
