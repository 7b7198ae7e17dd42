"""Interprets models: robustness and geometry of each, and what the reference model has learned over time.

An artifact per model, of the first fold and seed; numbers are float or null. Of every model on whose latents probes are
fitted:

  robustness.json   [{dataset, task, model, perturbation, metric (auroc, auprc), value, lo, hi, change, change_lo,
                    change_hi, change_p, n, n_positive, n_degenerate}]: held-out probe predictions from perturbed
                    records; `change` is against the perturbation "clean", paired.
  ledger.json       what z holds of the hand-made features, see interpret_ledger.py.
  flags.parquet     subject_id, prediction_time, encounters, wear_days, sparse_ehr, short_wear, failure_group at the
                    held-out prediction times (data.perturbations.failure_flags).

of every network also

  geometry.json     [{model, measure, slice, value, lo, hi, p_value, n}]: measure is mmd2_adjacent (30-day slice k
                    against k + 1; the last 30 days before the last prediction time are slice -1), mmd2_adjacent_mean
                    (over the slices, n of them), mmd2_class (outcome against none), effective_rank, lipschitz_per_day
                    (whitened, mean over people). Fields that do not apply are null.
  kernels.npz       days_K, and kernel: K(d) / K(0), [layers, heads, K], where the family has kernels of time.
  posterior.json    what draws of z are worth, see interpret_posterior.py; empty where z is no distribution.
  kernels.json      {half_life_days: [layer][head], null where beyond the grid}.

of the reference model also uncertainty and, where its family can be opened (`interpretation`), interpret_people.py's:

  uncertainty.json  [{group (all, failure_group, others), measure (predictive_entropy, expected_entropy,
                    mutual_information; nats), value, lo, hi, n}] of Monte Carlo dropout.
  uncertainty.npz   p_SxN, y_N, probability_N (without dropout).
  retrieval.json    [{source (latents or projections), direction, k, value, lo, hi, chance, n}]; empty without both
                    modalities.
  mechanisms.json, people.json, people.npz

Only flags.parquet, which stays in the workdir, identifies people or calendar dates.
"""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrwear_jax.config import options
from ehrwear_jax.config.evaluation import InterpretConfig
from ehrwear_jax.data import perturbations
from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.data.store import Scales
from ehrwear_jax.evals import perturbed
from ehrwear_jax.evals.estimates import Resampling
from ehrwear_jax.interpret import attention, geometry, mechanisms, retrieval, uncertainty
from ehrwear_jax.runtime import files
from ehrwear_jax.stages import interpret_ledger, interpret_people, interpret_posterior, predictors
from ehrwear_jax.stages.artifacts import Artifact
from ehrwear_jax.stages.loaded_run import LoadedRun, identity, prediction_times, reference
from ehrwear_jax.stages.plan import Plan
from ehrwear_jax.stages.workdir import write_npz
from ehrwear_jax.training import embedding

CLEAN = "clean"
KERNEL_DAYS = np.geomspace(1 / 24, 3652.5, 120)
GRID_DAYS = 10.0  # between the times whose movement is measured


def artifact(plan: Plan, name: str) -> Artifact:
    """Where a model's interpretation lies."""
    settings = {k: v for k, v in options.as_dict(plan.config.interpret).items() if k != "models"}
    of = identity(plan, name) | {"dataset": plan.config.name, "interpret": settings, "seed": plan.config.data.seed}
    of |= {"n_resamples": plan.config.evaluate.n_resamples, "reference": name == reference(plan)}
    of |= predictors.ranges_identity(plan) if plan.config.interpret.ledger_codes else {}
    return plan.artifact("interpret", name, of | {"simulated": plan.config.data.source == "synthetic"})


def missing(plan: Plan) -> list[str]:
    """Names of the models that are not interpreted."""
    return [name for name in _wanted(plan) if not artifact(plan, name).done]


def finished(plan: Plan) -> list[str]:
    """Names of the models whose interpretation is there."""
    return [name for name in _wanted(plan) if artifact(plan, name).done]


