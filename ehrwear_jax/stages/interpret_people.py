"""Parts of the interpret stage that follow people through time: mechanisms, and what single predictions rest on.

mechanisms.json   {"jump": {event, pseudo_event: {offset_days, mean, lo, hi, n, first_share, half_days}}: distance of
                  whitened z from the read a day before an event, and before the same people's time 120 days earlier.
                  "drift": {channel, raised_sd, offset_days, mean, ...}: distance between z with a channel raised from
                  day 0 on and z without.
                  "precursors": {name: {mean, lo, hi, difference, difference_lo, difference_hi, p_value, n,
                  control_seen}}: |change| of the probe's logit just before an event when a channel is hidden 30 to 7
                  days before it; control: the same 53 to 30 days before it. control_seen is the share of reads whose
                  context reaches a window of the control's period; where it is small, the difference says nothing.
                  "drug_start": {channel, edge_days, mean, lo, hi, n}: a channel around the first drug code, in
                  standard deviations, as the change from the 28 days before.}
                  A part is null where the cohort has no such people.
people.json       [{risk, logit, groups, channels, histories, counterfactuals: {name: change of the logit},
                  completeness_gap, tokens: [{days, label, gradient, rollout}]}]: days before the read.
people.npz        attention_<i> [layers, heads, tokens] of the read; wear_<i> [windows, channels], its integrated
                  gradients; wear_days_<i> [windows]; channels.
"""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl

from ehrwear_jax.data import perturbations
from ehrwear_jax.data.signals.signal import DAY_US
from ehrwear_jax.interpret import attention, attribution, geometry, mechanisms
from ehrwear_jax.models.joint import context
from ehrwear_jax.models.joint import examples as pipeline
from ehrwear_jax.models.joint.batch import MODALITY_EHR
from ehrwear_jax.stages import prepare
from ehrwear_jax.stages.loaded_run import reads

JUMP_DAYS = np.array([1.0, 3.0, 7.0, 14.0, 30.0])
DRIFT_DAYS = np.array([1.0, 3.0, 7.0, 14.0])
PRECURSOR_DAYS, CONTROL_DAYS = (30.0, 7.0), (53.0, 30.0)
DRUG_EDGES = np.arange(-28.0, 29.0, 7.0)
PSEUDO_EVENT_DAYS = 120.0


def mechanisms_of(study, folder):
    del folder
    row = study.joint
    if row is None:
        return {}
    whiten = geometry.fit_whitening(study.train_latents(row))
    wear, ehr = "wear" in study.modalities(row), "ehr" in study.modalities(row)
    return {
        "jump": _jump(study, row, whiten) if ehr else None,
        "drift": _drift(study, row, whiten) if wear else None,
        "precursors": _precursors(study, row) if wear and ehr and study.task is not None else None,
        "drug_start": _drug_start(study) if wear and ehr else None,
    }


def _people(study, row, *splits):
    """(subject_id, place in the store) of people of some splits, at most config.interpret.mechanism_people of them."""
    patients = study.rows[row].patients
    place = dict(zip(patients.index["subject_id"].to_list(), range(len(patients)), strict=True))
    wanted = study.subjects.filter(pl.col("split").is_in(splits))["subject_id"].sort().to_list()
    for subject in [s for s in wanted if s in place][: study.config.interpret.mechanism_people]:
        yield subject, place[subject]


def _matcher(study, prefixes):
    return perturbations.code_matcher(study.store.codes, prefixes)


def _first_time(record, matches, not_before=-np.inf):
    """When a code first occurs from a time on, None if it does not."""
    times = record.time_K[matches(record.code_K)]
    times = times[times >= not_before]
    return int(times.min()) if len(times) else None


def _summary(displacement_NxK, offset_days, groups, study):
    mean = mechanisms.profile(displacement_NxK, groups, n_resamples=study.config.evaluate.n_resamples)
    rise = mechanisms.rise(displacement_NxK, offset_days)
    out = {"offset_days": offset_days, **{k.removesuffix("_K"): v for k, v in mean._asdict().items()}}
    moved = np.isfinite(rise.first_share_N)
    first, half = (np.median(x[moved]) if moved.any() else np.nan for x in rise)
    return {**out, "first_share": first, "half_days": half}


