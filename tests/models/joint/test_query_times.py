"""Where queries of training contexts lie: at tokens, between them, and behind up to what comes next."""

import numpy as np
from joint_rows import contexts, examples_of, row_of, with_patient

from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.models.joint import query_times
from ehrwear_jax.models.joint.context import fit

CONTEXT = {"tokens": 48, "windows": 16, "context_tokens": 40, "queries": 12, "events": 8, "patch_steps": 3}


def drawn(patient, stop, behind, n=4000):
    """(times in days since the last token shown, span)."""
    span = fit(patient, stop, 20, 8)
    times = query_times.draw(np.random.default_rng(0), patient, span, n, behind)
    assert np.all(np.diff(times) >= 0)
    return (times - patient.time_N[span.stop - 1]) / DAY_US, span


def test_a_share_of_queries_lies_behind_up_to_the_next_token_or_the_end_of_follow_up(few_people):
    people = with_patient(examples_of(few_people, CONTEXT), 0, end_us=None).people
    patient = people[0]
    last = int(patient.time_N[-1])
    patient.end_us = last + 50 * DAY_US
    days, _ = drawn(patient, len(patient.time_N), 0.3)
    assert days.max() <= 50 and abs((days > 0).mean() - 0.3) < 0.03
    assert abs(days[days > 0].mean() - 25) < 1.5, "uniform over the silence"
    gaps = np.diff(patient.time_N)
    stop = int(np.argmax(gaps)) + 1
    days, span = drawn(patient, stop, 0.5)
    assert span.stop == stop and gaps[stop - 1] > DAY_US
    assert 0.4 < (days > 0).mean() < 0.6 and np.all(days * DAY_US < gaps[stop - 1]), "before the token not shown"
    assert not (drawn(patient, stop, 0.0)[0] > 0).any()
    patient.end_us = last - DAY_US  # records may go on behind a guessed end
    assert not (drawn(patient, len(patient.time_N), 1.0)[0] > 0).any()


def test_queries_behind_see_the_context_and_know_that_nothing_followed(many_people):
    """No later token of the record is left out of what they see; horizons count from them to the end of follow-up."""
    rows = examples_of(many_people, CONTEXT | {"queries_behind": 1.0}, augmented=False)
    n_behind = silent = 0
    for g in range(rows.rows_per_epoch):
        row = row_of(rows, g)
        for s, (own, (sample, span)) in enumerate(zip(contexts(row), rows.contexts(g), strict=True), 1):
            patient = rows.people[sample.position]
            for q in np.flatnonzero(row["query_segment"] == s):
                assert row["query_time"][q] >= row["time"][own[-1]] - 1e-3
                assert row["query_kv_range"][q, 1] == own[-1] + 1
                n_behind += row["query_time"][q] > row["time"][own[-1]]
                silent += span.stop == len(patient.time_N) and np.all(row["query_code_bin"][q] == 255)
    assert n_behind > 50 and silent > 20
