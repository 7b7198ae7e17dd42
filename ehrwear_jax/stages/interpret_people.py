"""Interprets people over time: mechanisms, and attributions of single predictions.

mechanisms.json   {"jump": {event, pseudo_event: {offset_days, mean, lo, hi, n, first_share, half_days}}: distance of
                  whitened z from z a day before an event, and before the same people's time 120 days earlier.
                  "drift": {channel, raised_sd, offset_days, mean, ...}: distance between z with a channel raised from
                  day 0 on and z without.
                  "precursors": {name: {mean, lo, hi, difference, difference_lo, difference_hi, p_value, n,
                  control_seen}}: |change| of the probe's logit just before an event when a channel is hidden 30 to 7
                  days before it; control: the same 53 to 30 days before it. control_seen is the share of prediction
                  times whose context holds a window of the control's period; where it is small, the difference is
                  unreliable.
                  "drug_start": {channel, edge_days, mean, lo, hi, n}: a channel around the first drug code, in
                  standard deviations, as the change from the 28 days before.}
                  A part is null where the cohort has no such people.
people.json       [{risk, logit, groups, channels, histories, counterfactuals: {name: change of the logit},
                  completeness_gap, tokens: [{days, label, gradient, rollout}]}]: days before the prediction time.
people.npz        attention_<i> [layers, heads, tokens] of the query; wear_<i> [windows, channels], its integrated
                  gradients; wear_days_<i> [windows]; channels.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl

from ehrwear_jax.data import perturbations
from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.evals.probes import LogisticProbe
from ehrwear_jax.interpret import attention, attribution, geometry, mechanisms
from ehrwear_jax.models.joint import context, examples
from ehrwear_jax.models.joint.batch import MODALITY_EHR
from ehrwear_jax.stages.loaded_run import LoadedModel, LoadedRun, prediction_times

JUMP_DAYS = np.array([1.0, 3.0, 7.0, 14.0, 30.0])
DRIFT_DAYS = np.array([1.0, 3.0, 7.0, 14.0])
PRECURSOR_DAYS, CONTROL_DAYS = (30.0, 7.0), (53.0, 30.0)
DRUG_EDGES = np.arange(-28.0, 29.0, 7.0)
PSEUDO_EVENT_DAYS = 120.0


def mechanisms_of(run: LoadedRun, folder: Path) -> dict[str, Any]:
    """The content of mechanisms.json; {} without a model."""
    del folder
    model = run.joint
    if model is None:
        return {}
    whiten = geometry.fit_whitening(run.train_latents(model))
    wear, ehr = "wear" in run.modalities(model), "ehr" in run.modalities(model)
    return {
        "jump": _jump(run, model, whiten) if ehr else None,
        "drift": _drift(run, model, whiten) if wear else None,
        "precursors": _precursors(run, model) if wear and ehr and run.task is not None else None,
        "drug_start": _drug_start(run) if wear and ehr else None,
    }


def _people(run, *splits):
    """(subject_id, position in the store) of people of some splits, at most config.interpret.mechanism_people."""
    position = dict(zip(run.store.index["subject_id"].to_list(), range(len(run.store)), strict=True))
    wanted = run.subjects.filter(pl.col("split").is_in(splits))["subject_id"].sort().to_list()
    for subject in [s for s in wanted if s in position][: run.config.interpret.mechanism_people]:
        yield subject, position[subject]


def _matcher(study, prefixes):
    return perturbations.code_matcher(study.store.codes, prefixes)


def _first_time(record, matches, not_before=-np.inf):
    """When a code first occurs from a time on, None if it does not."""
    times = record.time_K[matches(record.code_K)]
    times = times[times >= not_before]
    return int(times.min()) if len(times) else None


def _summary(displacement_NxK, offset_days, groups, run):
    mean = mechanisms.profile(displacement_NxK, groups, n_resamples=run.config.evaluate.n_resamples)
    rise = mechanisms.rise(displacement_NxK, offset_days)
    out = {"offset_days": offset_days, **{k.removesuffix("_K"): v for k, v in mean._asdict().items()}}
    moved = np.isfinite(rise.first_share_N)
    first, half = (np.median(x[moved]) if moved.any() else np.nan for x in rise)
    return {**out, "first_share": first, "half_days": half}


def _jump(run, model, whiten):
    """z around the first event that has 122 days of record before it, and around a time 120 days earlier."""
    loaded, matches = run.models[model], _matcher(run, run.config.interpret.event_prefixes)
    people, onsets = [], []
    for subject, i in _people(run, "held_out"):
        record = loaded.record(i)
        onset = _first_time(record, matches, record.first_us + (PSEUDO_EVENT_DAYS + 2.0) * DAY_US)
        if onset is not None:
            people.append(subject)
            onsets.append(onset)
    if len(people) < 2:
        return None
    offsets, out = np.concatenate([[-1.0], JUMP_DAYS]), {}
    for name, shift in (("event", 0.0), ("pseudo_event", -PSEUDO_EVENT_DAYS)):
        times = np.array(onsets)[:, None] + ((offsets + shift) * DAY_US).astype(np.int64)
        z = whiten(run.embed(model, prediction_times(np.repeat(people, len(offsets)), times.ravel())))
        moved = mechanisms.displacement(z.reshape(len(people), len(offsets), -1))
        out[name] = _summary(moved[:, 1:], JUMP_DAYS, people, run)
    return out


def _drift(run, model, whiten):
    """z with a channel raised from a day on against z without, in people who wear a device until the last time."""
    options, channels = run.config.interpret, run.channels
    if options.raised_channel not in channels:
        return None
    people, onsets = [], []
    for subject, i in _people(run, "held_out"):
        ends = run.store[i].window_end_M
        if len(ends) and ends[-1] - ends[0] > DRIFT_DAYS[-1] * DAY_US:
            people.append(subject)
            onsets.append(int(ends[-1] - DRIFT_DAYS[-1] * DAY_US))
    if len(people) < 2:
        return None
    moved = []
    for days in DRIFT_DAYS:
        times = prediction_times(people, np.array(onsets) + int(days * DAY_US))
        raised = perturbations.add_to_channel(options.raised_channel, options.raised_sd, days, scales=run.store.scales)
        z = [whiten(run.embed(model, times, change)) for change in (None, raised)]
        moved.append(np.linalg.norm(z[1] - z[0], axis=1))
    found = _summary(np.stack(moved, axis=1), DRIFT_DAYS, people, run)
    return {"channel": options.raised_channel, "raised_sd": options.raised_sd, **found}


def _precursors(run, model):
    """Times just before events of held-out and tuning people, with a window 30 to 7 days earlier in the context."""
    loaded, probe = run.models[model], run.probes[model]
    matches = _matcher(run, run.config.interpret.event_prefixes)
    people, ends, control = [], [], []
    for subject, i in _people(run, "held_out", "tuning"):
        record = loaded.record(i)
        for event in np.unique(record.time_K[matches(record.code_K)]):
            before_M = (event - _context_windows(loaded, i, event - 1)) / DAY_US
            seen = [((before_M < b) & (before_M >= e)).any() for b, e in (PRECURSOR_DAYS, CONTROL_DAYS)]
            if seen[0]:
                people.append(subject)
                ends.append(int(event) - 1)  # the event itself is not known yet
                control.append(seen[1])
    names = [c for c in run.config.interpret.precursor_channels if c in run.channels]
    if len(set(people)) < 2 or not names:
        return None
    times = prediction_times(people, ends)
    changes = {}
    for label, period in (("30 to 7 days", PRECURSOR_DAYS), ("53 to 30 days (control)", CONTROL_DAYS)):
        for name in names:
            changes[f"{name}, {label}"] = perturbations.occlude_channels([name], *period)
    effects = attribution.effects(lambda change: probe.logit(run.embed(model, times, change)), changes)
    out = {}
    for name in names:
        mine = {k: v for k, v in effects.items() if k.startswith(f"{name}, ")}
        found = mechanisms.precursors(mine, list(mine)[1], people, n_resamples=run.config.evaluate.n_resamples)
        out |= {k: v._asdict() | {"control_seen": float(np.mean(control))} for k, v in found.items()}
    return out


def _context_windows(patients, patient, time_us):
    """When the windows end that the context at a time holds."""
    stop = int(np.searchsorted(patient.time_N, time_us, side="right"))
    span = context.fit(patient, stop, patients.config.context_tokens, patients.batch_shape().windows)
    shown = span.places(patient)
    return patient.time_N[shown][patient.is_wear_N[shown]]


def _drug_start(run):
    """A signal around the first code of a drug, in the whole cohort: a description of the data, not of the model."""
    options, model = run.config.interpret, run.joint
    names = [c for c in options.response_channels if c in run.channels]
    if not names:
        return None
    channel = run.channels.index(names[0])
    loaded, matches = run.models[model], _matcher(run, options.drug_prefixes)
    series, onsets, people = [], [], []
    for subject, i in _people(run, "train", "tuning", "held_out"):
        record = loaded.record(i)
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
    mean = mechanisms.profile(value_NxK, people, n_resamples=run.config.evaluate.n_resamples)
    found = {k.removesuffix("_K"): v for k, v in mean._asdict().items()}
    return {"channel": names[0], "edge_days": DRUG_EDGES, **found}


# ------------------------------------------------------------------------------------------------- single people


def people(run: LoadedRun, folder: Path) -> list[dict[str, Any]]:
    """Integrated gradients, rollout, occlusion and counterfactuals at the held-out prediction times of highest risk."""
    options, model = run.config.interpret, run.joint
    simulated = run.config.data.source == "synthetic"
    if not (simulated or options.individuals) or run.task is None or not options.people:
        logging.info("  people: drawn for simulated cohorts, or with config.interpret.individuals")
        return []
    probe = run.probes[model]
    risk_N = probe.predict_proba(run.held_latents(model))
    chosen = run.held.with_columns(risk=risk_N).join(
        run.store.index.select("subject_id", "n_windows", "known_events"), on="subject_id", how="left"
    )
    shown = [pl.col(c) > 0 for m, c in (("ehr", "known_events"), ("wear", "n_windows")) if m in run.modalities(model)]
    chosen = chosen.filter(*shown).sort("risk", descending=True).unique("subject_id", keep="first", maintain_order=True)
    chosen = chosen.head(options.people)
    if not chosen.height:
        return []
    explained = explain(loaded, probe, chosen, options.gradient_steps)
    changes = perturbations_by_kind(loaded.patients, options)
    flat = {(kind, name): t for kind, part in changes.items() for name, t in part.items()}
    effects = attribution.effects(lambda change: probe.logit(run.embed(model, chosen, change)), flat)
    arrays, out = {"channels": np.array(run.channels)}, []
    logit_N = probe.logit(run.embed(model, chosen))
    for i, one in enumerate(explained):
        tokens = one.pop("tokens")
        arrays |= {f"{name}_{i}": one.pop(name) for name in ("attention", "wear", "wear_days")}
        record = {"risk": float(chosen["risk"][i]), "logit": float(logit_N[i]), **one}
        for kind in changes:
            record[kind] = {n: float(effects[kind, n][i]) for n in changes[kind]}
        out.append({**record, "tokens": tokens})
    np.savez(folder / "people.npz", **arrays)
    return out


def perturbations_by_kind(patients: examples.Patients, options: Any) -> dict[str, dict[str, Callable]]:
    """{kind: {name: transform}}: code groups, channels and periods hidden; drugs removed, a channel raised.

    Args:
      options: config.interpret.
    """
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


def explain(model: LoadedModel, probe: LogisticProbe, times: pl.DataFrame, n_steps: int) -> list[dict[str, Any]]:
    """Per prediction time: tokens with their part of the logit, the windows' parts, and the attention of the query.

    Args:
      times: subject_id, prediction_time.
      n_steps: nodes of the integrated gradients.

    Returns:
      [{completeness_gap, tokens: [{days, label, gradient, rollout}], attention [N, H, T], wear [W, C], wear_days [W]}].
    """
    patients, network, params = model.patients, model.network, model.params
    batch = _one_person_a_row(patients, times)
    inputs, baseline = attribution.embedded_inputs(network, params, batch)
    score = attribution.score_of_embedded(network, params, batch, _logit_of(probe))
    found = attribution.integrated_gradients(score, inputs, baseline, n_steps=n_steps)
    weights = jax.jit(lambda b: attention.attention_weights(network, params, b))(batch)
    rolled_BxT = attention.rollout(*weights)[1][:, 0]
    query_NxBxHxT = np.asarray(weights[1])[:, :, :, 0]
    names, out = patients.vocabulary.tokens["token"].to_list(), []
    for b in range(times.height):
        parts = _parts(batch, b, *attribution.by_token(found))
        tokens = [
            {
                "days": float(parts.days_T[t]),
                "label": names[batch["token"][b, t]] if parts.is_ehr_T[t] else "wearable window",
                "gradient": float(parts.gradient_T[t]),
                "rollout": float(rolled_BxT[b, t]),
            }
            for t in parts.known
        ]
        attended = query_NxBxHxT[:, b][:, :, parts.known]
        wear = {"wear": parts.wear_WxC, "wear_days": parts.wear_days_W}
        out.append({"completeness_gap": float(found.gap_B[b]), "tokens": tokens, "attention": attended, **wear})
    return out


def _one_person_a_row(patients, times) -> dict[str, np.ndarray]:
    """A batch with one prediction time in each row."""
    position = dict(zip(patients.index["subject_id"].to_list(), range(len(patients)), strict=True))
    ends = times["prediction_time"].to_physical().to_numpy()
    rows = [
        next(examples.inference_batches(patients, [position[s]], [t], 1))[0]
        for s, t in zip(times["subject_id"].to_list(), ends, strict=True)
    ]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _logit_of(probe: LogisticProbe) -> Callable:
    """(z of tokens, z of queries) -> the probe's logit at the first query, in JAX."""
    mean_D, scale_D = (jnp.asarray(x, jnp.float32) for x in (probe.standardizer.mean_D, probe.standardizer.scale_D))
    weight_D = jnp.asarray(np.where(probe.standardizer.varies_D, probe.coef_D, 0.0), jnp.float32)

    def logit(z_BxTxD, z_BxQxD):
        del z_BxTxD
        return ((z_BxQxD[:, 0] - mean_D[None]) / scale_D[None]) @ weight_D + probe.intercept

    return logit


