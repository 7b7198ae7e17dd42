"""The interpret stage: robustness, geometry, retrieval, uncertainty, kernels, mechanisms and attribution of a run.

Reads what pretrain and embed left, of the first fold, and writes below interpret/ (numbers are float or null):

  robustness.json   [{dataset, task, row, condition, metric (auroc, auprc), value, lo, hi, change, change_lo,
                    change_hi, change_p, n, n_positive, n_degenerate}]: held-out probe predictions from changed records;
                    `change` is against the condition "clean", paired.
  flags.parquet     subject_id, prediction_time, encounters, wear_days, sparse_ehr, short_wear, failure_group of the
                    held-out reads (data.perturbations.failure_flags).
  geometry.json     [{row, measure, slice, value, lo, hi, p_value, n}]: measure is mmd2_adjacent (30-day slice k against
                    k + 1; the last 30 days before the last read are slice -1), mmd2_adjacent_mean (over the slices, n
                    of them), mmd2_class (outcome against none), effective_rank, lipschitz_per_day (whitened, mean over
                    people). slice and what does not apply are null.
  retrieval.json    [{source (latents or projections), direction, k, value, lo, hi, chance, n}]; empty without both
                    modalities.
  uncertainty.json  [{group (all, failure_group, others), measure (predictive_entropy, expected_entropy,
                    mutual_information; nats), value, lo, hi, n}] of Monte Carlo dropout.
  uncertainty.npz   p_SxN, y_N, probability_N (without dropout).
  kernels.json      {row: {half_life_days: [layer][head], null where beyond the grid}}
  kernels.npz       days_K, and <row>: K(d) / K(0), [layers, heads, K].
  mechanisms.json   see stages/interpret_people.py; so are people.json and people.npz.

Nothing here names a person or a calendar date but flags.parquet, which stays in the workdir.
"""

import json
import logging
import math
import os
from pathlib import Path

import numpy as np
import polars as pl

from ehrwear_jax.config import model_options
from ehrwear_jax.data import perturbations
from ehrwear_jax.data.signals.signal import DAY_US
from ehrwear_jax.evals import perturbed as conditions
from ehrwear_jax.interpret import attention, geometry, mechanisms, retrieval, uncertainty
from ehrwear_jax.stages import interpret_people
from ehrwear_jax.stages.loaded_run import Study, reads
from ehrwear_jax.training import embedding

CLEAN = "clean"
KERNEL_DAYS = np.geomspace(1 / 24, 3652.5, 120)
READ_DAYS = 10.0  # between the reads whose movement is measured


def run(config, workdir):
    """Computes every part that is not there yet."""
    if not config.interpret.enabled:
        logging.info("  config.interpret.enabled is False: nothing is computed")
        return
    study, folder = Study(config, Path(workdir)), Path(workdir) / "interpret"
    for name, compute in PARTS.items():
        path = folder / f"{name}.json"
        if path.exists():
            continue
        found = compute(study, folder)
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


def degradations(options, seed, scales):
    """{condition: (modalities that it changes, transform)}; scales: store.Scales of the channels."""
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


def _robustness(study, folder):
    """Probes fitted on clean reads, applied to held-out reads of changed records."""
    if study.task is None:
        return []
    held, options = study.held, study.config.interpret
    records = study.store
    place = dict(zip(records.index["subject_id"].to_list(), range(len(records)), strict=True))
    flags = perturbations.failure_flags(
        records, [place[s] for s in held["subject_id"].to_list()], held["prediction_time"].to_physical().to_numpy()
    )
    pl.concat([held.select("subject_id", "prediction_time"), flags], how="horizontal").write_parquet(
        folder / "flags.parquet"
    )
    predictions = {row: {CLEAN: p.predict_proba(study.held_latents(row))} for row, p in study.probes.items()}
    for name, (changes, transform) in degradations(options, study.config.seed, study.store.scales).items():
        for row, probe in study.probes.items():
            if changes & study.modalities(row):
                predictions[row][name] = probe.predict_proba(study.held_latents(row, name, transform))
            else:  # what the row does not see does not change it
                predictions[row][name] = predictions[row][CLEAN]
    records = conditions.score_conditions(
        predictions,
        held["boolean_value"].to_numpy().astype(float),
        held["group_id"].to_numpy(),
        n_resamples=study.config.evaluate.n_resamples,
        seed=study.config.seed,
    )
    return [{"dataset": study.config.name, "task": study.task, **r} for r in records]


