"""Simulates a cohort with linked EHR and wearables, in the raw formats that real data come in.

One latent health process per person (latent_process.py) generates an EHR (ehr_process.py) and wearable
recordings (wearable_process.py). Beside the raw data it writes `truth/`, read by evaluation only: the
latent path and the true risk of an admission given the latent state, an upper bound for every model.
It is a positive control for models of both modalities: of the two components of the state the EHR measures one and
wearables the other (with a share of the first, config.shared); what wearables show means a higher risk in people with
heart disease, which the EHR alone knows, and little or nothing in others (config.complementary, config.interaction);
a beta-blocker, known to the EHR alone, hides it from whoever reads the heart rate alone; a shock raises the heart rate
for weeks, in which an admission is likely, or passes. Predictions are made during wear (schedule.py). bounds.py prints
what each observer could know at best.

Random numbers are a function of (seed, subject_id, purpose), so neither sharding nor the number of
workers changes a byte of the data. A shard is written whole or not at all, and not written again. A worker holds one
shard: its memory depends on subjects_per_shard and wear_days (0.45 GB for 25 people with 180 days), not on the cohort.
"""

import dataclasses
import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from tqdm import tqdm

from ehrwear_jax.config.data import SimulateConfig
from ehrwear_jax.data.formats import meds, parquet, wearable
from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.data.labels import outcomes
from ehrwear_jax.data.sources.simulator import (
    admission_risk,
    code_book,
    ehr_process,
    latent_process,
    schedule,
    truth,
    wearable_process,
)
from ehrwear_jax.data.sources.simulator.people import (
    AGE_YEARS,
    Person,
    draw_person,
    draw_splits,
    generators,
    observed_days,
)
from ehrwear_jax.data.sources.simulator.truth import LATENT_TYPES, RISK_FILE, SUBJECT_TYPES
from ehrwear_jax.runtime import files


def health_process(config: SimulateConfig) -> latent_process.HealthProcess:
    """The process that a person's health follows."""
    main, differing = config.complementary, config.interaction
    return latent_process.HealthProcess(
        admission_per_year=config.admission_per_year,
        wearable_gain=(main - differing, main + differing),
        shock_gain=(main, main + differing),
    )


# --------------------------------------------------------------------------------------- shards
def _shard_paths(root: Path, split: str, shard: int) -> dict[str, Path]:
    name = f"{shard:04d}.parquet"
    return {
        "meds": root / "meds" / "data" / split / name,
        "wearable": root / "wearable" / split / name,
        "latent": root / "truth" / "latent" / split / name,
        "subjects": root / "truth" / "subjects" / split / name,
        "counts": root / "truth" / "counts" / split / f"{shard:04d}.json",  # written last: done
    }


def _write_shard(root: Path, config: SimulateConfig, split: str, shard: int, ids: list[int]) -> int:
    """Simulates and writes one shard; returns the number of people."""
    files = _shard_paths(root, split, shard)
    rngs = [list(generators(config.seed, subject_id)) for subject_id in ids]
    people = [draw_person(r[0], subject_id, config) for r, subject_id in zip(rngs, ids, strict=True)]
    paths = latent_paths(people, [r[1] for r in rngs], config)
    events, rows, latent, subjects = [], [], [], []
    for k, person in enumerate(people):
        path = paths.person(k)
        time, code, value = ehr_process.person_events(rngs[k][2], person, path, config)
        events.append((np.full(len(time), person.subject_id), time, code, value))
        mine = []
        if rngs[k][3].random() < config.wearable_subjects_fraction:
            stretches = schedule.draw_stretches(rngs[k][4], person, config)
            mine = wearable_process.person_recordings(rngs[k][3], person, path, stretches, config)
        rows += mine
        latent.append(_latent_rows(person, path))
        first_wear = min((row[1] for row in mine), default=None)
        scheduled_end = person.start_us + person.end_day * DAY_US
        subjects.append((person.subject_id, person.start_us, scheduled_end, first_wear))

    event_table = _event_table(events)
    if rows:
        wearable.write_shard(files["wearable"], _recording_table(rows), wearable_process.channels(config))
    latent_table = pl.DataFrame(
        [np.concatenate(column) for column in zip(*latent, strict=True)], schema=list(LATENT_TYPES)
    ).with_columns(pl.col("time").cast(pl.Datetime("us")))
    parquet.write_parquet(files["latent"], latent_table, LATENT_TYPES)
    subject_table = pl.DataFrame(subjects, schema=dict.fromkeys(SUBJECT_TYPES, pl.Int64), orient="row").with_columns(
        pl.exclude("subject_id").cast(pl.Datetime("us"))
    )
    parquet.write_parquet(files["subjects"], subject_table, SUBJECT_TYPES)
    meds.write_shard(files["meds"], event_table)
    _write_json(files["counts"], _shard_counts(people, event_table, rows))
    return len(ids)


