"""Writes the quarantine of the prepare stage: rows that cannot be used, with file, row, column and reason."""

from pathlib import Path

import polars as pl

from ehrwear_jax.data.formats import parquet


def set_aside(bad: pl.DataFrame, path: Path) -> None:
    """Writes the bad rows of one shard; no file where there are none."""
    if bad.height:
        parquet.write_frame(bad, path)
    else:
        path.unlink(missing_ok=True)  # what an earlier call left


def count_reasons(bad: pl.DataFrame) -> dict[str, int]:
    """{"column 'time': before 1900-01-01": rows}, in that order."""
    counted = bad.group_by("column", "reason").len().sort("column", "reason")
    return {f"column '{column}': {reason}": n for column, reason, n in counted.iter_rows()}


def quarantine_counts(kind: str, reasons: dict[str, int]) -> list[dict]:
    """One line of the counts per reason: kept none, dropped all."""
    return [
        {"step": f"{kind} rows quarantined", "n": 0, "dropped": n, "reason": reason}
        for reason, n in sorted(reasons.items())
    ]
