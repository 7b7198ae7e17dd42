"""The simulated skin temperature: a third channel of minutes, on request."""

import dataclasses

import numpy as np
import polars as pl

from ehrwear_jax.config.data import SimulateConfig
from ehrwear_jax.data.formats import wearable
from ehrwear_jax.data.sources.simulator import simulate

SMALL = SimulateConfig(n_subjects=10, years=2.0, wear_days=6, seed=3, horizons_days=(30,))


def recordings(root, config):
    simulate.simulate(root, config, progress=False)
    channels = wearable.read_channels(root / "wearable")
    return pl.concat([wearable.read_shard(p, channels) for p in wearable.list_shards(root / "wearable")])


def test_it_is_recorded_on_request_and_changes_nothing_else(tmp_path):
    without = recordings(tmp_path / "without", SMALL)
    rows = recordings(tmp_path / "with", dataclasses.replace(SMALL, temperature=True))
    is_new = pl.col("channel") == "skin_temperature"
    assert rows.filter(~is_new).equals(without)
    new, heart = rows.filter(is_new), rows.filter(pl.col("channel") == "heart_rate")
    assert new.select("subject_id", "start_time").equals(heart.select("subject_id", "start_time"))
    values, rate = (np.concatenate(t["values"].to_list()) for t in (new, heart))
    assert (np.isnan(values) == np.isnan(rate)).all()
    minute = np.concatenate([
        (t.hour * 60 + t.minute + np.arange(n)) % 1440
        for t, n in zip(new["start_time"], new["values"].list.len(), strict=True)
    ])  # fmt: skip
    night, day = (np.nanmean(values[(minute // 60) == hour]) for hour in (4, 16))
    assert np.nanmin(values) > 28 and np.nanmax(values) < 40 and 1.2 < night - day < 2.4
