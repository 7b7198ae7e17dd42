"""Checks result records, and formats their names, order and numbers.

A record is one number of one model:
`{"dataset", "model", "task", "metric", "value", "lo", "hi", "n", "n_positive", "seed"}`.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Record = dict[str, Any]

FIELDS = ("dataset", "model", "task", "metric", "value", "lo", "hi", "n", "n_positive", "seed")
ORACLE = "oracle"
DIFFERENCE = "_difference"
P_VALUE = "_difference_p"
Q_VALUE = "_difference_q"
SEED_SD = "_seed_sd"
PLUS_MINUS = "\N{PLUS-MINUS SIGN}"
SEEDS_NOTE = (
    f"{PLUS_MINUS}: standard deviation over the seeds that a model was trained with. Its value is the mean over them, "
    "its interval that of the mean over people."
)
MINUS = "\N{MINUS SIGN}"
ABSENT = "\N{EN DASH}"
HIDDEN = "hidden"  # of a count of few people


@dataclass(frozen=True)
class Metric:
    """Label of a metric and its direction; `definition` is a key of definitions.DEFINITIONS."""

    label: str
    higher_is_better: bool | None = None
    definition: str | None = None


METRICS = {
    "auroc": Metric("AUROC", True, "auroc"),
    "auprc": Metric("AUPRC", True, "auprc"),
    "c_index": Metric("C-index", True, "c_index"),
    "brier": Metric("Brier score", False, "brier"),
    "brier_null": Metric("Brier score of the prevalence", None, "brier"),
    "brier_skill": Metric("Scaled Brier score", True, "brier_skill"),
    "calibration_slope": Metric("Calibration slope", None, "calibration_slope"),
    "calibration_intercept": Metric("Calibration intercept", None, "calibration_intercept"),
    "ece": Metric("ECE", False, "ece"),
    "ece_floor": Metric("ECE by chance", None, "ece_floor"),
    "ece_corrected": Metric("Corrected ECE", False, "ece_corrected"),
    "prevalence": Metric("Prevalence"),
    "auroc_ipcw": Metric("AUROC, weighted", True, "ipcw"),
    "auprc_ipcw": Metric("AUPRC, weighted", True, "ipcw"),
    "brier_ipcw": Metric("Brier score, weighted", False, "ipcw"),
    "uno_c": Metric("Uno's C", True, "uno_c"),
    "ibs": Metric("Integrated Brier score", False, "ibs"),
    "ibs_skill": Metric("Skill of the integrated Brier score", True, "ibs"),
    "auc_t": Metric("AUC at every horizon", True, "auc_t"),
    "brier_t": Metric("Brier score at every horizon", False, "ibs"),
    "rmse": Metric("RMSE", False, "rmse"),
    "rmse_sd": Metric("RMSE in SD of the training split", False, "rmse"),
    "mae": Metric("MAE", False, "rmse"),
    "r2": Metric("R\N{SUPERSCRIPT TWO}", True, "rmse"),
}
# metrics at a number of days
AT_DAYS = {"auc": Metric("AUC", True, "auc_t"), "brier": Metric("Brier score", False, "ibs")}

# (label, label where space is short) of the known models, in the order in which they are shown.
MODELS = {
    "joint": ("Joint model (EHR + wearable)", "Joint"),
    "ehr_only": ("EHR only", "EHR only"),
    "wear_only": ("Wearable only", "Wearable only"),
    "wear_only_static": ("Wearable and static facts (age, sex)", "Wearable + static"),
    "motor": ("MOTOR (EHR)", "MOTOR"),
    "cehr_bert": ("CEHR-BERT (EHR)", "CEHR-BERT"),
    "behrt": ("BEHRT (EHR)", "BEHRT"),
    "med_bert": ("Med-BERT (EHR)", "Med-BERT"),
    "context_clues": ("ContextClues (EHR)", "ContextClues"),
    "himae": ("HiMAE (pulse wave)", "HiMAE"),
    "papagei": ("PaPaGei (pulse wave)", "PaPaGei"),
    "pulse_ppg": ("Pulse-PPG (pulse wave)", "Pulse-PPG"),
    "motif_distance": ("Motif distance (of Pulse-PPG)", "Motif distance"),
    "late_fusion": ("Late fusion", "Late fusion"),
    "best_fusion": ("Late fusion of the best EHR and wearable models", "Late fusion, best"),
    "stacked": ("Stacked predictions", "Stacked"),
    "gradient_boosting": ("Gradient boosting (tabular)", "Gradient boosting"),
    "gradient_boosting_ehr": ("Gradient boosting (tabular, EHR only)", "Boosting, EHR"),
    "gradient_boosting_wear": ("Gradient boosting (tabular, wearable only)", "Boosting, wearable"),
    "boosting_counts": ("Gradient boosting (counts of codes only)", "Boosting, counts"),
    "linear_table": ("Linear model (tabular)", "Linear, tabular"),
    "linear_table_ehr": ("Linear model (tabular, EHR only)", "Linear, EHR"),
    "linear_table_wear": ("Linear model (tabular, wearable only)", "Linear, wearable"),
    "average_table": ("Mean of boosting and linear model (tabular)", "Mean, tabular"),
    "kernel_table": ("Kernel machine (tabular)", "Kernel, tabular"),
    "tables_and_kernel_table": (
        "Mean of boosting, linear model and kernel machine (tabular)",
        "Mean of three, tabular",
    ),
    "joint_kernel": ("Kernel machine (z of the joint model)", "Kernel, z"),
    "joint_demographics": ("Linear model (z of the joint model, age and sex)", "Linear, z + age, sex"),
    "ehr_only_kernel": ("Kernel machine (z of EHR only)", "Kernel, z of EHR only"),
    "wear_only_kernel": ("Kernel machine (z of wearable only)", "Kernel, z of wearable only"),
    "late_fusion_kernel": ("Kernel machine (z of late fusion)", "Kernel, late fusion"),
    "boosting_and_joint_kernel": ("Mean of boosting (tabular) and kernel machine (z)", "Mean, boosting and z"),
    "tables_and_joint_kernel": (
        "Mean of boosting, linear model (tabular) and kernel machine (z)",
        "Mean, tabular and z",
    ),
    "boosting_table_z": ("Gradient boosting (tabular and z of the joint model)", "Boosting, tabular + z"),
    "average_table_z": ("Mean of boosting and linear model (tabular and z of the joint model)", "Mean, tabular + z"),
    "age_sex": ("Age and sex only", "Age and sex"),
    "training_mean": ("Mean of the training split", "Training mean"),
    ORACLE: ("Oracle (true risk)", "Oracle"),
}


def check_records(records: Sequence[Record], dataset: str) -> list[Record]:
    """The records with their fields in order and undefined numbers as None.

    Raises:
      ValueError: a record lacks a field or has another one, a field has the wrong type, an interval
        is reversed or half given, a count is impossible, `dataset` is another one, or two records
        report the same (model, task, metric). The sentence names the record and the field.
    """
    checked: list[Record] = []
    seen: dict[tuple, int] = {}
    for index, record in enumerate(records):
        where = f"results record {index}"
        if not isinstance(record, dict):
            raise ValueError(f"{where} is {type(record).__name__}, not a dict")
        if set(record) != set(FIELDS):
            missing = ", ".join(f for f in FIELDS if f not in record) or "none"
            unknown = ", ".join(sorted(str(f) for f in set(record) - set(FIELDS))) or "none"
            raise ValueError(f"{where}: missing fields: {missing}; unknown fields: {unknown}")
        where += f" ({record['model']}, {record['task']}, {record['metric']})"
        for field in FIELDS[:4]:
            if not isinstance(record[field], str) or not record[field].strip():
                raise ValueError(f"{where}: {field} must be a name, got {record[field]!r}")
        if record["dataset"] != dataset:
            raise ValueError(f"{where}: dataset is {record['dataset']!r}, expected {dataset!r}")
        record = record | {f: _number(record[f], f, where) for f in ("value", "lo", "hi")}
        record |= {f: _count(record[f], f, where) for f in ("n", "n_positive", "seed")}
        if (record["lo"] is None) != (record["hi"] is None):
            raise ValueError(f"{where}: lo and hi must both be given or both be None")
        if record["lo"] is not None and record["lo"] > record["hi"]:
            raise ValueError(f"{where}: lo {record['lo']} is above hi {record['hi']}")
        if record["n"] is None:
            raise ValueError(f"{where}: n must be a count, got None")
        if record["n_positive"] is not None and record["n_positive"] > record["n"]:
            raise ValueError(f"{where}: n_positive {record['n_positive']} is above n {record['n']}")
        key = record["model"], record["task"], record["metric"]
        if key in seen:
            raise ValueError(f"{where}: same model, task and metric as record {seen[key]}")
        seen[key] = index
        checked.append({field: record[field] for field in FIELDS})
    return checked


def _number(value: Any, field: str, where: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise ValueError(f"{where}: {field} must be a number or None, got {value!r}")
    value = float(value)
    if math.isinf(value):
        raise ValueError(f"{where}: {field} is infinite")
    return None if math.isnan(value) else value


def _count(value: Any, field: str, where: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not hasattr(value, "__index__") or int(value) < 0:
        raise ValueError(f"{where}: {field} must be a whole number >= 0 or None, got {value!r}")
    return int(value)


def tasks_of(records: Iterable[Record]) -> list[str]:
    """Tasks in order of first appearance."""
    return list(dict.fromkeys(r["task"] for r in records))


def sorted_models(models: Iterable[str]) -> list[str]:
    """Models without repeats: the known ones in MODELS' order, then others, the oracle last."""
    models = list(dict.fromkeys(models))
    known = [m for m in MODELS if m in models and m != ORACLE]
    other = [m for m in models if m not in MODELS]
    return known + other + [ORACLE] * (ORACLE in models)


