"""Counts what of people's records each model sees at the prediction times, beside its embeddings.

TOKENS_SEEN/<digest>.parquet lies beside <digest>.parquet of the embeddings: subject_id, prediction_time, and a column
for each of Examples.tokens_seen.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrwear_jax.data.formats.parquet import write_frame
from ehrwear_jax.models.family import Examples
from ehrwear_jax.training import embedding

FOLDER, LEFT_OUT = "tokens_seen", "_left_out"


def write(folder: Path, name: str, examples: Examples, times: pl.DataFrame) -> None:
    """Adds what is seen at some prediction times to an embeddings folder, unless it lies there.

    Args:
      name: of the file. times: subject_id, prediction_time (datetime us).
    """
    path = folder / FOLDER / f"{name}.parquet"
    if path.exists():
        return
    found = examples.tokens_seen(
        embedding.positions(examples, times), times["prediction_time"].to_physical().to_numpy()
    )
    if not found:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_frame(times.select("subject_id", "prediction_time").with_columns(**found), path)


def summary(table: pl.DataFrame) -> dict[str, Any]:
    """{"prediction_times": how many, kind: {"mean", "median", "max": seen, "cut": share with older ones left out}}.

    Args:
      table: as in TOKENS_SEEN/. Without "cut" for kinds of which nothing can be left out.
    """
    kinds = [c for c in table.columns if not c.endswith(LEFT_OUT) and c not in ("subject_id", "prediction_time")]
    out: dict[str, Any] = {"prediction_times": table.height}
    if not table.height:
        return out
    for kind in kinds:
        seen_N = table[kind].to_numpy()
        out[kind] = {"mean": float(seen_N.mean()), "median": float(np.median(seen_N)), "max": int(seen_N.max())}
        if f"{kind}{LEFT_OUT}" in table.columns:
            out[kind]["cut"] = float((table[f"{kind}{LEFT_OUT}"].to_numpy() > 0).mean())
    return out


def read(folder: Path) -> Mapping[str, Any]:
    """The summary of all prediction times of an embeddings folder; {} where nothing was counted."""
    parts = sorted((folder / FOLDER).glob("*.parquet"))
    return summary(pl.concat([pl.read_parquet(p) for p in parts])) if parts else {}


def columns(folder: Path) -> dict[str, str]:
    """{column: text} of the summary, for a table of models; {} where nothing was counted."""
    out = {}
    for kind, found in read(folder).items():
        if isinstance(found, Mapping):
            cut = f", {100 * found['cut']:.0f}% cut" if "cut" in found else ""
            out[f"{kind.capitalize()} seen"] = f"{found['median']:,.0f} ({found['mean']:,.1f}){cut}"
    return out
