"""The motif distance at the seam: what is hidden in its rows, sizes without data, multiplications by hand."""

import dataclasses

import jax
import numpy as np
import small_run
from pulse_cases import SIGNAL, batch_of, motif_config, row_of

from ehrwear_jax.config import families
from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.models.motif_distance import family
from ehrwear_jax.models.motif_distance.examples import MotifExamples
from ehrwear_jax.training import compile_only
from ehrwear_jax.training.pretrain import Model


def test_a_row_hides_a_stretch_of_each_piece(people):
    config = motif_config(signal=dataclasses.replace(SIGNAL, per_row=2, per_person=2))
    examples = MotifExamples(small_run.store(people, "train"), config, 1)
    begins = set()
    for g in range(8):
        row = row_of(examples, g)
        for hidden_S in row["hidden"]:
            at = np.flatnonzero(hidden_S)
            assert len(at) == 25 == at[-1] - at[0] + 1
            begins.add(int(at[0]))
    assert len(begins) > 8
    batch = batch_of(examples, [2, 5])
    examples.spec.check(batch, 2)
    for name, x in batch_of(MotifExamples(small_run.store(people, "train"), config, 1), [2, 5]).items():
        np.testing.assert_array_equal(x, batch[name])
    short = dataclasses.replace(config, hidden_samples=10_000)
    assert row_of(MotifExamples(small_run.store(people, "train"), short), 0)["hidden"].sum() == 2 * 62


def test_parameters_and_multiplications_by_hand():
    """Those of the published size: three stacks over 12,000 samples, and 1,200 frames that see each other."""
    config = family.Config()
    spec, counts = family.assumed(config, PrepareConfig(), 0)
    assert spec.shape("signal") == (1, 12_000, 1) and counts["tokens"] == 1
    network = family.network(spec, config)
    variables = jax.eval_shape(lambda: network.init(jax.random.key(0), spec.empty(1)))
    stack = 15 * 64 + 64 + 5 * (64 * 8 + 8 + 15 * 8 * 64 + 64)
    n = sum(x.size for x in jax.tree.leaves(variables))
    assert n == 3 * stack + 64 + 1 + 2
    out = jax.eval_shape(network.apply, variables, spec.empty(1))["reconstruction"]
    assert out.shape == (1, 1200, 1)
    products = 12_000 * 15 * 64 + 4 * 12_000 * (64 * 8 + 15 * 8 * 64) + 12_000 * 64 * 8 + 1200 * 15 * 8 * 64
    key, query = family.multiplications(config, 12_000, 1)
    assert (key, query) == (2 * products, products + 2 * 1200**2 * 64 + 1200 * 64)
    assert family.flops(spec, config, {}, {"tokens": 3}) == 18.0 * (key + query)


def test_nothing_is_predicted_from_it():
    assert families.is_network("motif_distance") and not families.has_latents("motif_distance")
    assert families.has_latents("pulse_ppg") and families.has_latents("motor") and not families.has_latents("tabular")
    parts = compile_only.parameters(
        Model("motif_distance", "motif_distance", motif_config()), family.assumed(motif_config(), PrepareConfig(), 0)[0]
    )
    assert set(parts) == {"of_query", "of_key", "of_value", "log_scale", "shift", "out"}
