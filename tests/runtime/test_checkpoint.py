"""Checkpoints come back bit for bit, on whatever mesh the next run has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ehrwear_jax.runtime.checkpoint import Checkpoints
from ehrwear_jax.training import sharding


def state(mesh, seed=0):
    """A state of many dtypes: replicated but for one matrix whose rows lie over the devices."""
    rng = np.random.default_rng(seed)
    tree = {
        "step": np.int32(seed),
        "params": {
            "matrix": rng.normal(size=(8, 3)).astype(np.float32),
            "half": jnp.asarray(rng.normal(size=5), jnp.bfloat16),
            "flag": np.array([True, False]),
        },
        "optimizer": (rng.integers(0, 9, 4), {"nu": np.array([np.nan, np.inf, -0.0, 1e-45], np.float32)}),
    }
    tree = jax.tree.map(lambda x: jax.device_put(x, sharding.replicated(mesh)), tree)
    tree["params"]["matrix"] = jax.device_put(tree["params"]["matrix"], sharding.batch_sharding(mesh))
    return tree


def assert_same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture(scope="module")
def meshes():
    devices = jax.devices()
    assert len(devices) >= 4
    return {n: sharding.make_mesh(devices[:n]) for n in (1, 2, 4)}


@pytest.fixture(scope="module")
def saved(meshes, tmp_path_factory):
    """A folder with a state that was saved from four devices."""
    folder = tmp_path_factory.mktemp("checkpoints")
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(7, state(meshes[4]))
    return folder


@pytest.mark.parametrize("n_devices", [1, 2, 4])
def test_a_state_comes_back_on_another_mesh(meshes, saved, n_devices):
    mesh = meshes[n_devices]
    like = jax.tree.map(jnp.zeros_like, state(mesh))
    like["params"]["matrix"] = jax.device_put(like["params"]["matrix"], sharding.batch_sharding(mesh))
    with Checkpoints(saved) as checkpoints:
        got = checkpoints.restore(7, like)
    assert_same(got, state(meshes[4]))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(like), strict=True):
        assert a.sharding.is_equivalent_to(b.sharding, a.ndim)
    assert [s.data.shape for s in got["params"]["matrix"].addressable_shards] == [(8 // n_devices, 3)] * n_devices


def test_a_description_of_the_state_is_enough(meshes, saved):
    want = state(meshes[4])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), want)
    with Checkpoints(saved) as checkpoints:
        assert_same(checkpoints.restore(7, like), want)


def test_the_newest_are_kept_and_found(meshes, tmp_path):
    mesh = meshes[1]
    with Checkpoints(tmp_path / "new" / "folder", keep=2) as checkpoints:
        assert checkpoints.steps() == []
        for step in (3, 6, 9, 10):
            checkpoints.save(step, state(mesh, step))  # at once: the save before is still running
        assert checkpoints.steps()[-1] == 10
    kept = sorted(int(p.name) for p in (tmp_path / "new" / "folder").iterdir() if p.name.isdigit())
    assert kept == [9, 10]
    with Checkpoints(tmp_path / "new" / "folder") as checkpoints:
        assert checkpoints.steps()[-1] == 10
        for step in kept:
            assert_same(checkpoints.restore(step, state(mesh)), state(mesh, step))


def test_a_save_that_was_cut_off_is_not_found(meshes, saved, tmp_path):
    """What an interrupted save leaves (a folder under a temporary name) is no checkpoint."""
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, state(meshes[1], 5))
        checkpoints.wait()
    (tmp_path / "8.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "8.orbax-checkpoint-tmp" / "state").mkdir()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps()[-1] == 5
        assert_same(checkpoints.restore(5, state(meshes[1])), state(meshes[1], 5))


def test_another_structure_or_shape_is_refused(meshes, saved):
    good = state(meshes[1])
    other_shape = good | {"params": good["params"] | {"matrix": jnp.zeros((9, 3))}}
    more = good | {"params": good["params"] | {"unknown": jnp.zeros(3)}}
    less = {k: v for k, v in good.items() if k != "optimizer"}
    with Checkpoints(saved) as checkpoints:
        for like, word in ((other_shape, r"shape: \(9, 3\)"), (more, "unknown"), (less, "optimizer")):
            with pytest.raises(ValueError, match=f"(?s)checkpoint 7 is of another model.*{word}"):
                checkpoints.restore(7, like)
        with pytest.raises(FileNotFoundError, match="8"):
            checkpoints.restore(8, good)


def test_a_step_that_would_not_be_saved_is_an_error(meshes, tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, state(meshes[1]))
        with pytest.raises(RuntimeError, match="step 4 was not saved; the newest is 5"):
            checkpoints.save(4, state(meshes[1]))
