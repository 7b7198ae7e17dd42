"""Fills the paper's tables 1 to 9 from the records of a run, and says why others cannot be filled."""

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from ehrwear_jax.report import result_records as rec
from ehrwear_jax.report.page import Block, Section, Text, join_words
from ehrwear_jax.report.report_data import ReportData
from ehrwear_jax.report.result_records import Record
from ehrwear_jax.report.table_model import Column, Group, Row, Table

# model -> its name in the paper's Table 4; a model is named as the variant of the config that it is pretrained with
ABLATIONS = {
    "no_wear_to_ehr": "without the loss from wearable to EHR",
    "no_ehr_to_wear": "without the loss from EHR to wearable",
    "no_cross_modal": "without both cross-modal losses",
    "day_bins": "discrete time, bins of one day",
    "half_masked": "stronger wearable masking (50%)",
}
# the same of appendix A.6 and section 4, which have no table in the paper
FURTHER_ABLATIONS = {
    "r1": "one exponential",
    "r2": "two exponentials",
    "r8": "eight exponentials",
    "rational_quadratic": "rational quadratic kernel",
    "gaussian": "Gaussian random features of time",
    "elbo": "with the ELBO's prior",
    "no_contrast": "without contrastive alignment",
}
ALL_ABLATIONS = ABLATIONS | FURTHER_ABLATIONS
LONG_FOLLOW_UP = 730.0  # days; the horizons of a task that reach so far are of years
OF_BINARY_TASK = ("6", "7", "8", "9")  # tables of the main task, which is binary
NO_BINARY_TASK = "the run has no binary task."
STAR = "\N{NO-BREAK SPACE}*"
STAR_NOTE = "* differs from the first model: q of the paired difference at most 0.05."
SUBGROUPS = {
    "8": (("age", "sex"), "AUROC by age and sex"),
    "9": (("device",), "AUROC by wearable device"),
    "": (("ehr", "wear", "wear_month", "ehr_and_wear"), "AUROC by how much is known of the person"),
}
WORDS = {
    ("ehr", "sparse"): "sparse EHR: fewer than 2 encounters in the prior year",
    ("ehr", "rich"): "other EHR",
    ("wear", "short"): "less than 14 days of wear",
    ("wear", "long"): "14 days of wear or more",
    ("wear_month", "under a month"): "less than 30 days of wear",
    ("wear_month", "a month or more"): "30 days of wear or more",
    ("ehr_and_wear", "sparse and short"): "sparse EHR and less than 14 days of wear",
    ("ehr_and_wear", "other"): "all others",
    ("sex", "female"): "female",
    ("sex", "male"): "male",
}


def level_label(attribute: str, level: str) -> str:
    """A subgroup's name in words."""
    return WORDS.get((attribute, level)) or (f"age {level}" if attribute == "age" else level)


def sorted_levels(levels: Iterable[str]) -> list[str]:
    """Levels without repeats; bands of ages from the youngest."""
    ages = {"<": -1, ">": 1}
    return sorted(dict.fromkeys(levels), key=lambda level: (ages.get(level[:1], 0), level))


def count(entry: Mapping, field: str) -> str:
    """A count of an entry of prevalence, which may be hidden or not exist."""
    return rec.HIDDEN if entry[field] is None and entry.get("hidden") else rec.format_count(entry[field])


def share(entry: Mapping) -> str:
    """`9.6%` of an entry of prevalence."""
    if entry["positives"] is None and entry.get("hidden"):
        return rec.HIDDEN
    known = entry["positives"] is not None and entry["times"]
    return f"{100 * entry['positives'] / entry['times']:.1f}%" if known else rec.ABSENT


def main_task(records: Sequence[Record], wanted: str = "") -> str | None:
    """The binary task of tables of one task: the wanted one, else the one of the longest horizon."""
    tasks = rec.tasks_of(r for r in records if r["metric"] == "auroc")
    if wanted in tasks:
        return wanted
    return max(tasks, key=lambda t: (rec.horizon_of(t) or ("", 0.0))[1], default=None)


