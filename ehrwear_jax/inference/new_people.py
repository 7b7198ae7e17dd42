"""Prepares new data for a bundled model, with the model's own code table, statistics and units.

The steps are those of the prepare stage (data/prepare). Codes that the bundle does not know are added behind its table,
each with the nearest of its ancestors that the bundle knows, as prepare does it with codes that no training patient
has; without one they are in the records and become no token. Values and channels in another unit are converted.
"""

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from ehrwear_jax.config import options
from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.data.formats import meds, parquet, units, wearable
from ehrwear_jax.data.formats.parquet import write_frame, write_json
from ehrwear_jax.data.prepare import (
    clinical_ranges,
    code_table,
    dataset,
    date_only,
    harmonise,
    record_shards,
    specs,
    statistics,
    texts,
    workers,
)
from ehrwear_jax.data.prepare import output_manifest as manifest
from ehrwear_jax.data.store import FAMILY_FACTS, RANGES, RecordStore
from ehrwear_jax.inference import bundle_files, coverage
from ehrwear_jax.inference.coverage import ANCESTOR, KNOWN, UNKNOWN
from ehrwear_jax.stages.labels import with_extraction_date

SPLIT = "held_out"  # of everybody here
_UNITS = "units.csv"


class Prepared(NamedTuple):
    """Records of new people, what is known of their codes (coverage.CODES), and what was done to units.

    unstated_units: codes whose values are used and whose unit is not stated here or in the training data. warnings: of
    signals unlike those of the training data.
    """

    store: RecordStore
    codes: pl.DataFrame
    units: list[dict]
    unstated_units: list[str]
    missing_channels: list[str]
    steps: list[dict]
    warnings: list[str]


class Sources(NamedTuple):
    """Where new data lie.

    Attributes:
      meds_dir: a MEDS data set; its splits are not looked at. wearable_dir: wearable tables, if any.
      mapping: tables of local codes, code, target, factor, offset, as config.prepare.mapping_files takes them.
    """

    meds_dir: Path
    wearable_dir: Path | None = None
    mapping: tuple[Path, ...] = ()


def prepare(bundle: Path, about: Mapping[str, Any], sources: Sources, out: Path) -> Prepared:
    """Prepares a MEDS data set and, perhaps, wearable tables.

    Args:
      bundle: folder. about: its bundle.json. out: an empty folder for what is made.

    Raises:
      FileNotFoundError, ValueError: what is wrong with the data, naming the file; a unit that does not convert.
    """
    source, converted = _meds_view(sources.meds_dir, out / "meds"), []
    tables, records, fit = (out / name for name in ("tables", "records", "fit"))
    for folder in (tables, records, fit):
        folder.mkdir(parents=True)
    config = prepare_options(bundle, about, sources.mapping)
    table = pl.read_parquet(bundle / "codes.parquet")
    if found := _units_of_codes(source, table, bundle, config):
        converted += found
        write_conversions(found, out / _UNITS)
        config = dataclasses.replace(config, mapping_files=(*config.mapping_files, str(out / _UNITS)))
    worn, of_channels, missing = _wearable_view(sources.wearable_dir, about, config, out / "wearable")
    converted += of_channels
    config, _ = with_extraction_date(config, source)
    with workers.open_pool(config) as pool:
        _decide_beforehand(bundle, source, tables, config, table, pool)
        steps = dataset.prepare_tables(source, worn, tables, config, quarantine_dir=out / "quarantine", pool=pool)
        described = meds.read_codes(source) if (source / "metadata" / "codes.parquet").exists() else None
        coded = extended(bundle, table, code_table.used_codes(tables, pool), described, config.implied_parents)
        subjects = pl.read_parquet(tables / "subjects.parquet")
        write_frame(coded.codes, records / "codes.parquet")
        shutil.copyfile(bundle / "texts.parquet", records / "texts.parquet")
        write_json(record_shards.make_meta(subjects.height, config), records / "meta.json")
        steps += dataset.prepare_records(tables, None, records, config, None, pool)
        _fit(bundle, coded, subjects, (tables, records, fit), pool)
    known = _coverage(tables, coded)
    unstated = _unstated(source, table, bundle, known)
    unlike = _unlike_training(bundle, about, worn, tables)
    return Prepared(RecordStore(records, fit), known, converted, unstated, missing, steps, unlike)


