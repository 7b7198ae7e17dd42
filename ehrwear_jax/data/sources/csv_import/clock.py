"""Reads times as exports write them: microseconds since 1970, and what the clock at the place shows beyond UTC.

Three kinds of stamps:

  with an offset (2023-01-01 08:00:00 +0100)  the time in UTC, and the offset that is written
  in UTC (epochs, a final Z, `utc`)           the time in UTC; the offset is that of the time zone that was named
  of the clock at the place                   with a time zone or an offset, both as above; without, the time stays as
                                              it is and the offset is null (see formats/wearable.py)

An hour that a zone's clock shows twice in autumn is taken for the first of the two. A time that it skips in spring
cannot be, but for midnight, which stands for the day. A final Z says nothing about the place, +00:00 does.
"""

import dataclasses
import zoneinfo

import polars as pl

from ehrwear_jax.data.formats.times import DAY_US, MINUTE_US

# Format -> microseconds of its unit; counted from 1970, or from Clock.start.
EPOCHS = {"epoch_s": 1e6, "epoch_ms": 1e3, "epoch_us": 1.0, "epoch_ns": 1e-3}
ISO, ELAPSED = "iso", "elapsed"
_FARTHEST_US = 2.0**53  # what a float tells exactly: the year 2255
# A time of day stands before an offset: -2016 of 12-04-2016 is none.
_WITH_OFFSET = r"^(.*\d:\d\d.*?)\s*(Z|[+-]\d{2}:?\d{2})$"
_ELAPSED = r"^(\d+):(\d\d):(\d\d(?:\.\d+)?)$"
_ISO_TIMES = ("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M")


@dataclasses.dataclass(frozen=True)
class Clock:
    """How stamps are written.

    Attributes:
      format: "iso" (2016-04-12, 2016-04-12 07:21, 2016-04-12T07:21:00.5+02:00), one of EPOCHS, or a strptime format,
        perhaps with %z at its end; "elapsed": hours:minutes:seconds since `start`.
      timezone: IANA name, such as Europe/London; "": not known.
      utc_offset_minutes: what the clock at the place shows beyond UTC; None: not known.
      utc: whether stamps without an offset are in UTC.
      start: ISO time without offset from which an epoch or elapsed time counts, on the clock that the other fields
        describe; "": 1970 in UTC.
    """

    format: str = ISO
    timezone: str = ""
    utc_offset_minutes: int | None = None
    utc: bool = False
    start: str = ""

    def fault(self) -> str:
        """What cannot be about these fields, "" if nothing."""
        if self.timezone and self.timezone not in zoneinfo.available_timezones():
            return f"timezone {self.timezone!r} is no IANA time zone such as Europe/London"
        if self.timezone and self.utc_offset_minutes is not None:
            return "timezone and utc_offset_minutes are both given"
        if self.start and self.format not in (*EPOCHS, ELAPSED):
            return f"start goes with a format of {', '.join(EPOCHS)} or {ELAPSED}"
        if self.format == ELAPSED and not self.start:
            return "elapsed times need a start"
        if self.start and _naive(pl.Series([self.start]), ISO).null_count():
            return f"start {self.start!r} is no ISO time such as 2020-01-31T08:00:00"
        if self.format not in (ISO, ELAPSED, *EPOCHS) and "%" not in self.format:
            return f"format {self.format!r} is none of {', '.join((ISO, ELAPSED, *EPOCHS))} and no strptime format"
        return ""

    @property
    def knows_place(self) -> bool:
        """Whether times in UTC can be brought to the clock at the place."""
        return bool(self.timezone) or self.utc_offset_minutes is not None


def parse(stamps: pl.Series, clock: Clock) -> pl.DataFrame:
    """Times of a column of text, numbers, dates or timestamps.

    Args:
      stamps: as read; null: none.
      clock: how they are written.

    Returns:
      time i64, microseconds; offset i16, minutes, null where not known; placeless bool: in UTC, with the clock at the
      place not known; skipped bool: the zone's clock does not show it. time is null where the stamp cannot be read and
      where it is skipped.
    """
    stamps = stamps.alias("stamp")
    naive, written, in_utc = _read(stamps, clock)
    frame = pl.DataFrame({"naive": naive, "written": written, "utc": in_utc})
    by_text = pl.col("written").is_not_null()
    local = _of_place(frame["naive"], clock, in_utc=False)
    utc = _of_place(frame["naive"], clock, in_utc=True)
    frame = frame.with_columns(
        local["time"].alias("local_time"),
        local["offset"].alias("local_offset"),
        utc["time"].alias("utc_time"),
        utc["offset"].alias("utc_offset"),
    )
    physical = pl.col("naive").to_physical()
    time = (
        pl.when(by_text)
        .then(physical - pl.col("written").cast(pl.Int64) * MINUTE_US)
        .when(pl.col("utc"))
        .then("utc_time")
        .otherwise("local_time")
    )
    offset = pl.when(by_text).then("written").when(pl.col("utc")).then("utc_offset").otherwise("local_offset")
    return frame.select(
        time.alias("time"),
        offset.cast(pl.Int16).alias("offset"),
        (pl.col("utc") & ~by_text & pl.lit(not clock.knows_place)).alias("placeless"),
        (pl.col("naive").is_not_null() & time.is_null()).alias("skipped"),
    )


