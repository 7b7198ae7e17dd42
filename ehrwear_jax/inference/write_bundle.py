"""Writes a trained network of a run as a bundle (bundle_files.py)."""

import dataclasses
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrwear_jax.config import options
from ehrwear_jax.data.formats import wearable
from ehrwear_jax.data.formats.parquet import write_frame, write_json
from ehrwear_jax.data.prepare import specs
from ehrwear_jax.data.store import FAMILY_FACTS, RANGES, RecordStore
from ehrwear_jax.evals.cox import CoxModel
from ehrwear_jax.evals.trained_probes import TrainedProbe
from ehrwear_jax.inference import bundle_files, model_card, stored_probes
from ehrwear_jax.inference.stored_probes import StoredProbe
from ehrwear_jax.runtime import files, software
from ehrwear_jax.stages import embed, evaluate_fit, predictors, tasks
from ehrwear_jax.stages.plan import Plan, Trained
from ehrwear_jax.stages.tasks import BINARY, SURVIVAL, Task
from ehrwear_jax.stages.workdir import Workdir
from ehrwear_jax.training import embedding

# Options of prepare that are about the data set it was, or hold a secret or a path.
_NOT_KEPT = ("pseudonymise", "shift_days", "shift_whole_weeks", "key_file", "extraction_date", "mapping_files",
             "ranges_file", "ranges_codes", "ranges_usual_units", "scheduler", "workers")  # fmt: skip
_MOST_DIFFERENT = 1e-6  # of stored predictions from those of the run
MOST_DIFFERENT_CURVE = 0.02  # with competing events, see stored_probes.py


def chosen(plan: Plan, model: str = "", seed: int | None = None, fold: str = "") -> Trained:
    """The network of a run that is meant: of the reference model, the first seed and fold where nothing is said.

    Raises:
      ValueError: the run's config has no such network.
    """
    config = plan.config
    reference = config.evaluate.reference_model
    name = model or (reference if reference in config.networks else next(iter(config.networks), ""))
    folds = [name for name, _ in config.folds]
    for what, value, there in (("model", name, config.networks), ("seed", seed, config.seeds), ("fold", fold, folds)):
        if value not in (None, "") and value not in there:
            raise ValueError(f"the run has no {what} {value!r}; it has {', '.join(map(str, there))}")
    if not name:
        raise ValueError("the run has no network")
    return Trained(name, fold or folds[0], config.seeds[0] if seed is None else seed)


def open_run(folder: Path) -> Plan:
    """The plan of a run by its folder, as it last ran.

    Raises:
      FileNotFoundError: it is no folder of a run.
    """
    workdir = Workdir(folder)
    if not workdir.config.exists():
        raise FileNotFoundError(f"{folder}: neither a bundle (no bundle.json) nor a run (no config.json)")
    return Plan(workdir.read_config(), workdir)