class Lookup:
    """Records by (task, model, metric), with significance against the main model; `stars` counts significant cells.

    families: {kind, metric, of, tests} of the q-values.
    """

    def __init__(self, records: Sequence[Record], families: Sequence[Mapping] = ()) -> None:
        self.by_key = {(r["task"], r["model"], r["metric"]): r for r in records}
        self.families = families
        self.stars = 0

    def get(self, task: str, model: str, metric: str) -> Record | None:
        """The record, or None."""
        return self.by_key.get((task, model, metric))

    def require(self, task: str, model: str, metric: str) -> Record:
        """The record; KeyError if there is none."""
        return self.by_key[task, model, metric]

    def models(self, task: str, metric: str, without: Collection[str] = frozenset()) -> list[str]:
        """Models with a metric of a task, in the order of the report."""
        found = (model for t, model, m in self.by_key if t == task and m == metric and " - " not in model)
        return [m for m in rec.sorted_models(found) if m not in without]

    def significant(self, task: str, model: str, metric: str) -> bool:
        """Whether the model differs from the reference model: q at most 0.05."""
        q = [r["value"] for (t, pair, m), r in self.by_key.items()
             if t == task and m == f"{metric}_difference_q" and pair.endswith(f" - {model}")]  # fmt: skip
        return bool(q) and q[0] is not None and q[0] <= 0.05

    def cell(self, task: str, model: str, metric: str) -> str:
        """The number with its interval, and a star where it is significant."""
        found = self.get(task, model, metric)
        if found is None:
            return rec.ABSENT
        star = self.significant(task, model, metric)
        self.stars += star
        spread = self.get(task, model, metric + rec.SEED_SD)
        return rec.with_spread(rec.format_interval(found), spread) + STAR * star

    def grid(
        self,
        name: str,
        caption: str,
        columns: Sequence[tuple[str, str, str]],
        models: Sequence[str],
        first: str = "Model",
        notes: Sequence[str] = (),
    ) -> Table:
        """Models by columns (task, metric, heading). The best of each column is bold; the oracle is set apart."""
        before, lines = self.stars, []
        best = {
            i: rec.best_models(
                {m: found["value"] for m in models if (found := self.get(task, m, metric))},
                rec.metric_of(metric).higher_is_better,
            )
            for i, (task, metric, _) in enumerate(columns, 1)
        }
        for model in models:
            cells = tuple(self.cell(task, model, metric) for task, metric, _ in columns)
            bold = frozenset(i for i in best if model in best[i])
            label = ALL_ABLATIONS.get(model) or rec.model_label(model)
            lines.append(Row((label, *cells), bold, apart=model == rec.ORACLE))
        if self.stars > before:
            notes = (*notes, STAR_NOTE, *rec.family_notes(self.families, "primary", [m for _, m, _ in columns]))
        if any(rec.PLUS_MINUS in cell for line in lines for cell in line.cells):
            notes = (*notes, rec.SEEDS_NOTE)
        heads = [Column(heading, rec.metric_of(metric).definition) for _, metric, heading in columns]
        return Table(caption, (Column(first, is_text=True), *heads), tuple(lines), tuple(notes), name)


def _heading(records: Lookup, task: str, text: str) -> str:
    """A column's heading with the number of prediction times and of positive ones."""
    found = next((r for (t, _, m), r in records.by_key.items() if t == task and "_difference" not in m), None)
    return f"{text} ({rec.format_population(found)})" if found else text


HINTS = {"2": "config.labels.physiology.measures, config.evaluate.tasks", "6": "config.report.tuning_dir"}


