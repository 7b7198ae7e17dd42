"""Embeddings by prediction time: files are only added, and what is lacking is said."""

from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest

from ehrwear_jax.stages.embed import Embeddings


def times(subjects, day=0):
    at = [datetime(2016, 1, 1) + timedelta(days=day)] * len(subjects)
    table = pl.DataFrame({"subject_id": subjects, "prediction_time": at})
    return table.cast({"subject_id": pl.Int64, "prediction_time": pl.Datetime("us")})


def write(folder, name, table, z):
    folder.mkdir(exist_ok=True)
    z = pl.Series("embedding", np.asarray(z, np.float32).tolist(), dtype=pl.List(pl.Float32))
    table.with_columns(z).write_parquet(folder / f"{name}.parquet")


def test_files_are_read_together_in_the_order_that_is_asked_for(tmp_path):
    folder = tmp_path / "z"
    assert Embeddings(folder).lacking(times([3, 1])).equals(times([3, 1]))
    write(folder, "b", times([1, 2]), [[1, 10], [2, 20]])
    write(folder, "a", pl.concat([times([1], day=5), times([3])]), [[5, 50], [3, 30]])
    wanted = pl.concat([times([3, 1]), times([1], day=5), times([2])])
    z = Embeddings(folder).read(wanted)
    assert z.dtype == np.float32
    np.testing.assert_array_equal(z, [[3, 30], [1, 10], [5, 50], [2, 20]])
    more = pl.concat([wanted, times([9]), times([2], day=5)])
    assert Embeddings(folder).lacking(more).equals(pl.concat([times([9]), times([2], day=5)]))
    with pytest.raises(FileNotFoundError, match="lacks prediction times: run the embed stage"):
        Embeddings(folder).read(more)


def test_nothing_is_asked_for(tmp_path):
    write(tmp_path / "z", "a", times([1]), [[1.0]])
    assert Embeddings(tmp_path / "z").read(times([])).shape[0] == 0