# ------------------------------------------------------------------------------------------------------- geometry


def _geometry(study, folder):
    del folder
    options, n_resamples = study.config.interpret, study.config.evaluate.n_resamples
    index, days = _grid(study)
    out = []
    for row in study.config.rows:
        z_train = study.train_latents(row)  # fixes scale and bandwidth

        def add(measure, value, lo=None, hi=None, p_value=None, n=None, slice_number=None, row=row):
            found = {"measure": measure, "slice": slice_number, "value": value, "lo": lo, "hi": hi}
            out.append({"row": row, **found, "p_value": p_value, "n": n})

        add("effective_rank", geometry.effective_rank(z_train), n=len(z_train))
        try:
            bandwidth, whiten = (
                geometry.median_bandwidth(z_train, seed=study.config.seed),
                geometry.fit_whitening(z_train),
            )
        except ValueError as error:
            logging.info("  %s: %s", row, error)
            continue
        if index.height:
            z, people = study.read(row, index), index["subject_id"].to_numpy()
            shifts = []
            for k, now, then in geometry.adjacent_slices(people, days, slice_days=options.slice_days):
                found = geometry.mmd_paired(z[now], z[then], bandwidth, n_permutations=options.n_permutations)
                bounds = geometry.mmd_paired_interval(z[now], z[then], bandwidth, n_resamples=n_resamples)
                add("mmd2_adjacent", found.mmd2, bounds.lo, bounds.hi, found.p_value, len(now), k)
                shifts.append(found.mmd2)
            if shifts:
                add("mmd2_adjacent_mean", float(np.mean(shifts)), n=len(shifts))
            moved = geometry.lipschitz_in_time(whiten(z), days, people, max_gap_days=2 * READ_DAYS)
            if len(moved["rate"]):
                mean = mechanisms.profile(moved["rate"][:, None], moved["group"], n_resamples=n_resamples)
                n_people = len(np.unique(moved["group"]))
                add("lipschitz_per_day", mean.mean_K[0], mean.lo_K[0], mean.hi_K[0], n=n_people)
        if study.task is not None:
            last = (
                study.held.with_row_index("place").group_by("subject_id").agg(pl.col("place", "boolean_value").last())
            )
            z, y = study.held_latents(row)[last["place"].to_numpy()], last["boolean_value"].to_numpy().astype(bool)
            if min(y.sum(), (~y).sum()) > 1:
                found = geometry.mmd(z[y], z[~y], bandwidth, n_permutations=options.n_permutations)
                add("mmd2_class", found.mmd2, p_value=found.p_value, n=len(y))
    return out


def _grid(study):
    """(reads of held-out people back from their last read, days before it, negated): at most slices x slice_days."""
    options = study.config.interpret
    last = study.keys.join(study.subjects.filter(pl.col("split") == "held_out"), on="subject_id", how="semi")
    last = last.group_by("subject_id").agg(pl.col("prediction_time").max()).sort("subject_id")
    last = last.head(options.geometry_people)
    first = dict(zip(*_first_records(study), strict=True))
    subjects, times, days = [], [], []
    steps = int(options.slices * options.slice_days / READ_DAYS)
    for subject, end in zip(last["subject_id"].to_list(), last["prediction_time"].to_physical().to_list(), strict=True):
        for k in range(steps):
            time = end - int(k * READ_DAYS * DAY_US)
            if time >= first.get(subject, end + 1):
                subjects.append(subject)
                times.append(time)
                days.append(
                    -(k + 0.5) * READ_DAYS
                )  # in the middle of a step, so that rounding moves none across a slice
    return reads(subjects, times), np.array(days)


def _first_records(study):
    patients = study.rows[study.joint].patients
    wanted = study.subjects.filter(pl.col("split") == "held_out")["subject_id"].to_list()
    place = dict(zip(patients.index["subject_id"].to_list(), range(len(patients)), strict=True))
    there = [s for s in wanted if s in place and len(patients[place[s]].time_N)]
    return there, [int(patients[place[s]].time_N[0]) for s in there]


