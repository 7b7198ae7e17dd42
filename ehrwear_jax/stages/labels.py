"""Makes label tables where the user gives none, and finds the table of each task."""

import dataclasses
import functools
from pathlib import Path

import polars as pl

from ehrwear_jax.config import options
from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.data.formats import label_tables, meds, wearable
from ehrwear_jax.data.formats import parquet as parquet_lib
from ehrwear_jax.data.labels import outcomes, signal_outcomes
from ehrwear_jax.data.prepare import deidentify, specs
from ehrwear_jax.runtime import files
from ehrwear_jax.stages import eligibility
from ehrwear_jax.stages.artifacts import Artifact
from ehrwear_jax.stages.plan import Plan

KINDS = ("boolean_value", "time_to_event_days", "float_value")
HOSPITALIZATION, PHYSIOLOGY = "hospitalization", "physiology"
COUNTS = "counts.json"


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
        """Whether labels are made from the events."""
        return self._config.data.source == "meds" and not self._config.data.labels_dir

    @functools.cached_property
    def groups(self) -> dict[str, Artifact]:
        """{group: the artifact that holds its tables} of those that are made here."""
        plan, c, found = self._plan, self._config.labels, {}
        bounds = {k: getattr(self._config.prepare, k) for k in ("first_date", "extraction_date")}
        people = {"raw": plan.raw_identity, "bounds": bounds, "seed": self._config.data.seed}
        people |= {"changed": plan.deidentifier.settings()} if plan.changes_people else {}
        if self.makes_events:
            own = {k: v for k, v in options.as_dict(c).items() if k not in ("diagnosis_groups", "physiology")}
            drawn = people | own
            found[HOSPITALIZATION] = plan.artifact("labels", HOSPITALIZATION, drawn)
            for group, prefixes in c.diagnosis_groups.items():
                found[f"onset_{group}"] = plan.artifact("labels", f"onset_{group}", drawn | {"codes": tuple(prefixes)})
        if c.physiology.measures:
            found[PHYSIOLOGY] = plan.artifact("labels", PHYSIOLOGY, people | options.as_dict(c.physiology))
        if plan.changes_people and self._config.data.labels_dir:
            for task in label_tables.tasks(Path(self._config.data.labels_dir)):
                of = people | {"files": self.user_digest(task)}
                found[f"given/{task}"] = plan.artifact("labels", f"given/{task}", of)
        return found

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
        judged = self.eligibility().get(task)
        return self.given(task) if judged is None else eligibility.of(judged, self.given(task))

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
        table = meds.read_labels(found)
        if table.columns[2] not in KINDS:
            raise ValueError(
                f"config.evaluate.tasks: {task} holds {table.columns[2]}; boolean, float and survival labels are "
                "evaluated"
            )
        return table

    def prediction_times(self, tasks: tuple[str, ...]) -> pl.DataFrame:
        """All distinct (subject_id, prediction_time) of some tasks, sorted.

        Raises:
          ValueError: no task.
        """
        if not tasks:
            raise ValueError("config.evaluate.tasks is empty: name at least one label table")
        keys = [self.table(t).select("subject_id", "prediction_time") for t in tasks]
        return pl.concat(keys).unique().sort("subject_id", "prediction_time")

    def check(self) -> None:
        """Raises FileNotFoundError for a task that no table can be there for, before anything is made."""
        given = Path(self._config.data.labels_dir) if self._config.data.labels_dir else None
        for task in self._config.evaluate.tasks:
            if given is not None and not label_tables.task_files(given, task) and task not in self._made_tasks():
                there = ", ".join(sorted({*label_tables.tasks(given), *self._made_tasks()})) or "none"
                raise FileNotFoundError(
                    f"config.evaluate.tasks: no label table {given / task}.parquet; there are {there}"
                )
            if self.makes_events and task not in self._made_tasks():
                there = ", ".join(self._made_tasks())
                raise FileNotFoundError(
                    f"config.evaluate.tasks: no label table {task}.parquet is made; there are {there}"
                )

    def _made_tasks(self):
        """Names of the tables that are made here."""
        c, found = self._config.labels, list(self._config.labels.physiology.tasks())
        if self.makes_events:
            for group in (HOSPITALIZATION, *(f"onset_{g}" for g in c.diagnosis_groups)):
                found += [f"time_to_{group}"] if group != HOSPITALIZATION else []
                found += [f"{group}_{h}d" for h in c.horizons_days]
        return sorted(found)

    # ------------------------------------------------------------------------------------------------------- making

    def make(self, prepare: PrepareConfig) -> None:
        """Makes the groups that are not there.

        Args:
          prepare: with the day of extraction.
        """
        for group, artifact in self.groups.items():
            if not artifact.done:
                with artifact.making() as folder:
                    files.write_json(folder / COUNTS, self._make_group(group, folder, prepare), indent=1)

    def _make_group(self, group, folder, prepare):
        if group == PHYSIOLOGY:
            return self._physiology(folder, prepare)
        if group.startswith("given/"):
            task = group.removeprefix("given/")
            found = label_tables.task_files(Path(self._config.data.labels_dir), task)
            _write(prepare, folder, task, meds.read_labels(found))
            return []
        return self._outcomes(group, folder, prepare)

    def _outcomes(self, group, folder, prepare):
        """Tables <group>_<h>d and time_to_<group>, at random times of each person."""
        c, source, bounds = self._config.labels, self._plan.meds_dir, specs.time_bounds(prepare)
        index = self._index(source, bounds)
        counts = []
        if group == HOSPITALIZATION:
            prefix = c.admission_code_prefix
            times = outcomes.time_to_admission(source, index=index, admission_code_prefix=prefix, bounds=bounds)
        else:
            prefixes = tuple(c.diagnosis_groups[group.removeprefix("onset_")])
            times = outcomes.onset_times(source, code_prefixes=prefixes, index=index, bounds=bounds)
            survival = times.select(*meds.SURVIVAL_LABEL_SCHEMA)
            _write(prepare, folder, f"time_to_{group}", survival)
            counts.append(_count(f"time_to_{group}", survival, index, "a diagnosis of the group came first"))
        for horizon in c.horizons_days:
            table = outcomes.within_horizon(times, horizon)
            _write(prepare, folder, f"{group}_{horizon}d", table)
            reason = "follow-up ends inside the horizon without an event"
            counts.append(_count(f"{group}_{horizon}d", table, times, reason))
        return counts

    def _index(self, source, bounds):
        """The prediction times that the groups share."""
        c = self._config.labels
        return outcomes.prediction_times(
            source,
            outcomes.Sampling(c.per_subject, c.min_history_days, self._config.data.seed),
            not_before=_first_wear(self._plan.wearable_dir, bounds) if c.after_wearable else None,
            not_after=_last_observable(source, max(c.horizons_days), bounds),
            admission_code_prefix=c.admission_code_prefix,
            bounds=bounds,
        )

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


