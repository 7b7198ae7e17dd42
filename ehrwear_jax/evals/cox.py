"""Fits ridge Cox regression, and computes the cumulative incidence from two cause-specific hazards.

Efron's partial likelihood, Newton's method, Breslow's baseline hazard.

Array suffixes: N subjects, D features, E events, T times. As in `probes`, the objective is on the
mean scale, -log PL / N + l2 / 2 ||coef||^2, over features standardised on the training rows.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from ehrwear_jax.evals.probes import L2_GRID, Standardized, Standardizer, blocks, check_features, check_grid


class PartialLikelihood:
    """Efron's log partial likelihood of fixed follow-up times, as a function of the log-hazards.

    Subjects are sorted by time once. With d events tied at a time, Efron's l-th term (l = 0..d-1)
    removes l/d of the tied events' hazard from the risk set's sum (Efron 1977).
    """

    def __init__(self, time_N: npt.ArrayLike, event_N: npt.ArrayLike) -> None:
        time_N, event_N = check_survival(time_N, event_N, "survival")
        self.order = np.argsort(time_N, kind="stable")
        self.time, self.event = time_N[self.order], event_N[self.order]
        self.events = np.flatnonzero(self.event)  # positions in time order, [E]
        event_times = self.time[self.events]
        self.risk_start = np.searchsorted(self.time, event_times, "left")
        first = np.searchsorted(event_times, event_times, "left")
        last = np.searchsorted(event_times, event_times, "right")
        self.tie_start, self.tie_group = np.unique(first, return_inverse=True)
        self.tie_fraction = (np.arange(len(self.events)) - first) / (last - first)

    @property
    def n_events(self) -> int:
        return len(self.events)

    def _terms(self, eta_N: np.ndarray):
        """Sorted log-hazards, hazards scaled by exp(-max), and Efron's risk sums [E]."""
        eta = eta_N[self.order]
        hazard = np.exp(eta - eta.max())
        at_risk = np.cumsum(hazard[::-1])[::-1][self.risk_start]
        tied = self._sum_ties(hazard[self.events])
        return eta, hazard, at_risk - self.tie_fraction * tied

    def _sum_ties(self, values_E):
        """Sum of `values_E` ([E] or [E, D]) over the events at the same time, for each event."""
        return np.add.reduceat(values_E, self.tie_start, axis=0)[self.tie_group]

    def value(self, eta_N: np.ndarray) -> float:
        """Log partial likelihood of the log-hazards eta_N; -inf where it overflows."""
        if not self.n_events:
            return 0.0
        eta, _, risk_sum = self._terms(eta_N)
        if not (np.isfinite(eta).all() and (risk_sum > 0).all()):
            return -np.inf
        return float(np.sum(eta[self.events] - eta.max() - np.log(risk_sum)))

    def gradient_hessian(self, x_NxD: np.ndarray | Standardized, eta_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gradient [D] and Hessian [D, D] with respect to coef, where eta = x @ coef; some rows at a time."""
        _, hazard, risk_sum = self._terms(eta_N)
        # How often each subject's hazard enters the sum of second moments over all terms.
        inverse = 1 / risk_sum
        passed = np.searchsorted(self.time[self.events], self.time, "right")
        share = np.concatenate([[0.0], np.cumsum(inverse)])[passed]
        share[self.events] -= self._sum_ties(self.tie_fraction * inverse)
        n_features = x_NxD.shape[1]
        gradient_D, hessian_DxD, later_D = np.zeros(n_features), np.zeros((n_features,) * 2), np.zeros(n_features)
        for part in self._from_the_last(n_features):
            x = x_NxD[self.order[part]]
            hessian_DxD -= x.T @ ((hazard[part] * share[part])[:, None] * x)
            weighted = hazard[part, None] * x
            mine = slice(*np.searchsorted(self.events, (part.start, part.stop)))
            event = self.events[mine] - part.start
            tied_sum = self._sum_ties_of(mine, weighted[event])
            weighted[-1] += later_D  # of those at risk after these
            at_risk_sum = np.cumsum(weighted[::-1], axis=0)[::-1]
            later_D = at_risk_sum[0]
            mean_ExD = at_risk_sum[self.risk_start[mine] - part.start] - self.tie_fraction[mine, None] * tied_sum
            mean_ExD /= risk_sum[mine, None]
            gradient_D += x[event].sum(0) - mean_ExD.sum(0)
            hessian_DxD += mean_ExD.T @ mean_ExD
        return gradient_D, hessian_DxD

    def _from_the_last(self, n_features: int) -> Iterator[slice]:
        """Rows in time order, the last ones first, that no time is divided among."""
        for rows in reversed(list(blocks(len(self.time), n_features))):
            begin, end = (
                np.searchsorted(self.time, self.time[i], "left") if i < len(self.time) else i
                for i in (rows.start, rows.stop)
            )
            if begin < end:
                yield slice(int(begin), int(end))

    def _sum_ties_of(self, mine: slice, values_ExD: np.ndarray) -> np.ndarray:
        """`_sum_ties` of some events, with all others of their times."""
        if not len(values_ExD):
            return values_ExD
        first, end = np.searchsorted(self.tie_start, (mine.start, mine.stop))
        return np.add.reduceat(values_ExD, self.tie_start[first:end] - mine.start)[self.tie_group[mine] - first]


def check_survival(time_N: npt.ArrayLike, event_N: npt.ArrayLike, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(float64 [N] times, bool [N] events); ValueError on bad shapes or values."""
    time_N, event_N = np.asarray(time_N, np.float64), np.asarray(event_N)
    if time_N.ndim != 1 or time_N.shape != event_N.shape or not time_N.size:
        raise ValueError(f"{name}: times {time_N.shape} and events {event_N.shape} must be [N]")
    bad = ~np.isfinite(time_N) | (time_N < 0)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise ValueError(f"{name}: time is {time_N[row]} in row {row}, expected 0 or more")
    if not np.isin(event_N, (0, 1)).all():
        row = int(np.flatnonzero(~np.isin(event_N, (0, 1)))[0])
        raise ValueError(f"{name}: event is {event_N[row]} in row {row}, expected 0 or 1")
    return time_N, event_N.astype(bool)


def _maximise(likelihood, x_NxD, l2: float, coef_D, max_iterations: int = 100) -> np.ndarray:
    """Newton's method with step halving on the penalised partial likelihood, from coef_D."""
    n = len(x_NxD)

    def objective(coef):
        return likelihood.value(x_NxD @ coef) / n - l2 / 2 * coef @ coef

    current = objective(coef_D)
    for _ in range(max_iterations):
        gradient, hessian = likelihood.gradient_hessian(x_NxD, x_NxD @ coef_D)
        gradient = gradient / n - l2 * coef_D
        step = np.linalg.solve(l2 * np.eye(len(coef_D)) - hessian / n, gradient)
        if gradient @ step < 1e-14:  # twice the expected gain in mean log-likelihood
            return coef_D
        scale = 1.0
        while not (proposed := objective(coef_D + scale * step)) > current:
            scale /= 2
            if scale < 1e-6:  # no representable gain is left
                return coef_D
        coef_D, current = coef_D + scale * step, proposed
    raise ValueError(f"Cox regression did not converge in {max_iterations} Newton steps, l2={l2}")


@dataclasses.dataclass(frozen=True)
class CoxModel:
    """A fitted Cox model on standardised features."""

    standardizer: Standardizer
    coef_D: np.ndarray
    l2: float
    validation_loss: dict[float, float]  # l2 -> -log PL per validation event
    event_times_T: np.ndarray
    cumulative_hazard_T: np.ndarray  # Breslow's baseline at log-hazard 0

    def log_hazard(self, x: npt.ArrayLike) -> np.ndarray:
        """Linear predictor float64 [N]: higher means an earlier event. 0 = the training mean."""
        x = check_features(x, "x", len(self.coef_D))
        return Standardized(self.standardizer, x) @ self.coef_D

    def survival(self, x: npt.ArrayLike, times_T: npt.ArrayLike) -> np.ndarray:
        """P(no event by each time), float64 [N, T]; flat beyond the last training event."""
        position = np.searchsorted(self.event_times_T, np.asarray(times_T, np.float64), "right")
        baseline_T = np.concatenate([[0.0], self.cumulative_hazard_T])[position]
        with np.errstate(over="ignore"):
            return np.exp(-np.exp(self.log_hazard(x))[:, None] * baseline_T)


def breslow(time_N: npt.ArrayLike, event_N: npt.ArrayLike, eta_N: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Breslow's estimate: (distinct event times [T], baseline cumulative hazard [T])."""
    time_N, event_N = check_survival(time_N, event_N, "survival")
    order = np.argsort(time_N, kind="stable")
    time, hazard = time_N[order], np.exp(np.asarray(eta_N)[order])
    event_times, counts = np.unique(time_N[event_N], return_counts=True)
    at_risk = np.cumsum(hazard[::-1])[::-1][np.searchsorted(time, event_times, "left")]
    return event_times, np.cumsum(counts / at_risk)


@dataclasses.dataclass(frozen=True)
class Hazard:
    """Cumulative hazards exp(eta) * baseline of N people for one kind of event.

    Attributes:
      eta_N: log-hazards.
      times_K, cumulative_K: where the baseline jumps, increasing, and its values there (`breslow`).
    """

    eta_N: np.ndarray
    times_K: np.ndarray
    cumulative_K: np.ndarray

    def jumps(self, at_K: np.ndarray) -> np.ndarray:
        """Increments [N, K] between the times at_K, from 0 at the beginning."""
        position = np.searchsorted(self.times_K, at_K, "right")
        baseline_K = np.concatenate([[0.0], self.cumulative_K])[position]
        return np.exp(np.minimum(self.eta_N, _MAX_ETA))[:, None] * np.diff(baseline_K, prepend=0.0)


_MAX_ETA = 300.0  # a hazard beyond it overflows; the event is certain long before
_BLOCK_CELLS = 2**22


def event_free(event: Hazard, competing: Hazard, times_T: npt.ArrayLike) -> np.ndarray:
    """P(the event has not come by each time), float64 [N, T]: 1 less the cumulative incidence of two hazards.

    The event comes at a time with the share of its hazard, to those whom neither event has met before (Benichou and
    Gail, Biometrics 46, 1990). exp(-cumulative hazard) of the event alone would be the risk if nobody died, and too
    high for those who are likely to die first. With `competing` zero throughout it is exp(-cumulative hazard).
    """
    times_T = np.asarray(times_T, np.float64)
    grid_K = np.union1d(event.times_K, competing.times_K)
    grid_K = grid_K[grid_K <= times_T.max(initial=0.0)]
    at_T, out = np.searchsorted(grid_K, times_T, "right"), np.ones((len(event.eta_N), len(times_T)))
    size = max(_BLOCK_CELLS // max(len(grid_K), 1), 1)
    for i in range(0, len(out), size):
        first, second = (dataclasses.replace(h, eta_N=h.eta_N[i : i + size]).jumps(grid_K) for h in (event, competing))
        both = first + second
        before = np.exp(both - np.cumsum(both, axis=1))
        share = np.divide(first, both, out=np.zeros_like(both), where=both > 0)
        come = np.cumsum(before * -np.expm1(-both) * share, axis=1)
        out[i : i + size] -= np.concatenate([np.zeros((len(come), 1)), come], axis=1)[:, at_T]
    return np.clip(out, 0.0, 1.0)


def fit_cox(
    x_train: npt.ArrayLike,
    time_train: npt.ArrayLike,
    event_train: npt.ArrayLike,
    x_val: npt.ArrayLike,
    time_val: npt.ArrayLike,
    event_val: npt.ArrayLike,
    *,
    l2_grid: Sequence[float] = L2_GRID,
) -> CoxModel:
    """Ridge Cox regression; strength by the validation partial likelihood (ties: the stronger).

    Args:
      x_train, x_val: float [N, D].
      time_train, time_val: follow-up, any unit, 0 or more, [N].
      event_train, event_val: bool or 0/1 [N].
      l2_grid: strengths to try, from strong to weak by warm starts. No refit on validation rows.

    Raises:
      ValueError: bad shapes or values, or no event among the training or the validation rows.
    """
    x_train = check_features(x_train, "x_train")
    x_val = check_features(x_val, "x_val", x_train.shape[1])
    train = PartialLikelihood(time_train, event_train)
    validation = PartialLikelihood(time_val, event_val)
    for name, x, likelihood in (("train", x_train, train), ("val", x_val, validation)):
        if len(likelihood.time) != len(x):
            raise ValueError(f"x_{name} has {len(x)} rows, time_{name} {len(likelihood.time)}")
        if not likelihood.n_events:
            raise ValueError(f"event_{name} holds no event among {len(x)} rows")
    standardizer = Standardizer.fit(x_train)
    z_train, z_val = (Standardized(standardizer, x) for x in (x_train, x_val))
    coef_D = np.zeros(x_train.shape[1])
    losses: dict[float, float] = {}
    fits: dict[float, np.ndarray] = {}
    for l2 in check_grid(l2_grid):
        coef_D = fits[l2] = _maximise(train, z_train, l2, coef_D)
        losses[float(l2)] = -validation.value(z_val @ coef_D) / validation.n_events
    best = min(losses, key=lambda l2: losses[l2])
    baseline = breslow(time_train, event_train, z_train @ fits[best])
    return CoxModel(standardizer, fits[best], best, losses, *baseline)
