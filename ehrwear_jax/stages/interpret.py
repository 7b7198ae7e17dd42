"""Interprets a run: robustness, geometry, retrieval, uncertainty, kernels, mechanisms and attribution.

Reads what pretrain and embed left, of the first fold, and writes below interpret/ (numbers are float or null):

  robustness.json   [{dataset, task, model, perturbation, metric (auroc, auprc), value, lo, hi, change, change_lo,
                    change_hi, change_p, n, n_positive, n_degenerate}]: held-out probe predictions from perturbed
                    records; `change` is against the perturbation "clean", paired.
  flags.parquet     subject_id, prediction_time, encounters, wear_days, sparse_ehr, short_wear, failure_group at the
                    held-out prediction times (data.perturbations.failure_flags).
  geometry.json     [{model, measure, slice, value, lo, hi, p_value, n}]: measure is mmd2_adjacent (30-day slice k
                    against k + 1; the last 30 days before the last prediction time are slice -1), mmd2_adjacent_mean
                    (over the slices, n of them), mmd2_class (outcome against none), effective_rank, lipschitz_per_day
                    (whitened, mean over people). Fields that do not apply are null.
  retrieval.json    [{source (latents or projections), direction, k, value, lo, hi, chance, n}]; empty without both
                    modalities.
  uncertainty.json  [{group (all, failure_group, others), measure (predictive_entropy, expected_entropy,
                    mutual_information; nats), value, lo, hi, n}] of Monte Carlo dropout.
  uncertainty.npz   p_SxN, y_N, probability_N (without dropout).
  kernels.json      {model: {half_life_days: [layer][head], null where beyond the grid}}
  kernels.npz       days_K, and <model>: K(d) / K(0), [layers, heads, K].
  mechanisms.json   see stages/interpret_people.py; so are people.json and people.npz.

Only flags.parquet, which stays in the workdir, identifies people or calendar dates.
"""

import json
import logging
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrwear_jax.config import model_options
from ehrwear_jax.data import perturbations
from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.evals import perturbed
from ehrwear_jax.evals.estimates import Resampling
from ehrwear_jax.interpret import attention, geometry, mechanisms, retrieval, uncertainty
from ehrwear_jax.stages import interpret_people
from ehrwear_jax.stages.loaded_run import LoadedRun, prediction_times
from ehrwear_jax.training import embedding

CLEAN = "clean"
KERNEL_DAYS = np.geomspace(1 / 24, 3652.5, 120)
GRID_DAYS = 10.0  # between the times whose movement is measured


def run(config: Any, workdir: str | os.PathLike) -> None:
    """Computes every part that is not there yet."""
    if not config.interpret.enabled:
        logging.info("  config.interpret.enabled is False: nothing is computed")
        return
    loaded, folder = LoadedRun(config, workdir), Path(workdir) / "interpret"
    for name, compute in PARTS.items():
        path = folder / f"{name}.json"
        if path.exists():
            continue
        found = compute(loaded, folder)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(_plain(found), indent=1, allow_nan=False))
        os.replace(partial, path)
        logging.info("  %s: %s", name, f"{len(found)} entries" if found else "nothing to compute")


