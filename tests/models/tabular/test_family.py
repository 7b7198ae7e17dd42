"""Which features a model is given, and what it predicts for every kind of task."""

import functools

import numpy as np
import polars as pl
import pytest
from scipy import sparse
from sklearn.metrics import roc_auc_score

from ehrwear_jax.evals import concordance
from ehrwear_jax.models.tabular import family, kernel, losses
from ehrwear_jax.models.tabular.encoder import Encoder
from ehrwear_jax.models.tabular.features import AGE, COUNT, FLAG, SINCE, VALUE

COLUMNS = pl.DataFrame(
    [
        (AGE, VALUE),
        ("ehr__n_events_all", COUNT),
        ("ehr__static__GENDER//F", FLAG),
        ("ehr__static__RACE//a", FLAG),
        ("ehr__A__count_30d", COUNT),
        ("ehr__A__days_since", SINCE),
        ("wear__n_windows_all", COUNT),
        ("wear__steps__mean_7d", VALUE),
    ],
    ["name", "kind"],
    orient="row",
)
EHR = COLUMNS["name"].to_list()[:6]


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, COLUMNS["name"].to_list()),
        ({"modalities": ("ehr",)}, EHR),
        ({"features": "counts"}, ["ehr__n_events_all", "ehr__A__count_30d"]),
        ({"features": "demographics"}, [AGE, "ehr__static__GENDER//F"]),
        ({"features": "demographics", "sex_prefixes": ("RACE//",)}, [AGE, "ehr__static__RACE//a"]),
        ({"features": "none", "latents": ("joint",)}, []),
    ],
)
def test_columns(options, expected):
    assert family.columns(family.Config(**options), COLUMNS) == expected


def test_latents_stand_beside_the_table_and_are_known_even_where_they_are_zero():
    rng = np.random.default_rng(0)
    x = {s: rng.poisson(1, (n, 3)).astype(np.float32) for s, n in (("train", 7), ("tuning", 4), ("held_out", 5))}
    z = {s: rng.normal(size=(len(v), 2)).astype(np.float32) for s, v in x.items()}
    z["tuning"][1] = 0.0
    before = family.Table(COLUMNS[4:7].with_columns(group=pl.lit("ehr")), lambda s: sparse.csr_matrix(x[s]), 0.1)
    found = family.with_latents(before, "joint", z)
    assert found.since_days == 0.1 and found.columns.columns == ["name", "kind"]
    assert found.columns.rows()[3:] == [("latent__joint__0", VALUE), ("latent__joint__1", VALUE)]
    for split, of in x.items():
        both = found.read(split)
        np.testing.assert_array_equal(both.toarray(), np.concatenate([of, z[split]], axis=1))
        stored = np.bincount(both.indices, minlength=5)
        assert (stored[3:] == len(of)).all()


def test_a_model_of_one_modality_is_none_where_there_is_no_other():
    only = COLUMNS.filter(pl.col("name").is_in(EHR))
    assert family.columns(family.Config(modalities=("ehr",)), only) == []
    assert family.columns(family.Config(modalities=("wear",)), only) == []
    assert family.columns(family.Config(), only) == EHR


