"""Replaces ids by pseudonyms and shifts dates, in every table as it is read, before anything is written.

A pseudonym is the HMAC-SHA-256 (RFC 2104) of the id under a secret key, cut to 63 bits: the same for the same key, and
without the key neither reversible nor to be looked for by trying all ids. A person's dates all move by the same whole
number of days, also an HMAC, so that intervals, times of day and, in whole weeks, weekdays stay. Codes are not touched:
leave out those that name a person with config.prepare.drop_codes. Texts are written only where several people have the
same one for a code (texts.py). Names of shards and error messages are the source's.
"""

import dataclasses
import hashlib
import hmac
import json
import os
from pathlib import Path

import polars as pl

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.data import ages
from ehrwear_jax.data.formats import meds_checks, parquet

KEY_VARIABLE = "EHRWEAR_DEIDENTIFY_KEY"
_SHORTEST_KEY = 16


@dataclasses.dataclass(frozen=True)
class Deidentifier:
    """What is done to ids and dates; by default nothing.

    Attributes:
      key: secret.
      pseudonymise: whether ids of people and of groups are replaced.
      shift_days: dates move by 1 to so many days, forwards or backwards, each as likely; 0: not at all.
      whole_weeks: only by multiples of seven.
      max_age_years: ages above it are told as this age wherever an age is derived (data/ages.py); people who are older
        at their first record get a birth date of exactly this age there; 0: no limit. Nothing later than the first
        record decides that.

    Raises:
      ValueError: negative settings, weeks without a week's room, or no key where one is needed.
    """

    key: bytes = dataclasses.field(default=b"", repr=False)
    pseudonymise: bool = False
    shift_days: int = 0
    whole_weeks: bool = False
    max_age_years: float = 0.0

    def __post_init__(self) -> None:
        if self.shift_days < 0 or self.max_age_years < 0:
            raise ValueError("config.prepare.shift_days and max_age_years must not be negative")
        if self.whole_weeks and 0 < self.shift_days < 7:
            raise ValueError(f"config.prepare.shift_days is {self.shift_days}: whole weeks need at least 7")
        if (self.pseudonymise or self.shift_days) and len(self.key) < _SHORTEST_KEY:
            raise ValueError(
                f"pseudonyms and shifted dates need a secret key of at least {_SHORTEST_KEY} bytes: in the file "
                f"config.prepare.key_file or in the environment variable {KEY_VARIABLE}"
            )

    @property
    def active(self) -> bool:
        return bool(self.pseudonymise or self.shift_days or self.max_age_years)

    def _number(self, purpose, value):
        """64 bits that only the key and the purpose tell from chance."""
        digest = hmac.new(self.key, f"{purpose}:{value}".encode(), hashlib.sha256).digest()
        return int.from_bytes(digest[:8], "big")

    def _pseudonyms(self, ids, purpose="subject"):
        """{id: pseudonym in 1 .. 2**63 - 1}; ValueError if two are the same."""
        found = {i: (self._number(purpose, i) >> 1) or 1 for i in ids.drop_nulls().unique().to_list()}
        if len(set(found.values())) < len(found):
            raise ValueError(f"two {purpose} ids have the same pseudonym: use another key")
        return found

    def _replaced(self, ids, purpose="subject"):
        if not self.pseudonymise:
            return ids
        found = self._pseudonyms(ids, purpose)
        return ids.replace_strict(list(found), list(found.values()), default=None, return_dtype=pl.Int64)

    def days(self, subject_id: int) -> int:
        """By how many days a person's dates move; never 0 where dates are shifted."""
        if not self.shift_days:
            return 0
        step = 7 if self.whole_weeks else 1
        reach = self.shift_days // step
        draw = self._number("shift", subject_id) % (2 * reach)
        return step * (draw - reach if draw < reach else draw - reach + 1)

    def table(self, table: pl.DataFrame) -> pl.DataFrame:
        """A table with subject_id and perhaps group_id and times of that person, all replaced; rows sorted by id.

        Times of rows without a subject become null.

        Raises:
          ValueError: two ids with the same pseudonym.
        """
        times = [c for c, t in table.schema.items() if isinstance(t, pl.Datetime)]
        if self.shift_days and times:
            ids = table["subject_id"].drop_nulls().unique().to_list()
            shift = pl.col("subject_id").replace_strict(
                ids, [self.days(i) for i in ids], default=None, return_dtype=pl.Int64
            )
            table = table.with_columns(pl.col(c) + pl.duration(days=shift) for c in times)
        if not self.pseudonymise:
            return table
        table = table.with_columns(self._replaced(table["subject_id"]))
        if "group_id" in table.columns:
            table = table.with_columns(self._replaced(table["group_id"], "group"))
        return table.sort("subject_id", maintain_order=True, nulls_last=True)

    def events(self, events: pl.DataFrame, aside: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """(events, quarantined rows) of one shard, as meds_checks.screen returns them; subjects stay whole."""
        if not self.active:
            return events, aside
        if self.max_age_years:
            is_birth = pl.col("code").str.starts_with(meds_checks.BIRTH_CODE)
            first = pl.col("time").filter(~is_birth).min().over("subject_id")
            moved = ages.of_the_old(pl.col("time"), first, self.max_age_years)
            events = events.with_columns(pl.when(is_birth).then(moved).otherwise("time").alias("time"))
        aside = self.table(aside).with_columns(pl.lit(None, pl.String).alias("text_value"))
        shifted = pl.when(pl.col("column") == "time").then(pl.col("time").cast(pl.String)).otherwise("value")
        return self.table(events), aside.with_columns(shifted.alias("value"))

    def recordings(self, subject_id: int, rows: pl.DataFrame) -> tuple[int, pl.DataFrame]:
        """(subject_id, rows) of one person's wearable recordings."""
        if not self.active:
            return subject_id, rows
        rows = self.table(rows)
        return rows["subject_id"][0], rows

    def recordings_aside(self, aside: pl.DataFrame) -> pl.DataFrame:
        """Quarantined recordings; the name of a device may be its serial number."""
        return self.table(aside).with_columns(pl.lit(None, pl.String).alias("device")) if self.active else aside

    def settings(self) -> dict:
        """What tells two ways of de-identification apart, without the key."""
        settings = {k: v for k, v in dataclasses.asdict(self).items() if k != "key"}
        return settings | {"key": f"{self._number('check', ''):016x}" if self.key else ""}


def of(config: PrepareConfig) -> Deidentifier:
    """The Deidentifier that a PrepareConfig asks for.

    Raises:
      FileNotFoundError: no such key file. ValueError: as Deidentifier.
    """
    key = b""
    if config.pseudonymise or config.shift_days:
        if config.key_file:
            if not os.path.isfile(config.key_file):
                raise FileNotFoundError(f"config.prepare.key_file: there is no file {config.key_file}")
            key = Path(config.key_file).read_bytes().strip()
        else:
            key = os.environ.get(KEY_VARIABLE, "").encode()
    return Deidentifier(key, config.pseudonymise, config.shift_days, config.shift_whole_weeks, config.max_age_years)


def begin(folder: Path, config: PrepareConfig) -> Deidentifier:
    """`of`; notes below the folder of tables how they are de-identified.

    Raises:
      ValueError: it holds tables made in another way, or with another key: the two must not be mixed.
    """
    deidentifier = of(config)
    path, settings = Path(folder) / "deidentified.json", deidentifier.settings()
    begun = any((Path(folder) / "people").glob("*"))
    there = json.loads(path.read_text()) if path.exists() else Deidentifier().settings() if begun else settings
    if there != settings:
        differing = ", ".join(k for k in settings if there.get(k) != settings[k])
        raise ValueError(f"{folder}: holds tables with another de-identification ({differing}); use an empty folder")
    if deidentifier.active and not path.exists():
        parquet.write_json(settings, path)
    return deidentifier
