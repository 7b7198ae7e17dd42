"""Embeddings by prediction time: files are only added, and what is lacking is said."""

from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
import small_run

from ehrwear_jax.stages import embed, prepare
from ehrwear_jax.stages.embed import KEYS, Embeddings
from ehrwear_jax.training import embedding


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


def test_times_without_labels_are_embedded_beside_the_tasks_or_alone(tmp_path, monkeypatch):
    """Once each, at the tasks' times and those of the table; the people who are drawn stay those of the tasks."""
    labels = small_run.write_inputs(tmp_path)
    wanted = pl.concat([times([3, 1, 999]), times([3]), labels["readmission"].select(KEYS).head(2)])
    wanted.write_parquet(tmp_path / "times.parquet")
    config = small_run.one_model(small_run.small_config(tmp_path), "ehr_only")
    config.evaluate.tasks, config.embed.times = ("readmission",), str(tmp_path / "times.parquet")
    plan = small_run.plan_of(config, tmp_path / "run")
    prepare.run(plan)
    drawn = [path.name for path in embed.trajectories(plan)]
    monkeypatch.setattr(embedding, "read_variables", lambda folder, model: ({}, 6))
    monkeypatch.setattr(embedding, "assemble", lambda *_: (None, None))
    monkeypatch.setattr(embedding, "encoder", lambda *_, **__: None)
    monkeypatch.setattr(embedding, "embed", lambda encode, examples, part, size: np.ones((part.height, 2)))
    monkeypatch.setattr(embed.tokens_seen, "write", lambda *_: None)
    given = wanted.filter(pl.col("subject_id") < 999).unique()  # the rest is not in the dataset
    both = pl.concat([given, labels["readmission"].select(KEYS)]).unique()
    for tasks, expected in (((), given), (("readmission",), both)):
        config.evaluate.tasks = tasks
        plan = small_run.plan_of(config, tmp_path / "run")
        (trained,) = plan.trained()
        assert embed.missing(plan) == [trained.key]
        embed.run(plan)
        assert embed.missing(plan) == []
        found = pl.concat([pl.read_parquet(p) for p in plan.embeddings(trained).glob("*.parquet")])
        assert found.select(KEYS).sort(KEYS).equals(expected.sort(KEYS))
    assert [path.name for path in embed.trajectories(plan)] == drawn
    assert embedding.steps_of(plan.embeddings(trained)) == [6]
