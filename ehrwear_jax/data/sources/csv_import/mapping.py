"""Declares how tables become channels, and reads that from a TOML file.

    [table]                      # all optional
    pattern = "*.csv"            # of the files in a folder; by default *.csv, *.csv.gz, *.tsv, *.txt, *.parquet
    delimiter = ";"              # "," by default
    skip_lines = 2               # lines above the header
    encoding = "latin-1"         # utf-8 by default
    decimal = ","                # "." by default
    missing = ["", "NA"]         # texts that stand for no value
    duplicates = "first"         # of several readings of a channel at one time: first, last or mean

    [subject]
    column = "id"                # or id = "7", one person's table; else --subject or --subject-folders say so

    [time]
    column = "time"              # or ["date", "time"], joined by a space
    end = "until"                # optional: readings last from `column` to `end`
    format = "%d/%m/%Y %H:%M"    # iso by default, or epoch_s, epoch_ms, epoch_us, epoch_ns, elapsed (01:30:00)
    timezone = "Europe/London"   # or utc_offset_minutes = 60; see clock.py for stamps that have neither
    utc = true                   # stamps without an offset are in UTC
    start = "2020-01-31T08:00"   # epochs count from here and not from 1970; of elapsed times the begin

    [device]                     # optional
    column = "device"            # or name = "watch"

    [channel]                    # of long tables only: one row is one reading
    column = "kind"
    value = "value"
    unit = "unit"                # optional: each row says its unit

    [sampling]                   # of all channels that do not say otherwise
    rate_hz = 50                 # or step_seconds, single_seconds, beats; none: the rate is inferred from the times
    gap_seconds = 10             # a longer time without a reading ends a stretch; by default 60 samples

    [channels.heart_rate]        # name of the channel in the result
    column = "HR"                # wide tables: the column. Long tables: source = "HR", what stands in `channel.column`
    unit = "bpm"
    source_unit = "Hz"           # where the table has another unit (formats/units.py)
    factor = 0.015625            # multiplies what is read, before units are converted
    valid_min = 25
    valid_max = 230
    description = "Heart rate"
    step_seconds = 60            # keys of [sampling]
    combine = "mean"             # readings of a step: mean, last or sum_per_minute

Sampling. `rate_hz`: a sensor with a fixed rate; each reading takes the nearest place on a lattice that begins with the
stretch. `step_seconds`: readings at any times; steps begin at whole multiples on the clock at the place, and a sample
combines what falls into its step. `single_seconds`: each reading is a stretch of one sample that lasts so long.
`beats`: intervals between heart beats in ms, each stamped at its "start" or "end".
"""

import dataclasses
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ehrwear_jax.data.formats import units
from ehrwear_jax.data.sources.csv_import.clock import Clock

INFER, RATE, STEP, SINGLE, BEATS = "infer", "rate", "step", "single", "beats"
COMBINE = ("mean", "last", "sum_per_minute")
DUPLICATES = ("first", "last", "mean")
MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "None")
PATTERNS = ("*.csv", "*.csv.gz", "*.tsv", "*.txt", "*.parquet")
GAP_SAMPLES = 60
_OF_SAMPLING = ("rate_hz", "step_seconds", "single_seconds", "beats", "combine", "gap_seconds")
_OF_CHANNEL = ("column", "source", "unit", "source_unit", "factor", "valid_min", "valid_max", "description")
_KEYS = {
    "table": ("pattern", "delimiter", "skip_lines", "encoding", "decimal", "missing", "duplicates"),
    "subject": ("column", "id"),
    "time": ("column", "end", "format", "timezone", "utc_offset_minutes", "utc", "start"),
    "device": ("column", "name"),
    "channel": ("column", "value", "unit"),
    "sampling": _OF_SAMPLING,
    "channels": (),
}
_NUMBERS = ("rate_hz", "step_seconds", "single_seconds", "gap_seconds", "factor", "valid_min", "valid_max")
_INTEGERS = ("skip_lines", "utc_offset_minutes")


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How readings of a channel become samples; see the module's docstring.

    Attributes:
      kind: infer, rate, step, single or beats.
      seconds: length of a sample; 0 where it is inferred and for beats.
      combine: what becomes of several readings in a step.
      gap_seconds: 0: GAP_SAMPLES samples.
      stamp: of beats: whether an interval's time is its start or its end.
    """

    kind: str = INFER
    seconds: float = 0.0
    combine: str = "mean"
    gap_seconds: float = 0.0
    stamp: str = "end"

    def gap_us(self, step_us: float) -> float:
        """The longest time between readings of one stretch."""
        return self.gap_seconds * 1e6 or GAP_SAMPLES * step_us


@dataclasses.dataclass(frozen=True)
class Channel:
    """A channel of the result and where its values stand.

    Attributes:
      name, unit, description, valid_min, valid_max: as in metadata/channels.parquet.
      column: of a wide table. source: text in the channel column of a long one.
      source_unit: of the values as read; "": `unit`.
      factor: multiplies values as read.
      sampling: how they become samples.
    """

    name: str
    unit: str
    description: str | None = None
    valid_min: float = float("-inf")
    valid_max: float = float("inf")
    column: str = ""
    source: str = ""
    source_unit: str = ""
    factor: float = 1.0
    sampling: Sampling = Sampling()

    def scale(self) -> tuple[float, float]:
        """(factor, offset) from values as read, of `source_unit`, to values in `unit`."""
        factor, offset = units.conversion(self.source_unit, self.unit) or (1.0, 0.0)
        return self.factor * factor, offset


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a table is written; see the module's docstring.

    Attributes:
      header: names of the columns of a file that does not say them; (): the line below `skip_lines` does.
      keep_empty: whether an empty line is a row without values; else it is none.
    """

    pattern: str = ""
    delimiter: str = ","
    skip_lines: int = 0
    encoding: str = "utf-8"
    decimal: str = "."
    missing: tuple[str, ...] = MISSING
    header: tuple[str, ...] = ()
    keep_empty: bool = False


