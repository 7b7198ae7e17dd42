"""Makes the tables of codes and of texts to which the ids in records point."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import polars as pl

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.data.prepare import harmonise, workers

CODES = pl.Schema(
    {
        "code_id": pl.Int32(),
        "code": pl.String(),
        "description": pl.String(),
        "ancestors": pl.List(pl.String),
        "unit": pl.String(),
    }
)
TEXTS = pl.Schema({"text_id": pl.Int32, "code_id": pl.Int32, "text": pl.String, "n_subjects": pl.Int64})


def ancestors(parents: Mapping[str, Iterable[str] | None]) -> dict[str, list[str]]:
    """{code: [parent codes]} -> {code: [all ancestors, nearest first]}; cycles are cut."""
    out = {}
    for code in parents:
        seen, generation = [], list(parents[code] or [])
        while generation:
            seen += [p for p in dict.fromkeys(generation) if p not in seen and p != code]
            above = [g for p in generation for g in (parents.get(p) or [])]
            generation = [g for g in above if g not in seen and g != code]
        out[code] = seen
    return out


def make_codes(
    used: Iterable[str], described: pl.DataFrame | None, units: Mapping[str, str], implied_parents: bool
) -> pl.DataFrame:
    """CODES: every used code and every ancestor of one, sorted by name; code_id is the row number.

    Args:
      used: codes of the events. described: MEDS codes.parquet (code, description, parent_codes), or None.
      units: {code: unit}. implied_parents: see harmonise.complete_parents.
    """
    used, parents, descriptions = list(used), {}, {}
    if described is not None:
        parents = dict(zip(described["code"], described["parent_codes"].to_list(), strict=True))
        descriptions = dict(zip(described["code"], described["description"], strict=True))
    if implied_parents:
        parents = harmonise.complete_parents(parents, used)
    lineage = ancestors(parents)
    names = sorted({*used, *(above for code in used for above in lineage.get(code, ()))})
    rows = [(i, c, descriptions.get(c), lineage.get(c, []), units.get(c)) for i, c in enumerate(names)]
    return pl.DataFrame(rows, CODES, orient="row")


def make_texts(frequent: pl.DataFrame, codes: pl.DataFrame) -> pl.DataFrame:
    """TEXTS, by code_id and text; text_id is the row number.

    Args:
      frequent: texts.TEXTS; texts of codes that no event has (any more) are left out. codes: CODES.
    """
    known = frequent.join(codes.select("code", "code_id"), on="code").sort("code_id", "text")
    return known.with_row_index("text_id").select(*TEXTS).cast(TEXTS)


def used_codes(tables: Path, pool: workers.Pool) -> list[str]:
    """All codes of TABLES/events/, sorted."""
    parts = pool.map(_codes_of, sorted((tables / "events").glob("*.parquet")), "codes")
    return sorted(set().union(*parts))


def _codes_of(path):
    return set(pl.read_parquet(path, columns=["code"])["code"].unique().to_list())


def event_ids(events: pl.DataFrame, codes: pl.DataFrame, texts: pl.DataFrame) -> pl.DataFrame:
    """Events with code_id and text_id (null: none) in the place of code and text_value.

    Args:
      events: code and, perhaps, text_value; more columns pass through. codes, texts: CODES and TEXTS.
    """
    out = events.join(codes.select("code", "code_id"), on="code", how="left", maintain_order="left").drop("code")
    if "text_value" not in events.columns:
        return out
    if not out["text_value"].count():  # as in most datasets
        return out.drop("text_value").with_columns(pl.lit(None, pl.Int32).alias("text_id"))
    known = texts.select("code_id", pl.col("text").alias("text_value"), "text_id")
    return out.join(known, on=["code_id", "text_value"], how="left", maintain_order="left").drop("text_value")


def tables_of(folder: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """CODES and TEXTS as they were written to a folder of records."""
    return pl.read_parquet(folder / "codes.parquet"), pl.read_parquet(folder / "texts.parquet")


def make(
    tables: Path, described: pl.DataFrame | None, config: PrepareConfig, units: Mapping[str, str], pool: workers.Pool
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """CODES and TEXTS of what prepare_tables wrote to TABLES; see make_codes and make_texts."""
    codes = make_codes(used_codes(tables, pool), described, units, config.implied_parents)
    return codes, make_texts(pl.read_parquet(tables / "texts.parquet"), codes)
