"""Boosted trees: what they learn, how they choose, and that the same bits come out."""

import gc
import os
import weakref

import lightgbm
import numpy as np
import pytest
from scipy import sparse
from sklearn.metrics import roc_auc_score

from ehrwear_jax.evals import concordance
from ehrwear_jax.models.tabular import boosting, losses

FEW = boosting.Search(boosting.CANDIDATES[5:8], max_trees=200, patience=20)


def data(n=3000, seed=0):
    """(sparse columns, score): two columns that matter together only, one that is not known for most, and noise."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 12)).astype(np.float32)
    x[:, 3:] *= rng.random((n, 9)) < 0.3
    return sparse.csr_matrix(x), 3 * x[:, 0] * (x[:, 1] > 0) + (x[:, 3] != 0), rng


def target(kind, score, rng):
    n = len(score)
    if kind == losses.BINARY:
        return (rng.random(n) < 1 / (1 + np.exp(1 - score))).astype(float)
    if kind == losses.SURVIVAL:
        time, end = rng.exponential(np.exp(-score)), rng.exponential(2.0, n)
        return np.minimum(time, end), time <= end
    return score + rng.normal(size=n)


def some(of, part):
    return tuple(x[part] for x in of) if isinstance(of, tuple) else of[part]


def fit(kind, search=FEW):
    x, score, rng = data()
    y = target(kind, score, rng)
    train, tuning = (losses.of(kind, some(y, p), "train") for p in (slice(1600), slice(1600, 2300)))
    rows = boosting.Rows.of(x[:1600], train)
    model = boosting.fit(rows, rows.like(x[1600:2300], tuning), search)
    return model, x, y, tuning


def fit_to_itself(x, loss, search):
    rows = boosting.Rows.of(x, loss)
    return boosting.fit(rows, rows.like(x, loss), search)


@pytest.mark.parametrize("kind", [losses.BINARY, losses.SURVIVAL, losses.REGRESSION])
def test_an_interaction_is_learnt_for_every_kind_of_task(kind):
    model, x, y, tuning = fit(kind)
    held = slice(2300, None)
    found = model.score(x[held])
    if kind == losses.BINARY:
        assert roc_auc_score(y[held], found) > 0.7
    elif kind == losses.SURVIVAL:
        assert concordance.concordance_index(*some(y, held), found) > 0.7
    else:
        assert np.corrcoef(y[held], found)[0, 1] > 0.7
    nothing = tuning.mean(np.full(700, np.mean(y[1600:2300]) if kind == losses.REGRESSION else 0.0))
    assert tuning.mean(model.score(x[1600:2300])) < 0.97 * nothing


def test_one_split_tells_what_is_missing_from_what_is_as_the_mean():
    """Unknown values are read as missing, and not as the mean, between values below it and above."""
    rng = np.random.default_rng(0)
    known = rng.random(2000) < 0.5
    x = sparse.csr_matrix(np.where(known, rng.normal(size=2000), 0.0).astype(np.float32)[:, None])
    one_split = boosting.Search(({"num_leaves": 2, "learning_rate": 0.5},), max_trees=1)
    model = fit_to_itself(x, losses.of(losses.BINARY, (~known).astype(float), "train"), one_split)
    assert roc_auc_score(~known, model.score(x)) > 0.99


@pytest.mark.parametrize("kind", [losses.BINARY, losses.SURVIVAL])
def test_the_cut_has_the_lowest_tuning_loss_of_all_trees(kind):
    search = boosting.Search(({"learning_rate": 0.3},), max_trees=60, patience=60)
    model, x, _, tuning = fit(kind, search)
    (one,) = model.models
    capped = [fit(kind, boosting.Search(search.candidates, n, 60))[0].models[0].tuning_loss for n in range(1, 61)]
    assert 1 < one.n_trees < 60
    assert one.n_trees == capped.index(min(capped)) + 1 == one.model.current_iteration()
    assert one.tuning_loss == min(capped)
    assert tuning.mean(one.score(x[1600:2300])) == pytest.approx(one.tuning_loss, rel=1e-6)


def test_the_best_candidates_are_averaged():
    useless = {"num_leaves": 2, "min_data_in_leaf": 1590, "learning_rate": 1e-6}
    search = boosting.Search((useless, *FEW.candidates), max_trees=100, patience=20, averaged=2)
    model, x, *_ = fit(losses.BINARY, search)
    kept = [m.tuning_loss for m in model.models]
    alone = []
    for k in range(4):
        one, *_ = fit(losses.BINARY, boosting.Search(search.candidates[: k + 1], 100, 20, averaged=4))
        alone.append(max(m.tuning_loss for m in one.models if m.settings == search.candidates[k]))
    assert kept == sorted(alone)[:2]
    assert useless not in [m.settings for m in model.models]
    np.testing.assert_allclose(model.score(x), (model.models[0].score(x) + model.models[1].score(x)) / 2)


def test_the_same_bits_whatever_the_cores(monkeypatch):
    first = fit(losses.SURVIVAL)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    again = fit(losses.SURVIVAL)
    np.testing.assert_array_equal(first[0].score(first[1]), again[0].score(again[1]))
    other = fit(losses.SURVIVAL, boosting.Search(FEW.candidates, FEW.max_trees, FEW.patience, seed=1))
    assert (other[0].score(other[1]) != first[0].score(first[1])).any()


def test_cox_on_trees_equals_a_plain_boosting_step():
    """One tree of two leaves: Newton's step of the partial likelihood in each."""
    x = sparse.csr_matrix(np.repeat([[0.0], [1.0]], 50, axis=0).astype(np.float32))
    rng = np.random.default_rng(0)
    time_N = rng.exponential(np.repeat([1.0, 0.2], 50))
    loss = losses.of(losses.SURVIVAL, (time_N, np.ones(100, bool)), "train")
    one = {"num_leaves": 2, "min_data_in_leaf": 5, "learning_rate": 1.0, "bagging_fraction": 1.0}
    model = fit_to_itself(x, loss, boosting.Search((one,), max_trees=1))
    first_N, second_N = loss.derivatives(np.zeros(100))
    step = [-first_N[part].sum() / second_N[part].sum() for part in (slice(50), slice(50, 100))]
    np.testing.assert_allclose(model.score(x)[[0, 99]], step, rtol=1e-5)


