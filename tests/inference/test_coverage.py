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
