"""Builds a MEDS dataset, wearable tables and labels from the PhysioNet/CinC Challenge 2012: 48 h of ICU stays.

Which files the source folder holds and where to get them: the docstring of physionet2012_files.py.

Times are hh:mm since admission to the ICU; every admission is ADMISSION, so that a timestamp tells the time since
admission and neither a date nor the time of day, which the challenge does not publish. Birth is the middle of the year
of life, a whole number of days before: ages are whole years, and 90 stands for 90 and older.

Vital signs (VITALS) are wearable channels on a grid of five minutes. A sample is known at its end, and holds the mean
of the readings in the five minutes that end there: nothing is known before it was read, and what was read at 48:00 is
known at 48:00. Everything else is an event at its own time. With `vitals_as_events` vital signs are events too.

Values: -1 of a descriptor is unknown and left out; what another unit explains is repaired (REPAIRS: pH 735 is 7.35);
what no patient has (0 mmHg, -17.8 C) is left out. Urine amounts at one time add up, other values there are averaged.
Weight is written down again and again: a weight that repeats the last one is left out. All of these are counted, and
the counts add up to the rows that were read (counts.json).

Death in hospital is in the label tables only, never in the event stream: it lies behind the end of every record.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from ehrwear_jax.data.formats import meds, parquet, wearable
from ehrwear_jax.data.formats.times import DAY_US, HOUR_US, MINUTE_US, YEAR_DAYS
from ehrwear_jax.data.sources import physionet2012_files as files
from ehrwear_jax.data.sources.csv_source import (
    Ledger,
    day_number,
    hashed_splits,
    hashed_uniform,
    staged,
    timestamps,
)

# Set -> what was published of it.
PUBLISHED = {
    "a": {"stays": 4_000, "rows": 1_757_980, "deaths in hospital": 554},
    "b": {"stays": 4_000},
    "c": {"stays": 4_000},
}
ADMISSION = "2010-01-01"  # of everybody, at midnight
TASK = "in_hospital_death_at_{:d}h"
PREDICTION_HOURS = (24, 48)
STEP_MINUTES = 5
DEVICE = "bedside monitor"
VITAL_CODE = "VITAL//"  # what the codes of vital signs begin with
SUBJECTS_PER_SHARD = 1000
_ADMISSION_US = day_number(ADMISSION) * DAY_US
_SUMMED = "Urine"
# How the labels were made, for the report; see data/labels/task_design.py.
DESIGN = {
    "time_zero": "The hours after admission to the ICU that the task's name says.",
    "eligibility": "All stays with an outcome: the challenge holds stays of at least 48 hours in the ICU, of people "
    "of 16 years and older. At 24 hours these are chosen by the 24 that follow: nobody died or left in them.",
    "outcome": "Death in hospital, at any time of the stay.",
    "follow_up": "Records end 48 hours after admission; the outcome is known for everybody, at discharge or death.",
    "competing_events": "None: discharge alive is the other outcome.",
    "censoring": "Nobody is censored.",
}


# -------------------------------------------------------------------------------------------------------------- values
def _cleaned(rows: pl.DataFrame, ledger: Ledger) -> pl.DataFrame:
    """The measurements with values that can be: repaired, else left out, and counted."""
    parameter, value = pl.col("parameter"), pl.col("value")
    own = rows.filter(~parameter.is_in(files.DESCRIBING))
    why = f"describe the stay: {', '.join(files.DESCRIBING)}"
    ledger.add("rows of measurements", len(own), len(rows) - len(own), why)
    known = own.filter((value != files.UNKNOWN) | ~parameter.is_in(files.MAY_BE_UNKNOWN))
    ledger.add("rows with a known value", len(known), len(own) - len(known), "-1: unknown")
    for name, repairs in files.REPAIRS.items():
        for low, high, factor, why in repairs:
            meant = (parameter == name) & value.is_between(low, high)
            ledger.add(f"rows repaired: {name}, {why}", len(known.filter(meant)))
            known = known.with_columns(pl.when(meant).then(value * factor).otherwise(value).alias("value"))
    table = {**files.VITALS, **files.MEASURED}
    least, most = ({name: float(getattr(p, end)) for name, p in table.items()} for end in ("low", "high"))
    inside = value.is_between(parameter.replace_strict(least), parameter.replace_strict(most))
    kept, counted = known.filter(inside), known.filter(~inside).group_by("parameter").len().sort("parameter")
    what = ", ".join(f"{n:,} {name}" for name, n in counted.iter_rows())
    ledger.add("rows with a plausible value", len(kept), len(known) - len(kept), f"artefacts: {what}")
    return kept


def _one_per_time(rows: pl.DataFrame, ledger: Ledger) -> pl.DataFrame:
    """One row per stay, minute and parameter, in the order of the rows, and weights where they change alone."""
    value = pl.col("value")
    joined = pl.when(pl.col("parameter").first() == _SUMMED).then(value.sum()).otherwise(value.mean())
    once = rows.group_by("stay", "minute", "parameter", maintain_order=True).agg(joined.alias("value"))
    why = f"same stay, time and parameter as another row: {_SUMMED} added up, others averaged"
    ledger.add("rows of different times", len(once), len(rows) - len(once), why)
    weights = once.filter(pl.col("parameter") == "Weight").sort("stay", "minute", maintain_order=True)
    repeated = weights.filter((value == value.shift(1).over("stay")).fill_null(False))
    kept = once.join(repeated, on=["stay", "minute", "parameter"], how="anti", maintain_order="left")
    ledger.add("rows without repeated weights", len(kept), len(once) - len(kept), "the last weight written down again")
    return kept


# -------------------------------------------------------------------------------------------------------------- events
def _stays(rows: pl.DataFrame, source: str | Path) -> pl.DataFrame:
    """stay, Age, Gender (null: unknown), ICUType of every stay.

    Raises:
      ValueError: a stay without one of them, with two, with another RecordID than its file's name, or of no known kind.
    """
    table = rows.select("stay").unique(maintain_order=True)
    for name in files.DESCRIBING:
        of = rows.filter((pl.col("parameter") == name) & (pl.col("minute") == 0)).select("stay", name=pl.col("value"))
        if of["stay"].is_duplicated().any() or len(of) != len(table):
            odd = table.join(of.unique("stay", keep="none"), on="stay", how="anti")["stay"]
            raise ValueError(f"{source}: stay {odd[0]}: {name} must be there once, at 00:00")
        table = table.join(of.rename({"name": name}), on="stay", how="left", maintain_order="left")
    good = {
        "RecordID": pl.col("RecordID") == pl.col("stay"),
        "Age": pl.col("Age").is_between(0, 130),
        "Gender": pl.col("Gender").is_in([*map(float, files.GENDERS), files.UNKNOWN]),
        "ICUType": pl.col("ICUType").is_in([*map(float, files.ICU_TYPES)]),
    }
    for name, is_good in good.items():
        bad = table.filter(~is_good)
        if len(bad):
            raise ValueError(f"{source}: stay {bad['stay'][0]}: {name} is {bad[name][0]:g}, which cannot be")
    unknown = pl.when(pl.col("Gender") != files.UNKNOWN).then("Gender")
    return table.select("stay", "Age", unknown.cast(pl.Int64).alias("Gender"), pl.col("ICUType").cast(pl.Int64))


def _events(stays: pl.DataFrame, rows: pl.DataFrame, vitals: bool) -> pl.DataFrame:
    """Sex (static), birth, admission, and what was measured; vital signs with `vitals` alone."""
    admitted = pl.lit(_ADMISSION_US).cast(pl.Datetime("us"))
    years = pl.col("Age") + 0.5
    birth = _ADMISSION_US - (years * YEAR_DAYS).floor().cast(pl.Int64) * DAY_US
    no_value = pl.lit(None, dtype=pl.Float32)

    def of_stay(time: pl.Expr, code: pl.Expr) -> pl.DataFrame:
        return stays.select(subject_id="stay", time=time, code=code, numeric_value=no_value).drop_nulls("code")

    icu = {kind: code for kind, (code, _) in files.ICU_TYPES.items()}
    codes = {name: p.name for name, p in files.MEASURED.items()}
    codes |= {name: VITAL_CODE + p.name for name, p in files.VITALS.items()} if vitals else {}
    valued = ~pl.col("parameter").is_in(files.WITHOUT_VALUE)
    measured = rows.filter(pl.col("parameter").is_in(list(codes))).select(
        subject_id="stay",
        time=(_ADMISSION_US + pl.col("minute") * MINUTE_US).cast(pl.Datetime("us")),
        code=pl.col("parameter").replace_strict(codes, return_dtype=pl.String),
        numeric_value=pl.when(valued).then("value").cast(pl.Float32),
    )
    return pl.concat(
        [
            of_stay(pl.lit(None, dtype=pl.Datetime("us")), pl.col("Gender").replace_strict(files.GENDERS)),
            of_stay(birth.cast(pl.Datetime("us")), pl.lit(meds.BIRTH_CODE)),
            of_stay(admitted, pl.col("ICUType").replace_strict(icu)),
            measured,
        ]
    )


def code_table(vitals: bool) -> pl.DataFrame:
    """code, description, parent_codes of every code of the dataset."""
    described = {meds.BIRTH_CODE: "Birth", "GENDER//F": "Female", "GENDER//M": "Male", **dict(files.ICU_TYPES.values())}
    described |= {p.name: p.description for p in files.MEASURED.values()}
    described |= {VITAL_CODE + p.name: p.description for p in files.VITALS.values()} if vitals else {}
    table = pl.DataFrame({"code": list(described), "description": list(described.values())})
    return table.with_columns(parent_codes=pl.lit([], dtype=pl.List(pl.String)))


# ------------------------------------------------------------------------------------------------------------ wearable
def channels() -> pl.DataFrame:
    """The table of channels (wearable.CHANNEL_SCHEMA)."""
    rows = [(p.name, p.unit, p.description, float(p.low), float(p.high)) for p in files.VITALS.values()]
    return pl.DataFrame(rows, schema=list(wearable.CHANNEL_SCHEMA), orient="row")


def _recordings(rows: pl.DataFrame, ledger: Ledger) -> pl.DataFrame:
    """Vital signs as one stretch per stay and channel, five minutes a sample (wearable.ROW_SCHEMA)."""
    own = rows.filter(pl.col("parameter").is_in(list(files.VITALS)))
    # A sample covers the five minutes that end at a full five, and is known at their end: a reading at 00:07 is part of
    # the sample that ends at 00:10, one at 00:10 too.
    cell = -(-pl.col("minute") // STEP_MINUTES)
    sampled = own.group_by("stay", "parameter", cell.alias("cell")).agg(pl.col("value").mean())
    why = f"averaged with others of the same {STEP_MINUTES} minutes"
    ledger.add("vital signs on the grid", len(sampled), len(own) - len(sampled), why)
    last = files.LAST_MINUTE // STEP_MINUTES
    names, units = ({name: getattr(p, part) for name, p in files.VITALS.items()} for part in ("name", "unit"))
    parts = []
    for (stay, parameter), of in sampled.sort("stay", "parameter", "cell").group_by(
        ["stay", "parameter"], maintain_order=True
    ):
        values = np.full(last + 1, np.nan, np.float32)
        values[of["cell"].to_numpy()] = of["value"].to_numpy()
        parts.append((stay, names[parameter], values, units[parameter]))
    start_us = _ADMISSION_US - STEP_MINUTES * MINUTE_US  # of the sample that ends at admission
    return pl.DataFrame(
        {
            "subject_id": pl.Series([p[0] for p in parts], dtype=pl.Int64),
            "start_time": timestamps([start_us] * len(parts)),
            "sample_rate_hz": pl.Series([1 / (60 * STEP_MINUTES)] * len(parts), dtype=pl.Float64),
            "channel": pl.Series([p[1] for p in parts], dtype=pl.String),
            "values": pl.Series([p[2] for p in parts], dtype=pl.List(pl.Float32)),
            "unit": pl.Series([p[3] for p in parts], dtype=pl.String),
        }
    ).with_columns(device=pl.lit(DEVICE))


# --------------------------------------------------------------------------------------------------------------- build
def build(
    source_dir: Path,
    root: Path,
    *,
    sets: Sequence[str] = ("a",),
    vitals_as_events: bool = False,
    seed: int = 0,
    n_folds: int = 5,
    progress: bool = True,
    strict: bool = True,
) -> list[dict]:
    """Writes the raw dataset root: meds/, wearable/, labels/ and counts.json.

    Labels: in_hospital_death_at_24h and _at_48h (binary), of every stay of a set whose outcomes are there. Who has
    labels has a fold 0..n_folds-1, everybody else fold -1. Splits (80/10/10) and folds are hashes of RecordID and seed.
    metadata/subject_splits.parquet also has the column `set`, for a hold-out such as "site:set=b".

    Args:
      source_dir: folder with the files that physionet2012_files.py lists.
      root: folder to write to; must not hold a dataset yet, except what an interrupted call left.
      sets: sets of the challenge, of a, b and c; each must be there.
      vitals_as_events: whether vital signs are events too.
      seed: of splits and folds.
      n_folds: folds of the evaluation; fewer than two: none.
      progress: print each step.
      strict: a count that differs from the published one is an error.

    Returns:
      The records of counts.json: step, n, dropped, reason.

    Raises:
      FileNotFoundError: a set is missing.
      ValueError: a malformed source, a count that is not the published one, a set that is none, or a root in use.
    """
    if not sets or len(set(sets)) < len(sets) or not set(sets) <= set(files.SETS):
        raise ValueError(f"sets are {tuple(sets)}; they can be {', '.join(files.SETS)}, each once")
    ledger = Ledger("physionet2012", progress)
    rows, people = _read(Path(source_dir), sets, strict, ledger)
    ids_N = people["stay"].to_numpy()
    kept = _one_per_time(_cleaned(rows, ledger), ledger)
    events = _events(people, kept, vitals_as_events)
    labels = _labels(people, ledger)
    splits = pl.DataFrame({"subject_id": ids_N, "split": hashed_splits(ids_N, seed)})
    folds = _folds(people, seed, n_folds, ledger) if n_folds > 1 else None
    sites = people.select(subject_id="stay", set="set")
    with staged(root) as folder:
        codes = code_table(vitals_as_events)
        metadata = meds.Metadata("physionet2012", "1.0.0", codes, splits, folds=folds, sites=sites)
        meds.write_dataset(folder, events, metadata, SUBJECTS_PER_SHARD)
        _write_follow_up(folder / "meds", people)
        of_stay = len(events.filter(pl.col("code").is_in([p.name for p in files.MEASURED.values()])))
        ledger.add("events written", len(events), 0, f"{of_stay:,} of them measurements, the others of the stays")
        _write_recordings(folder / "wearable", splits, kept, ledger)
        _reconcile(ledger)
        for task, table in labels.items():
            meds.write_labels(folder / "labels" / f"{task}.parquet", table)
        parquet.write_json(DESIGN, folder / "labels" / "design.json")
        ledger.write(folder)
    return ledger.records


def _reconcile(ledger: Ledger) -> None:
    """Adds how the rows that were read add up, of the counts before it."""
    counts = {record["step"]: record for record in ledger.records}
    n, kept = counts["rows read"]["n"], counts["rows without repeated weights"]["n"]
    joined = counts["vital signs on the grid"]["dropped"]
    samples = counts["vital signs on the grid"]["n"]
    reason = (
        f"{n:,} rows read = {samples:,} on the grid + {kept - samples - joined:,} events + "
        f"{counts['rows of measurements']['dropped']:,} of the stay + {counts['rows with a known value']['dropped']:,} "
        f"unknown + {counts['rows with a plausible value']['dropped']:,} artefacts + "
        f"{counts['rows of different times']['dropped'] + joined:,} joined with another + "
        f"{counts['rows without repeated weights']['dropped']:,} repeated weights"
    )
    ledger.add("rows in the dataset", kept - joined, n - kept + joined, reason)


def _read(source_dir: Path, sets: Sequence[str], strict: bool, ledger: Ledger) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(rows of all sets, the stays: stay, Age, Gender, ICUType, set, died)."""
    parts, people = [], []
    for name in sets:
        rows = files.read_stays(source_dir, name)
        stays = _stays(rows, source_dir / f"set-{name}")
        outcomes = files.read_outcomes(source_dir, name)
        if outcomes is None:
            outcomes = stays.select("stay", died=pl.lit(None, pl.Boolean)).clear()
        elif lacking := sorted(set(stays["stay"]) ^ set(outcomes["stay"])):
            raise ValueError(f"{source_dir}: stay {lacking[0]} is in one of set-{name} and Outcomes-{name}.txt only")
        found = {"stays": len(stays), "rows": len(rows), "deaths in hospital": int(outcomes["died"].sum())}
        for what, n in PUBLISHED[name].items():
            ledger.published(f"set {name}: {what}", found[what], n, strict)
        parts.append(rows)
        people.append(stays.join(outcomes, on="stay", how="left", maintain_order="left").with_columns(set=pl.lit(name)))
    together = pl.concat(people)
    if together["stay"].is_duplicated().any():
        twice = together.filter(pl.col("stay").is_duplicated())["stay"][0]
        raise ValueError(f"{source_dir}: stay {twice} is in more than one set")
    ledger.add("rows read", sum(map(len, parts)))
    return pl.concat(parts), together


