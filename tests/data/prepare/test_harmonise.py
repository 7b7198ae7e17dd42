"""Mapping tables, clinical ranges, spelled-out hierarchies and the frequency cap."""

from datetime import datetime, timedelta

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehrwear_jax.data.prepare import harmonise


@pytest.mark.parametrize(
    ("code", "want"),
    [
        ("ICD10CM/E11.65", ["ICD10CM/E11.6", "ICD10CM/E11", "ICD10CM/CHAPTER IV", "ICD10CM"]),
        ("DIAGNOSIS//ICD//10//I97131", ["ICD10CM/I97.131", "ICD10CM/I97.13", "ICD10CM/I97.1", "ICD10CM/I97",
                                         "ICD10CM/CHAPTER IX", "ICD10CM"]),
        ("ICD10//I48", ["ICD10CM/I48", "ICD10CM/CHAPTER IX", "ICD10CM"]),
        ("ICD10CM/I48", ["ICD10CM/CHAPTER IX", "ICD10CM"]),
        ("ATC//A10BA02", ["ATC//A10BA", "ATC//A10B", "ATC//A10", "ATC//A"]),
        ("ATC/C09", ["ATC/C"]),
        ("ATC//C", []),
        ("LOINC//2345-7", []),
        ("DIAGNOSIS//ICD//9//E8781", []),
        ("ICD10CM/CHAPTER IX", ["ICD10CM"]),
    ],
)  # fmt: skip
def test_codes_name_their_ancestors(code, want):
    assert harmonise.implied_parents(code) == want


@pytest.mark.parametrize(
    ("category", "chapter"),
    [("A00", "I"), ("B99", "I"), ("C00", "II"), ("D48", "II"), ("D50", "III"), ("E90", "IV"), ("H59", "VII"),
     ("H60", "VIII"), ("I10", "IX"), ("S02", "XIX"), ("T98", "XIX"), ("U07", "XXII"), ("V01", "XX"), ("Y98", "XX"),
     ("Z99", "XXI"), ("C7A", "II"), ("O9A", "XV")],
)  # fmt: skip
def test_chapters(category, chapter):
    assert harmonise.icd10_chapter(category) == chapter


def test_parents_are_completed_up_to_the_root_and_keep_what_a_table_says():
    given_parents = {"DIAGNOSIS//ICD//10//E1165": ["MINE//diabetes", None], "LOCAL//1": [None]}
    found = harmonise.complete_parents(given_parents, ["ATC//A10BA02"])
    assert found["DIAGNOSIS//ICD//10//E1165"] == ["MINE//diabetes", "ICD10CM/E11.65"]
    assert found["ICD10CM/E11"] == ["ICD10CM/CHAPTER IV"] and found["ICD10CM/CHAPTER IV"] == ["ICD10CM"]
    assert found["ATC//A10"] == ["ATC//A"]
    assert "LOCAL//1" not in found and "ICD10CM" not in found


def table(path, rows):
    pl.DataFrame(rows).write_csv(path)
    return path


def test_mapping_changes_codes_and_units_and_nothing_else(tmp_path):
    glucose = {"code": ["LAB//glu_mmol", "LAB//glu"], "target": ["LOINC//2345-7"] * 2, "factor": [18.0, None]}
    fever = {"code": ["TEMP//F"], "target": ["TEMP//C"], "factor": [5 / 9], "offset": [-160 / 9]}
    mapping = harmonise.read_mapping([table(tmp_path / "a.csv", glucose), table(tmp_path / "b.csv", fever)])
    events = pl.DataFrame(
        {
            "subject_id": [1, 1, 1, 2, 2],
            "code": ["LAB//glu_mmol", "OTHER", "TEMP//F", "LAB//glu", "TEMP//F"],
            "numeric_value": pl.Series([5.0, 7.0, 98.6, 90.0, None], dtype=pl.Float32),
        }
    )
    out, n = harmonise.map_codes(events, mapping)
    assert out["code"].to_list() == ["LOINC//2345-7", "OTHER", "TEMP//C", "LOINC//2345-7", "TEMP//C"]
    assert out["numeric_value"].to_list() == pytest.approx([90.0, 7.0, 37.0, 90.0, None], abs=1e-4)
    assert n == 4 and out.columns == events.columns and out.schema == events.schema
    assert harmonise.map_codes(events, harmonise.read_mapping([]))[0].equals(events)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"code": ["a"], "to": ["b"]}, "no column 'target'"),
        ({"code": ["a", "a"], "target": ["b", "c"]}, "row 2: code 'a' is mapped already, in .*row 1"),
        ({"code": ["a"], "target": [""]}, "row 1: code 'a' has no target"),
        ({"code": ["a", "b"], "target": ["b", "c"]}, "row 1: the target 'b' is mapped itself, in .*row 2"),
        ({"code": ["a"], "target": ["b"], "factor": ["x"]}, "row 1: factor 'x' is not a number"),
        ({"code": ["a"], "target": ["b"], "factor": [0.0]}, "row 1: factor 0.0"),
        ({"code": ["", "b"], "target": ["b", "c"]}, "row 1: code is empty"),
        ({"code": ["a"], "target": ["b"], "unit": ["mg/dL"]}, "row 1: 'a' is in 'mmol/L' .*not in 'mg/dL'"),
    ],
)
def test_bad_mappings_are_named(tmp_path, rows, message):
    path = table(tmp_path / "bad.csv", rows)
    with pytest.raises(ValueError, match=f"bad.csv.*{message}"):
        harmonise.read_mapping([path], {"a": "mmol/L"})
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        harmonise.read_mapping([tmp_path / "none.csv"])


