"""SAS transport files: numbers bit by bit, what is missing, ranges of rows, persons across reads, faults named."""

import numpy as np
import pytest
from xpt_writer import float_to_ibm, write_xpt

from ehrwear_jax.data.sources import sas_transport
from ehrwear_jax.data.sources.sas_transport import TransportFile


def as_bytes(*texts):
    return np.array([list(bytes.fromhex(text)) for text in texts], np.uint8)


def test_numbers_are_those_of_the_format():
    # 118.625 is the example of every text on this format; the others follow from 16**(e - 64) * 0.f
    known = as_bytes("4110000000000000", "C276A00000000000", "0000000000000000", "8000000000000000", "401999999999999A",
                     "2E00000000000000", "4100000000000000", "5F00000000000000", "4E147AE147AE147B")  # fmt: skip
    value = sas_transport.ibm_to_float(known)
    np.testing.assert_array_equal(value[[0, 1, 2, 3]], [1.0, -118.625, 0.0, 0.0])
    assert value[4] == pytest.approx(0.1, rel=1e-15)
    # ".", ".A" (0x41 and nothing else) and "._" are missing: 0x41 as the head of a number has a fraction
    assert np.isnan(value[[5, 6, 7]]).all()
    assert value[8] == 0x147AE147AE147B / 2**56 * 16.0**14
    np.testing.assert_array_equal(sas_transport.ibm_to_float(known[:2, :3]), [1.0, -118.625])  # short numbers


def test_zero_is_zero_and_not_the_smallest_number():
    # some readers give 5.4e-79 for the zeros of these files
    assert sas_transport.ibm_to_float(float_to_ibm([0.0]))[0] == 0.0


def test_all_numbers_come_back(tmp_path):
    rng = np.random.default_rng(0)
    numbers = np.concatenate([rng.normal(size=500) * 10.0 ** rng.integers(-30, 30, 500), np.arange(-50.0, 50)])
    file = TransportFile(write_xpt(tmp_path / "a.xpt", {"SEQN": np.arange(600), "X": numbers}))
    assert list(file.columns) == ["SEQN", "X"] and file.n_rows == 600
    assert file.columns["X"].label == "label of X"
    np.testing.assert_array_equal(file.read(["X"])["X"], numbers)
    np.testing.assert_array_equal(file.read(["X"], 17, 333)["X"], numbers[17:333])
    assert len(file.read(["X"], 600, 700)["X"]) == 0


@pytest.mark.parametrize("n", [1, 2, 3, 5, 9, 10])
def test_blanks_that_fill_the_last_record_are_no_rows(tmp_path, n):
    path = write_xpt(tmp_path / "a.xpt", {"SEQN": np.arange(n)})
    assert TransportFile(path).n_rows == n


def test_texts_and_missing_values(tmp_path):
    columns = {"SEQN": [1, 2, None], "DRUG": ["METFORMIN", None, " A-B "], "DAY": ["1", "", "9"]}
    file = TransportFile(write_xpt(tmp_path / "a.xpt", columns))
    frame = file.frame(["DRUG", "SEQN"])
    assert frame["DRUG"].to_list() == ["METFORMIN", None, "A-B"]
    assert frame["SEQN"].to_list() == [1.0, 2.0, None]
    np.testing.assert_array_equal(sas_transport.digits(file.read(["DAY"])["DAY"]), [1, np.nan, 9])
    text = np.frombuffer(b" 12 3a7  ", np.uint8).reshape(3, 3)
    np.testing.assert_array_equal(sas_transport.digits(text), [12, np.nan, 7])


@pytest.mark.parametrize("rows_per_read", [1, 4, 7, 100])
def test_people_are_whole_whatever_is_read_at_a_time(tmp_path, rows_per_read):
    seqn = np.repeat([5, 9, 11, 12], [3, 1, 6, 2])
    file = TransportFile(write_xpt(tmp_path / "a.xpt", {"SEQN": seqn, "X": np.arange(12)}))
    found = {person: part["X"].tolist() for person, part in file.by_person(["X"], rows_per_read)}
    assert found == {5: [0, 1, 2], 9: [3], 11: [4, 5, 6, 7, 8, 9], 12: [10, 11]}


def test_faults_are_named(tmp_path):
    def people(columns):
        return list(TransportFile(write_xpt(tmp_path / "b.xpt", columns)).by_person(["X"], 2))

    with pytest.raises(ValueError, match="rows of person 1 are not together"):
        people({"SEQN": [1, 2, 2, 1], "X": [0, 0, 0, 0]})
    with pytest.raises(ValueError, match="row 3: column 'SEQN' is missing"):
        people({"SEQN": [1, 1, None, 1], "X": [0, 0, 0, 0]})
    with pytest.raises(ValueError, match="column 'X' is missing"):
        people({"SEQN": [1], "Y": [0]})
    path = tmp_path / "c.xpt"
    whole = write_xpt(path, {"SEQN": np.arange(50), "X": np.arange(50)}).read_bytes()
    for text, what in ((b"SEQN,X\n1,2\n", "not a SAS transport file"), (whole[:-33], "cut off"), (whole[:700], "cut")):
        path.write_bytes(text)
        with pytest.raises(ValueError, match=what):
            TransportFile(path)
    with pytest.raises(FileNotFoundError, match="get it"):
        TransportFile(tmp_path / "none.xpt", "get it")


def test_the_same_as_another_library_reads_and_writes(tmp_path):
    pyreadstat = pytest.importorskip("pyreadstat")
    rng = np.random.default_rng(1)
    columns = {
        "SEQN": np.arange(40.0),
        "X": np.append(rng.normal(size=39), np.nan),
        "T": [f"t{i % 7}" for i in range(40)],
    }
    ours = write_xpt(tmp_path / "ours.xpt", columns)
    read, _ = pyreadstat.read_xport(str(ours), output_format="polars")
    np.testing.assert_allclose(read["X"].to_numpy(), columns["X"], rtol=1e-15)
    assert read["T"].to_list() == columns["T"]
    theirs = tmp_path / "theirs.xpt"
    pyreadstat.write_xport(read, str(theirs), file_format_version=5)
    frame = TransportFile(theirs).frame(["SEQN", "X", "T"])
    np.testing.assert_allclose(frame["X"].fill_null(np.nan).to_numpy(), columns["X"], rtol=1e-15)
    assert frame["T"].to_list() == columns["T"]
