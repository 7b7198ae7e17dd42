"""Cohorts whose people have raw waves, and readings of their segments, for families that read signal alone."""

import cohort
import numpy as np
import polars as pl
import raw_cohort
import small_run

from ehrwear_jax.config.segment_spec import SegmentReading
from ehrwear_jax.models.segment_examples import PieceReader

# 30 s at 25 Hz, a few of each person; of the grid, days of four windows of twelve steps
READING = SegmentReading(rate_hz=50.0, seconds=10.0, last=4, per_person=2, per_row=3)
GRID = SegmentReading(segments="", last=2, per_row=3, min_observed=0.3)


def make_people(folder, n_subjects=30, **options):
    """Folder of a prepared cohort with waves, for small_run.store; two thirds of the wearers have some."""
    root = raw_cohort.with_waves(cohort.write_cohort(folder, n_subjects=n_subjects))
    return cohort.prepare_cohort(root, **raw_cohort.PPG | options)


def row_of(examples, g):
    """Training row g: {field: array without an axis of rows}."""
    row = {name: array[0] for name, array in examples.spec.empty(1).items()}
    examples.fill(row, g)
    return row


def batch_of(examples, rows):
    """Training rows as a batch."""
    found = [row_of(examples, g) for g in rows]
    return {name: np.stack([row[name] for row in found]) for name in found[0]}


def asked(root, reading):
    """(positions, times, people of all splits): before, at, just before and behind the ends of pieces."""
    store = small_run.store(root, None)
    reader, position, time = PieceReader(store, reading), [], []
    for i in range(len(store)):
        end = reader.of(store[i]).end_us_Q
        times = [10**15] if not len(end) else [end[0] - 1, end[0], end[len(end) // 2] + 1, end[-1] + 10**12]
        position += [i] * len(times)
        time += [int(t) for t in times]
    order = np.random.default_rng(0).permutation(len(time))
    return np.array(position)[order], np.array(time)[order], store


def index_of(store, position, time):
    """Prediction times for embedding.embed: subject_id, prediction_time."""
    times = pl.Series("prediction_time", time).cast(pl.Datetime("us"))
    return pl.DataFrame([pl.Series("subject_id", store.index["subject_id"].to_numpy()[position]), times])