def test_no_table_lives_on_while_trees_grow():
    """The caller's tables are its own to drop: bins hold no reference to them, nor the library's data sets."""
    x, score, rng = data()
    loss = losses.of(losses.BINARY, target(losses.BINARY, score, rng), "train")
    rows = boosting.Rows.of(x, loss)
    both = rows, rows.like(x, loss)
    gone = weakref.ref(x)
    del x
    gc.collect()
    assert gone() is None
    assert boosting.fit(*both, FEW).models[0].n_trees > 1


def test_models_that_will_not_be_averaged_are_dropped_as_they_are_found(monkeypatch):
    alive = weakref.WeakSet()
    most = []

    def counted(*args):
        found = Boosted(*args)
        alive.add(found.model)
        gc.collect()
        most.append(len(alive))
        return found

    Boosted = boosting.Boosted
    monkeypatch.setattr(boosting, "Boosted", counted)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    fit(losses.BINARY, boosting.Search(boosting.CANDIDATES, max_trees=3, averaged=2))
    assert max(most) <= 3 < len(boosting.CANDIDATES)


def test_nothing_is_printed(capfd):
    fit(losses.BINARY, boosting.Search(boosting.CANDIDATES[:2], max_trees=5))
    fit(losses.SURVIVAL, boosting.Search(boosting.CANDIDATES[:2], max_trees=5))
    assert capfd.readouterr() == ("", "")
    assert lightgbm.__version__


@pytest.mark.parametrize("fault", [{"candidates": ()}, {"max_trees": 0}, {"patience": 0}, {"averaged": 0}])
def test_an_impossible_search_is_refused(fault):
    with pytest.raises(ValueError, match="must be positive"):
        boosting.Search(**fault)


def test_boosting_ends_with_the_trees_before_a_split_that_the_library_cannot_make(monkeypatch):
    import lightgbm

    rng = np.random.default_rng(0)
    x = sparse.csr_matrix(rng.normal(size=(400, 3)).astype(np.float32))
    loss = losses.of(losses.BINARY, (x.toarray()[:, 0] + rng.normal(size=400) > 0).astype(float), "train")
    update, calls = lightgbm.Booster.update, []

    def fails(self, *args, **named):
        calls.append(1)
        if len(calls) == fails.at:
            raise lightgbm.basic.LightGBMError(fails.said)
        return update(self, *args, **named)

    monkeypatch.setattr(lightgbm.Booster, "update", fails)
    search = boosting.Search(({"num_leaves": 4},), max_trees=30, averaged=1)
    fails.at, fails.said = 6, "Check failed: (best_split_info.left_count) > (0) at serial_tree_learner.cpp, line 855 ."
    (cut,) = fit_to_itself(x, loss, search).models
    assert cut.n_trees == 5 and len(calls) == 6 and np.std(cut.score(x)) > 0
    for at, said in ((1, fails.said), (3, "out of memory")):
        fails.at, fails.said = at, said
        calls.clear()
        with pytest.raises(lightgbm.basic.LightGBMError):
            fit_to_itself(x, loss, search)