def _wanted(plan):
    """Names of the models that are to be looked into."""
    settings = plan.config.interpret
    return [m for m in predictors.probed(plan) if settings.enabled and m in (settings.models or plan.config.models)]


def run(plan: Plan) -> None:
    """Computes what is missing."""
    loaded = LoadedRun(plan)
    for name in missing(plan):
        with artifact(plan, name).making() as folder:
            for part, compute in parts(plan, name).items():
                path = folder / f"{part}.json"
                if not path.exists():
                    found = compute(loaded, name, folder)
                    files.write_json(path, _plain(found), indent=1)
                    logging.info("  %s, %s: %s", name, part, f"{len(found)} entries" if found else "nothing to compute")


def parts(plan: Plan, name: str) -> dict[str, Callable[[LoadedRun, str, Path], Any]]:
    """{name of a JSON file: what computes it} of a model."""
    out: dict[str, Callable] = {"robustness": _robustness, "ledger": interpret_ledger.compute}
    if name in plan.config.networks:
        out |= {"geometry": _geometry, "kernels": _kernels, "posterior": interpret_posterior.compute}
    if name == reference(plan):
        out |= {"retrieval": _retrieval, "uncertainty": _uncertainty}
        out |= {"mechanisms": interpret_people.mechanisms_of, "people": interpret_people.people}
    return out


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


def configured_perturbations(
    config: InterpretConfig, seed: int, scales: Scales
) -> dict[str, tuple[set[str], Callable]]:
    """{perturbation: (modalities that it changes, transform)}; scales: of the channels."""
    both = {"ehr", "wear"}
    out: dict[str, tuple[set[str], Callable]] = {
        f"last {days:g} days": (both, perturbations.truncate(days)) for days in config.histories_days
    }
    if len(scales.mean_C):
        drop, share = config.noise_db, config.missing_share
        out["no wearable"] = ({"wear"}, perturbations.drop_wear())
        out["no EHR"] = ({"ehr"}, perturbations.drop_ehr())
        out[f"SNR {drop:g} dB lower"] = ({"wear"}, perturbations.add_noise(drop, scales, seed=seed))
        out[f"SNR of {-drop:g} dB"] = ({"wear"}, perturbations.add_noise(drop, scales, mode="absolute", seed=seed))
        out[f"{share:.0%} of the signal missing"] = ({"wear"}, perturbations.missing_stretch(share, seed=seed))
    return out


def _configured(run):
    return configured_perturbations(run.config.interpret, run.config.data.seed, run.store.scales)


def _robustness(run, name, folder):
    """Probes fitted on clean records, applied to perturbed records at the held-out prediction times."""
    if run.task is None:
        return []
    held = run.held
    flags = perturbations.failure_flags(
        run.store,
        [run.position[s] for s in held["subject_id"].to_list()],
        held["prediction_time"].to_physical().to_numpy(),
    )
    flags = pl.concat([held.select("subject_id", "prediction_time"), flags], how="horizontal")
    flags.write_parquet(folder / "flags.parquet")
    probe = run.probe(name)
    found = {CLEAN: probe.predict_proba(run.held_latents(name))}
    for perturbation, (changes, transform) in _configured(run).items():
        if changes & run.modalities(name):
            found[perturbation] = probe.predict_proba(run.held_latents(name, perturbation, transform))
        else:  # a modality that the model is not given does not change its predictions
            found[perturbation] = found[CLEAN]
    records = perturbed.score_perturbations(
        {name: found},
        held["boolean_value"].to_numpy().astype(float),
        held["group_id"].to_numpy(),
        resampling=Resampling(run.config.evaluate.n_resamples, run.config.data.seed),
    )
    return [{"dataset": run.config.name, "task": run.task, **r} for r in records]


# ------------------------------------------------------------------------------------------------------- geometry


