"""The ledger against what is known: features that z holds, that it holds in part, and that it does not hold."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from ehrwear_jax.evals import probes
from ehrwear_jax.interpret import ledger

N = {"train": 900, "tuning": 300, "held_out": 600}


def case(seed=0):
    """z of four dimensions; x: held, half held, not held, a held one at some times only, a fact, a constant, a rare."""
    rng = np.random.default_rng(seed)
    z = {s: rng.normal(size=(n, 4)) for s, n in N.items()}
    x = {}
    for s, n in N.items():
        w = rng.normal(size=(2, n))
        some = np.where(rng.random(n) < 0.4, z[s] @ [0, 2, 0, 1.0], np.nan)
        fact = (z[s][:, 2] + w[0] > 1.0).astype(float)
        few = np.where(np.arange(n) < 20, 1.0, np.nan)
        columns = [1e3 * z[s][:, 0], z[s][:, 1] + w[0], w[1], some, fact, np.ones(n), few]
        x[s] = np.stack(columns, axis=1)
    return z, x, np.arange(7) == 4


def test_what_z_holds_is_told_from_what_it_does_not():
    z, x, binary = case()
    held, half, none, some, fact, constant, few = ledger.scores(z, x, binary)
    assert held["value"] == pytest.approx(1.0, abs=2e-2), "but for the outermost percents, which are clipped"
    assert half["value"] == pytest.approx(0.5, abs=0.08) and abs(none["value"]) < 0.05
    assert some["value"] > 0.95 and some["n"] == np.isfinite(x["held_out"][:, 3]).sum() < N["held_out"]
    assert some["n_train"] == np.isfinite(x["train"][:, 3]).sum()
    assert fact["measure"] == "auroc" and 0.75 < fact["value"] < 0.9
    assert constant is None and few is None


def test_r2_is_that_of_another_library():
    z, x, binary = case(1)
    found = ledger.scores(z, x, binary)[1]
    low, high = np.quantile(x["train"][:, 1], ledger.TAILS)
    y = {s: np.clip(x[s][:, 1], low, high) for s in N}
    mean, std = z["train"].mean(0), z["train"].std(0)
    white = {s: (z[s] - mean) / std for s in N}
    best = [Ridge(alpha=l2 * N["train"]).fit(white["train"], y["train"]) for l2 in probes.L2_GRID]
    chosen = min(best, key=lambda m: np.mean((m.predict(white["tuning"]) - y["tuning"]) ** 2))
    assert found["value"] == pytest.approx(r2_score(y["held_out"], chosen.predict(white["held_out"])), abs=1e-6)


def test_an_absurd_value_decides_nothing():
    z, x, binary = case()
    before = ledger.scores(z, x, binary)[0]["value"]
    x["held_out"][3, 0] = x["train"][5, 0] = 1e12
    assert ledger.scores(z, x, binary)[0]["value"] == pytest.approx(before, abs=0.02)


def test_a_count_that_few_have_is_not_clipped_away():
    z, x, binary = case()
    for s, n in N.items():
        x[s][:, 2] = np.where(np.arange(n) < 6, 3.0 + z[s][:, 0], 0.0)
    assert ledger.scores(z, x, binary)[2] is not None