def test_ranges_become_cuts(tmp_path):
    path = table(
        tmp_path / "r.csv",
        {"code": ["K", "K", "K", "HR"], "low": [None, 3.5, 5.0, 60.0], "high": [3.5, 5.0, None, 100.0]},
    )
    assert harmonise.read_ranges(path) == {"K": [3.5, 5.0], "HR": [60.0, 100.0]}  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"code": ["K"], "low": [5.0], "high": [3.5]}, "row 1: low 5.0 is not below high 3.5"),
        ({"code": ["K", "K"], "low": [1.0, 2.0], "high": [3.0, 4.0]}, "row 2: the range from 2.0 overlaps"),
        ({"code": ["K"], "low": [1.0]}, "no column 'high'"),
        ({"code": ["K"], "low": [1.0], "high": [2.0], "unit": ["g"]}, "row 1: 'K' is in 'mg' in the dataset"),
    ],
)
def test_bad_ranges_are_named(tmp_path, rows, message):
    with pytest.raises(ValueError, match=f"bad.csv.*{message}"):
        harmonise.read_ranges(table(tmp_path / "bad.csv", rows), {"K": "mg"})


@pytest.mark.parametrize(
    ("level", "classes"),
    [
        (0, ["ATC//A10BA02", "ATC/C09", "MEDICATION//ATC/C07AB02", "ATC//A10B"]),
        (1, ["ATC//A", "ATC/C", "MEDICATION//ATC/C", "ATC//A"]),
        (2, ["ATC//A10", "ATC/C09", "MEDICATION//ATC/C07", "ATC//A10"]),
        (3, ["ATC//A10B", "ATC/C09", "MEDICATION//ATC/C07A", "ATC//A10B"]),
        (4, ["ATC//A10BA", "ATC/C09", "MEDICATION//ATC/C07AB", "ATC//A10B"]),
    ],
)
def test_drugs_are_replaced_by_their_class(level, classes):
    others = ["XATC//A10BA02", "ATC//A10BA0", "ATC//A10BA021", "LOINC//2345-7"]
    drugs = ["ATC//A10BA02", "ATC/C09", "MEDICATION//ATC/C07AB02", "ATC//A10B"]
    events = pl.DataFrame({"code": drugs + others, "row": range(8)})
    found, n = harmonise.classify_drugs(events, level)
    assert found["code"].to_list() == classes + others and found["row"].equals(events["row"])
    assert n == sum(a != b for a, b in zip(classes, drugs, strict=True))
    for before, after in zip(drugs[:2], classes[:2], strict=True):  # the class is one that the code spells out
        assert after == before or after in harmonise.implied_parents(before)


events_strategy = st.lists(
    st.tuples(st.integers(1, 3), st.one_of(st.none(), st.integers(0, 100)), st.sampled_from("ab")), max_size=40
)


@given(events_strategy, st.integers(1, 3))
def test_the_cap_keeps_the_first_of_each_day_and_ignores_the_future(rows, per_day):
    rows = sorted(rows, key=lambda r: (r[0], -1 if r[1] is None else r[1]))
    start = datetime(2020, 1, 1)
    times = [None if hour is None else start + timedelta(hours=hour) for _, hour, _ in rows]
    events = pl.DataFrame(
        {"subject_id": [r[0] for r in rows], "time": times, "code": [r[2] for r in rows]},
        {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String},
    )
    kept, dropped = harmonise.cap_frequency(events, per_day)
    assert kept.height + dropped == events.height
    seen, want = {}, []
    for subject, time, code in events.iter_rows():
        key = (subject, time and time.date(), code)
        seen[key] = seen.get(key, 0) + 1
        if time is None or seen[key] <= per_day:
            want.append((subject, time, code))
    assert kept.rows() == want
    # a record cut at any time keeps what the whole record keeps up to there
    for hour in (20, 50):
        cut = start + timedelta(hours=hour)
        early = events.filter(pl.col("time").is_null() | (pl.col("time") <= cut))
        again = kept.filter(pl.col("time").is_null() | (pl.col("time") <= cut))
        assert harmonise.cap_frequency(early, per_day)[0].rows() == again.rows()
    assert harmonise.cap_frequency(events, 0)[0].equals(events)
