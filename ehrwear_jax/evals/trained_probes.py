"""Trains probes as the paper does (A.4): linear or one hidden layer, Adam, early stopping.

Every L2 strength and every seed is trained at once, as a batch of models inside one compiled epoch.
Inputs are fixed arrays: the encoder stays frozen. `probes` and `cox` solve the linear problems
exactly and are their reference; with few rows, Adam at 5e-4 for 50 epochs has not converged to them.

Array suffixes: N rows, D features, S seeds, L strengths, H hidden units, T times.
"""

import dataclasses
import functools
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax

from ehrwear_jax.evals import probes
from ehrwear_jax.evals.cox import breslow, check_survival

OBJECTIVES = ("binary", "survival", "regression")

# Labels: 0/1 [N]; (time [N], event [N]); or float [N].
Target = npt.ArrayLike | tuple[npt.ArrayLike, npt.ArrayLike]


@dataclasses.dataclass(frozen=True)
class ProbeSettings:
    """How a probe is trained; the defaults are those of appendix A.4."""

    hidden: int = 0  # units of the hidden layer, 0 for a linear probe
    learning_rate: float = 5e-4
    max_epochs: int = 50
    patience: int = 5  # epochs without a better validation loss before a model stops
    batch_size: int = 256  # rows per step, and the risk set of the Cox loss; 0 takes all rows
    l2_grid: tuple[float, ...] = probes.L2_GRID
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)  # of the initialisation and the order of rows

    def __post_init__(self) -> None:
        probes.check_grid(self.l2_grid)
        if min(self.max_epochs, self.patience) < 1 or min(self.hidden, self.batch_size) < 0:
            raise ValueError(f"epochs and patience must be positive, sizes not negative: {self}")
        if not self.seeds:
            raise ValueError("a probe needs a seed or more")


def efron_loss(eta_N: jax.Array, time_N: jax.Array, event_N: jax.Array) -> jax.Array:
    """-log partial likelihood / N with Efron's ties, differentiable in eta_N; rows sorted by time.

    Args:
      eta_N: log-hazards, float.
      time_N: ascending. event_N: bool.
    """
    n = eta_N.shape[0]
    top = jax.lax.stop_gradient(eta_N.max())
    hazard_N = jnp.exp(eta_N - top)
    first = jnp.searchsorted(time_N, time_N, side="left")
    last = jnp.searchsorted(time_N, time_N, side="right")

    def running(v_N):
        return jnp.concatenate([jnp.zeros(1, v_N.dtype), jnp.cumsum(v_N)])

    events, tied = running(event_N.astype(eta_N.dtype)), running(jnp.where(event_N, hazard_N, 0.0))
    at_risk_N = jnp.cumsum(hazard_N[::-1])[::-1][first]
    rank_N = events[:-1] - events[first]  # how many tied events come before
    share_N = rank_N / jnp.maximum(events[last] - events[first], 1.0)
    # Where all that is left lies 88 below the top, its sum underflows: bounded, not infinite.
    risk_sum_N = jnp.maximum(at_risk_N - share_N * (tied[last] - tied[first]), jnp.finfo(eta_N.dtype).tiny)
    terms_N = jnp.where(event_N, eta_N - top - jnp.log(risk_sum_N), 0.0)
    return -terms_N.sum() / n


def _loss(objective: str, output_N, target):
    if objective == "survival":
        return efron_loss(output_N, *target)
    if objective == "binary":
        return jnp.mean(jnp.logaddexp(0.0, output_N) - target[0] * output_N)
    return jnp.mean((output_N - target[0]) ** 2) / 2


def _apply(params, x_NxD):
    if "hidden" in params:
        x_NxD = jax.nn.gelu(x_NxD @ params["hidden"]["kernel"] + params["hidden"]["bias"][None])
    return x_NxD @ params["out"]["kernel"] + params["out"].get("bias", 0.0)


def _initial(seed: int, n_features: int, hidden: int, bias: float | None):
    """Parameters whose output starts at the training rows' mean, which steps of 5e-4 would not reach.

    A Cox model has no bias (None): the likelihood does not depend on it, and Adam would amplify the
    rounding errors of its gradient.
    """
    first, second = jax.random.split(jax.random.key(seed))
    width = hidden or n_features
    scale = 1 / np.sqrt(width) if hidden else 0.0
    params = {"out": {"kernel": scale * jax.random.normal(second, (width,))}}
    if bias is not None:
        params["out"]["bias"] = jnp.float32(bias)
    if hidden:
        kernel = jax.random.normal(first, (n_features, hidden)) / np.sqrt(n_features)
        params["hidden"] = {"kernel": kernel, "bias": jnp.zeros(hidden)}
    return params


class EpochPlan(NamedTuple):
    """What of an epoch is fixed when it is compiled."""

    objective: str
    learning_rate: float
    n_steps: int