def latent_paths(
    people: list[Person], rngs: list[np.random.Generator], config: SimulateConfig
) -> latent_process.Paths:
    """The latent paths of people over the longest observation."""
    process = health_process(config)
    noise = [latent_process.draw_noise(rng, observed_days(config)) for rng in rngs]
    age_N, male_N = np.array([p.age_years for p in people]), np.array([p.male for p in people])
    normal_NxDx2, uniform_NxDx5 = (np.stack(part) for part in zip(*noise, strict=True))
    offset_N = np.asarray(process.offset(age_N, male_N))
    disease_N = np.array([p.heart_disease for p in people])
    return latent_process.simulate_paths(process, offset_N, disease_N, normal_NxDx2, uniform_NxDx5)


def _latent_rows(person: Person, path: latent_process.PersonPath) -> tuple[np.ndarray, ...]:
    """Columns of LATENT_TYPES for the days lived and observed."""
    lived = int(path.alive_D[: person.end_day].sum())
    before = (path.offset_D, path.ehr_D, path.wearable_D, path.shock_D)
    time_us_D = person.start_us + np.arange(lived) * DAY_US
    disease_D = np.full(lived, person.heart_disease)
    constant = np.full(lived, person.subject_id)
    return (constant, time_us_D, *(x_D[:lived] for x_D in before), disease_D, path.in_hospital_D[:lived])


def _event_table(events: list[tuple]) -> pl.DataFrame:
    subject, time, code, value = (np.concatenate(column) for column in zip(*events, strict=True))
    return pl.DataFrame(
        {
            "subject_id": subject,
            "time": pl.Series(time).replace(ehr_process.STATIC_US, None).cast(pl.Datetime("us")),
            "code": pl.Series(ehr_process.CODES)[code.astype(np.int64)],
            "numeric_value": pl.Series(value).fill_nan(None),
        }
    )


def _recording_table(rows: list[tuple]) -> pl.DataFrame:
    subject, start, rate, channel, values, unit, device = zip(*rows, strict=True)
    offsets = np.concatenate([[0], np.cumsum([len(v) for v in values])])
    lists = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(values)))
    return pl.DataFrame(
        {
            "subject_id": subject,
            "start_time": pl.Series(start).cast(pl.Datetime("us")),
            "sample_rate_hz": rate,
            "channel": channel,
            "values": pl.from_arrow(lists),
            "unit": unit,
            "device": device,
        }
    )


def _shard_counts(people: list[Person], event_table: pl.DataFrame, rows: list[tuple]) -> dict[str, int]:
    code = event_table["code"]
    return {
        "people": len(people),
        "people with a wearable": len({row[0] for row in rows}),
        "people with raw PPG": len({row[0] for row in rows if row[3] == "ppg"}),
        "events": len(event_table),
        "visits": int((code == code_book.VISIT_CODE).sum()),
        "admissions": int((code == code_book.ADMISSION_CODE).sum()),
        "deaths": int((code == meds.DEATH_CODE).sum()),
        "minutes of wearable record": sum(len(r[4]) for r in rows if r[3] == "heart_rate"),
    }


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, json.dumps(content, indent=2) + "\n")


# --------------------------------------------------------------------------------------- cohort
def simulate(root: Path, config: SimulateConfig, *, workers: int = 1, progress: bool = True) -> list[dict]:
    """Writes the cohort: raw data, label tables, truth/ and counts.json. Resumes what was cut off.

    Args:
      root: dataset root; meds/, wearable/, labels/ and truth/ are written below it.
      config: what to simulate.
      workers: processes; changes nothing but the time it takes.
      progress: show progress with rate and time left.

    Returns:
      The content of counts.json: a list of {"step", "n", "dropped", "reason"}.

    Raises:
      ValueError: `root` holds a cohort simulated with another config.
    """
    root = Path(root)
    _claim(root, config)
    splits = draw_splits(config)
    meds.write_metadata(root / "meds", meds.Metadata("ehrwear_simulated", "1", code_book.code_table(), splits))
    wearable.write_channels(root / "wearable", wearable_process.channels(config))
    table_path = root / "truth" / RISK_FILE
    if not table_path.exists():
        table = admission_risk.solve_risk(health_process(config), config.horizons_days, offset_range(config))
        table.save(table_path)

    jobs = []
    for split in meds.SPLITS:
        ids = splits.filter(pl.col("split") == split)["subject_id"].to_list()
        for shard, start in enumerate(range(0, len(ids), config.subjects_per_shard)):
            jobs.append((split, shard, ids[start : start + config.subjects_per_shard]))
    todo = [job for job in jobs if not _shard_paths(root, *job[:2])["counts"].exists()]
    n_done = config.n_subjects - sum(len(ids) for _, _, ids in todo)
    with tqdm(
        total=config.n_subjects, initial=n_done, desc="simulate", unit="person",
        disable=None if progress else True,
    ) as bar:  # fmt: skip
        for n in _run(root, config, todo, min(workers, len(todo))):
            bar.update(n)
    counts = _counts(root, jobs) + _write_labels(root, config)
    _write_json(root / "counts.json", counts)
    return counts


