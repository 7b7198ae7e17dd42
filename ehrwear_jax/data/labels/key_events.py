"""Reads, shard by shard, the few events that labels are made of, at the times at which they are known."""

import dataclasses
import difflib
import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl

from ehrwear_jax.data.formats import meds, meds_checks
from ehrwear_jax.data.prepare import date_only, workers

_NEAREST = 5


@dataclasses.dataclass(frozen=True)
class Reading:
    """How the events of a dataset are read.

    Attributes:
      meds_dir: MEDS dataset.
      bounds: leave out the rows that meds_checks.screen sets aside; None: such a row is an error.
      date_only: codes that carry dates without times, known at the day's end (prepare/date_only.py).
      max_rows: with bounds, about how many rows are in memory at once.
    """

    meds_dir: Path
    bounds: meds_checks.TimeBounds | None = None
    date_only: tuple[str, ...] = ()
    max_rows: int = 2_000_000

    def pieces(self, shard: Path) -> Iterator[pl.DataFrame]:
        """The events of a shard, whole subjects at a time."""
        if self.bounds is None:
            yield meds.read_shard(shard)
            return
        for events, _ in meds_checks.screen_pieces(shard, self.bounds, self.max_rows):
            yield events


@dataclasses.dataclass(frozen=True)
class KeyEvents:
    """What labels need of a dataset.

    Attributes:
      spans: subject_id, first, last: times of the first and the last record but the birth, by subject_id.
      times: {name: (subject_id, time) of the wanted rows, by both}.
    """

    spans: pl.DataFrame
    times: Mapping[str, pl.DataFrame]

    def first(self, name: str) -> pl.DataFrame:
        """subject_id and, under the name, the first time."""
        return self.times[name].group_by("subject_id").agg(pl.col("time").min().alias(name))


def read(
    reading: Reading,
    wanted: Mapping[str, pl.Expr],
    limit: datetime | None = None,
    pool: workers.Pool | None = None,
) -> KeyEvents:
    """The spans of everybody and the times of some rows. Memory: one piece a process, and what is returned.

    Args:
      wanted: {name: which rows}, expressions of the code.
      limit: records at or after it, such as booked appointments, do not extend a span.
      pool: reads shards at once; None: this process reads them.
    """
    of_shard = functools.partial(_of_shard, reading=reading, wanted=dict(wanted), limit=limit)
    spans, times = zip(
        *(pool or workers.Pool()).map(of_shard, meds.list_shards(reading.meds_dir), "label events"), strict=True
    )
    return KeyEvents(
        pl.concat(spans).sort("subject_id"),
        {name: pl.concat([found[name] for found in times]).sort("subject_id", "time") for name in wanted},
    )


def _of_shard(path, reading, wanted, limit):
    """(spans, {name: times}) of a shard, see KeyEvents."""
    spans: list[pl.DataFrame] = []
    times: dict[str, list[pl.DataFrame]] = {name: [] for name in wanted}
    for events in reading.pieces(path):
        events = events.filter(pl.col("time").is_not_null() & ~below(meds.BIRTH_CODE))
        events = date_only.at_day_end(events, pl.Series("code", reading.date_only, pl.String))
        past = pl.col("time") < (datetime.max if limit is None else limit)
        spans.append(
            events.group_by("subject_id").agg(
                pl.col("time").min().alias("first"), pl.col("time").filter(past).max().alias("last")
            )
        )
        # which codes are wanted is found once for each code, not for each event
        codes = events["code"].to_arrow().dictionary_encode()
        code_N, named = codes.indices.to_numpy(), pl.DataFrame({"code": pl.Series(codes.dictionary, dtype=pl.String)})
        keys = events.select("subject_id", "time")
        for name, rows in wanted.items():
            is_wanted_C = np.broadcast_to(named.select(rows.alias("rows")).to_series().to_numpy(), named.height)
            at_K = np.flatnonzero(is_wanted_C[code_N]) if is_wanted_C.any() else slice(0)
            times[name].append(keys[at_K])
    return pl.concat(spans), {name: pl.concat(parts) for name, parts in times.items()}


def below(*prefixes: str) -> pl.Expr:
    """The codes themselves or those below them: HOSPITAL_ADMISSION or HOSPITAL_ADMISSION//...; no prefix: none."""
    code = pl.col("code")
    return pl.any_horizontal(pl.lit(False), *((code == p) | code.str.starts_with(p + "//") for p in prefixes))


def beginning(prefixes: Sequence[str]) -> pl.Expr:
    """The codes that begin with one of the prefixes."""
    return pl.any_horizontal(pl.lit(False), *(pl.col("code").str.starts_with(p) for p in prefixes))


def require_codes(codes: pl.Series, option: str, rows: pl.Expr, prefixes: Iterable[str], instead: str = "") -> None:
    """Raises ValueError, with the nearest codes of the dataset, where an option's prefixes match none of them.

    Args:
      codes: all codes of the dataset. option: its full name. rows: `below` or `beginning` of the prefixes.
      instead: what else can be done, for the message.
    """
    prefixes = list(prefixes)
    if not prefixes or codes.to_frame("code").filter(rows).height:
        return
    levels = {"//".join(parts[:k]) for parts in (c.split("//") for c in codes.to_list()) for k in (1, 2, len(parts))}
    near = [c for p in prefixes for c in difflib.get_close_matches(p, sorted(levels), _NEAREST, 0.3)]
    words = {w for p in prefixes for w in re.findall(r"[a-z]{4,}", p.lower())}
    near += sorted((c for c in levels if any(w in c.lower() for w in words)), key=len)
    shown = ", ".join(dict.fromkeys(near[: 2 * _NEAREST])) or ", ".join(sorted(levels)[:_NEAREST]) or "none"
    names = ", ".join(map(repr, prefixes))
    raise ValueError(f"{option} names {names}, which no code of the dataset matches; the nearest are {shown}{instead}")