@functools.partial(jax.jit, static_argnames=("plan",), donate_argnames=("params", "state"))
def _epoch(params, state, order_SxN, l2_L, x_NxD, target, *, plan):
    """One pass over the rows for every seed and strength; params and state lead with [S, L]."""
    optimizer = optax.adam(plan.learning_rate)
    size = order_SxN.shape[1] // plan.n_steps

    def penalised(params, l2, x, target):
        kernels = [layer["kernel"] for layer in params.values()]
        return _loss(plan.objective, _apply(params, x), target) + l2 / 2 * sum(jnp.sum(k**2) for k in kernels)

    def update(params, state, l2, x, target):
        updates, state = optimizer.update(jax.grad(penalised)(params, l2, x, target), state, params)
        return optax.apply_updates(params, updates), state

    def step(carry, rows_Sxb):
        def of_seed(params, state, rows_b):
            batch = x_NxD[rows_b], tuple(t[rows_b] for t in target)
            return jax.vmap(update, in_axes=(0, 0, 0, None, None))(params, state, l2_L, *batch)

        params, state = carry
        return jax.vmap(of_seed)(params, state, rows_Sxb), None

    rows = order_SxN[:, : plan.n_steps * size].reshape(len(order_SxN), plan.n_steps, size).swapaxes(0, 1)
    # Rows are stored by time: sorted positions keep every batch in the order that the Cox loss needs.
    return jax.lax.scan(step, (params, state), jnp.sort(rows, axis=-1))[0]


@functools.partial(jax.jit, static_argnames=("objective",))
def _validate(params, x_NxD, target, *, objective):
    """Loss of every seed and strength, [S, L]."""
    return jax.vmap(jax.vmap(lambda p: _loss(objective, _apply(p, x_NxD), target)))(params)


@jax.jit
def _keep_better(better_SxL, params, best):
    where = lambda new, old: jnp.where(better_SxL.reshape(better_SxL.shape + (1,) * (new.ndim - 2)), new, old)  # noqa: E731
    return jax.tree.map(where, params, best)


@dataclasses.dataclass(frozen=True)
class TrainedProbe:
    """One trained model per seed, each at the strength of its lowest validation loss."""

    objective: str
    standardizer: probes.Standardizer
    params: dict  # leaves lead with [S]
    l2_S: np.ndarray
    validation_loss_SxL: np.ndarray  # best over the epochs, strengths from strong to weak
    epochs_SxL: np.ndarray  # epoch of that best, from 1
    centre: float = 0.0  # of a regression target
    scale: float = 1.0
    baselines: tuple = ()  # per seed Breslow's (event times, cumulative hazard)

    def output(self, x: npt.ArrayLike) -> np.ndarray:
        """Logit, log-hazard or prediction, float64 [S, N]."""
        x = probes.check_features(x, "x", len(self.standardizer.mean_D))
        z = jnp.asarray(self.standardizer(x), jnp.float32)
        return np.asarray(jax.vmap(_apply, in_axes=(0, None))(self.params, z), np.float64) * self.scale + self.centre

    def predict_proba(self, x: npt.ArrayLike) -> np.ndarray:
        """P(y = 1) of a binary probe, float64 [S, N]."""
        self._must_be("binary")
        return probes.sigmoid(self.output(x))

    def survival(self, x: npt.ArrayLike, times_T: npt.ArrayLike) -> np.ndarray:
        """P(no event by each time) of a survival probe, float64 [S, N, T]."""
        self._must_be("survival")
        curves = []
        for eta_N, (times, hazard) in zip(self.output(x), self.baselines, strict=True):
            at = np.searchsorted(times, np.asarray(times_T, np.float64), "right")
            with np.errstate(over="ignore"):
                curves.append(np.exp(-np.exp(eta_N)[:, None] * np.concatenate([[0.0], hazard])[at]))
        return np.stack(curves)

    def _must_be(self, objective: str) -> None:
        if self.objective != objective:
            raise ValueError(f"this is a {self.objective} probe, not a {objective} one")


