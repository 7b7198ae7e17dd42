"""Builds a MEDS dataset, wearable tables and a follow-up table from the files of UK Biobank.

docs/uk_biobank.md says which files go where. Labels are made from the events (data/labels/), by the follow-up table.
"""

from datetime import date
from pathlib import Path

import numpy as np
import polars as pl

from ehrwear_jax.data.formats import meds
from ehrwear_jax.data.sources.csv_source import Ledger, hashed_splits, staged
from ehrwear_jax.data.sources.ukb import (
    coded_events,
    export_files,
    five_second_files,
    hospital,
    linkage,
    mortality,
    participants,
    primary_care,
    visits,
)
from ehrwear_jax.data.sources.ukb.coded_events import Shards
from ehrwear_jax.data.sources.ukb.export_files import Tally
from ehrwear_jax.data.sources.ukb.participants import Participants

SUBJECTS_PER_SHARD = 2000
TABLES = ("hesin", "hesin_diag", "hesin_oper", "gp_clinical", "gp_scripts", "gp_registrations", "death", "death_cause")
MAPS = "code_maps"


class _Reading:
    """The files of one folder on their way to a dataset."""

    def __init__(self, source: Path, ledger: Ledger) -> None:
        self.ledger = ledger
        self.paths = {name: export_files.find_table(source, name) for name in TABLES}
        maps = source / MAPS
        self.maps = coded_events.read_maps(sorted(maps.glob("*.csv")) if maps.is_dir() else [])
        self.linkage = linkage.read(source)
        self.latest: date = linkage.last_day(self.linkage)
        self.tallies: dict[str, Tally] = {}
        for name in TABLES:
            if self.paths[name] is None:
                ledger.add(f"{name}: no such table", 0)
            elif name in ("hesin_diag", "hesin_oper") and self.paths["hesin"] is None:
                raise ValueError(f"{self.paths[name]}: the dates of its episodes are in hesin, which is not there")

    def tally(self, name: str) -> Tally:
        """The counts of a table."""
        return self.tallies.setdefault(name, Tally(name))

    def require(self, name: str) -> Path:
        """The path of a table that is there."""
        path = self.paths[name]
        assert path is not None
        return path


def build(
    source_dir: Path, root: Path, *, seed: int = 0, ukb_followup: str = "hospital", progress: bool = True
) -> list[dict]:
    """Writes the raw dataset root: meds/ with a follow-up table, wearable/ and counts.json.

    Every table but the participants' fields may be missing. Splits (80/10/10) are hashes of eid and seed.

    Args:
      source_dir: folder with the files.
      root: folder to write to; must not hold a dataset yet, except what an interrupted call left.
      seed: of the splits.
      ukb_followup: of linkage.KINDS: what follow-up is.
      progress: print each step.

    Returns:
      The records of counts.json: step, n, dropped, reason. Of each table: rows read, then what each reason leaves.

    Raises:
      FileNotFoundError: no file of participants.
      ValueError: a malformed source, or a root in use.
    """
    source_dir, ledger = Path(source_dir), Ledger("ukb", progress)
    if ukb_followup not in linkage.KINDS:
        raise ValueError(f"ukb_followup is {ukb_followup!r}; it can be {', '.join(linkage.KINDS)}")
    reading = _Reading(source_dir, ledger)
    found = participants.read(source_dir, reading.tally("participants"))
    died = mortality.deaths(reading.paths["death"], found.people, reading.tally("death"), reading.latest)
    people = found.people.drop("died").join(died, on="subject_id", how="left", maintain_order="left")
    people = _placed(people, seed)
    with staged(root) as folder:
        shards = Shards(folder / "scratch", people)
        _add_events(reading, found, people, source_dir, shards)
        codes, n_events = shards.write(folder / "meds", _of_kinds(reading))
        splits = people.select("subject_id", "split")
        release = f"linked to {max(end for _, end in reading.linkage.values())}"
        meds.write_metadata(folder / "meds", meds.Metadata("ukb", release, coded_events.code_table(codes), splits))
        table = _followed(reading, people, ukb_followup)
        linkage.write(table, folder / "meds")
        good = five_second_files.quality(found.wear, reading.tally("accelerometry"))
        good = good.join(splits, on="subject_id", how="semi", maintain_order="left")
        files = reading.tally("accelerometry files")
        n_stretches = five_second_files.write(folder, source_dir, splits, good, files, ledger)
        for tally in reading.tallies.values():
            tally.report(ledger)
        ledger.add("people written", people.height)
        ledger.add("events written", n_events)
        ledger.add("recorded stretches written", n_stretches)
        ledger.write(folder)
    return ledger.records


