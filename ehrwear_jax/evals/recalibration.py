"""Computes calibration slope and intercept: the logistic recalibration of predicted probabilities, under row weights.

Slope: b of logit P(y = 1) = a + b logit(p); 1 where the spread of the predictions is right, below 1 where they are too
extreme. Intercept: a of logit P(y = 1) = a + logit(p), calibration in the large; 0 where the mean risk is right, above
0 where risk is underestimated. Cox, Biometrika 45, 1958; Steyerberg, Clinical Prediction Models, 2019, chapter 15.

Both are maximum likelihood, by Newton steps on all weightings at once. They start from the fit of the rows as they are,
which a resample is near to: three or four steps reach it to 1e-9.
"""

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit

from ehrwear_jax.evals.weighting import binary, evaluate, kept_rows, probability, same_length

CLIP = 1e-6  # a prediction of exactly 0 or 1 has no logit; those beyond count as this one
# Newton's error after a step is about the square of the step: one below 1e-5 leaves 1e-10.
STEPS, LAST_STEP, LONGEST_STEP = 40, 1e-5, 2.0


class Recalibration:
    """{"calibration_slope": [B], "calibration_intercept": [B]} of one probability vector.

    NaN where undefined: rows of one class, for the slope also equal predictions, or classes that they separate.
    """

    def __init__(self, y_N: npt.ArrayLike, p_N: npt.ArrayLike, *, factor_N: npt.ArrayLike | None = None) -> None:
        self._n = same_length(y=y_N, p=p_N)
        self._rows, factor_N = kept_rows(factor_N, self._n)
        self._y_M = binary(np.asarray(y_N)[self._rows], "y").astype(np.float64)
        x_M = logit(np.clip(probability(np.asarray(p_N)[self._rows], "p"), CLIP, 1 - CLIP))
        self._factor_M, self._x_M = np.asarray(factor_N, np.float64), x_M
        self._centre, self._scale = x_M.mean(), x_M.std() or 1.0
        self._z_M = (x_M - self._centre) / self._scale
        whole_Mx1 = self._factor_M[:, None]
        self._line_start, self._shift_start = (0.0, 1.0), 0.0
        a, b = (float(v[0]) for v in self._line(whole_Mx1))
        self._line_start = (a, b) if np.isfinite(a + b) else self._line_start
        self._shift_start = float(np.nan_to_num(self._shift(whole_Mx1)[0]))

    def __call__(self, weight_NxB: np.ndarray) -> dict[str, np.ndarray]:
        """Slope and intercept of each weighting."""
        weight_MxB = weight_NxB if len(self._rows) == self._n else weight_NxB[self._rows]
        weight_MxB = weight_MxB * self._factor_M[:, None]
        positive_B = self._y_M @ weight_MxB
        one_class_B = (positive_B <= 0) | (positive_B >= weight_MxB.sum(0))
        slope_B = self._line(weight_MxB)[1] / self._scale
        found = {"calibration_slope": slope_B, "calibration_intercept": self._shift(weight_MxB)}
        return {name: np.where(one_class_B, np.nan, value_B) for name, value_B in found.items()}

    def line(self) -> tuple[float, float]:
        """(a, b) of logit P(y = 1) = a + b logit(p) of the rows as they are; NaN where undefined."""
        a, b = (float(v[0]) for v in self._line(self._factor_M[:, None]))
        return a - b * self._centre / self._scale, b / self._scale

    def _line(self, weight_MxB):
        """(a, b) of logit P = a + b z, NaN where no maximum was reached."""
        z_M = self._z_M
        a_B, b_B = (np.full(weight_MxB.shape[1], v) for v in self._line_start)
        for k in range(STEPS):
            eta = z_M[:, None] * b_B[:1] + a_B[:1] if k == 0 else z_M[:, None] * b_B + a_B
            residual, curvature = self._moments(eta, weight_MxB, k == 0)
            if k == 0:  # all weightings begin at one line: their sums are products with it
                terms_5xM = np.stack([residual, z_M * residual, curvature, z_M * curvature, z_M**2 * curvature])
                g0, g1, h00, h01, h11 = terms_5xM @ weight_MxB
            else:
                g0, g1 = residual.sum(0), z_M @ residual
                h00, h01, h11 = curvature.sum(0), z_M @ curvature, z_M**2 @ curvature
            with np.errstate(divide="ignore", invalid="ignore"):
                determinant = h00 * h11 - h01**2
                steps = np.stack([h11 * g0 - h01 * g1, h00 * g1 - h01 * g0]) / determinant
            steps = np.clip(steps, -LONGEST_STEP, LONGEST_STEP)
            a_B, b_B = a_B + steps[0], b_B + steps[1]
            if not (np.abs(steps) > LAST_STEP).any():
                break
        reached = (np.abs(steps) <= LAST_STEP).all(0) & (determinant > 1e-12 * h00**2)
        return np.where(reached, a_B, np.nan), np.where(reached, b_B, np.nan)

    def _shift(self, weight_MxB):
        """a of logit P = a + logit(p), NaN where no maximum was reached."""
        a_B = np.full(weight_MxB.shape[1], self._shift_start)
        for k in range(STEPS):
            residual, curvature = self._moments(self._x_M[:, None] + (a_B[:1] if k == 0 else a_B), weight_MxB, k == 0)
            if k == 0:
                gradient_B, curvature_B = np.stack([residual, curvature]) @ weight_MxB
            else:
                gradient_B, curvature_B = residual.sum(0), curvature.sum(0)
            with np.errstate(divide="ignore", invalid="ignore"):
                step_B = np.clip(gradient_B / curvature_B, -LONGEST_STEP, LONGEST_STEP)
            a_B = a_B + step_B
            if not (np.abs(step_B) > LAST_STEP).any():
                break
        return np.where(np.abs(step_B) <= LAST_STEP, a_B, np.nan)

    def _moments(self, eta, weight_MxB, alike: bool):
        """(y - P, P (1 - P)) times the weights [M, B]; without them and [M] where all weightings are `alike`."""
        risk = expit(eta, out=eta)
        if alike:
            risk_M = risk[:, 0]
            return self._y_M - risk_M, risk_M * (1 - risk_M)
        residual = self._y_M[:, None] - risk
        residual *= weight_MxB
        risk *= 1 - risk
        risk *= weight_MxB
        return residual, risk


def slope_and_intercept(
    y_N: npt.ArrayLike, p_N: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> tuple[float | np.ndarray, float | np.ndarray]:
    """(calibration slope, calibration intercept), floats, or [B] each under weights [B, N].

    Raises:
      ValueError: vectors of different lengths, labels other than 0 and 1, a value that is no probability.
    """
    found = evaluate(Recalibration(y_N, p_N), len(np.asarray(y_N)), weights)
    return found["calibration_slope"], found["calibration_intercept"]
