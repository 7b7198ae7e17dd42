"""Turns exports that people own into wearable tables (formats/wearable.py), and checks what it wrote.

    python -m ehrwear_jax.data.sources.csv_import SOURCE DESTINATION --mapping=FILE.toml
    python -m ehrwear_jax.data.sources.csv_import SOURCE DESTINATION --preset=fitbit --timezone=Europe/London
    python -m ehrwear_jax.data.sources.csv_import SOURCE --preset=apple_health --subject=7 --dry-run

SOURCE is a file or a folder. --mapping: tables that a TOML file explains (mapping.py). --preset: fitbit, apple_health,
daily, empatica, polar or axivity, each as its module says. DESTINATION gets wearable/, counts.json, in which readings =
kept + dropped by each reason, and subject_ids.csv where ids were numbered or given. --dry-run reads everything, says
what it understood and writes nothing there.

A subject whose id is an integer keeps it; where any is not, all are numbered from 1 in sorted order. --subject-ids
names a table of the ids to use instead, so that they are those of the health records.

Then the tables are checked as by ehrwear_jax.data.formats.wearable_validate. Exit code 0: clean; 1: something is wrong;
2: the command itself is.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import polars as pl

from ehrwear_jax.data.formats import meds_checks, parquet, wearable_validate
from ehrwear_jax.data.sources.csv_import import apple_health, axivity, daily, empatica, fitbit, mapped, polar
from ehrwear_jax.data.sources.csv_import.convert import Result, Wanted, convert
from ehrwear_jax.data.sources.csv_import.mapping import PATTERNS, Channel, read_mapping
from ehrwear_jax.data.sources.csv_import.readings import Job, Tally, find_files, noted, show_time
from ehrwear_jax.data.sources.csv_source import Ledger, read_csv, require_unique, staged

PRESETS = {"fitbit": fitbit, "apple_health": apple_health, "daily": daily, "empatica": empatica, "polar": polar,
           "axivity": axivity}  # fmt: skip
_SHOWN_FILES = 5


def main(argv: list[str]) -> int:
    """The command; returns its exit code."""
    options = _options(argv)
    try:
        return _run(options)
    except (ValueError, OSError, ImportError) as error:
        print(f"csv_import: {error}", file=sys.stderr)
        return 1


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m ehrwear_jax.data.sources.csv_import", description="Turns exports into wearable tables."
    )
    parser.add_argument("source", type=Path, help="file or folder of the export")
    parser.add_argument("destination", type=Path, nargs="?", help="folder for wearable/ and counts.json")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--mapping", type=Path, help="TOML file that says what the columns of tables are")
    which.add_argument("--preset", choices=list(PRESETS), help="an export whose form is known")
    parser.add_argument("--dry-run", action="store_true", help="say what is understood, write nothing")
    whose = parser.add_mutually_exclusive_group()
    whose.add_argument("--subject", default="", help="id of the person, for exports of one")
    whose.add_argument("--subject-folders", action="store_true", help="each folder in SOURCE is named by a person's id")
    parser.add_argument("--subject-ids", type=Path, help="CSV source_id,subject_id of the people to take")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--timezone", default="", help="of the place, such as Europe/London")
    place.add_argument("--utc-offset-minutes", type=int, help="what the clock at the place shows beyond UTC")
    parser.add_argument("--clock", choices=("utc", "local"), default="utc", help="start_time where the offset is known")
    parser.add_argument("--device", default="", help="name of the device, where the export has none")
    parser.add_argument("--drop-bad", action="store_true", help="drop and count rows that cannot be read")
    parser.add_argument("--first-date", default="1900-01-01", help="no recording begins before this day")
    parser.add_argument("--extraction-date", default="", help="no recording lies more than a year after this day")
    options = parser.parse_args(argv)
    if options.destination is None and not options.dry_run:
        parser.error("DESTINATION is missing (or --dry-run)")
    try:
        meds_checks.time_bounds(options.first_date, options.extraction_date)
    except ValueError as error:
        parser.error(str(error).replace("config.prepare.", ""))
    return options


def _run(options: argparse.Namespace) -> int:
    tally = Tally()
    job = Job(
        options.source,
        tally,
        options.subject,
        options.subject_folders,
        options.timezone,
        options.utc_offset_minutes,
        options.device,
        options.drop_bad,
    )
    if fault := job.clock().fault():
        raise ValueError(f"--{fault}")
    channels, batches, duplicates = _reader(options, job)
    ids = None if options.subject_ids is None else _given_ids(options.subject_ids)
    wanted = Wanted(channels, duplicates, ids, options.clock == "local")
    readings, n_bytes = noted(batches, job, channels), _size(options.source)
    if options.dry_run:
        with tempfile.TemporaryDirectory(prefix="csv_import") as folder:
            result = convert(readings, wanted, tally, Path(folder) / "readings", None, n_bytes)
        print("\n".join(_report(tally, result, channels, options.source)))
        return 0
    root = options.destination
    root.mkdir(parents=True, exist_ok=True)
    with staged(root) as building:
        result = convert(readings, wanted, tally, building / "readings", building / "wearable", n_bytes)
        if result.numbered:
            table = pl.DataFrame({"source_id": list(result.ids), "subject_id": list(result.ids.values())})
            with parquet.writing(building / "subject_ids.csv") as partial:
                table.write_csv(partial)
        _ledger(tally, result, options.source).write(building)
    print("\n".join(_report(tally, result, channels, options.source)))
    bounds = [f"--first-date={options.first_date}", f"--extraction-date={options.extraction_date}"]
    return wearable_validate.main([str(root / "wearable"), *bounds])


def _reader(options: argparse.Namespace, job: Job) -> tuple[dict[str, Channel], Iterator[pl.DataFrame], str]:
    """(channels that there may be, batches of readings, what becomes of duplicates)."""
    if options.preset:
        module = PRESETS[options.preset]
        return module.CHANNELS, module.read(job), "first"
    mapping = read_mapping(options.mapping)
    patterns = (mapping.layout.pattern,) if mapping.layout.pattern else PATTERNS
    files = find_files(options.source, patterns)
    return mapping.channels, mapped.read(files, mapping, job), mapping.duplicates


def _given_ids(path: Path) -> dict[str, int]:
    table = read_csv(
        path,
        {"source_id": pl.String, "subject_id": pl.Int64},
        "name a CSV of source_id and subject_id",
        required=("source_id", "subject_id"),
    )
    for column in table.columns:
        require_unique(table, column, path)
    return dict(table.iter_rows())


def _size(source: Path) -> int:
    if source.is_file():
        return source.stat().st_size
    return sum(p.stat().st_size for p in source.rglob("*") if p.is_file())


def _ledger(tally: Tally, result: Result, source: Path) -> Ledger:
    """Counts that add up: readings = kept + dropped by each reason."""
    ledger = Ledger("csv_import", progress=False)
    for path, n in tally.rows.items():
        ledger.add(f"rows of {_name(path, source)}", n)
    left = tally.readings
    ledger.add("readings in these rows", left)
    for reason, n in tally.dropped.items():
        left -= n
        ledger.add("readings dropped", left, n, reason)
    if left != result.kept:
        raise AssertionError(f"{left:,} readings are left and {result.kept:,} were kept")
    ledger.add("readings kept", result.kept)
    samples, stretches = (sum(getattr(f, what) for f in result.found.values()) for what in ("samples", "stretches"))
    ledger.add("samples with a value", samples, 0, "several readings may make one, and one several")
    ledger.add("stretches", stretches)
    return ledger


def _name(path: str, source: Path) -> str:
    """A file's name below the source."""
    return Path(path).name if Path(path) == source else str(Path(path).relative_to(source))


