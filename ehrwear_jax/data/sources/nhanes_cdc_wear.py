"""Reads NHANES's physical activity monitors: minutes on a grid per person, every row accounted for.

2003-2006 (PAXRAW): counts, and steps in 2005-2006, of a hip-worn ActiGraph AM-7164, from the first midnight after the
examination; 10,080 minutes. A minute lies where its number PAXN says; weekday, hour and minute must agree with it.

2011-2014 (PAXMIN): MIMS units of a wrist-worn ActiGraph GT3X+, worn from the examination on, in nine days of which the
first and the last are parts. A minute has no clock: it begins PAXSSNMP / 80 seconds after the time PAXFTIME of the
header PAXHD; day (PAXDAYM) and weekday (PAXDAYWM) must agree with it.

Letters: T minutes of a person's recording, N rows of a person in the file.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ehrwear_jax.data.formats.times import DAY_MINUTES
from ehrwear_jax.data.sources import nhanes_cdc_files as files
from ehrwear_jax.data.sources.csv_source import Ledger
from ehrwear_jax.data.sources.nhanes_files import MAX_COUNT, WEEK_DAYS
from ehrwear_jax.data.sources.sas_transport import TransportFile, digits

ROWS_PER_READ = 1_000_000  # 100 to 200 MB
WEEK_MINUTES = WEEK_DAYS * DAY_MINUTES
MOST_DAYS = 9  # of a recording of 2011-2014
_SAMPLES_PER_MINUTE = 80 * 60
_FINE = 1  # PAXSTAT, PAXCAL: reliable, in calibration
_WAKE, _SLEEP, _NON_WEAR = 1, 2, 3  # PAXPREDM; 4: unknown


class Recording(NamedTuple):
    """What the monitor of a person recorded, a value a minute, NaN where there is none.

    Attributes:
      seqn: who. weekday: 1 (Sunday) to 7, of the day on which it begins. start_seconds: after that day's midnight.
      on_examination_day: whether it begins on the day of the examination, or on the next.
      values_T: {channel: float32 [T]}.
    """

    seqn: int
    weekday: int
    start_seconds: int
    on_examination_day: bool
    values_T: dict[str, np.ndarray]


class _Count:
    """Counts rows and people by reason, for the ledger."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rows: Counter[str] = Counter()
        self.people: Counter[str] = Counter()

    def drop(self, reason: str, n: int, whole: bool = False) -> None:
        self.rows[reason] += int(n)
        self.people[reason] += whole

    def close(self, ledger: Ledger, read: int, kept: int, n_people: int, reasons: tuple[str, ...]) -> None:
        """Writes down what was counted.

        Raises:
          ValueError: what was kept and dropped does not add up to the rows read.
        """
        left = read
        for reason in reasons:
            left -= self.rows[reason]
            people = f" ({self.people[reason]:,} people)" if self.people[reason] else ""
            ledger.add(f"{self.name}: rows", left, self.rows[reason], reason + people)
        if left != kept or set(self.rows) - set(reasons):
            raise ValueError(f"{self.name}: {read:,} rows read, {kept:,} kept, dropped {dict(self.rows)}")
        ledger.add(f"{self.name}: people with a recording", n_people)


def _grid(at_N: np.ndarray, values_N: np.ndarray, n: int) -> np.ndarray:
    out_T = np.full(n, np.nan, np.float32)
    out_T[at_N] = values_N
    return out_T


# ----------------------------------------------------------------------------------------------------------- 2003-2006
NOT_EXAMINED = "of people who are not among those examined"
NOT_FINE = "monitor out of calibration (PAXCAL) or data unreliable (PAXSTAT)"
NO_NUMBER = f"number PAXN is not 1 to {WEEK_MINUTES:,}"
OTHER_CLOCK = "weekday or clock does not agree with the other rows of the person"
REPEATED = "a minute of a person once more"
_COUNTS_REASONS = (NOT_EXAMINED, NOT_FINE, NO_NUMBER, OTHER_CLOCK, REPEATED)
COUNTS, STEPS = "activity_count", "step_count"


def _usual(offset_N: np.ndarray) -> int:
    """The most frequent number."""
    values, counts = np.unique(offset_N, return_counts=True)
    return int(values[counts.argmax()])


