"""The fields of a joint batch: sizes from config and data, fills that are no place, fields of optional inputs."""

import dataclasses

import numpy as np
import pytest
from random_rows import CONFIG, FACTS, SPEC, spec_of

from ehrwear_jax.models.joint import batch as batch_lib
from ehrwear_jax.models.joint import masking
from ehrwear_jax.models.joint.config import Config, ContextConfig

SIZES = ContextConfig(tokens=28, context_tokens=28, windows=3, queries=8, events=6, pairs=14, future_windows=9,
                      horizons=(30,), patch_steps=3, raw_parts=2)  # fmt: skip
OF_DATA = dataclasses.replace(FACTS, steps=12, channels=2, derived=1, future_codes=10, history_tokens=13)


@pytest.mark.parametrize(
    ("modalities", "n_tokens", "n_windows"), [(("ehr", "wear"), 31, 3), (("ehr",), 28, 0), (("wear",), 3, 3)]
)
def test_each_modality_has_room_of_its_own(modalities, n_tokens, n_windows):
    config = dataclasses.replace(CONFIG, modalities=modalities, context=SIZES)
    sizes = spec_of(config, dataclasses.replace(OF_DATA, modalities=modalities)).sizes
    assert (sizes["T"], sizes["W"]) == (n_tokens, n_windows)


def test_an_empty_batch_holds_nothing_in_the_stated_sizes():
    spec = spec_of(dataclasses.replace(CONFIG, context=SIZES), OF_DATA)
    batch = spec.empty(11)
    spec.check(batch, 11)
    assert batch["token"].shape == (11, 28 + 3) and batch["age"].shape == (11, 28 + 3, 2)
    assert batch["wear"].shape == (11, 3, 12, 2) and batch["patch_mask"].shape == (11, 3, 4)
    assert batch["masked_position"].shape == (11, 7) and batch["pair_near"].shape == (11, 14, 2)
    assert batch["event_summary"].shape == (11, 6, 7) and batch["query_code_bin"].shape == (11, 8, 10)
    assert batch["query_window"].shape == (11, 8, 9) and batch["step_window"].shape == (11, 3, 9)
    for name in ("window", "window_position", "masked_position", "event_position", "query_window", "step_window",
                 "pair_position", "pair_patient"):  # fmt: skip
        assert np.all(batch[name] == -1), f"{name}: 0 is a place"
    for name in ("token", "modality", "segment", "kv_range", "query_kv_range", "query_segment", "query_horizons"):
        assert not batch[name].any()
    assert batch["query_token_bin"].shape == (11, 8, 13) and np.all(batch["query_token_bin"] == 255)
    assert np.all(batch["query_code_bin"] == 255) and not batch["observed"].any() and not batch["patch_mask"].any()


@pytest.mark.parametrize("rate", [0.02, 0.15, 0.4, 0.8])
def test_hidden_events_have_slots_by_their_rate(rate):
    """As many as ever at the default rate; enough for rows of skewed codes, of which a tenth is rare."""
    n_tokens, rng = 2048, np.random.default_rng(0)
    assert batch_lib.masked_slots(n_tokens, 0.15) == n_tokens // 4 and batch_lib.masked_slots(3, 0.0) == 1
    count_V = 1e7 / np.arange(10, 2010)
    weight_V = masking.token_weights(count_V, 0.3)
    token_RxT = rng.choice(len(count_V), (200, n_tokens), p=count_V / count_V.sum())
    token_RxT[:, : n_tokens // 10] = len(count_V) - 1
    hidden_R = (rng.random(token_RxT.shape) < masking.mask_chances(token_RxT, weight_V, rate)).sum(axis=1)
    slots = batch_lib.masked_slots(n_tokens, rate)
    assert 0.9 * rate < hidden_R.mean() / n_tokens or rate > 0.5, "a chance is 90% at most"
    assert hidden_R.max() <= slots <= 5 / 3 * rate * n_tokens


def test_token_ids_and_modalities_are_distinct():
    assert sorted({batch_lib.PAD, batch_lib.MASK, batch_lib.WEAR}) == list(range(batch_lib.N_SPECIAL))
    kinds = (batch_lib.MODALITY_PAD, batch_lib.MODALITY_EHR, batch_lib.MODALITY_WEAR, batch_lib.MODALITY_QUERY)
    assert sorted(kinds) == list(range(batch_lib.N_MODALITY))


def test_no_windows_is_a_size_like_any_other():
    spec = spec_of(Config(modalities=("ehr",), context=SIZES), dataclasses.replace(OF_DATA, modalities=("ehr",)))
    batch = spec.empty(2)
    spec.check(batch, 2)
    assert batch["wear"].shape == (2, 0, 12, 2) and batch["window_position"].shape == (2, 0)


def test_fields_of_optional_inputs_are_there_where_the_data_have_them():
    small = dataclasses.replace(FACTS, raw_samples=0, raw_channels=0)
    context = dataclasses.replace(CONFIG.context, raw_windows=0)
    without = dataclasses.replace(CONFIG, context=context)
    assert not {"quality", "raw_mask", *batch_lib.RAW} & spec_of(without, small).fields.keys()
    with_room = dataclasses.replace(CONFIG, context=dataclasses.replace(SIZES, raw_windows=5))
    known = dataclasses.replace(OF_DATA, quality=True, raw_samples=30, raw_channels=3)
    batch = spec_of(with_room, known).empty(2)
    assert batch["quality"].shape == (2, 3, 4, 2) and batch["raw"].shape == (2, 5, 30, 3)
    assert batch["raw_observed"].shape == (2, 5, 30, 3) and np.all(batch["raw_window"] == -1)
    assert not set(batch_lib.RAW) & spec_of(without, small).fields.keys(), "no room, no raw windows"
    alone = dataclasses.replace(known, modalities=("ehr",))
    assert not {"quality", *batch_lib.RAW} & spec_of(with_room, alone).fields.keys()


def test_every_field_says_what_it_is():
    for name, field in SPEC.fields.items():
        assert field.meaning and set(field.axes) <= SPEC.sizes.keys(), name