def horizon_of(task: str) -> tuple[str, float] | None:
    """("hospitalization", 365.0) of "hospitalization_365d"."""
    found = re.fullmatch(r"(.+?)_?(\d+)d", task)
    return (found[1], float(found[2])) if found else None


def main_model(models: Iterable[str]) -> str | None:
    """The model that the report is about: the joint model, else the first one shown."""
    models = sorted_models(models)
    return models[0] if models and models[0] != ORACLE else None


def best_models(values: dict[str, float | None], higher_is_better: bool | None) -> set[str]:
    """Models with the best value as printed, without the oracle."""
    shown = {model: round(value, 3) for model, value in values.items() if value is not None and model != ORACLE}
    if not shown or higher_is_better is None:
        return set()
    best = (max if higher_is_better else min)(shown.values())
    return {model for model, value in shown.items() if value == best}


def model_label(model: str) -> str:
    """A model's name for tables; a comparison `a - b` names both sides."""
    if " - " in model:
        return f" {MINUS} ".join(short_model_label(part) for part in model.split(" - "))
    return MODELS[model][0] if model in MODELS else _words(model)


def short_model_label(model: str) -> str:
    """A model's name for narrow figures and sentences."""
    return MODELS[model][1] if model in MODELS else _words(model)


def inline_model_label(model: str) -> str:
    """The short label inside a sentence: in lower case unless it is a name."""
    label = short_model_label(model)
    is_name = label[:2].isupper() or label.startswith("Cox")
    return label if is_name else label[:1].lower() + label[1:]