def _prepare(
    objective: str, x: npt.ArrayLike, target: Any, name: str, n_features: int | None = None
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """(features, target arrays) with rows by time for a survival target."""
    x = probes.check_features(x, f"x_{name}", n_features)
    arrays: tuple[np.ndarray, ...]
    if objective == "survival":
        time, event = check_survival(target[0], target[1], name)
        _same_rows(x, time, name)
        if not event.any():
            raise ValueError(f"{name} holds no event among {len(event)} rows")
        order = np.argsort(time, kind="stable")
        # Ranks, not times: float32 would merge different times.
        arrays = np.unique(time, return_inverse=True)[1][order].astype(np.int32), event[order]
        x = x[order]
    elif objective == "binary":
        arrays = (probes.check_labels(target, f"y_{name}", len(x)),)
    elif objective == "regression":
        arrays = (probes.check_features(np.asarray(target, np.float64).reshape(-1, 1), f"y_{name}")[:, 0],)
    else:
        raise ValueError(f"objective must be one of {OBJECTIVES}, got {objective!r}")
    _same_rows(x, arrays[0], name)
    return x, arrays


def _same_rows(x, target, name: str) -> None:
    if len(target) != len(x):
        raise ValueError(f"x_{name} has {len(x)} rows, its target {len(target)}")


def fit_probe(
    objective: str,
    x_train: npt.ArrayLike,
    target_train: Target,
    x_val: npt.ArrayLike,
    target_val: Target,
    settings: ProbeSettings | None = None,
) -> TrainedProbe:
    """Trains every strength and seed at once and keeps, per seed, the best on validation.

    Args:
      objective: "binary" (cross-entropy), "survival" (Cox partial likelihood, risk sets within the
        batch) or "regression" (mean squared error of the standardised target, halved).
      x_train, x_val: float [N, D], standardised by the training rows.
      target_train, target_val: 0/1 [N]; (time [N], event [N]); or float [N].
      settings: of the training, by default the paper's. The penalty is l2 / 2 ||kernels||^2.

    Raises:
      ValueError: bad shapes or values, one class or no event, an unknown objective, or a loss that
        is not finite.
    """
    settings = settings or ProbeSettings()
    x_train, train = _prepare(objective, x_train, target_train, "train")
    x_val, val = _prepare(objective, x_val, target_val, "val", x_train.shape[1])
    bias, centre, scale = _output_scale(objective, train)
    if objective == "regression":
        train, val = (((t - centre) / scale,) for t in (train[0], val[0]))
    standardizer = probes.Standardizer.fit(x_train)
    z_train, z_val = (jnp.asarray(standardizer(x), jnp.float32) for x in (x_train, x_val))
    on_train, on_val = (
        tuple(jnp.asarray(t, jnp.float32 if t.dtype == np.float64 else t.dtype) for t in p) for p in (train, val)
    )
    best = _train(objective, (z_train, on_train), (z_val, on_val), bias, settings)
    chosen = best.loss_SxL.argmin(1)
    params = jax.tree.map(lambda v: v[np.arange(len(settings.seeds)), chosen], best.params)
    strengths = probes.check_grid(settings.l2_grid)[chosen]
    probe = TrainedProbe(objective, standardizer, params, strengths, best.loss_SxL, best.epoch_SxL, centre, scale)
    if objective != "survival":
        return probe
    days, seen = cast(tuple[npt.ArrayLike, npt.ArrayLike], target_train)  # as the objective says
    time, event = check_survival(days, seen, "train")
    eta_SxN = probe.output(x_train)[:, np.argsort(np.argsort(time, kind="stable"))]
    return dataclasses.replace(probe, baselines=tuple(breslow(time, event, eta_N) for eta_N in eta_SxN))


def _output_scale(objective: str, train) -> tuple[float | None, float, float]:
    """(bias at the start, centre of the target, its scale) by the training rows."""
    if objective == "survival":
        return None, 0.0, 1.0
    if objective == "regression":
        return 0.0, train[0].mean(), train[0].std() or 1.0
    if (rate := train[0].mean()) in (0.0, 1.0):
        raise ValueError(f"y_train holds one class only ({int(rate)}, {len(train[0])} rows)")
    return np.log(rate / (1 - rate)), 0.0, 1.0


class _Best(NamedTuple):
    """For every seed and strength, the parameters of the lowest validation loss, that loss and its epoch."""

    params: Any
    loss_SxL: np.ndarray
    epoch_SxL: np.ndarray


def _train(objective: str, train, val, bias, settings: ProbeSettings) -> _Best:
    """Epochs until no model has improved for `patience` of them; train and val are (features, target arrays)."""
    grid, seeds = probes.check_grid(settings.l2_grid), settings.seeds
    n, n_features = train[0].shape
    initial = [_initial(s, n_features, settings.hidden, bias) for s in seeds]
    params = jax.tree.map(lambda *v: jnp.repeat(jnp.stack(v)[:, None], len(grid), axis=1), *initial)
    state = jax.vmap(jax.vmap(optax.adam(settings.learning_rate).init))(params)
    n_steps = max(1, round(n / settings.batch_size)) if settings.batch_size else 1
    plan, l2_L = EpochPlan(objective, settings.learning_rate, n_steps), jnp.asarray(grid, jnp.float32)
    orders = [np.random.default_rng([s, n]) for s in seeds]
    best, best_loss = jax.tree.map(jnp.copy, params), np.full((len(seeds), len(grid)), np.inf)
    best_epoch = np.zeros(best_loss.shape, np.int64)
    for epoch in range(1, settings.max_epochs + 1):
        order_SxN = jnp.asarray(np.stack([rng.permutation(n) for rng in orders]).astype(np.int32))
        params, state = _epoch(params, state, order_SxN, l2_L, *train, plan=plan)
        loss = np.asarray(_validate(params, *val, objective=objective), np.float64)
        if not np.isfinite(loss).all():
            raise ValueError(f"the validation loss is not finite in epoch {epoch}")
        running = epoch - best_epoch <= settings.patience
        better = running & (loss < best_loss)
        best = _keep_better(jnp.asarray(better), params, best)
        best_loss, best_epoch = np.where(better, loss, best_loss), np.where(better, epoch, best_epoch)
        if (epoch - best_epoch >= settings.patience).all():
            break
    return _Best(best, best_loss, best_epoch)
