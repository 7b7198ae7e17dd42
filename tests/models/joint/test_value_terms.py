"""The state of values: its loss against float64 loops, its targets against loops over records; it is learned."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import term_cases
from joint_rows import contexts, examples_of, row_of
from term_cases import B, C, G, Q, U, X, mean

from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.models.joint import batch as batch_lib
from ehrwear_jax.models.joint import family, value_states
from ehrwear_jax.models.joint.config import WEIGHTS

TERMS = ("ehr_values", "wear_values")
CONTEXT = {"tokens": 48, "windows": 16, "context_tokens": 40, "queries": 8, "events": 8, "patch_steps": 3,
           "value_spans": (60.0, 300.0), "value_codes": 5}  # fmt: skip
ON = {"ehr_values": (2.0, 2.0, 0)}


def slow_state(out, batch, field, shape):
    """Squared errors over the batch's variance (ten more of variance 1), each of n targets with weight n^-1/2."""
    total = norm = 0.0
    for u, g in np.ndindex(*shape):
        at = [i for i in np.ndindex(B, Q) if batch[f"{field}_mask"][i][u, g]]
        target = [float(batch[field][i][u, g]) for i in at]
        if not at:
            continue
        variance = (sum((x - mean(target)) ** 2 for x in target) + 10) / (len(at) + 10)
        error = sum((float(out[i][u, g]) - x) ** 2 for i, x in zip(at, target, strict=True))
        total, norm = total + error / variance / len(at) ** 0.5, norm + len(at) ** 0.5
    return total / norm


@pytest.mark.parametrize(
    ("term", "field", "shape"), [("ehr_values", "query_value", (U, G)), ("wear_values", "query_signal", (C, X))]
)
def test_term_equals_loops(case, term, field, shape):
    term_cases.check_loops(case, term, lambda out, batch: slow_state(out[term], batch, field, shape))


def test_nothing_to_learn_from_is_zero_and_has_no_gradient(losses):
    term_cases.check_no_loss_without_targets(losses, TERMS)


def test_padding_changes_nothing(case, losses):
    term_cases.check_padding_teaches_nothing(losses, TERMS)
    _, batch, _, _, grads = case
    assert not grads["ehr_values"][~batch["query_value_mask"]].any()
    assert not grads["wear_values"][~batch["query_signal_mask"]].any()


def test_to_know_means_alone_costs_about_one_and_values_nothing(losses):
    rng = np.random.default_rng(0)
    batch, out = term_cases.random_batch(10), term_cases.random_outputs(1, TERMS)
    batch["query_value_mask"][:] = True
    batch["query_value"] = rng.normal(3, 5, batch["query_value"].shape).astype(np.float32)
    out["ehr_values"][:] = batch["query_value"].mean((0, 1))
    n = B * Q
    metrics = losses(out, batch)[1]
    assert 0.9 < metrics["loss/ehr_values"] * n / (n + 10) < 1.1, "but for the ten targets beside those of the batch"
    assert metrics["ehr_values/last"] == pytest.approx(metrics["loss/ehr_values"], rel=0.2)
    out["ehr_values"] = batch["query_value"].copy()
    assert losses(out, batch)[1]["loss/ehr_values"] == 0.0


def known_values(rows, patient, span, row, own, position):
    """[(time us, code, value on the robust scale)] of the events before a position that the row shows."""
    scales, found = rows.people.value_scales, []
    standing = [t for t in own if row["modality"][t] == batch_lib.MODALITY_EHR]
    of_static, events = standing[: span.n_static], standing[span.n_static :]
    first = span.n_events_out
    for k, t in enumerate(events):
        u = scales.class_V[row["token"][t]]
        raw = patient.event_value_K[first + k]
        if t < position and u >= 0 and np.isfinite(raw):
            assert row["value"][t] == raw
            found.append(
                (int(patient.event_time_K[first + k]), int(u), float(scales(np.array([u]), np.array([raw]))[0]))
            )
    assert len(of_static) == span.n_static
    return found