def _jump(study, row, whiten):
    """Reads around the first event that has 122 days of record before it, and around a time 120 days earlier."""
    patients, matches = study.rows[row].patients, _matcher(study, study.config.interpret.event_prefixes)
    people, onsets = [], []
    for subject, i in _people(study, row, "held_out"):
        record = patients.record(i)
        onset = _first_time(record, matches, record.first_us + (PSEUDO_EVENT_DAYS + 2.0) * DAY_US)
        if onset is not None:
            people.append(subject)
            onsets.append(onset)
    if len(people) < 2:
        return None
    offsets, out = np.concatenate([[-1.0], JUMP_DAYS]), {}
    for name, shift in (("event", 0.0), ("pseudo_event", -PSEUDO_EVENT_DAYS)):
        times = np.array(onsets)[:, None] + ((offsets + shift) * DAY_US).astype(np.int64)
        z = whiten(study.read(row, reads(np.repeat(people, len(offsets)), times.ravel())))
        moved = mechanisms.displacement(z.reshape(len(people), len(offsets), -1))
        out[name] = _summary(moved[:, 1:], JUMP_DAYS, people, study)
    return out


def _drift(study, row, whiten):
    """z with a channel raised from a day on against z without, in people who wear a device until the last read."""
    options, channels = study.config.interpret, study.channels
    if options.raised_channel not in channels:
        return None
    people, onsets = [], []
    for subject, i in _people(study, row, "held_out"):
        ends = study.store[i].window_end_M
        if len(ends) and ends[-1] - ends[0] > DRIFT_DAYS[-1] * DAY_US:
            people.append(subject)
            onsets.append(int(ends[-1] - DRIFT_DAYS[-1] * DAY_US))
    if len(people) < 2:
        return None
    moved = []
    for days in DRIFT_DAYS:
        index = reads(people, np.array(onsets) + int(days * DAY_US))
        raised = perturbations.add_to_channel(
            options.raised_channel, options.raised_sd, days, scales=study.store.scales
        )
        z = [whiten(study.read(row, index, change)) for change in (None, raised)]
        moved.append(np.linalg.norm(z[1] - z[0], axis=1))
    found = _summary(np.stack(moved, axis=1), DRIFT_DAYS, people, study)
    return {"channel": options.raised_channel, "raised_sd": options.raised_sd, **found}


def _precursors(study, row):
    """Reads just before the events of held-out and tuning people, with a window 30 to 7 days earlier in the context."""
    patients, probe = study.rows[row].patients, study.probes[row]
    matches = _matcher(study, study.config.interpret.event_prefixes)
    people, times, control = [], [], []
    for subject, i in _people(study, row, "held_out", "tuning"):
        record = patients.record(i)
        for event in np.unique(record.time_K[matches(record.code_K)]):
            before_M = (event - _windows_read(patients, patients[i], event - 1)) / DAY_US
            seen = [((before_M < b) & (before_M >= e)).any() for b, e in (PRECURSOR_DAYS, CONTROL_DAYS)]
            if seen[0]:
                people.append(subject)
                times.append(int(event) - 1)  # the event itself is not known yet
                control.append(seen[1])
    names = [c for c in study.config.interpret.precursor_channels if c in study.channels]
    if len(set(people)) < 2 or not names:
        return None
    index = reads(people, times)
    changes = {}
    for label, period in (("30 to 7 days", PRECURSOR_DAYS), ("53 to 30 days (control)", CONTROL_DAYS)):
        for name in names:
            changes[f"{name}, {label}"] = perturbations.occlude_channels([name], *period)
    effects = attribution.effects(lambda change: probe.logit(study.read(row, index, change)), changes)
    out = {}
    for name in names:
        mine = {k: v for k, v in effects.items() if k.startswith(f"{name}, ")}
        found = mechanisms.precursors(mine, list(mine)[1], people, n_resamples=study.config.evaluate.n_resamples)
        out |= {k: v._asdict() | {"control_seen": float(np.mean(control))} for k, v in found.items()}
    return out


def _windows_read(patients, patient, time_us):
    """When the windows end that the context of a read holds."""
    stop = int(np.searchsorted(patient.time_N, time_us, side="right"))
    span = context.fit(patient, stop, patients.config.context_tokens, patients.batch_shape().windows)
    shown = span.places(patient)
    return patient.time_N[shown][patient.is_wear_N[shown]]