# ------------------------------------------------------------------------------- retrieval, uncertainty, kernels


def _retrieval(study, folder):
    """Latents of the joint row given the EHR only against those given the wearable only; and trained projections."""
    del folder
    row = study.joint
    if study.task is None or study.modalities(row) != {"ehr", "wear"}:
        return []
    flags = pl.read_parquet(study.workdir / "interpret" / "flags.parquet")
    both = study.held.with_row_index("place").filter((flags["encounters"] > 0) & (flags["wear_days"] > 0))
    both = both.group_by("subject_id").agg(pl.col("place").last()).sort("subject_id")
    out = []
    if both.height > 1:
        given = degradations(study.config.interpret, study.config.seed, study.store.scales)
        z = [study.held_latents(row, n, given[n][1])[both["place"].to_numpy()] for n in ("no wearable", "no EHR")]
        # each stream about its own mean: what the absence of a stream adds to every latent is no similarity
        whiten = geometry.fit_whitening(study.train_latents(row))
        z = [w - w.mean(0) for w in (whiten(x) for x in z)]
        out += _recall("latents", *z, np.arange(both.height), study)
    pairs = interpret_people.projected_pairs(study)
    return out + (_recall("projections", *pairs, study) if pairs else [])


def _recall(source, ehr_NxD, wear_NxD, group_N, study):
    found, out = retrieval.recall(ehr_NxD, wear_NxD, group_N=group_N), []
    for direction in ("ehr_to_wear", "wear_to_ehr"):
        for k, hit_N in found[direction].items():
            mean = mechanisms.profile(hit_N[:, None], group_N, n_resamples=study.config.evaluate.n_resamples)
            record = {"source": source, "direction": direction, "k": k, "value": mean.mean_K[0], "lo": mean.lo_K[0]}
            out.append({**record, "hi": mean.hi_K[0], "chance": found["chance"][k], "n": len(hit_N)})
    return out


def _uncertainty(study, folder):
    if study.task is None or study.config.interpret.dropout_samples < 2:
        return []
    row, probe = study.joint, study.probes[study.joint]
    reader, options = study.rows[row], model_options(study.config)
    encode = embedding.make_encoder(reader.patients, options, reader.params, dropout_seed=study.config.seed)
    p_SxN = uncertainty.sample(
        lambda _: probe.predict_proba(study.read(row, study.held, encode=encode)),
        study.config.interpret.dropout_samples,
    )
    parts = uncertainty.decompose(p_SxN)
    y_N = study.held["boolean_value"].to_numpy()
    np.savez(
        folder / "uncertainty.npz", p_SxN=p_SxN, y_N=y_N, probability_N=probe.predict_proba(study.held_latents(row))
    )
    failure_N = pl.read_parquet(folder / "flags.parquet")["failure_group"].to_numpy()
    value_NxK = np.stack(parts[1:], axis=1)
    out = []
    for group, inside_N in (("all", np.ones(len(y_N), bool)), ("failure_group", failure_N), ("others", ~failure_N)):
        if inside_N.any():
            groups = study.held["group_id"].to_numpy()[inside_N]
            mean = mechanisms.profile(value_NxK[inside_N], groups, n_resamples=study.config.evaluate.n_resamples)
            for k, name in enumerate(("predictive_entropy", "expected_entropy", "mutual_information")):
                record = {"group": group, "measure": name, "value": mean.mean_K[k], "lo": mean.lo_K[k]}
                out.append({**record, "hi": mean.hi_K[k], "n": int(inside_N.sum())})
    return out


def _kernels(study, folder):
    curves, out = {}, {}
    for row, reader in study.rows.items():
        c = reader.network.config
        params = reader.params["backbone"]["blocks"].get("kernel", {})
        curves[row] = attention.learned_kernels(params, c.kernel, c.n_heads, c.n_components, KERNEL_DAYS)
        out[row] = {"half_life_days": attention.half_life_days(curves[row], KERNEL_DAYS)}
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