def _labels(people: pl.DataFrame, ledger: Ledger) -> dict[str, pl.DataFrame]:
    """{task: subject_id, prediction_time, boolean_value}."""
    known = people.drop_nulls("died")
    positive = int(known["died"].sum())
    step = f"stays labelled ({positive:,} deaths in hospital)"
    ledger.add(step, len(known), len(people) - len(known), "of sets whose outcomes are not there")
    out = {}
    for hours in PREDICTION_HOURS:
        time = pl.lit(_ADMISSION_US + hours * HOUR_US).cast(pl.Datetime("us"))
        out[TASK.format(hours)] = known.select(subject_id="stay", prediction_time=time, boolean_value="died")
    return out


def _folds(people: pl.DataFrame, seed: int, n_folds: int, ledger: Ledger) -> pl.DataFrame:
    """subject_id, fold: 0 to n_folds - 1 by a hash for those labelled, -1 for all others."""
    fold_N = (hashed_uniform(people["stay"].to_numpy(), seed, "fold") * n_folds).astype(np.int64)
    fold_N = np.where(people["died"].is_not_null().to_numpy(), fold_N, -1)
    sizes = ", ".join(str(int((fold_N == k).sum())) for k in range(n_folds))
    ledger.add("stays in evaluation folds", int((fold_N >= 0).sum()), 0, f"{sizes}; all others pretrain only")
    return pl.DataFrame({"subject_id": people["stay"], "fold": fold_N})


