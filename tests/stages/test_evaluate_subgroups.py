"""Tables of the people: what they count, and that counts of few follow from none of them."""

import re
from collections import Counter
from datetime import datetime, timedelta

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrwear_jax.evals.estimates import Resampling
from ehrwear_jax.evals.protocol import TaskSpec
from ehrwear_jax.evals.subgroups import Suppression
from ehrwear_jax.report import paper
from ehrwear_jax.report.report_data import ReportData
from ehrwear_jax.report.run_tables import people_tables
from ehrwear_jax.report.table_model import to_markdown
from ehrwear_jax.stages import evaluate_score, evaluate_subgroups

LIMIT = 10


def people(sex, split="held_out", age=None):
    """Two prediction times of each person; sex: a level of each, None for unknown."""
    n = len(sex)
    first = pl.DataFrame({
        "subject_id": range(n), "prediction_time": [datetime(2020, 1, 1)] * n,
        "age_years": age if age is not None else [50.0] * n, "ehr_years": [1.0] * n, "wear_days": [3] * n,
        "encounters": [1] * n, "sex": pl.Series(sex, dtype=pl.String), "device": pl.Series([None] * n, dtype=pl.String),
        "split": [split] * n,
    })  # fmt: skip
    return pl.concat([first, first.with_columns(pl.col("prediction_time") + timedelta(days=30))])


def shown(table):
    """{level: count} of the sexes that are shown, and the number of people."""
    values = {r["measure"]: r["value"] for r in table}
    counts = {m.removeprefix("sex: "): int(v.split()[0].replace(",", "")) for m, v in values.items()
              if m.startswith("sex: ") and "not shown" not in m}  # fmt: skip
    return counts, values["people"]


@given(st.lists(st.sampled_from([None, "f", "m", "x", "y"]), min_size=1, max_size=90))
@settings(max_examples=60, deadline=None)
def test_no_level_of_few_people_follows_from_the_others(sex):
    table = evaluate_subgroups.demographics(people(sex), LIMIT)
    counts, total = shown(table)
    true = Counter("unknown" if s is None else s for s in sex)
    if len(sex) < LIMIT:
        assert table == [{"split": "held_out", "measure": "people", "value": f"< {LIMIT}"}]
        return
    assert total == str(len(sex)) and all(true[level] == n >= LIMIT for level, n in counts.items())
    hidden = {level: n for level, n in true.items() if level not in counts} if set(true) != {"unknown"} else {}
    if hidden:  # what is left of the whole is of two levels or more and of no few people: each could be none of them
        left = len(sex) - sum(counts.values())
        assert left == sum(hidden.values()) >= LIMIT and len(hidden) >= 2
    assert not any(n < LIMIT for level, n in true.items() if level in counts)


def test_with_few_the_smallest_other_level_is_hidden_too():
    table = evaluate_subgroups.demographics(people(["f"] * 60 + ["m"] * 40 + [None] * 5), LIMIT)
    assert shown(table) == ({"f": 60}, "105")
    values = {r["measure"]: r["value"] for r in table}
    assert values["sex: levels not shown, some of fewer than 10 people"] == "2"
    assert "age, years: median (IQR)" in values
    ages = [41.0] * 4 + [None] * 101
    few_known = evaluate_subgroups.demographics(people(["f"] * 105, age=ages), LIMIT)
    assert not any("age" in r["measure"] for r in few_known)  # a median of four people


def labelled(positive_people, negative_people):
    """Two prediction times of each person, all positive or all negative."""
    n = positive_people + negative_people
    label = np.tile(np.arange(n) < positive_people, 2)
    return people([None] * n).with_columns(boolean_value=pl.Series(label))


def test_positives_of_few_people_are_not_counted_and_the_page_says_hidden():
    (entry,) = evaluate_subgroups.prevalence("death_90d", labelled(9, 50), "boolean_value", LIMIT)
    assert entry["positives"] is entry["people_positive"] is entry["share"] is None  # eighteen rows of nine people
    assert entry["hidden"] and (entry["people"], entry["times"]) == (59, 118)
    (enough,) = evaluate_subgroups.prevalence("death_30d", labelled(10, 50), "boolean_value", LIMIT)
    assert (enough["positives"], enough["people_positive"], enough["hidden"]) == (20, 10, False)
    (negatives,) = evaluate_subgroups.prevalence("t", labelled(50, 9), "boolean_value", LIMIT)
    assert negatives["positives"] is None  # all but nine: the others would be counted by subtraction
    (whole,) = evaluate_subgroups.prevalence("t", labelled(4, 5), "boolean_value", LIMIT)
    assert whole["people"] is whole["times"] is None
    data = ReportData(prevalence=[entry, enough])
    for table in (people_tables(data)[0], paper._prevalence(data)):
        text = to_markdown(table)
        assert re.search(r"Death, 90 days.*\| 59 \| 118 \| hidden \| hidden", text)
        assert re.search(r"Death, 30 days.*\| 60 \| 120 \| 20 \| 16.7%", text)


def scored(n_people, positive_people, missed_people):
    """Scores of a model whose threshold misses the events of some people; two prediction times of each person."""
    group = np.repeat(np.arange(n_people), 2)
    y = group < positive_people
    p = np.where(y, 0.8, 0.2 + 0.3 * (group % 7 == 0)) - 0.5 * (group < missed_people)
    spec = TaskSpec("d", "t", None, Resampling(30), Suppression(20, LIMIT))
    cohort = evaluate_score.Cohort(group)
    found = evaluate_score.score_binary(spec, {"joint": p}, y, cohort, operating_points={"joint": 0.5})
    found = evaluate_score.protected(found, y, cohort, LIMIT)
    return {r["metric"]: r for r in found["records"]}, found


def test_a_matrix_with_a_cell_of_few_people_is_hidden_with_its_rates():
    told, _ = scored(200, 60, missed_people=12)
    assert (told["fn"]["value"], told["tp"]["value"]) == (24, 96) and told["sensitivity"]["value"] == 0.8
    hidden, _ = scored(200, 60, missed_people=9)
    for metric in ("tp", "fp", "tn", "fn", "sensitivity", "specificity", "ppv", "npv", "accuracy"):
        assert hidden[metric]["value"] is hidden[metric]["lo"] is None, metric
    assert hidden["auroc"]["n_positive"] == 120 and hidden["threshold"]["value"] == 0.5


def test_a_task_with_few_events_tells_neither_their_number_nor_what_it_follows_from():
    records, found = scored(200, 9, missed_people=0)
    assert all(r["n_positive"] is None for r in found["records"]) and found["curves"] == []
    for metric in ("prevalence", "brier_null", "brier_skill", "mean_gap", "tp", "sensitivity"):
        assert records[metric]["value"] is None, metric
    assert records["auroc"]["value"] is not None and records["auroc"]["n"] == 400
    _, enough = scored(200, 60, missed_people=0)
    assert enough["curves"] and all(r["n_positive"] == 120 for r in enough["records"])
