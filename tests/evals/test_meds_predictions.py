"""Prediction tables and metrics against the MEDS evaluation tool on the same file."""

from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
from meds_evaluation.evaluate import evaluate_binary_classification
from meds_evaluation.schema import PredictionSchema

from ehrwear_jax.evals import meds_predictions


def table(n=300, seed=0):
    """Several rows a subject; probabilities on few levels, bin edges among them."""
    rng = np.random.default_rng(seed)
    y = rng.random(n) < 0.3
    p = np.round(1 / (1 + np.exp(1 - 1.5 * y - rng.normal(size=n))), 1)
    times = [datetime(2020, 1, 1) + timedelta(days=i) for i in range(n)]
    return meds_predictions.predictions(rng.integers(1, 80, n), times, y, p, threshold=0.4)


def null(column):
    return pl.lit(None, meds_predictions.SCHEMA[column]).alias(column)


@pytest.mark.parametrize("columns", ["both", "probability", "value"])
def test_metrics_equal_the_tools_on_the_same_file(tmp_path, columns):
    frame = table()
    if columns == "probability":
        frame = frame.drop("predicted_boolean_value")
    elif columns == "value":
        frame = frame.drop("predicted_boolean_probability")
    path = tmp_path / "model.parquet"
    meds_predictions.write(frame, path)
    PredictionSchema.validate(pl.read_parquet(path).to_arrow())
    complete = pl.read_parquet(path).with_columns(
        pl.lit(None, meds_predictions.SCHEMA[c]).alias(c) for c in meds_predictions.PREDICTED if c not in frame.columns
    )  # the tool reads both columns, null or not
    theirs = evaluate_binary_classification(complete, samples_per_subject=2000)
    mine = meds_predictions.evaluate_binary(meds_predictions.read(path))
    assert mine.keys() == theirs.keys()
    for weighting, close in (("samples_equally_weighted", 1e-9), ("subjects_equally_weighted", 0.02)):
        assert mine[weighting].keys() == theirs[weighting].keys()
        for name, value in theirs[weighting].items():
            # Single precision on file; and the tool draws rows where we weigh them.
            assert mine[weighting][name] == pytest.approx(value, abs=max(close, 1e-7)), (weighting, name)
    assert mine == meds_predictions.evaluate_binary(meds_predictions.read(path))


def test_predictions_follow_the_schema():
    times = [datetime(2020, 1, 1), datetime(2021, 1, 1)]
    frame = meds_predictions.predictions([3, 4], times, [True, False], [0.5, 0.25])
    assert dict(frame.schema) == meds_predictions.SCHEMA
    assert frame["predicted_boolean_value"].to_list() == [True, False]
    with pytest.raises(ValueError, match="p is nan in row 1"):
        meds_predictions.predictions([3, 4], times, [True, False], [0.5, np.nan])


def test_what_is_written_is_read_again_and_extra_columns_are_left_out(tmp_path):
    frame, path = table(), tmp_path / "m.parquet"
    meds_predictions.write(frame.with_columns(extra=1), path)
    assert meds_predictions.read(path).equals(frame)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop("boolean_value"), r"x\.parquet: column boolean_value is missing"),
        (lambda t: t.select(meds_predictions.KEYS), "predicted_boolean_value or predicted_boolean_probability"),
        (lambda t: t.with_columns(prediction_time=pl.lit("soon")), "column prediction_time is String"),
        (lambda t: t.with_columns(subject_id=pl.lit(None, pl.Int64)), "subject_id is null in row 0"),
        (lambda t: t.with_columns(predicted_boolean_probability=1.5), "is 1.5 in row 0, expected a probability"),
        (
            lambda t: t.with_columns(
                pl.lit(None, meds_predictions.SCHEMA[c]).alias(c) for c in meds_predictions.PREDICTED
            ),
            "hold nulls only",
        ),
    ],
)
def test_a_bad_file_is_named(tmp_path, change, message):
    path = tmp_path / "x.parquet"
    change(table()).write_parquet(path)
    with pytest.raises(ValueError, match=message):
        meds_predictions.read(path)


def test_a_column_that_is_null_in_some_rows_is_an_error():
    frame = table().with_columns(
        predicted_boolean_value=pl.when(pl.int_range(pl.len()) > 3).then(pl.col("predicted_boolean_value"))
    )
    with pytest.raises(ValueError, match="null in some rows only"):
        meds_predictions.evaluate_binary(frame)
