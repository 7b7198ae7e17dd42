"""Makes the label tables of groups of tasks from the events of a dataset: hospitalisation, death, first diagnoses.

The groups share their people, their follow-up and their prediction times. Each group is tables <group>_<days>d and
time_to_<group>, the steps that led to them with counts, and its design in plain words.
"""

import dataclasses
import functools
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import polars as pl

from ehrwear_jax.config.data import FOLLOWUP_END, PrepareConfig
from ehrwear_jax.config.labels import LabelsConfig
from ehrwear_jax.data.formats import meds, wearable
from ehrwear_jax.data.formats import parquet as parquet_lib
from ehrwear_jax.data.labels import episodes, followup, key_events, outcomes, task_design
from ehrwear_jax.data.labels.prediction_times import Sampling, draw
from ehrwear_jax.data.prepare import date_only, specs, workers

HOSPITALIZATION, DEATH = "hospitalization", "death"
ONSET = "onset_"


def rules(c: LabelsConfig) -> episodes.Rules:
    """How admissions become stays."""
    return episodes.Rules(
        c.admission_codes, c.discharge_codes, c.transfer_codes, c.stay_gap_hours, c.longest_stay_days
    )


@dataclasses.dataclass(frozen=True)
class Source:
    """What labels are made from.

    Attributes:
      meds_dir, wearable_dir: the dataset; None: no wearables.
      prepare: with the day of extraction. seed: of the prediction times.
    """

    meds_dir: Path
    wearable_dir: Path | None
    labels: LabelsConfig
    prepare: PrepareConfig
    seed: int

    @property
    def rules(self) -> episodes.Rules:
        """How admissions become stays."""
        return rules(self.labels)


@dataclasses.dataclass(frozen=True)
class Group:
    """The tables of a group of tasks.

    Attributes:
      tables: {task: label table}. steps: [{step, n, dropped, reason}]. design: see task_design.of.
    """

    tables: dict[str, pl.DataFrame]
    steps: list[dict]
    design: dict[str, str]


def make(source: Source, groups: Iterable[str], pool: workers.Pool | None = None) -> dict[str, Group]:
    """The tables of some groups: hospitalization, death, and onset_<name of a diagnosis group>.

    The shards are gone through twice, whatever the number of groups: for the calendar and for codes without times, and
    then, since both decide at what time an event counts, for the events that labels are made of. Memory: one shard a
    process, one row per person, and those events.

    Args:
      pool: goes through the shards; None: this process does.

    Raises:
      ValueError: a configured code prefix that no code of the dataset has; see followup.py.
    """
    groups, c, prepare = list(groups), source.labels, source.prepare
    bounds = specs.time_bounds(prepare)
    pool = pool or workers.Pool()
    look = functools.partial(_first_look, bounds=bounds, rows_per_piece=prepare.rows_per_piece)
    codes, days = zip(*pool.map(look, meds.list_shards(source.meds_dir), "label calendar"), strict=True)
    decided = date_only.decide(date_only.add_up(codes), prepare)
    _require_codes(decided["code"], c, groups)
    limits = followup.calendar(days, prepare.extraction_date, c.shifted_dates)
    reading = key_events.Reading(source.meds_dir, bounds, tuple(date_only.names(decided)), prepare.rows_per_piece)
    events = key_events.read(reading, _wanted(source, groups), limits.limit, pool)
    path = followup.find_table(c.followup_file, source.meds_dir)
    table = None if path is None else followup.read_table(path)
    people, steps = followup.follow_up(events, table, limits, c)
    _warn_of_guesses(people, c)
    stays, of_stays = outcomes.stays(events, source.rules)
    index, drawn = draw(
        followup.windows(people, limits, max(c.horizons_days), _sampling(source).history_us, _first_wear(source)),
        _sampling(source),
        stays,
    )
    steps += _index_steps(drawn, index, limits)
    shared = _Shared(source, events, people, stays, index, [*steps, *_stay_steps(of_stays, source.rules)])
    designs = {group: task_design.of(group, c, limits, people) for group in groups}
    return {group: Group(*shared.group(group), designs[group]) for group in groups}


def _first_look(path, bounds, rows_per_piece):
    """What the dataset is asked for before its events are read, of one shard."""
    return date_only.count(path, rows_per_piece), followup.person_days(path, bounds, rows_per_piece)


def _sampling(source):
    return Sampling(source.labels.per_subject, source.labels.min_history_days, source.seed)


