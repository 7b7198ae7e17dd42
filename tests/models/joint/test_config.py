"""Options of the joint family that cannot be are refused by name, and what follows from others is set."""

import dataclasses

import pytest

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.models.joint import encoders
from ehrwear_jax.models.joint.config import NETWORK_CHOICES, WEIGHTS, Config, ContextConfig, NetworkConfig
from ehrwear_jax.models.layers.transformer import REMAT


@pytest.mark.parametrize(
    "options, sentence",
    [
        (
            {"tokens": 64, "context_tokens": 65},
            "context_tokens is 65; it must be at most config.joint.context.tokens, 64",
        ),
        ({"wear_mask_kind": "patches"}, "wear_mask_kind is 'patches'; it can be contiguous, random, window, channel"),
        ({"interest_codes": "DX"}, "interest_codes is a string; it must be a tuple of strings"),
        ({"time_warp": 0.2}, "time_warp is 0.2; it must lie in [0, 0.1]"),
        ({"noise": -1.0}, "noise is -1.0; it must be at least 0"),
        ({"drop_ehr": 0.6, "drop_wear": 0.5}, "drop_wear is 0.5; it must lie in [0, 0.4]"),
        ({"patient_days": float("nan")}, "patient_days is nan; it must lie in [0, 1]"),
        ({"patient_temperature": -1}, "patient_temperature is -1; it must be at least 0"),
    ],
)
def test_contexts_that_cannot_be_are_refused(options, sentence):
    with pytest.raises(ValueError) as caught:
        ContextConfig(**options)
    assert str(caught.value).startswith("config.joint.context.") and sentence in str(caught.value)


@pytest.mark.parametrize(
    "name, value, sentence",
    [
        ("time_encoding", "rotary", "time_encoding is 'rotary'; it can be log_linear, gaussian"),
        ("wear_encoder", "lstm", "wear_encoder is 'lstm'; it can be transformer, tcn"),
        ("kernel", "gaussian", "kernel is 'gaussian'; it can be mixture, rational_quadratic, none"),
        ("pool", "last", "pool is 'last'; it can be attention, temporal"),
        ("posterior", "cauchy", "posterior is 'cauchy'; it can be point, normal, sde"),
        ("remat", "some", "remat is 'some'; it can be none, full, attention, products"),
        ("dtype", "int8", "dtype is 'int8'; it can be float32, bfloat16"),
    ],
)
def test_networks_that_cannot_be_are_refused(name, value, sentence):
    with pytest.raises(ValueError, match=f"^config.joint.network.{sentence}$"):
        NetworkConfig(**{name: value})


def test_the_modules_know_the_same_names():
    assert NETWORK_CHOICES["remat"] == tuple(REMAT) and NETWORK_CHOICES["wear_encoder"] == encoders.KINDS


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"modalities": ("ehr", "genome")}, "modalities is .*; it can hold ehr and wear"),
        ({"modalities": ()}, "modalities is .*; it can hold ehr and wear"),
        ({"weights": {"ehr_next": (1, 1, 0)}}, "weights has no term 'ehr_next'; there are ehr_masked, future_event,"),
        ({"weights": {"contrast": (0.1, 0.1, 0)}}, "contrast needs pairs to align: set config.joint.context.pairs"),
        ({"weights": {"latent_kl": (0.0, 0.1, 9)}}, "a distribution has a prior, and a point has none"),
        ({"network": NetworkConfig(posterior="normal")}, "network.posterior is 'normal' and config.joint.weights.lat"),
    ],
)
def test_models_that_cannot_be_are_refused(options, sentence):
    with pytest.raises(ValueError, match=f"config.joint.*{sentence}"):
        Config(**options)


def test_weights_that_are_not_given_are_the_papers():
    config = Config(weights={"wear_to_ehr": [0.0, 0.5, 7]})
    assert config.weights == WEIGHTS | {"wear_to_ehr": (0.0, 0.5, 7)}
    assert hash(config) == hash(Config(weights={"wear_to_ehr": (0.0, 0.5, 7)})) != hash(Config())


def test_without_ehr_its_budget_says_nothing_about_a_model():
    context = ContextConfig(tokens=64, context_tokens=50, windows=20)
    assert Config(context=context).context == context
    alone = Config(modalities=("wear",), context=context)
    assert alone.context == dataclasses.replace(context, tokens=20, context_tokens=20)
    assert alone == Config(modalities=("wear",), context=dataclasses.replace(context, tokens=80, context_tokens=8))


def test_raw_windows_need_their_channels_their_room_and_their_encoder():
    prepare = PrepareConfig(channels=("hr",), segments={"ppg": {"channels": ("ppg",)}})
    raw = {"raw_segments": "ppg", "raw_windows": 8}
    full = Config(context=ContextConfig(windows=8, **raw), network=NetworkConfig(raw_width=4))
    full.check_prepared(prepare)
    for without in ({"raw_segments": ""}, {"raw_windows": 0}):
        some = dataclasses.replace(full, context=dataclasses.replace(full.context, **without))
        with pytest.raises(ValueError, match="set all three, to have raw windows and their encoder, or none"):
            some.check_prepared(prepare)
    with pytest.raises(ValueError, match="raw_segments is 'ppg'; config.prepare.segments has \\[\\]"):
        full.check_prepared(PrepareConfig(channels=("hr",)))
    with pytest.raises(ValueError, match="ppg.seconds is 301: a raw window must fit into a step"):
        full.check_prepared(dataclasses.replace(prepare, segments={"ppg": {"channels": ("ppg",), "seconds": 301}}))
    for config in (Config(), Config(modalities=("ehr",)), dataclasses.replace(full, modalities=("ehr",))):
        config.check_prepared(prepare)
    few = dataclasses.replace(full, context=ContextConfig(windows=9, **raw))
    with pytest.raises(ValueError, match="raw_windows is 8; it must be at least config.joint.context.windows, 9"):
        few.check_prepared(prepare)
