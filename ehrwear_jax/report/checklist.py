"""Lists every table and figure that the paper has or names, and for each where the page has it or why it has not."""

import dataclasses
from collections.abc import Iterator, Sequence

from ehrwear_jax.report.page import Block, Bullets, Details, FigureGrid, Section, Text
from ehrwear_jax.report.table_model import Column, Row, Table

NO_REASON = "the run has nothing to show of it."
INTERPRETED = "it comes from the interpret stage; its section says what of that is missing."


@dataclasses.dataclass(frozen=True)
class Item:
    """Something that the paper has.

    Attributes:
      what: in the paper's words. section: of the page. table: what names of its tables begin with; "": figures.
      lacking: why it may be absent; "": the section's own first words say so.
    """

    what: str
    section: str
    table: str
    lacking: str = ""


_NUMBERED = {
    "1": "clinical event forecasting", "2": "physiological outcomes", "3": "longitudinal risk", "4": "ablations",
    "5": "prevalence of outcomes", "6": "confusion matrices at a fixed sensitivity", "7": "effect sizes",
    "8": "AUROC by age and sex", "9": "AUROC by device",
}  # fmt: skip
ITEMS = (
    *(Item(f"Table {number}: {what}", "paper", f"table{number}") for number, what in _NUMBERED.items()),
    Item("A.6: extended ablations", "paper", "a6", "no extended ablation is among the models: the variant a6 trains "
         "them beside the others."),
    Item("A.2: demographics", "cohort", "demographics", "nothing is known of the people."),
    Item("A.2, A.7: prevalence of each task", "cohort", "prevalence", "the predictions do not say who was labelled."),
    Item("A.7: confusion matrices at key thresholds", "decision", "confusion_thresholds",
         "no predicted probabilities were given."),
    Item("A.7: effect sizes between pairs of models, with p-values", "differences", "difference"),
    Item("A.7: results by age, sex and device", "subgroups", "coverage_groups"),
    Item("Section 4: parameters and device-hours", "compute", "compute"),
    Item("Section 5.2: physiology by length of wear", "subgroups", "gain_by_wear",
         "the run has no continuous task whose people have a known length of wear."),
    Item("Section 5.3: risk where the EHR is sparse", "subgroups", "gain_sparse_ehr",
         "the run has no time-to-event task whose people have a known density of the EHR."),
    Item("Sections 3.6 and 5.1, A.7: reliability over deciles", "calibration", ""),
    Item("Section 5.1: decision curves", "decision", ""),
    Item("Section 4: performance by share of labels", "labels", ""),
    Item("Sections 4 and 5.5: truncated histories, missing modality, noise", "robustness", ""),
    Item("Section 5.4: mechanistic probes", "mechanisms", ""),
    Item("Section 5.6: representation geometry", "latents", ""),
    Item("A.7: latent trajectories", "patients", ""),
    Item("A.7: attention of single patients", "explained", ""),
)  # fmt: skip


def checklist(sections: Sequence[Section]) -> Section:
    """A row for each of ITEMS: whether it is on the page, and where, or one sentence why it is not."""
    by_name = {section.identifier: section for section in sections}
    lines = []
    for item in ITEMS:
        section = by_name[item.section]
        filled = any(_is(block, item.table) for block in _flat(section.blocks))
        where = f"section {section.title}" if filled else _reason(item, section)
        lines.append(Row((item.what, "yes" if filled else "no", where)))
    columns = (
        Column("In the paper", is_text=True),
        Column("Here", is_text=True),
        Column("Where, or why not", is_text=True),
    )
    n = sum(row.cells[1] == "yes" for row in lines)
    caption = f"{n} of {len(lines)} tables and figures of the paper are filled."
    return Section("listed", "What the paper lists", (Table(caption, columns, tuple(lines), (), "checklist"),))


def _flat(blocks: Sequence[Block]) -> Iterator[Block]:
    for block in blocks:
        if isinstance(block, Details):
            yield from _flat(block.blocks)
        else:
            yield block


def _is(block, table):
    if not table:
        return isinstance(block, FigureGrid)
    return isinstance(block, Table) and block.name.startswith(table)


def _reason(item, section):
    said = [b.text for b in _flat(section.blocks) if isinstance(b, Text)]
    head = f"Table {item.table.removeprefix('table')} is not filled: "
    if own := next((text.removeprefix(head) for text in said if text.startswith(head)), ""):
        return own
    if item.lacking:
        return item.lacking
    bullets = [b.items[0][1] for b in _flat(section.blocks) if isinstance(b, Bullets) and b.items]
    words = next(iter([*said, *bullets]), NO_REASON)
    return INTERPRETED if words.startswith("The interpret stage") else words  # which the page says once