def _wanted(source: Source, groups: list[str]) -> Mapping[str, pl.Expr]:
    """Which rows of the dataset are read."""
    c = source.labels
    wanted = outcomes.stay_rows(source.rules) | {
        "death": key_events.below(meds.DEATH_CODE),
        "followup_start": key_events.below(*c.followup_start_codes),
        "followup_end": key_events.below(*c.followup_end_codes),
    }
    onsets = [g for g in groups if g.startswith(ONSET)]
    return wanted | {g: key_events.beginning(c.diagnosis_groups[g.removeprefix(ONSET)]) for g in onsets}


def _require_codes(codes: pl.Series, c: LabelsConfig, groups: list[str]) -> None:
    """Every prefix of the config matches something."""
    below, beginning = key_events.below, key_events.beginning
    options: list[tuple[str, Sequence[str], str]] = [
        ("transfer_codes", c.transfer_codes, ""),
        ("followup_start_codes", c.followup_start_codes, ""),
        ("followup_end_codes", [p for p in c.followup_end_codes if p != FOLLOWUP_END], ""),  # of simulated data only
    ]
    if c.admission_codes:
        options += [
            ("admission_codes", c.admission_codes, "; set it to () where hospitalisation is not to be labelled"),
            ("discharge_codes", c.discharge_codes, "; set it to () where the dataset has no discharges"),
        ]
    for option, prefixes, instead in options:
        for prefix in prefixes:
            key_events.require_codes(codes, f"config.labels.{option}", below(prefix), [prefix], instead)
    for name in (g.removeprefix(ONSET) for g in groups if g.startswith(ONSET)):
        # a group may name codes of several vocabularies, of which a dataset has one
        prefixes = c.diagnosis_groups[name]
        key_events.require_codes(codes, f"config.labels.diagnosis_groups.{name}", beginning(prefixes), prefixes)


def _warn_of_guesses(people: pl.DataFrame, c: LabelsConfig) -> None:
    n = int((people["known"] == followup.GUESSED).sum())
    if n:
        guess = "last record" if c.followup == "last_record" else "day of extraction"
        logging.warning(
            "  nothing says until when %s of %s people were observed: their %s is taken. Give "
            "config.labels.followup_file (subject_id, start, end) or config.labels.followup_end_codes if it is known",
            f"{n:,}",
            f"{people.height:,}",
            guess,
        )


def _index_steps(drawn: dict[str, int], index: pl.DataFrame, limits: followup.Calendar) -> list[dict]:
    """What became of the prediction times."""
    until = "the end of their follow-up"
    if limits.limit is not None:
        until = f"the longest horizon before {limits.limit:%Y-%m-%d}"
    windows, lost = drawn["people with a window"], drawn["not followed"]
    of_limit = {
        "step": "person-days with a record up to the limit of the calendar",
        "n": limits.n_days - limits.n_after,
        "dropped": limits.n_after,
        "reason": f"after {limits.limit:%Y-%m-%d} ({limits.how}): nobody is observed for their having one"
        if limits.limit is not None
        else "",
    }
    return [
        *([of_limit] if limits.limit is not None else []),
        {
            "step": "people with days to draw prediction times from",
            "n": windows,
            "dropped": drawn["people"] - windows,
            "reason": f"no midnight with enough history, and wear, up to {until} ({limits.how})",
        },
        {
            "step": "prediction times",
            "n": index.height,
            "dropped": lost + drawn["inside a stay"],
            "reason": f"{lost:,} at which the person is dead or no longer followed, {drawn['inside a stay']:,} inside "
            f"a stay; {index['subject_id'].n_unique():,} people have one",
        },
    ]


def _stay_steps(n: dict[str, int], rules: episodes.Rules) -> list[dict]:
    """What became of admissions and discharges."""
    if not rules.admission or not n["stays"]:
        return []
    merged = f"during a stay or at most {rules.gap_hours:g} hours after one, or a transfer"
    found = [{"step": "admissions that begin a stay", "n": n["new"], "dropped": max(n["admissions"] - n["new"], 0),
              "reason": merged}]  # fmt: skip
    if rules.discharge:
        lost = f"no discharge within {rules.longest_days:g} days; {n['orphans']:,} discharges without a stay to close"
        found.append({"step": "stays with a discharge", "n": n["stays"] - n["open"], "dropped": n["open"],
                      "reason": lost})  # fmt: skip
    return found