def _drug_start(study):
    """A signal around the first code of a drug, in the whole cohort: a description of the data, not of the model."""
    options, row = study.config.interpret, study.joint
    names = [c for c in options.response_channels if c in study.channels]
    if not names:
        return None
    channel = study.channels.index(names[0])
    patients, matches = study.rows[row].patients, _matcher(study, options.drug_prefixes)
    series, onsets, people = [], [], []
    for subject, i in _people(study, row, "train", "tuning", "held_out"):
        record = patients.record(i)
        onset = _first_time(record, matches)
        offset_M = (record.window_end_M - (onset or 0)) / DAY_US
        if onset is not None and (offset_M < 0).any() and (offset_M >= 0).any():
            signal_MxL = patients[i].signal(0, len(offset_M))[..., channel]
            seen_MxL = np.isfinite(signal_MxL)
            mean_M = np.where(seen_MxL, signal_MxL, 0).sum(1) / np.maximum(seen_MxL.sum(1), 1)
            series.append((offset_M, np.where(seen_MxL.any(1), mean_M, np.nan)))
            onsets.append(0.0)
            people.append(subject)
    if len(people) < 2:
        return None
    value_NxK = mechanisms.around_event(series, onsets, DRUG_EDGES, baseline=(DRUG_EDGES[0], 0.0))
    mean = mechanisms.profile(value_NxK, people, n_resamples=study.config.evaluate.n_resamples)
    found = {k.removesuffix("_K"): v for k, v in mean._asdict().items()}
    return {"channel": names[0], "edge_days": DRUG_EDGES, **found}


# ------------------------------------------------------------------------------------------------- single people


def people(study, folder):
    """Integrated gradients, rollout, occlusion and what-ifs of the held-out reads at highest risk."""
    options, row = study.config.interpret, study.joint
    simulated = study.config.data.source == "synthetic"
    if not (simulated or options.individuals) or study.task is None or not options.people:
        logging.info("  people: drawn for simulated cohorts, or with config.interpret.individuals")
        return []
    probe, reader = study.probes[row], study.rows[row]
    risk_N = probe.predict_proba(study.held_latents(row))
    chosen = study.held.with_columns(risk=risk_N).join(
        reader.patients.index.select("subject_id", "n_windows", "known_events"), on="subject_id", how="left"
    )
    shown = [pl.col(c) > 0 for m, c in (("ehr", "known_events"), ("wear", "n_windows")) if m in study.modalities(row)]
    chosen = chosen.filter(*shown).sort("risk", descending=True).unique("subject_id", keep="first", maintain_order=True)
    chosen = chosen.head(options.people)
    if not chosen.height:
        return []
    explained = explain(reader, probe, chosen, options.gradient_steps)
    changes = what_ifs(reader.patients, options)
    flat = {(kind, name): t for kind, part in changes.items() for name, t in part.items()}
    effects = attribution.effects(lambda change: probe.logit(study.read(row, chosen, change)), flat)
    arrays, out = {"channels": np.array(study.channels)}, []
    logit_N = probe.logit(study.read(row, chosen))
    for i, one in enumerate(explained):
        tokens = one.pop("tokens")
        arrays |= {f"{name}_{i}": one.pop(name) for name in ("attention", "wear", "wear_days")}
        record = {"risk": float(chosen["risk"][i]), "logit": float(logit_N[i]), **one}
        for kind in changes:
            record[kind] = {n: float(effects[kind, n][i]) for n in changes[kind]}
        out.append({**record, "tokens": tokens})
    np.savez(folder / "people.npz", **arrays)
    return out


def what_ifs(patients, options):
    """{kind: {name: transform}}: code groups, channels and periods hidden; drugs removed, a channel raised."""
    store = patients.store
    codes = sorted({c.split("//")[0] for c in patients.vocabulary.tokens["code"].to_list()[3:]})
    channels = patients.channels if "wear" in patients.config.modalities else ()
    if "ehr" not in patients.config.modalities:
        codes = []

    def without(*prefixes):
        return perturbations.drop_codes(perturbations.code_matcher(store.codes, prefixes))

    counterfactuals = {f"without {p.rstrip('/')}": without(p) for p in options.drug_prefixes} if codes else {}
    if options.raised_channel in channels:
        raised = perturbations.add_to_channel(options.raised_channel, options.raised_sd, scales=store.scales)
        counterfactuals[f"{options.raised_channel} raised by {options.raised_sd:g} SD"] = raised
    return {
        "groups": {c: without(c) for c in codes},
        "channels": {c: perturbations.occlude_channels([c], np.inf, -np.inf) for c in channels},
        "histories": {f"last {d:g} days": perturbations.truncate(d) for d in options.histories_days},
        "counterfactuals": counterfactuals,
    }


