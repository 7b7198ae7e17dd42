"""When people wear the device and when predictions are made."""

import dataclasses

import numpy as np
import polars as pl
import pytest
from simulated_cohort import read_latent

from ehrwear_jax.config.data import SimulateConfig
from ehrwear_jax.data.formats import meds, wearable
from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.data.sources.simulator import people, schedule, simulate

CONFIG = SimulateConfig(n_subjects=250, seed=7, wear_days=9, horizons_days=(30, 365), ppg_subjects_fraction=0.0)


def drawn(config, subject_id):
    demographics, *_, calendar = people.generators(config.seed, subject_id)
    person = people.draw_person(demographics, subject_id, config)
    stretches = schedule.draw_stretches(calendar, person, config)
    return person, stretches, schedule.draw_prediction_days(calendar, person, stretches, config)


@pytest.mark.parametrize("per_subject", [1, 3, 5])
def test_predictions_are_drawn_inside_stretches_with_history_and_follow_up(per_subject):
    config = dataclasses.replace(CONFIG, predictions_per_subject=per_subject)
    with_times = 0
    for subject_id in range(1, 200):
        person, stretches, days = drawn(config, subject_id)
        assert [length for _, length in stretches] == [3, 3, 3]
        assert all(a + n <= b for (a, n), (b, _) in zip(stretches, stretches[1:], strict=False))
        assert stretches[0][0] >= 0 and stretches[-1][0] + stretches[-1][1] < person.end_day
        long_enough = person.end_day >= config.min_history_days + config.wear_days + 365
        assert len(days) == (min(per_subject, 3) if long_enough else 0)  # three days: one midnight a stretch
        with_times += long_enough
        for day in days:
            assert config.min_history_days <= day <= person.end_day - 365
            assert any(first + schedule.WORN_DAYS <= day <= first + length for first, length in stretches)
    assert with_times > 150


def test_the_schedule_depends_on_nothing_but_the_calendar():
    """Whatever the risk and the outcomes: the same days, or labels would follow from who is asked."""
    sicker = dataclasses.replace(CONFIG, admission_per_year=2.0, interaction=0.0, wearable_subjects_fraction=0.0)
    for subject_id in range(1, 30):
        assert drawn(CONFIG, subject_id)[1:] == drawn(sicker, subject_id)[1:]


def test_without_wear_there_are_prediction_times_all_the_same():
    days = [drawn(dataclasses.replace(CONFIG, wear_days=0), subject_id)[2] for subject_id in range(1, 60)]
    assert np.mean([len(d) for d in days]) > 2


def test_the_device_is_worn_before_every_prediction_of_a_wearer(tmp_path):
    """And those whose time came in hospital or after death are left out, whatever follows for the others."""
    config = dataclasses.replace(CONFIG, admission_per_year=0.4)
    simulate.simulate(tmp_path, config, progress=False)
    labels = meds.read_labels(tmp_path / "labels" / "hospitalization_365d.parquet")
    channels = wearable.read_channels(tmp_path / "wearable")
    rows = pl.concat([wearable.read_shard(p, channels) for p in wearable.list_shards(tmp_path / "wearable")])
    stop = pl.col("start_time") + pl.duration(minutes=pl.col("values").list.len())
    rows = rows.filter(pl.col("channel") == "activity").select("subject_id", "start_time", stop_time=stop)
    worn = labels.join(rows, on="subject_id").with_columns(since=pl.col("prediction_time") - pl.col("stop_time"))
    worn = worn.filter(pl.col("start_time") < pl.col("prediction_time"))
    since = worn.group_by("subject_id", "prediction_time").agg(pl.col("since").min())["since"]
    assert len(since) > 0.95 * len(labels.filter(pl.col("subject_id").is_in(rows["subject_id"].unique().implode())))
    # hours where the device restarts; a whole stretch where it was left off, or worn in hospital only
    assert (since.dt.total_hours() < 12).mean() > 0.98
    truth = read_latent(tmp_path / "truth").rename({"time": "prediction_time"})
    state = labels.join(truth, on=["subject_id", "prediction_time"])
    assert len(state) == len(labels) and not state["in_hospital"].any()
    everybody = set()
    for subject_id in range(1, config.n_subjects + 1):
        person, _, days = drawn(config, subject_id)
        everybody |= {(subject_id, person.start_us + day * DAY_US) for day in days}
    asked = set(labels.select("subject_id", pl.col("prediction_time").to_physical()).iter_rows())
    assert asked < everybody and len(asked) > 0.8 * len(everybody)
