"""Every metric of a task as functions from a row factor to a statistic, for `subgroups.score`.

What is fixed by the whole cohort (bin edges, thresholds, the censoring) is fixed here once; a
factor then restricts the metrics to a subgroup or corrects them for censoring.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ehrwear_jax.evals import calibration, classification, decision, regression, survival
from ehrwear_jax.evals.weighting import Statistic, merge, rename

Build = Callable[[np.ndarray | None], Statistic]


def binary(
    y_N,
    predictions: Mapping[str, np.ndarray],
    *,
    operating_points: Mapping[str, float] | None = None,
    thresholds: Sequence[float] = decision.THRESHOLDS,
    n_bins: int = 10,
    factor_N=None,
) -> dict[str, Build]:
    """AUROC, AUPRC, prevalence, Brier, ECE with its gaps and net benefit of every row.

    Args:
      y_N: 0/1 labels.
      predictions: row -> probability [N].
      operating_points: row -> threshold chosen on validation rows
        (`classification.sensitivity_threshold`): adds the confusion matrix there.
      thresholds: of the decision curve.
      n_bins: of the calibration error, of equal mass over the whole cohort.
      factor_N: of all rows, for instance `survival.horizon_factor`.

    Returns:
      row -> function from a further factor (None: ones) to a statistic.
    """

    def of_row(row, p_N) -> Build:
        known = slice(None) if factor_N is None else np.asarray(factor_N) > 0
        edges = calibration.equal_mass_edges(np.asarray(p_N)[known], n_bins)

        def build(cell_N) -> Statistic:
            only = {"factor_N": _product(factor_N, cell_N)}
            parts = [
                classification.BinaryRanking(y_N, p_N, **only),
                classification.Prevalence(y_N, **only),
                calibration.Calibration(y_N, p_N, edges=edges, gaps=True, **only),
                decision.NetBenefit(y_N, p_N, thresholds, **only),
            ]
            if operating_points is not None:
                parts.append(classification.Confusion(y_N, p_N, operating_points[row], **only))
            return merge(*parts)

        return build

    return {row: of_row(row, p_N) for row, p_N in predictions.items()}


def time_to_event(
    censoring: survival.StepFunction,
    time_N,
    event_N,
    risk: Mapping[str, np.ndarray],
    *,
    horizons: Sequence[float],
    tau: float = np.inf,
    curves: Mapping[str, np.ndarray] | None = None,
    times_T: Sequence[float] = (),
    null: survival.StepFunction | None = None,
) -> dict[str, Build]:
    """C-index, Uno's C, AUC at each horizon ("auc_<horizon>") and, from curves, Brier scores.

    Args:
      censoring, null: estimated on the training rows (`survival.censoring_survival`,
        `survival.kaplan_meier`).
      time_N, event_N: follow-up and 0/1 event.
      risk: row -> risk [N], higher = earlier event.
      horizons, tau: inside the training rows' follow-up.
      curves: row -> P(T > t) [N, T] at times_T, for the rows that have them.
    """

    def of_row(row, risk_N) -> Build:
        def build(cell_N) -> Statistic:
            parts = [survival.uno_c(censoring, time_N, event_N, risk_N, tau=tau, factor_N=cell_N)]
            for horizon in horizons:
                auc = survival.dynamic_auc(censoring, time_N, event_N, risk_N, horizon, factor_N=cell_N)
                parts.append(rename(auc, {"auc": f"auc_{horizon:g}"}))
            if curves is not None and row in curves:
                arguments = censoring, time_N, event_N, curves[row], times_T
                brier = survival.BrierCurve(*arguments, null=null, factor_N=cell_N)
                parts.append(rename(brier, _at_times(times_T)))
            return merge(*parts)

        return build

    return {row: of_row(row, risk_N) for row, risk_N in risk.items()}


def continuous(y_N, predictions: Mapping[str, np.ndarray]) -> dict[str, Build]:
    """RMSE, MAE and R2 of every row."""
    return {
        row: lambda cell_N, p_N=p_N: regression.Regression(y_N, p_N, factor_N=cell_N)
        for row, p_N in predictions.items()
    }


def _at_times(times_T) -> Callable[[str], str]:
    """ "brier_3_null" -> "brier_90_null", where 90 is the fourth time."""

    def name(metric: str) -> str:
        kind, *rest = metric.split("_")
        return "_".join([kind, f"{times_T[int(rest[0])]:g}", *rest[1:]]) if kind == "brier" else metric

    return name


def _product(first, second):
    return second if first is None else first if second is None else np.asarray(first) * second