def _claim(root: Path, config: SimulateConfig) -> None:
    """Binds the folder to one config, so that a resumed run cannot mix two cohorts."""
    path = root / "truth" / "simulator.json"
    mine = json.loads(json.dumps(dataclasses.asdict(config)))
    if path.exists():
        theirs = json.loads(path.read_text())
        differing = sorted(k for k in mine.keys() | theirs.keys() if mine.get(k) != theirs.get(k))
        if differing:
            raise ValueError(
                f"{root}: holds a cohort simulated with another {', '.join(differing)}; "
                "choose another folder or delete it"
            )
    elif (root / "meds").exists():
        raise ValueError(f"{root / 'meds'}: already exists and was not written by the simulator")
    else:
        _write_json(path, mine)


def offset_range(config: SimulateConfig) -> tuple[float, float]:
    process = health_process(config)
    oldest = process.offset(AGE_YEARS[1] + config.years, True)
    return float(process.offset(AGE_YEARS[0], False)) - 0.1, float(oldest) + 0.1


def _run(root: Path, config: SimulateConfig, jobs: list[tuple], workers: int) -> Iterator[int]:
    if workers <= 1:
        for job in jobs:
            yield _write_shard(root, config, *job)
        return
    # spawn: forking a process whose libraries hold threads can deadlock
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = [pool.submit(_write_shard, root, config, *job) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _counts(root: Path, jobs: list[tuple]) -> list[dict]:
    total: dict[str, int] = {}
    for split, shard, _ in jobs:
        counts = json.loads(_shard_paths(root, split, shard)["counts"].read_text())
        for step, n in counts.items():
            total[step] = total.get(step, 0) + n
    without = {
        "people with a wearable": "no wearable, or no wear while observed and alive",
        "people with raw PPG": "no raw signal recorded",
    }
    return [
        {
            "step": step,
            "n": n,
            "dropped": total["people"] - n if step in without else 0,
            "reason": without.get(step, ""),
        }
        for step, n in total.items()
    ]


def _scheduled_times(config: SimulateConfig) -> pl.DataFrame:
    """subject_id, prediction_time of everybody, as drawn before anything happens."""
    rows: list[tuple[int, int]] = []
    for subject_id in range(1, config.n_subjects + 1):
        demographics, *_, calendar = generators(config.seed, subject_id)
        person = draw_person(demographics, subject_id, config)
        stretches = schedule.draw_stretches(calendar, person, config)
        for day in schedule.draw_prediction_days(calendar, person, stretches, config):
            rows.append((subject_id, person.start_us + day * DAY_US))
    drawn = pl.DataFrame(rows, schema={"subject_id": pl.Int64, "prediction_time": pl.Int64}, orient="row")
    return drawn.with_columns(pl.col("prediction_time").cast(pl.Datetime("us")))


def _write_labels(root: Path, config: SimulateConfig) -> list[dict]:
    """Label tables hospitalization_<h>d at the prediction times of schedule.py, less those dead or in hospital then.

    All leave the longest horizon observable up to the scheduled end, so that who is labelled does not depend on the
    outcome.
    """
    drawn = _scheduled_times(config)
    index = truth.outside_hospital(root / "truth", drawn)
    n_people = index["subject_id"].n_unique()
    counts = [
        {
            "step": "people with a prediction time",
            "n": n_people,
            "dropped": config.n_subjects - n_people,
            "reason": "observed for less than the history, the wear and the longest horizon, or dead by then",
        },
        {
            "step": "prediction times",
            "n": len(index),
            "dropped": len(drawn) - len(index),
            "reason": "dead or in hospital at a time that was drawn before",
        },
    ]
    times = outcomes.time_to_admission(root / "meds", index=index)
    for horizon in config.horizons_days:
        table = outcomes.within_horizon(times, horizon)
        meds.write_labels(root / "labels" / f"hospitalization_{horizon}d.parquet", table)
        counts.append(
            {
                "step": f"labels hospitalization_{horizon}d",
                "n": len(table),
                "dropped": len(index) - len(table),
                "reason": "censored before the horizon without an admission",
            }
        )
    parquet.write_json(_design(config), root / "labels" / "design.json")
    return counts


def _design(config: SimulateConfig) -> dict[str, str]:
    """How the labels were made, for the report; see data/labels/task_design.py."""
    return {
        "time_zero": f"Up to {config.predictions_per_subject} random midnights of each person inside stretches of wear "
        "as scheduled, drawn without regard to what follows, so that the longest horizon ends within the scheduled "
        "observation; people without a device get times the same way.",
        "eligibility": "Alive, observed and not in hospital at the prediction time, at least "
        f"{config.min_history_days} days after the start of observation.",
        "outcome": "The first hospital admission after it, within the days that the task's name says.",
        "follow_up": "From the prediction time to death or the end of the simulated observation.",
        "competing_events": "Death: a death before the admission is a negative label at every horizon.",
        "censoring": "None before the longest horizon, by the way in which prediction times are drawn.",
    }