def _geometry(run, name, folder):
    del folder
    times, days = _grid(run)
    z_train = run.train_latents(name)  # fixes scale and bandwidth
    found = [_measure("effective_rank", geometry.effective_rank(z_train), n=len(z_train))]
    try:
        bandwidth = geometry.median_bandwidth(z_train, seed=run.config.data.seed)
        whiten = geometry.fit_whitening(z_train)
    except ValueError as error:
        logging.info("  %s: %s", name, error)
    else:
        if times.height:
            z, people = run.embed(name, times), times["subject_id"].to_numpy()
            found += _adjacent(run, z, people, days, bandwidth)
            found += _movement(run, whiten(z), people, days)
        found += _between_classes(run, name, bandwidth) if run.task is not None else []
    return [{"model": name, **f} for f in found]


def _measure(name, value, bounds=(None, None), p_value=None, n=None, slice_number=None):
    found = {"measure": name, "slice": slice_number, "value": value, "lo": bounds[0], "hi": bounds[1]}
    return {**found, "p_value": p_value, "n": n}


def _adjacent(run, z_NxD, people_N, days_N, bandwidth):
    """MMD between the slices of the same people, and its mean."""
    config, n_resamples = run.config.interpret, run.config.evaluate.n_resamples
    out = []
    for k, rows, next_rows in geometry.adjacent_slices(people_N, days_N, slice_days=config.slice_days):
        pair = z_NxD[rows], z_NxD[next_rows]
        found = geometry.mmd_paired(*pair, bandwidth, n_permutations=config.n_permutations)
        bounds = geometry.mmd_paired_interval(*pair, bandwidth, n_resamples=n_resamples)
        out.append(_measure("mmd2_adjacent", found.mmd2, bounds[:2], found.p_value, len(rows), k))
    if out:
        mean = float(np.mean([m["value"] for m in out]))
        out.append(_measure("mmd2_adjacent_mean", mean, n=len(out)))
    return out


def _movement(run, white_NxD, people_N, days_N):
    moved = geometry.lipschitz_in_time(white_NxD, days_N, people_N, max_gap_days=2 * GRID_DAYS)
    if not len(moved["rate"]):
        return []
    n_resamples = run.config.evaluate.n_resamples
    mean = mechanisms.profile(moved["rate"][:, None], moved["group"], n_resamples=n_resamples)
    bounds = mean.lo_K[0], mean.hi_K[0]
    return [_measure("lipschitz_per_day", mean.mean_K[0], bounds, n=len(np.unique(moved["group"])))]


def _between_classes(run, name, bandwidth):
    """MMD between people with and without the outcome, at the last prediction time of each."""
    last = run.held.with_row_index("row").group_by("subject_id", maintain_order=True)
    last = last.agg(pl.col("row", "boolean_value").last())
    z, y = run.held_latents(name)[last["row"].to_numpy()], last["boolean_value"].to_numpy().astype(bool)
    if min(y.sum(), (~y).sum()) < 2:
        return []
    found = geometry.mmd(z[y], z[~y], bandwidth, n_permutations=run.config.interpret.n_permutations)
    return [_measure("mmd2_class", found.mmd2, p_value=found.p_value, n=len(y))]


def _grid(run):
    """(times of held-out people back from their last prediction time, days before it, negated): slices x slice_days."""
    config = run.config.interpret
    last = run.keys.filter(pl.col("split") == "held_out")
    last = last.group_by("subject_id").agg(pl.col("prediction_time").max()).sort("subject_id")
    last = last.head(config.geometry_people)
    subjects, times, days = [], [], []
    steps = int(config.slices * config.slice_days / GRID_DAYS)
    for subject, end in zip(last["subject_id"].to_list(), last["prediction_time"].to_physical().to_list(), strict=True):
        first = _first_record(run, run.position[subject])
        for k in range(steps):
            time = end - int(k * GRID_DAYS * DAY_US)
            if first is not None and time >= first:
                subjects.append(subject)
                times.append(time)
                # in the middle of a step, so that rounding moves none across a slice
                days.append(-(k + 0.5) * GRID_DAYS)
    return prediction_times(subjects, times), np.array(days)


def _first_record(run, i):
    """When a person's record begins that the reference model is given, None if there is nothing of it."""
    record = run.record(reference(run.plan), i)
    return record.first_us if len(record.time_K) or len(record.window_end_M) else None


