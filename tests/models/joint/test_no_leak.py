"""No prediction depends on what it must not see, by derivative: every Jacobian is exactly zero there.

Rows are packed with several contexts and have simultaneous events. Integer inputs, which have no derivative, are
changed instead, in test_train.py and below.
"""

import cohort
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ehrwear_jax.models.joint import batch as batch_lib
from ehrwear_jax.models.joint import examples as pipeline
from ehrwear_jax.models.joint import losses
from ehrwear_jax.training import sharding, train

CONTEXT = {"tokens": 40, "windows": 16, "context_tokens": 30, "queries": 6, "events": 6, "patch_steps": 3, "pairs": 4,
           "colocated_days": 90.0, "pool_days": 400.0, "future_windows": 2, "future_codes": 4, "masked_contexts": 1.0,
           "ehr_mask": 0.4}  # fmt: skip
MODEL = {"width": 8, "n_layers": 2, "n_heads": 2, "mlp_width": 16, "token_width": 8, "time_features": 8,
         "wear_width": 8, "wear_layers": 1, "wear_heads": 2, "source_width": 4, "align_width": 4, "count_width": 4,
         "posterior": "normal", "raw_width": 4}  # fmt: skip
# term: its predictions
PREDICTIONS = {
    "ehr_masked": ("masked_logits",),
    "ehr_next": ("next_logits_event", "next_logits_query"),
    "ehr_later": ("later_logits",),
    "ehr_recall": ("recall_logits",),
    "wear_masked": ("rebuilt",),
    "wear_ahead": ("ahead_window", "ahead_query"),
    "wear_recall": ("past_summary",),
    "wear_to_ehr": ("pooled_logits_event", "pooled_logits_query"),
    "ehr_to_wear": ("summary_event", "summary_query"),
    "contrast": ("pair_ehr", "pair_wear"),
    "content_norm": ("content",),
    "latent_kl": ("mean_token", "variance_token", "mean_query", "variance_query"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = cohort.write_cohort(tmp_path_factory.mktemp("cohort"), n_subjects=25, wear_days=2)
    return cohort.prepare_cohort(root)


def with_raw_windows(batch):
    """The batch with two raw windows in each wearable window, one of them in a hidden patch: the model hides it."""
    rng = np.random.default_rng(2)
    slot = np.repeat(np.arange(CONTEXT["windows"]), 2)
    raw = rng.normal(size=(1, len(slot), 32, 1)).astype(np.float32)
    slot = np.where(batch["window_position"][:, slot] >= 0, slot, -1).astype(np.int32)
    hidden = batch["patch_mask"][0].argmax(axis=1).repeat(2)
    patch = np.where(np.arange(len(hidden)) % 2, hidden, rng.integers(0, batch["patch_mask"].shape[2], len(hidden)))
    patch = patch[None].astype(np.int32)
    return batch | {"raw": raw, "raw_observed": rng.random(raw.shape) < 0.9, "raw_window": slot, "raw_patch": patch}


def make_rows(folder, **options):
    return pipeline.TrainRows(cohort.open_patients(folder, pipeline.ContextConfig(**CONTEXT | options), "train"), 0)


def places(batch, name):
    """First and last + 1 position that each prediction of this name may see, and which predictions are real."""
    if name.endswith("query") or name in ("later_logits", "recall_logits", "past_summary"):
        return (*np.moveaxis(batch["query_kv_range"][0], -1, 0), batch["query_segment"][0] > 0)
    if name == "pair_ehr":
        return (*np.moveaxis(batch["pair_near"][0], -1, 0), batch["pair_patient"][0] >= 0)
    field = {"masked_logits": "masked_position", "rebuilt": "window_position", "ahead_window": "window_position",
             "pair_wear": "pair_position"}.get(name, "event_position")  # fmt: skip
    if name in ("content", "mean_token", "variance_token"):
        at = np.where(batch["segment"][0] > 0, np.arange(CONTEXT["tokens"]), -1)
    else:
        at = batch[field][0]
    return batch["kv_range"][0][np.maximum(at, 0), 0], at + 1, at >= 0


def likely_leaks(row):
    """What makes leaks likely in a row: {name: how much of it}."""
    same = (np.diff(row["segment"]) == 0) & (row["segment"][1:] > 0)
    events = row["modality"] == batch_lib.MODALITY_EHR
    dated = (row["time"][1:] > 0) & events[1:] & events[:-1]
    is_wear = row["modality"] == batch_lib.MODALITY_WEAR
    return {
        "other patients": row["segment"].max() - 1,
        "simultaneous events": (same & dated & (np.diff(row["time"]) == 0)).sum(),
        "hidden events": (row["masked_position"] >= 0).sum(),
        "hidden steps": (row["patch_mask"] & row["observed"].any((1, 2))[:, None]).sum(),
        "pooled reads": sum(is_wear[lo:hi].any() for lo, hi in row["event_pool"]),
        "pairs": (row["pair_patient"] >= 0).sum(),
    }


@pytest.fixture(scope="module")
def case(folder):
    """(batch of one row, {prediction: {input: Jacobian [N, *input]}})."""
    rows = make_rows(folder)
    score = [sum(min(n, 2) for n in likely_leaks(rows[g]).values()) for g in range(rows.rows_per_epoch)]
    batch = with_raw_windows({k: v[None] for k, v in rows[int(np.argmax(score))].items()})
    model = train.make_model(rows.patients, MODEL)
    optimizer = train.make_optimizer(
        train.TrainConfig(steps=2, batch_size=1, peak_learning_rate=1e-3, warmup_steps=1, weights={})
    )
    params = train.init_state(model, optimizer, rows.patients, 0, sharding.make_mesh(jax.devices()[:1]))["params"]
    if "raw" not in params:  # the prepared cohort has no raw windows
        params |= {"raw": jax.jit(lambda k: model.init(k, batch))(jax.random.key(3))["params"]["raw"]}
    # weights far from zero, so that a leak cannot hide behind a small initial scale
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    params = tree.unflatten([x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)])
    names = [name for found in PREDICTIONS.values() for name in found]

    def predict(inputs):
        content = {"content": inputs["content"]}
        rest = batch | {k: v for k, v in inputs.items() if k != "content"}
        out = model.apply({"params": params, "perturbations": content}, rest)
        found = {}
        for i, name in enumerate(names):
            flat = out[name][0].reshape(out[name].shape[1], -1)
            found[name] = flat @ jax.random.normal(jax.random.key(i), (flat.shape[1],))  # a random cotangent
        return found

    inputs = {k: jnp.asarray(batch[k]) for k in ("value", "wear", "raw", "time", "age")}
    inputs["content"] = jnp.zeros((1, CONTEXT["tokens"], MODEL["width"]))
    jacobian = jax.jit(jax.jacrev(predict))(inputs)
    return batch, jax.tree.map(lambda x: np.asarray(x)[:, 0], jacobian)


def test_the_row_has_what_makes_leaks_likely(case):
    batch, _ = case
    found = likely_leaks({k: v[0] for k, v in batch.items()})
    assert all(n > 0 for n in found.values()), found
    assert set(PREDICTIONS) == set(losses.TERMS)


@pytest.mark.parametrize("term", losses.TERMS)
def test_jacobian_is_zero_for_later_positions_and_other_patients(case, term):
    batch, jacobian = case
    position = np.arange(CONTEXT["tokens"])
    at_window = batch["window_position"][0]
    checked = 0
    for name in PREDICTIONS[term]:
        lo, hi, real = places(batch, name)
        assert real.any(), name
        allowed = (position >= lo[:, None]) & (position < hi[:, None])
        by_input = jacobian[name]
        for field in ("content", "value", "time", "age"):
            grad = by_input[field].reshape(*by_input[field].shape[:2], -1)
            assert not grad[real][~allowed[real]].any(), (name, field)
        window = (at_window >= lo[:, None]) & (at_window < hi[:, None]) & (at_window >= 0)
        if name == "pair_ehr":
            window &= False  # events say nothing of the signal
        assert not by_input["wear"][real][~window[real]].any(), (name, "wear")
        slot = batch["raw_window"][0]
        assert not by_input["raw"][real][~(window[:, slot] & (slot >= 0))[real]].any(), (name, "raw")
        checked += (~allowed[real]).sum()
        seen = by_input["content"][real][allowed[real]]
        assert np.isfinite(seen).all() and np.any(seen != 0), f"{name} sees something"
    assert checked > 50


@pytest.mark.parametrize("term", losses.TERMS)
def test_jacobian_is_zero_for_hidden_signal(case, term):
    """Steps that are hidden, and steps that were not measured."""
    batch, jacobian = case
    hidden = np.repeat(batch["patch_mask"][0], CONTEXT["patch_steps"], axis=-1)[..., None] | ~batch["observed"][0]
    hidden |= batch["channel_mask"][0][:, None]
    target = (hidden & batch["observed"][0])[batch["window_position"][0] >= 0]
    assert target.sum() > 20
    in_patch = batch["patch_mask"][0][batch["raw_window"][0], batch["raw_patch"][0]]
    hidden_raw = in_patch[:, None, None] | ~batch["raw_observed"][0]
    assert in_patch.sum() > 3
    for name in PREDICTIONS[term]:
        assert not jacobian[name]["wear"][:, hidden].any(), name
        assert not jacobian[name]["raw"][:, hidden_raw].any(), name
        if name not in ("pair_ehr", "masked_logits"):  # the last may have no window before it
            assert jacobian[name]["wear"][:, ~hidden].any(), f"{name} sees the other steps"
            assert jacobian[name]["raw"][:, ~hidden_raw].any(), f"{name} sees the other raw samples"


def test_derivatives_reach_simultaneous_events_that_come_first_only(case):
    """Of two events at one time, the earlier in order is seen by the later one, and not the other way round."""
    batch, jacobian = case
    segment, time = batch["segment"][0], batch["time"][0]
    first = np.nonzero((segment[:-1] == segment[1:]) & (segment[:-1] > 0) & (time[:-1] == time[1:]))[0]
    grad = np.abs(jacobian["mean_token"]["content"]).sum(-1)
    assert len(first) and np.all(grad[first, first + 1] == 0) and np.all(grad[first + 1, first] > 0)


def test_hidden_events_leave_no_trace_in_any_input(folder):
    """Other codes and values behind the masks and the same draws: the same rows but for what is predicted."""
    inputs = ("token", "value", "modality", "time", "age", "segment", "kv_range", "window", "wear", "observed",
              "patch_mask", "channel_mask", "window_position", "query_time", "query_age", "query_segment",
              "query_kv_range", "pair_position", "pair_near", "query_token_bin")  # fmt: skip
    rows, other = make_rows(folder, mask_temperature=0.0), make_rows(folder, mask_temperature=0.0)
    n_changed = 0
    for g in range(rows.rows_per_epoch):
        row, records = rows[g], []
        places = [drawn.place for drawn, _ in rows.contexts(g)]
        for s, i in enumerate(places, start=1):
            patient, at = other.patients[int(i)], np.nonzero(row["segment"] == s)[0]
            events = at[(row["modality"][at] == batch_lib.MODALITY_EHR)][len(patient.static_token_S) :]
            hidden = np.isin(events, row["masked_position"])
            codes = np.unique(patient.event_token_K)
            # a record that a context does not hold whole, or that another one shows too, stays as it is
            whole = len(events) == len(patient.event_token_K) and places.count(i) == 1
            if whole and hidden.any() and len(codes) > 1:
                records.append((patient, patient.event_token_K, patient.event_value_K))
                swapped = codes[(np.searchsorted(codes, patient.event_token_K) + 1) % len(codes)]
                patient.event_token_K = np.where(hidden, swapped, patient.event_token_K)
                patient.event_value_K = np.where(hidden, 123.0, patient.event_value_K).astype(np.float32)
                n_changed += hidden.sum()
        changed = other[g]
        for name in inputs:
            np.testing.assert_array_equal(changed[name], row[name], err_msg=name)
        assert not records or np.any(changed["masked_target"] != row["masked_target"])
        for patient, token, value in records:  # other rows may show other parts of the same record
            patient.event_token_K, patient.event_value_K = token, value
    assert n_changed > 20
