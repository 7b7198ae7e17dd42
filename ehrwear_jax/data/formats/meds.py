"""Reads and writes MEDS datasets: events, code metadata, splits and labels, checked on the way in and out.

Writes MEDS 0.4; reads MEDS 0.3.3 and 0.4, with shards at any depth below `data/`. The schemas are
those of the Medical Event Data Standard (https://github.com/Medical-Event-Data-Standard/meds). The
checks of events are in meds_checks.py, label tables in label_tables.py. Four optional files are ours:
`metadata/subject_groups.parquet` (the unit of splitting and of the bootstrap),
`metadata/subject_folds.parquet` (out-of-fold evaluation), `metadata/subject_followup.parquet` (who was
observed when, see data/labels/followup.py) and `metadata/subject_survey.parquet` (weights, strata and
sampling units of a survey, see evals/survey.py).
"""

import dataclasses
import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl
import pyarrow as pa

from ehrwear_jax.data.formats import label_tables, meds_checks, parquet
from ehrwear_jax.data.formats.meds_checks import EVENT_SCHEMA, validate_events

BIRTH_CODE = meds_checks.BIRTH_CODE
DEATH_CODE = "MEDS_DEATH"
SPLITS = ("train", "tuning", "held_out")
# What other datasets call them, in lower case.
SPLIT_NAMES = {name: name for name in SPLITS}
SPLIT_NAMES |= dict.fromkeys(("training",), "train")
SPLIT_NAMES |= dict.fromkeys(("val", "valid", "validation", "dev", "development", "tune"), "tuning")
SPLIT_NAMES |= dict.fromkeys(("test", "testing", "heldout", "held-out", "held out"), "held_out")
MEDS_VERSION = "0.4.0"
# Rows may follow the day of extraction by a year (booked appointments); more than a few beyond that are shifted dates.
SLACK = timedelta(days=366)
MOST_LATER = 0.01
# Labels are part of a MEDS dataset.
BINARY_LABEL_SCHEMA, SURVIVAL_LABEL_SCHEMA = label_tables.BINARY_LABEL_SCHEMA, label_tables.SURVIVAL_LABEL_SCHEMA
read_labels, write_labels = label_tables.read_labels, label_tables.write_labels

# Arrow types that MEDS 0.4 prescribes; polars alone would write large_string everywhere.
_ARROW_TYPES = {
    "subject_id": pa.int64(),
    "time": pa.timestamp("us"),
    "code": pa.string(),
    "numeric_value": pa.float32(),
    "text_value": pa.large_string(),
    "description": pa.string(),
    "parent_codes": pa.list_(pa.string()),
    "split": pa.string(),
    "group_id": pa.int64(),
    "fold": pa.int32(),
}
_NOT_NULL = {"subject_id", "code", "split", "group_id", "fold"}


def _write(path: Path, df: pl.DataFrame) -> None:
    parquet.write_parquet(path, df, _ARROW_TYPES, not_null=_NOT_NULL)


# --------------------------------------------------------------------------------------- events
def list_shards(meds_dir: Path) -> list[Path]:
    """Event shards of a MEDS dataset, at any depth below `data/`, in path order.

    Raises:
      FileNotFoundError: there is no `data/` or no parquet file below it.
    """
    data_dir = Path(meds_dir) / "data"
    if not data_dir.is_dir():
        raise FileNotFoundError(f"{data_dir}: no such folder; a MEDS dataset has its shards there")
    shards = parquet.parquet_files(data_dir)
    if not shards:
        raise FileNotFoundError(f"{data_dir}: holds no parquet file")
    return shards


def read_shard(path: Path) -> pl.DataFrame:
    """One shard of events, validated, with exactly the columns and dtypes of EVENT_SCHEMA.

    Static events have a null time and come first within their subject. Columns outside MEDS are
    left out. Raises as validate_events, and FileNotFoundError.
    """
    return validate_events(parquet.read_parquet(Path(path)), path)


def write_shard(path: Path, events: pl.DataFrame) -> None:
    """Validates and writes one shard (text_value only if some value is present)."""
    events = validate_events(events, path)
    if events["text_value"].null_count() == len(events):
        events = events.drop("text_value")
    _write(path, events)


