"""Who the person is: the loss against float64 loops, its targets against the records of a row's people."""

import math

import numpy as np
import pytest
import term_cases
from joint_rows import examples_of, rows_of
from term_cases import B, Q, R, mean

from ehrwear_jax.models.joint.person_terms import AGE_UNIT_DAYS

TERMS = ("person",)
CONTEXT = {"tokens": 48, "windows": 8, "context_tokens": 24, "queries": 8, "events": 8, "patch_steps": 3}


def slow_person(out, batch):
    """Half the unexplained share of age, half the mean over asked tokens of cross-entropy over entropy."""
    at = [i for i in np.ndindex(B, Q) if batch["query_segment"][i] > 0]
    age = [sum(map(float, batch["query_age"][i])) / AGE_UNIT_DAYS for i in at]
    variance = (sum((x - mean(age)) ** 2 for x in age) + 10) / (len(at) + 10)
    of_age = mean([(float(out["person"][i][0]) - x) ** 2 for i, x in zip(at, age, strict=True)]) / variance
    of_tokens = []
    for r in range(R):
        has = [bool(batch["query_static"][i][r]) for i in at]
        if not 0 < mean(has) < 1:
            continue
        rate = min(max(mean(has), 0.01), 0.99)
        nll = [math.log1p(math.exp(-float(out["person"][i][1 + r]) * (1 if x else -1)))
               for i, x in zip(at, has, strict=True)]  # fmt: skip
        of_tokens.append(mean(nll) / -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate)))
    return 0.5 * of_age + 0.5 * mean(of_tokens)


def test_term_equals_loops(case):
    term_cases.check_loops(case, "person", slow_person)


def test_nothing_to_learn_from_is_zero_and_has_no_gradient(losses):
    term_cases.check_no_loss_without_targets(losses, TERMS)


def test_padding_changes_nothing(case, losses):
    term_cases.check_padding_teaches_nothing(losses, TERMS)
    _, batch, _, _, grads = case
    assert not grads["person"][batch["query_segment"] == 0].any()


def test_a_token_that_all_or_none_have_is_not_asked_for(losses):
    out, batch = term_cases.random_outputs(1, TERMS), term_cases.random_batch(10)
    batch["query_static"][..., 0], batch["query_static"][..., 1] = True, False
    _, metrics, grads = losses(out, batch)
    assert not grads["person"][..., 1:3].any() and grads["person"][..., 3].any()
    assert metrics["loss/person"] == pytest.approx(slow_person(out, batch), rel=2e-5)


@pytest.mark.parametrize("modalities", [("ehr", "wear"), ("wear",)])
def test_targets_are_the_records_static_tokens(packed_people, modalities):
    """Those that reconstruction names, at every query of whose context shows them; none in a model without them."""
    rows = examples_of(packed_people, CONTEXT, modalities=modalities, weights={"person": (1.0, 1.0, 0)})
    class_V, seen = rows.people.history_class_V, 0
    for g, row in enumerate(rows_of(rows, 1)):
        for s, (sample, span) in enumerate(rows.contexts(g), 1):
            tokens = sample.patient.static_token_S[: span.n_static]
            want = sorted(set(class_V[tokens]) - {-1})
            for q in np.flatnonzero(row["query_segment"] == s):
                assert np.flatnonzero(row["query_static"][q]).tolist() == want
                seen += len(want)
        assert not row["query_static"][row["query_segment"] == 0].any()
    assert (seen > 20) == ("ehr" in modalities)
