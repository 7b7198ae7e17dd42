"""Builds the report: report.html, report.md, results.json, and its tables as CSV and LaTeX."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ehrwear_jax.report import (
    checklist,
    explained,
    export,
    first_screen,
    html_page,
    latent_figures,
    mechanism_figures,
    page,
    paper,
    posterior_tables,
    power_tables,
    report_figures,
    run_tables,
    sections,
    supplement,
    target_trial_table,
)
from ehrwear_jax.report.report_data import ReportData
from ehrwear_jax.report.result_records import Record, check_records
from ehrwear_jax.report.trajectories import Trajectory

__all__ = ["ReportInputs", "Trajectory", "build_report"]


@dataclass(frozen=True)
class ReportInputs:
    """The content of a report. The page says of every empty part that it is missing.

    Attributes:
      title: the page's heading.
      subtitle: one line below it.
      dataset: name that every record carries.
      results: records as in `result_records`; the order of tasks is kept.
      losses: pretrained model -> the lines of its metrics.jsonl: {"step": 100, "loss/total": ...}.
      predictions: predictions[task][model] = (y_N, p_N), outcomes 0 or 1 and probabilities.
      trajectories: patients to draw.
      cohort: steps {"step", "n", "dropped", "reason"} in order.
      facts: configuration, seed, parameter counts, versions, durations.
      notes: limitations and remarks, one sentence each.
      data: what is shown beside the records: curves, subgroups, the latent space, the cohort, compute.
      added: pretrained model -> what it adds to the model of its paper; those without a paper are not in it.
    """

    title: str
    subtitle: str
    dataset: str
    results: Sequence[Record]
    losses: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    predictions: sections.Predictions = field(default_factory=dict)
    trajectories: Sequence[Trajectory] = ()
    cohort: Sequence[Mapping[str, Any]] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    data: ReportData = field(default_factory=ReportData)
    added: Mapping[str, Sequence[str]] = field(default_factory=dict)


def build_report(inputs: ReportInputs, out_dir: str | os.PathLike) -> Path:
    """Writes report.html, report.md, results.json and tables/*.csv, *.tex into `out_dir`, which is made if absent.

    The same inputs give the same bytes. Nothing is written if an input is wrong.

    Returns:
      The path of report.html.

    Raises:
      ValueError: a record, prediction, log line or cohort step is malformed.
    """
    records = check_records(inputs.results, inputs.dataset)
    _check_predictions(inputs.predictions)
    content = report_page(inputs, records)
    for hint in page.hints(content):
        logging.info("  report: %s", hint)
    texts = {
        "results.json": json.dumps(records, indent=1, allow_nan=False) + "\n",
        "report.md": page.to_markdown_page(content),
        "report.html": html_page.to_html_page(content),
    }
    for table in export.named_tables(content):
        texts[f"tables/{export.file_name(table)}.csv"] = export.to_csv(table)
        texts[f"tables/{export.file_name(table)}.tex"] = export.to_latex(table)
    out_dir = Path(out_dir)
    (out_dir / "tables").mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        part = out_dir / f"{name}.part"
        part.write_text(text, encoding="utf-8")
        part.replace(out_dir / name)
    return out_dir / "report.html"


def report_page(inputs: ReportInputs, records: Sequence[Record]) -> page.Page:
    """The report's content."""
    data, drawn = inputs.data, _without_ablations(inputs.predictions)
    cohort = sections.cohort(inputs.cohort)  # refuses malformed steps, which others read
    parts = (
        _led(
            sections.summary(records, inputs.added, data.too_few),
            first_screen.at_a_glance(records, data, inputs.cohort),
        ),
        target_trial_table.target_trial(data),
        paper.paper_tables(records, data),
        _extended(sections.forecasting(records), report_figures.horizon_figure(records)),
        sections.differences(records, data.families),
        power_tables.power(records, data),
        _extended(sections.survival(records), report_figures.survival_curves(data)),
        sections.calibration(records, drawn),
        _extended(report_figures.decision(records, data), supplement.confusion(drawn)),
        _extended(report_figures.subgroups(records, data), supplement.gains(data)),
        report_figures.robustness(data),
        report_figures.label_efficiency(data),
        latent_figures.latent_space(data),
        posterior_tables.posterior(data),
        mechanism_figures.mechanisms(data),
        sections.patients(inputs.trajectories),
        explained.explained(data),
        sections.pretraining(inputs.losses),
        run_tables.compute(data),
        _extended(cohort, run_tables.people_tables(data)),
        sections.facts(inputs.facts),
        sections.limitations(inputs.notes),
        sections.every_number(records),
    )
    behind = 1 + next(i for i, section in enumerate(parts) if section.identifier == "paper")
    listed = checklist.checklist(parts)
    return page.Page(inputs.title, inputs.subtitle, (*parts[:behind], listed, *parts[behind:]))


def _without_ablations(predictions):
    return {
        task: {model: found for model, found in models.items() if model not in paper.ALL_ABLATIONS}
        for task, models in predictions.items()
    }


def _led(section: page.Section, blocks: Sequence[page.Block]) -> page.Section:
    return page.Section(section.identifier, section.title, (*blocks, *section.blocks))


def _extended(section: page.Section, blocks: Sequence[page.Block]) -> page.Section:
    return page.Section(section.identifier, section.title, (*section.blocks, *blocks))


def _check_predictions(predictions: sections.Predictions) -> None:
    for task, models in predictions.items():
        for model, (y_N, p_N) in models.items():
            where = f"predictions of {model!r} on {task!r}"
            if np.ndim(y_N) != 1 or np.shape(y_N) != np.shape(p_N) or not len(y_N):
                raise ValueError(f"{where}: shapes {np.shape(y_N)} and {np.shape(p_N)} do not match")
            if not np.all(np.isin(y_N, (0, 1))):
                raise ValueError(f"{where}: an outcome is neither 0 nor 1")
            if not np.all((np.asarray(p_N) >= 0) & (np.asarray(p_N) <= 1)):
                raise ValueError(f"{where}: a probability lies outside [0, 1]")
