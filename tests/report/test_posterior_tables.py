"""The section on the posterior of z: a table per model, or why there is none."""

from ehrwear_jax.report import page, posterior_tables
from ehrwear_jax.report.report_data import ReportData


def entry(measure, value, of="", level=None, model="elbo"):
    return {"model": model, "measure": measure, "of": of, "level": level, "value": value, "lo": value - 0.1,
            "hi": value + 0.1, "n": 1234}  # fmt: skip


def test_a_table_for_each_model_with_channels_and_levels():
    entries = [entry("mutual_information", 0.25), entry("mutual_information_of_errors", -0.2)]
    entries += [entry("signal_coverage", level - 0.01, "heart_rate", level) for level in (0.5, 0.95)]
    entries += [entry("code_total_variation_floor", 0.03, model="joint") | {"lo": None, "hi": None}]
    found = posterior_tables.posterior(ReportData(posterior=entries))
    text, *tables = found.blocks
    assert text.definitions == ("posterior",) and len(tables) == 2
    rows = {row.cells[0]: row.cells[1:] for t in tables for row in t.rows if hasattr(row, "cells")}
    assert rows["Mutual information of outcome and z, nats"] == ("0.250 [0.150, 0.350]", "1,234")
    assert rows["heart rate, 95%"][0] == "0.940 [0.840, 1.040]" and "heart rate, 50%" in rows
    assert rows["The same of events drawn from the model"][0] == "0.030"
    assert {e["measure"] for e in entries} <= posterior_tables.MEASURES.keys()


def test_without_a_posterior_a_sentence_says_so():
    (text,) = posterior_tables.posterior(ReportData()).blocks
    assert "No network of this run has a posterior of z" in text.text
    (text,) = posterior_tables.posterior(ReportData(not_interpreted="off")).blocks
    assert text == page.Text("Not computed.")
