"""Tabulates what z holds of the hand-made features: per kind of feature, and the codes that are held best and worst."""

from collections.abc import Sequence

import numpy as np

from ehrwear_jax.report import result_records as rec
from ehrwear_jax.report.report_data import Entry
from ehrwear_jax.report.table_model import Column, Group, Row, Table

MODALITIES = {"ehr": "EHR", "wear": "Wearable"}
N_SHOWN = 6  # codes that are held best, and worst


def ledger_tables(ledger: Sequence[Entry]) -> list[Table]:
    """The ledger of all models: medians by kind of feature; last values (or means) of single codes and channels."""
    if not ledger:
        return []
    models = rec.sorted_models(e["model"] for e in ledger)
    labels = tuple(Column(rec.model_label(m), "ledger") for m in models)
    return [_by_statistic(ledger, models, labels), *_by_code(ledger, models, labels)]


def _by_statistic(ledger, models, labels):
    lines: list[Row | Group] = []
    for modality, title in MODALITIES.items():
        mine = [e for e in ledger if e["modality"] == modality]
        kinds = sorted({(e["measure"] != "r2", e["statistic"]) for e in mine})
        lines += [Group(title)] * bool(kinds)
        for is_auroc, statistic in kinds:
            found = [e for e in mine if e["statistic"] == statistic and (e["measure"] != "r2") == is_auroc]
            cells = [_median([e["value"] for e in found if e["model"] == m]) for m in models]
            n = len({(e["of"], e["range"]) for e in found})
            lines.append(Row((f"{statistic.replace('_', ' ')}{', AUROC' if is_auroc else ''}", str(n), *cells)))
    columns = (Column("Feature", is_text=True), Column("Features"), *labels)
    return Table("What z holds: median R\N{SUPERSCRIPT TWO} (10th to 90th percentile) of hand-made features.", columns,
                 tuple(lines), (), "ledger")  # fmt: skip


def _median(values):
    if not values:
        return rec.ABSENT
    low, middle, high = (_shown(v) for v in np.quantile(values, [0.1, 0.5, 0.9]))
    return f"{middle} ({low} to {high})" if len(values) > 2 else middle


def _shown(value):
    return rec.format_number(value, decimals=2)


def _by_code(ledger, models, labels):
    """Of the last value of a code; of a channel, which has none, the mean over its shortest range."""
    ranges = sorted({e["range"] for e in ledger if e["modality"] == "wear" and e["statistic"] == "mean"}, key=_days)
    found: dict[str, dict[str, float]] = {}
    for e in ledger:
        is_mean = e["modality"] == "wear" and e["statistic"] == "mean" and e["range"] == ranges[0]
        if e["measure"] == "r2" and (is_mean or e["statistic"] == "last"):
            found.setdefault(f"{e['of']}, mean {e['range']}" if is_mean else e["of"], {})[e["model"]] = e["value"]
    if not found:
        return []
    order = sorted(found, key=lambda of: -float(np.mean(list(found[of].values()))))
    shown = [("All", order)] if len(order) <= 2 * N_SHOWN else [("Best", order[:N_SHOWN]), ("Worst", order[-N_SHOWN:])]
    lines: list[Row | Group] = []
    for title, codes in shown:
        lines.append(Group(title))
        for of in codes:
            lines.append(Row((of, *(_shown(found[of].get(m)) for m in models))))
    caption = "What z holds: R\N{SUPERSCRIPT TWO} of last values, code by code, and of means, channel by channel."
    return [Table(caption, (Column("Code or channel", is_text=True), *labels), tuple(lines), (), "ledger_codes")]


def _days(name):
    """A range in days, such as 30d or 6h; all that there is comes last."""
    unit = {"d": 1.0, "h": 1 / 24}.get(name[-1:])
    return float("inf") if unit is None else float(name[:-1]) * unit
