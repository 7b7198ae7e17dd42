"""Low-rank updates against their algebra, layer by layer."""

import jax
import numpy as np
import pytest
from flax import traverse_util
from small_model import SPEC, make_model

from ehrwear_jax.models.layers import lora
from ehrwear_jax.training.step import parameter_axes

BACKBONE = "backbone/blocks/(query|key|value|out|up|down)/kernel"


def flat(tree):
    return traverse_util.flatten_dict(jax.device_get(tree), sep="/")


@pytest.fixture(scope="module")
def params():
    return make_model()[1]


@pytest.fixture(scope="module")
def axes():
    return parameter_axes(make_model()[0], SPEC)


def test_updates_begin_as_no_change(params, axes):
    updates = lora.init(jax.random.key(0), params, axes, BACKBONE, 2)
    assert len(updates) == 6 and all(np.any(u["a"]) and not np.any(u["b"]) for u in updates.values())
    assert len({u["a"].tobytes() for u in jax.device_get(updates).values()}) == 6
    before, after = flat(params), flat(lora.merge(params, updates, 2.0))
    assert before.keys() == after.keys()
    assert all(x.tobytes() == after[n].tobytes() for n, x in before.items())


@pytest.mark.parametrize(
    "name, n_in",
    [
        ("backbone/blocks/query", 1),
        ("backbone/blocks/out", 2),
        ("backbone/blocks/up", 1),
        ("wear/blocks/down", 1),
        ("rho", 1),  # in no stack
    ],
)
def test_a_merged_kernel_acts_as_the_two_thin_ones_beside_it(params, axes, name, n_in):
    """x (W + s A B) = x W + s (x A) B for each layer, in the kernel's own dimensions."""
    name = f"{name}/kernel"
    updates = lora.init(jax.random.key(1), params, axes, name, 3)
    (update,) = updates.values()
    rng = np.random.default_rng(0)
    update["b"] = rng.normal(size=update["b"].shape).astype(np.float32)
    before, after = flat(params), flat(lora.merge(params, updates, 0.5))
    changed = {n for n, x in before.items() if x.tobytes() != after[n].tobytes()}
    assert changed == {name}
    parts = before[name], after[name], update["a"], update["b"]
    layers = list(zip(*parts, strict=True)) if "blocks" in name else [parts]
    for old, new, a_IxR, b_RxO in layers:
        x = rng.normal(size=(5, *old.shape[:n_in])).astype(np.float32)
        thin = (x.reshape(5, -1) @ np.asarray(a_IxR)) @ np.asarray(b_RxO)
        expected = np.tensordot(x, old, n_in) + 0.5 * thin.reshape(5, *old.shape[n_in:])
        np.testing.assert_allclose(np.tensordot(x, new, n_in), expected, rtol=1e-4, atol=1e-4)
        assert np.linalg.matrix_rank((new - old).reshape(a_IxR.shape[0], b_RxO.shape[1]), rtol=1e-4) == 3


@pytest.mark.parametrize(
    "pattern, said",
    [("backbone/blocks/quary/kernel", "no parameter matches"), ("ehr/table/embedding", "no kernel"),
     ("backbone/blocks/up/bias", "no kernel"), ("blocks/query", "no parameter matches")],
)  # fmt: skip
def test_what_cannot_be_updated_is_said(params, axes, pattern, said):
    with pytest.raises(ValueError, match=said):
        lora.init(jax.random.key(0), params, axes, pattern, 2)