# ------------------------------------------------------------------------------------- metadata
def extraction_date(meds_dir: Path, given: str = "") -> tuple[str, str]:
    """The day on which the data were taken from their source, and how it is known.

    `created_at` of metadata/dataset.json (MEDS 0.3.3 and 0.4) if `given` is empty. De-identified dates may be shifted
    into the future: if more than MOST_LATER of the timed rows follow created_at by more than SLACK, it says nothing
    about them and is not used.

    Args:
      given: an ISO date, taken as it is; "none": none is used; "".

    Returns:
      (ISO date, "" if none, and a few words for the log).

    Raises:
      ValueError: dataset.json is not JSON.
    """
    if given:
        return ("", "not used, as config.prepare.extraction_date says") if given == "none" else (given, "given")
    path = Path(meds_dir) / "metadata" / "dataset.json"
    try:
        written = json.loads(path.read_text()).get("created_at") if path.is_file() else None
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise ValueError(f"{path}: not a JSON object ({str(error).splitlines()[0]})") from error
    if not written:
        return "", "no created_at in metadata/dataset.json"
    try:
        created = datetime.fromisoformat(str(written)).replace(tzinfo=None)
    except ValueError:
        return "", f"created_at {written!r} of metadata/dataset.json is no ISO date"
    timed = later = 0
    for shard in list_shards(meds_dir):
        time = parquet.read_parquet(shard, ["time"])["time"]
        if isinstance(time.dtype, pl.Datetime):  # another type is reported where the shard is read
            time = time.dt.replace_time_zone(None).drop_nulls()
            timed, later = timed + len(time), later + int((time >= created + SLACK).sum())
    if later > MOST_LATER * timed:
        return "", f"{later:,} of {timed:,} rows are later than created_at {created:%Y-%m-%d}: their dates are shifted"
    return f"{created:%Y-%m-%d}", "created_at of metadata/dataset.json"


def _validate_subject_table(df: pl.DataFrame, column: str, dtype: parquet.DType, source: str | Path) -> pl.DataFrame:
    df = parquet.normalise(df, {"subject_id": pl.Int64, column: dtype}, source)
    parquet.require_not_null(df, df.columns, source)
    repeated = df["subject_id"].is_duplicated()
    if repeated.any():
        row = parquet.first_true(repeated)
        raise ValueError(f"{source}: row {row}: subject {df['subject_id'][row]} appears more than once")
    if column == "split":
        unknown = ~df["split"].is_in(SPLITS)
        if unknown.any():
            row = parquet.first_true(unknown)
            raise ValueError(
                f"{source}: row {row}: split '{df['split'][row]}' is none of {', '.join(SPLITS)}; "
                "say what it is in config.data.split_names"
            )
    return df


def splits_path(meds_dir: Path) -> Path:
    """Where the splits of a dataset are, if it has any."""
    return Path(meds_dir) / "metadata" / "subject_splits.parquet"


def folds_path(meds_dir: Path) -> Path:
    """Where the folds of a dataset are, if it has any."""
    return Path(meds_dir) / "metadata" / "subject_folds.parquet"


def survey_path(meds_dir: Path) -> Path:
    """Where the design of a dataset that is a survey is, if it is one."""
    return Path(meds_dir) / "metadata" / "subject_survey.parquet"


def read_splits(meds_dir: Path, names: Mapping[str, str] | None = None) -> pl.DataFrame:
    """subject_id i64, split str in SPLITS; one row per subject that is in one.

    Args:
      names: name in the file -> name in SPLITS, or "" for people to leave out; those of SPLIT_NAMES, in lower or upper
        case, are known.

    Raises:
      FileNotFoundError: there are none, see `splits_path`.
      ValueError: naming the row.
    """
    path, known = splits_path(meds_dir), SPLIT_NAMES | dict(names or {})
    table = parquet.normalise(parquet.read_parquet(path), {"subject_id": pl.Int64, "split": pl.String}, path)
    given = pl.col("split")
    known |= {name: known.get(name, known.get(name.lower(), name)) for name in table["split"].drop_nulls().unique()}
    table = table.with_columns(given.replace_strict(list(known), list(known.values()), default=given))
    return _validate_subject_table(table.filter((given != "").fill_null(True)), "split", pl.String, path)


