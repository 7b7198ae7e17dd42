"""Builds every metric of a task as a function from a row factor to a statistic, for cohorts and their subgroups.

What is fixed by the whole cohort (bin edges, thresholds, the censoring) is fixed here once; a
factor then restricts the metrics to a subgroup or corrects them for censoring.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ehrwear_jax.evals import calibration, classification, concordance, decision, recalibration, regression, survival
from ehrwear_jax.evals.weighting import Statistic, merge, rename

Build = Callable[[np.ndarray | None], Statistic]


def binary(
    y_N: npt.ArrayLike,
    predictions: Mapping[str, np.ndarray],
    *,
    operating_points: Mapping[str, float | np.ndarray] | None = None,
    thresholds: Sequence[float] = decision.THRESHOLDS,
    n_bins: int = 10,
    factor_N: npt.ArrayLike | None = None,
    slopes: bool = False,
) -> dict[str, Build]:
    """AUROC, AUPRC, prevalence, Brier with null and skill, ECE with its gaps and net benefit of every model.

    Args:
      y_N: 0/1 labels.
      predictions: model -> probability [N].
      operating_points: model -> threshold chosen on validation rows (`classification.sensitivity_threshold`), or one
        for each row, of its fold [N]: adds the confusion matrix there for the models that have one.
      thresholds: of the decision curve; empty for none.
      n_bins: of the calibration error, of equal mass over the whole cohort.
      factor_N: of all rows, for instance `survival.horizon_factor`.
      slopes: adds calibration slope and intercept, which take most of the time.

    Returns:
      model -> function from a further factor (None: ones) to a statistic.

    Raises:
      ValueError: vectors of different lengths, a value that is no probability; names the model.
    """
    points = operating_points or {}

    def of_model(model: str, p_N: np.ndarray) -> Build:
        known = slice(None) if factor_N is None else np.asarray(factor_N) > 0
        with _naming(model):
            edges = calibration.equal_mass_edges(np.asarray(p_N)[known], n_bins)

        def build(cell_N: np.ndarray | None) -> Statistic:
            only = {"factor_N": _product(factor_N, cell_N)}
            with _naming(model):
                parts: list[Statistic] = [
                    classification.BinaryRanking(y_N, p_N, **only),
                    classification.Prevalence(y_N, **only),
                    calibration.Calibration(y_N, p_N, edges=edges, gaps=True, **only),
                ]
                if slopes:
                    parts.append(recalibration.Recalibration(y_N, p_N, **only))
                if len(thresholds):
                    parts.append(decision.NetBenefit(y_N, p_N, thresholds, **only))
                if model in points:
                    called_N = (np.asarray(p_N, np.float64) >= points[model]).astype(np.float64)
                    parts.append(classification.Confusion(y_N, called_N, 0.5, **only))
            return merge(*parts)

        return build

    return {model: of_model(model, p_N) for model, p_N in predictions.items()}


@contextlib.contextmanager
def _naming(model: str) -> Iterator[None]:
    """Adds the model to the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"model {model}: {error}") from error


@dataclasses.dataclass(frozen=True)
class PredictedCurves:
    """Predicted curves: by_model: model -> P(no event by t) [N, T] at times_T, for the models that have them.

    With competing events this is 1 less the cumulative incidence.
    """

    times_T: np.ndarray
    by_model: Mapping[str, np.ndarray]


def time_to_event(
    train: survival.TrainingCurves,
    follow_up: survival.FollowUp,
    risk: Mapping[str, np.ndarray],
    *,
    horizons: Sequence[float] = (),
    tau: float = np.inf,
    curves: PredictedCurves | None = None,
) -> dict[str, Build]:
    """C-index, Uno's C, AUC at each horizon ("auc_<horizon>") and, from curves, Brier scores of every model.

    Args:
      train: censoring and null, estimated on the training rows.
      follow_up: of the rows that are scored.
      risk: model -> risk [N], higher = earlier event.
      horizons, tau: inside the training rows' follow-up.
      curves: adds Brier(t) and its integral beside those of the null.
    """
    labels = follow_up.time_N, follow_up.code_N

    def of_model(model: str, risk_N: np.ndarray) -> Build:
        def build(cell_N: np.ndarray | None) -> Statistic:
            with _naming(model):
                parts: list[Statistic] = [concordance.uno_c(train.censoring, *labels, risk_N, tau=tau, factor_N=cell_N)]
                for horizon in horizons:
                    auc = survival.dynamic_auc(train.censoring, *labels, risk_N, horizon, factor_N=cell_N)
                    parts.append(rename(auc, {"auc": f"auc_{horizon:g}"}))
                if curves is not None and model in curves.by_model:
                    predicted = curves.by_model[model], curves.times_T
                    brier = survival.BrierCurve(train.censoring, *labels, *predicted, null=train.null, factor_N=cell_N)
                    parts.append(rename(brier, _at_times(curves.times_T)))
            return merge(*parts)

        return build

    return {model: of_model(model, risk_N) for model, risk_N in risk.items()}


def continuous(y_N: npt.ArrayLike, predictions: Mapping[str, np.ndarray]) -> dict[str, Build]:
    """RMSE, MAE and R2 of every model."""

    def of_model(p_N: np.ndarray) -> Build:
        return lambda cell_N: regression.Regression(y_N, p_N, factor_N=cell_N)

    return {model: of_model(p_N) for model, p_N in predictions.items()}


def _at_times(times_T) -> Callable[[str], str]:
    """ "brier_3_null" -> "brier_90_null", where 90 is the fourth time."""

    def name(metric: str) -> str:
        kind, *rest = metric.split("_")
        return "_".join([kind, f"{times_T[int(rest[0])]:g}", *rest[1:]]) if kind == "brier" else metric

    return name


def _product(first, second):
    return second if first is None else first if second is None else np.asarray(first) * second