def explain(reader, probe, index, n_steps):
    """Per read of `index`: tokens with their part of the logit, the windows' parts, and the attention of the read.

    Returns:
      [{completeness_gap, tokens: [{days, label, gradient, rollout}], attention [N, H, T], wear [W, C], wear_days [W]}].
    """
    patients, network, params = reader.patients, reader.network, reader.params
    place = dict(zip(patients.index["subject_id"].to_list(), range(len(patients)), strict=True))
    times = index["prediction_time"].to_physical().to_numpy()
    rows = [
        next(pipeline.inference_batches(patients, [place[s]], [t], 1))[0]
        for s, t in zip(index["subject_id"].to_list(), times, strict=True)
    ]
    batch = {name: np.concatenate([r[name] for r in rows]) for name in rows[0]}  # one person a row
    mean_D, scale_D = (jnp.asarray(x, jnp.float32) for x in (probe.standardizer.mean_D, probe.standardizer.scale_D))
    weight_D = jnp.asarray(np.where(probe.standardizer.varies_D, probe.coef_D, 0.0), jnp.float32)

    def logit(z_BxTxD, z_BxQxD):
        del z_BxTxD
        return ((z_BxQxD[:, 0] - mean_D[None]) / scale_D[None]) @ weight_D + probe.intercept

    inputs, baseline = attribution.embedded_inputs(network, params, batch)
    score = attribution.score_of_embedded(network, params, batch, logit)
    found = attribution.integrated_gradients(score, inputs, baseline, n_steps=n_steps)
    token_BxT, wear_BxWxC = attribution.by_token(found)
    weights = jax.jit(lambda b: attention.attention_weights(network, params, b))(batch)
    rolled_BxT = attention.rollout(*weights)[1][:, 0]
    query_NxBxHxT = np.asarray(weights[1])[:, :, :, 0]
    names, out = patients.vocabulary.tokens["token"].to_list(), []
    for b in range(len(rows)):
        known = np.flatnonzero(batch["segment"][b] > 0)
        is_ehr = batch["modality"][b] == MODALITY_EHR
        days_T = batch["time"][b] - batch["query_time"][b, 0]
        slots = np.flatnonzero(batch["window_position"][b] >= 0)
        at = batch["window_position"][b, slots]
        gradient_T = np.where(is_ehr, token_BxT[b], 0.0)
        gradient_T[at] = wear_BxWxC[b, slots].sum(-1)
        out.append(
            {
                "completeness_gap": float(found.gap_B[b]),
                "tokens": [
                    {
                        "days": float(days_T[t]),
                        "label": names[batch["token"][b, t]] if is_ehr[t] else "wearable window",
                        "gradient": float(gradient_T[t]),
                        "rollout": float(rolled_BxT[b, t]),
                    }
                    for t in known
                ],
                "attention": query_NxBxHxT[:, b][:, :, known],
                "wear": wear_BxWxC[b, slots],
                "wear_days": days_T[at],
            }
        )
    return out


# ------------------------------------------------------------------------------------------- trained projections


def projected_pairs(study):
    """(ehr [N, S], wear [N, S], patient [N]) of held-out pairs where the network projects contents, else None.

    A network trained with a contrastive term puts unit vectors `pair_ehr` and `pair_wear` into its output, and the
    patient of each pair, or -1, lies in the batch as `pair_patient`.
    """
    reader = study.rows[study.joint]
    modalities = tuple(study.config.rows[study.joint])
    config = dataclasses.replace(reader.patients.config, masked_contexts=0.0, modalities=modalities)
    held = pipeline.Patients(prepare.open_store(study.workdir, study.fold, "held_out"), config)
    rows = pipeline.TrainRows(held, study.config.seed, augmented=False)
    size = study.config.embed.batch_size
    predict = jax.jit(lambda b: reader.network.apply({"params": reader.params}, b))
    batches = pipeline.train_batches(rows, size, n_steps=max(1, rows.rows_per_epoch // size), threads=0)
    first = next(batches)
    if "pair_patient" not in first or "pair_ehr" not in jax.eval_shape(predict, first):
        return None
    return collect_pairs(predict, [first, *batches])


def collect_pairs(predict, batches):
    """One pair per patient, the first: pairs of a patient's other times are neither candidates nor independent."""
    parts = []
    for batch in batches:
        found = predict(batch)
        real = batch["pair_patient"] >= 0
        parts.append(
            [np.asarray(found["pair_ehr"])[real], np.asarray(found["pair_wear"])[real], batch["pair_patient"][real]]
        )
    ehr, wear, patient = (np.concatenate(x) for x in zip(*parts, strict=True))
    _, first = np.unique(patient, return_index=True)
    return (ehr[first], wear[first], patient[first]) if len(first) > 1 else None
