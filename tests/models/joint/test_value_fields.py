"""The state of values as an input of queries: the same as the terms' targets, and nothing of what comes later."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from joint_rows import assert_same, examples_of, row_of
from small_model import random_params

from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.models.joint import family

CONTEXT = {"tokens": 48, "windows": 16, "context_tokens": 40, "queries": 8, "events": 8, "patch_steps": 3,
           "value_codes": 5}  # fmt: skip
SIZES = {"width": 8, "n_layers": 1, "n_heads": 2, "mlp_width": 8, "token_width": 8, "time_features": 8, "wear_width": 8,
         "wear_layers": 1, "wear_heads": 2, "source_width": 4, "count_width": 0}  # fmt: skip
ON = {"ehr_values": (1.0, 1.0, 0), "wear_values": (1.0, 1.0, 0)}
FIELDS = ("query_value", "query_value_mask", "query_signal", "query_signal_mask")


@pytest.fixture(scope="module")
def told(many_people):
    """Examples of a network that is told the state."""
    return examples_of(many_people, CONTEXT, value_inputs=True, **SIZES)


def test_inputs_are_what_the_terms_predict(many_people, told):
    """Also in contexts with masks, whose hidden content must not come in through the state."""
    predicted = examples_of(many_people, CONTEXT, weights=ON, **SIZES)
    rows = [[row_of(e, g) for g in range(e.rows_per_epoch)] for e in (told, predicted)]
    assert_same(*rows, FIELDS)
    assert sum(row["query_value_mask"].sum() for row in rows[0]) > 100
    plain = examples_of(many_people, CONTEXT, **SIZES)
    assert told.spec.fields.keys() - plain.spec.fields.keys() == set(FIELDS)
    for modality, fields in (("ehr", FIELDS[:2]), ("wear", FIELDS[2:])):
        one = examples_of(many_people, CONTEXT, value_inputs=True, modalities=(modality,), **SIZES)
        assert {f for f in FIELDS if f in one.spec.fields} == set(fields)


def test_at_a_prediction_time_nothing_later_is_told(told):
    """The fields are those of a record that ends at the time, and they hold something."""
    n_known = 0
    for i in range(12):
        patient = told.people[i]
        for time in np.quantile(patient.time_N, [0.3, 0.7]).astype(np.int64):
            whole, _ = next(told.prediction_batches([i], [time], 1))
            cut, _ = next(told.prediction_batches([i], [time], 1, lambda record, t: record.until(t)))
            for name in FIELDS:
                np.testing.assert_array_equal(whole[name], cut[name], err_msg=name)
            n_known += whole["query_value_mask"].sum() + whole["query_signal_mask"].sum()
            later = dataclasses.replace(told.people.record(i), value_K=told.people.record(i).value_K + 100.0)
            changed, _ = next(told.prediction_batches([i], [time - 10_000 * DAY_US], 1, lambda r, t, x=later: x))
            assert not changed["query_value_mask"].any(), "before the first record"
    assert n_known > 100


def test_z_reads_the_state_of_its_own_query_where_it_is_known(told):
    network = family.network(told.spec, told.config)
    batch = told.spec.empty(1)
    told.fill({k: v[0] for k, v in batch.items()}, 0)
    variables = jax.eval_shape(lambda: network.init(jax.random.key(0), batch))
    params = random_params(variables["params"])

    def z(value):
        return network.apply({"params": params}, batch | {"query_value": value}, method="encode")[0].sum(-1)

    jacobian = np.asarray(jax.jit(jax.jacrev(z))(jnp.asarray(batch["query_value"])))[:, 0]
    known = batch["query_value_mask"][0]
    assert known.any()
    for q in range(len(known)):
        assert not jacobian[q, np.arange(len(known)) != q].any(), "the state of other queries"
        assert not jacobian[q, q][~known[q]].any() and np.all(jacobian[q, q][known[q]] != 0)
