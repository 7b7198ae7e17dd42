"""Fits how much each of several models counts in a combination of their predictions: stacking.

A stack is a linear model of its members' scores (log-odds, log-hazards or values): logistic, Cox or least-squares
regression with non-negative weights (Wolpert, Neural Networks 5, 1992; non-negative: Breiman, Machine Learning 24,
1996). It is fitted on people on whom no member was fitted, the tuning split. A score of a model that predicts at all
rises with the outcome, so a negative weight would mean that noise, or two members that say the same, are played off
against each other.

Tuning splits may hold few events, so weights are drawn to the plain mean of the members: the fit is the mode of the
posterior under a normal prior, 1/K with SD `WEIGHT_SD` for each of K weights, and 0 with SD 1 for the shift of
log-odds, or of values in units of the error of the mean. With few events the stack is nearly the mean of the members; a
hundred events outweigh the prior. Its strength is fixed, since what would choose it is what the weights are fitted on.

What to know when reading its numbers: the tuning split has already chosen the members' settings (penalties of probes,
depth and number of trees, when training stopped). A member that was chosen from many candidates looks better there than
it is, and is given somewhat too much weight; and the stack's own predictions of the tuning split, on which a threshold
may be chosen, are those of rows it was fitted on. Held-out people take no part in either, so scores on them are honest;
what is lost is some of the stack's gain.

Array suffixes: N rows, K members.
"""

import dataclasses
from collections.abc import Callable
from typing import cast

import numpy as np
import numpy.typing as npt
import scipy  # its submodules load at first use

from ehrwear_jax.evals.cox import PartialLikelihood
from ehrwear_jax.evals.probes import check_features, check_labels, log_loss, sigmoid
from ehrwear_jax.evals.trained_probes import OBJECTIVES, Target

REVISION = 1  # raised with every change of what is fitted, so that earlier predictions are made anew
WEIGHT_SD = 0.5
MAX_SCORE = float(np.log(1e6))  # log-odds, or log-hazard beside the mean's, beyond which scores are cut

