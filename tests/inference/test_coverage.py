"""Warnings come when they should, and not otherwise."""

import numpy as np
import polars as pl

from ehrwear_jax.inference import coverage


def test_collapse_is_told_and_its_absence_is_not():
    rng, people = np.random.default_rng(0), np.arange(40)
    z = rng.normal(size=(40, 6)).astype(np.float32)
    assert coverage.of_latents(people, z, z.std(axis=0)) == [] == coverage.of_latents(people, z, None)
    (told,) = coverage.of_latents(people, 5 + 1e-3 * z, z.std(axis=0))
    assert "nearly the same z" in told
    same = np.where(people[:, None] < 30, z[:1], z)
    (told,) = coverage.of_latents(people, same, z.std(axis=0))
    assert told == "29 of 40 people have the same z as another one"
    assert coverage.of_latents(np.zeros(40, int), 0 * z, z.std(axis=0)) == [], "one person is no other"
    (told,) = coverage.of_latents(people, np.where(people[:, None] == 1, np.nan, z), z.std(axis=0))
    assert "at 1 of 40 prediction times there is nothing to read" in told


def test_low_coverage_concerns_models_that_read_events():
    codes = pl.DataFrame(
        [("a", "known", "a", 3, 1), ("b", "ancestor", "a", 1, 1), ("c", "unknown", None, 6, 2)],
        coverage.CODES,
        orient="row",
    )
    index = pl.DataFrame({"known_events": [4, 0], "n_windows": [0, 0]})
    told = coverage.of_data(codes, ["hr"], index, ["ehr", "wear"])
    assert [t.split()[0] for t in told] == ["60%", "no", "1"]
    assert len(coverage.of_data(codes, ["hr"], index, ["wear"])) == 2
    report = coverage.Report(codes, [], [], [], 2, 0, [], told)
    assert report.shares == {"known": 0.3, "ancestor": 0.1, "unknown": 0.6}
    assert report.as_dict()["not_known"][0]["code"] == "c" and str(report).count("warning: ") == 3


def test_signals_of_another_range_or_rate_are_told():
    """In the unit of the channel, also where the model is given logarithms; single people who are off are not."""
    rng, people = np.random.default_rng(0), np.repeat(np.arange(20), 5)
    heart_rate, activity = rng.normal(70, 8, 100), np.log1p(rng.normal(30, 5, 100))
    trained = {"mean": [70.0, np.log1p(30.0)], "std": [10.0, 0.5]}
    channels = {"heart_rate": "bpm", "activity": "counts/min"}

    def told(**changed):
        columns = {"heart_rate__mean": heart_rate, "activity__mean": activity} | changed
        windows = pl.DataFrame({"subject_id": people} | columns)
        return coverage.of_channels(windows, channels, trained, ("activity",))

    assert told() == []
    assert told(heart_rate__mean=np.where(people < 9, 150.0, heart_rate)) == [], "fewer than half"
    (sentence,) = told(heart_rate__mean=np.where(people < 10, 150.0, heart_rate))
    assert sentence.startswith("heart_rate: the median of 10 of 20 people lies outside 40 to 100 bpm, 3 standard dev")
    (sentence,) = told(activity__mean=activity + np.log(100))
    assert sentence.startswith("activity: the median of 20 of 20 people lies outside 5.92 to 138 counts/min")
    assert 2900 < float(sentence.rpartition("here: ")[2].rstrip(")")) < 3300, "told in counts, not as logarithms"
    assert told(heart_rate__mean=np.full(100, np.nan)) == [], "what is missing is told otherwise"
    trained_at = {"heart_rate": [1 / 60, 1 / 60], "ppg": [50.0, 100.0]}
    assert coverage.of_rates({"heart_rate": (1 / 60, 1 / 30), "ppg": (25.0, 64.0), "x": (1.0, 1.0)}, trained_at) == []
    assert coverage.of_rates({"heart_rate": (1 / 60, 1.0), "ppg": (20.0, 64.0)}, trained_at) == [
        "heart_rate: recorded at 0.0167 to 1 Hz, and at 0.0167 Hz in the training data",
        "ppg: recorded at 20 to 64 Hz, and at 50 to 100 Hz in the training data",
    ]
