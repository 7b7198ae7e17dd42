"""Tabulates what draws of z are worth: uncertainty against errors, calibration and generative consistency."""

from collections.abc import Sequence

from ehrwear_jax.report import result_records as rec
from ehrwear_jax.report.mechanism_figures import channel_label
from ehrwear_jax.report.page import Section, Text
from ehrwear_jax.report.report_data import Entry, ReportData
from ehrwear_jax.report.table_model import Column, Group, Row, Table

TITLE = "Posterior of z"
MEASURES = {
    "predictive_entropy": "Predictive entropy, nats",
    "expected_entropy": "Expected entropy, nats",
    "mutual_information": "Mutual information of outcome and z, nats",
    "predictive_entropy_of_errors": "Rank correlation of predictive entropy and squared error",
    "expected_entropy_of_errors": "Rank correlation of expected entropy and squared error",
    "mutual_information_of_errors": "Rank correlation of mutual information and squared error",
    "code_log_likelihood": "Log likelihood of a hidden event, nats",
    "code_coverage": "Hidden events in sets of codes",
    "code_total_variation": "Distance of code frequencies, decoded and observed",
    "code_total_variation_floor": "The same of events drawn from the model",
    "signal_mean_difference": "Decoded less observed mean, SD",
    "signal_variance_ratio": "Decoded over observed variance",
    "signal_coverage": "Hidden steps in predictive intervals",
}
NONE = "No network of this run has a posterior of z, so there are no draws of z to judge."


def posterior(data: ReportData) -> Section:
    """A table per model that has a posterior, else a sentence why there is none."""
    if not data.posterior:
        return Section("posterior", TITLE, (Text(data.not_interpreted and "Not computed." or NONE),))
    models = rec.sorted_models(e["model"] for e in data.posterior)
    text = "What draws of z from its posterior say, beside what was observed."
    tables = (_table(model, [e for e in data.posterior if e["model"] == model], i) for i, model in enumerate(models))
    return Section("posterior", TITLE, (Text(text, ("posterior",)), *tables))


def _table(model: str, entries: Sequence[Entry], number: int) -> Table:
    lines: list[Row | Group] = []
    for measure, title in MEASURES.items():
        mine = [e for e in entries if e["measure"] == measure]
        several = len(mine) > 1
        lines += [Group(title)] * several
        for e in mine:
            of = channel_label(e["of"]) if e["of"] else ""
            level = "" if e["level"] is None else f"{100 * e['level']:g}%"
            name = ", ".join(part for part in (of, level) if part) if several else title
            record = {"metric": measure, **{k: e[k] for k in ("value", "lo", "hi")}}
            lines.append(Row((name, rec.format_interval(record), rec.format_count(e["n"]))))
    columns = (Column("Measure", is_text=True), Column("Value [95% interval]"), Column("n"))
    return Table(f"Posterior of z, {rec.model_label(model)}.", columns, tuple(lines), (), f"posterior{number}")
