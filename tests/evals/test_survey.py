"""Metrics under survey weights, and resamples that vary as the survey's design says."""

import numpy as np
import polars as pl
import pytest
import scipy.stats
from sklearn.metrics import roc_auc_score

from ehrwear_jax.evals import bootstrap, survey
from ehrwear_jax.evals.classification import BinaryRanking
from ehrwear_jax.evals.estimates import Resampling, estimate

N_STRATA, UNITS, EACH = 12, (2, 2, 3, 2, 5, 2, 2, 3, 2, 2, 4, 2), 40
COLUMNS = ("weight", ("stratum",), ("unit",))


@pytest.fixture(scope="module")
def people():
    """A survey whose units differ more than its people do by chance; units are numbered anew in each stratum."""
    rng, rows = np.random.default_rng(0), []
    for h, n in enumerate(UNITS):
        for i in range(n):
            of_unit = rng.normal(0, 0.5) + 0.2 * h
            size = EACH + 5 * i
            weight = rng.uniform(500, 3000) * rng.lognormal(0, 0.4, size)
            y = of_unit + rng.normal(0, 1, size)
            rows.append(pl.DataFrame({"stratum": [h] * size, "unit": [i] * size, "weight": weight, "y": y}))
    table = pl.concat(rows)
    return table.with_columns(subject_id=7 * pl.int_range(pl.len()) + 3)


@pytest.fixture(scope="module")
def design(people, tmp_path_factory):
    return read(people, tmp_path_factory.mktemp("survey"))


def read(people, folder, columns=COLUMNS, group=None):
    path = folder / "subject_survey.parquet"
    people.sample(fraction=1, shuffle=True, seed=1).write_parquet(path)
    ids = people["subject_id"].to_numpy()
    return survey.read(path, ids, ids if group is None else group, columns)


def mean_of(y_N):
    return lambda weight_NxB: {"mean": y_N @ weight_NxB / weight_NxB.sum(0)}


def linearised_variance(people):
    """Of the weighted mean: the textbook estimator between units of strata, of its linearised values."""
    w, y = people["weight"].to_numpy(), people["y"].to_numpy()
    of_person = w * (y - w @ y / w.sum()) / w.sum()
    unit = people.with_columns(z=pl.Series(of_person)).group_by("stratum", "unit").agg(pl.col("z").sum())
    return sum(len(z) * np.var(z, ddof=1) for (_,), part in unit.group_by("stratum") for z in [part["z"].to_numpy()])


def test_values_are_the_populations_and_intervals_the_designs(people, design):
    """Both estimators hold to first order of the ratio; 8,000 resamples leave 1.6% of chance in the variance."""
    y_N, ids = people["y"].to_numpy(), people["subject_id"].to_numpy()
    found = estimate({"y": mean_of(y_N)}, ids, Resampling(8000, 0, ids, design))
    assert found.values["y"]["mean"] == pytest.approx(np.average(y_N, weights=people["weight"].to_numpy()))
    samples = found.resampled("y", "mean")
    assert samples.mean() == pytest.approx(found.values["y"]["mean"], abs=0.1 * samples.std())
    assert samples.var() == pytest.approx(linearised_variance(people), rel=0.1)
    alike = estimate({"y": mean_of(y_N)}, ids, Resampling(2000, 0, ids)).resampled("y", "mean")
    assert samples.std() > 2 * alike.std(), "people of a unit are alike, which people alone do not tell"


def test_a_person_as_a_unit_of_one_stratum_is_the_bootstrap_of_people(people, tmp_path):
    y_N, ids = people["y"].to_numpy(), people["subject_id"].to_numpy()
    each = read(people.with_columns(weight=1.0), tmp_path, ("weight", (), ()))
    assert len(np.unique(each.unit_G)) == len(ids) and not each.stratum_G.any()
    one, two = (estimate({"y": mean_of(y_N)}, ids, Resampling(3000, 1, ids, d)) for d in (each, None))
    assert one.values == two.values
    assert one.resampled("y", "mean").std() == pytest.approx(two.resampled("y", "mean").std(), rel=0.06)


def test_metrics_of_a_part_of_the_people_are_under_their_own_weights(people, design):
    """Rows of some of the groups, some of them twice, in any order; AUROC against scikit-learn."""
    rng = np.random.default_rng(2)
    at = rng.integers(0, people.height, 300)
    label, score = rng.random(300) < 0.3, rng.normal(size=300).round(1)
    ids = people["subject_id"].to_numpy()
    found = estimate({"m": BinaryRanking(label, score)}, ids[at], Resampling(50, 0, ids, design))
    weight = people["weight"].to_numpy()[at]
    assert found.values["m"]["auroc"] == pytest.approx(roc_auc_score(label, score, sample_weight=weight))
    whole = np.concatenate(list(design.blocks(np.arange(len(ids)), 50, 0)), axis=1)
    part = np.concatenate(list(design.blocks(at, 50, 0)), axis=1)
    np.testing.assert_array_equal(part, whole[at])
    third = roc_auc_score(label, score, sample_weight=part[:, 3])
    assert found.resampled("m", "auroc")[3] == pytest.approx(third)