def _plain(value):
    """JSON has neither NaN nor infinity, nor numpy's types."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(v) for v in value]
    if isinstance(value, (bool, np.bool_, str)) or value is None:
        return bool(value) if isinstance(value, np.bool_) else value
    if isinstance(value, (int, np.integer)):
        return int(value)
    return float(value) if math.isfinite(value) else None


# ------------------------------------------------------------------------------------------------------- robustness


def configured_perturbations(options: Any, seed: int, scales: Scales) -> dict[str, tuple[set[str], Callable]]:
    """{perturbation: (modalities that it changes, transform)}.

    Args:
      options: config.interpret.
      scales: of the channels.
    """
    both = {"ehr", "wear"}
    out = {f"last {days:g} days": (both, perturbations.truncate(days)) for days in options.histories_days}
    if len(scales.mean_C):
        drop, share = options.noise_db, options.missing_share
        out["no wearable"] = ({"wear"}, perturbations.drop_wear())
        out["no EHR"] = ({"ehr"}, perturbations.drop_ehr())
        out[f"SNR {drop:g} dB lower"] = ({"wear"}, perturbations.add_noise(drop, scales, seed=seed))
        out[f"SNR of {-drop:g} dB"] = ({"wear"}, perturbations.add_noise(drop, scales, mode="absolute", seed=seed))
        out[f"{share:.0%} of the signal missing"] = ({"wear"}, perturbations.missing_stretch(share, seed=seed))
    return out


def _robustness(loaded, folder):
    """Probes fitted on clean records, applied to perturbed records at the held-out prediction times."""
    if loaded.task is None:
        return []
    held, options, records = loaded.held, loaded.config.interpret, loaded.store
    position = dict(zip(records.index["subject_id"].to_list(), range(len(records)), strict=True))
    flags = perturbations.failure_flags(
        records, [position[s] for s in held["subject_id"].to_list()], held["prediction_time"].to_physical().to_numpy()
    )
    pl.concat([held.select("subject_id", "prediction_time"), flags], how="horizontal").write_parquet(
        folder / "flags.parquet"
    )
    predictions = {m: {CLEAN: p.predict_proba(loaded.held_latents(m))} for m, p in loaded.probes.items()}
    for name, (changes, transform) in configured_perturbations(options, loaded.config.seed, loaded.store.scales).items():
        for model, probe in loaded.probes.items():
            if changes & loaded.modalities(model):
                predictions[model][name] = probe.predict_proba(loaded.held_latents(model, name, transform))
            else:  # a modality that the model is not given does not change its predictions
                predictions[model][name] = predictions[model][CLEAN]
    records = perturbed.score_perturbations(
        predictions,
        held["boolean_value"].to_numpy().astype(float),
        held["group_id"].to_numpy(),
        resampling=Resampling(loaded.config.evaluate.n_resamples, loaded.config.seed),
    )
    return [{"dataset": loaded.config.name, "task": loaded.task, **r} for r in records]


# ------------------------------------------------------------------------------------------------------- geometry


def _geometry(loaded, folder):
    del folder
    times, days = _grid(loaded)
    out = []
    for model in loaded.config.rows:
        z_train = loaded.train_latents(model)  # fixes scale and bandwidth
        found = [_measure("effective_rank", geometry.effective_rank(z_train), n=len(z_train))]
        try:
            bandwidth = geometry.median_bandwidth(z_train, seed=loaded.config.seed)
            whiten = geometry.fit_whitening(z_train)
        except ValueError as error:
            logging.info("  %s: %s", model, error)
        else:
            if times.height:
                z, people = loaded.embed(model, times), times["subject_id"].to_numpy()
                found += _adjacent(loaded, z, people, days, bandwidth)
                found += _movement(loaded, whiten(z), people, days)
            found += _between_classes(loaded, model, bandwidth) if loaded.task is not None else []
        out += [{"model": model, **f} for f in found]
    return out


def _measure(name, value, bounds=(None, None), p_value=None, n=None, slice_number=None):
    found = {"measure": name, "slice": slice_number, "value": value, "lo": bounds[0], "hi": bounds[1]}
    return {**found, "p_value": p_value, "n": n}


def _adjacent(loaded, z_NxD, people_N, days_N, bandwidth):
    """MMD between the slices of the same people, and its mean."""
    options, n_resamples = loaded.config.interpret, loaded.config.evaluate.n_resamples
    out = []
    for k, rows, next_rows in geometry.adjacent_slices(people_N, days_N, slice_days=options.slice_days):
        pair = z_NxD[rows], z_NxD[next_rows]
        found = geometry.mmd_paired(*pair, bandwidth, n_permutations=options.n_permutations)
        bounds = geometry.mmd_paired_interval(*pair, bandwidth, n_resamples=n_resamples)
        out.append(_measure("mmd2_adjacent", found.mmd2, bounds[:2], found.p_value, len(rows), k))
    if out:
        mean = float(np.mean([m["value"] for m in out]))
        out.append(_measure("mmd2_adjacent_mean", mean, n=len(out)))
    return out


def _movement(loaded, white_NxD, people_N, days_N):
    moved = geometry.lipschitz_in_time(white_NxD, days_N, people_N, max_gap_days=2 * GRID_DAYS)
    if not len(moved["rate"]):
        return []
    n_resamples = loaded.config.evaluate.n_resamples
    mean = mechanisms.profile(moved["rate"][:, None], moved["group"], n_resamples=n_resamples)
    bounds = mean.lo_K[0], mean.hi_K[0]
    return [_measure("lipschitz_per_day", mean.mean_K[0], bounds, n=len(np.unique(moved["group"])))]


def _between_classes(loaded, model, bandwidth):
    """MMD between people with and without the outcome, at the last prediction time of each."""
    last = loaded.held.with_row_index("row").group_by("subject_id", maintain_order=True)
    last = last.agg(pl.col("row", "boolean_value").last())
    z, y = loaded.held_latents(model)[last["row"].to_numpy()], last["boolean_value"].to_numpy().astype(bool)
    if min(y.sum(), (~y).sum()) < 2:
        return []
    n_permutations = loaded.config.interpret.n_permutations
    found = geometry.mmd(z[y], z[~y], bandwidth, n_permutations=n_permutations)
    return [_measure("mmd2_class", found.mmd2, p_value=found.p_value, n=len(y))]


def _grid(loaded):
    """(times of held-out people back from their last prediction time, days before it, negated): slices x slice_days."""
    options = loaded.config.interpret
    last = loaded.keys.join(loaded.subjects.filter(pl.col("split") == "held_out"), on="subject_id", how="semi")
    last = last.group_by("subject_id").agg(pl.col("prediction_time").max()).sort("subject_id")
    last = last.head(options.geometry_people)
    first = dict(zip(*_first_records(loaded), strict=True))
    subjects, times, days = [], [], []
    steps = int(options.slices * options.slice_days / GRID_DAYS)
    for subject, end in zip(last["subject_id"].to_list(), last["prediction_time"].to_physical().to_list(), strict=True):
        for k in range(steps):
            time = end - int(k * GRID_DAYS * DAY_US)
            if time >= first.get(subject, end + 1):
                subjects.append(subject)
                times.append(time)
                # in the middle of a step, so that rounding moves none across a slice
                days.append(-(k + 0.5) * GRID_DAYS)
    return prediction_times(subjects, times), np.array(days)


def _first_records(loaded):
    patients = loaded.models[loaded.joint].patients
    wanted = loaded.subjects.filter(pl.col("split") == "held_out")["subject_id"].to_list()
    position = dict(zip(patients.index["subject_id"].to_list(), range(len(patients)), strict=True))
    there = [s for s in wanted if s in position and len(patients[position[s]].time_N)]
    return there, [int(patients[position[s]].time_N[0]) for s in there]


# ------------------------------------------------------------------------------- retrieval, uncertainty, kernels


def _retrieval(loaded, folder):
    """Latents of the joint model given the EHR only against those given the wearable only; and trained projections."""
    del folder
    model = loaded.joint
    if loaded.task is None or loaded.modalities(model) != {"ehr", "wear"}:
        return []
    flags = pl.read_parquet(loaded.workdir / "interpret" / "flags.parquet")
    both = loaded.held.with_row_index("row").filter((flags["encounters"] > 0) & (flags["wear_days"] > 0))
    both = both.group_by("subject_id").agg(pl.col("row").last()).sort("subject_id")
    out = []
    if both.height > 1:
        given = configured_perturbations(loaded.config.interpret, loaded.config.seed, loaded.store.scales)
        z = [loaded.held_latents(model, n, given[n][1])[both["row"].to_numpy()] for n in ("no wearable", "no EHR")]
        # each about its own mean: the shift that all latents without a modality share is no similarity
        whiten = geometry.fit_whitening(loaded.train_latents(model))
        z = [w - w.mean(0) for w in (whiten(x) for x in z)]
        out += _recall("latents", *z, np.arange(both.height), loaded)
    pairs = interpret_people.projected_pairs(loaded)
    return out + (_recall("projections", *pairs, loaded) if pairs else [])


def _recall(source, ehr_NxD, wear_NxD, group_N, loaded):
    found, out = retrieval.recall(ehr_NxD, wear_NxD, group_N=group_N), []
    for direction in ("ehr_to_wear", "wear_to_ehr"):
        for k, hit_N in found[direction].items():
            mean = mechanisms.profile(hit_N[:, None], group_N, n_resamples=loaded.config.evaluate.n_resamples)
            record = {"source": source, "direction": direction, "k": k, "value": mean.mean_K[0], "lo": mean.lo_K[0]}
            out.append({**record, "hi": mean.hi_K[0], "chance": found["chance"][k], "n": len(hit_N)})
    return out


def _uncertainty(loaded, folder):
    if loaded.task is None or loaded.config.interpret.dropout_samples < 2:
        return []
    name, probe = loaded.joint, loaded.probes[loaded.joint]
    model, options = loaded.models[name], model_options(loaded.config)
    encode = embedding.make_encoder(model.patients, options, model.params, dropout_seed=loaded.config.seed)
    p_SxN = uncertainty.sample(
        lambda _: probe.predict_proba(loaded.embed(name, loaded.held, encode=encode)),
        loaded.config.interpret.dropout_samples,
    )
    parts = uncertainty.decompose(p_SxN)
    y_N = loaded.held["boolean_value"].to_numpy()
    np.savez(
        folder / "uncertainty.npz", p_SxN=p_SxN, y_N=y_N, probability_N=probe.predict_proba(loaded.held_latents(name))
    )
    failure_N = pl.read_parquet(folder / "flags.parquet")["failure_group"].to_numpy()
    value_NxK = np.stack(parts[1:], axis=1)
    out = []
    for group, inside_N in (("all", np.ones(len(y_N), bool)), ("failure_group", failure_N), ("others", ~failure_N)):
        if inside_N.any():
            groups = loaded.held["group_id"].to_numpy()[inside_N]
            mean = mechanisms.profile(value_NxK[inside_N], groups, n_resamples=loaded.config.evaluate.n_resamples)
            for k, measure in enumerate(("predictive_entropy", "expected_entropy", "mutual_information")):
                record = {"group": group, "measure": measure, "value": mean.mean_K[k], "lo": mean.lo_K[k]}
                out.append({**record, "hi": mean.hi_K[k], "n": int(inside_N.sum())})
    return out


def _kernels(loaded, folder):
    curves, out = {}, {}
    for name, model in loaded.models.items():
        c = model.network.config
        params = model.params["backbone"]["blocks"].get("kernel", {})
        curves[name] = attention.learned_kernels(params, c.kernel, c.n_heads, c.n_components, KERNEL_DAYS)
        out[name] = {"half_life_days": attention.half_life_days(curves[name], KERNEL_DAYS)}
    np.savez(folder / "kernels.npz", days_K=KERNEL_DAYS, **curves)
    return out


PARTS = {
    "robustness": _robustness,
    "geometry": _geometry,
    "retrieval": _retrieval,
    "uncertainty": _uncertainty,
    "kernels": _kernels,
    "mechanisms": interpret_people.mechanisms_of,
    "people": interpret_people.people,
}
