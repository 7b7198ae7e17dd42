"""Computes RMSE, MAE and R2 of a continuous target under row weights."""

import numpy as np
import numpy.typing as npt

from ehrwear_jax.evals.weighting import kept_rows, ratio, same_length, vector


class Regression:
    """{"rmse": [B], "mae": [B], "r2": [B]}.

    r2 = 1 - SSE / SST around the mean of the weighted rows: 0 for the mean itself, NaN for a target
    without spread. Units are those of the target: standardise it on the training rows beforehand.
    """

    def __init__(
        self, y_N: npt.ArrayLike, predicted_N: npt.ArrayLike, *, factor_N: npt.ArrayLike | None = None
    ) -> None:
        self._n = same_length(y=y_N, predicted=predicted_N)
        self._rows, factor_N = kept_rows(factor_N, self._n)
        y_N = vector(np.asarray(y_N)[self._rows], "y")
        error_N = vector(np.asarray(predicted_N)[self._rows], "predicted") - y_N
        # Deviations from a fixed centre: sums of squares of large values would cancel. The exact
        # zero of a constant target needs its spread to be an exact zero too.
        centred_N = y_N - y_N.mean() if np.ptp(y_N) else np.zeros_like(y_N)
        self._sums_5xN = factor_N * np.stack(
            [np.ones_like(y_N), error_N**2, np.abs(error_N), centred_N, centred_N**2]
        )  # fmt: skip

    def __call__(self, weight_NxB: np.ndarray) -> dict[str, np.ndarray]:
        weight_MxB = weight_NxB if len(self._rows) == self._n else weight_NxB[self._rows]
        total_B, squared_B, absolute_B, first_B, second_B = self._sums_5xN @ weight_MxB
        spread_B = second_B - first_B * ratio(first_B, total_B)
        # Below rounding the target has one value in this resample.
        spread_B = np.where(spread_B > 1e-12 * second_B, spread_B, 0.0)
        return {
            "rmse": np.sqrt(ratio(squared_B, total_B)),
            "mae": ratio(absolute_B, total_B),
            "r2": 1 - ratio(squared_B, spread_B),
        }