def task_label(task: str) -> str:
    """`new_diagnosis_365d` becomes `New diagnosis, 365 days`."""
    horizon = re.fullmatch(r"(.+?)_?(\d+)d", task)
    return f"{_words(horizon[1])}, {horizon[2]} days" if horizon else _words(task)


def metric_of(name: str) -> Metric:
    """The metric of a record, also of a difference or of one at a number of days."""
    if name.endswith(SEED_SD):
        return Metric(f"{metric_of(name.removesuffix(SEED_SD)).label}, SD over seeds", None, "seed_sd")
    base = re.sub(f"(?:{DIFFERENCE}(?:_[pqzd]|_mdd)?|_mdd)$", "", name)
    if at := re.fullmatch(r"(auc|brier)_([\d.]+)", base):
        known = AT_DAYS[at[1]]
        return Metric(f"{known.label}@{duration(float(at[2]))}", known.higher_is_better, known.definition)
    return METRICS.get(base) or Metric(_words(base))


def duration(days: float) -> str:
    """`90 days`; `5 years` of whole years, two or more, whichever way leap days were counted."""
    years = round(days / 365.25)
    return f"{years} years" if years >= 2 and abs(days - 365.25 * years) <= years * 0.25 + 1 else f"{days:g} days"


def is_difference(record: Mapping[str, Any]) -> bool:
    """Whether the record is a paired difference (not its p-value)."""
    return record["metric"].endswith(DIFFERENCE)