def _placed(people: pl.DataFrame, seed: int) -> pl.DataFrame:
    """People with split, and shard: a number over all splits, of at most SUBJECTS_PER_SHARD people."""
    people = people.with_columns(pl.Series("split", hashed_splits(people["subject_id"].to_numpy(), seed)))
    order = pl.col("split").replace_strict({s: i for i, s in enumerate(meds.SPLITS)}, return_dtype=pl.Int32)
    people = people.sort(order, "subject_id")
    within = pl.int_range(pl.len()).over("split") // SUBJECTS_PER_SHARD
    people = people.with_columns(within.alias("within"))
    begins = (pl.struct("split", "within") != pl.struct("split", "within").shift()).fill_null(True)
    shard_N = np.cumsum(people.select(begins).to_series().to_numpy()) - 1
    return people.drop("within").with_columns(pl.Series("shard", shard_N, pl.Int32)).sort("subject_id")


def _of_kinds(reading: _Reading) -> dict[str, Tally]:
    """{kind of event: counts of the table that it stands for a row of}."""
    tables = {"primary care": "gp_clinical", "prescription": "gp_scripts", "diagnosis": "hesin_diag",
              "operation": "hesin_oper", "cause of death": "death_cause", "assessment": "visits",
              "first occurrence": "first occurrences"}  # fmt: skip
    return {kind: reading.tally(table) for kind, table in tables.items()}


def _add_events(reading: _Reading, found: Participants, people: pl.DataFrame, source: Path, shards: Shards) -> None:
    """Reads all tables of events, one after the other, a block at a time."""
    maps, latest, paths = reading.maps, reading.latest, reading.paths
    shards.add(visits.static(people))
    shards.add(visits.at_visits(found, reading.tally("visits")))
    shards.add(mortality.death_events(people))
    tables = (("hesin_diag", visits.HOSPITAL), ("death_cause", visits.DEATH), ("gp_clinical", visits.CARE))
    told = {kind for table, kind in tables if paths[table] is not None}
    names = visits.categories(source)
    shards.add(visits.first_occurrences(found, people, names, told, reading.tally("first occurrences"), latest))
    if paths["hesin"] is not None:
        episodes = hospital.episodes(paths["hesin"], people, reading.tally("hesin"), latest)
        for part in hospital.stays(episodes):
            shards.add(part)
        for name, read in (("hesin_diag", hospital.diagnoses), ("hesin_oper", hospital.operations)):
            if paths[name] is not None:
                for part in read(reading.require(name), episodes, people, reading.tally(name), maps):
                    shards.add(part)
    for name, of in (("gp_clinical", primary_care.clinical), ("gp_scripts", primary_care.prescriptions)):
        if paths[name] is not None:
            for part in of(reading.require(name), people, reading.tally(name), maps, latest):
                shards.add(part)
    for part in mortality.causes(paths["death_cause"], found.causes, people, reading.tally("death_cause"), maps):
        shards.add(part)


def _followed(reading: _Reading, people: pl.DataFrame, kind: str) -> pl.DataFrame:
    path = reading.paths["gp_registrations"]
    if path is None:
        if kind == "primary_care":
            raise ValueError("ukb_followup is 'primary_care', which needs the table gp_registrations")
        schema = {"subject_id": pl.Int64, "start": pl.Date, "end": pl.Date}
        rows = pl.DataFrame(schema=schema)
    else:
        rows = primary_care.registrations(
            path, people, reading.tally("gp_registrations"), linkage.gp_ends(reading.linkage)
        )
    return linkage.follow_up(people, linkage.longest_stretches(rows), reading.linkage, kind, reading.ledger)
