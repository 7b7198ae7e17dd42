"""Learning rates are chosen by the loss of tuning people, and what was trained for the choice is found again."""

import dataclasses
import json
import logging

import pytest
import small_run

from ehrwear_jax.config import parse
from ehrwear_jax.runtime import exit_codes
from ehrwear_jax.stages import learning_rates, pretrain, runner
from ehrwear_jax.stages.plan import Plan
from ehrwear_jax.stages.workdir import Workdir


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("rates")
    small_run.write_inputs(root)
    values = small_run.one_model(small_run.small_config(root), "joint")
    values.models.joint.family = "toy_families.bag_of_codes"
    values.train.update({"steps": 12, "validate_every": 6, "peak_learning_rate": 0.01})
    own = {"validate_batches": 0, "peak_learning_rate": 0.02}
    values.models.bag = {"family": "toy_families.bag_of_codes", "train": own}
    values.seeds = (3, 4)
    return parse(values)


def test_the_rate_of_the_lowest_loss_is_chosen_and_trained_once(config, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        found = learning_rates.search(config, tmp_path, (1.0, 0.001, 1.0))
    assert {m: sorted(losses) for m, losses in found.items()} == {"joint": [1e-5, 0.01], "bag": [2e-5, 0.02]}
    written = json.loads(Workdir(tmp_path).learning_rates.read_text())
    assert written["chosen"] == {m: learning_rates.best(losses) for m, losses in found.items()}
    assert all(flag in caplog.text for flag in written["flags"])
    own = [f"--config.models.{m}.train.peak_learning_rate={rate:g}" for m, rate in written["chosen"].items()]
    of_the_reference = f"--config.train.peak_learning_rate={written['chosen'][config.evaluate.reference_model]:g}"
    assert written["flags"] == [*own, of_the_reference], "ablations take the rate of what they are ablations of"
    for losses in found.values():
        assert losses[min(losses)] != losses[max(losses)], "rates that differ train networks that differ"
    chosen = Plan(learning_rates.with_rates(config, written["chosen"]), Workdir(tmp_path))
    seeds = {t.seed for t in chosen.trained() if not chosen.pretrained(t).done}
    assert seeds == {4}, "the first seed is trained: by the config with the printed flags, too"
    trained = [t.name for t in chosen.trained() if t.seed == 3]
    for name in trained:
        lines = (chosen.pretrained(chosen.first(name)).folder / "metrics.jsonl").read_text().splitlines()
        last = [x[learning_rates.LOSS] for x in map(json.loads, lines) if learning_rates.LOSS in x][-1]
        assert last == found[name][written["chosen"][name]]


def test_a_search_goes_on_and_a_rate_that_diverges_is_never_chosen(config, tmp_path, monkeypatch):
    runner.run(config, tmp_path, ("prepare",))
    begun = []

    def one(plan, trained):
        begun.append((trained.name, plan.config.train_config(trained.name).peak_learning_rate))
        raise exit_codes.NonFiniteStep("steps that are not finite")

    monkeypatch.setattr(pretrain, "one", one)
    with pytest.raises(ValueError, match="no learning rate of .0.002, 0.02. gives a finite loss"):
        learning_rates.search(config, tmp_path, (0.1, 1.0))
    assert begun == [("bag", 0.002), ("bag", 0.02)]
    assert learning_rates.best({0.1: 2.0, 0.3: float("inf"), 1.0: float("nan")}) == 0.1
    assert learning_rates.best({0.3: 1.0, 0.1: 1.0}) == 0.1


@pytest.mark.parametrize("factors", [(1.0,), (1.0, 1.0), (1.0, -1.0), (1.0, float("inf"))])
def test_factors_that_are_none_are_refused_before_anything_is_made(config, tmp_path, factors):
    with pytest.raises(ValueError, match="at least two positive factors"):
        learning_rates.search(config, tmp_path / "run", factors)
    assert not (tmp_path / "run").exists()


def test_the_loader_keeps_as_much_as_the_config_says(config, tmp_path, monkeypatch):
    """Of each model's own training; see RecordStore and People for what they do with it."""
    runner.run(config, tmp_path, ("prepare",))
    bag = config.models["bag"]
    models = config.models | {"bag": {**bag, "train": {**bag["train"], "cache_mib": 3}}}
    plan = Plan(dataclasses.replace(config, models=models), Workdir(tmp_path))
    given = []

    def stop(folder, model, store, *_):
        given.append((store.cache_bytes, store.view("train").cache_bytes))
        raise exit_codes.Stopped("seen")

    monkeypatch.setattr(pretrain, "pretrain", stop)
    with pytest.raises(exit_codes.Stopped):
        pretrain.one(plan, plan.first("bag"))
    assert given == [(3 * 2**20, 3 * 2**20)]


def test_a_network_that_another_needs_stands_as_chosen(config):
    rates = learning_rates.with_rates(config, {"bag": 0.5})
    assert rates.train_config("bag").peak_learning_rate == 0.5 and rates.train_config("bag").validate_batches > 0
    assert dataclasses.replace(rates, models=config.models) == config
