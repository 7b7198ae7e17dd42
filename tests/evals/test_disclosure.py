"""No hidden count follows from what is shown: every one of them is bounded by a linear program over all that is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from ehrwear_jax.evals import disclosure

LIMIT = 10
COUNTS = st.integers(0, 14) | st.integers(0, 400)


def ranges(n_unknowns, equations):
    """[(least, most)] of each unknown >= 0 under linear equations [(coefficients by unknown, sum)]."""
    lhs, rhs = np.zeros((len(equations), n_unknowns)), np.zeros(len(equations))
    for row, (terms, total) in enumerate(equations):
        rhs[row] = total
        for unknown, coefficient in terms.items():
            lhs[row, unknown] += coefficient
    out = []
    for k in range(n_unknowns):
        ends = []
        for sign in (1, -1):
            cost = np.zeros(n_unknowns)
            cost[k] = sign
            found = linprog(cost, A_eq=lhs if equations else None, b_eq=rhs if equations else None)
            assert found.status in (0, 3)  # solved, or unbounded
            ends.append(sign * found.fun if found.status == 0 else np.inf)
        out.append(tuple(ends))
    return out


@given(st.lists(COUNTS, min_size=1, max_size=6))
def test_parts_of_a_shown_whole_cannot_be_solved_for(counts):
    hidden = disclosure.hidden_parts(counts, LIMIT)
    assert all(hidden[k] for k, n in enumerate(counts) if 0 < n < LIMIT)
    if sum(counts) < LIMIT:  # the whole is small and hidden too
        return
    unknown = np.flatnonzero(hidden)
    shown = sum(n for n, h in zip(counts, hidden, strict=True) if not h)
    for least, most in ranges(len(unknown), [(dict.fromkeys(range(len(unknown)), 1.0), sum(counts) - shown)]):
        assert least == pytest.approx(0) and most >= LIMIT - 1e-6


def test_nothing_more_is_hidden_than_is_needed():
    assert disclosure.hidden_parts([100, 60, 0], LIMIT).tolist() == [False] * 3
    assert disclosure.hidden_parts([100, 4, 30], LIMIT).tolist() == [False, True, True]
    assert disclosure.hidden_parts([100, 4, 7, 30], LIMIT).tolist() == [False, True, True, False]
    assert disclosure.hidden_parts([100, 4, 5, 30], LIMIT).tolist() == [False, True, True, True]  # nine together
    assert disclosure.hidden_parts([100, 4, 0], LIMIT).tolist() == [True, True, False]


@given(st.integers(0, 60), st.lists(st.integers(0, 12) | st.integers(0, 60), min_size=1, max_size=6), st.booleans())
def test_what_a_step_drops_cannot_be_solved_for(more, drops, broken):
    """Steps follow on one another, but for one break; what remains is told by the numbers on both sides of it."""
    n, steps = sum(drops) + more, []
    for k, dropped in enumerate(drops):
        if broken and k == len(drops) // 2:
            n = n + 500 - 1  # other units from here on: this step does not follow on the one before
        n -= dropped
        steps.append({"step": str(k), "n": n, "dropped": dropped, "reason": ""})
    found = disclosure.hide_steps(steps, LIMIT)
    names = {(k, f): i for i, (k, f) in enumerate((k, f) for k in range(len(steps)) for f in ("n", "dropped"))}
    shown = [(k, f, s[f]) for k, s in enumerate(found) for f in ("n", "dropped") if s[f] is not None]
    equations = [({names[k, f]: 1.0}, float(count)) for k, f, count in shown]
    for k in range(1, len(steps)):
        if steps[k]["n"] + steps[k]["dropped"] == steps[k - 1]["n"]:
            equations.append(({names[k, "n"]: 1.0, names[k, "dropped"]: 1.0, names[k - 1, "n"]: -1.0}, 0.0))
    bounds = ranges(len(names), equations)
    for k, step in enumerate(steps):
        for field in ("n", "dropped"):
            if 0 < step[field] < LIMIT:
                assert found[k][field] is None
                least, most = bounds[names[k, field]]
                assert least < 1 and most >= min(LIMIT, most) and most - least >= 1, (steps, found)


def test_steps_by_hand():
    steps = [{"n": n, "dropped": d} for n, d in ((1000, 0), (997, 3), (995, 2), (900, 95), (880, 20))]
    shown = [(s["n"], s["dropped"]) for s in disclosure.hide_steps(steps, LIMIT)]
    assert shown == [(1000, 0), (None, None), (None, None), (900, None), (880, 20)]
    # a step that is about something else is told whatever came before it
    steps = [{"n": n, "dropped": d} for n, d in ((1000, 0), (997, 3), (5000, 100))]
    shown = [(s["n"], s["dropped"]) for s in disclosure.hide_steps(steps, LIMIT)]
    assert shown == [(1000, 0), (None, None), (5000, 100)]
    few = [{"n": n, "dropped": d} for n, d in ((1000, 0), (4, 996), (0, 4))]
    assert [(s["n"], s["dropped"]) for s in disclosure.hide_steps(few, LIMIT)] == [(1000, 0), (None, None), (0, None)]


def test_classes_and_matrices_of_few_people_are_found_by_people_not_by_rows():
    group = np.repeat(np.arange(40), 5)
    y = group < 4  # twenty positive rows of four people
    assert disclosure.tells_few(y, group, 10) and not disclosure.tells_few(y, group, 4)
    assert not disclosure.tells_few(np.zeros(200), group, 10)  # nobody is positive: 0 is shown
    y = group < 20
    called = y.copy()
    called[:15] = False  # three people's events are missed
    assert disclosure.matrix_tells_few(y, called, group, 10) and not disclosure.matrix_tells_few(y, y, group, 10)


def test_records_lose_what_tells_the_number_and_nothing_else():
    base = {"model": "a", "value": 0.5, "lo": 0.4, "hi": 0.6, "n": 100, "n_positive": 4}
    records = [{**base, "metric": m} for m in ("auroc", "prevalence", "tp", "brier_null", "brier")]
    found = {r["metric"]: r for r in disclosure.without_positives(records)}
    assert {m for m, r in found.items() if r["value"] is None} == {"prevalence", "tp", "brier_null"}
    assert all(r["n_positive"] is None and r["n"] == 100 for r in found.values())
    only = disclosure.without(records, disclosure.TELL_MATRIX, frozenset({"b"}))
    assert only == records and only[0] is not records[0]
