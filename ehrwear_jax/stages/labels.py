"""Makes label tables where the user gives none, and finds the table of each task."""

import dataclasses
import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import polars as pl

from ehrwear_jax.config import options
from ehrwear_jax.config.data import DATE_ONLY_OPTIONS, LABELLED_FROM_EVENTS, PrepareConfig
from ehrwear_jax.data.formats import label_tables, meds
from ehrwear_jax.data.labels import event_tasks, signal_outcomes, task_design
from ehrwear_jax.data.prepare import deidentify, specs, workers
from ehrwear_jax.runtime import files
from ehrwear_jax.stages import eligibility
from ehrwear_jax.stages.artifacts import Artifact
from ehrwear_jax.stages.plan import Plan

KINDS = ("boolean_value", "time_to_event_days", "float_value")
HOSPITALIZATION, PHYSIOLOGY = event_tasks.HOSPITALIZATION, "physiology"
COUNTS, DESIGN = "counts.json", "design.json"
_GIVEN = "given/"


class Labels:
    """The label tables of a run.

    Tables come from config.data.labels_dir, from the simulation or adapter, or are made here, a group of tasks at a
    time: hospitalisation, each diagnosis group, physiology. Where ids or dates are changed, user tables are copied with
    the changed ones.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan, self._config = plan, plan.config

    # ------------------------------------------------------------------------------------------------------- what is

    @property
    def makes_events(self) -> bool:
        """Whether all labels of events are made here."""
        return self._config.data.source in LABELLED_FROM_EVENTS and not self._config.data.labels_dir

    @property
    def _event_groups(self):
        """{group: its tables} of those that are made here from the events.

        A simulation labels hospitalisation itself, at the times of the true risks; what else is asked for is made here.
        """
        c, known = self._config.labels, [HOSPITALIZATION] if self._config.labels.admission_codes else []
        known += [event_tasks.DEATH] if c.death else []
        known += [f"{event_tasks.ONSET}{g}" for g in c.diagnosis_groups]
        tables = {g: [f"time_to_{g}", *(f"{g}_{h}d" for h in c.horizons_days)] for g in known}
        if self.makes_events:
            return tables
        if self._config.data.source != "synthetic" or self._config.data.labels_dir:
            return {}
        simulated = {f"{HOSPITALIZATION}_{h}d" for h in self._config.simulate.horizons_days}
        asked = set(self._config.evaluate.tasks) - simulated
        return {group: of for group, of in tables.items() if asked & set(of)}

    @functools.cached_property
    def groups(self) -> dict[str, Artifact]:
        """{group: the artifact that holds its tables} of those that are made here."""
        plan, c, found = self._plan, self._config.labels, {}
        bounds = {k: getattr(self._config.prepare, k) for k in ("first_date", "extraction_date")}
        people = {"raw": plan.raw_identity, "bounds": bounds, "seed": self._config.data.seed}
        people |= {"changed": plan.deidentifier.settings()} if plan.changes_people else {}
        drawn = people | self._of_events() if self._event_groups else {}
        for group in self._event_groups:
            own = group.removeprefix(event_tasks.ONSET)
            codes = {"codes": tuple(c.diagnosis_groups[own])} if group != own else {}
            found[group] = plan.artifact("labels", group, drawn | codes)
        if c.physiology.measures:
            found[PHYSIOLOGY] = plan.artifact("labels", PHYSIOLOGY, people | options.as_dict(c.physiology))
        if plan.changes_people and self._config.data.labels_dir:
            for task in label_tables.tasks(Path(self._config.data.labels_dir)):
                of = people | {"files": self.user_digest(task)}
                found[f"{_GIVEN}{task}"] = plan.artifact("labels", f"{_GIVEN}{task}", of)
        return found

    def _of_events(self):
        """What labels from the events depend on beside the dataset, its bounds and the seed."""
        # what belongs to groups of their own, and what counts by its content
        apart = ("diagnosis_groups", "physiology", "death", "followup_file")
        own = {k: v for k, v in options.as_dict(self._config.labels).items() if k not in apart}
        table = self._config.labels.followup_file
        own["followup_table"] = self._plan.inputs.of_files([table]) if table else ""
        return own | {k: getattr(self._config.prepare, k) for k in DATE_ONLY_OPTIONS}

    def user_digest(self, task: str) -> str:
        """Of the user's files of a task."""
        return self._plan.inputs.of_files(label_tables.task_files(Path(self._config.data.labels_dir), task))

    def folders(self) -> list[Path]:
        """Where tables are looked for, in this order."""
        plan, found = self._plan, []
        if self._config.data.labels_dir and not plan.changes_people:
            found.append(Path(self._config.data.labels_dir))
        if plan.adapted:
            found.append(plan.raw.folder / "labels")
        return found + [artifact.folder for artifact in self.groups.values()]

    def files(self, task: str) -> list[Path]:
        """The file or shards of a task, [] without any."""
        return next((f for folder in self.folders() if (f := label_tables.task_files(folder, task))), [])

    def digest(self, task: str) -> str:
        """What a task's labels are: the bytes of its table, wherever it comes from, and who is eligible."""
        judged = self.eligibility().get(task)
        return self._plan.inputs.of_files(self.files(task)) if judged is None else judged.digest

    def eligibility(self) -> dict[str, Artifact]:
        """{task: the artifact that says which of its prediction times are eligible}, {} without criteria."""
        if self._config.cohort.is_open:
            return {}
        found = self._config.evaluate.tasks
        return {t: eligibility.artifact(self._plan, t, self._plan.inputs.of_files(self.files(t))) for t in found}

    def table(self, task: str) -> pl.DataFrame:
        """The labels of a task's eligible prediction times, see `given`."""
        judged, table = self.eligibility().get(task), self.given(task)
        return table if judged is None else eligibility.of(judged.folder / eligibility.ELIGIBLE, table)

    def given(self, task: str) -> pl.DataFrame:
        """A task's labels: subject_id, prediction_time and its value column(s).

        Raises:
          FileNotFoundError: naming the tasks that there are.
          ValueError: a faulty table, or labels that are neither boolean nor float nor survival.
        """
        found = self.files(task)
        if not found:
            there = sorted({t for folder in self.folders() if folder.is_dir() for t in label_tables.tasks(folder)})
            raise FileNotFoundError(
                f"config.evaluate.tasks: no label table {task}.parquet; there are {', '.join(there) or 'none'}"
            )
        return _read(task, found)

    def sources(self, tasks: Iterable[str]) -> dict[str, list[list[str]]]:
        """{task: [files of its table, file of its eligible times or none]}, below the workdir: for `times_of`."""
        judged, root = self.eligibility(), self._plan.workdir.root
        found = {}
        for task in tasks:
            self.given(task)  # says what is wrong with it
            files_of = self.files(task), [judged[task].folder / eligibility.ELIGIBLE] if task in judged else []
            found[task] = [[os.path.relpath(path, root) for path in paths] for paths in files_of]
        return found

    def design(self, task: str) -> dict[str, str] | None:
        """How a task's labels were made, {time_zero, eligibility, outcome, follow_up, competing_events, censoring}: a
        sentence each. None for tables that somebody else made."""
        for folder in self.folders():
            if label_tables.task_files(folder, task):
                found = files.read_json(folder / DESIGN, {})
                # one design for all tasks of the folder, or one for each: {task or what it begins with: design}
                within = next((found[k] for k in sorted(found, reverse=True) if task.startswith(k)), found)
                told = within if within and all(isinstance(v, str) for v in within.values()) else None
                return told and told | eligibility.design(self._config.cohort, told)
        return None

    def prediction_times(self, tasks: tuple[str, ...]) -> pl.DataFrame:
        """All distinct (subject_id, prediction_time) of some tasks, sorted.

        Raises:
          ValueError: no task.
        """
        if not tasks:
            raise ValueError(
                "config.evaluate.tasks is empty: name at least one label table, or config.embed.times for z alone"
            )
        return _distinct(self.table(t) for t in tasks)

    def check(self) -> None:
        """Reads what the user gives, before anything is made.

        Raises:
          FileNotFoundError: a task that no table can be there for, or a table that is not there.
          ValueError: a table of the user's is faulty.
        """
        if times := self._config.embed.times:
            label_tables.read_times(times)
        table = self._config.labels.followup_file
        if table and not Path(table).is_file():
            raise FileNotFoundError(f"config.labels.followup_file: there is no table {table}")
        given = Path(self._config.data.labels_dir) if self._config.data.labels_dir else None
        simulated = [f"{HOSPITALIZATION}_{h}d" for h in self._config.simulate.horizons_days]
        for task in self._config.evaluate.tasks:
            is_simulated = self._config.data.source == "synthetic" and given is None
            if is_simulated and task not in (known := [*simulated, *self._made_tasks()]):
                raise FileNotFoundError(
                    f"config.evaluate.tasks: no label table {task}.parquet is made; there are {', '.join(known)}"
                )
            if given is not None and not label_tables.task_files(given, task) and task not in self._made_tasks():
                there = ", ".join(sorted({*label_tables.tasks(given), *self._made_tasks()})) or "none"
                raise FileNotFoundError(
                    f"config.evaluate.tasks: no label table {given / task}.parquet; there are {there}"
                )
            if given is not None and (found := label_tables.task_files(given, task)):
                _read(task, found)
            if self.makes_events and task not in self._made_tasks():
                there = ", ".join(self._made_tasks())
                raise FileNotFoundError(
                    f"config.evaluate.tasks: no label table {task}.parquet is made; there are {there}"
                )

    def _made_tasks(self):
        """Names of the tables that are made here."""
        of_events = [task for tables in self._event_groups.values() for task in tables]
        return sorted([*self._config.labels.physiology.tasks(), *of_events])

    # ------------------------------------------------------------------------------------------------------- making

    def make(self, prepare: PrepareConfig, pool: workers.Pool | None = None) -> None:
        """Makes the groups that are not there; those from the events together.

        Args:
          prepare: with the day of extraction. pool: goes through the shards; None: this process does.
        """
        c, plan = self._config, self._plan
        missing = {group: artifact for group, artifact in self.groups.items() if not artifact.done}
        of_events = [group for group in missing if group != PHYSIOLOGY and not group.startswith(_GIVEN)]
        source = event_tasks.Source(plan.meds_dir, plan.wearable_dir, c.labels, prepare, c.data.seed)
        made = event_tasks.make(source, of_events, pool) if of_events else {}
        for group, artifact in missing.items():
            with artifact.making() as folder:
                if group in made:
                    for task, table in made[group].tables.items():
                        _write(prepare, folder, task, table)
                    files.write_json(folder / DESIGN, made[group].design, indent=1)
                    steps = made[group].steps
                elif group == PHYSIOLOGY:
                    files.write_json(folder / DESIGN, task_design.of_physiology(c.labels.physiology), indent=1)
                    steps = self._physiology(folder, prepare)
                else:
                    steps = self._given(group.removeprefix(_GIVEN), folder, prepare)
                files.write_json(folder / COUNTS, steps, indent=1)

    def _given(self, task, folder, prepare):
        """A user's table with the changed ids and dates."""
        found = label_tables.task_files(Path(self._config.data.labels_dir), task)
        _write(prepare, folder, task, meds.read_labels(found))
        return []

    def _physiology(self, folder, prepare):
        """Tables <measure>_<days>d; see labels/signal_outcomes.py."""
        source = self._plan.wearable_dir
        if source is None:
            raise ValueError(
                "config.labels.physiology.measures needs wearable recordings: set config.data.wearable_dir"
            )
        made, index = signal_outcomes.label_wearables(
            source, self._config.labels.physiology, seed=self._config.data.seed, bounds=specs.time_bounds(prepare)
        )
        for name, table in made.items():
            _write(prepare, folder, name, table)
        return [_count(name, table, index, "too few usable days in the period") for name, table in made.items()]


