"""The tables of codes and texts, to which ids point."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehrwear_jax.data.prepare import code_table


def test_ancestors_are_nearest_first_once_each_and_cycles_end():
    parents = {
        "leaf": ["left", "right"],
        "left": ["root", "root"],
        "right": ["root"],
        "root": None,
        "egg": ["hen"],
        "hen": ["egg"],
        "self": ["self"],
    }
    out = code_table.ancestors(parents)
    assert out == {
        "leaf": ["left", "right", "root"],
        "left": ["root"],
        "right": ["root"],
        "root": [],
        "egg": ["hen"],
        "hen": ["egg"],
        "self": [],
    }


@given(st.dictionaries(st.integers(0, 9).map(str), st.lists(st.integers(0, 9).map(str), max_size=3), min_size=1))
def test_ancestors_are_all_that_can_be_reached_in_order_of_distance(parents):
    for code, found in code_table.ancestors(parents).items():
        distance, level = {}, {code}
        for d in range(11):
            distance |= {c: d for c in level if c not in distance}
            level = {p for c in level for p in parents.get(c, [])}
        assert sorted(found) == sorted(c for c in distance if c != code)
        assert [distance[c] for c in found] == sorted(distance[c] for c in found)


def described(**parents):
    """MEDS codes.parquet."""
    table = {"code": list(parents), "description": [f"about {c}" for c in parents], "parent_codes": [*parents.values()]}
    return pl.DataFrame(table, {"code": pl.String, "description": pl.String, "parent_codes": pl.List(pl.String)})


def test_codes_are_those_of_events_and_their_ancestors_by_name():
    table = described(b=["a"], a=["root"], unused=["nowhere"], c=None)
    codes = code_table.make_codes(["c", "b", "undescribed"], table, {"c": "mmol/L", "unused": "kg"}, False)
    assert codes.schema == pl.Schema(code_table.CODES)
    assert codes.rows() == [
        (0, "a", "about a", ["root"], None),
        (1, "b", "about b", ["a", "root"], None),
        (2, "c", "about c", [], "mmol/L"),
        (3, "root", None, [], None),
        (4, "undescribed", None, [], None),
    ]
    assert code_table.make_codes([], None, {}, True).is_empty()


def test_implied_parents_are_codes_too():
    codes = code_table.make_codes(["ICD10CM/E11.9"], None, {}, True)
    lineage = dict(codes.select("code", "ancestors").iter_rows())
    assert lineage["ICD10CM/E11.9"] == ["ICD10CM/E11", "ICD10CM/CHAPTER IV", "ICD10CM"]
    assert set(lineage) == {"ICD10CM/E11.9", *lineage["ICD10CM/E11.9"]}


@pytest.fixture
def tables():
    codes = code_table.make_codes(["lab", "dx"], None, {}, False)
    frequent = {"code": ["lab", "gone", "dx", "lab"], "text": ["low", "x", "left", "high"], "n_subjects": [5, 9, 6, 7]}
    return codes, code_table.make_texts(pl.DataFrame(frequent), codes)


def test_texts_are_by_code_and_text(tables):
    codes, texts = tables
    assert texts.schema == pl.Schema(code_table.TEXTS)
    named = [(i, codes["code"][code], text, n) for i, code, text, n in texts.rows()]
    assert named == [(0, "dx", "left", 6), (1, "lab", "high", 7), (2, "lab", "low", 5)]


def test_events_keep_rows_order_and_other_columns(tables):
    rows = [("lab", "low", 1), ("dx", "low", 2), ("new", "low", 3), ("lab", None, 4), ("dx", "left", 5)]
    events = pl.DataFrame(rows, ["code", "text_value", "other"], orient="row")
    found = code_table.event_ids(events, *tables)
    assert found.select("other", "code_id", "text_id").rows() == [
        (1, 1, 2), (2, 0, None), (3, None, None), (4, 1, None), (5, 0, 0)
    ]  # fmt: skip
    assert code_table.event_ids(events.drop("text_value"), *tables).columns == ["other", "code_id"]
