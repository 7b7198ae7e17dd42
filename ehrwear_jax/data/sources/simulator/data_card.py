"""Describes a simulated data set in words and counts: the data card that lies beside it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from ehrwear_jax.config.data import SimulateConfig
from ehrwear_jax.data.formats import meds
from ehrwear_jax.data.labels import task_design
from ehrwear_jax.data.sources.simulator import code_book, wearable_process
from ehrwear_jax.runtime import files

NAME = "README.md"
_CONTROLS = {
    "positive": "A positive control for models of both modalities: what the wearable shows means more in people with a "
    "diagnosis that the records alone hold.",
    "redundant": "A negative control: one modality suffices, and a model of both has nothing to gain.",
    "noise": "A negative control: the wearable says nothing of health.",
    "changed": "Neither of the usual controls: options of its own.",
}


def text(root: Path, config: SimulateConfig, counts: Sequence[Mapping[str, Any]]) -> str:
    """The data card, Markdown.

    Args:
      root: of the data set, as simulate.simulate wrote it.
      counts: what it returned: {"step", "n", "dropped", "reason"}.
    """
    events = pl.concat([meds.read_shard(path) for path in meds.list_shards(root / "meds")])
    splits = pl.read_parquet(meds.splits_path(root / "meds"))
    return "\n\n".join(
        [
            "# A simulated cohort with linked health records and wearable recordings",
            f"Made by a program (`ehrwear_jax.data.sources.simulator`, seed {config.seed}): no person stands behind "
            "it, and anybody may use it for anything (CC0 1.0). It is for tests, tutorials and positive or negative "
            "controls of models, and says nothing of real diseases, drugs or devices. "
            + _CONTROLS[config.control],
            "## What was simulated",
            "Each person has a hidden state of health in continuous time: one component that the records measure, one "
            "that wearables show, and shocks that pass or lead to an admission. Events, laboratory values and signals "
            "are drawn from it with noise, gaps and missing measurements. Admissions and deaths are drawn from its "
            f"risk. Observation lasts up to {config.years:g} years from {config.first_year}-{config.last_year}; "
            f"{100 * config.dropout:g}% leave early; devices record {config.wear_days} days in "
            f"{config.wear_stretches} stretches.",
            "## Counts",
            _table(("what", "number", "fewer, and why"), [_counted(c) for c in counts]),
            _table(("split", "people"), splits.group_by("split").len().sort("split").iter_rows()),
            "## Files",
            f"- `meds/`: a MEDS {meds.MEDS_VERSION} dataset, {events.height:,} events of {events['code'].n_unique()} "
            "codes; `metadata/codes.parquet` describes each, `metadata/subject_splits.parquet` has the splits.\n"
            "- `wearable/`: one row is a recorded stretch of a channel at a fixed rate: `subject_id`, `start_time`, "
            "`sample_rate_hz`, `channel`, `values`, `unit`, `device`; `metadata/channels.parquet` declares channels.\n"
            "- `labels/`: tables of the MEDS label schema, one for each horizon; `design.json` says how they were "
            "made.\n- `truth/`: the hidden state by day and true risks. No model may read it.",
            "## Channels",
            _table(("channel", "unit", "description"), _channels(config)),
            "## Codes",
            _table(("code", "events", "people", "description"), _codes(events)),
            "## Labels",
            _table(("task", "prediction times", "people", "positive"), _labels(root)),
            "\n".join(f"- {name.replace('_', ' ')}: {said}" for name, said in _design(root).items()),
            "## Limits",
            "Diseases, treatments and devices are caricatures with a few parameters each. Effects are larger, and "
            "missing data more regular, than in real cohorts. Times of day, weekdays and seasons of visits carry "
            "little meaning. There is no free text, and nobody changes hospital, country or unit system.",
        ]
    ) + "\n"  # fmt: skip


def _table(heads, rows):
    """A Markdown table."""
    lines = [heads, ("---",) * len(heads), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _counted(count):
    less = f"{count['dropped']:,}: {count['reason']}" if count["dropped"] else ""
    return count["step"], f"{count['n']:,}", less


def _channels(config):
    return wearable_process.channels(config).select("channel", "unit", "description").iter_rows()


def _codes(events):
    described = code_book.code_table().select("code", "description")
    found = events.group_by("code").agg(pl.len().alias("n"), pl.col("subject_id").n_unique().alias("people"))
    found = found.join(described, on="code", how="left").sort("n", "code", descending=[True, False])
    for code, n, people, description in found.iter_rows():
        yield f"`{code}`", f"{n:,}", f"{people:,}", description or ""


def _labels(root):
    for path in sorted((root / "labels").glob("*.parquet")):
        table = meds.read_labels(path)
        positive = int(table["boolean_value"].sum())
        yield path.stem, f"{table.height:,}", f"{table['subject_id'].n_unique():,}", f"{positive:,}"


def _design(root):
    found = files.read_json(root / "labels" / "design.json", {})
    return {name: found[name] for name in task_design.PARTS}