def _read(stamps: pl.Series, clock: Clock) -> tuple[pl.Series, pl.Series, pl.Series]:
    """(naive time, offset that is written or null, whether in UTC) of each stamp."""
    n, kind = len(stamps), stamps.dtype
    none = pl.Series("written", [None], pl.Int16).new_from_index(0, n)
    flag = pl.Series("utc", [clock.utc], pl.Boolean).new_from_index(0, n)
    if isinstance(kind, pl.Datetime):
        if kind.time_zone is not None:  # stored in UTC
            return stamps.dt.cast_time_unit("us").dt.replace_time_zone(None), none, ~(flag & False)
        return stamps.dt.cast_time_unit("us"), none, flag
    if kind == pl.Date:
        return stamps.cast(pl.Datetime("us")), none, flag
    if clock.format in EPOCHS or clock.format == ELAPSED:
        us = _elapsed(stamps) if clock.format == ELAPSED else _epoch(stamps, EPOCHS[clock.format])
        if not clock.start:
            return us.cast(pl.Datetime("us")), none, ~(flag & False)
        start = _naive(pl.Series([clock.start]), ISO)
        if clock.knows_place and not clock.utc:  # what passes since then passes in UTC, whatever the local clock does
            start, flag = _of_place(start, clock, in_utc=False)["time"], ~(flag & False)
        return (us + start.to_physical()[0]).cast(pl.Datetime("us")), none, flag
    text = stamps.cast(pl.String).str.strip_chars()
    written, fmt = none, clock.format
    if fmt == ISO or fmt.endswith("%z"):
        parts = text.str.extract_groups(_WITH_OFFSET).struct.unnest()
        parts.columns = ["rest", "offset"]
        text = parts.select(pl.coalesce("rest", text)).to_series()
        flag = flag | (parts["offset"] == "Z").fill_null(False)
        digits = parts["offset"].str.replace(":", "").replace("Z", None)
        minutes = digits.str.slice(1, 2).cast(pl.Int16) * 60 + digits.str.slice(3, 2).cast(pl.Int16)
        sign = digits.str.slice(0, 1)
        written = pl.select(pl.when(sign == "-").then(-minutes).otherwise(minutes)).to_series()
        fmt = fmt.removesuffix("%z").strip()
    return _naive(text, fmt), written, flag


def _epoch(stamps: pl.Series, unit_us: float) -> pl.Series:
    """Microseconds of numbers of a unit; null for what is no number or no time."""
    text = stamps.str.strip_chars() if stamps.dtype == pl.String else stamps
    if unit_us < 1:  # nanoseconds need more digits than a float has
        return text.cast(pl.Int64, strict=False) // round(1 / unit_us)
    us = text.cast(pl.Float64, strict=False) * unit_us
    fits = us.is_finite().fill_null(False) & (us.abs() < _FARTHEST_US)
    return pl.select(pl.when(fits).then(us.round())).to_series().cast(pl.Int64)


def _elapsed(stamps: pl.Series) -> pl.Series:
    """Microseconds of texts like 01:30:00; null for others."""
    parts = stamps.cast(pl.String).str.strip_chars().str.extract_groups(_ELAPSED).struct.unnest()
    hours, minutes, seconds = (parts[name].cast(pl.Float64) for name in parts.columns)
    return ((hours * 3600 + minutes * 60 + seconds) * 1e6).round().cast(pl.Int64)


def _naive(text: pl.Series, fmt: str) -> pl.Series:
    """Times without zone; null for what does not fit the format."""
    if fmt != ISO:
        if not any(code in fmt for code in ("%H", "%I", "%T", "%R", "%k", "%l", "%s", "%X")):
            return text.str.strptime(pl.Date, fmt, strict=False).cast(pl.Datetime("us"))
        return text.str.strptime(pl.Datetime("us"), fmt, strict=False)
    text = text.str.replace(" ", "T", literal=True)
    times = [text.str.strptime(pl.Datetime("us"), f, strict=False) for f in _ISO_TIMES]
    times.append(text.str.strptime(pl.Date, "%Y-%m-%d", strict=False).cast(pl.Datetime("us")))
    return pl.select(pl.coalesce(times)).to_series()


def _of_place(naive: pl.Series, clock: Clock, in_utc: bool) -> pl.DataFrame:
    """time i64 and offset i16 of stamps without an offset of their own."""
    us = naive.to_physical().alias("time")
    if clock.utc_offset_minutes is not None:
        minutes = pl.Series("offset", [clock.utc_offset_minutes], pl.Int16).new_from_index(0, len(us))
        return pl.DataFrame([us if in_utc else us - clock.utc_offset_minutes * MINUTE_US, minutes])
    if not clock.timezone:
        return pl.DataFrame([us, pl.Series("offset", [None], pl.Int16).new_from_index(0, len(us))])
    if in_utc:
        utc = us
        local = naive.dt.replace_time_zone("UTC").dt.convert_time_zone(clock.timezone).dt.replace_time_zone(None)
        shown = local.to_physical()
    else:
        zoned = naive.dt.replace_time_zone(clock.timezone, ambiguous="earliest", non_existent="null")
        if zoned.null_count() > naive.null_count():
            later = naive.dt.offset_by("1h").dt.replace_time_zone(
                clock.timezone, ambiguous="earliest", non_existent="null"
            )
            midnight = zoned.is_null() & (us % DAY_US == 0)
            zoned = pl.select(pl.when(midnight).then(later).otherwise(zoned)).to_series()
            us = zoned.dt.replace_time_zone(None).to_physical()
        utc = zoned.dt.convert_time_zone("UTC").dt.replace_time_zone(None).to_physical()
        shown = us
    return pl.DataFrame([utc.alias("time"), ((shown - utc) // MINUTE_US).cast(pl.Int16).alias("offset")])