def read_groups(meds_dir: Path) -> pl.DataFrame | None:
    """subject_id i64, group_id i64, or None where the dataset has no groups."""
    path = Path(meds_dir) / "metadata" / "subject_groups.parquet"
    if not path.exists():
        return None
    return _validate_subject_table(parquet.read_parquet(path), "group_id", pl.Int64, path)


def read_folds(meds_dir: Path) -> pl.DataFrame | None:
    """subject_id i64, fold i32 (-1: only ever for pretraining), or None without folds."""
    path = folds_path(meds_dir)
    if not path.exists():
        return None
    return _validate_subject_table(parquet.read_parquet(path), "fold", pl.Int32, path)


def _validate_codes(codes: pl.DataFrame, source: str | Path) -> pl.DataFrame:
    schema: parquet.Schema = {"code": pl.String, "description": pl.String, "parent_codes": pl.List(pl.String)}
    codes = parquet.normalise(codes, schema, source, optional=("description", "parent_codes"))
    parquet.require_not_null(codes, ["code"], source)
    return codes


def read_codes(meds_dir: Path) -> pl.DataFrame:
    """code str (unique), description str nullable, parent_codes list[str] nullable, by code.

    MEDS 0.4 allows a code on several rows: the first description is kept and parents are united. A null among the
    parents, as in the MIMIC-IV demo, is none.
    Real datasets lack rows for some of their codes; that is no error here.
    """
    path = Path(meds_dir) / "metadata" / "codes.parquet"
    codes = _validate_codes(parquet.read_parquet(path), path)
    codes = codes.with_columns(pl.col("parent_codes").list.drop_nulls())
    if not codes["code"].is_duplicated().any():
        return codes.sort("code")
    parents = (
        codes.select("code", "parent_codes")
        .explode("parent_codes")
        .drop_nulls()
        .group_by("code")
        .agg(pl.col("parent_codes").unique(maintain_order=True))
    )
    descriptions = codes.group_by("code").agg(pl.col("description").drop_nulls().first())
    return descriptions.join(parents, on="code", how="left").sort("code")


