"""Computes AUROC, average precision and confusion matrices, exact under ties and row weights."""

import numpy as np
import numpy.typing as npt

from ehrwear_jax.evals.weighting import binary, evaluate, group_rows, kept_rows, ratio, same_length, vector


class BinaryRanking:
    """AUROC and average precision of one score vector under many weightings.

    Only tie groups that contain a positive enter either metric, so the negatives are summed per
    interval between consecutive positive scores. `auprc=False` leaves the average precision out,
    which is most of the work.
    """

    def __init__(
        self, y_N: npt.ArrayLike, score_N: npt.ArrayLike, *, factor_N: npt.ArrayLike | None = None, auprc: bool = True
    ) -> None:
        n_rows, self._auprc = same_length(y=y_N, score=score_N), auprc
        rows, factor_N = kept_rows(factor_N, n_rows)
        y_N, score_N = binary(np.asarray(y_N)[rows], "y"), vector(np.asarray(score_N)[rows], "score")
        levels = np.unique(score_N[y_N])
        left_N, right_N = (np.searchsorted(levels, score_N, side) for side in ("left", "right"))
        # Row blocks: positives at a level | negatives lower than it but not lower than the one before.
        self._n_levels = len(levels)
        row_N = np.where(y_N, left_N, self._n_levels + right_N)
        self._sums = group_rows(row_N, rows, 2 * self._n_levels + 1, n_rows, factor_N)
        tied = np.flatnonzero(~y_N & (left_N < right_N))
        self._tied_levels, of = np.unique(left_N[tied], return_inverse=True)
        self._tied_sums = group_rows(of, rows[tied], len(self._tied_levels), n_rows, factor_N[tied])

    def __call__(self, weight_NxB: np.ndarray) -> dict[str, np.ndarray]:
        """{"auroc": [B], "auprc": [B]}, NaN where undefined (one class; no positives)."""
        positive, negative = np.split(self._sums @ weight_NxB, [self._n_levels])
        positives_B, negatives_B = positive.sum(0), negative.sum(0)
        lower = np.cumsum(negative[:-1], axis=0, out=negative[:-1])
        concordant_B = np.einsum("gb,gb->b", positive, lower)
        if len(self._tied_levels):
            tied = self._tied_sums @ weight_NxB
            concordant_B += np.einsum("gb,gb->b", positive[self._tied_levels], tied) / 2
        result = {"auroc": ratio(concordant_B, positives_B * negatives_B)}
        if not self._auprc:
            return result
        true_positive = np.cumsum(positive[::-1], axis=0)[::-1]
        predicted_positive = np.subtract(negatives_B, lower, out=lower)
        predicted_positive += true_positive
        # A level without weight has no true positives either: 0 / 1 adds nothing.
        predicted_positive[predicted_positive == 0] = 1
        positive *= np.divide(true_positive, predicted_positive, out=true_positive)
        return result | {"auprc": ratio(positive.sum(0), positives_B)}


def sensitivity_threshold(y_N: npt.ArrayLike, p_N: npt.ArrayLike, sensitivity: float) -> float:
    """The largest score at which calling p >= threshold positive reaches `sensitivity`.

    To be chosen on validation rows and applied to test rows. Ties can make the target unreachable
    exactly; the sensitivity achieved is then the next higher one.

    Args:
      y_N, p_N: labels and scores of the validation rows.
      sensitivity: in (0, 1].

    Raises:
      ValueError: no positive row, or a sensitivity outside (0, 1].
    """
    y_N, p_N = binary(y_N, "y"), vector(p_N, "p")
    same_length(y=y_N, p=p_N)
    if not 0 < sensitivity <= 1:
        raise ValueError(f"sensitivity must lie in (0, 1], got {sensitivity}")
    if not y_N.any():
        raise ValueError("no positive row: no threshold reaches any sensitivity")
    levels, level_of = np.unique(p_N, return_inverse=True)
    reached = np.cumsum(np.bincount(level_of, y_N)[::-1])[::-1] / y_N.sum()
    # Rounding in the division must not cost a level that holds the target exactly.
    return float(levels[np.flatnonzero(reached >= sensitivity - 1e-12)[-1]])


class Confusion:
    """The confusion matrix of "p >= threshold is positive", threshold fixed beforehand."""

    def __init__(
        self, y_N: npt.ArrayLike, p_N: npt.ArrayLike, threshold: float, *, factor_N: npt.ArrayLike | None = None
    ) -> None:
        n_rows = same_length(y=y_N, p=p_N)
        rows, factor_N = kept_rows(factor_N, n_rows)
        y_N, called_N = binary(np.asarray(y_N)[rows], "y"), vector(np.asarray(p_N)[rows], "p") >= threshold
        cell_N = np.where(y_N, np.where(called_N, 0, 1), np.where(called_N, 2, 3))
        self._sums = group_rows(cell_N, rows, 4, n_rows, factor_N)

    def __call__(self, weight_NxB: np.ndarray) -> dict[str, np.ndarray]:
        """Weighted tp, fn, fp, tn, and sensitivity, specificity, ppv, npv, accuracy; [B] each."""
        tp, fn, fp, tn = self._sums @ weight_NxB
        return {
            "tp": tp, "fn": fn, "fp": fp, "tn": tn,
            "sensitivity": ratio(tp, tp + fn),
            "specificity": ratio(tn, tn + fp),
            "ppv": ratio(tp, tp + fp),
            "npv": ratio(tn, tn + fn),
            "accuracy": ratio(tp + tn, tp + fn + fp + tn),
        }  # fmt: skip


class Prevalence:
    """{"prevalence": [B]}: the share of positives, which AUPRC and net benefit depend on."""

    def __init__(self, y_N: npt.ArrayLike, *, factor_N: npt.ArrayLike | None = None) -> None:
        n_rows = len(np.asarray(y_N))
        rows, factor_N = kept_rows(factor_N, n_rows)
        self._sums = group_rows(binary(np.asarray(y_N)[rows], "y").astype(int), rows, 2, n_rows, factor_N)

    def __call__(self, weight_NxB: np.ndarray) -> dict[str, np.ndarray]:
        negative, positive = self._sums @ weight_NxB
        return {"prevalence": ratio(positive, positive + negative)}


def auroc(y_N: npt.ArrayLike, score_N: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> float | np.ndarray:
    """Area under the ROC curve: P(score of a positive > score of a negative), ties one half.

    Args:
      y_N: labels, bool or 0/1.
      score_N: any real scores, higher means more likely positive.
      weights: None, [N] or [B, N], not negative.

    Returns:
      float, or float64 [B]; NaN where only one class has weight.
    """
    return evaluate(BinaryRanking(y_N, score_N), len(np.asarray(y_N)), weights)["auroc"]


def auprc(y_N: npt.ArrayLike, score_N: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> float | np.ndarray:
    """Average precision: sum over thresholds of (recall step) * precision, no interpolation.

    Tied scores form one threshold. Arguments and result as in `auroc`; NaN without positives.
    """
    return evaluate(BinaryRanking(y_N, score_N), len(np.asarray(y_N)), weights)["auprc"]
