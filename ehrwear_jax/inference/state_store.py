"""Keeps the states of many patients on disk, so that what was acknowledged survives whatever happens to the process.

    states = StateStore(ew.load("tiny"), "states")
    states.append("ward 3, bed 2", "message 17", events=[{"time": None, "code": "GENDER//F"}])

One SQLite database (WAL, synchronous=FULL) holds, for each patient, a snapshot of the state and the rows that were
appended since. `append` returns after its rows are committed. Its key makes it idempotent: whoever was not told that an
append succeeded sends it again, and it is taken once. States that are in use stay in memory; a state that is not is
made again from its snapshot and the rows behind it.
"""

import contextlib
import hashlib
import json
import os
import sqlite3
from collections import OrderedDict
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from ehrwear_jax.inference.patient_state import LATE_DAYS, PatientState
from ehrwear_jax.inference.trained_model import TrainedModel

FILE = "states.sqlite"
_ROWS_PER_SNAPSHOT = 32  # appends that are taken again when a state is loaded, at most
_SCHEMA = """
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS snapshots (patient TEXT PRIMARY KEY, state BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS appends (number INTEGER PRIMARY KEY, patient TEXT NOT NULL, rows TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS appends_of_patient ON appends (patient, number);
CREATE TABLE IF NOT EXISTS keys (patient TEXT, key TEXT, digest BLOB NOT NULL, PRIMARY KEY (patient, key))
  WITHOUT ROWID;
"""
Rows = list[dict[str, Any]] | None


class UnknownPatient(KeyError):
    """Nothing was ever appended for the patient."""


class KeyTaken(ValueError):
    """The key of an append was used for other rows."""


class StateStore:
    """The states of many patients; to be used by one thread at a time.

    Args:
      model: of load. folder: of the database, made if it is not there. mapping: as in TrainedModel.read.
      in_memory: states that are kept ready. late_days: of PatientState.

    Raises:
      ValueError: the folder holds states of another model. sqlite3.OperationalError: another process uses it.
    """

    def __init__(
        self,
        model: TrainedModel,
        folder: str | Path,
        mapping: str | Path | None = None,
        in_memory: int = 256,
        late_days: float = LATE_DAYS,
    ) -> None:
        self.model, self._mapping, self._late_days, self._most = model, mapping, late_days, in_memory
        self._states: OrderedDict[str, PatientState] = OrderedDict()
        self._n_behind: dict[str, int] = {}  # appends behind the snapshot of a state in memory
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(folder / FILE, os.O_CREAT | os.O_RDWR, 0o600))
        self._db = sqlite3.connect(folder / FILE, isolation_level=None, check_same_thread=False, timeout=1.0)
        for pragma in ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = FULL", "secure_delete = ON"):
            self._db.execute(f"PRAGMA {pragma}").fetchone()
        with self._transaction():
            for statement in _SCHEMA.split(";"):
                self._db.execute(statement)
            self._db.execute("INSERT OR IGNORE INTO about VALUES ('model', ?)", (self._identity(),))
        (found,) = self._db.execute("SELECT value FROM about WHERE name = 'model'").fetchone()
        if found != self._identity():
            self._db.close()
            raise ValueError(f"{folder}: holds states of another model or mapping; name another folder")

    def _identity(self):
        mapping = b"" if self._mapping is None else Path(self._mapping).read_bytes()
        return f"{self.model.about['identity']} {hashlib.sha256(mapping).hexdigest()}"

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def __len__(self) -> int:
        """How many patients there are."""
        one = "SELECT patient FROM snapshots UNION SELECT patient FROM appends"
        return int(self._db.execute(f"SELECT count(*) FROM ({one})").fetchone()[0])

    # -------------------------------------------------------------------------------------------------------- answers

    def append(self, patient: str, key: str, events: Rows = None, signal: Rows = None) -> bool:
        """Takes rows of a patient, see PatientState.append; they are on disk when it returns.

        Args:
          key: of this append among the patient's, chosen by who sends it.

        Returns:
          Whether they were taken now; False: they were before.

        Raises:
          KeyTaken: by other rows. ValueError: a row cannot be used; nothing is taken.
        """
        rows = json.dumps({"events": events or [], "signal": signal or []}, separators=(",", ":"), allow_nan=False)
        digest = hashlib.sha256(rows.encode()).digest()
        found = self._db.execute("SELECT digest FROM keys WHERE patient = ? AND key = ?", (patient, key)).fetchone()
        if found is not None:
            if found[0] != digest:
                raise KeyTaken("the key was used for other rows of this patient")
            return False
        state = self._loaded(patient) or PatientState(self.model, self._reader, patient, late_days=self._late_days)
        state.append(events, signal)  # an error here leaves it as it was
        self._states.pop(patient, None)  # until it is on disk, memory is ahead of it
        n_behind = self._n_behind.pop(patient, 0) + 1
        with self._transaction():
            self._db.execute("INSERT INTO keys VALUES (?, ?, ?)", (patient, key, digest))
            if n_behind < _ROWS_PER_SNAPSHOT:
                self._db.execute("INSERT INTO appends (patient, rows) VALUES (?, ?)", (patient, rows))
            else:
                self._db.execute("INSERT OR REPLACE INTO snapshots VALUES (?, ?)", (patient, state.to_bytes()))
                self._db.execute("DELETE FROM appends WHERE patient = ?", (patient,))
                n_behind = 0
        self._keep(patient, state, n_behind)
        return True

    def read(self, patient: str, time: datetime | str) -> np.ndarray:
        """PatientState.read of a patient; UnknownPatient without one."""
        return self._state(patient).read(time)

    def predict(self, patient: str, task: str, time: datetime | str) -> dict[str, Any]:
        """PatientState.predict of a patient; UnknownPatient without one."""
        return self._state(patient).predict(task, time)

    def erase(self, patient: str) -> bool:
        """Removes all that is known of a patient from memory and disk; whether there was any."""
        self._states.pop(patient, None)
        self._n_behind.pop(patient, None)
        with self._transaction():
            gone = [self._db.execute(f"DELETE FROM {table} WHERE patient = ?", (patient,)).rowcount
                    for table in ("snapshots", "appends", "keys")]  # fmt: skip
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()  # pages of the past lie in the log
        return any(gone)

    def close(self) -> None:
        """Closes the database."""
        self._db.close()

    # --------------------------------------------------------------------------------------------------------- states

    @property
    def _reader(self):
        return self.model.reader(self._mapping)

    def _state(self, patient):
        found = self._loaded(patient)
        if found is None:
            raise UnknownPatient("nothing is known of this patient")
        return found

    def _loaded(self, patient):
        """The patient's state, from memory or made again; None: there is nothing."""
        if patient in self._states:
            self._states.move_to_end(patient)
            return self._states[patient]
        snapshot = self._db.execute("SELECT state FROM snapshots WHERE patient = ?", (patient,)).fetchone()
        query = "SELECT rows FROM appends WHERE patient = ? ORDER BY number"
        behind = self._db.execute(query, (patient,)).fetchall()
        if snapshot is None and not behind:
            return None
        saved = None if snapshot is None else snapshot[0]
        state = self.model.state(patient, saved, self._mapping, self._late_days)
        for (rows,) in behind:
            state.append(**json.loads(rows))
        self._keep(patient, state, len(behind))
        return state

    def _keep(self, patient, state, n_behind):
        self._states[patient], self._n_behind[patient] = state, n_behind
        while len(self._states) > self._most:
            gone, _ = self._states.popitem(last=False)
            self._n_behind.pop(gone, None)