def paper_tables(records: Sequence[Record], data: ReportData) -> Section:
    """Every table of the paper that the run has the numbers for, then what is missing and why."""
    found = Lookup(records, data.families)
    task = main_task(records, data.main_task)
    blocks: list[Block] = []
    absent: dict[str, str] = {}

    def add(number: str, tables: Sequence[Table | None], reason: str) -> None:
        there = [t for t in tables if t is not None]
        blocks.extend(there)
        if not there:
            absent[number] = NO_BINARY_TASK if task is None and number in OF_BINARY_TASK else reason

    add("1", _forecasting(found, records), NO_BINARY_TASK)
    add("2", [_physiology(found, records)], "there is no task with float labels; wearable recordings can give some.")
    add("3", _survival(found, records), "the run has no time-to-event task (a label table with time_to_event_days and "
        "event_observed).")  # fmt: skip
    add("4", [_ablations(found, task)], "it compares models that are pretrained separately, one for each variant of "
        f"the config ({', '.join(ABLATIONS)}): the variant table4 trains them beside the others.")  # fmt: skip
    if further := _ablations(found, task, FURTHER_ABLATIONS, "Appendix A.6: further ablations"):
        blocks.append(dataclasses.replace(further, name="a6"))
    add("5", [_prevalence(data)], "the predictions do not say who was labelled.")
    add("6", [_confusion(found, task)], "its thresholds are chosen on a tuning split, and no tuning predictions were "
        "given.")  # fmt: skip
    add("7", [_effects(found, task)], "no paired difference was computed: there is no reference model, or no other.")
    for number in ("8", "9"):
        reason = "the device is not known of the people evaluated." if number == "9" else "age and sex are not known."
        add(number, [subgroup_table(data, task, number)], reason)
    if not blocks:
        blocks.append(Text("No table of the paper can be filled from this run."))
    for number, reason in sorted(absent.items()):
        blocks.append(Text(f"Table {number} is not filled: {reason}", hint=HINTS.get(number, "")))
    return Section("paper", "The paper's tables", tuple(blocks))


