"""Merges admissions and discharges into stays in hospital.

The rule, for each person in the order of time (at the same time an admission comes before a discharge):

- An admission opens a stay unless one is open. An admission while one is open is part of it, as a move to intensive
  care or to another ward is.
- The first discharge after it closes it.
- An admission at most `gap_hours` after a discharge goes on with that stay: a transfer between hospitals or
  departments, not a new admission. So does a further discharge, which belongs to an overlapping record.
- A transfer record opens or goes on with a stay in the same way, but a stay that begins with one is no new admission.
- A stay with no discharge within `longest_days` of its last admission lost its discharge: it ends then.
- Without codes of discharges each admission is a stay of no length, and gap_hours alone merges.

A discharge with no stay to close is ignored. All of this is counted.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import polars as pl

from ehrwear_jax.data.formats.times import DAY_US

STAYS = pl.Schema(
    {
        "subject_id": pl.Int64,
        "start": pl.Int64,
        "end": pl.Int64,
        "is_new": pl.Boolean,
        "is_closed": pl.Boolean,
        "admissions": pl.Int64,
    }
)
_ADMISSION, _TRANSFER, _DISCHARGE = range(3)
_HOUR_US = DAY_US // 24


@dataclasses.dataclass(frozen=True)
class Rules:
    """Which codes mean what, and how admissions become stays.

    Attributes:
      admission, discharge, transfers: the codes, or what they start with before "//"; transfers are moves between
        hospitals or departments. No discharge: the dataset has none.
      gap_hours: from a discharge to an admission that goes on with the stay.
      longest_days: of a stay from its last admission to its discharge.
    """

    admission: tuple[str, ...] = ("HOSPITAL_ADMISSION",)
    discharge: tuple[str, ...] = ("HOSPITAL_DISCHARGE",)
    transfers: tuple[str, ...] = ()
    gap_hours: float = 24.0
    longest_days: float = 365.0


@dataclasses.dataclass
class _Stay:
    subject_id: int
    start: int
    end: int
    is_new: bool
    is_closed: bool
    admissions: int = 1


def merge(
    admissions: pl.DataFrame, discharges: pl.DataFrame, transfers: pl.DataFrame, rules: Rules
) -> tuple[pl.DataFrame, dict[str, int]]:
    """The stays of everybody.

    Args:
      admissions, discharges, transfers: subject_id, time. A row that is an admission and a transfer is a transfer.

    Returns:
      (STAYS by subject_id and start, times in microseconds since 1970, and counts): is_new: it begins with an
      admission, no transfer; is_closed: its discharge is known. counts: admissions, stays, new, open, orphans
      (discharges that closed nothing).
    """
    kinds = ((transfers, _TRANSFER), (admissions, _ADMISSION), (discharges, _DISCHARGE))
    rows = pl.concat(
        [t.select("subject_id", pl.col("time").to_physical(), pl.lit(kind).alias("kind")) for t, kind in kinds]
    )
    n_admissions = admissions.height
    moves = rows.filter(pl.col("kind") == _TRANSFER).select("subject_id", "time")
    twice = rows.join(moves, on=["subject_id", "time"], how="semi").filter(pl.col("kind") == _ADMISSION)
    rows = rows.join(twice, on=["subject_id", "time", "kind"], how="anti").sort("subject_id", "time", "kind")
    stays, orphans = [], 0
    for found in _of_rows(rows, rules):
        if isinstance(found, _Stay):
            stays.append(tuple(vars(found).values()))
        else:
            orphans += found
    table = pl.DataFrame(stays, STAYS, orient="row")
    n_new, n_closed = int(table["is_new"].sum()), int(table["is_closed"].sum())
    counts = {"admissions": n_admissions, "stays": table.height, "new": n_new, "open": table.height - n_closed}
    return table, counts | {"orphans": orphans}


def _of_rows(rows: pl.DataFrame, rules: Rules) -> Iterator[_Stay | int]:
    """Stays in order, and 1 for each discharge that closes nothing."""
    gap, longest = int(rules.gap_hours * _HOUR_US), int(rules.longest_days * DAY_US)
    instant = not rules.discharge
    stay: _Stay | None = None
    for subject_id, time, kind in rows.iter_rows():
        if stay is not None and stay.subject_id != subject_id:
            yield stay
            stay = None
        # of an open stay `end` is how long it can last
        goes_on = stay is not None and time <= stay.end + (gap if stay.is_closed else 0)
        if kind == _DISCHARGE:
            if stay is None or not goes_on:
                yield 1
                continue
            stay.end, stay.is_closed = time, True
            continue
        if stay is None or not goes_on:
            if stay is not None:
                yield stay
            stay = _Stay(subject_id, time, time, kind == _ADMISSION, True, 0)
        stay.admissions += 1
        stay.end, stay.is_closed = (time, True) if instant else (time + longest, False)
    if stay is not None:
        yield stay


def inside(times: pl.DataFrame, stays: pl.DataFrame) -> np.ndarray:
    """bool [N]: whether each time is at or after a stay's begin and before its end.

    Args:
      times: subject_id, time (microseconds since 1970). stays: STAYS.
    """
    rows = times.select("subject_id", "time").with_row_index("row").sort("time")
    begun = stays.select("subject_id", pl.col("start").alias("time"), "end").sort("time")
    found = rows.join_asof(begun, on="time", by="subject_id", strategy="backward", check_sortedness=False)
    return (found.sort("row")["time"] < found.sort("row")["end"]).fill_null(False).to_numpy()
