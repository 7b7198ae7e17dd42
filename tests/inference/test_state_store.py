"""A store of states has all that it took, once, whoever takes it up again."""

import sqlite3

import appended_rows
import numpy as np
import pytest

import ehrwear_jax as ew
from ehrwear_jax.inference import state_store

GLUCOSE = "LOINC//2345-7"


@pytest.fixture(scope="module")
def model():
    return appended_rows.small(ew.load("tiny"))


def rows(k):
    return [{"time": f"2018-01-{1 + k % 28:02d}T{k // 28 % 24:02d}:00", "code": GLUCOSE, "numeric_value": 90.0 + k}]


def events(store, patient):
    return store._state(patient)._record.events


def test_what_was_taken_is_there_again_once_and_in_order(model, tmp_path):
    store, in_memory = state_store.StateStore(model, tmp_path), model.state()
    for k in range(state_store._ROWS_PER_SNAPSHOT + 5):  # a snapshot, and rows behind it
        assert store.append("a", f"key {k}", rows(k)) and not store.append("a", f"key {k}", rows(k))
        in_memory.append(rows(k))
    (behind,) = store._db.execute("SELECT count(*) FROM appends").fetchone()
    assert 0 < behind < state_store._ROWS_PER_SNAPSHOT
    store.close()
    again = state_store.StateStore(model, tmp_path)
    assert len(again) == 1 and not again.append("a", "key 3", rows(3))
    np.testing.assert_array_equal(events(again, "a"), in_memory._record.events)
    assert again._state("a").to_bytes() == in_memory.to_bytes()
    with pytest.raises(state_store.KeyTaken):
        again.append("a", "key 3", rows(4))
    with pytest.raises(state_store.UnknownPatient):
        again.read("b", "2018-03-01")
    again.close()


def test_a_commit_that_fails_takes_nothing(model, tmp_path, monkeypatch):
    store = state_store.StateStore(model, tmp_path)
    store.append("a", "1", rows(1))
    before = events(store, "a").copy()

    def full(self, *_):
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(state_store.PatientState, "to_bytes", full)
        store._n_behind["a"] = state_store._ROWS_PER_SNAPSHOT
        with pytest.raises(sqlite3.OperationalError, match="full"):
            store.append("a", "2", rows(2))
    np.testing.assert_array_equal(events(store, "a"), before)
    assert store.append("a", "2", rows(2)) and len(events(store, "a")) == 2
    with pytest.raises(ValueError, match="empty"):
        store.append("a", "3", [{"time": "2018-01-01", "code": ""}])
    assert store.append("a", "3", rows(3)), "a key of rows that were refused is free"
    store.close()


def test_states_beyond_memory_come_from_disk(model, tmp_path):
    store = state_store.StateStore(model, tmp_path, in_memory=2)
    for k in range(12):
        store.append(f"patient {k % 4}", f"{k}", rows(k))
    assert len(store._states) == 2 and [len(events(store, f"patient {i}")) for i in range(4)] == [3] * 4
    store.close()


def test_erased_is_gone_from_the_disk(model, tmp_path):
    store = state_store.StateStore(model, tmp_path)
    for k in range(state_store._ROWS_PER_SNAPSHOT + 2):
        store.append("SOMEBODY", f"{k}", [{"time": "2018-01-01", "code": "SECRET//CODE"}])
    assert store.erase("SOMEBODY") and not store.erase("SOMEBODY") and len(store) == 0
    store.close()
    assert not any(b"SOMEBODY" in p.read_bytes() or b"SECRET" in p.read_bytes() for p in tmp_path.iterdir())


def test_it_is_for_one_process_and_one_model(model, tmp_path):
    store = state_store.StateStore(model, tmp_path / "states")
    assert oct((tmp_path / "states" / state_store.FILE).stat().st_mode)[-3:] == "600"
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        state_store.StateStore(model, tmp_path / "states")
    store.close()
    (tmp_path / "mapping.csv").write_text(f"code,target\nGLU,{GLUCOSE}\n")
    with pytest.raises(ValueError, match="another model or mapping"):
        state_store.StateStore(model, tmp_path / "states", tmp_path / "mapping.csv")