def _names(paths: Iterable[str], source: Path) -> str:
    names = [_name(path, source) for path in paths]
    more = f" and {len(names) - _SHOWN_FILES:,} more" if len(names) > _SHOWN_FILES else ""
    return ", ".join(names[:_SHOWN_FILES]) + more


def _report(tally: Tally, result: Result, channels: dict[str, Channel], source: Path) -> list[str]:
    """What was understood, for people to read."""
    out = [f"{len(tally.rows):,} files: {_names(tally.rows, source)}"]
    if tally.skipped:
        out.append(f"{len(tally.skipped):,} files are not of this format: {_names(tally.skipped, source)}")
    zone = " in UTC" if result.in_utc else ""
    how = "numbered, see subject_ids.csv" if result.numbered else "ids as they are"
    out.append(f"{len({p for f in result.found.values() for p in f.people}):,} people ({how})")
    for name, found in sorted(result.found.items()):
        seconds = sorted(found.seconds)
        every = f"{seconds[0]:g} s" if len(seconds) == 1 else f"{seconds[0]:g} to {seconds[-1]:g} s"
        devices = ", ".join(sorted(d for d in found.devices if d is not None)) or "no device named"
        out.append(
            f"  {name} [{channels[name].unit}]: {len(found.people):,} people, a sample every {every}, "
            f"{found.samples:,} samples ({found.missing:,} missing) in {found.stretches:,} stretches, "
            f"{show_time(found.first_us, None)} to {show_time(found.last_us, None)}{zone}, {devices}"
        )
    out.append(f"{sum(tally.rows.values()):,} rows, {tally.readings:,} readings: {result.kept:,} kept")
    out += [f"  {n:,} dropped: {reason}" for reason, n in tally.dropped.items()]
    return [*out, "first readings as understood:", *(f"  {line}" for line in tally.examples)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
