"""A decoder that is fed a growing record reads what a batch reads of the whole one, for every option of networks."""

import types

import jax
import numpy as np
import pytest
from joint_rows import config_of, examples_of
from small_model import random_params

from ehrwear_jax.models.joint import family
from ehrwear_jax.models.joint.decoding import Decoder, _padded
from ehrwear_jax.training import embedding

CONTEXT = {"tokens": 24, "windows": 10, "context_tokens": 20, "queries": 4, "patch_steps": 3, "future_codes": 4}
NETWORK = {"width": 8, "n_layers": 2, "n_heads": 2, "mlp_width": 16, "token_width": 8, "time_features": 8,
           "wear_width": 8, "wear_layers": 1, "wear_heads": 2, "source_width": 4, "count_width": 4}  # fmt: skip
VARIANTS = {
    "default": {},
    "quadratic": {"kernel": "rational_quadratic", "qk_norm": True, "query": "hidden", "stream": False},
    "plain": {"kernel": "none", "count_width": 0, "day_bins": True, "time_unit_days": 1 / 24},
    "values": {"value_inputs": True, "value_features": 3, "count_rates": 1, "adapter_width": 2},
    "normal": {"posterior": "normal", "weights": {"latent_kl": (1.0, 1.0, 0)}},
    "span": {"wear_span_days": 2.0},
    "windows in parts": {"context": {"window_parts": 2}},
    "ehr": {"modalities": ("ehr",)},
    "wear": {"modalities": ("wear",), "static": True},
}


def made(root, **options):
    """(examples, network, variables) of random parameters."""
    context = CONTEXT | options.pop("context", {})
    examples = examples_of(root, context, **(NETWORK | options))
    network = family.network(examples.spec, config_of(context, **(NETWORK | options)))
    shapes = jax.eval_shape(network.init, jax.random.key(0), examples.spec.empty(1))
    return examples, network, {"params": random_params(shapes["params"], mean=0.0, spread=0.3), "collections": {}}


@pytest.mark.parametrize(
    "name", ["default", *(pytest.param(n, marks=pytest.mark.slow) for n in VARIANTS if n != "default")]
)
def test_a_growing_record_is_read_as_the_batch_reads_it(few_people, name):
    examples, network, variables = made(few_people, **VARIANTS[name])
    decoder = Decoder(examples, network, variables)
    assert decoder.is_incremental == (name != "span")
    encode, rng = embedding.encoder(network, variables), np.random.default_rng(0)
    position, times, got = [], [], []
    for i in range(3):
        record, known = examples.people.store[i], None
        known_at = np.unique(np.concatenate([record.time_K, record.window_end_M]))
        for cut in np.sort(rng.choice(known_at, min(12, len(known_at)), replace=False)).tolist():
            patient = decoder.patient(record.until(cut))
            for time in (cut, cut + int(rng.integers(86_400_000_000)), cut - int(rng.integers(86_400_000_000))):
                if time <= cut or time >= known_at[0]:
                    asked = min(time, int(known_at[known_at > cut].min(initial=2**62)) - 1)
                    z, known = decoder.latent(patient, asked, known)
                    position, times, got = [*position, i], [*times, asked], [*got, z]
    want = np.full((len(got), got[0].shape[0]), np.nan, np.float32)
    for batch, where in examples.prediction_batches(np.array(position), np.array(times), 4):
        want[where[where >= 0]] = encode(batch)[where >= 0]
    np.testing.assert_allclose(np.stack(got), want, atol=1e-5)


def test_sizes_are_few():
    assert {_padded(n, 4, 8, 244) for n in range(1, 245)} == {4, 32, 244}


def test_a_stochastic_path_is_refused():
    config = config_of(CONTEXT, posterior="sde", weights={"latent_kl": (1.0, 1.0, 0)})
    examples = types.SimpleNamespace(people=None, facts=None)
    with pytest.raises(ValueError, match="no state of a network with posterior=sde is kept"):
        Decoder(examples, types.SimpleNamespace(config=config), {"params": {}, "collections": {}})
