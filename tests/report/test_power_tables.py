"""What the page says of the smallest differences that a task can show."""

from report_samples import record

from ehrwear_jax.report import power_tables
from ehrwear_jax.report.page import Bullets
from ehrwear_jax.report.report_data import ReportData
from ehrwear_jax.report.table_model import Table

HELD = {"task": "hospitalization_90d", "split": "held_out", "times": 1000, "people": 400, "positives": 120,
        "people_positive": 87, "share": 0.12, "median_days": None}  # fmt: skip


def section(records, prevalence=(HELD,)):
    found = power_tables.power(records, ReportData(prevalence=prevalence))
    return found, {type(b): b for b in found.blocks}


def mdd(model, value, metric="auroc_difference_mdd", **changes):
    return record(model, metric=metric, value=value, lo=None, hi=None, **changes)


def test_a_sentence_a_task_with_events_people_and_the_range_over_comparisons():
    records = [mdd("joint - ehr_only", 0.0213), mdd("joint - wear_only", 0.0349),
               mdd("joint - ehr_only", 0.25, "rmse_difference_mdd", task="sleep", n=50, n_positive=None)]  # fmt: skip
    _, by_type = section(records)
    (first, second) = by_type[Bullets].items
    assert first == (
        "Hospitalization, 90 days.",
        "120 of 1,000 prediction times with the event (87 of 400 people). With 80% power at a two-sided level of 5% a "
        "difference of AUROC is found from 0.021 on for Joint − EHR only, and from 0.035 on for Joint − Wearable only.",
    )
    assert second[1].startswith("50 prediction times. ") and "difference of RMSE is found from 0.250 on" in second[1]
    cells = [r.cells for r in by_type[Table].rows if hasattr(r, "cells")]
    assert cells[0] == ("Joint − EHR only", "AUROC", "120 of 1,000", "0.021")


def test_without_a_comparison_the_assumed_correlation_is_said():
    _, by_type = section([mdd("joint", 0.04, "auroc_mdd")])
    assert "correlate by 0.5, and prediction times to be independent" in by_type[Bullets].items[0][1]
    assert "differed by 0.040 or more" in by_type[Bullets].items[0][1]


def test_nothing_computed_is_said():
    found, by_type = section([mdd("joint - ehr_only", None)])
    assert Table not in by_type and "No smallest difference" in found.blocks[0].text
