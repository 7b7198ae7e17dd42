"""Texts as results: which count, who has them, and what becomes of rare ones."""

from datetime import datetime

import polars as pl
import pytest

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.data.formats import meds
from ehrwear_jax.data.prepare import harmonise, texts, workers

NOTHING = harmonise.read_mapping(())


def frame(rows):
    """Rows of subject, code, value, text."""
    at = datetime(2020, 1, 1, 12)
    return pl.DataFrame([(s, at, code, value, text) for s, code, value, text in rows], meds.EVENT_SCHEMA, orient="row")


def found(tmp_path, *shards, mapping=NOTHING, **options):
    paths = []
    for k, rows in enumerate(shards):
        paths.append(tmp_path / f"{k}.parquet")
        frame(rows).write_parquet(paths[-1])
    out, config = tmp_path / "out", PrepareConfig(**{"min_text_subjects": 2} | options)
    table = texts.frequent_texts(paths, [p.stem for p in paths], out, config, mapping, workers.Pool())
    assert table.equals(pl.read_parquet(out / "texts.parquet")) and not (out / "text_counts").exists()
    return {(code, text): n for code, text, n in table.rows()}


def test_people_are_counted_not_rows_and_over_all_shards(tmp_path):
    one = [(1, "rhythm", None, "Sinus"), (1, "rhythm", None, "sinus"), (2, "rhythm", None, " sinus "),
           (2, "rhythm", None, "paced"), (2, "other", None, "sinus")]  # fmt: skip
    two = [(3, "rhythm", None, "SINUS\n"), (4, "rhythm", None, "paced"), (4, "rhythm", None, "Mr Smith")]
    assert found(tmp_path, one, two) == {("rhythm", "paced"): 2, ("rhythm", "sinus"): 3}


@pytest.mark.parametrize("rows_per_piece", [1, 2, 100])
def test_a_person_whose_rows_lie_in_two_batches_counts_once(tmp_path, rows_per_piece):
    rows = [(1, "rhythm", None, "sinus")] * 3 + [(2, "rhythm", None, "sinus")]
    assert found(tmp_path, rows, rows_per_piece=rows_per_piece) == {("rhythm", "sinus"): 2}


def test_numbers_empty_texts_births_and_dropped_codes_are_no_categories(tmp_path):
    each = [("lab", 1.0, "high"), ("lab", None, "  "), ("lab", None, None), ("MEDS_BIRTH", None, "home"),
            ("FOLLOWUP_END", None, "moved"), ("lab", float("nan"), "low")]  # fmt: skip
    assert found(tmp_path, [(s, *row) for s in (1, 2, 3) for row in each]) == {("lab", "low"): 3}


def test_codes_are_those_that_a_table_maps_to(tmp_path):
    path = tmp_path / "mapping.csv"
    path.write_text("code,target\nlocal,common\n")
    rows = [(1, "local", None, "yes"), (2, "common", None, "yes")]
    assert found(tmp_path, rows, mapping=harmonise.read_mapping([path])) == {("common", "yes"): 2}


def test_shards_without_texts_write_nothing(tmp_path):
    path = tmp_path / "0.parquet"
    frame([(1, "a", 1.0, None)]).drop("text_value").write_parquet(path)
    table = texts.frequent_texts([path], ["0"], tmp_path / "out", PrepareConfig(), NOTHING, workers.Pool())
    assert table.is_empty() and table.schema == pl.Schema(texts.TEXTS)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["texts.parquet", "texts_by_code.parquet"]


def test_only_categories_stay_beside_their_events():
    frequent = pl.DataFrame([("lab", "low", 5)], texts.TEXTS, orient="row")
    rows = [(1, "lab", None, " LOW"), (1, "lab", None, "odd"), (1, "lab", 2.0, "low"), (1, "dx", None, "low"),
            (1, "lab", None, None)]  # fmt: skip
    events, n, n_kept = texts.keep_frequent(frame(rows), frequent)
    assert events["text_value"].to_list() == ["low", None, None, None, None] and (n, n_kept) == (3, 1)
    assert events.drop("text_value").equals(frame(rows).drop("text_value"))