# ------------------------------------------------------------------------------- retrieval, uncertainty, kernels


def _retrieval(run, name, folder):
    """Latents of a model given the EHR only against those given the wearable only; and trained projections."""
    if run.task is None or run.modalities(name) != {"ehr", "wear"}:
        return []
    flags = pl.read_parquet(folder / "flags.parquet")
    both = run.held.with_row_index("row").filter((flags["encounters"] > 0) & (flags["wear_days"] > 0))
    both = both.group_by("subject_id").agg(pl.col("row").last()).sort("subject_id")
    out = []
    whiten = run.whitening(name)
    if both.height > 1 and whiten is not None:
        given = _configured(run)
        z = [run.held_latents(name, n, given[n][1])[both["row"].to_numpy()] for n in ("no wearable", "no EHR")]
        # each about its own mean: the shift that all latents without a modality share is no similarity
        z = [w - w.mean(0) for w in (whiten(x) for x in z)]
        out += _recall("latents", z[0], z[1], np.arange(both.height), run)
    pairs = interpret_people.projected_pairs(run, name)
    return out + (_recall("projections", *pairs, run) if pairs else [])


def _recall(source, ehr_NxD, wear_NxD, group_N, run):
    found, out = retrieval.recall(ehr_NxD, wear_NxD, group_N=group_N), []
    for direction, hits in (("ehr_to_wear", found["ehr_to_wear"]), ("wear_to_ehr", found["wear_to_ehr"])):
        for k, hit_N in hits.items():
            mean = mechanisms.profile(hit_N[:, None], group_N, n_resamples=run.config.evaluate.n_resamples)
            record = {"source": source, "direction": direction, "k": k, "value": mean.mean_K[0], "lo": mean.lo_K[0]}
            out.append({**record, "hi": mean.hi_K[0], "chance": found["chance"][k], "n": len(hit_N)})
    return out


def _uncertainty(run, name, folder):
    samples = run.config.interpret.dropout_samples
    if run.task is None or samples < 2:
        return []
    probe, loaded = run.probe(name), run.network(name)
    encode = embedding.encoder(loaded.network, loaded.variables, dropout_seed=run.config.data.seed)
    p_SxN = uncertainty.sample(lambda _: probe.predict_proba(run.embed(name, run.held, encode=encode)), samples)
    entropies = uncertainty.decompose(p_SxN)
    y_N = run.held["boolean_value"].to_numpy()
    write_npz(
        folder / "uncertainty.npz", p_SxN=p_SxN, y_N=y_N, probability_N=probe.predict_proba(run.held_latents(name))
    )
    failure_N = pl.read_parquet(folder / "flags.parquet")["failure_group"].to_numpy()
    value_NxK = np.stack(entropies[1:], axis=1)
    out = []
    for group, inside_N in (("all", np.ones(len(y_N), bool)), ("failure_group", failure_N), ("others", ~failure_N)):
        if inside_N.any():
            groups = run.held["group_id"].to_numpy()[inside_N]
            mean = mechanisms.profile(value_NxK[inside_N], groups, n_resamples=run.config.evaluate.n_resamples)
            for k, measure in enumerate(("predictive_entropy", "expected_entropy", "mutual_information")):
                record = {"group": group, "measure": measure, "value": mean.mean_K[k], "lo": mean.lo_K[k]}
                out.append({**record, "hi": mean.hi_K[k], "n": int(inside_N.sum())})
    return out


def _kernels(run, name, folder):
    loaded = run.network(name)
    if not hasattr(loaded.interpretation, "time_kernels"):
        return {}
    parameters, kind, n_heads, n_components, unit_days = loaded.interpretation.time_kernels(
        loaded.model.config, loaded.variables["params"]
    )
    curves = attention.learned_kernels(parameters, kind, n_heads, n_components, unit_days, KERNEL_DAYS)
    write_npz(folder / "kernels.npz", days_K=KERNEL_DAYS, kernel=curves)
    return {"half_life_days": attention.half_life_days(curves, KERNEL_DAYS)}