def test_units_are_drawn_whole_and_strata_keep_their_number(people, design):
    weight_NxB = np.concatenate(list(design.blocks(np.arange(people.height), 300, 5)), axis=1)
    factor = people.select("stratum", "unit").with_columns(
        *(pl.Series(f"b{b}", weight_NxB[:, b] / people["weight"].to_numpy()) for b in range(300))
    )
    spread = factor.group_by("stratum", "unit").agg(pl.all().max() - pl.all().min())
    assert spread.drop("stratum", "unit").to_numpy().max() < 1e-9
    by_unit = factor.group_by("stratum", "unit").agg(pl.all().first())
    for (h,), part in by_unit.group_by("stratum"):
        n = UNITS[int(h)]
        times = part.drop("stratum", "unit").to_numpy() * (n - 1) / n
        np.testing.assert_allclose(times, times.round(), atol=1e-9)
        np.testing.assert_allclose(times.sum(0), n - 1)
        drawn = np.bincount(times.round().astype(int).ravel(), minlength=n)
        expected = scipy.stats.binom.pmf(np.arange(n), n - 1, 1 / n) * times.size
        assert np.all(np.abs(drawn - expected) < 6 * np.sqrt(expected) + 6)


def test_resamples_do_not_depend_on_their_number_or_on_blocks(design, people, monkeypatch):
    index = np.arange(people.height)
    many = np.concatenate(list(design.blocks(index, 600, 3)), axis=1)
    few = np.concatenate(list(design.blocks(index, 40, 3)), axis=1)
    np.testing.assert_array_equal(many[:, :40], few)
    monkeypatch.setattr(survey, "lanes_of", lambda _: 7)
    np.testing.assert_array_equal(np.concatenate(list(design.blocks(index, 600, 3)), axis=1), many)


def test_a_stratum_with_one_unit_stays_as_it_is(people, tmp_path):
    alone = people.filter((pl.col("stratum") != 3) | (pl.col("unit") == 0))
    found = read(alone, tmp_path)
    assert found.n_single == 1
    weight_NxB = np.concatenate(list(found.blocks(np.arange(alone.height), 30, 0)), axis=1)
    of_it = (alone["stratum"] == 3).to_numpy()
    np.testing.assert_array_equal(weight_NxB[of_it], np.repeat(alone["weight"].to_numpy()[of_it, None], 30, axis=1))
    assert weight_NxB[~of_it].std(axis=1).min() > 0


def test_what_the_table_lacks_is_said(people, tmp_path):
    with pytest.raises(ValueError, match="has no column 'psu'; it has stratum, unit, weight, y, subject_id"):
        read(people, tmp_path, ("weight", ("stratum",), ("psu",)))
    first = people["subject_id"][0]
    for wrong in (None, -1.0, float("nan")):
        changed = people.with_columns(weight=pl.when(pl.col("subject_id") == first).then(wrong).otherwise("weight"))
        with pytest.raises(ValueError, match=f"1 of {people.height} people have no weight .*e.g. subject {first}"):
            read(changed, tmp_path)
    ids = people["subject_id"].to_numpy()
    people.head(5).write_parquet(tmp_path / "few.parquet")
    with pytest.raises(ValueError, match=f"{people.height - 5} of {people.height} people have no weight"):
        survey.read(tmp_path / "few.parquet", ids, ids, COLUMNS)
    with pytest.raises(ValueError, match="nobody has a weight above 0"):
        read(people.with_columns(weight=0.0), tmp_path)
    with pytest.raises(ValueError, match="group 0 has people of several units or weights"):
        read(people, tmp_path, group=np.zeros(people.height, np.int64))
    pairs = np.arange(people.height)  # two people of the same unit, one group
    pairs[1] = 0
    alike = people.with_columns(weight=pl.when(pl.col("subject_id") <= ids[1]).then(7.5).otherwise("weight"))
    weights = read(alike, tmp_path, group=pairs).weight_G
    assert len(weights) == people.height - 1 and weights[0] == 7.5
    with pytest.raises(ValueError, match="the design is of"):
        design = read(people, tmp_path)
        bootstrap.resample({"y": mean_of(np.ones(3))}, [1, 2, 3], 5, 0, design=design)