def beside_the_paper(added: Mapping[str, Sequence[str]]) -> list[Text]:
    """Which models are those of the paper, and what others add to it: a paragraph for each kind."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for model, what in added.items():
        alike.setdefault(tuple(what), []).append(model)
    out = []
    for what, models in sorted(alike.items()):
        names, one = join_words(sorted(models)), len(models) == 1
        if what:
            out.append(Text(f"Beside what the paper describes, {names} {'has' if one else 'have'}: {'; '.join(what)}."))
        else:
            out.append(Text(f"As the paper describes {'it' if one else 'them'}, with nothing added: {names}."))
    return out


def families(records: Sequence[Record]) -> dict[str, list[str]]:
    """Binary tasks that differ by their horizon only, shortest first; one without a horizon is a family of its own."""
    out: dict[str, list[tuple[float, str]]] = {}
    for task in rec.tasks_of(r for r in records if r["metric"] == "auroc"):
        name, days = rec.horizon_of(task) or (task, 0.0)
        out.setdefault(name, []).append((days, task))
    return {name: [t for _, t in sorted(tasks)] for name, tasks in out.items()}


def _forecasting(found: Lookup, records) -> list[Table]:
    out = []
    for name, tasks in families(records).items():
        models = rec.sorted_models(r for t in tasks for r in found.models(t, "auroc", ALL_ABLATIONS.keys()))
        for metric in ("auroc", "auprc"):
            columns = []
            for task in tasks:
                days = rec.horizon_of(task)
                columns.append((task, metric, _heading(found, task, f"{days[1]:g} days" if days else "")))
            label = rec.metric_of(metric).label
            caption = f"Table 1, {label}: {rec.task_label(name).lower()}. Bold: best of the column to three decimals."
            out.append(found.grid(f"table1_{name}_{metric}", caption, columns, models))
    return out


def _physiology(found: Lookup, records) -> Table | None:
    tasks = rec.tasks_of(r for r in records if r["metric"] == "rmse")
    if not tasks:
        return None
    models = rec.sorted_models(r for t in tasks for r in found.models(t, "rmse"))
    columns = []
    for task in tasks:
        columns.append((task, "rmse", _heading(found, task, f"{rec.task_label(task)}, RMSE")))
        columns.append((task, "r2", f"{rec.task_label(task)}, R\N{SUPERSCRIPT TWO}"))
    note = "RMSE in the unit of the label table; the paper gives no units. R\N{SUPERSCRIPT TWO} is 0 for the mean."
    caption = "Table 2: physiological outcomes. Lower RMSE is better."
    return found.grid("table2", caption, columns, models, notes=(note,))


def _survival(found: Lookup, records) -> list[Table]:
    out = []
    for task in rec.tasks_of(r for r in records if r["metric"] == "c_index"):
        models = found.models(task, "c_index")
        days = sorted(float(m[4:]) for t, _, m in found.by_key if t == task and re.fullmatch(r"auc_[\d.]+", m))
        # a year where the horizons are of days; of a follow-up of years the last one
        last = max(days, default=0.0)
        chosen = max((d for d in days if d <= 366 or last >= LONG_FOLLOW_UP), default=max(days, default=None))
        wanted = [("c_index", "C-index"), ("uno_c", "Uno's C")]
        if chosen is not None:
            wanted.insert(0, (f"auc_{chosen:g}", f"AUC@{rec.duration(chosen)}"))
            wanted += [(f"brier_{chosen:g}", f"Brier score@{rec.duration(chosen)}"), ("ibs", "Integrated Brier score")]
        wanted = [(m, h) for m, h in wanted if any(found.get(task, model, m) for model in models)]
        table = found.grid(
            f"table3_{task}", f"Table 3: {rec.task_label(task).lower()} "
            f"({rec.format_population(found.require(task, models[0], 'c_index'), event='events')}).",
            [(task, m, h) for m, h in wanted], models, notes=_tau_note(found.get(task, models[0], "tau")),
        )  # fmt: skip
        null = {m: found.get(task, models[0], f"{m}_null") for m, _ in wanted}
        if any(null.values()):
            cells = tuple(rec.format_interval(r) if (r := null[m]) else rec.ABSENT for m, _ in wanted)
            extra = Row(("No covariates", *cells), apart=True)
            table = Table(table.caption, table.columns, (*table.rows, extra), table.notes, table.name)
        out.append(table)
    return out


def _tau_note(record: Record | None) -> tuple[str, ...]:
    return () if record is None else (f"Uno's C up to {rec.duration(record['value'])}.",)


def _ablations(found: Lookup, task, names=ABLATIONS, title="Table 4: ablations") -> Table | None:
    models = [m for m in names if found.get(task, m, "auroc")]
    main = found.models(task, "auroc", ALL_ABLATIONS.keys()) if task else []
    if not models or not main:
        return None
    columns = [(task, "auroc", _heading(found, task, "AUROC"))]
    caption = f"{title}, {rec.task_label(task).lower()}."
    return found.grid("table4", caption, columns, [main[0], *models], "Variant")


def _prevalence(data: ReportData) -> Table | None:
    held = [r for r in data.prevalence if r["split"] == "held_out"]
    if not held:
        return None
    lines = []
    for r in held:
        days = rec.ABSENT if r["median_days"] is None else f"{r['median_days']:,.0f}"
        counts = (count(r, k) for k in ("people", "times", "positives"))
        lines.append(Row((rec.task_label(r["task"]), *counts, share(r), days)))
    heads = ("Patients", "Prediction times", "Positive", "Prevalence", "Median follow-up, days")
    columns = (Column("Task", is_text=True), *(Column(h) for h in heads))
    note = "A person can have several prediction times. Follow-up is given where the label table holds times."
    return Table("Table 5: outcomes of the held-out people.", columns, tuple(lines), (note,), "table5")


def _confusion(found: Lookup, task) -> Table | None:
    models = found.models(task, "sensitivity") if task else []
    if not models:
        return None
    lines = []
    for model in models:
        counts = (found.require(task, model, m)["value"] for m in ("tp", "fp", "tn", "fn"))
        rates = (found.cell(task, model, m) for m in ("sensitivity", "specificity", "ppv"))
        threshold = rec.format_number(found.require(task, model, "threshold")["value"])
        shown = (rec.HIDDEN if c is None else f"{c:,.0f}" for c in counts)
        lines.append(Row((rec.model_label(model), threshold, *shown, *rates)))
    heads = ("Threshold", "True positives", "False positives", "True negatives", "False negatives")
    columns = (Column("Model", "confusion", is_text=True), *(Column(h) for h in heads),
               *(Column(h) for h in ("Sensitivity", "Specificity", "PPV")))  # fmt: skip
    caption = f"Table 6: confusion matrices at a sensitivity fixed on the tuning split, {rec.task_label(task).lower()}."
    return Table(caption, columns, tuple(lines), (_heading(found, task, "Held-out prediction times") + ".",), "table6")


def _effects(found: Lookup, task) -> Table | None:
    pairs = [model for t, model, m in found.by_key if t == task and m == "auroc_difference"]
    if not pairs:
        return None
    lines = []
    for pair in pairs:
        cells = [rec.format_interval(found.require(task, pair, "auroc_difference"))]
        for end in ("z", "d"):
            r = found.get(task, pair, f"auroc_difference_{end}")
            cells.append(
                rec.ABSENT if r is None or r["value"] is None else f"{r['value']:+.2f}".replace("-", rec.MINUS)
            )
        for end in ("p", "q"):
            r = found.get(task, pair, f"auroc_difference_{end}")
            cells.append(rec.format_p_value(r["value"]) if r else rec.ABSENT)
        cells[-1] += STAR if found.significant(task, pair.partition(" - ")[2], "auroc") else ""
        lines.append(Row((rec.model_label(pair), *cells)))
    columns = (
        Column("Comparison", "difference", is_text=True),
        Column("\N{GREEK CAPITAL LETTER DELTA} AUROC"),
        Column("Bootstrap z", "bootstrap_z"),
        Column("Cohen's d over seeds", "cohens_d"),
        Column("p", "p_value"),
        Column("q", "q_value"),
    )
    caption = f"Table 7: paired differences of AUROC, {_heading(found, task, rec.task_label(task).lower())}."
    notes = ("* q at most 0.05.", *rec.family_notes(found.families, "primary", ("auroc",)))
    return Table(caption, columns, tuple(lines), notes, "table7")


def subgroup_table(data: ReportData, task: str | None, number: str) -> Table | None:
    """AUROC and its gap to the largest group by model and level of the attributes of SUBGROUPS[number]."""
    wanted, text = SUBGROUPS[number]
    mine = [r for r in data.subgroups if r["task"] == task and r["attribute"] in wanted]
    cells: Mapping = {(r["attribute"], r["level"], r["model"], r["metric"]): r for r in mine}
    if task is None or not cells:
        return None
    models = rec.sorted_models(r["model"] for r in mine if " - " not in r["model"])
    lines: list[Row | Group] = []
    for attribute in wanted:
        for level in sorted_levels(r["level"] for r in mine if r["attribute"] == attribute):
            first = cells.get((attribute, level, models[0], "auroc"))
            if first is None:
                detail = "suppressed: too few patients"
            elif first["n_patients"] is None:
                detail = "counts hidden, which would reveal a suppressed group"
            else:
                positive = "" if first["n_positive"] is None else f", {first['n_positive']:,} with the event"
                detail = f"{first['n_patients']:,} patients{positive}"
            lines.append(Group(level_label(attribute, level), detail))
            for model in models if first else ():
                r = cells.get((attribute, level, model, "auroc"))
                gap, ece = (cells.get((attribute, level, model, m)) for m in ("auroc_gap", "ece_corrected"))
                lines.append(Row((
                    rec.model_label(model), rec.format_interval(r) if r else rec.ABSENT,
                    _signed(gap) if gap else "reference",
                    *(rec.format_p_value(gap.get(k) if gap else None) for k in ("p", "q")),
                    rec.format_interval(ece) if ece else rec.ABSENT,
                ), apart=model == rec.ORACLE))  # fmt: skip
    head = f"Table {number}: " if number else ""
    columns = (Column("Group", "subgroup", is_text=True), Column("AUROC [95% interval]", "auroc"),
               Column("Gap to the largest group"), Column("p", "p_value"), Column("q", "q_value"),
               Column("Corrected ECE", "ece_corrected"))  # fmt: skip
    notes = [*rec.family_notes(data.families, "subgroups", ("auroc_gap",)), *[data.encounter] * ("ehr" in wanted)]
    caption = f"{head}{text}, {rec.task_label(task).lower()}."
    return Table(caption, columns, tuple(lines), tuple(notes), f"table{number}" if number else "coverage_groups")


def _signed(record) -> str:
    return rec.format_interval({**record, "metric": rec.DIFFERENCE})