def family_notes(families: Iterable[Mapping[str, Any]], kind: str, metrics: Iterable[str] = ()) -> tuple[str, ...]:
    """What the q-values of a table are corrected for: a sentence for each family of the kind and metrics.

    Args:
      families: {kind, metric, of, tests}.
      metrics: of the table, those at a horizon ("auc_90") too; empty: all of the kind.
    """
    shown = {re.sub(r"_[\d.]+$", "_t", metric) for metric in metrics}
    return tuple(
        f'q: Benjamini and Hochberg over the family "{family_label(f)}", {f["tests"]:,} '
        f"{'tests' if f['tests'] != 1 else 'test'}."
        for f in families
        if f["kind"] == kind and (not shown or f["metric"] in shown)
    )


def family_label(family: Mapping[str, Any]) -> str:
    """`primary: AUROC, models x tasks of demo`."""
    metric = re.sub("_gap$", "", family["metric"])
    label = metric_of(metric).label if metric else ""
    label += ", gaps to the largest group" if family["metric"].endswith("_gap") else ""
    return f"{family['kind']}: {label + ', ' if label else ''}{family['of']}"


def _words(name: str) -> str:
    text = re.sub(r"\behr\b", "EHR", name.replace("_", " ").replace("/", ", ").strip())
    return text[:1].upper() + text[1:]


def term_label(term: str) -> str:
    """`loss/ehr_masked` becomes `EHR masked`; `validation/loss/total`, `Validation, total`."""
    return _words(term.removeprefix("loss/").replace("/loss/", "/"))


def format_number(value: float | None, *, signed: bool = False, decimals: int = 3) -> str:
    """Some decimals with a true minus sign; a dash for an undefined number."""
    if value is None or math.isnan(value):
        return ABSENT
    text = f"{value:{'+' if signed else ''}.{decimals}f}"
    if float(text) == 0:
        return f"{0:.{decimals}f}"
    return text.replace("-", MINUS)


def format_interval(record: Mapping[str, Any]) -> str:
    """`0.748 [0.731, 0.765]`, or the value alone where there is no interval."""
    signed = is_difference(record)
    value = format_number(record["value"], signed=signed)
    if record["lo"] is None or record["value"] is None:
        return value
    lo, hi = (format_number(record[f], signed=signed) for f in ("lo", "hi"))
    return f"{value} [{lo}, {hi}]"


def with_spread(cell: str, spread: Mapping[str, Any] | None) -> str:
    """A cell with the standard deviation over seeds behind it, where there is one."""
    known = spread is not None and spread["value"] is not None
    return f"{cell} {PLUS_MINUS} {format_number(spread['value'])}" if known and spread is not None else cell


def format_p_value(p: float | None) -> str:
    """Three decimals, `< 0.001` below; a dash for None."""
    if p is None:
        return ABSENT
    return f"{p:.3f}" if p >= 0.0005 else "< 0.001"


def format_count(n: int | None) -> str:
    """With separators of thousands; a dash for None."""
    return ABSENT if n is None else f"{n:,}"


def format_population(record: Mapping[str, Any], *, event: str = "positive") -> str:
    """`n = 7,914, 198 positive (2.5%)`."""
    text = f"n = {format_count(record['n'])}"
    if record["n_positive"] is None:
        return text
    share = f" ({100 * record['n_positive'] / record['n']:.1f}%)" if record["n"] else ""
    return f"{text}, {format_count(record['n_positive'])} {event}{share}"