def _unlike_training(bundle, about, worn, tables) -> list[str]:
    """Warnings of signals whose rate or range is not that of the training data; bundles may not tell their rates."""
    if worn is None:
        return []
    units_of = {c["channel"]: c["unit"] for c in about["channels"]}
    channels = {name: units_of.get(name, "") for name in about["prepare"]["channels"]}
    trained = json.loads((bundle / "signal_statistics.json").read_text())
    parts = [pl.read_parquet(path) for path in sorted((tables / "windows").glob("*.parquet"))]
    out = coverage.of_rates(wearable.rates(worn), about.get("rates", {}))
    return out + coverage.of_channels(pl.concat(parts), channels, trained, about["prepare"]["log_channels"])


def prepare_options(bundle: Path, about: Mapping[str, Any], mapping: Iterable[Path]) -> PrepareConfig:
    """The options of prepare of a bundle, with further tables of codes (Sources.mapping)."""
    paths = [*(bundle / name for name in about["mapping_files"]), *mapping]
    values = dict(about["prepare"]) | {"mapping_files": [str(path) for path in paths]}
    return options.build(PrepareConfig, values, f"{bundle / bundle_files.ABOUT}: prepare")


def _link(path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(os.path.abspath(target), target_is_directory=target.is_dir())


def _meds_view(meds_dir, view):
    """The data set without its splits and groups: everybody is wanted."""
    meds.list_shards(meds_dir)  # an error here names the folder that the user gave
    _link(view / "data", meds_dir / "data")
    for name in ("codes.parquet", "dataset.json"):
        if (meds_dir / "metadata" / name).exists():
            _link(view / "metadata" / name, meds_dir / "metadata" / name)
    return view


# -------------------------------------------------------------------------------------------------------------- units


def write_conversions(converted: list[dict], path: Path) -> None:
    """Writes conversions of codes as a mapping table of prepare (harmonise.read_mapping)."""
    rows = [{"code": c["what"], "target": c["what"], "factor": c["factor"], "offset": c["offset"]} for c in converted]
    pl.DataFrame(rows).write_csv(path)


def _units_of_codes(source, table, bundle, config) -> list[dict]:
    """Conversions of the codes whose values are in another unit here; ValueError for one that is not known."""
    here = harmonise.dataset_units(source / "metadata" / "codes.parquet")
    used = pl.read_parquet(bundle / "code_statistics.parquet").filter(pl.col("mean").is_not_null())["code"]
    lineage = {code: (unit, above) for code, unit, above in table.select("code", "unit", "ancestors").iter_rows()}
    mapped = set(harmonise.read_mapping(config.mapping_files, here)["code"])
    differing = {
        code: (here[code], lineage[code][0])
        for code in used.to_list()
        if lineage[code][0] and code in here and code not in mapped and not _same_unit(here[code], lineage[code][0])
    }
    if not differing:
        return []
    measured = _codes_with_values(source) & set(differing)
    out = []
    for code in sorted(measured):
        unit, target = differing[code]
        found = _conversion(unit, target, [code, *(lineage[code][1] or [])])
        if found is None:
            raise ValueError(
                f"{code!r} is in {unit!r} in metadata/codes.parquet, and in {target!r} in the training data: there is "
                "no conversion; map its values to that unit"
            )
        out.append({"what": code, "from": unit, "to": target, "factor": found[0], "offset": found[1]})
    return out


def _unstated(source, table, bundle, found):
    """Codes of the events whose values are used, and whose units could not be compared."""
    here = harmonise.dataset_units(source / "metadata" / "codes.parquet")
    used = pl.read_parquet(bundle / "code_statistics.parquet").filter(pl.col("mean").is_not_null())["code"]
    stated = set(table.filter(pl.col("unit").is_not_null())["code"]) & set(here)
    return sorted(set(used) & set(found["code"]) - stated)


def _same_unit(unit: str, other: str) -> bool:
    known = units.laboratory_unit(unit)
    return unit == other or (known is not None and known == units.laboratory_unit(other))


def _conversion(unit, target, names):
    """(factor, offset) of laboratory units, by the substance where that is needed; None without."""
    a, b = units.laboratory_unit(unit), units.laboratory_unit(target)
    if a is None or b is None:
        return units.conversion(unit, target)
    if found := units.conversion(a, b, units.LABORATORY):
        return found
    row = clinical_ranges.row_of(names)
    return None if row is None else row.between(a, b)


def _codes_with_values(source):
    """The codes of events with a number."""
    found: set[str] = set()
    for shard in meds.list_shards(source):
        with parquet.reading(shard):
            if {"code", "numeric_value"} <= set(pl.read_parquet_schema(shard)):
                rows = pl.scan_parquet(shard).filter(pl.col("numeric_value").is_not_null())
                found |= set(rows.select(pl.col("code").unique()).collect()["code"].drop_nulls().to_list())
    return found


def _wearable_view(wearable_dir, about, config, view) -> tuple[Path | None, list[dict], list[str]]:
    """(Folder with the channels in the bundle's units, None without any; conversions; channels that are missing)."""
    declared = {c["channel"]: c for c in about["channels"]}
    made = set(specs.made_units(config, {}))
    of_segments = [c for spec in config.segments.values() for c in spec.channels]
    wanted = [c for c in dict.fromkeys([*config.channels, *config.acceleration, *of_segments]) if c not in made]
    if wearable_dir is None:
        return None, [], wanted
    table = wearable.read_channels(wearable_dir)
    here = wearable.units(table)
    missing = [c for c in wanted if c not in here]
    factors: dict[str, tuple[float, float]] = {}
    for channel, unit in here.items():
        target = declared.get(channel, {"unit": unit})["unit"]
        if unit != target:
            found = units.conversion(unit, target)
            if found is None and channel in wanted:
                raise ValueError(
                    f"{wearable_dir}: the channel {channel!r} is in {unit!r}, and in {target!r} in the training data: "
                    "there is no conversion"
                )
            factors |= {channel: found} if found else {}
    if not config.channels or set(missing) == set(wanted):
        return None, [], missing
    _write_view(Path(wearable_dir), table, declared, factors, view)
    done = [
        {"what": c, "from": here[c], "to": declared[c]["unit"], "factor": f[0], "offset": f[1]}
        for c, f in factors.items()
    ]
    return view, done, missing


def _write_view(wearable_dir, table, declared, factors, view):
    """Links to the recordings, or converted copies of them, and channels as the training data declared them."""
    kept = table.filter(~pl.col("channel").is_in(list(declared)))
    ours = pl.DataFrame(list(declared.values())).with_columns(description=pl.lit(None, pl.String))
    wearable.write_channels(view, pl.concat([kept, ours.select(kept.columns)]))
    for shard in wearable.list_shards(wearable_dir):
        path = view / shard.relative_to(wearable_dir)
        if factors:
            path.parent.mkdir(parents=True, exist_ok=True)
            with parquet.reading(shard):
                write_frame(_converted(pl.read_parquet(shard), wearable.units(table), declared, factors), path)
        else:
            _link(path, shard)


def _converted(rows, here, declared, factors):
    """Rows of recordings in the bundle's units; one that is not in the unit of its channel stays, to be set aside."""
    values, unit = pl.col("values"), pl.col("unit")
    for channel, (factor, offset) in factors.items():
        mine = (pl.col("channel") == channel) & (pl.col("unit") == here[channel])
        changed = (pl.col("values").list.eval(pl.element() * factor + offset)).cast(pl.List(pl.Float32))
        values = pl.when(mine).then(changed).otherwise(values)
        unit = pl.when(mine).then(pl.lit(declared[channel]["unit"])).otherwise(unit)
    return rows.with_columns(values=values, unit=unit)


# -------------------------------------------------------------------------------------------------------------- codes


def _decide_beforehand(bundle, source, tables, config, table, pool):
    """Writes what the training data decided of codes, where prepare finds it: dates without times, texts."""
    shards = meds.list_shards(source)
    names = parquet.shard_names(shards, source)
    decided = date_only.prepared(shards, names, tables, config, pool)
    trained = pl.read_parquet(bundle / bundle_files.DATE_ONLY).rename({"date_only": "trained"})
    both = decided.join(trained, on="code", how="left", maintain_order="left")
    wanted = pl.coalesce("trained", "date_only") & (pl.col("at_midnight") > 0)
    write_frame(both.with_columns(date_only=wanted).select(decided.columns), tables / "date_only.parquet")
    known = pl.read_parquet(bundle / "texts.parquet").join(table.select("code_id", "code"), on="code_id")
    write_frame(known.select(*texts.TEXTS).cast(texts.TEXTS).sort("code", "text"), tables / "texts.parquet")
    write_frame(pl.DataFrame(schema=texts.BY_CODE), tables / "texts_by_code.parquet")


class Coded(NamedTuple):
    """code_table.CODES and statistics.CODE_STATISTICS with the new codes behind; how many are the bundle's."""

    codes: pl.DataFrame
    statistics: pl.DataFrame
    n_known: int


def extended(
    bundle: Path, table: pl.DataFrame, used: list[str], described: pl.DataFrame | None, implied_parents: bool
) -> Coded:
    """The bundle's table of codes, and behind it those of `used` that it lacks, with the code that stands for each."""
    known = pl.read_parquet(bundle / "code_statistics.parquet")
    ids = dict(table.select("code", "code_id").iter_rows())
    new = code_table.make_codes([code for code in used if code not in ids], described, {}, implied_parents)
    new = new.filter(~pl.col("code").is_in(list(ids)) & pl.col("code").is_in(used))
    above = dict(table.select("code", "ancestors").iter_rows())
    lineage = [[x for a in found for x in (a, *(above.get(a) or []))] for found in new["ancestors"].to_list()]
    spelt = {_one_slash(code): i for code, i in ids.items()} | ids  # LOINC/718-7 and LOINC//718-7 are one code
    alias = [next((spelt[x] for a in found for x in (a, _one_slash(a)) if x in spelt), None) for found in lineage]
    new_id = pl.Series("code_id", range(table.height, table.height + new.height), pl.Int32)
    new = new.with_columns(code_id=new_id)
    rows = new.select("code_id", "code").with_columns(
        pl.lit(0, pl.Int64).alias("count"),
        pl.lit(0, pl.Int64).alias("subjects"),
        pl.lit(0, pl.Int64).alias("n_values"),
        pl.Series("alias", alias, pl.Int32),
    )
    whole = (
        pl.concat([known, rows], how="diagonal").select(*statistics.CODE_STATISTICS).cast(statistics.CODE_STATISTICS)
    )
    return Coded(pl.concat([table, new.select(table.columns).cast(table.schema)]), whole, table.height)


def _one_slash(code):
    return re.sub("/+", "/", code)


def _fit(bundle, coded, subjects, folders, pool):
    """Writes the bundle's fit, with statistics of the new people."""
    tables, records, fit = folders
    write_frame(subjects.with_columns(split=pl.lit(SPLIT)), fit / "subjects.parquet")
    write_frame(coded.statistics, fit / "code_statistics.parquet")
    names = {"signal_statistics.json": "signal_statistics.json", "text_statistics.parquet": "text_statistics.parquet"}
    names |= {bundle_files.FIT: "meta.json", RANGES: RANGES, FAMILY_FACTS: FAMILY_FACTS}
    for name, target in names.items():
        if (bundle / name).exists():
            shutil.copyfile(bundle / name, fit / target)
    every_text = pl.read_parquet(records / "texts.parquet")["text_id"]
    people, counts = statistics.fit_subjects(tables, records, fit, coded.statistics, every_text, pool)
    write_frame(people, fit / "subject_statistics.parquet")
    written = [p for p in sorted(fit.iterdir()) if p.name != manifest.NAME]
    manifest.write(fit, manifest.fingerprints(fit, written), {"events": counts["events"]})


def _coverage(tables, coded) -> pl.DataFrame:
    """coverage.CODES of the events."""
    names = dict(coded.codes.select("code_id", "code").iter_rows())
    of_code = coded.statistics.select(
        "code",
        pl.when(pl.col("code_id") < coded.n_known)
        .then(pl.lit(KNOWN))
        .when(pl.col("alias").is_not_null())
        .then(pl.lit(ANCESTOR))
        .otherwise(pl.lit(UNKNOWN))
        .alias("known_as"),
        pl.col("alias").replace_strict(names, default=None, return_dtype=pl.String).alias("stands_for"),
    )
    parts = [
        pl.read_parquet(path, columns=["subject_id", "code"])
        .group_by("code")
        .agg(pl.len().alias("n_events"), pl.col("subject_id").n_unique().alias("n_people"))
        for path in sorted((tables / "events").glob("*.parquet"))
    ]
    counted = pl.concat(parts).group_by("code").agg(pl.col("n_events", "n_people").sum())
    table = counted.join(of_code, on="code", how="left").select(*coverage.CODES)
    return table.cast(coverage.CODES).sort("n_events", "code", descending=[True, False])