def undescribed_codes(meds_dir: Path, codes: pl.DataFrame | None) -> tuple[int, list[str]]:
    """(number of codes in the events, those among them that `codes` lacks, sorted).

    MEDS asks that metadata/codes.parquet hold every code; real datasets lack many, which is no error here.
    """
    of_shard = [parquet.read_parquet(path, ["code"])["code"].cast(pl.String).unique() for path in list_shards(meds_dir)]
    used = set(pl.concat(of_shard).drop_nulls().to_list()) - {""}
    return len(used), sorted(used if codes is None else used.difference(codes["code"]))


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What `metadata/` of a dataset holds.

    Attributes:
      name, version: dataset_name and dataset_version of dataset.json.
      codes: code, description, parent_codes.
      splits: subject_id, split.
      groups: subject_id, group_id; a group lies within one split.
      folds: subject_id, fold.
      sites: subject_id and columns of text that join those of splits, by which people can be held out.
    """

    name: str
    version: str
    codes: pl.DataFrame
    splits: pl.DataFrame
    groups: pl.DataFrame | None = None
    folds: pl.DataFrame | None = None
    sites: pl.DataFrame | None = None


def write_metadata(meds_dir: Path, metadata: Metadata) -> None:
    """Writes `metadata/`: codes, subject_splits (with sites), dataset.json and, where given, groups and folds.

    Raises:
      ValueError: a malformed table, or a code with two rows.
    """
    folder = Path(meds_dir) / "metadata"
    codes = _validate_codes(metadata.codes, "codes").sort("code")
    if codes["code"].is_duplicated().any():
        code = codes["code"].filter(codes["code"].is_duplicated())[0]
        raise ValueError(f"codes: code '{code}' has more than one row")
    splits = _validate_subject_table(metadata.splits, "split", pl.String, "splits").sort("subject_id")
    _write(folder / "codes.parquet", codes)
    sites = splits.select("subject_id") if metadata.sites is None else metadata.sites
    placed = splits.join(sites, on="subject_id", how="left", validate="1:1", maintain_order="left")
    types = _ARROW_TYPES | dict.fromkeys(sites.columns[1:], pa.string())
    parquet.write_parquet(folder / "subject_splits.parquet", placed, types, not_null=_NOT_NULL)
    for table, column, dtype in ((metadata.groups, "group_id", pl.Int64), (metadata.folds, "fold", pl.Int32)):
        if table is None:
            continue
        kind = "groups" if column == "group_id" else "folds"
        table = _validate_subject_table(table, column, dtype, kind).sort("subject_id")
        missing = set(splits["subject_id"].to_list()) - set(table["subject_id"].to_list())
        if missing:
            raise ValueError(f"{kind}: subject {min(missing)} has a split but no {column}")
        if column == "group_id":
            _require_groups_within_splits(table, splits)
        _write(folder / f"subject_{kind}.parquet", table)
    description = {
        "dataset_name": metadata.name,
        "dataset_version": metadata.version,
        "meds_version": MEDS_VERSION,
    }
    (folder / "dataset.json").write_text(json.dumps(description, indent=2) + "\n")


def _require_groups_within_splits(groups: pl.DataFrame, splits: pl.DataFrame) -> None:
    per_group = (
        groups.join(splits, on="subject_id")
        .group_by("group_id")
        .agg(pl.col("split").n_unique())
        .filter(pl.col("split") > 1)
    )
    if len(per_group):
        raise ValueError(f"groups: group {per_group['group_id'].sort()[0]} is in more than one split")


def write_dataset(root: Path, events: pl.DataFrame, metadata: Metadata, subjects_per_shard: int = 2000) -> None:
    """Writes a whole MEDS 0.4 dataset to ROOT/meds.

    Args:
      root: dataset root; the MEDS dataset is written to `root/meds`.
      events: subject_id, time (null: static), code, numeric_value[, text_value]; any order. Events
        of one subject at the same time keep their order.
      metadata: its codes hold every code of `events`, its splits every subject.
      subjects_per_shard: most subjects in one file.

    Raises:
      ValueError: as validate_events, or an event whose code or subject is not declared, or shards
        of an earlier dataset in the way.
    """
    meds_dir = Path(root) / "meds"
    if subjects_per_shard < 1:
        raise ValueError(f"subjects_per_shard is {subjects_per_shard}, must be at least 1")
    if (meds_dir / "data").is_dir() and parquet.parquet_files(meds_dir / "data"):
        raise ValueError(f"{meds_dir / 'data'}: already holds shards; write to an empty folder")
    events = parquet.normalise(events, EVENT_SCHEMA, "events", optional=("numeric_value", "text_value"))
    events = events.sort("subject_id", "time", nulls_last=False, maintain_order=True)
    for column, table in (("code", metadata.codes), ("subject_id", metadata.splits)):
        undeclared = events.filter(~pl.col(column).is_in(table[column].unique().implode()))
        if len(undeclared):
            where = "codes" if column == "code" else "splits"
            raise ValueError(
                f"events: {column} '{undeclared[column][0]}' is not in the table of {where} "
                f"({undeclared[column].n_unique()} such values)"
            )
    validate_events(events, "events")
    write_metadata(meds_dir, metadata)
    split_of = metadata.splits.select("subject_id", "split")
    events = events.join(split_of, on="subject_id", how="left", maintain_order="left")
    for split in SPLITS:
        part = events.filter(pl.col("split") == split).drop("split")
        ids = part["subject_id"].unique().sort()
        for shard, start in enumerate(range(0, len(ids), subjects_per_shard)):
            last = min(start + subjects_per_shard, len(ids)) - 1
            inside = pl.col("subject_id").is_between(ids[start], ids[last])
            write_shard(meds_dir / "data" / split / f"{shard}.parquet", part.filter(inside))