@pytest.mark.parametrize(
    "options, message",
    [
        ({"features": "labs"}, "features is 'labs'"),
        ({"features": "counts", "modalities": ("wear",)}, "are of modality ehr"),
        ({"candidates": 0}, "must be positive"),
        ({"features": "none"}, "are of nothing unless latents"),
        ({"modalities": ("ppg",)}, "modalities are"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        family.Config(**options)


def table(n=1500, seed=0):
    """(Table, target by kind): risk rises with age where the flag is set, and with a count."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 8)).astype(np.float32)
    x[:, 0] = 60 + 10 * x[:, 0]
    x[:, [1, 2, 4]] = rng.poisson(1, (n, 3)) * [1, 0, 1] + (rng.random((n, 3)) < 0.5) * [0, 1, 0]
    x[:, [3, 5, 6, 7]] *= rng.random((n, 4)) < 0.3
    score = 0.1 * (x[:, 0] - 60) * (2 * x[:, 2] - 1) + np.log1p(x[:, 4])
    parts = {"train": slice(800), "tuning": slice(800, 1100), "held_out": slice(1100, None)}
    time, end = rng.exponential(np.exp(-score)), rng.exponential(2.0, n)
    target = {
        losses.BINARY: (rng.random(n) < 1 / (1 + np.exp(-score))).astype(float),
        losses.SURVIVAL: (np.minimum(time, end), time <= end),
        losses.REGRESSION: score + rng.normal(size=n),
    }
    by_split = {
        kind: {s: tuple(a[p] for a in y) if isinstance(y, tuple) else y[p] for s, p in parts.items()}
        for kind, y in target.items()
    }
    return lambda: family.Table(COLUMNS, lambda split: sparse.csr_matrix(x[parts[split]])), by_split


@pytest.mark.parametrize("estimator", ["boosting", "linear", "average", "kernel"])
@pytest.mark.parametrize("kind", [losses.BINARY, losses.SURVIVAL, losses.REGRESSION])
def test_every_kind_of_task_is_predicted(kind, estimator):
    make, target = table()
    found = family.scores(family.Config(estimator=estimator, candidates=6), kind, make(), target[kind])
    y, score_N = target[kind]["held_out"], found["held_out"]
    assert {s: len(v) for s, v in found.items()} == {"tuning": 300, "held_out": 400}
    if kind == losses.BINARY:
        assert roc_auc_score(y, score_N) > 0.72  # without the interaction 0.64
    elif kind == losses.SURVIVAL:
        assert concordance.concordance_index(*y, score_N) > 0.68
    else:
        assert np.corrcoef(y, score_N)[0, 1] > 0.6


def test_an_average_is_the_mean_of_both_estimators():
    make, target = table()
    by = {e: family.scores(family.Config(estimator=e, candidates=2), losses.SURVIVAL, make(), target[losses.SURVIVAL])
          for e in ("boosting", "linear", "average")}  # fmt: skip
    for split in ("tuning", "held_out"):
        np.testing.assert_allclose(by["average"][split], (by["boosting"][split] + by["linear"][split]) / 2, rtol=1e-12)


def test_a_kernel_is_fitted_to_the_drawn_rows_and_their_targets(monkeypatch):
    monkeypatch.setattr(kernel, "MOST_ROWS", 300)
    make, target = table()
    drawn, config = kernel.rows(800), family.Config(estimator="kernel")
    for kind in (losses.BINARY, losses.SURVIVAL):
        y = target[kind]
        whole = family.scores(config, kind, make(), y)
        y_drawn = tuple(a[drawn] for a in y["train"]) if kind == losses.SURVIVAL else y["train"][drawn]
        plain = make()
        # what units are is told by all rows, so that these stay the same
        monkeypatch.setattr(family, "Encoder", functools.partial(fitted_to, plain.read("train")))
        part = family.Table(COLUMNS, lambda s, plain=plain: plain.read(s)[drawn] if s == "train" else plain.read(s))
        found = family.scores(config, kind, part, {**y, "train": y_drawn})
        np.testing.assert_allclose(found["held_out"], whole["held_out"], atol=1e-5)
        monkeypatch.undo()
        monkeypatch.setattr(kernel, "MOST_ROWS", 300)


def fitted_to(x_train, x, *args):
    return Encoder(x_train, *args)


def test_held_out_rows_change_nothing_but_themselves():
    make, target = table()
    config = family.Config(candidates=2, max_trees=30)
    whole = family.scores(config, losses.BINARY, make(), target[losses.BINARY])
    plain = make()

    def read(split):
        x = plain.read(split)
        if split == "held_out":
            x.data[x.indptr[1] :] *= 3
        return x

    other = family.scores(config, losses.BINARY, family.Table(COLUMNS, read), target[losses.BINARY])
    np.testing.assert_array_equal(other["tuning"], whole["tuning"])
    assert other["held_out"][0] == whole["held_out"][0]
    assert (other["held_out"][1:] != whole["held_out"][1:]).any()
