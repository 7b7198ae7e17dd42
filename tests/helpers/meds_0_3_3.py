"""Label tables in the older schema of MEDS, as ACES writes them."""

import polars as pl
import pyarrow as pa

LABELS = pa.schema(
    [
        ("subject_id", pa.int64()),
        ("prediction_time", pa.timestamp("us")),
        ("boolean_value", pa.bool_()),
        ("integer_value", pa.int64()),
        ("float_value", pa.float64()),
        ("categorical_value", pa.string()),
    ]
)


def label_table(labels: pl.DataFrame) -> pa.Table:
    """The labels with all columns of the schema, nullable."""
    arrow, types = labels.to_arrow(), {field.name: field.type for field in LABELS}
    columns = [
        arrow[name].cast(kind) if name in labels.columns else pa.nulls(len(labels), kind)
        for name, kind in types.items()
    ]
    return pa.table(columns, LABELS)
