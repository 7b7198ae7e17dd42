"""A mapping file says what the dataclasses hold, and each mistake in it is one sentence with the key."""

import pytest
from csv_exports import write

from ehrwear_jax.data.sources.csv_import import mapping
from ehrwear_jax.data.sources.csv_import.mapping import BEATS, INFER, RATE, SINGLE, STEP, read_mapping

WIDE = """
[time]
column = "t"
[channels.hr]
unit = "bpm"
"""
LONG = """
[time]
column = ["d", "t"]
timezone = "Europe/London"
[channel]
column = "kind"
value = "v"
[sampling]
step_seconds = 60
[channels.hr]
source = "Heart"
unit = "bpm"
source_unit = "Hz"
valid_max = 230
[channels.rr]
unit = "ms"
beats = "start"
[channels.ecg]
unit = "mV"
rate_hz = 250
gap_seconds = 2
[channels.weight]
unit = "kg"
single_seconds = 86400
[channels.steps]
unit = "steps/min"
combine = "sum_per_minute"
"""


def read(tmp_path, text):
    return read_mapping(write(tmp_path / "m.toml", text))


def test_what_is_left_out_has_defaults(tmp_path):
    m = read(tmp_path, WIDE)
    assert m.time == ("t",) and not m.is_long and m.layout == mapping.Layout() and m.duplicates == "first"
    hr = m.channels["hr"]
    assert (hr.column, hr.sampling.kind, hr.scale(), hr.valid_min) == ("hr", INFER, (1.0, 0.0), float("-inf"))


def test_all_kinds_of_sampling(tmp_path):
    m = read(tmp_path, LONG)
    assert m.is_long and m.time == ("d", "t") and m.clock.timezone == "Europe/London"
    of = {name: channel.sampling for name, channel in m.channels.items()}
    assert {name: s.kind for name, s in of.items()} == {
        "hr": STEP, "rr": BEATS, "ecg": RATE, "weight": SINGLE, "steps": STEP,
    }  # fmt: skip
    assert of["ecg"].seconds == 1 / 250 and of["ecg"].gap_us(4000) == 2e6 and of["hr"].gap_us(60e6) == 3600e6
    assert of["steps"].combine == "sum_per_minute" and of["hr"].combine == "mean" and of["rr"].stamp == "start"
    assert m.channels["hr"].scale() == (pytest.approx(60), 0) and m.channels["rr"].source == "rr"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[time", "not a TOML file (Expected ']' at the end of a table declaration (at end of document))"),
        (WIDE + "[extra]\n", "[mapping]: there is no key 'extra'; there are table, subject,"),
        (WIDE.replace("unit", "units"), "[channels.hr]: there is no key 'units'"),
        (WIDE.replace('unit = "bpm"', ""), "[channels.hr] has no unit"),
        (WIDE.replace('column = "t"', ""), "[time] has no column"),
        (WIDE.replace("[channels.hr]", "[subject]"), "[subject]: there is no key 'unit'"),
        ("[time]\ncolumn = 't'\n", "no [channels.<name>] says which channels there are"),
        (WIDE.replace('"bpm"', "1"), "[channels.hr]: unit is 1; it must be a text"),
        (WIDE + "rate_hz = true\n", "[channels.hr]: rate_hz is True; it must be a number"),
        (WIDE + "rate_hz = 0\n", "[channels.hr]: rate_hz is 0; it must be positive"),
        (WIDE + "rate_hz = 1\nstep_seconds = 1\n", "[channels.hr]: rate_hz and step_seconds are both given"),
        (WIDE + "beats = 'middle'\n", "[channels.hr]: beats is 'middle'; it can be start or end"),
        (WIDE + "beats = 'end'\n", "[channels.hr]: beats are in ms, not in 'bpm'"),
        (WIDE + "combine = 'max'\n", "[channels.hr]: combine is 'max'; it can be mean, last, sum_per_minute"),
        (WIDE + "combine = 'last'\n", "[channels.hr]: combine = 'last' needs step_seconds"),
        (WIDE + "source = 'x'\n", "[channels.hr]: source is of long tables; here it is column"),
        (WIDE + "source_unit = 'kg'\n", "[channels.hr]: source_unit 'kg' cannot be turned into 'bpm'"),
        (WIDE + "valid_min = 9\nvalid_max = 9\n", "[channels.hr]: valid_min 9 is not below valid_max 9"),
        (LONG.replace('value = "v"', ""), "[channel] needs column and value"),
        (LONG.replace('[channels.rr]', '[channels.rr]\nsource = "Heart"'), "source 'Heart' is that of two channels"),
        (LONG.replace("Europe/London", "Mars"), "[time]: timezone 'Mars' is no IANA time zone"),
        ("[table]\ndelimiter = ';;'\n" + WIDE, "[table]: delimiter is ';;'; it must be one character"),
        ("[table]\nduplicates = 'sum'\n" + WIDE, "[table]: duplicates is 'sum'; it can be first, last, mean"),
        (WIDE.replace('"t"', "[1]"), "[time]: column is not the name of a column or a list of names"),
        (WIDE.replace('column = "t"', 'column = "t"\nutc = "yes"'), "[time]: utc is 'yes'; it must be true or false"),
    ],
)  # fmt: skip
def test_mistakes(tmp_path, text, sentence):
    with pytest.raises(ValueError) as error:
        read(tmp_path, text)
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'm.toml'}: ") and sentence in message and "\n" not in message


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such mapping file"):
        read_mapping(tmp_path / "none.toml")
