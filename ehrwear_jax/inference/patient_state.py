"""Keeps the state of one patient in somebody's hands: rows are appended as they arrive, and z is read at any time.

    model = ew.load("tiny")
    state = model.state("ward 3, bed 2")
    state.append(events=[{"time": "2018-01-02T09:00", "code": "LOINC//2345-7", "numeric_value": 92.0}])
    z = state.read("2018-01-02T10:00")

A read gives what `TrainedModel.embed` gives for all rows so far. A family with a Decoder keeps what it has computed of
earlier tokens; the others are computed anew, in one pass over what a context shows.
"""

import functools
import os
import tempfile
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from ehrwear_jax.inference import bundle_files
from ehrwear_jax.inference.growing_record import EVENT_ROWS, NOBODY, SIGNAL_ROWS, GrowingRecord, Intake, frame
from ehrwear_jax.training import embedding

if TYPE_CHECKING:
    from ehrwear_jax.inference.trained_model import TrainedModel

Rows = Iterable[Mapping[str, Any]] | pl.DataFrame | None
LATE_DAYS = 2.0


class Reader:
    """What all states of a model share: how rows become records, and how z is read from them.

    Attributes:
      intake: of the bundle. n_events: that states keep; None: all.
    """

    def __init__(self, model: "TrainedModel", mapping: str | Path | None = None, incremental: bool = True) -> None:
        self.intake, self._model = Intake(model.folder, model.about, mapping), model
        self._decoder = getattr(model.model.module, "Decoder", None) if incremental else None
        most = None if self._decoder is None else self._decoder.n_events(model.model.config)
        self.n_events = None if most is None else 2 * most  # so that reads a little further back stay possible

    @functools.cached_property
    def _assembled(self):
        """(examples, network); made when z is first read, which rows need not wait for."""
        model, where = self._model, str(self._model.folder / bundle_files.WEIGHTS)
        return embedding.assemble(model.model, self.intake.store, model.variables, where)

    @functools.cached_property
    def decoder(self) -> Any:
        """The family's Decoder, None without one."""
        return None if self._decoder is None else self._decoder(*self._assembled, self._model.variables)

    @functools.cached_property
    def _encode(self):
        return embedding.encoder(self._assembled[1], self._model.variables)

    def recomputed(self, record: Any, time_us: int) -> np.ndarray:
        """z of a record at a time as embedding.embed computes it; NaN where there is nothing to read."""
        index = pl.DataFrame({"subject_id": [NOBODY], "prediction_time": [time_us]})
        index = index.with_columns(pl.col("prediction_time").cast(pl.Datetime("us")))
        return embedding.embed(self._encode, self._assembled[0], index, 1, lambda *_: record)[0]


class PatientState:
    """What a model knows of one patient.

    Attributes:
      patient: what its owner calls the patient; the model never sees it.

    Args:
      model: of load. reader: of the model. record: what has arrived before.
      late_days: how long after it was recorded signal may arrive, counted from the end of the newest; raw signal that
        is older is dropped once its windows are made.
    """

    def __init__(
        self,
        model: "TrainedModel",
        reader: Reader,
        patient: str = "",
        record: GrowingRecord | None = None,
        late_days: float = LATE_DAYS,
    ) -> None:
        self.model, self.patient, self._reader = model, patient, reader
        self._record = GrowingRecord(reader.intake) if record is None else record
        self._late_us = round(late_days * 86_400e6)
        self._made: Any = None  # of the record as it is now: what reads are made of
        self._known: Any = None

    def append(self, events: Rows = None, signal: Rows = None) -> None:
        """Takes what has arrived, all of it or nothing.

        Args:
          events: time (None: a fact without one), code, numeric_value, text_value, as dicts or a frame.
          signal: start_time, sample_rate_hz, channel, values, unit, device, utc_offset_minutes, likewise.

        Raises:
          ValueError: a row cannot be used, or signal arrives later than late_days allows.
        """
        self._record.append(frame(events, EVENT_ROWS), frame(signal, SIGNAL_ROWS))
        self._record.forget(self._reader.n_events, self._late_us)
        self._made = None

    def read(self, time: datetime | str) -> np.ndarray:
        """z at a time, from what is known then: float32 [D], NaN where there is nothing to read.

        Raises:
          ValueError: the time is none, or lies so far back that the state does not hold all that was known.
        """
        time_us, decoder, record = microseconds(time), self._reader.decoder, self._record
        if decoder is None:
            self._made = self._made or record.record()
            return self._reader.recomputed(self._made, time_us)
        self._made = self._made or decoder.patient(record.record())
        known, self._known = self._known, None  # used up even by a read that fails
        z_D, self._known = decoder.latent(self._made, time_us, known, not record.n_events_forgotten)
        return z_D

    def predict(self, task: str, time: datetime | str) -> dict[str, Any]:
        """The predictions of a task at a time, by name (StoredProbe.predict); null where there is nothing to read.

        Raises:
          ValueError: the model has no such task; as `read`.
        """
        probe = self.model.probe(task)
        return probe.predict(self.read(time)[None]).row(0, named=True)

    @property
    def nbytes(self) -> int:
        """Memory of the state, bytes: of what has arrived, and of what was computed of it."""
        return self._record.nbytes + (0 if self._known is None else self._known.nbytes)

    def to_bytes(self) -> bytes:
        """What `TrainedModel.state` takes as `saved`; what was computed is not part of it, and is computed again."""
        return self._record.to_bytes()

    def save(self, path: str | Path) -> None:
        """Writes to_bytes to a file, whole or not at all."""
        path = Path(path)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}", delete=False) as f:
            f.write(self.to_bytes())
            f.flush()
            os.fsync(f.fileno())
        os.replace(f.name, path)


def microseconds(time: datetime | str) -> int:
    """Microseconds since 1970 of a time or of its text in ISO 8601; without an offset it is on the records' clock.

    Raises:
      ValueError: it is no time.
    """
    if isinstance(time, str):
        try:
            time = datetime.fromisoformat(time)
        except ValueError:
            raise ValueError("the time is not in ISO 8601, as 2018-01-02T09:00:00 is") from None
    aware = time.replace(tzinfo=UTC) if time.tzinfo is None else time
    since = aware - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