def read_counts(
    folder: Path, cycle: files.Cycle, examined: set[int], ledger: Ledger, rows_per_read: int = ROWS_PER_READ
) -> Iterator[Recording]:
    """The recordings of a cycle of 2003-2006, channels COUNTS (counts/min) and, where there are any, STEPS.

    A count of 32,767 is a full counter, no count, and left missing; the zeros of a monitor in a drawer stay.

    Raises:
      FileNotFoundError, ValueError: no such file, or malformed.
    """
    file = files.open_table(folder, f"PAXRAW_{cycle.letter}")
    steps = ["PAXSTEP"] if "PAXSTEP" in file.columns else []
    names = ["PAXSTAT", "PAXCAL", "PAXDAY", "PAXN", "PAXHOUR", "PAXMINUT", "PAXINTEN", *steps]
    count = _Count(file.path.name)
    kept = n_people = full = empty = 0
    for seqn, rows in file.by_person(names, rows_per_read):
        n = len(rows["PAXN"])
        if seqn not in examined:
            count.drop(NOT_EXAMINED, n, True)
            continue
        if not ((rows["PAXSTAT"] == _FINE) & (rows["PAXCAL"] == _FINE)).all():
            count.drop(NOT_FINE, n, True)
            continue
        number_N = rows["PAXN"] - 1
        good_N = (number_N >= 0) & (number_N < WEEK_MINUTES) & (number_N % 1 == 0)
        count.drop(NO_NUMBER, n - good_N.sum())
        clock_N = (rows["PAXDAY"] - 1) * DAY_MINUTES + rows["PAXHOUR"] * 60 + rows["PAXMINUT"]
        offset_N = (clock_N - number_N) % WEEK_MINUTES  # minute of the week of the first row; NaN agrees with nothing
        if not (good_N & np.isfinite(offset_N)).any():
            count.drop(OTHER_CLOCK, good_N.sum(), True)
            continue
        offset = _usual(offset_N[good_N & np.isfinite(offset_N)])
        count.drop(OTHER_CLOCK, (good_N & (offset_N != offset)).sum())
        good_N &= offset_N == offset
        at_N, first_N = np.unique(number_N[good_N].astype(np.int64), return_index=True)
        count.drop(REPEATED, good_N.sum() - len(at_N))
        counts_N = rows["PAXINTEN"][good_N][first_N]
        full += int((counts_N >= MAX_COUNT).sum())
        empty += int(np.isnan(counts_N).sum())
        values = {COUNTS: _grid(at_N, np.where(counts_N < MAX_COUNT, counts_N, np.nan), WEEK_MINUTES)}
        if steps:
            values[STEPS] = _grid(at_N, rows["PAXSTEP"][good_N][first_N], WEEK_MINUTES)
        kept, n_people = kept + len(at_N), n_people + 1
        weekday, minute = divmod(offset, DAY_MINUTES)
        yield Recording(seqn, weekday + 1, minute * 60, False, values)
    count.close(ledger, file.n_rows, kept, n_people, _COUNTS_REASONS)
    why = f"counter full ({MAX_COUNT:,}): left missing; {empty:,} others have no count"
    ledger.add(f"{count.name}: minutes with a count", kept - full - empty, full + empty, why)


# ----------------------------------------------------------------------------------------------------------- 2011-2014
NO_HEADER = "of people without a header in PAXHD, or whose header says that there are no data"
NO_SAMPLE = "PAXSSNMP is not the first sample of a minute of nine days"
OTHER_DAY = "day or weekday does not agree with header and sample number"
_MIMS_REASONS = (NOT_EXAMINED, NO_HEADER, NO_SAMPLE, OTHER_DAY, REPEATED)
MIMS, WORN, ASLEEP = "mims", "wear_flag", "sleep_flag"


def _headers(folder: Path, letter: str, ledger: Ledger) -> dict[int, tuple[int, int]]:
    """{SEQN: (seconds after midnight, weekday)} of the beginning of each recording.

    Raises:
      FileNotFoundError, ValueError: no such file, malformed, or a time that is none.
    """
    file = files.open_table(folder, f"PAXHD_{letter}")
    frame = file.frame(["SEQN", "PAXSTS", "PAXFTIME", "PAXFDAY"])
    files.require_seqn(frame, file.path)
    out: dict[int, tuple[int, int]] = {}
    for row, (seqn, status, time, weekday) in enumerate(frame.iter_rows()):
        if status is None or str(status).strip() not in ("1", "1.0") or not time:
            continue
        try:
            hours, minutes, seconds = (int(part) for part in time.split(":"))
            day = int(weekday)
            if not (0 <= hours < 24 and 0 <= minutes < 60 and 0 <= seconds < 60 and 1 <= day <= WEEK_DAYS):
                raise ValueError
        except (TypeError, ValueError) as error:
            what = f"PAXFTIME {time!r} and PAXFDAY {weekday!r}"
            raise ValueError(f"{file.path}: row {row + 1}: {what} are no time of day and weekday, 1 to 7") from error
        out[int(seqn)] = (hours * 3600 + minutes * 60 + seconds, day)
    ledger.add(f"{file.path.name}: rows with a recording", len(out), len(frame) - len(out), "no data (PAXSTS)")
    return out


