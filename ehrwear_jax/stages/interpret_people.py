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

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl

from ehrwear_jax.data import perturbations
from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.evals.probes import LogisticProbe
from ehrwear_jax.interpret import attention, attribution, mechanisms
from ehrwear_jax.stages.loaded_run import LoadedNetwork, LoadedRun, prediction_times
from ehrwear_jax.stages.workdir import write_npz
from ehrwear_jax.training import feed
from ehrwear_jax.training.step import runs_once

JUMP_DAYS = np.array([1.0, 3.0, 7.0, 14.0, 30.0])
DRIFT_DAYS = np.array([1.0, 3.0, 7.0, 14.0])
PRECURSOR_DAYS, CONTROL_DAYS = (30.0, 7.0), (53.0, 30.0)
DRUG_EDGES = np.arange(-28.0, 29.0, 7.0)
PSEUDO_EVENT_DAYS = 120.0


def mechanisms_of(run: LoadedRun, model: str, folder: Path) -> dict[str, Any]:
    """The content of mechanisms.json."""
    del folder
    whiten = run.whitening(model)
    if whiten is None:  # latents that never differ move nowhere
        return dict.fromkeys(("jump", "drift", "precursors", "drug_start"))
    wear, ehr = "wear" in run.modalities(model), "ehr" in run.modalities(model)
    opened = hasattr(run.network(model).interpretation, "window_ends")
    return {
        "jump": _jump(run, model, whiten) if ehr else None,
        "drift": _drift(run, model, whiten) if wear else None,
        "precursors": _precursors(run, model) if wear and ehr and opened and run.task is not None else None,
        "drug_start": _drug_start(run, model) if wear and ehr else None,
    }


def _people(run, *splits):
    """(subject_id, position in the store) of people of some splits, at most config.interpret.mechanism_people."""
    wanted = run.subjects.filter(pl.col("split").is_in(splits))["subject_id"].sort().to_list()
    for subject in [s for s in wanted if s in run.position][: run.config.interpret.mechanism_people]:
        yield subject, run.position[subject]


def _matcher(run, prefixes):
    return perturbations.code_matcher(run.store.codes, prefixes)


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
    matches = _matcher(run, run.config.interpret.event_prefixes)
    people, onsets = [], []
    for subject, i in _people(run, "held_out"):
        record = run.record(model, i)
        onset = _first_time(record, matches, record.first_us + (PSEUDO_EVENT_DAYS + 2.0) * DAY_US)
        if onset is not None:
            people.append(subject)
            onsets.append(onset)
    if len(people) < 2:
        return None
    offsets = np.concatenate([[-1.0], JUMP_DAYS])
    out = {}
    for name, shift in (("event", 0.0), ("pseudo_event", -PSEUDO_EVENT_DAYS)):
        times = np.array(onsets)[:, None] + ((offsets + shift) * DAY_US).astype(np.int64)
        z = whiten(run.embed(model, prediction_times(np.repeat(people, len(offsets)), times.ravel())))
        moved = mechanisms.displacement(z.reshape(len(people), len(offsets), -1))
        out[name] = _summary(moved[:, 1:], JUMP_DAYS, people, run)
    return out


def _drift(run, model, whiten):
    """z with a channel raised from a day on against z without, in people who wear a device until the last time."""
    options, channels = run.config.interpret, run.store.channels
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
        raised = perturbations.add_to_channel(options.raised_channel, options.raised_sd, run.store.scales, days)
        z = [whiten(run.embed(model, times, change)) for change in (None, raised)]
        moved.append(np.linalg.norm(z[1] - z[0], axis=1))
    found = _summary(np.stack(moved, axis=1), DRIFT_DAYS, people, run)
    return {"channel": options.raised_channel, "raised_sd": options.raised_sd, **found}