@dataclasses.dataclass(frozen=True)
class _Shared:
    """What the groups share; see make."""

    source: Source
    events: key_events.KeyEvents
    people: pl.DataFrame
    stays: pl.DataFrame
    index: pl.DataFrame
    steps: list[dict]

    def group(self, group: str) -> tuple[dict[str, pl.DataFrame], list[dict]]:
        """(tables, steps) of a group."""
        c, steps, people = self.source.labels, list(self.steps), self.people
        if group == HOSPITALIZATION:
            event = outcomes.new_admissions(self.stays)
        elif group == DEATH:
            event = self.events.times["death"]
            people = people.with_columns(pl.lit(None, pl.Datetime("us")).alias("death"))
        else:
            event = self.events.times[group]
        steps += self._late_events(group, event)
        times = outcomes.next_event(self.index, event, people)
        if group.startswith(ONSET):
            times, step = _first_onsets(group, times, c.horizons_days)
            steps.append(step)
        competing = {"step": f"deaths before the event, time_to_{group}", "n": int(times["died"].sum()), "dropped": 0}
        if c.composite and group != DEATH:
            times = outcomes.composite(times)
            steps.append(competing | {"reason": "they count as the event: config.labels.composite"})
        elif group != DEATH:
            steps.append(competing | {"reason": "a competing event: negative at every horizon"})
        tables = {f"time_to_{group}": outcomes.survival_table(times)}
        steps.append(_rows(f"time_to_{group}", times, times, ""))
        for horizon in c.horizons_days:
            table = tables[f"{group}_{horizon}d"] = outcomes.within_horizon(times, horizon)
            positive = int(table["boolean_value"].sum())
            reason = f"follow-up ends inside the horizon without an event; {positive:,} positive"
            steps.append(_rows(f"{group}_{horizon}d", table, times, reason))
        return tables, steps

    def _late_events(self, group: str, event: pl.DataFrame) -> list[dict]:
        """Events that do not count: after death, or after the end of follow-up."""
        if group == DEATH:
            return []
        joined = event.join(self.people.select("subject_id", "end", "death"), on="subject_id")
        dead, late = (int((joined["time"] > joined[name]).sum() or 0) for name in ("death", "end"))
        n_late = int(joined.select((pl.col("time") > pl.min_horizontal("death", "end")).sum()).item())
        return [
            {
                "step": f"events of {group} up to the end of follow-up",
                "n": joined.height - n_late,
                "dropped": n_late,
                "reason": f"{dead:,} after death, {late:,} after the end of follow-up",
            }
        ]


def _first_onsets(group: str, times: pl.DataFrame, horizons: Iterable[float]) -> tuple[pl.DataFrame, dict]:
    """(the rows at risk, the step): rows of people who had the diagnosis before are repetitions, not onsets."""
    again = times.filter("before")
    n_again = int((again["event_observed"] & (again["time_to_event_days"] <= max(horizons))).sum())
    first = times.filter(~pl.col("before"))
    reason = f"a diagnosis of the group came first; {n_again:,} of them have it again within {max(horizons):g} days"
    step = {"step": f"prediction times at risk of a first {group.removeprefix(ONSET)}", "n": first.height,
            "dropped": again.height, "reason": reason}  # fmt: skip
    return first, step


def _rows(name, table, index, reason):
    return {"step": f"label rows {name}", "n": table.height, "dropped": index.height - table.height, "reason": reason}


def _first_wear(source: Source) -> pl.DataFrame | None:
    """subject_id, time: the day after the first recorded stretch; None where it does not matter."""
    if source.wearable_dir is None or not source.labels.after_wearable:
        return None
    bounds, firsts = specs.time_bounds(source.prepare), []
    schema: parquet_lib.Schema = {"subject_id": pl.Int64, "start_time": pl.Datetime("us")}
    for path in wearable.list_shards(source.wearable_dir):
        table = parquet_lib.normalise(parquet_lib.read_parquet(path, list(schema)), schema, path)
        table = table.filter(pl.col("start_time").is_between(bounds.first, bounds.end, closed="left"))
        firsts.append(table.group_by("subject_id").agg(pl.col("start_time").min().alias("time")))
    first = pl.concat(firsts).drop_nulls().group_by("subject_id").agg(pl.col("time").min())
    return first.with_columns(pl.col("time") + pl.duration(days=1)).sort("subject_id")
