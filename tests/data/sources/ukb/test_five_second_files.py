"""Five-second files of field 90004: their header, what was imputed, and what is wrong with them."""

import gzip
import math
from datetime import datetime

import pytest

from ehrwear_jax.data.sources.ukb import five_second_files, primary_care

HEADER = "acceleration (mg) - 2015-08-06 10:00:00 - 2015-08-06 10:00:10 - sampleRate = 5 seconds,imputed"


def file(folder, lines, header=HEADER, name="1000001_90004_0_0.csv"):
    path = folder / name
    text = "\n".join([header, *lines]) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


@pytest.mark.parametrize("name", ["1000001_90004_0_0.csv", "1000001_90004_0_0.csv.gz"])
def test_imputed_values_are_missing(tmp_path, name):
    found = five_second_files.read_file(file(tmp_path, ["12.5,0", "20,1", ",0"], name=name))
    assert (found.start, found.seconds) == (datetime(2015, 8, 6, 10), 5.0)
    assert found.values[0] == 12.5 and math.isnan(found.values[1]) and math.isnan(found.values[2])
    assert five_second_files.find_recordings(tmp_path)["subject_id"].to_list() == [1000001]


def test_a_header_with_zones_and_an_end_after_the_last_sample(tmp_path):
    zoned = HEADER.replace("10:00:00 ", "10:00:00.000000+0100 [Europe/London] ")
    assert len(five_second_files.read_file(file(tmp_path, ["1,0", "2,0"], zoned)).values) == 2


@pytest.mark.parametrize(
    ("lines", "header", "message"),
    [
        (["1,0"], HEADER, "has 1 values, and its first line says 3"),
        (["1,0", "x,0", "3,0"], HEADER, "row 2: column 'acceleration' is 'x', not a number"),
        (["1,0"], "time,value", "the first line is not as field 90004 has it"),
        ([], HEADER, "holds no values"),
    ],
)
def test_other_files_are_refused(tmp_path, lines, header, message):
    with pytest.raises(ValueError, match=message):
        five_second_files.read_file(file(tmp_path, lines, header))


@pytest.mark.parametrize(
    ("text", "unit"),
    [("µmol/L", "umol/L"), ("\u03bcmol/L", "umol/L"), ("mmol/l", "mmol/L"), ("MEA000", None), ("Unknown", None),
     ("10*9/L", "10*9/L"), ("tablets", "tablets"), (None, None)],
)  # fmt: skip
def test_units(text, unit):
    assert primary_care.unit(text) == unit
