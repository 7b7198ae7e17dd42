"""Draws the times of a training context's queries: where its tokens are, between them, and in the silence behind."""

import numpy as np

from ehrwear_jax.models.joint.context import Span
from ehrwear_jax.models.joint.patient import Patient


def draw(rng: np.random.Generator, patient: Patient, span: Span, n: int, behind: float) -> np.ndarray:
    """Sorted times of n queries: int64 us.

    Half of them are at a token that the context shows, half at any time between its first and its last. A share
    `behind` is moved to any time from the last token to the next one that the context does not show, or to the end of
    follow-up: labels are read weeks after the last record, and that nothing follows is learned there only.
    """
    time_us = patient.time_N[span.positions(patient)]
    first, last = int(patient.time_N[span.start]), int(patient.time_N[span.stop - 1])
    at_token = time_us[rng.integers(0, len(time_us), n)]
    at_any_time = rng.integers(first, last + 1, n)
    query_us = np.where(rng.random(n) < 0.5, at_token, at_any_time)
    if behind:
        end = int(patient.time_N[span.stop]) - 1 if span.stop < len(patient.time_N) else patient.end_us
        later = rng.integers(last, max(end, last) + 1, n)
        query_us = np.where(rng.random(n) < behind, later, query_us)
    query_us.sort()
    return query_us
