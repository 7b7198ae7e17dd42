import pytest
from report_samples import record, results

from ehrwear_jax.report import paper, table_model
from ehrwear_jax.report import result_records as rec
from ehrwear_jax.report.html_page import to_html_page
from ehrwear_jax.report.page import Page, Section
from ehrwear_jax.report.report_data import ReportData


def html_of(table):
    return to_html_page(Page("title", "", (Section("one", "One", (table,)),)))


def test_performance_table_is_exact():
    records = [
        record("oracle", value=0.9, lo=0.88, hi=0.92),
        record("gradient_boosting", value=0.8, lo=0.78, hi=0.82),
        record("joint"),
        record("joint", metric="auprc", value=0.4, lo=None, hi=None),
    ]
    table = table_model.performance_table(records, ("auroc", "auprc"), "Results.")
    assert table_model.to_markdown(table) == (
        "Results.\n\n"
        "| Model | AUROC [95% interval][^auroc] | AUPRC[^auprc] |\n"
        "| :--- | ---: | ---: |\n"
        "| **Hospitalization, 90 days** (n = 1,000, 120 positive (12.0%)) |  |  |\n"
        "| Joint model (EHR + wearable) | **0.812 [0.790, 0.833]** | **0.400** |\n"
        "| Gradient boosting (tabular) | 0.800 [0.780, 0.820] | – |\n"
        "| _Oracle (true risk)_ | 0.900 [0.880, 0.920] | – |\n"
    )
    html = html_of(table)
    assert '<tr class="apart"><th scope="row" class="text">Oracle (true risk)</th>' in html
    assert "<td><strong>0.812 [0.790,\N{NO-BREAK SPACE}0.833]</strong></td>" in html
    assert "<strong>0.900" not in html
    assert html.count('<sup><a href="#def-auroc">1</a></sup>') == 1


def test_the_spread_over_seeds_stands_behind_the_mean():
    records = [record("joint"), record("joint", metric="auroc_seed_sd", value=0.0042, lo=None, hi=None),
               record("gradient_boosting", value=0.8)]  # fmt: skip
    table = table_model.performance_table(records, ("auroc",), "Results.")
    cells = [row.cells for row in table.rows[1:]]
    assert cells[0] == ("Joint model (EHR + wearable)", "0.812 [0.790, 0.833] ± 0.004")
    assert "±" not in cells[1][1] and table.notes == (rec.SEEDS_NOTE,)
    section = paper.paper_tables(records, ReportData())
    (first,) = [t for t in section.blocks if getattr(t, "name", "") == "table1_hospitalization_auroc"]
    assert first.rows[0].cells[1] == "0.812 [0.790, 0.833] ± 0.004" and rec.SEEDS_NOTE in first.notes
    assert not table_model.performance_table(records[::2], ("auroc",), "").notes


def test_models_on_other_people_are_said_to_be():
    records = [record("joint"), record("ehr_only", n=990)]
    table = table_model.performance_table(records, ("auroc",), "Results.")
    assert len(table.notes) == 1
    assert "EHR only was evaluated on other people (n = 990" in table.notes[0]


def test_difference_table_is_exact():
    records = [
        record("joint - ehr_only", metric="auroc_difference", value=0.03, lo=0.01, hi=0.05),
        record("joint - ehr_only", metric="auroc_difference_p", value=0.0002, lo=None, hi=None),
        record("joint - oracle", metric="auroc_difference", value=-0.05, lo=-0.06, hi=-0.04),
        record("joint - late_fusion", metric="auroc_difference", value=0.0, lo=-0.01, hi=0.01),
        record("joint - linear_table", metric="auroc_difference", value=0.0, lo=None, hi=None),
        record("joint"),
    ]
    rows = table_model.difference_table(records).rows[1:]
    assert [row.cells for row in rows] == [
        ("Joint − EHR only", "AUROC", "+0.030 [+0.010, +0.050]", "above zero", "< 0.001"),
        ("Joint − Oracle", "AUROC", "−0.050 [−0.060, −0.040]", "below zero", "–"),
        ("Joint − Late fusion", "AUROC", "0.000 [−0.010, +0.010]", "includes zero", "–"),
        ("Joint − Linear, tabular", "AUROC", "0.000", "not given", "–"),
    ]


def test_q_stands_beside_p_with_its_family_named_and_the_oracle_has_none():
    families = [{"kind": "primary", "metric": "auroc", "of": "models x tasks of simulated", "tests": 12},
                {"kind": "primary", "metric": "auc_t", "of": "models x tasks of simulated", "tests": 1},
                {"kind": "subgroups", "metric": "auroc_gap", "of": "all", "tests": 3}]  # fmt: skip
    records = [
        record("joint - ehr_only", metric="brier_difference", value=-0.03, lo=-0.05, hi=-0.01),
        record("joint - ehr_only", metric="brier_difference_p", value=0.01, lo=None, hi=None),
        record("joint - ehr_only", metric="brier_difference_q", value=0.06, lo=None, hi=None),
        record("joint - oracle", metric="brier_difference", value=0.05, lo=0.04, hi=0.06),
        record("joint - oracle", metric="brier_difference_p", value=0.001, lo=None, hi=None),
    ]
    table = table_model.difference_table(records, families)
    assert [row.cells[-2:] for row in table.rows[1:]] == [("0.010", "0.060"), ("0.001", "–")]
    assert table.notes == (
        'q: Benjamini and Hochberg over the family "primary: AUROC, models x tasks of simulated", 12 tests.',
        'q: Benjamini and Hochberg over the family "primary: AUC at every horizon, models x tasks of simulated", '
        "1 test.",
        "Comparisons with the oracle are in no family: it is a bound, so they have no q.",
        "Of errors (Brier score, ECE, RMSE), a difference below zero favours the first model.",
    )
    assert rec.family_notes(families, "primary", ["auc_90"])[0].endswith("1 test.")
    assert rec.family_notes(families, "subgroups") == (
        'q: Benjamini and Hochberg over the family "subgroups: AUROC, gaps to the largest group, all", 3 tests.',
    )


def test_record_table_has_every_record():
    table = table_model.record_table(results(), "All.")
    assert len(table.rows) == len(results())
    assert table.rows[-1].cells == (
        "mortality", "linear_table", "c_index", "0.740 [0.720, 0.760]", "2,000", "211", "0",
    )  # fmt: skip


def test_cohort_table_shows_counts_and_names_a_missing_field():
    steps = [{"step": "all", "n": 17549, "dropped": 0, "reason": ""},
             {"step": "labs", "n": 17000, "dropped": 549, "reason": "no lab day"}]  # fmt: skip
    rows = table_model.cohort_table(steps).rows
    assert [r.cells for r in rows] == [
        ("all", "17,549", "–", ""),
        ("labs", "17,000", "549", "no lab day"),
    ]
    with pytest.raises(ValueError, match=r"cohort step 0 \(all\) lacks dropped, reason"):
        table_model.cohort_table([{"step": "all", "n": 1}])


def test_markup_in_text_is_escaped():
    table = table_model.facts_table({"a|b": "<script>*x*</script>\nnext"})
    assert "<script>*" not in html_of(table) and "&lt;script&gt;" in html_of(table)
    line = table_model.to_markdown(table).splitlines()[-1]
    assert line == r"| a\|b | \<script>\*x\*\</script> next |"