def write(plan: Plan, trained: Trained, destination: Path, half: bool = False) -> Path:
    """Writes a bundle of a network; returns its folder.

    Without embeddings of all prediction times it has no probes, which is logged.

    Args:
      destination: a folder that is not there yet. half: weights as float16.

    Raises:
      FileExistsError: the destination is there. FileNotFoundError: the network is not trained.
      ValueError: a stored probe predicts otherwise than the run.
    """
    destination = Path(destination)
    if destination.exists():
        raise FileExistsError(f"{destination}: is there already; a bundle is written into a folder of its own")
    if not plan.pretrained(trained).done:
        raise FileNotFoundError(f"{plan.workdir.root}: {trained.key} is not trained to its end")
    partial = destination.with_name(destination.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    variables, step = embedding.read_variables(plan.pretrained(trained).folder, plan.model(trained))
    bundle_files.write_arrays(partial / bundle_files.WEIGHTS, variables, half)
    store = plan.store(trained.fold)
    _write_fit(plan, trained, store, partial)
    probes = _write_probes(plan, trained, partial)
    about = _about(plan, trained, store, step) | {"half_precision": half}
    about["mapping_files"] = _copy_mappings(plan.config.prepare.mapping_files, partial)
    write_json(about, partial / bundle_files.ABOUT)
    card = model_card.of_run(plan, trained, about, probes)
    write_json(card, partial / bundle_files.CARD)
    files.write_text(partial / bundle_files.CARD_TEXT, model_card.as_markdown(card))
    bundle_files.seal(partial)
    partial.rename(destination)
    return destination


def _about(plan, trained, store, step) -> dict[str, Any]:
    model, prepare = plan.model(trained), specs.resolved(plan.config.prepare, plan.tables.folder)
    kept = {k: v for k, v in options.as_dict(prepare).items() if k not in _NOT_KEPT}
    return {
        "format": bundle_files.FORMAT,
        "written_by": software.version(),
        "model": {
            "name": model.name,
            "family": model.family,
            "seed": model.seed,
            "config": options.as_dict(model.config),
        },
        "fold": trained.fold,
        "step": step,
        "modalities": sorted(plan.modalities(trained.name)),
        "prepare": kept,
        "channels": _channels(plan),
        "rates": _rates(plan),
        "batch_size": plan.config.embed.batch_size,
        "n_codes": store.code_statistics["alias"].drop_nulls().n_unique(),
        "values_of_few": _values_of_few(store),
        "identity": plan.pretrained(trained).digest,
    }


def _values_of_few(store):
    """Codes whose quantiles are of values of fewer people than a code needs: it is frequent by what it stands for."""
    own = store.code_statistics.filter(pl.col("alias") == pl.col("code_id"))
    used = own.filter(pl.col("n_values") >= max(store.min_values, 1))
    return used.filter(pl.col("subjects") < store.min_subjects)["code"].to_list()


def _channels(plan):
    """[{channel, unit, valid_min, valid_max}] of the wearable tables that the run read."""
    if plan.wearable_dir is None or not plan.config.prepare.channels:
        return []
    table = wearable.read_channels(plan.wearable_dir)
    return table.select("channel", "unit", "valid_min", "valid_max").to_dicts()


def _rates(plan):
    """{channel: (lowest, highest) Hz} of the recordings that the run read."""
    return wearable.rates(plan.wearable_dir) if _channels(plan) else {}


def _copy_mappings(paths: Sequence[str], folder: Path) -> list[str]:
    names = [f"mapping-{i}{Path(path).suffix}" for i, path in enumerate(paths)]
    for path, name in zip(paths, names, strict=True):
        shutil.copyfile(path, folder / name)
    return names


# ----------------------------------------------------------------------------------------------------------- the fit


def _write_fit(plan, trained, store: RecordStore, folder: Path) -> None:
    """The code table and what was fitted, without what is rare."""
    codes, statistics, new_id = frequent_codes(store)
    texts, of_text = _frequent_texts(store, new_id)
    fit = plan.fit(trained.fold).folder
    for name, table in (
        ("codes", codes),
        ("code_statistics", statistics),
        ("texts", texts),
        ("text_statistics", of_text),
    ):
        write_frame(table, folder / f"{name}.parquet")
    shutil.copyfile(fit / "signal_statistics.json", folder / "signal_statistics.json")
    meta = json.loads((fit / "meta.json").read_text()) | {"cutoff": None, "train_days": store.train_days}
    write_json(meta, folder / bundle_files.FIT)
    if (fit / RANGES).exists():
        ranges = pl.read_parquet(fit / RANGES).filter(pl.col("code_id").is_in(list(new_id)))
        renamed = pl.col("code_id").replace_strict(new_id, return_dtype=pl.Int32)
        write_frame(ranges.with_columns(renamed), folder / RANGES)
    model = plan.model(trained)
    examples = model.module.examples(store.view(None), model.config, model.seed, train=False)
    if facts := examples.family_facts():
        write_json(facts, folder / FAMILY_FACTS)
    decided = pl.read_parquet(plan.tables.folder / "date_only.parquet")
    enough = decided.filter(pl.col("n") >= plan.config.prepare.date_only_min_events)
    write_frame(enough.select("code", "date_only"), folder / bundle_files.DATE_ONLY)


def frequent_codes(store: RecordStore) -> tuple[pl.DataFrame, pl.DataFrame, dict[int, int]]:
    """(codes, code statistics, {code_id: new one}) of the codes that stand for themselves, as they are in a bundle.

    What rarer codes add to the count of the one that stands for them is in its count. Values of codes that have too few
    to be used are not told.
    """
    statistics = store.code_statistics
    total = dict(statistics.drop_nulls("alias").group_by("alias").agg(pl.col("count").sum()).iter_rows())
    own = statistics.filter(pl.col("alias") == pl.col("code_id"))
    new_id = {old: new for new, old in enumerate(own["code_id"].to_list())}
    ids = pl.Series("code_id", range(own.height), pl.Int32)
    values = ("mean", "std", "quantile", "up_to", "range_cut", "range_up_to")
    used = pl.col("n_values") >= max(store.min_values, 1)
    kept = own.with_columns(
        pl.col("code_id").replace_strict(total, return_dtype=pl.Int64).alias("count"),
        *(pl.when(used).then(name).alias(name) for name in values),
        code_id=ids,
        alias=ids,
    )
    codes = store.codes.filter(pl.col("code_id").is_in(list(new_id))).with_columns(code_id=ids)
    return codes, kept, new_id


def _frequent_texts(store, new_id):
    """(texts, their statistics) that are tokens, with new ids of codes and texts."""
    least = max(store.min_subjects, store.min_text_subjects, 1)
    both = store.texts.join(store.text_statistics, on="text_id", maintain_order="left")
    both = both.filter((pl.col("subjects") >= least) & pl.col("code_id").is_in(list(new_id)))
    both = both.with_columns(
        text_id=pl.Series(range(both.height), dtype=pl.Int32),
        code_id=pl.col("code_id").replace_strict(new_id, return_dtype=pl.Int32),
    )
    return both.select(store.texts.columns), both.select(store.text_statistics.columns)


# ------------------------------------------------------------------------------------------------------------- probes


def _write_probes(plan, trained, folder) -> dict[str, StoredProbe]:
    """The probes of all tasks; {} where the network is not embedded at their prediction times."""
    times = embed.prediction_times(plan, trained.fold)
    found = embed.Embeddings(plan.embeddings(trained))
    probes: dict[str, StoredProbe] = {}
    if not times.height or found.lacking(times).height:
        logging.warning("%s is not embedded at all prediction times: the bundle has no probes", trained.key)
    else:
        z_NxD = found.read(times.filter(pl.col("split") == "train")).astype(np.float64)
        spread = {"mean": np.nanmean(z_NxD, axis=0), "std": np.nanstd(z_NxD, axis=0)}
        bundle_files.write_arrays(folder / bundle_files.LATENTS, spread)
        probes = {task.name: probe_of(plan, trained, task) for task in tasks.evaluated(plan)}
    stored = {name: stored_probes.to_arrays(probe) for name, probe in probes.items()}
    arrays = {str(i): arrays for i, (arrays, _) in enumerate(stored.values())}
    bundle_files.write_arrays(folder / bundle_files.PROBES, arrays)
    write_json([{"task": name} | about for name, (_, about) in stored.items()], folder / bundle_files.PROBES_ABOUT)
    return probes


def probe_of(plan: Plan, trained: Trained, task: Task) -> StoredProbe:
    """The probe of a task, fitted as the evaluate stage fits it.

    Raises:
      ValueError: its predictions are not those of the run, where these are there.
    """
    fold = next(f for f in task.folds if f.name == trained.fold)
    x, target = predictors.latents(plan, trained.name, trained.seed)(fold), fold.target
    model = evaluate_fit.probe_model(plan.config.evaluate, task.kind, x, target)
    competing = evaluate_fit.competing_model(x, target, fold.competing) if task.kind == SURVIVAL else None
    probe = StoredProbe(task.kind, model, competing, task.times_T, task.horizons)
    if task.kind == BINARY:
        probe = dataclasses.replace(
            probe, calibration=stored_probes.calibrate(target["tuning"], probe.score(x["tuning"]))
        )
    if task.kind == SURVIVAL:
        probe = on_grid(probe)
    _require_alike(plan, trained, task, probe, x["held_out"])
    return probe


def on_grid(probe: StoredProbe) -> StoredProbe:
    """A survival probe whose baseline hazards are those at its times_T alone."""
    model, times_T = probe.model, probe.times_T
    if isinstance(model, TrainedProbe):
        at = [np.append(0.0, hazard)[np.searchsorted(t, times_T, "right")] for t, hazard in model.baselines]
        kept: stored_probes.Probe = dataclasses.replace(model, baselines=tuple((times_T, hazard) for hazard in at))
    else:
        assert isinstance(model, CoxModel), "what predicts a time-to-event task"
        kept = stored_probes.on_grid(model, times_T)
    other = None if probe.competing is None else stored_probes.on_grid(probe.competing, times_T)
    return dataclasses.replace(probe, model=kept, competing=other)


def _require_alike(plan, trained, task, probe, z_NxD):
    """Compares the probe's predictions with those of the run."""
    if len(task.folds) > 1:
        return  # whose predictions are of all folds
    of_run = [p for p in predictors.predictors(plan, task) if (p.name, p.seed) == (trained.name, trained.seed)]
    artifact = predictors.predictions_artifact(plan, task, of_run[0])
    if not artifact.done:
        return
    with np.load(artifact.folder / predictors.PREDICTIONS) as there:
        apart = [(np.abs(there["held_out"] - probe.score(z_NxD)).max(initial=0.0), _MOST_DIFFERENT)]
        if task.kind == SURVIVAL and len(task.times_T):
            limit = _MOST_DIFFERENT if probe.competing is None else MOST_DIFFERENT_CURVE
            apart.append((np.abs(there["curve_NxT"] - probe.event_free(z_NxD)).max(initial=0.0), limit))
    if wrong := [a for a, limit in apart if a > limit]:
        raise ValueError(f"{task.name}: the stored probe predicts otherwise than the run, by {wrong[0]:.2g}")
