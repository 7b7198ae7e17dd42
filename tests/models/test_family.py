"""What every family rests on: batches keep their contract, and what breaks it is named."""

import numpy as np
import pytest

from ehrwear_jax.models.family import BatchSpec, Field

SPEC = BatchSpec(
    {"T": 7, "W": 0, "2": 2},
    {
        "token": Field("T", np.int32, 0, "id"),
        "position": Field("T", np.int32, -1, "place"),
        "age": Field("T2", np.float32, 0, "days"),
        "bin": Field("T", np.uint8, 255, "none"),
        "seen": Field("TW", np.bool_, False, "whether"),
        "row": Field("", np.float32, 0, "one number a row"),
    },
)


def test_the_empty_batch_fits_the_contract_and_holds_nothing():
    batch = SPEC.empty(11)
    SPEC.check(batch, 11)
    assert list(batch) == list(SPEC.fields)
    assert batch["age"].shape == (11, 7, 2) and batch["row"].shape == (11,) and batch["seen"].shape == (11, 7, 0)
    assert SPEC.shape("age") == (7, 2) and SPEC.shape("row") == ()
    for name, field in SPEC.fields.items():
        assert batch[name].dtype == field.dtype and np.all(batch[name] == field.fill), name


@pytest.mark.parametrize("name", SPEC.fields)
def test_every_fault_is_named(name):
    good = SPEC.empty(2)
    with pytest.raises(ValueError, match=f"'{name}'"):
        SPEC.check({k: v for k, v in good.items() if k != name}, 2)
    shorter = good[name][:, :-1] if SPEC.fields[name].axes else good[name][:, None]
    with pytest.raises(ValueError, match=f"batch field {name}:"):
        SPEC.check(good | {name: shorter}, 2)
    with pytest.raises(ValueError, match=f"batch field {name}:"):
        SPEC.check(good | {name: good[name].astype(np.float64)}, 2)
    with pytest.raises(ValueError, match=f"batch field {name}:"):
        SPEC.check(good | {name: good[name][:1]}, 2)


def test_an_unknown_field_is_named():
    with pytest.raises(ValueError, match="'surprise'"):
        SPEC.check(SPEC.empty(2) | {"surprise": np.zeros(2)}, 2)