# weights and, last, the shift -> (negative log-likelihood, its gradient)
Loss = Callable[[np.ndarray], tuple[float, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Stack:
    """A fitted combination.

    Attributes:
      weight_K: 0 or more. shift: beside the weighted scores; 0 of log-hazards.
      centre_K: mean of each member's scores in the tuning split. limit: distance from it at which scores are cut.
    """

    weight_K: np.ndarray
    shift: float
    centre_K: np.ndarray
    limit: float = np.inf

    def __call__(self, score: npt.ArrayLike) -> np.ndarray:
        """Log-odds, log-hazard or value, float64 [N].

        Args:
          score: of the members, float [N, K].
        """
        score_NxK = check_features(score, "scores", len(self.weight_K))
        return self.deviations(score_NxK) @ self.weight_K + self.centre_K.mean() + self.shift

    def deviations(self, score_NxK: np.ndarray) -> np.ndarray:
        """What the weights are of, float64 [N, K]."""
        return np.clip(score_NxK - self.centre_K, -self.limit, self.limit)


def log_odds(probability: npt.ArrayLike) -> np.ndarray:
    """Of probabilities of any shape, cut at MAX_SCORE: a member that is certain and wrong must not decide alone."""
    bound = sigmoid(np.array(-MAX_SCORE))
    p = np.clip(np.asarray(probability, np.float64), bound, 1 - bound)
    return np.log(p) - np.log1p(-p)


def mean_stack(objective: str, score: npt.ArrayLike) -> Stack:
    """The plain mean of the members, which a stack is drawn to; nothing of it but their means is fitted.

    Args, Raises: see fit_stack.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"the objective is {objective!r}; it can be {', '.join(OBJECTIVES)}")
    score_NxK = check_features(score, "scores")
    n_members, limit = score_NxK.shape[1], MAX_SCORE if objective == "survival" else np.inf
    return Stack(np.full(n_members, 1 / n_members), 0.0, score_NxK.mean(0, np.float64), limit)


def fit_stack(objective: str, score: npt.ArrayLike, target: Target) -> Stack:
    """Weights of the members of a stack; deterministic.

    Args:
      objective: "binary", "survival" or "regression".
      score: of the members on the tuning rows, float [N, K]: log-odds (`log_odds`), log-hazards or values.
      target: 0/1 [N], which may all be alike; (time [N], event [N]); or float [N].

    Raises:
      ValueError: another objective, bad shapes or values, or no event.
    """
    mean = mean_stack(objective, score)
    score_NxK, survival = check_features(score, "scores"), objective == "survival"
    n_members = score_NxK.shape[1]
    x_NxK, offset, unit = mean.deviations(score_NxK), mean.centre_K.mean(), 1.0
    if survival:
        loss = _cox(x_NxK, *cast(tuple, target))
    elif objective == "binary":
        loss = _logistic(x_NxK, offset, check_labels(cast(npt.ArrayLike, target), "labels", len(x_NxK)))
    else:
        y_N = _values(target, len(x_NxK))
        unit = float(np.sqrt(np.mean((mean(score_NxK) - y_N) ** 2)))
        if unit == 0:  # there is nothing to improve
            return mean
        loss = _least_squares(x_NxK, offset, y_N, unit)
    theta = _posterior_mode(loss, n_members)
    return dataclasses.replace(mean, weight_K=theta[:-1], shift=float(theta[-1]) * unit)


def _values(target, n_rows: int) -> np.ndarray:
    y_N = np.asarray(target, np.float64)
    if y_N.shape != (n_rows,) or not np.isfinite(y_N).all():
        raise ValueError(f"values of shape {y_N.shape}, expected finite ones of ({n_rows},)")
    return y_N


def _posterior_mode(loss: Loss, n_members: int) -> np.ndarray:
    """Weights [K], 0 or more, and the shift in its unit, which together have the lowest loss and prior."""
    start = np.append(np.full(n_members, 1 / n_members), 0.0)
    precision = np.append(np.full(n_members, WEIGHT_SD**-2), 1.0)

    def objective(theta):
        value, gradient = loss(theta)
        drawn = precision * (theta - start)
        return value + drawn @ (theta - start) / 2, gradient + drawn

    bounds = [(0.0, None)] * n_members + [(None, None)]
    options = {"maxiter": 1000, "ftol": 1e-14, "gtol": 1e-8}
    return scipy.optimize.minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x


def _logistic(x_NxK: np.ndarray, offset: float, y_N: np.ndarray) -> Loss:
    def loss(theta):
        logit_N = x_NxK @ theta[:-1] + offset + theta[-1]
        error_N = sigmoid(logit_N) - y_N
        return log_loss(y_N, logit_N) * len(y_N), np.append(error_N @ x_NxK, error_N.sum())

    return loss


def _least_squares(x_NxK: np.ndarray, offset: float, y_N: np.ndarray, unit: float) -> Loss:
    def loss(theta):
        error_N = (x_NxK @ theta[:-1] + offset - y_N) / unit + theta[-1]
        return error_N @ error_N / 2, np.append(error_N @ x_NxK / unit, error_N.sum())

    return loss


def _cox(x_NxK: np.ndarray, time_N: npt.ArrayLike, event_N: npt.ArrayLike) -> Loss:
    likelihood = PartialLikelihood(time_N, event_N)
    if len(likelihood.time) != len(x_NxK):
        raise ValueError(f"scores of {len(x_NxK)} rows, times of {len(likelihood.time)}")
    if not likelihood.n_events:
        raise ValueError(f"no event among {len(x_NxK)} rows")

    def loss(theta):
        eta_N = x_NxK @ theta[:-1]
        gradient_K, _ = likelihood.gradient_hessian(x_NxK, eta_N)
        return -likelihood.value(eta_N), np.append(-gradient_K, 0.0)  # a shift changes no order

    return loss