@pytest.mark.parametrize("masked", [0.0, 1.0])
def test_targets_are_what_the_context_shows_before_the_query(many_people, masked):
    """By loops over the row's tokens and the record: hidden events and those left out do not count."""
    rows = examples_of(many_people, CONTEXT | {"masked_contexts": masked, "ehr_mask": 0.4}, weights=ON, augmented=False)
    assert rows.facts.value_codes == len(rows.people.value_scales.names) > 1
    names, checked, hidden = value_states.names(CONTEXT["value_spans"]), 0, 0
    for g in range(rows.rows_per_epoch):
        row = row_of(rows, g)
        hidden += int((row["masked_position"] >= 0).sum())
        for s, (own, (sample, span)) in enumerate(zip(contexts(row), rows.contexts(g), strict=True), 1):
            patient = sample.patient
            anchor = int(patient.time_N[span.start]) if span.stop > span.start else 0
            for q in np.flatnonzero(row["query_segment"] == s):
                time = anchor + float(row["query_time"][q]) * DAY_US
                seen = known_values(rows, patient, span, row, own, row["query_kv_range"][q, 1])
                for u in range(rows.facts.value_codes):
                    pairs = zip(row["query_value"][q, u], row["query_value_mask"][q, u], strict=True)
                    state = dict(zip(names, pairs, strict=True))
                    mine = [(t, x) for t, v, x in seen if v == u]
                    assert state["last"][1] == bool(mine)
                    if not mine:
                        assert not row["query_value"][q, u].any() and not row["query_value_mask"][q, u].any()
                        continue
                    assert state["last"][0] == pytest.approx(mine[-1][1], abs=1e-5)
                    for span_days in CONTEXT["value_spans"]:
                        ago = [(time - t) / DAY_US for t, _ in mine]
                        if any(abs(a - span_days) < 1e-3 for a in ago):
                            continue  # float32 days
                        inside = [x for a, (_, x) in zip(ago, mine, strict=True) if a < span_days]
                        value, there = state[f"mean_{span_days:g}d"]
                        assert there == bool(inside)
                        if inside:
                            assert value == pytest.approx(np.mean(inside), abs=1e-4)
                            assert state[f"max_{span_days:g}d"][0] == pytest.approx(max(inside), abs=1e-4)
                            checked += 1
    assert checked > 100 and (hidden > 20) == bool(masked)


@pytest.mark.parametrize("masked", [0.0, 1.0])
def test_targets_of_channels_are_what_the_context_shows_before_the_query(many_people, masked):
    """The last seen step and means, by loops over the row; hidden steps do not count."""
    on = {"wear_values": (1.0, 1.0, 0)}
    options = {"masked_contexts": masked, "wear_spans": (0.6, 30.0)}
    rows = examples_of(many_people, CONTEXT | options, weights=on, augmented=False)
    names, checked = value_states.signal_names((0.6, 30.0)), 0
    for g in range(rows.rows_per_epoch):
        row = row_of(rows, g)
        hidden = np.repeat(row["patch_mask"], CONTEXT["patch_steps"], axis=1)[..., None] | row["channel_mask"][:, None]
        seen = row["observed"] & ~hidden
        for q in np.flatnonzero(row["query_segment"]):
            lo, hi = row["query_kv_range"][q]
            slots = [row["window"][t] for t in range(lo, hi) if row["window"][t] >= 0]
            recent = [row["window"][t] for t in range(lo, hi)
                      if row["window"][t] >= 0 and row["query_time"][q] - row["time"][t] < 0.6 - 1e-4]  # fmt: skip
            for c in range(row["wear"].shape[2]):
                steps, of_late = (np.concatenate([row["wear"][w][seen[w][:, c], c] for w in some] or [np.zeros(0)])
                                  for some in (slots, recent))  # fmt: skip
                state, there = row["query_signal"][q, c], row["query_signal_mask"][q, c]
                assert there[0] == bool(len(steps)) and there[names.index("mean_0.6d")] == bool(len(of_late))
                if len(steps):
                    assert state[0] == steps[-1]
                if len(of_late):
                    assert state[names.index("mean_0.6d")] == pytest.approx(of_late.mean(), abs=1e-4)
                    checked += 1
    assert checked > 40


@pytest.mark.slow
def test_the_state_is_learned(many_people):
    """A small network without any other term explains the last values of the people that it is trained on."""
    weights = dict.fromkeys(WEIGHTS, (0.0, 0.0, 0)) | ON
    sizes = {"width": 32, "n_layers": 1, "n_heads": 2, "mlp_width": 64, "token_width": 16, "time_features": 8,
             "source_width": 4, "dropout": 0.0}  # fmt: skip
    rows = examples_of(many_people, CONTEXT, weights=weights, modalities=("ehr",), **sizes)
    batch = rows.spec.empty(rows.rows_per_epoch)
    for g in range(rows.rows_per_epoch):
        rows.fill({k: v[g] for k, v in batch.items()}, g)
    network, objective = family.network(rows.spec, rows.config), family.objective(rows.spec, rows.config)
    optimizer = optax.adam(1e-2)
    norms = objective.normalisers(batch)

    def loss(params):
        return objective(network.apply({"params": params}, batch), batch, {"ehr_values": 1.0}, norms)

    @jax.jit
    def step(params, state):
        (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, metrics

    params = network.init(jax.random.key(0), jax.tree.map(jnp.asarray, batch))["params"]
    state, found = optimizer.init(params), []
    for _ in range(120):
        params, state, metrics = step(params, state)
        found.append(float(metrics["ehr_values/last"]))
    assert found[0] > 0.8 and found[-1] < 0.5 * found[0], (found[0], found[-1])