@dataclasses.dataclass(frozen=True)
class Mapping:
    """How a table becomes channels; see the module's docstring. "" and (): the table has no such column."""

    channels: dict[str, Channel]
    time: tuple[str, ...]
    end: tuple[str, ...] = ()
    clock: Clock = Clock()
    layout: Layout = Layout()
    subject_column: str = ""
    subject: str = ""
    device_column: str = ""
    device: str = ""
    channel_column: str = ""
    value_column: str = ""
    unit_column: str = ""
    duplicates: str = "first"

    @property
    def is_long(self) -> bool:
        """Whether a row is one reading of a channel that a column names."""
        return bool(self.channel_column)


def read_mapping(path: Path) -> Mapping:
    """A mapping from a TOML file.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not TOML, or a key is unknown, missing or has a value that cannot be; names file and key.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such mapping file")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a TOML file ({error})") from error
    try:
        return _mapping(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _mapping(content: dict) -> Mapping:
    _known(content, _KEYS, "mapping")
    part = {name: _table(content, name) for name in _KEYS}
    for name in _KEYS:
        if name != "channels":
            _known(part[name], _KEYS[name], name)
    if not part["channels"]:
        raise ValueError("no [channels.<name>] says which channels there are")
    time, long = part["time"], part["channel"]
    if "column" not in time:
        raise ValueError("[time] has no column")
    if long and not ("column" in long and "value" in long):
        raise ValueError("[channel] needs column and value")
    clock = Clock(**{k: v for k, v in time.items() if k not in ("column", "end")})
    if fault := clock.fault():
        raise ValueError(f"[time]: {fault}")
    default = _sampling(part["sampling"], Sampling(), "sampling")
    channels = {name: _channel(name, keys, default, bool(long)) for name, keys in part["channels"].items()}
    sources = [channel.source for channel in channels.values() if channel.source]
    if twice := [source for source in sources if sources.count(source) > 1]:
        raise ValueError(f"[channels]: source {twice[0]!r} is that of two channels")
    duplicates = part["table"].pop("duplicates", "first")
    if duplicates not in DUPLICATES:
        raise ValueError(f"[table]: duplicates is {duplicates!r}; it can be {', '.join(DUPLICATES)}")
    layout = dict(part["table"])
    if "missing" in layout:
        layout["missing"] = tuple(layout["missing"])
    for key in ("delimiter", "decimal"):
        if len(layout.get(key, ",").encode()) != 1:
            raise ValueError(f"[table]: {key} is {layout[key]!r}; it must be one character")
    return Mapping(
        channels=channels,
        time=_columns(time["column"], "[time]: column"),
        end=_columns(time.get("end", []), "[time]: end"),
        clock=clock,
        layout=Layout(**layout),
        subject_column=part["subject"].get("column", ""),
        subject=part["subject"].get("id", ""),
        device_column=part["device"].get("column", ""),
        device=part["device"].get("name", ""),
        channel_column=long.get("column", ""),
        value_column=long.get("value", ""),
        unit_column=long.get("unit", ""),
        duplicates=duplicates,
    )


def _channel(name: str, keys: Any, default: Sampling, long: bool) -> Channel:
    where = f"channels.{name}"
    if not isinstance(keys, dict):
        raise ValueError(f"[{where}] is not a table")
    _known(keys, (*_OF_CHANNEL, *_OF_SAMPLING), where)
    wanted, other = ("source", "column") if long else ("column", "source")
    if other in keys:
        raise ValueError(f"[{where}]: {other} is of {'wide' if long else 'long'} tables; here it is {wanted}")
    if not keys.get("unit"):
        raise ValueError(f"[{where}] has no unit")
    own = {k: v for k, v in keys.items() if k in _OF_SAMPLING}
    rest = {k: v for k, v in keys.items() if k not in _OF_SAMPLING} | {wanted: keys.get(wanted, name)}
    channel = Channel(name=name, sampling=_sampling(own, default, where), **rest)
    if channel.source_unit not in ("", channel.unit) and units.conversion(channel.source_unit, channel.unit) is None:
        raise ValueError(f"[{where}]: source_unit {channel.source_unit!r} cannot be turned into {channel.unit!r}")
    if channel.sampling.kind == BEATS and channel.unit != "ms":
        raise ValueError(f"[{where}]: beats are in ms, not in {channel.unit!r}")
    if not channel.valid_min < channel.valid_max:
        raise ValueError(f"[{where}]: valid_min {channel.valid_min:g} is not below valid_max {channel.valid_max:g}")
    return channel


def _sampling(keys: dict, default: Sampling, where: str) -> Sampling:
    kinds = [k for k in _OF_SAMPLING[:4] if k in keys]
    if len(kinds) > 1:
        raise ValueError(f"[{where}]: {kinds[0]} and {kinds[1]} are both given")
    combine = keys.get("combine", default.combine)
    if combine not in COMBINE:
        raise ValueError(f"[{where}]: combine is {combine!r}; it can be {', '.join(COMBINE)}")
    gap = keys.get("gap_seconds", default.gap_seconds)
    for key in ("rate_hz", "step_seconds", "single_seconds", "gap_seconds"):
        if key in keys and not 0 < keys[key] < float("inf"):
            raise ValueError(f"[{where}]: {key} is {keys[key]}; it must be positive")
    made = _made(keys, kinds, default, combine, gap, where)
    if combine != "mean" and made.kind != STEP:
        raise ValueError(f"[{where}]: combine = {combine!r} needs step_seconds")
    return made


def _made(keys: dict, kinds: list[str], default: Sampling, combine: str, gap: float, where: str) -> Sampling:
    if not kinds:
        return dataclasses.replace(default, combine=combine, gap_seconds=gap)
    if kinds[0] == "beats":
        if keys["beats"] not in ("start", "end"):
            raise ValueError(f"[{where}]: beats is {keys['beats']!r}; it can be start or end")
        return Sampling(BEATS, 0.0, combine, gap, keys["beats"])
    kind = {"rate_hz": RATE, "step_seconds": STEP, "single_seconds": SINGLE}[kinds[0]]
    seconds = keys[kinds[0]] if kind != RATE else 1 / keys["rate_hz"]
    return Sampling(kind, float(seconds), combine, gap)


def _table(content: dict, name: str) -> dict:
    value = content.get(name, {})
    if not isinstance(value, dict):
        raise ValueError(f"[{name}] is not a table")
    return value


def _columns(value: str | list, where: str) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else tuple(value)
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"{where} is not the name of a column or a list of names")
    return names


def _known(keys: dict, allowed: Collection[str], where: str) -> None:
    """Raises ValueError for a key that is not allowed, or has a value of another type than it must have."""
    for key, value in keys.items():
        if key not in allowed:
            raise ValueError(f"[{where}]: there is no key {key!r}; there are {', '.join(allowed)}")
        of = "number" if key in _NUMBERS else "whole number" if key in _INTEGERS else "text"
        types: tuple[type, ...] = {"number": (int, float), "whole number": (int,), "text": (str,)}[of]
        free = isinstance(value, dict) or (key in ("missing", "column", "end") and isinstance(value, list))
        if key == "utc":
            of, types = "true or false", (bool,)
        if not free and (not isinstance(value, types) or (isinstance(value, bool) and key != "utc")):
            raise ValueError(f"[{where}]: {key} is {value!r}; it must be {'' if key == 'utc' else 'a '}{of}")
