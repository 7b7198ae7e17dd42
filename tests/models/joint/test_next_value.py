"""The next values: their density against scipy, their targets against loops over records."""

import numpy as np
import pytest
import term_cases
from joint_rows import assert_same, contexts, examples_of, row_of
from scipy.special import logsumexp
from scipy.stats import norm
from term_cases import B, E, Q, Y, mean

from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.models.joint import next_value

TERMS = ("next_value",)
CONTEXT = {"tokens": 48, "windows": 16, "context_tokens": 40, "queries": 8, "events": 8, "patch_steps": 3,
           "next_values": 2}  # fmt: skip
ON = {"next_value": (1.0, 1.0, 0)}


def slow_nll(parameters, value):
    logit, mu, log_sd = np.split(parameters.astype(np.float64), 3)
    density = norm.logpdf(value, mu, np.exp(np.clip(log_sd, -3, 2)))
    return -logsumexp(logit - logsumexp(logit) + density)


def slow_next_value(out, batch):
    return mean([
        slow_nll(out[f"next_value/{name}"][b, i, y], float(batch[f"{name}_mark"][b, i, y]))
        for name, n in (("event", E), ("query", Q))
        for b, i, y in np.ndindex(B, n, Y)
        if batch[f"{name}_mark_code"][b, i, y] >= 0
    ])  # fmt: skip


def test_term_equals_loops(case):
    term_cases.check_loops(case, "next_value", slow_next_value)


def test_nothing_to_learn_from_is_zero_and_has_no_gradient(losses):
    term_cases.check_no_loss_without_targets(losses, TERMS)


def test_padding_changes_nothing(case, losses):
    term_cases.check_padding_teaches_nothing(losses, TERMS)
    _, batch, _, _, grads = case
    for name in ("event", "query"):
        assert not grads[f"next_value/{name}"][batch[f"{name}_mark_code"] < 0].any()


def test_a_density_stays_within_bounds():
    sharp = np.concatenate([np.zeros(3), np.zeros(3), np.full(3, -50.0)]).astype(np.float32)
    assert float(next_value.negative_log_density(sharp, np.float32(0.0))) == pytest.approx(0.919 - 3, abs=1e-3)
    assert np.isfinite(float(next_value.negative_log_density(sharp, np.float32(9.0))))


def test_the_term_draws_nothing_that_others_draw_after_it(many_people):
    """Pairs are chosen after it; they are the same with and without it, and whatever values are known."""
    weights = {"contrast": (1.0, 1.0, 0)}
    options = CONTEXT | {"pairs": 4, "colocated_days": 90.0}
    plain, more = (examples_of(many_people, options, weights=weights | w) for w in ({}, ON))
    rows = [[row_of(e, g) for g in range(e.rows_per_epoch)] for e in (plain, more)]
    assert_same(*rows)
    assert sum((row["pair_position"] >= 0).sum() for row in rows[0]) > 20
    assert sum((row["query_mark_code"] >= 0).sum() for row in rows[1]) > 50


def test_targets_are_the_values_of_the_next_time_that_has_some(many_people):
    rows = examples_of(many_people, CONTEXT | {"masked_contexts": 0.0}, weights=ON, augmented=False)
    scales, checked, cut = rows.people.value_scales, 0, 0
    for g in range(rows.rows_per_epoch):
        row = row_of(rows, g)
        for s, (own, (sample, span)) in enumerate(zip(contexts(row), rows.contexts(g), strict=True), 1):
            p = sample.patient
            anchor = int(p.time_N[span.start]) if span.stop > span.start else 0
            events = [(e, row["time"][t]) for e, t in enumerate(row["event_position"]) if t in own]
            queries = [(q, row["query_time"][q]) for q in np.flatnonzero(row["query_segment"] == s)]
            for name, places in (("event", events), ("query", queries)):
                for i, day in places:
                    now = anchor + float(day) * DAY_US
                    if np.any(np.abs(p.event_time_K - now) < 60_000_000) and name == "query":
                        continue  # float32 days do not tell which side it is on
                    later = [(int(t), int(scales.class_V[v]), x) for t, v, x in
                             zip(p.event_time_K, p.event_token_K, p.event_value_K, strict=True)
                             if t > now + 60_000_000 and scales.class_V[v] >= 0 and np.isfinite(x)]  # fmt: skip
                    code, value = row[f"{name}_mark_code"][i], row[f"{name}_mark"][i]
                    real = code >= 0
                    if not later:
                        assert not real.any()
                        continue
                    first = [(u, x) for t, u, x in later if t == later[0][0]]
                    same = [(u, float(scales(np.array([u]), np.array([x]))[0])) for u, x in first]
                    assert real.sum() == min(len(same), CONTEXT["next_values"])
                    got = list(zip(code[real].tolist(), value[real].tolist(), strict=True))
                    assert all(any(u == v and abs(x - y) < 1e-4 for v, y in same) for u, x in got)
                    assert row[f"{name}_mark_gap"][i] == pytest.approx((later[0][0] - now) / DAY_US, abs=1e-3)
                    checked, cut = checked + 1, cut + (len(same) > 2)
    assert checked > 100
