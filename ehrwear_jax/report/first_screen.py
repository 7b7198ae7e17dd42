"""Says in five sentences what a clinician asks first: what was asked, of whom, how good, how sure, for whom not."""

from collections.abc import Sequence

from ehrwear_jax.report import paper, target_trial_table
from ehrwear_jax.report import result_records as rec
from ehrwear_jax.report.page import Block, Bullets, join_words
from ehrwear_jax.report.report_data import Entry, ReportData
from ehrwear_jax.report.result_records import Record

ALIKE = ("age_sex", "linear_table", "gradient_boosting")  # what one would use instead, the simplest first
MOST_STEPS = 3
UNTESTED = (
    "People of other places, times and devices were not tested, and nobody was treated by these predictions: what they "
    "are worth in care is unknown."
)


def at_a_glance(records: Sequence[Record], data: ReportData, cohort: Sequence[Entry]) -> list[Block]:
    """The five sentences on the main task; [] without a result.

    Args:
      cohort: steps of the selection of people, {step, n, dropped, reason}.
    """
    task = paper.main_task(records, data.main_task)
    metric = "auroc" if task else "c_index"
    if task is None:
        task = next((r["task"] for r in records if r["metric"] == "c_index"), None)
    by_model = {r["model"]: r for r in records if (r["task"], r["metric"]) == (task, metric) and r["value"] is not None}
    main = rec.main_model(by_model)
    if task is None or main is None:
        return []
    found = {r["metric"]: r for r in records if (r["task"], r["model"]) == (task, main)}
    trial = next((t for t in data.trials if t["task"] == task), None)
    items = (
        ("What was asked.", _asked(task, trial)),
        ("Of whom.", _of_whom(by_model[main], data)),
        ("How good.", _how_good(main, metric, by_model, found)),
        ("How sure.", _how_sure(main, metric, by_model, records)),
        ("For whom not.", _for_whom_not(task, main, data, cohort)),
    )
    return [Bullets(items)]


def _asked(task, trial):
    text = f"{rec.task_label(task)}."
    if trial is not None:
        design = target_trial_table.design(trial)
        text += f" {design['outcome']} Predicted at: {_lower(design['time_zero'])}"
    return text


def _lower(sentence):
    return sentence[:1].lower() + sentence[1:]


def _of_whom(record, data):
    held = {d["measure"]: d["value"] for d in data.demographics if d["split"] == "held_out"}
    people = f"{held['people']} people" if "people" in held else "people"
    text = f"{rec.format_count(record['n'])} predictions of {people} from whom no model had learned"
    if record["n_positive"] is not None and record["n"]:
        share = 100 * record["n_positive"] / record["n"]
        text += f"; the outcome followed {record['n_positive']:,} of them ({share:.1f}%)"
    told = [f"{name.removesuffix(': median (IQR)')} {value}" for name, value in held.items() if name.startswith("age")]
    told += [f"{name.removeprefix('sex: ')} {value}" for name, value in held.items() if name.startswith("sex: ")]
    return f"{text}. " + (f"Of these people: {', '.join(told)}." if told else "Their age and sex are not known.")


def _how_good(main, metric, by_model, found):
    pairs = 100 * by_model[main]["value"]
    text = f"{rec.short_model_label(main)}: {rec.metric_of(metric).label} {rec.format_interval(by_model[main])}. "
    if metric == "auroc":
        text += (
            f"Of 100 pairs of one with the outcome and one without, it gives the former the higher risk in {pairs:.0f}"
        )
    else:
        text += f"Of 100 pairs of whom one had it first, it gives that one the higher risk in {pairs:.0f}"
    text += "; chance would in 50."
    parts = [found[m]["value"] for m in ("sensitivity", "ppv", "tp", "fp") if m in found]
    if len(parts) == 4 and None not in parts and found["tp"]["n"]:
        sensitivity, ppv, tp, fp = parts
        warned = 100 * (tp + fp) / found["tp"]["n"]
        text += (
            f" With a threshold chosen on other people it warned at {warned:.0f}% of the predictions, found "
            f"{100 * sensitivity:.0f}% of the outcomes, and {100 * ppv:.0f} of 100 warnings were right."
        )
    simple = [f"{rec.inline_model_label(m)} {rec.format_interval(by_model[m])}" for m in ALIKE if m in by_model]
    return text + (f" What one would use instead: {', '.join(simple)}." if simple and main not in ALIKE else "")


def _how_sure(main, metric, by_model, records):
    record, text = by_model[main], "No interval was computed."
    if record["lo"] is not None and record["hi"] is not None:
        lo, hi = (rec.format_number(record[end]) for end in ("lo", "hi"))
        text = (
            f"The interval, {lo} to {hi}, says how far chance in who was tested reaches, and not what another hospital "
            "or another training would give."
        )
    others = {m: r for m, r in by_model.items() if m not in (main, rec.ORACLE)}
    if not others:
        return text
    best = max(others, key=lambda m: others[m]["value"])
    key = (record["task"], metric + rec.DIFFERENCE, f"{main} - {best}")
    for paired in (r for r in records if (r["task"], r["metric"], r["model"]) == key):
        if paired["value"] is not None and paired["lo"] is not None and paired["hi"] is not None:
            side = "better than" if paired["lo"] > 0 else "worse than" if paired["hi"] < 0 else "not told apart from"
            text += (
                f" It is {side} the best other model, {rec.inline_model_label(best)}: {rec.format_interval(paired)}."
            )
    return text


def _for_whom_not(task, main, data, cohort):
    parts = []
    others = [f"{t['task']}: " for t in data.trials if t["task"] != task]
    left_out: dict[str, int] = {}  # by reason: folds tell the same again
    for step in cohort:
        if step["dropped"] and "people" in step["step"] and not any(name in step["step"] for name in others):
            reason = step["reason"] or step["step"]
            left_out[reason] = max(left_out.get(reason, 0), step["dropped"])
    if most := sorted(left_out.items(), key=lambda item: -item[1])[:MOST_STEPS]:
        parts.append(f"Left out: {'; '.join(f'{n:,} ({reason})' for reason, n in most)}.")
    mine = [r for r in data.subgroups if r["task"] == task and r["model"] == main and r["attribute"] != "all"]
    worse = [
        f"{paper.level_label(r['attribute'], r['level'])} ({rec.format_interval(r)})"
        for r in mine
        if r["metric"] == "auroc_gap" and r["hi"] is not None and r["hi"] < 0
    ]
    if worse:
        parts.append(f"Worse than in the largest group of their kind: {join_words(worse)}.")
    hidden = [paper.level_label(r["attribute"], r["level"]) for r in mine if r.get("suppressed")]
    if hidden:
        parts.append(f"Too few to tell: {join_words(hidden)}.")
    if not mine:
        parts.append("No subgroup was evaluated.")
    elif not worse:
        parts.append("No subgroup that is large enough to be shown was told apart from the largest of its kind.")
    return " ".join([*parts, UNTESTED])
