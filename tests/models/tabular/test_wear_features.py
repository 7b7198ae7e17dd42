"""Wearable features of windows that say by which clock they were worn, and how long."""

import numpy as np
import polars as pl
from tabular_cohort import cohort

from ehrwear_jax.models.tabular import event_features, wear_features


def of_windows(windows, index):
    """{column: float32 [Q]}."""
    names = [name for name, _ in wear_features.column_names(windows.columns)]
    return dict(zip(names, wear_features.wear_features(windows, index, 6.0).T, strict=True))


def test_times_of_day_are_those_of_the_local_clock():
    _, _, windows, index = cohort(0)
    plain = of_windows(windows, index)
    zero = of_windows(windows.with_columns(utc_offset_minutes=pl.lit(0, pl.Int16)), index)
    # six hours east: what ends at six o'clock ends at noon there
    moved = of_windows(windows.with_columns(utc_offset_minutes=pl.lit(360, pl.Int16)), index)
    by_hour = [name for name in plain if "h_" in name and "__mean_" in name]
    assert len(by_hour) == 2 * 4 * len(event_features.YEARS.windows)
    n_moved = 0
    for name, values in plain.items():
        np.testing.assert_array_equal(zero[name], values, err_msg=name)
        there = name
        if name in by_hour:
            hour = int(name.split("__mean_")[1].split("h_")[0])
            there = name.replace(f"{hour}h_{hour + 6}h", f"{(hour + 6) % 24}h_{(hour + 6) % 24 + 6}h")
            n_moved += not np.array_equal(moved[name], values, equal_nan=True)
        np.testing.assert_array_equal(moved[there], values, err_msg=name)
    assert n_moved > len(by_hour) // 2


def test_hours_of_wear_are_those_that_were_worn():
    _, _, windows, index = cohort(1)
    plain = of_windows(windows, index)
    worn = windows.with_columns(worn_minutes=pl.lit(18, pl.Int16))
    for days in ("90d", "all"):
        hours = of_windows(worn, index)[f"wear__worn_hours_{days}"]
        np.testing.assert_allclose(hours, plain[f"wear__n_windows_{days}"] * 0.3, rtol=1e-6)
        assert (plain[f"wear__worn_hours_{days}"] > hours).any()
