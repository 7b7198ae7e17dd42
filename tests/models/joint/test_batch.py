"""The contract of a batch: what is empty fits it, what breaks it is named."""

import numpy as np
import pytest

from ehrwear_jax.models.joint import batch as batch_lib

SHAPE = batch_lib.BatchShape(
    tokens=7, windows=3, steps=12, channels=2, patches=4, masked=5, events=6, queries=8, future_windows=9,
    future_codes=10, recalled_tokens=13, pairs=14,
)  # fmt: skip


def test_the_empty_batch_fits_the_contract_and_holds_nothing():
    batch = batch_lib.empty_batch(SHAPE, 11)
    batch_lib.check_batch(batch, SHAPE, 11)
    assert list(batch) == list(batch_lib.FIELDS)
    assert batch["token"].shape == (11, 7) and batch["age"].shape == (11, 7, 2)
    assert batch["wear"].shape == (11, 3, 12, 2) and batch["patch_mask"].shape == (11, 3, 4)
    assert batch["event_summary"].shape == (11, 6, 6) and batch["query_code_bin"].shape == (11, 8, 10)
    assert batch["query_window"].shape == (11, 8, 9) and batch["step_window"].shape == (11, 3, 9)
    for name in ("window", "window_position", "masked_position", "event_position", "query_window", "step_window"):
        assert np.all(batch[name] == -1), f"{name}: 0 is a place"
    for name in ("token", "modality", "segment", "kv_range", "query_kv_range", "query_segment", "query_horizons"):
        assert not batch[name].any()
    assert batch["query_token_bin"].shape == (11, 8, 13) and np.all(batch["query_token_bin"] == 255)
    assert np.all(batch["query_code_bin"] == 255) and not batch["observed"].any() and not batch["patch_mask"].any()


def test_token_ids_and_modalities_are_distinct():
    assert sorted({batch_lib.PAD, batch_lib.MASK, batch_lib.WEAR}) == list(range(batch_lib.N_SPECIAL))
    kinds = (batch_lib.MODALITY_PAD, batch_lib.MODALITY_EHR, batch_lib.MODALITY_WEAR, batch_lib.MODALITY_QUERY)
    assert sorted(kinds) == list(range(batch_lib.N_MODALITY))


def test_no_windows_is_a_size_like_any_other():
    shape = batch_lib.BatchShape(**{**SHAPE.__dict__, "windows": 0, "channels": 0})
    batch = batch_lib.empty_batch(shape, 2)
    batch_lib.check_batch(batch, shape, 2)
    assert batch["wear"].shape == (2, 0, 12, 0) and batch["event_summary"].shape == (2, 6, 0)


@pytest.mark.parametrize("name", batch_lib.FIELDS)
def test_every_fault_is_named(name):
    good = batch_lib.empty_batch(SHAPE, 2)
    with pytest.raises(ValueError, match=f"'{name}'"):
        batch_lib.check_batch({k: v for k, v in good.items() if k != name}, SHAPE, 2)
    with pytest.raises(ValueError, match=f"batch field {name}:"):
        batch_lib.check_batch(good | {name: good[name][:, :-1]}, SHAPE, 2)
    with pytest.raises(ValueError, match=f"batch field {name}:"):
        batch_lib.check_batch(good | {name: good[name].astype(np.float64)}, SHAPE, 2)
    with pytest.raises(ValueError, match=f"batch field {name}:"):
        batch_lib.check_batch(good | {name: good[name][:1]}, SHAPE, 2)


def test_an_unknown_field_is_named():
    with pytest.raises(ValueError, match="'surprise'"):
        batch_lib.check_batch(batch_lib.empty_batch(SHAPE, 2) | {"surprise": np.zeros(2)}, SHAPE, 2)


def test_optional_fields_are_checked_where_they_are_given():
    good = batch_lib.empty_batch(SHAPE, 2)
    quality = np.zeros((2, SHAPE.windows, SHAPE.patches, SHAPE.channels), np.float32)
    batch_lib.check_batch(good | {"quality": quality}, SHAPE, 2)
    raw = {"raw": np.zeros((2, 5, 30, 3), np.float32), "raw_observed": np.zeros((2, 5, 30, 3), bool),
           "raw_window": np.zeros((2, 5), np.int32), "raw_patch": np.zeros((2, 5), np.int32)}  # fmt: skip
    batch_lib.check_batch(good | raw, SHAPE, 2)
    for name in raw:
        with pytest.raises(ValueError, match=f"'{name}'"):
            batch_lib.check_batch(good | {k: v for k, v in raw.items() if k != name}, SHAPE, 2)
        with pytest.raises(ValueError, match="batch field raw"):
            batch_lib.check_batch(good | raw | {name: raw[name][:, :-1]}, SHAPE, 2)
    with pytest.raises(ValueError, match="batch field quality:"):
        batch_lib.check_batch(good | {"quality": quality[..., :-1]}, SHAPE, 2)
