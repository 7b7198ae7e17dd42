"""Runs the import of exports on files that a test makes, and reads what it wrote."""

import json
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl

from ehrwear_jax.data.sources.csv_import.__main__ import main


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def imported(source: Path, destination: Path, *arguments: str) -> pl.DataFrame:
    """All rows that an import without fault wrote; main's exit code is the validator's."""
    assert main([str(source), str(destination), *arguments]) == 0
    return pl.concat([pl.read_parquet(p) for p in sorted((destination / "wearable").glob("*.parquet"))])


def refused(capsys, source: Path, destination: Path, *arguments: str) -> str:
    """The one sentence with which an import ends that writes nothing."""
    assert main([str(source), str(destination), *arguments]) == 1
    assert not (destination / "wearable").exists()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0].removeprefix("csv_import: ")


def samples(rows: pl.DataFrame, channel: str) -> dict[datetime, float]:
    """{time: value} of the samples of a channel that have one, from what the format says of rows."""
    found = {}
    for row in rows.filter(pl.col("channel") == channel).iter_rows(named=True):
        for k, value in enumerate(row["values"]):
            if value == value:
                found[row["start_time"] + timedelta(seconds=k / row["sample_rate_hz"])] = value
    return found


def counts(destination: Path) -> dict[str, int]:
    """{step, or the reason of what was dropped: n} of counts.json."""
    records = json.loads((destination / "counts.json").read_text())
    return {r["reason"] if r["dropped"] else r["step"]: r["dropped"] or r["n"] for r in records}


def assert_reconciled(destination: Path) -> None:
    """Readings of the rows are those kept and those dropped for each reason."""
    records = json.loads((destination / "counts.json").read_text())
    step = {r["step"]: r["n"] for r in records}
    assert step["readings in these rows"] == step["readings kept"] + sum(r["dropped"] for r in records)