def _number(file: TransportFile, name: str, values: np.ndarray) -> np.ndarray:
    """Codes as numbers: they are written as text in some releases."""
    return values if file.columns[name].is_number else digits(values)


def read_mims(
    folder: Path, cycle: files.Cycle, examined: set[int], ledger: Ledger, rows_per_read: int = ROWS_PER_READ
) -> Iterator[Recording]:
    """The recordings of a cycle of 2011-2014: MIMS (units/min), WORN and ASLEEP (1, 0; NaN where not predicted).

    A minute with a quality flag (PAXQFM above 0) or without MIMS units (-0.01) has no MIMS; its prediction stays.

    Raises:
      FileNotFoundError, ValueError: no such file, or malformed.
    """
    headers = _headers(folder, cycle.letter, ledger)
    file = files.open_table(folder, f"PAXMIN_{cycle.letter}")
    names = ["PAXDAYM", "PAXDAYWM", "PAXSSNMP", "PAXMTSM", "PAXPREDM", "PAXQFM"]
    count = _Count(file.path.name)
    kept = n_people = flagged = without = 0
    for seqn, raw in file.by_person(names, rows_per_read):
        rows = {name: _number(file, name, values) for name, values in raw.items()}
        n = len(rows["PAXSSNMP"])
        if seqn not in examined:
            count.drop(NOT_EXAMINED, n, True)
            continue
        if seqn not in headers:
            count.drop(NO_HEADER, n, True)
            continue
        seconds, weekday = headers[seqn]
        minute_N = rows["PAXSSNMP"] / _SAMPLES_PER_MINUTE
        good_N = (minute_N >= 0) & (minute_N < MOST_DAYS * DAY_MINUTES) & (minute_N % 1 == 0)
        count.drop(NO_SAMPLE, n - good_N.sum())
        day_N = (minute_N * 60 + seconds) // (DAY_MINUTES * 60)
        agrees_N = (rows["PAXDAYM"] == day_N + 1) & (rows["PAXDAYWM"] == (weekday - 1 + day_N) % WEEK_DAYS + 1)
        count.drop(OTHER_DAY, (good_N & ~agrees_N).sum())
        good_N &= agrees_N
        at_N, first_N = np.unique(minute_N[good_N].astype(np.int64), return_index=True)
        count.drop(REPEATED, good_N.sum() - len(at_N))
        if not len(at_N):
            continue
        mims_N, state_N, quality_N = (rows[c][good_N][first_N] for c in ("PAXMTSM", "PAXPREDM", "PAXQFM"))
        bad_N = quality_N > 0
        none_N = ~bad_N & ~(mims_N >= 0)
        flagged, without = flagged + int(bad_N.sum()), without + int(none_N.sum())
        length = int(at_N[-1]) + 1
        known_N = np.isin(state_N, (_WAKE, _SLEEP, _NON_WEAR))
        worn_N = np.where(known_N, (state_N != _NON_WEAR) * 1.0, np.nan)
        asleep_N = np.where(np.isin(state_N, (_WAKE, _SLEEP)), (state_N == _SLEEP) * 1.0, np.nan)
        values = {
            MIMS: _grid(at_N, np.where(bad_N | none_N, np.nan, mims_N), length),
            WORN: _grid(at_N, worn_N, length),
            ASLEEP: _grid(at_N, asleep_N, length),
        }
        kept, n_people = kept + len(at_N), n_people + 1
        yield Recording(seqn, weekday, seconds, True, values)
    count.close(ledger, file.n_rows, kept, n_people, _MIMS_REASONS)
    why = f"quality flags (PAXQFM): left missing; {without:,} others have no MIMS units (-0.01)"
    ledger.add(f"{count.name}: minutes with MIMS units", kept - flagged - without, flagged + without, why)
