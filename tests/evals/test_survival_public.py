"""Competing deaths on the NAFLD cohort: heart failure or death first, in people of whom many die before it.

Prints the figures: python -m pytest -s tests/evals/test_survival_public.py
"""

import numpy as np
import polars as pl
import pytest
from sksurv.nonparametric import cumulative_incidence_competing_risks

from ehrwear_jax.config.evaluation import EvaluateConfig
from ehrwear_jax.evals import builders, survival, weighting
from ehrwear_jax.evals.survival import FollowUp
from ehrwear_jax.stages import evaluate_fit

TEN_YEARS, TWENTY_YEARS = 3652.0, 7305.0


@pytest.fixture(scope="module")
def cohort(shared_data):
    """({split: [age, male]}, {split: FollowUp}) of first heart failure after the index date, split by matched set."""
    folder = shared_data("nafld")
    people = pl.read_csv(folder / "nafld1.csv", null_values="NA").rename({"case.id": "set"})
    events = pl.read_csv(folder / "nafld3.csv").filter(pl.col("event") == "heart failure")
    first = events.group_by("id").agg(pl.col("days").min())
    table = people.join(first, on="id", how="left").filter(pl.col("days").is_null() | (pl.col("days") > 0))
    had = pl.col("days").is_not_null() & (pl.col("days") <= pl.col("futime"))
    table = table.with_columns(time=pl.when(had).then("days").otherwise("futime"), event=had).sort("set", "id")
    table = table.with_columns(other=(pl.col("status") == 1) & ~pl.col("event"))
    part = (table["set"].fill_null(0).to_numpy() * 7919) % 10
    x, labels = {}, {}
    for split, rows in (("train", part < 6), ("tuning", (part >= 6) & (part < 8)), ("held_out", part >= 8)):
        mine = table.filter(pl.Series(rows))
        x[split] = mine.select("age", "male").to_numpy().astype(float)
        labels[split] = FollowUp(*(mine[c].to_numpy().astype(float) for c in ("time", "event", "other")))
    return x, labels


def test_incidence_of_heart_failure_is_that_of_scikit_survival(cohort):
    _, labels = cohort
    train = labels["train"]
    times, incidence = cumulative_incidence_competing_risks(train.code_N, train.time_N)
    mine = survival.aalen_johansen(train.time_N, train.code_N)
    np.testing.assert_allclose(1 - mine(times), incidence[1], atol=1e-10)
    naive = 1 - survival.kaplan_meier(train.time_N, train.event_N)(TWENTY_YEARS)
    print(f"\nheart failure by 20 years: 1 - Kaplan-Meier {naive:.4f}, Aalen-Johansen {1 - mine(TWENTY_YEARS):.4f}")
    assert naive > 1.03 * (1 - mine(TWENTY_YEARS))


def test_predicted_incidence_is_calibrated_among_the_old(cohort):
    x, labels = cohort
    target = {s: (f.time_N, f.event_N.astype(bool)) for s, f in labels.items()}
    competing = {s: f.competing_N.astype(bool) for s, f in labels.items()}
    times, config = np.array([TEN_YEARS, 5479.0]), EvaluateConfig()
    both = evaluate_fit.probe(config, "survival", x, target, times, competing)
    alone = evaluate_fit.probe(config, "survival", x, target, times)
    held, old = labels["held_out"], x["held_out"][:, 0] >= 70
    seen = held.of(old)
    truth = 1 - survival.aalen_johansen(seen.time_N, seen.code_N)(times)
    with_death, without = (1 - f.curve_NxT[old].mean(0) for f in (both, alone))
    found = {}
    for name, follow_up in (("competing", held), ("censored", FollowUp(held.time_N, held.event_N))):
        trained = labels["train"] if name == "competing" else FollowUp(*target["train"])
        build = builders.time_to_event(
            survival.TrainingCurves.fit(trained), follow_up, {"": both.held_out}, horizons=times, tau=times[-1],
            curves=builders.PredictedCurves(times, {"": (both if name == "competing" else alone).curve_NxT}),
        )  # fmt: skip
        found[name] = weighting.evaluate(build[""](None), len(held.time_N))
    print(f"\nfrom 70 years, {old.sum()} people, by 10 and 15 years: Aalen-Johansen {truth.round(3)}, "
          f"two hazards {with_death.round(3)}, hazard of the event alone {without.round(3)}")  # fmt: skip
    for name, metrics in found.items():
        print(name, {k: round(v, 4) for k, v in metrics.items() if "null" not in k or "ibs" in k})
    assert (np.abs(with_death - truth) < np.abs(without - truth)).all()
    assert with_death == pytest.approx(truth, abs=0.05)
    assert (without > truth + 0.04).all()
    # the old who die first are controls of a high risk
    assert found["competing"]["auc_5479"] < found["censored"]["auc_5479"]
    assert found["competing"]["ibs"] < found["competing"]["ibs_null"]
