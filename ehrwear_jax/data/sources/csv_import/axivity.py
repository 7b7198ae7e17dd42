"""Reads raw recordings of Axivity AX3 and AX6 loggers (.cwa), as UK Biobank has them in field 90001.

scikit-digital-health (MIT; the extra `axivity`) reads the file: three axes in g, at the rate that the device was set
to, each block of samples placed by its own time stamp. The device's clock is that at the place (--timezone gives it an
offset, and is not needed), as it was set when the device was: a change to daylight saving time is not in it.

Whose file it is is said by --subject, --subject-folders, or the name, where UK Biobank gave it: EID_90001_0_0.cwa.
A file is read whole: a week at 100 Hz takes some 4 GB of memory. Gyroscope, light and temperature are not read.
"""

import dataclasses
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrwear_jax.data.sources.csv_import import clock
from ehrwear_jax.data.sources.csv_import.mapping import Channel
from ehrwear_jax.data.sources.csv_import.readings import Check, Job, known_files, of_channel

AXES = "xyz"
CHANNELS = {
    name: Channel(name, "g", f"Acceleration, {name[-1]}", -16.5, 16.5)
    for name in (f"acceleration_{axis}" for axis in AXES)
}
SAMPLES_AT_ONCE = 2**20
_MAGIC = b"MD"  # of the header's packet
_BIOBANK = re.compile(r"(\d+)_90001_\d+_\d+")


def read(job: Job) -> Iterator[pl.DataFrame]:
    """Batches of readings of all .cwa files below Job.source.

    Raises:
      FileNotFoundError: there is none.
      ImportError: scikit-digital-health is not installed.
      ValueError: a file that it cannot read, or that does not say whose it is.
    """
    yield from known_files(job, ("*.cwa", "*.CWA"), lambda path: _batches(path, job), "holds no .cwa file")


def _batches(path: Path, job: Job) -> Iterator[pl.DataFrame] | None:
    with path.open("rb") as file:
        if file.read(2) != _MAGIC:
            return None
    return _recording(path, job)


def _recording(path: Path, job: Job) -> Iterator[pl.DataFrame]:
    by_name = None if job.subject or job.subject_folders else _BIOBANK.match(path.stem)
    subject = by_name[1] if by_name else job.subject_of(path)
    found = _decoded(path)
    time_N, g_Nx3 = np.asarray(found["time"], np.float64), np.asarray(found["accel"], np.float64)
    at_place = dataclasses.replace(job.clock("epoch_s"), start="1970-01-01T00:00:00")
    for first in range(0, len(time_N), SAMPLES_AT_ONCE):
        part = slice(first, first + SAMPLES_AT_ONCE)
        stamps, g = pl.Series(time_N[part]), g_Nx3[part]
        job.tally.read(path, len(stamps), 3 * len(stamps))

        def place(row: int, first: int = first) -> str:
            return f"sample {first + row}"

        times = clock.parse(stamps, at_place)
        rows = Check(job, path, place, len(stamps), per_row=3)
        rows.times(times, "time", stamps)
        for k, axis in enumerate(AXES):
            mine = Check(job, path, place, len(stamps))
            mine.good = rows.good.clone()
            value = pl.Series(g[:, k])
            mine.leave_out(value.is_nan(), "no value")
            yield of_channel(times, value, mine.good, subject, f"acceleration_{axis}", job.device or "Axivity")


def _decoded(path: Path) -> dict[str, Any]:
    """{"time": seconds of the device's clock since 1970 [N], "accel": g [N, 3]} of a file."""
    try:
        from skdh.io import ReadCwa  # its import takes seconds
    except ImportError as error:
        raise ImportError(
            "reading .cwa files needs scikit-digital-health: pip install 'ehrwear_jax[axivity]'"
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that the clock has no zone
            return ReadCwa().predict(file=str(path))
    except Exception as error:  # its errors have no common class
        raise ValueError(f"{path}: scikit-digital-health cannot read it: {error}") from error
