"""Says who of UK Biobank was observed from when until when: linkage to registers, registrations, losses, deaths.

Hospital records are complete from and to days that depend on the country, and primary care to the day on which a system
was asked. `LINKAGE` has those of the release of 2023; a file linkage.csv (source, start, end) in the source folder
replaces any of its rows: **look your release's up in the Showcase** ("Data providers and dates of data availability").

Follow-up is one stretch a person (metadata/subject_followup.parquet):

- `hospital`: of everybody. From the first day that hospital records or a registration cover, to the last day of
  hospital records of the country of the assessment centre, the loss to follow-up (field 191) or death.
- `primary_care`: of people who were registered with a practice that sends records. Their longest stretch of
  registration, where hospital records cover it too.
"""

from datetime import date, timedelta
from pathlib import Path

import polars as pl

from ehrwear_jax.data.formats import parquet
from ehrwear_jax.data.labels import followup
from ehrwear_jax.data.sources.csv_source import Ledger

# source -> first and last day of complete records
LINKAGE = {
    "hospital England": (date(1997, 4, 1), date(2022, 10, 31)),
    "hospital Scotland": (date(1981, 1, 1), date(2022, 8, 31)),
    "hospital Wales": (date(1998, 4, 1), date(2022, 5, 31)),
    "gp 1": (date(1938, 1, 1), date(2017, 5, 1)),
    "gp 2": (date(1938, 1, 1), date(2017, 4, 1)),
    "gp 3": (date(1938, 1, 1), date(2016, 7, 1)),
    "gp 4": (date(1938, 1, 1), date(2017, 9, 1)),
}
KINDS = ("hospital", "primary_care")
FILE = "linkage.csv"
_MOST_APART = timedelta(days=30)  # between two practices of one stretch
_SLACK = timedelta(days=366)


def read(folder: Path) -> dict[str, tuple[date, date]]:
    """LINKAGE with the rows of the folder's linkage.csv.

    Raises:
      ValueError: naming file and row: a source that is none of LINKAGE, a date that is none, or an end before a start.
    """
    path, out = Path(folder) / FILE, dict(LINKAGE)
    if not path.is_file():
        return out
    table = pl.read_csv(path, infer_schema=False)
    for c in ("source", "start", "end"):
        if c not in table.columns:
            raise ValueError(f"{path}: column '{c}' is missing (found {table.columns})")
    for i, row in enumerate(table.iter_rows(named=True), 1):
        if row["source"] not in LINKAGE:
            raise ValueError(f"{path}: row {i}: source {row['source']!r} is none of {', '.join(LINKAGE)}")
        try:
            start, end = (date.fromisoformat(row[c] or "") for c in ("start", "end"))
        except ValueError:
            raise ValueError(f"{path}: row {i}: start and end must be dates such as 2022-10-31") from None
        if end <= start:
            raise ValueError(f"{path}: row {i}: the end is not after the start")
        out[row["source"]] = start, end
    return out


def last_day(linkage: dict[str, tuple[date, date]]) -> date:
    """A day after which no record can be: a year after the last of all sources."""
    return max(end for _, end in linkage.values()) + _SLACK


def gp_ends(linkage: dict[str, tuple[date, date]]) -> dict[str, date]:
    """{provider: last day of its records}."""
    return {source.removeprefix("gp "): end for source, (_, end) in linkage.items() if source.startswith("gp ")}


def longest_stretches(registrations: pl.DataFrame) -> pl.DataFrame:
    """subject_id, first, start, end: each person's longest stretch without a gap of more than 30 days, and first day.

    Args:
      registrations: subject_id, start, end (Date, both included), by subject_id and start.
    """
    covered = pl.col("end").cum_max().shift().over("subject_id")
    begins = (pl.col("start") > covered + _MOST_APART).fill_null(True)
    merged = (
        registrations.with_columns(begins.cum_sum().over("subject_id").alias("stretch"))
        .group_by("subject_id", "stretch", maintain_order=True)
        .agg(pl.col("start").min(), pl.col("end").max())
        .with_columns(
            (pl.col("end") - pl.col("start")).alias("length"), pl.col("start").min().over("subject_id").alias("first")
        )
        .sort("subject_id", "length", descending=[False, True], maintain_order=True)
    )
    return merged.unique("subject_id", keep="first", maintain_order=True).select("subject_id", "first", "start", "end")


def follow_up(
    people: pl.DataFrame, stretches: pl.DataFrame, linkage: dict[str, tuple[date, date]], kind: str, ledger: Ledger
) -> pl.DataFrame:
    """subject_id, start, end (times, the end excluded) of the people who were observed.

    Args:
      people: subject_id, birth, country (null: unknown), lost, died.
      stretches: as longest_stretches returns. kind: of KINDS.
    """
    bounds = {c: linkage[f"hospital {c}"] for c in ("England", "Scotland", "Wales")}
    rows = people.join(stretches, on="subject_id", how="left", maintain_order="left").with_columns(
        pl.col("country").replace_strict({c: b[0] for c, b in bounds.items()}, return_dtype=pl.Date).alias("from"),
        pl.col("country").replace_strict({c: b[1] for c, b in bounds.items()}, return_dtype=pl.Date).alias("until"),
    )
    # unknown centre: what is complete everywhere
    rows = rows.with_columns(
        pl.col("from").fill_null(max(b[0] for b in bounds.values())),
        pl.col("until").fill_null(min(b[1] for b in bounds.values())),
    )
    until = pl.min_horizontal("until", "lost", "died")
    if kind == "primary_care":
        start, end = pl.max_horizontal("from", "start"), pl.min_horizontal(until, "end")
        rows = rows.filter(pl.col("start").is_not_null())
    else:
        start, end = pl.min_horizontal("from", "first"), until
    rows = rows.select(
        "subject_id",
        pl.max_horizontal(start, "birth").cast(pl.Datetime("us")).alias("start"),
        (end.cast(pl.Datetime("us")) + timedelta(days=1)).alias("end"),
    )
    kept = rows.filter(pl.col("end") > pl.col("start"))
    why = f"{people.height - rows.height:,} never registered, {rows.height - kept.height:,} ended before it began"
    ledger.add(f"people with a follow-up ({kind})", kept.height, people.height - kept.height, why)
    lost = int(people["lost"].is_not_null().sum())
    ledger.add("people lost to follow-up (field 191)", lost)
    return kept.sort("subject_id")


def write(table: pl.DataFrame, meds_dir: Path) -> None:
    """Writes metadata/subject_followup.parquet."""
    parquet.write_frame(table, meds_dir / "metadata" / followup.TABLE)
