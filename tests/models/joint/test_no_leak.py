"""No prediction depends on what it must not see: Jacobians are exactly zero there, and changes change no bit.

Rows are packed with several contexts and have simultaneous events. Integer inputs, which have no derivative, are
changed instead.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from joint_rows import examples_of, row_of, rows_of, with_patient
from random_rows import EVERY_TERM
from small_model import random_params

from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.models.joint import batch as batch_lib
from ehrwear_jax.models.joint import family
from ehrwear_jax.models.joint.config import WEIGHTS
from ehrwear_jax.models.layers.vocabulary_loss import TokenLoss

CONTEXT = {"tokens": 24, "windows": 16, "context_tokens": 20, "queries": 6, "events": 6, "patch_steps": 3, "pairs": 4,
           "colocated_days": 90.0, "pool_days": 400.0, "future_windows": 2, "future_codes": 4, "masked_contexts": 1.0,
           "ehr_mask": 0.4}  # fmt: skip
NETWORK = {"width": 8, "n_layers": 2, "n_heads": 2, "mlp_width": 16, "token_width": 8, "time_features": 8,
           "wear_width": 8, "wear_layers": 1, "wear_heads": 2, "source_width": 4, "align_width": 4, "count_width": 4,
           "posterior": "normal", "raw_width": 4, "value_features": 3}  # fmt: skip
N_TOKENS = CONTEXT["tokens"] + CONTEXT["windows"]
# term: its predictions
PREDICTIONS = {
    "ehr_masked": ("ehr_masked/masked",),
    "future_event": ("future_event/event", "future_event/query"),
    "future_codes": ("future_codes",),
    "ehr_history": ("ehr_history",),
    "ehr_values": ("ehr_values",),
    "next_value": ("next_value/event", "next_value/query"),
    "wear_masked": ("wear_masked",),
    "raw_masked": ("raw_masked",),
    "future_signal": ("future_signal/step_window", "future_signal/query_window"),
    "wear_history": ("wear_history",),
    "wear_values": ("wear_values",),
    "wear_to_ehr": ("wear_to_ehr/event", "wear_to_ehr/query"),
    "ehr_to_wear": ("ehr_to_wear/event", "ehr_to_wear/query"),
    "contrast": ("contrast/ehr", "contrast/wear"),
    "content_norm": ("content_norm",),
    "latent_kl": tuple(f"latent_kl/{part}_{of}" for part in ("mean", "variance") for of in ("token", "query")),
    "event_likelihood": ("event_likelihood/token",),
    "signal_likelihood": ("signal_likelihood/mean",),
    "person": ("person",),
}
AT_TOKENS = ("content_norm", "latent_kl/mean_token", "latent_kl/variance_token", "event_likelihood/token")
AT_EVENTS = ("future_event/event", "wear_to_ehr/event", "ehr_to_wear/event", "next_value/event")
AT_WINDOWS = ("wear_masked", "future_signal/step_window", "signal_likelihood/mean")
AT_QUERIES = ("future_event/query", "future_codes", "ehr_history", "ehr_values", "future_signal/query_window",
              "wear_history", "wear_values", "next_value/query", "wear_to_ehr/query", "ehr_to_wear/query",
              "latent_kl/mean_query", "latent_kl/variance_query", "person")  # fmt: skip


def make_examples(root, **options):
    return examples_of(root, CONTEXT | options, weights=EVERY_TERM, **NETWORK)


def with_raw_windows(batch, there=True):
    """The batch with two raw windows in each wearable window, one of them in a hidden patch: the model hides it.

    A quarter of each is hidden besides.
    The prepared cohort has none; there: False leaves their fields empty.
    """
    rng = np.random.default_rng(2)
    slot = np.repeat(np.arange(CONTEXT["windows"]), 2)
    raw = rng.normal(size=(1, len(slot), 32, 1)).astype(np.float32)
    slot = np.where((batch["window_position"][:, slot] >= 0) & there, slot, -1).astype(np.int32)
    hidden = batch["patch_mask"][0].argmax(axis=1).repeat(2)
    patch = np.where(np.arange(len(hidden)) % 2, hidden, rng.integers(0, batch["patch_mask"].shape[2], len(hidden)))
    patch = patch[None].astype(np.int32)
    seen = (rng.random(raw.shape) < 0.9) & (slot >= 0)[..., None, None]
    parts = rng.permuted(np.broadcast_to(np.arange(4) == 0, (1, len(hidden), 4)), axis=2)
    return batch | {"raw": raw, "raw_observed": seen, "raw_window": slot, "raw_patch": patch, "raw_mask": parts}


def one_row(examples, g, **options):
    row = row_of(examples, g)
    for name in ("event_next", "query_next"):  # tokens are scored where there is a target: everywhere
        row[name] = np.maximum(row[name], batch_lib.N_SPECIAL)
    return with_raw_windows({k: v[None] for k, v in row.items()}, **options)


def places(batch, name):
    """First and last + 1 position that each prediction of this name may see, and which predictions are real."""
    if name in AT_QUERIES:
        return (*np.moveaxis(batch["query_kv_range"][0], -1, 0), batch["query_segment"][0] > 0)
    if name == "contrast/ehr":
        return (*np.moveaxis(batch["pair_near"][0], -1, 0), batch["pair_patient"][0] >= 0)
    if name in AT_TOKENS:
        at = np.where(batch["segment"][0] > 0, np.arange(N_TOKENS), -1)
    else:
        of = {"ehr_masked/masked": "masked_position", "contrast/wear": "pair_position"}
        of |= dict.fromkeys(AT_WINDOWS, "window_position") | dict.fromkeys(AT_EVENTS, "event_position")
        at = batch["raw_window" if name == "raw_masked" else of[name]][0]
        if name == "raw_masked":
            at = np.where(at >= 0, batch["window_position"][0][np.maximum(at, 0)], -1)
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
        "pooled predictions": sum(is_wear[lo:hi].any() for lo, hi in row["event_pool"]),
        "pairs": (row["pair_patient"] >= 0).sum(),
    }


@pytest.fixture(scope="module")
def examples(packed_people):
    return make_examples(packed_people)


@pytest.fixture(scope="module")
def batch(examples):
    """The row in which leaks are likeliest, as a batch of one."""
    score = [sum(min(n, 2) for n in likely_leaks(row).values()) for row in rows_of(examples, 1)]
    return one_row(examples, int(np.argmax(score)))


@pytest.fixture(scope="module")
def predict(examples, batch):
    """{input or "content": array} -> {prediction: [N, ...]} of the row, by parameters that hide no leak."""
    facts = dataclasses.replace(examples.spec.facts, raw_samples=32, raw_channels=1)
    network = family.network(dataclasses.replace(examples.spec, facts=facts), examples.config)
    params = random_params(jax.eval_shape(lambda: network.init(jax.random.key(0), batch))["params"])
    # kernels that forget in days to decades: what lies far back still counts
    kernel = params["backbone"]["blocks"]["kernel"]
    kernel["gamma"] = jnp.linspace(-8.0, -1.0, kernel["gamma"].size).reshape(kernel["gamma"].shape)

    def run(inputs):
        inputs = dict(inputs)
        variables = {"params": params, "perturbations": {"content": inputs.pop("content")}}
        out = traverse_util.flatten_dict(network.apply(variables, inputs), sep="/")
        # of the scores of tokens, what does not depend on which of them is the target
        out = {name: x.log_sum if isinstance(x, TokenLoss) else x for name, x in out.items()}
        return {name: out[name][0] for names in PREDICTIONS.values() for name in names}

    return run


NO_CHANGE = jnp.zeros((1, N_TOKENS, NETWORK["width"]))


@pytest.fixture(scope="module")
def case(batch, predict):
    """(batch of one row, {prediction: {input: Jacobian [N, *input]}})."""
    names = [name for found in PREDICTIONS.values() for name in found]

    def projected(inputs):
        found, out = {}, predict(batch | inputs)
        for i, name in enumerate(names):
            flat = out[name].reshape(out[name].shape[0], -1)
            found[name] = flat @ jax.random.normal(jax.random.key(i), (flat.shape[1],))  # a random cotangent
        return found

    floats = ("value", "quantile", "wear", "raw", "time", "age")
    inputs = {k: jnp.asarray(batch[k]) for k in floats} | {"content": NO_CHANGE}
    jacobian = jax.jit(jax.jacrev(projected))(inputs)
    return batch, jax.tree.map(lambda x: np.asarray(x)[:, 0], jacobian)


def test_the_row_has_what_makes_leaks_likely(case):
    batch, _ = case
    found = likely_leaks({k: v[0] for k, v in batch.items()})
    assert all(n > 0 for n in found.values()), found
    assert set(PREDICTIONS) == set(WEIGHTS)
    assert {n for names in PREDICTIONS.values() for n in names} == {
        "ehr_masked/masked", "raw_masked", "contrast/ehr", "contrast/wear",
        *AT_TOKENS, *AT_EVENTS, *AT_WINDOWS, *AT_QUERIES,
    }  # fmt: skip


@pytest.mark.parametrize("term", WEIGHTS)
def test_jacobian_is_zero_for_later_positions_and_other_patients(case, term):
    batch, jacobian = case
    position = np.arange(N_TOKENS)
    at_window = batch["window_position"][0]
    checked = 0
    for name in PREDICTIONS[term]:
        lo, hi, real = places(batch, name)
        assert real.any(), name
        allowed = (position >= lo[:, None]) & (position < hi[:, None])
        by_input = jacobian[name]
        for field in ("content", "value", "quantile", "time", "age"):
            grad = by_input[field].reshape(*by_input[field].shape[:2], -1)
            assert not grad[real][~allowed[real]].any(), (name, field)
        window = (at_window >= lo[:, None]) & (at_window < hi[:, None]) & (at_window >= 0)
        if name == "contrast/ehr":
            window &= False  # events say nothing of the signal
        assert not by_input["wear"][real][~window[real]].any(), (name, "wear")
        slot = batch["raw_window"][0]
        assert not by_input["raw"][real][~(window[:, slot] & (slot >= 0))[real]].any(), (name, "raw")
        checked += (~allowed[real]).sum()
        seen = by_input["content"][real][allowed[real]]
        assert np.isfinite(seen).all() and np.any(seen != 0), f"{name} sees something"
    assert checked > 50


@pytest.mark.parametrize("term", WEIGHTS)
def test_jacobian_is_zero_for_hidden_signal(case, term):
    """Steps that are hidden, and steps that were not measured."""
    batch, jacobian = case
    hidden = np.repeat(batch["patch_mask"][0], CONTEXT["patch_steps"], axis=-1)[..., None] | ~batch["observed"][0]
    hidden |= batch["channel_mask"][0][:, None]
    target = (hidden & batch["observed"][0])[batch["window_position"][0] >= 0]
    assert target.sum() > 20
    in_patch = batch["patch_mask"][0][batch["raw_window"][0], batch["raw_patch"][0]]
    in_part = np.repeat(batch["raw_mask"][0], 8, axis=1)[..., None]
    hidden_raw = in_patch[:, None, None] | ~batch["raw_observed"][0] | in_part
    assert in_patch.sum() > 3
    for name in PREDICTIONS[term]:
        assert not jacobian[name]["wear"][:, hidden].any(), name
        # of raw windows in hidden patches rows hold no samples (test_raw_fields.py), which the term relies on
        own = ~in_patch if name == "raw_masked" else slice(None)
        assert not jacobian[name]["raw"][own][:, hidden_raw].any(), name
        if name not in ("contrast/ehr", "ehr_masked/masked"):  # the last may have no window before it
            assert jacobian[name]["wear"][:, ~hidden].any(), f"{name} sees the other steps"
            assert jacobian[name]["raw"][:, ~hidden_raw].any(), f"{name} sees the other raw samples"


def test_derivatives_reach_simultaneous_events_that_come_first_only(case):
    """Of two events at one time, the earlier in order is seen by the later one, and not the other way round."""
    batch, jacobian = case
    segment, time = batch["segment"][0], batch["time"][0]
    first = np.nonzero((segment[:-1] == segment[1:]) & (segment[:-1] > 0) & (time[:-1] == time[1:]))[0]
    grad = np.abs(jacobian["latent_kl/mean_token"]["content"]).sum(-1)
    assert len(first) and np.all(grad[first, first + 1] == 0) and np.all(grad[first + 1, first] > 0)


# ------------------------------------------------------------------------------------------------ changes


@pytest.fixture(scope="module")
def look(predict):
    """batch -> its predictions on the host."""
    compiled = jax.jit(predict)
    return lambda batch: jax.tree.map(np.asarray, compiled(batch | {"content": NO_CHANGE}))


def scramble(batch, tokens, rng):
    """Other content at the given token positions: token, value, age, and signal where they are windows."""
    out = {k: v.copy() for k, v in batch.items()}
    for t in tokens:
        out["token"][0, t] = rng.integers(batch_lib.N_SPECIAL, 8)
        out["value"][0, t], out["quantile"][0, t] = rng.normal(), rng.uniform(0.1, 0.9)
        out["age"][0, t] += rng.integers(1, 100)
        if (slot := batch["window"][0, t]) >= 0:
            out["wear"][0, slot] = rng.normal(size=out["wear"].shape[2:])
            out["observed"][0, slot] = rng.random(out["observed"].shape[2:]) < 0.5
            out["patch_mask"][0, slot] = ~out["patch_mask"][0, slot]
            out["raw"][0, batch["raw_window"][0] == slot] += 1.0
    return out


def test_changing_what_comes_later_changes_no_bit(batch, look):
    """A prediction ignores later tokens and other patients behind it; one at a query ignores what is after its time."""
    before, rng = look(batch), np.random.default_rng(0)
    n, moved = int((batch["segment"][0] > 0).sum()), 0
    for cut in range(1, n, 5):
        changed = scramble(batch, range(cut, n), rng)
        later = batch["time"][0, cut:n] + rng.uniform(0, 5)
        changed["time"][0, cut:n] = np.maximum.accumulate(later)
        after, n_blind = look(changed), 0
        for name in before:
            _, stop, real = places(batch, name)
            blind = np.nonzero(real & (stop <= cut))[0]
            np.testing.assert_array_equal(after[name][blind], before[name][blind], err_msg=name)
            n_blind += len(blind)
        assert n_blind >= 3 * cut, "tokens at least: content, mean, variance"
        z = "latent_kl/mean_token"
        moved += np.any(after[z][cut:n] != before[z][cut:n])
    assert moved == len(range(1, n, 5)), "the change must reach what may see it"


def test_other_patients_of_the_row_change_no_bit(batch, look):
    assert batch["segment"].max() >= 2
    own = batch["segment"][0] == 2
    others = np.nonzero((batch["segment"][0] > 0) & ~own)[0]
    before, after = look(batch), look(scramble(batch, others, np.random.default_rng(1)))
    for name, mine in (("token", own), ("query", batch["query_segment"][0] == 2)):
        for z in (f"latent_kl/mean_{name}", f"latent_kl/variance_{name}"):
            np.testing.assert_array_equal(after[z][mine], before[z][mine])
    assert np.any(after["latent_kl/mean_token"][others] != before["latent_kl/mean_token"][others])


@pytest.mark.parametrize("kind", ["contiguous", "channel"])
def test_hidden_content_does_not_reach_its_prediction(packed_people, look, kind):
    """Two records that differ only in what is hidden give the same predictions; the targets differ."""
    examples = make_examples(packed_people, wear_mask_kind=kind)
    found = {"event": 0, "patch": 0}
    for g in range(4):
        batch = one_row(examples, g, there=False)
        before = look(batch)
        hidden = np.repeat(batch["patch_mask"], CONTEXT["patch_steps"], axis=-1)[..., None]
        hidden = hidden | batch["channel_mask"][:, :, None]
        changed = batch | {
            "wear": np.where(hidden, np.random.default_rng(g).normal(size=batch["wear"].shape), batch["wear"]),
            "observed": np.where(hidden, ~batch["observed"], batch["observed"]),
        }
        changed["wear"] = changed["wear"].astype(np.float32)
        for name in ("masked_target", "event_next", "query_next", "query_code_bin", "event_summary", "query_summary"):
            changed[name] = np.roll(batch[name], 1, axis=-1)  # targets are no inputs
        # without one a hidden event would not be scored
        changed["masked_target"] = np.maximum(changed["masked_target"], batch_lib.N_SPECIAL)
        after = look(changed)
        for name in before:
            np.testing.assert_array_equal(after[name], before[name], err_msg=name)
        found["event"] += int((batch["masked_position"] >= 0).sum())
        found["patch"] += int((hidden & batch["observed"]).sum())
        at = batch["masked_position"][batch["masked_position"] >= 0]
        assert np.all(batch["token"][0, at] == batch_lib.MASK) and not batch["value"][0, at].any()
        assert not batch["quantile"][0, at].any()
    assert found["event"] > 5 and found["patch"] > 50


def test_hidden_events_leave_no_trace_in_any_input(packed_people):
    """Other codes and values behind the masks and the same draws: the same rows but for what is predicted."""
    inputs = ("token", "value", "quantile", "modality", "time", "age", "segment", "kv_range", "window", "wear",
              "observed", "patch_mask", "channel_mask", "window_position", "query_time", "query_age", "query_segment",
              "query_kv_range", "pair_position", "pair_near", "query_token_bin", "query_value",
              "query_value_mask")  # fmt: skip
    rows, other = (make_examples(packed_people, mask_temperature=0.0) for _ in range(2))
    n_changed = 0
    for g in range(rows.rows_per_epoch):
        row, records = row_of(rows, g), []
        shown = [drawn.position for drawn, _ in rows.contexts(g)]
        for s, i in enumerate(shown, start=1):
            patient, at = other.people[int(i)], np.nonzero(row["segment"] == s)[0]
            events = at[(row["modality"][at] == batch_lib.MODALITY_EHR)][len(patient.static_token_S) :]
            hidden = np.isin(events, row["masked_position"])
            codes = np.unique(patient.event_token_K)
            # a record that a context does not hold whole, or that another one shows too, stays as it is
            whole = len(events) == len(patient.event_token_K) and shown.count(i) == 1
            if whole and hidden.any() and len(codes) > 1:
                records.append((i, patient))
                swapped = codes[(np.searchsorted(codes, patient.event_token_K) + 1) % len(codes)]
                token = np.where(hidden, swapped, patient.event_token_K)
                value = np.where(hidden, 123.0, patient.event_value_K).astype(np.float32)
                with_patient(other, i, event_token_K=token, event_value_K=value)
                n_changed += hidden.sum()
        changed = row_of(other, g)
        for name in inputs:
            np.testing.assert_array_equal(changed[name], row[name], err_msg=name)
        assert not records or np.any(changed["masked_target"] != row["masked_target"])
        for i, patient in records:  # other rows may show other parts of the same record
            other.people.cache.held[i] = patient
    assert n_changed > 20


def test_before_the_first_record_nothing_tells_when_it_begins_or_ends(packed_people):
    """Without a birth date ages count from the first record, which a prediction before it must not know of."""
    context = {"tokens": 40, "windows": 16, "context_tokens": 30, "queries": 6, "events": 6, "patch_steps": 3}
    examples = examples_of(packed_people, context, split=None, augmented=False, modalities=("wear",))
    later = 100 * DAY_US
    futures = {
        "as it is": lambda record, time_us: record,
        "none": lambda record, time_us: record.without_wear(),
        "followed for longer": lambda record, time_us: dataclasses.replace(
            record, end_us=record.end_us + later
        ).without_wear(),
    }
    worn = [i for i in range(len(examples.people)) if len(examples.people[i].window_end_M)]
    for i in worn[:3]:
        first = int(examples.people[i].window_end_M[0])
        assert not examples.people[i].has_birth
        found = {k: next(examples.prediction_batches([i], [first - 3 * DAY_US], 1, f))[0] for k, f in futures.items()}
        for name, batch in found.items():
            for field in batch:
                np.testing.assert_array_equal(batch[field], found["none"][field], err_msg=f"{name}: {field}")
        known, where = next(examples.prediction_batches([i], [first + 3 * DAY_US], 1))
        np.testing.assert_array_equal(known["query_age"][where >= 0], [[3.0, 0.0]])
