"""Reads tables into readings as a mapping says: long ones, and wide ones with one column per channel."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import polars as pl

from ehrwear_jax.data.formats import parquet, units
from ehrwear_jax.data.sources.csv_import import clock
from ehrwear_jax.data.sources.csv_import.mapping import Mapping
from ehrwear_jax.data.sources.csv_import.readings import READINGS, Check, Job
from ehrwear_jax.data.sources.csv_import.text_tables import Table, open_table, require_columns


def read(paths: Iterable[Path], mapping: Mapping, job: Job) -> Iterator[pl.DataFrame]:
    """Batches of readings (READINGS) of tables.

    Args:
      paths: files, of text or parquet.
      mapping: what their columns are.
      job: what the command asks for, where the mapping does not say it.

    Raises:
      ValueError: a file, a column or a value is not as the mapping says; names file, line and column.
    """
    for path in paths:
        table = open_table(path, mapping.layout, job.drop_bad)
        yield from _Reader(table, mapping, job).batches()


class _Reader:
    """One table."""

    def __init__(self, table: Table, mapping: Mapping, job: Job) -> None:
        self.table, self.mapping, self.job = table, mapping, job
        if job.subject and (mapping.subject_column or mapping.subject):
            who = f"column '{mapping.subject_column}'" if mapping.subject_column else "the mapping"
            raise ValueError(f"{table.path}: {who} says whose readings these are; leave --subject out")
        self.subject = "" if mapping.subject_column else mapping.subject or job.subject_of(table.path)
        self.clock = mapping.clock
        if not self.clock.knows_place:
            self.clock = clock.Clock(
                self.clock.format, job.timezone, job.utc_offset_minutes, self.clock.utc, self.clock.start
            )
        self.per_row = 1 if mapping.is_long else len(mapping.channels)
        self.with_offset: bool | None = None  # whether stamps carry one; of all rows or of none

    def batches(self) -> Iterator[pl.DataFrame]:
        m, tally = self.mapping, self.job.tally
        columns = [m.subject_column, *m.time, *m.end, m.device_column]
        columns += [m.channel_column, m.value_column, m.unit_column] if m.is_long else []
        columns += [] if m.is_long else [channel.column for channel in m.channels.values()]
        wanted = [name for name in dict.fromkeys(columns) if name]
        require_columns(self.table, wanted, f"line {m.layout.skip_lines + 1}")
        tally.read(self.table.path, 0, 0)
        for first_row, rows in self.table.batches(wanted):
            tally.read(self.table.path, rows.height, rows.height * self.per_row)
            yield self._of_batch(first_row, rows)
        if self.table.ragged:
            n = self.table.ragged
            tally.read(self.table.path, n, n * self.per_row)
            tally.drop("another number of fields than columns", n * self.per_row)

    def _of_batch(self, first_row: int, rows: pl.DataFrame) -> pl.DataFrame:
        def place(row: int) -> str:
            return self.table.place(first_row + row)

        m, n = self.mapping, rows.height
        check = Check(self.job, self.table.path, place, n, self.per_row)
        subject = self._subject(rows, check)
        times, _ = self._times(rows, m.time, check)
        end = pl.Series("end", [None], pl.Int64).new_from_index(0, n)
        if m.end:
            parsed, shown = self._times(rows, m.end, check)
            end = parsed["time"]
            check.intervals(times["time"], end, " ".join(m.end), shown)
        device = _constant("device", m.device or self.job.device or None, n)
        if m.device_column:
            device = rows[m.device_column].cast(pl.String).alias("device")
        common = pl.DataFrame(
            [
                subject.cast(pl.String).alias("subject"),
                times["time"],
                end.alias("end"),
                times["offset"],
                device,
            ]
        )
        parts = self._long(rows, common, check) if m.is_long else self._wide(rows, common, check, place)
        return pl.concat(parts) if parts else pl.DataFrame(schema=READINGS)

    def _subject(self, rows: pl.DataFrame, check: Check) -> pl.Series:
        if not self.mapping.subject_column:
            return _constant("subject", self.subject, rows.height)
        ids = rows[self.mapping.subject_column]
        if ids.dtype.is_float():
            check.require(ids.is_null() | (ids % 1 == 0), ids.name, ids, "is not a whole number")
            ids = ids.cast(pl.Int64, strict=False)
        ids = ids.cast(pl.String).str.strip_chars()
        check.require(ids.is_not_null() & (ids != ""), ids.name, ids.fill_null(""), "is no subject")
        return ids

    def _times(self, rows: pl.DataFrame, columns: tuple[str, ...], check: Check) -> tuple[pl.DataFrame, pl.Series]:
        """(clock.parse of the columns, what stands there)."""
        if len(columns) == 1:
            stamps = rows[columns[0]]
        else:
            stamps = rows.select(pl.concat_str([pl.col(c).cast(pl.String) for c in columns], separator=" ")).to_series()
        name = " ".join(columns)
        check.require(stamps.is_not_null(), name, _constant("stamp", "", rows.height), "is no time")
        parsed = clock.parse(stamps, self.clock)
        check.times(parsed, name, stamps)
        own = parsed["offset"].is_not_null()
        if self.with_offset is None and check.good.any():
            self.with_offset = bool(own[parquet.first_true(check.good)])
        if self.with_offset is None:
            return parsed, stamps
        what = "has no UTC offset, others have one" if self.with_offset else "has a UTC offset, others have none"
        check.require(own == self.with_offset, name, stamps, what)
        return parsed, stamps

    def _wide(
        self, rows: pl.DataFrame, common: pl.DataFrame, check: Check, place: Callable[[int], str]
    ) -> list[pl.DataFrame]:
        parts = []
        for channel in self.mapping.channels.values():
            mine = Check(self.job, self.table.path, place, rows.height)
            mine.good = check.good.clone()
            value = mine.numbers(rows[channel.column], channel.column, self.mapping.layout.decimal)
            factor, offset = channel.scale()
            part = common.with_columns(
                _constant("channel", channel.name, rows.height), (value * factor + offset).alias("value")
            )
            parts.append(part.filter(mine.good).select(*READINGS))
        return parts

    def _long(self, rows: pl.DataFrame, common: pl.DataFrame, check: Check) -> list[pl.DataFrame]:
        m = self.mapping
        by_text = {channel.source: channel for channel in m.channels.values()}
        texts = rows[m.channel_column].cast(pl.String).str.strip_chars()
        check.require(texts.is_not_null(), m.channel_column, texts.fill_null(""), "is no channel")
        for text in texts.filter(check.good).unique().sort():
            if text not in by_text:
                check.leave_out(texts == text, f"channel '{text}' is not in the mapping")
        value = check.numbers(rows[m.value_column], m.value_column, m.layout.decimal)
        unit = _constant("unit", "", rows.height)
        if m.unit_column:
            unit = rows[m.unit_column].cast(pl.String).str.strip_chars().fill_null("").alias("unit")
        scale = pl.DataFrame([texts.alias("text"), unit])
        known = self._scales(scale, check)
        scale = scale.join(known, on=["text", "unit"], how="left", maintain_order="left")
        names = {text: channel.name for text, channel in by_text.items()}
        part = common.with_columns(
            texts.replace_strict(names, default=None, return_dtype=pl.String).alias("channel"),
            (value * scale["factor"] + scale["add"]).alias("value"),
        )
        return [part.filter(check.good).select(*READINGS)]

    def _scales(self, scale: pl.DataFrame, check: Check) -> pl.DataFrame:
        """text, unit, factor, add of the channels and units of a batch; rows of units that do not fit are taken out."""
        m, found = self.mapping, []
        for channel in m.channels.values():
            if not m.unit_column:
                found.append((channel.source, "", *channel.scale()))
                continue
            mine = scale["text"] == channel.source
            for unit in scale["unit"].filter(mine & check.good).unique().sort():
                known = (1.0, 0.0) if unit == channel.unit else units.conversion(unit, channel.unit)
                if known is None:
                    wrong = (mine & (scale["unit"] == unit)).fill_null(False)
                    check.require(~wrong, m.unit_column, scale["unit"], f"cannot be turned into '{channel.unit}'")
                else:
                    found.append((channel.source, unit, known[0] * channel.factor, known[1]))
        schema = {"text": pl.String, "unit": pl.String, "factor": pl.Float64, "add": pl.Float64}
        return pl.DataFrame(found, schema, orient="row")


def _constant(name: str, value: str | None, n: int) -> pl.Series:
    return pl.Series(name, [value], pl.String).new_from_index(0, n)