def _write_follow_up(meds_dir: Path, people: pl.DataFrame) -> None:
    """Everybody's records are known from admission to 48 h after it (see data/labels/followup.py)."""
    start, end = (
        pl.lit(_ADMISSION_US + minutes * MINUTE_US).cast(pl.Datetime("us")) for minutes in (0, files.LAST_MINUTE)
    )
    parquet.write_frame(
        people.select(subject_id="stay", start=start, end=end), meds_dir / "metadata" / "subject_followup.parquet"
    )


def _write_recordings(folder: Path, splits: pl.DataFrame, rows: pl.DataFrame, ledger: Ledger) -> None:
    table = channels()
    wearable.write_channels(folder, table)
    recordings = _recordings(rows, ledger)
    for split in meds.SPLITS:
        ids = splits.filter(pl.col("split") == split)["subject_id"].sort()
        for shard, first in enumerate(range(0, len(ids), SUBJECTS_PER_SHARD)):
            some = ids[first : first + SUBJECTS_PER_SHARD]
            mine = recordings.filter(pl.col("subject_id").is_in(some.implode()))
            if len(mine):
                wearable.write_shard(folder / split / f"{shard}.parquet", mine, table)
    n_people = recordings["subject_id"].n_unique()
    ledger.add("recorded stretches written", len(recordings), 0, f"of {n_people:,} of {len(splits):,} stays")