def _precursors(run, model):
    """Times just before events of held-out and tuning people, with a window 30 to 7 days earlier in the context."""
    loaded, probe = run.network(model), run.probe(model)
    matches = _matcher(run, run.config.interpret.event_prefixes)
    people, ends, control = [], [], []
    for subject, i in _people(run, "held_out", "tuning"):
        record = run.record(model, i)
        for event in np.unique(record.time_K[matches(record.code_K)]):
            before_M = (event - loaded.interpretation.window_ends(loaded.examples, i, event - 1)) / DAY_US
            seen = [((before_M < b) & (before_M >= e)).any() for b, e in (PRECURSOR_DAYS, CONTROL_DAYS)]
            if seen[0]:
                people.append(subject)
                ends.append(int(event) - 1)  # the event itself is not known yet
                control.append(seen[1])
    names = [c for c in run.config.interpret.precursor_channels if c in run.store.channels]
    if len(set(people)) < 2 or not names:
        return None
    times = prediction_times(people, ends)
    changes = {}
    for label, period in (("30 to 7 days", PRECURSOR_DAYS), ("53 to 30 days (control)", CONTROL_DAYS)):
        for name in names:
            changes[f"{name}, {label}"] = perturbations.occlude_channels([name], *period)
    effects = attribution.effects(lambda change: probe.logit(run.embed(model, times, change)), changes)
    out: dict[str, dict] = {}
    for name in names:
        mine = {k: v for k, v in effects.items() if k.startswith(f"{name}, ")}
        found = mechanisms.precursors(mine, list(mine)[1], people, n_resamples=run.config.evaluate.n_resamples)
        out |= {k: v._asdict() | {"control_seen": float(np.mean(control))} for k, v in found.items()}
    return out


def _drug_start(run, model):
    """A signal around the first code of a drug, in the whole cohort: a description of the data, not of the model."""
    options = run.config.interpret
    names = [c for c in options.response_channels if c in run.store.channels]
    if not names:
        return None
    channel, matches = run.store.channels.index(names[0]), _matcher(run, options.drug_prefixes)
    series, onsets, people = [], [], []
    for subject, i in _people(run, "train", "tuning", "held_out"):
        record = run.record(model, i)
        onset = _first_time(record, matches)
        offset_M = (record.window_end_M - (onset or 0)) / DAY_US
        if onset is not None and (offset_M < 0).any() and (offset_M >= 0).any():
            signal_MxL = run.store.scales.standardise(record.window_MxLxC)[..., channel]
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


def people(run: LoadedRun, model: str, folder: Path) -> list[dict[str, Any]]:
    """Integrated gradients, rollout, occlusion and counterfactuals at the held-out prediction times of highest risk."""
    options, loaded = run.config.interpret, run.network(model)
    simulated = run.config.data.source == "synthetic"
    if not (simulated or options.individuals) or run.task is None or not options.people:
        logging.info("  people: drawn for simulated cohorts, or with config.interpret.individuals")
        return []
    if not hasattr(loaded.interpretation, "embedded_inputs"):
        return []
    probe = run.probe(model)
    risk_N = probe.predict_proba(run.held_latents(model))
    chosen = run.held.with_columns(risk=risk_N).join(
        run.store.index.select("subject_id", "n_windows", "known_events"), on="subject_id", how="left"
    )
    shown = [pl.col(c) > 0 for m, c in (("ehr", "known_events"), ("wear", "n_windows")) if m in run.modalities(model)]
    chosen = chosen.filter(*shown).sort("risk", descending=True).unique("subject_id", keep="first", maintain_order=True)
    chosen = chosen.head(options.people)
    if not chosen.height:
        return []
    explained = explain(loaded, probe, run.position, chosen, options.gradient_steps)
    changes = perturbations_by_kind(run, model)
    flat = {(kind, name): t for kind, part in changes.items() for name, t in part.items()}
    effects = attribution.effects(lambda change: probe.logit(run.embed(model, chosen, change)), flat)
    arrays: dict[str, Any] = {"channels": np.array(run.store.channels)}
    out = []
    logit_N = probe.logit(run.embed(model, chosen))
    for i, one in enumerate(explained):
        tokens = one.pop("tokens")
        arrays |= {f"{name}_{i}": one.pop(name) for name in ("attention", "wear", "wear_days")}
        record = {"risk": float(chosen["risk"][i]), "logit": float(logit_N[i]), **one}
        for kind in changes:
            record[kind] = {n: float(effects[kind, n][i]) for n in changes[kind]}
        out.append({**record, "tokens": tokens})
    write_npz(folder / "people.npz", **arrays)
    return out


