"""Reads, writes and scores predictions in the formats of the MEDS evaluation tool (meds-evaluation).

A prediction table is the MEDS label schema plus predicted_boolean_value and
predicted_boolean_probability, of which one has to be present. Tables of other models in this format
are read and scored in the same way.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from ehrwear_jax.evals.calibration import Calibration
from ehrwear_jax.evals.classification import BinaryRanking, Confusion
from ehrwear_jax.evals.weighting import evaluate, merge

SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "subject_id": pl.Int64,
    "prediction_time": pl.Datetime("us"),
    "boolean_value": pl.Boolean,
    "predicted_boolean_value": pl.Boolean,
    "predicted_boolean_probability": pl.Float32,
}
KEYS = ("subject_id", "prediction_time", "boolean_value")
PREDICTED = ("predicted_boolean_value", "predicted_boolean_probability")


def predictions(
    subject_id_N: Sequence[int] | np.ndarray | pl.Series,
    prediction_time_N: Sequence[Any] | np.ndarray | pl.Series,
    y_N: npt.ArrayLike,
    p_N: npt.ArrayLike,
    *,
    threshold: float = 0.5,
) -> pl.DataFrame:
    """Predictions in the MEDS prediction schema.

    Columns: subject_id i64, prediction_time timestamp[us], boolean_value bool,
    predicted_boolean_value bool (probability >= threshold), predicted_boolean_probability f32.
    """
    p_N = np.asarray(p_N, np.float64)
    if not ((p_N >= 0) & (p_N <= 1)).all():
        row = int(np.flatnonzero(~((p_N >= 0) & (p_N <= 1)))[0])
        raise ValueError(f"p is {p_N[row]} in row {row}, expected a probability")
    return pl.DataFrame(
        {
            "subject_id": pl.Series(subject_id_N).cast(pl.Int64),
            "prediction_time": pl.Series(prediction_time_N).cast(pl.Datetime("us")),
            "boolean_value": pl.Series(np.asarray(y_N)).cast(pl.Boolean),
            "predicted_boolean_value": p_N >= threshold,
            "predicted_boolean_probability": p_N.astype(np.float32),
        }
    )


def write(table: pl.DataFrame, path: str | Path) -> None:
    """Writes a prediction table as parquet, after the checks of `read`."""
    _check(table, "the predictions").write_parquet(path)


def read(path: str | Path) -> pl.DataFrame:
    """A prediction table with the columns of SCHEMA that it has, in that order and type.

    Raises:
      ValueError: a column is missing or of another kind, a label or key is null, neither predicted
        column has values, or a probability lies outside [0, 1]; names file, column and row.
    """
    return _check(pl.read_parquet(path), Path(path))


def _check(table: pl.DataFrame, where) -> pl.DataFrame:
    missing = [c for c in KEYS if c not in table.columns]
    present = [c for c in PREDICTED if c in table.columns]
    if missing or not present:
        lacking = ", ".join(missing) or " or ".join(PREDICTED)
        raise ValueError(f"{where}: column {lacking} is missing; it has {', '.join(table.columns)}")
    table = table.select(*KEYS, *present)
    for column in table.columns:
        try:
            table = table.with_columns(pl.col(column).cast(SCHEMA[column]))
        except pl.exceptions.PolarsError as error:
            raise ValueError(f"{where}: column {column} is {table.schema[column]}, not {SCHEMA[column]}") from error
    for column in KEYS:
        if table[column].null_count():
            row = int(table[column].is_null().arg_true()[0])
            raise ValueError(f"{where}: column {column} is null in row {row}")
    if all(table[c].null_count() == table.height for c in present):
        raise ValueError(f"{where}: columns {', '.join(present)} hold nulls only")
    if PREDICTED[1] in present:
        p = table[PREDICTED[1]]
        wrong = (~p.is_between(0, 1) | p.is_nan()).fill_null(False)
        if wrong.any():
            row = int(wrong.arg_true()[0])
            raise ValueError(f"{where}: column {PREDICTED[1]} is {p[row]} in row {row}, expected a probability")
    return table


def evaluate_binary(table: pl.DataFrame) -> dict[str, dict[str, float]]:
    """The tool's metrics of one prediction table, under its names.

    Returns:
      {"samples_equally_weighted": {...}, "subjects_equally_weighted": {...}}, each with
      binary_accuracy and f1_score where values are given, and roc_auc_score,
      average_precision_score, calibration_error (unweighted mean gap over ten bins of equal width:
      not our ECE) and brier_score where probabilities are.

    Where the tool samples rows so that every subject has the same number of them, a row here is weighted by one over
    the number of its subject's rows: the expectation of that sampling.

    Raises:
      ValueError: a predicted column is null in some rows only.
    """
    y_N = table["boolean_value"].to_numpy()
    rows_N = table.select(pl.len().over("subject_id")).to_series().to_numpy()
    weightings = {"samples_equally_weighted": np.ones(len(y_N)), "subjects_equally_weighted": 1 / rows_N}
    results: dict[str, dict[str, float]] = {name: {} for name in weightings}
    for column in PREDICTED:
        if column not in table.columns or table[column].null_count() == table.height:
            continue
        if table[column].null_count():
            raise ValueError(f"column {column} is null in some rows only")
        predicted_N = table[column].to_numpy().astype(np.float64)
        for name, weight_N in weightings.items():
            score = _of_values if column == PREDICTED[0] else _of_probabilities
            results[name] |= score(y_N, predicted_N, weight_N)
    return results


def _of_values(y_N, called_N, weight_N) -> dict[str, float]:
    cells = evaluate(Confusion(y_N, called_N, 0.5), len(y_N), weight_N)
    errors = cells["fp"] + cells["fn"]
    denominator = 2 * cells["tp"] + errors
    f1 = 2 * cells["tp"] / denominator if denominator else 0.0
    return {"binary_accuracy": cells["accuracy"], "f1_score": f1}


def _of_probabilities(y_N, p_N, weight_N) -> dict[str, float]:
    found = evaluate(merge(BinaryRanking(y_N, p_N), Calibration(y_N, p_N)), len(y_N), weight_N)
    # A probability on an inner edge belongs to the lower bin, as in scikit-learn's curve.
    bin_N = np.searchsorted(np.linspace(0, 1, 11)[1:-1], p_N)
    total_K, gap_K = (np.bincount(bin_N, weight_N * v, 10) for v in (np.ones(len(y_N)), p_N - y_N))
    filled = total_K > 0
    return {
        "roc_auc_score": found["auroc"],
        "average_precision_score": found["auprc"],
        "calibration_error": float(np.abs(gap_K[filled] / total_K[filled]).mean()),
        "brier_score": found["brier"],
    }
