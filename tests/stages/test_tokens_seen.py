"""What models see at the prediction times: counted as it is read, and added up over the files of a folder."""

from datetime import datetime

import numpy as np
import polars as pl

from ehrwear_jax.models.family import Examples
from ehrwear_jax.stages import tokens_seen


class Counted(Examples):
    """Two people, of whom z is read from as many events as the hour of the day says, three at most."""

    subject_id = np.array([7, 3])

    def __init__(self, counts=True):
        self.counts_tokens = counts

    def fill(self, row, g):
        raise NotImplementedError

    def subjects(self, rows):
        raise NotImplementedError

    def prediction_batches(self, position_N, time_us_N, batch_size, transform=None):
        raise NotImplementedError

    def counts(self, batch):
        raise NotImplementedError

    def tokens_seen(self, position_N, time_us_N):
        if not self.counts_tokens:
            return super().tokens_seen(position_N, time_us_N)
        hour = time_us_N // 3_600_000_000 % 24
        return {"events": np.minimum(hour, 3), "events_left_out": np.maximum(hour - 3, 0), "people": position_N}


def times(*rows):
    table = pl.DataFrame(
        {"subject_id": [s for s, _ in rows], "prediction_time": [datetime(2016, 1, 1, h) for _, h in rows]}
    )
    return table.cast({"subject_id": pl.Int64, "prediction_time": pl.Datetime("us")})


def test_files_are_summed_up_together(tmp_path):
    tokens_seen.write(tmp_path, "a", Counted(), times((7, 0), (3, 2)))
    assert tokens_seen.read(tmp_path)["events"] == {"mean": 1.0, "median": 1.0, "max": 2, "cut": 0.0}
    tokens_seen.write(tmp_path, "b", Counted(), times((3, 3), (3, 4), (7, 9)))
    found = tokens_seen.read(tmp_path)
    assert found["prediction_times"] == 5
    assert found["events"] == {"mean": 11 / 5, "median": 3.0, "max": 3, "cut": 2 / 5}
    assert found["people"] == {"mean": 3 / 5, "median": 1.0, "max": 1}, "nothing can be left out"
    assert pl.read_parquet(tmp_path / "tokens_seen" / "b.parquet")["events_left_out"].to_list() == [0, 1, 6]


def test_a_family_that_does_not_count_has_no_file(tmp_path):
    tokens_seen.write(tmp_path, "a", Counted(counts=False), times((7, 0)))
    assert tokens_seen.read(tmp_path) == {} and not list(tmp_path.iterdir())
