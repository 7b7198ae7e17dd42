"""Tells of a report's data and making: title, name and period of the data, where they are from, date and version."""

import json
from datetime import date
from pathlib import Path

import polars as pl

from ehrwear_jax.runtime import software
from ehrwear_jax.stages.plan import Plan

SIMULATED = "Simulated cohort"
_FOLDERS = ("meds", "data")  # names of folders that say nothing of what is in them


def data_name(plan: Plan) -> str:
    """What the data are called: by metadata/dataset.json, else as their folder or the one above, or their source."""
    source = plan.config.data.source
    if source == "synthetic":
        return SIMULATED
    path = plan.meds_dir / "metadata" / "dataset.json"
    about = json.loads(path.read_text()) if path.is_file() else {}
    folder = plan.meds_dir.resolve()
    of_folder = folder.parent.name if folder.name.lower() in _FOLDERS else folder.name
    return str(about.get("dataset_name") or (source if plan.adapted else of_folder))


def title(plan: Plan) -> str:
    """The config's title; without one, and where it is of a simulation that these data are not, the data's name."""
    given = plan.config.report.title
    not_theirs = given.startswith(SIMULATED) and plan.config.data.source != "synthetic"
    return data_name(plan) if not given or not_theirs else given


def subtitle(plan: Plan, today: date) -> str:
    """One line: data, config, seeds, date and version."""
    config, commit = plan.config, software.commit()
    seeds = f"seed{'s' * (len(config.seeds) > 1)} {', '.join(map(str, config.seeds))}"
    version = f"ehrwear_jax {software.version()}" + (f", commit {commit}" if commit else "")
    return f"{data_name(plan)}; dataset {config.name}, {seeds}; made on {today:%Y-%m-%d} with {version}"


def facts(plan: Plan, today: date) -> dict[str, str]:
    """{what: text} on the data and the making of a report."""
    data, inputs = plan.config.data, {}
    if plan.adapted:
        inputs[f"made from source {data.source}"] = data.source_dir
    else:
        inputs = {"MEDS": data.meds_dir, "wearable": data.wearable_dir, "labels": data.labels_dir}
    names = {what: Path(path).name for what, path in inputs.items() if path}
    identity = plan.raw_identity
    digests = [f"{k} {v[:12]}" for k, v in identity.items() if isinstance(v, str) and k != "source"]
    told = [f"{what} ({name})" for what, name in names.items()] or [f"source {data.source}"]
    return {
        "data": data_name(plan),
        "data period": period(plan),
        "provenance": "; ".join([*told, *digests]),
        "made on": f"{today:%Y-%m-%d}",
        "ehrwear_jax": software.version(),
        "commit": software.commit() or "not known: an installed package",
    }


def period(plan: Plan) -> str:
    """The first and the last year in which enough people have an event to be told of, and whether dates are shifted."""
    is_timed = pl.col("time").is_not_null() & ~pl.col("code").str.starts_with("MEDS_BIRTH")
    limit, counts = max(plan.config.evaluate.min_per_class, 1), dict[int, int]()
    for path in sorted((plan.tables.folder / "events").glob("*.parquet")):
        by_year = (
            pl.scan_parquet(path)
            .filter(is_timed)
            .group_by(pl.col("time").dt.year().alias("year"))
            .agg(pl.col("subject_id").n_unique())
        )
        for year, people in by_year.collect().iter_rows():
            counts[year] = counts.get(year, 0) + people
    years = sorted(year for year, people in counts.items() if people >= limit)
    if not years:
        return f"no year in which {limit} people have an event"
    shifted = ", of dates that were shifted" if plan.config.prepare.shift_days else ""
    return f"{years[0]} to {years[-1]}{shifted} (years in which at least {limit} people have an event)"
