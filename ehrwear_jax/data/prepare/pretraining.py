"""Counts what of each person's record is pretrained on, where it is cut or not everybody is eligible."""

from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl

from ehrwear_jax.data import store as store_lib
from ehrwear_jax.data.formats.parquet import write_frame
from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.data.prepare import statistics

_COUNTED = ("events", "windows")


def write(records: Path, out: Path) -> dict[str, dict]:
    """Writes OUT/pretraining.parquet, a row for each person who is pretrained on; returns counts of the manifest.

    subject_id and the columns of RecordStore.index that a cut-off changes. Counted from the records themselves.

    Args:
      out: holds what else was fitted; subjects.parquet says who is pretrained on (pretraining).
    """
    store = store_lib.RecordStore(records, out)
    surprise = statistics.surprises(pl.read_parquet(out / "code_statistics.parquet"))
    surprise_C = np.array([np.nan if s is None else s for s in surprise], np.float64)
    subjects = pl.read_parquet(out / "subjects.parquet", columns=["subject_id", "split", "pretraining"])
    known = store.index.select("subject_id", "split").join(subjects.drop("split"), on="subject_id", how="left")
    rows, cut_to = [], store.cutoff_us
    before, after = dict.fromkeys(_COUNTED, 0), dict.fromkeys(_COUNTED, 0)
    for i, (subject, learned) in enumerate(known.select("subject_id", "pretraining").iter_rows()):
        if not learned:
            continue
        record = store.read(i)
        cut = record if cut_to is None else record.until(cut_to)
        for counts, r in ((before, record), (after, cut)):
            counts["events"] += len(r.time_K)
            counts["windows"] += len(r.window_end_M)
        rows.append({"subject_id": subject} | _row(cut, surprise_C))
    changed = [c for c in store.index.columns if c in _row_names(store)]
    schema = pl.Schema({"subject_id": pl.Int64} | {c: store.index.schema[c] for c in changed})
    write_frame(pl.DataFrame(rows, schema=schema), out / store_lib.PRETRAINING)
    people = {"in": subjects.filter(pl.col("split") != "held_out").height, "kept": len(rows)}
    counted = {f"pretraining {what}": _tally(before[what], after[what]) for what in _COUNTED}
    return counted | {"pretraining people": _tally(people["in"], people["kept"])}


def _tally(n_in, kept):
    return {"in": n_in, "out": {"kept": kept, "left out": n_in - kept}}


def _row_names(store):
    changed = ("n_events", "n_windows", "days", "first_us", "end_us", "known_events", "rarity")
    return {*changed, *(f"n_segments_{name}" for name in store.segments)}


def _row(record, surprise_C):
    """What the index says of a record."""
    of_event_K = surprise_C[record.code_K]
    of_event_K = of_event_K[np.isfinite(of_event_K)]
    return {
        "n_events": len(record.time_K),
        "n_windows": len(record.window_end_M),
        "days": max(record.end_us - record.first_us, 0) / DAY_US if record.end_us > store_lib.NO_BIRTH else 0.0,
        "first_us": record.first_us,
        "end_us": record.end_us,
        "known_events": len(of_event_K),
        "rarity": float(of_event_K.mean()) if len(of_event_K) else 0.0,
    } | {f"n_segments_{name}": len(found.start_us_R) for name, found in record.segments.items()}


def steps(counts: dict, cutoff: datetime | None) -> list[dict]:
    """What of the records is pretrained on, from the manifest's counts; [] where all of it is."""
    out, when = [], f"later than {cutoff:%Y-%m-%d}" if cutoff else "of people who are not eligible"
    for what, reason in (("people", "not eligible"), ("events", when), ("windows", when)):
        if found := counts.get(f"pretraining {what}"):
            n, lost = found["out"]["kept"], found["out"]["left out"]
            step = f"pretraining: {what} of training and tuning people"
            out.append({"step": step, "n": n, "dropped": lost, "reason": reason if lost else ""})
    return out
