"""Labels and prediction times straight from a dataset whose people are followed up to their last record."""

import polars as pl

from ehrwear_jax.data.formats import meds
from ehrwear_jax.data.labels import episodes, key_events, outcomes
from ehrwear_jax.data.labels.prediction_times import draw


def onset_times(root, prefixes, index):
    """outcomes.next_event of the first diagnosis of a group, of those who never had one before."""
    wanted = {"event": key_events.beginning(prefixes), "death": key_events.below(meds.DEATH_CODE)}
    events = key_events.read(key_events.Reading(root, None), wanted)
    people = events.spans.select("subject_id", pl.col("last").alias("end"))
    people = people.join(events.first("death"), on="subject_id", how="left")
    times = outcomes.next_event(index, events.times["event"], people)
    return times.filter(~pl.col("before")).drop("before")


def prediction_times(root, sampling, start=None, stop=None, rules=None):
    """prediction_times.draw from the first record on, or `start`, to the last one, or `stop` (subject_id, time)."""
    rules = rules or episodes.Rules()
    wanted = outcomes.stay_rows(rules) | {"death": key_events.below(meds.DEATH_CODE)}
    events = key_events.read(key_events.Reading(root, None), wanted)
    people = events.spans.join(events.first("death"), on="subject_id", how="left", maintain_order="left")
    people = people.with_columns(pl.col("first", "last", "death").to_physical())
    people = people.with_columns(
        low=pl.col("first") + sampling.history_us, high=pl.col("last") - 1, until=pl.min_horizontal("last", "death")
    )
    for limit, column in ((start, "low"), (stop, "high")):
        if limit is not None:
            given = limit.select("subject_id", pl.col("time").cast(pl.Datetime("us")).to_physical().alias("given"))
            people = people.join(given, on="subject_id", how="inner", maintain_order="left")
            bound = pl.max_horizontal("low", "given") if column == "low" else pl.col("given")
            people = people.with_columns(bound.alias(column)).drop("given")
    return draw(people, sampling, outcomes.stays(events, rules)[0])[0]