class _Parts(NamedTuple):
    """Attribution of one row of a batch; known: positions of its tokens."""

    known: np.ndarray
    is_ehr_T: np.ndarray
    days_T: np.ndarray
    gradient_T: np.ndarray
    wear_WxC: np.ndarray
    wear_days_W: np.ndarray


def _parts(batch, b: int, token_BxT: np.ndarray, wear_BxWxC: np.ndarray) -> _Parts:
    is_ehr_T, days_T = batch["modality"][b] == MODALITY_EHR, batch["time"][b] - batch["query_time"][b, 0]
    slots = np.flatnonzero(batch["window_position"][b] >= 0)
    at = batch["window_position"][b, slots]
    gradient_T = np.where(is_ehr_T, token_BxT[b], 0.0)
    gradient_T[at] = wear_BxWxC[b, slots].sum(-1)
    known = np.flatnonzero(batch["segment"][b] > 0)
    return _Parts(known, is_ehr_T, days_T, gradient_T, wear_BxWxC[b, slots], days_T[at])


# ------------------------------------------------------------------------------------------- trained projections


def projected_pairs(run: LoadedRun) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """(ehr [N, S], wear [N, S], patient [N]) of held-out pairs where the network projects contents, else None.

    A network trained with a contrastive term puts unit vectors `pair_ehr` and `pair_wear` into its output, and the
    patient of each pair, or -1, lies in the batch as `pair_patient`.
    """
    model = run.models[run.joint]
    modalities = tuple(run.config.rows[run.joint])
    config = dataclasses.replace(model.patients.config, masked_contexts=0.0, modalities=modalities)
    held = examples.Patients(run.workdir / "prepare" / run.fold, config, "held_out")
    rows = examples.TrainRows(held, run.config.seed, augmented=False)
    size = run.config.embed.batch_size
    predict = jax.jit(lambda b: model.network.apply({"params": model.params}, b))
    batches = examples.train_batches(rows, size, n_steps=max(1, rows.rows_per_epoch // size), threads=0)
    first = next(batches)
    if "pair_patient" not in first or "pair_ehr" not in jax.eval_shape(predict, first):
        return None
    return collect_pairs(predict, [first, *batches])


def collect_pairs(
    predict: Callable, batches: Iterable[Mapping[str, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
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
