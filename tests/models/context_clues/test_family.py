"""ContextClues at the seam: flops by hand, sizes without data, and that it learns more than how frequent codes are."""

import json
import runpy

import numpy as np
import pytest
import small_run
from context_clues_cases import config_of
from repo import REPO

from ehrwear_jax.config import parse
from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.data.sources.simulator import simulate
from ehrwear_jax.models.context_clues import family
from ehrwear_jax.models.context_clues.config import Config
from ehrwear_jax.training import compile_only, feed
from ehrwear_jax.training.pretrain import Model, pretrain


def test_flops_by_hand():
    """Three times two for each product, forward and backward; of the state 7 forward, thrice."""
    sizes, counts = {"backbone": 1000, "dictionary": 10**9, "head": 10**9}, {"tokens": 10, "seen": 40, "targets": 9}
    for backbone, joined in (("llama", 2 * 2 * 3 * 8 * 2 * 40), ("mamba", 3 * 7 * 2 * 16 * 3 * 10)):
        config = config_of(backbone)
        spec, _ = family.assumed(config, PrepareConfig(), 50)
        assert family.flops(spec, config, sizes, counts) == 6 * 1000 * 10 + joined + 6 * 50 * 8 * 9


@pytest.mark.parametrize("backbone", ["llama", "mamba"])
def test_a_model_of_assumed_data_has_the_sizes_that_are_asked_for(backbone):
    config = config_of(backbone)
    spec, counts = family.assumed(config, PrepareConfig(), 50)
    parts = compile_only.parameters(Model("clues", "context_clues", config), spec)
    assert parts["dictionary"] == 50 * 8 and parts.get("head", 0) == (50 * 8 if backbone == "llama" else 0)
    position = np.arange(config.context_tokens)
    assert counts["seen"] == (position + 1).sum() and counts["tokens"] == config.context_tokens


def test_wrong_options_are_named():
    for options, words in (({"width": 10}, "multiple of two"), ({"context_tokens": 99}, "at most tokens"),
                           ({"static_tokens": 19}, "must hold two tokens"), ({"backbone": "hyena"}, "llama, mamba"),
                           ({"n_heads": 2, "n_kv_heads": 3}, "no multiple of n_kv_heads"),
                           ({"sites": 0}, "sites is 0")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            config_of(**options)


def test_how_it_is_computed_is_no_part_of_what_a_model_is():
    fields = Config.__dataclass_fields__
    assert set(Config.NOT_RESULTS) == {"attention", "remat", "unroll", "loss_chunk", "scan_chunk"} <= set(fields)


@pytest.fixture(scope="module")
def cohort_of_360(tmp_path_factory):
    """(Folder of a prepared simulated cohort, the parsed config for a backbone)."""
    root = tmp_path_factory.mktemp("simulated")

    def run(backbone):
        config = runpy.run_path(str(REPO / "configs" / "tiny.py"))["get_config"]("context_clues")
        config.simulate.n_subjects = 360
        config.models.context_clues.update({"backbone": backbone, "tied_head": backbone == "mamba"})
        config.train.update({"steps": 40, "validate_every": 40, "validate_batches": 4})
        return parse(config)

    simulate.simulate(root / "raw", run("llama").simulate)
    return small_run.prepare(root, root / "raw", run("llama").prepare), run


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["llama", "mamba"])
def test_it_learns_more_than_how_frequent_codes_are(backbone, cohort_of_360, tmp_path):
    """On the simulated cohort, validation loss below that of the tokens' shares in training.

    Seen of 360 people after 80 steps: 2.76 nats a token of Llama, against 4.70 of shares.
    """
    root, run = cohort_of_360
    store, model = small_run.store(root), Model(**run(backbone).model("context_clues", 0))
    pretrain(tmp_path, model, store)
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    learned = next(x["validation/loss/total"] for x in reversed(lines) if "validation/loss/total" in x)

    examples, held = (family.examples(store.view(s), model.config) for s in ("train", "tuning"))
    count_V = np.ones(examples.spec.facts.dictionary)
    for batch in feed.train_batches(examples, 8, n_steps=20, threads=0):
        np.add.at(count_V, batch["target"][batch["target"] >= 0], 1)
    n = min(4, max(1, held.rows_per_epoch // 8))
    targets = [b["target"][b["target"] >= 0] for b in feed.train_batches(held, 8, n_steps=n, threads=0)]
    frequent = -np.log(count_V / count_V.sum())[np.concatenate(targets)].mean()
    print(f"{backbone}: {learned:.3f} nats a token, against {frequent:.3f} of frequencies")
    assert learned < 0.95 * frequent, (learned, frequent)