def times_of(sources: Mapping[str, Sequence[Sequence[str]]], root: Path) -> pl.DataFrame:
    """Labels.prediction_times of the tasks of Labels.sources, without a look at what the labels were made from.

    Args:
      root: of the workdir.
    """
    found = []
    for task, (tables, judged) in sources.items():
        table = _read(task, [root / path for path in tables])
        found.append(eligibility.of(root / judged[0], table) if judged else table)
    return _distinct(found)


def _read(task, found):
    table = meds.read_labels(found)
    if table.columns[2] not in KINDS:
        raise ValueError(
            f"config.evaluate.tasks: {task} holds {table.columns[2]}; boolean, float and survival labels are evaluated"
        )
    return table


def _distinct(tables):
    keys = [table.select("subject_id", "prediction_time") for table in tables]
    return pl.concat(keys).unique().sort("subject_id", "prediction_time")


def with_extraction_date(prepare: PrepareConfig, meds_dir: Path) -> tuple[PrepareConfig, str]:
    """(the options with the day on which the data were taken from their source, how it is known)."""
    day, source = meds.extraction_date(meds_dir, prepare.extraction_date)
    return dataclasses.replace(prepare, extraction_date=day), source


def _write(prepare, folder, task, table):
    """Writes labels made from, or read with, the ids and dates of the source."""
    meds.write_labels(Path(folder) / f"{task}.parquet", deidentify.of(prepare).table(table))


def _count(name, table, index, reason):
    return {"step": f"label rows {name}", "n": table.height, "dropped": index.height - table.height, "reason": reason}