def with_extraction_date(prepare: PrepareConfig, meds_dir: Path) -> tuple[PrepareConfig, str]:
    """(the options with the day on which the data were taken from their source, how it is known)."""
    day, source = meds.extraction_date(meds_dir, prepare.extraction_date)
    return dataclasses.replace(prepare, extraction_date=day), source


def _write(prepare, folder, task, table):
    """Writes labels made from, or read with, the ids and dates of the source."""
    meds.write_labels(Path(folder) / f"{task}.parquet", deidentify.of(prepare).table(table))


def _count(name, table, index, reason):
    return {"step": f"label rows {name}", "n": table.height, "dropped": index.height - table.height, "reason": reason}


def _times(path, column, bounds):
    """(subject_id, time) of one file, those within the bounds."""
    schema: parquet_lib.Schema = {"subject_id": pl.Int64, column: pl.Datetime("us")}
    table = parquet_lib.read_parquet(path, list(schema))
    table = parquet_lib.normalise(table, schema, path).rename({column: "time"})
    return table.filter(pl.col("time").is_between(bounds.first, bounds.end, closed="left"))


def _first_wear(folder, bounds):
    """subject_id, time: the day after the first recorded stretch; None without wearables."""
    if folder is None:
        return None
    firsts = [
        _times(p, "start_time", bounds).group_by("subject_id").agg(pl.col("time").min())
        for p in wearable.list_shards(folder)
    ]
    first = pl.concat(firsts).drop_nulls().group_by("subject_id").agg(pl.col("time").min())
    return first.with_columns(pl.col("time") + pl.duration(days=1)).sort("subject_id")


def _last_observable(meds_folder, horizon_days, bounds):
    """subject_id, time: the end of the whole dataset less the longest horizon, the same for everyone.

    Later prediction times could be labelled only if something happens soon, which would select rows by outcome. A
    person's own last record does not serve: it is their death for some.
    """
    lasts = [
        _times(p, "time", bounds).group_by("subject_id").agg(pl.col("time").max())
        for p in meds.list_shards(meds_folder)
    ]
    people = pl.concat(lasts).drop_nulls()
    last = pl.lit(people["time"].max(), pl.Datetime("us")) - pl.duration(days=horizon_days)
    return people.select("subject_id", last.alias("time")).unique("subject_id").sort("subject_id")