def perturbations_by_kind(run: LoadedRun, model: str) -> dict[str, dict[str, Callable]]:
    """{kind: {name: transform}}: code groups, channels and periods hidden; drugs removed, a channel raised."""
    options, store, given = run.config.interpret, run.store, run.modalities(model)
    known = store.code_statistics["alias"].drop_nulls().unique()
    codes = sorted({store.codes["code"][int(c)].split("//")[0] for c in known}) if "ehr" in given else []
    channels = store.channels if "wear" in given else ()

    def without(*prefixes):
        return perturbations.drop_codes(_matcher(run, prefixes))

    counterfactuals = {f"without {p.rstrip('/')}": without(p) for p in options.drug_prefixes} if codes else {}
    if options.raised_channel in channels:
        raised = perturbations.add_to_channel(options.raised_channel, options.raised_sd, store.scales)
        counterfactuals[f"{options.raised_channel} raised by {options.raised_sd:g} SD"] = raised
    return {
        "groups": {c: without(c) for c in codes},
        "channels": {c: perturbations.occlude_channels([c], np.inf, -np.inf) for c in channels},
        "histories": {f"last {d:g} days": perturbations.truncate(d) for d in options.histories_days},
        "counterfactuals": counterfactuals,
    }


def explain(
    loaded: LoadedNetwork, probe: LogisticProbe, position: dict[int, int], times: pl.DataFrame, n_steps: int
) -> list[dict[str, Any]]:
    """Per prediction time: tokens with their part of the logit, the windows' parts, and the attention of the query.

    Args:
      position: {subject_id: of the examples' people}.
      times: subject_id, prediction_time.
      n_steps: nodes of the integrated gradients.

    Returns:
      [{completeness_gap, tokens: [{days, label, gradient, rollout}], attention [N, H, T], wear [W, C], wear_days [W]}].
    """
    module, network, params = loaded.interpretation, loaded.network, loaded.variables["params"]
    ends = times["prediction_time"].to_physical().to_list()
    batch = module.one_time_a_row(loaded.examples, [position[s] for s in times["subject_id"].to_list()], ends)
    inputs, baseline = module.embedded_inputs(network, params, batch)
    score = module.score_of_embedded(network, params, batch, _logit_of(probe))
    once = runs_once(jax.default_backend())
    found = attribution.integrated_gradients(score, inputs, baseline, n_steps=n_steps, compiler_options=once)
    weights = jax.jit(lambda b: attention.attention_weights(network, params, b), compiler_options=once)(batch)
    rolled_BxT = attention.rollout(*weights)[1][:, 0]
    query_NxBxHxT = np.asarray(weights[1])[:, :, :, 0]
    out = []
    for b in range(times.height):
        shown = module.shown(loaded.examples, batch, b, *attribution.by_token(found))
        tokens = [
            {
                "days": float(shown.days_T[t]),
                "label": shown.label_T[t],
                "gradient": float(shown.gradient_T[t]),
                "rollout": float(rolled_BxT[b, t]),
            }
            for t in shown.known
        ]
        attended = query_NxBxHxT[:, b][:, :, shown.known]
        wear = {"wear": shown.wear_WxC, "wear_days": shown.wear_days_W}
        out.append({"completeness_gap": float(found.gap_B[b]), "tokens": tokens, "attention": attended, **wear})
    return out


def _logit_of(probe: LogisticProbe) -> Callable:
    """z of queries [B, Q, D] -> the probe's logit at the first query, in JAX."""
    mean_D, scale_D = (jnp.asarray(x, jnp.float32) for x in (probe.standardizer.mean_D, probe.standardizer.scale_D))
    weight_D = jnp.asarray(np.where(probe.standardizer.varies_D, probe.coef_D, 0.0), jnp.float32)
    return lambda z_BxQxD: ((z_BxQxD[:, 0] - mean_D[None]) / scale_D[None]) @ weight_D + probe.intercept


def projected_pairs(run: LoadedRun, model: str) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """(ehr [N, S], wear [N, S], patient [N]) of held-out pairs where the network projects contents, else None."""
    loaded = run.network(model)
    if not hasattr(loaded.interpretation, "projected_pairs"):
        return None
    size, family = run.config.embed.batch_size, loaded.model.module
    config = loaded.interpretation.unmasked(loaded.model.config)
    held = family.examples(run.store.view("held_out"), config, run.config.data.seed, train=False)
    batches = feed.train_batches(held, size, n_steps=max(1, held.rows_per_epoch // size), threads=0)
    return loaded.interpretation.projected_pairs(loaded.network, loaded.variables["params"], batches)
