"""Training on meshes of eight devices: losses of one device, where every parameter lies, what travels."""

import json

import jax
import numpy as np
import pytest
from conftest import REPO

from ehrwear_jax import batch as batch_lib
from ehrwear_jax import dry_run, losses, schedules, sharding, train
from ehrwear_jax.data.pipeline import ContextConfig
from ehrwear_jax.data.prepare import PrepareConfig

GOLDEN = REPO / "tests" / "golden_sharding.json"  # written anew by: python tests/test_meshes.py
MESHES = {
    "data": (8, 1, 1, 1),
    "fsdp": (1, 8, 1, 1),
    "tensor": (4, 1, 2, 1),
    "context": (4, 1, 1, 2),
    "mixed": (1, 2, 2, 2),
}
ROWS, STEPS = 8, 20
CONTEXT = ContextConfig(tokens=8, context_tokens=8, windows=4, queries=3, events=3, future_windows=2, horizons=(30, 90),
                        future_codes=4, recalled_tokens=2, patch_steps=2)  # fmt: skip
PREPARE = PrepareConfig(channels=("a", "b"), window_hours=6, step_minutes=90)
MODEL = {"width": 16, "n_layers": 2, "n_heads": 2, "mlp_width": 32, "token_width": 8, "time_features": 8,
         "wear_width": 8, "wear_layers": 1, "wear_heads": 2, "wear_span_days": 1.0, "source_width": 2,
         "count_width": 8, "stochastic_depth": 0.1, "attention": "reference"}  # fmt: skip
TERMS = ("ehr_masked", "ehr_next", "ehr_later", "wear_masked", "wear_to_ehr")  # one for each way of reading z
CONFIG = train.TrainConfig(steps=STEPS, batch_size=ROWS, peak_learning_rate=3e-3, warmup_steps=2,
                           weights={t: schedules.Ramp(*[float(t in TERMS)] * 2) for t in losses.TERMS})  # fmt: skip
PATIENTS = dry_run.AssumedPatients(CONTEXT, PREPARE, 12)


def mesh_of(name):
    return sharding.make_mesh(config=sharding.MeshConfig(*MESHES[name]))


def batches():
    """STEPS of them: two contexts a row of alternating events and windows, with random contents and targets."""
    shape = PATIENTS.batch_shape()
    for seed in range(STEPS):
        rng = np.random.default_rng(seed)
        batch = batch_lib.empty_batch(shape, ROWS)
        for name, (_, dtype, _, _) in batch_lib.FIELDS.items():
            size = batch[name].shape
            values = rng.normal(size=size) if dtype == np.float32 else rng.integers(0, 3, size)
            batch[name] = values.astype(dtype)
        batch["token"] = rng.integers(3, 12, batch["token"].shape).astype(np.int32)
        batch["modality"][:] = 1 + np.arange(8) % 2
        batch["segment"][:] = 1, 1, 1, 1, 2, 2, 2, 2
        batch["time"] = np.float32(np.arange(8) % 4 / 8 + rng.random((ROWS, 1)))
        batch["age"], batch["query_age"] = (np.abs(batch[n]) for n in ("age", "query_age"))
        batch["kv_range"][..., 0], batch["kv_range"][..., 1] = 4 * (np.arange(8) // 4), 1 + np.arange(8)
        batch["window"][:] = np.where(np.arange(8) % 2, np.arange(8) // 2, -1)
        batch["window_position"][:] = 1, 3, 5, 7
        batch["query_time"], batch["query_segment"][:] = np.abs(batch["query_time"]) + 1, (1, 1, 2)
        batch["query_kv_range"][:] = (0, 2), (0, 4), (4, 7)
        for name in ("event_pool", "query_pool"):
            batch[name][..., 0], batch[name][..., 1] = 0, 4
        batch_lib.check_batch(batch, shape, ROWS)
        yield batch


def run(mesh):
    """Losses of STEPS steps, and where the parameters lay at their end."""
    model, optimizer = train.make_model(PATIENTS, MODEL, mesh), train.make_optimizer(CONFIG)
    curriculum = schedules.curriculum(CONFIG.weights, train.active_terms(model, PATIENTS))
    state = train.init_state(model, optimizer, PATIENTS, CONFIG.seed, mesh)
    before = jax.tree.map(lambda x: x.sharding, state)
    step = train.jit_step(model, optimizer, curriculum, CONFIG.seed, state)
    found = []
    for batch in batches():
        state, metrics = step(state, sharding.device_batch(batch, mesh))
        found.append(float(metrics["loss/total"]))
    assert step._cache_size() == 1, "compiled once"
    assert jax.tree.map(lambda x: x.sharding, state) == before
    return np.array(found), state


@pytest.fixture(scope="module")
def on_one_device():
    found, state = run(sharding.make_mesh(jax.devices()[:1]))
    return found, jax.device_get(state)


@pytest.mark.slow
@pytest.mark.parametrize("name", MESHES)
def test_losses_of_twenty_steps_are_those_of_one_device(name, on_one_device):
    """With dropout and stochastic depth: what is dropped does not depend on the mesh either."""
    want, state = on_one_device
    got, state_there = run(mesh_of(name))
    assert np.all(np.isfinite(want)) and len(set(want)) == STEPS
    np.testing.assert_allclose(got, want, rtol=1e-4)
    gap = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - b).max(), state_there["params"], state["params"])
    assert max(jax.tree.leaves(gap)) < 1e-3


def lies(name):
    """{path: PartitionSpec as text} of every leaf of the training state that is split, on a mesh."""
    state = train.abstract_state(
        train.make_model(PATIENTS, MODEL), train.make_optimizer(CONFIG), PATIENTS, mesh_of(name)
    )
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {sharding.path_name(p): [str(a) if a else "" for a in (*x.sharding.spec,)] for p, x in leaves}


def travels(name):
    done = dry_run.compile_step(PATIENTS, MODEL, CONFIG, mesh_of(name), ROWS)
    return {kind: list(found) for kind, found in done.collectives.items()}


def golden():
    return json.loads(GOLDEN.read_text())


def test_every_parameter_lies_where_the_golden_file_says():
    assert lies("mixed") == golden()["sharding"]


def test_without_split_parameters_all_are_whole():
    assert all(not any(spec) for spec in lies("data").values())


def test_every_matrix_of_the_layers_is_split_and_moments_lie_with_their_parameters():
    found = lies("mixed")
    matrices = [p for p in found if "blocks/" in p and p.endswith(("kernel", "beta", "gamma"))]
    assert matrices and all(any(found[p]) for p in matrices)
    for path, spec in found.items():
        if path.startswith("params/"):
            moments = [p for p in found if p.startswith("optimizer/") and p.endswith(path.removeprefix("params"))]
            assert len(moments) == 2 and all(found[p] == spec for p in moments), path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["data", "fsdp", "mixed"])
def test_the_steps_collectives_are_those_of_the_golden_file(name):
    """Counts to the one; bytes to a twentieth, as the compiler's versions differ in what they combine."""
    found, want = travels(name), golden()["collectives"][name]
    assert found.keys() == want.keys()
    for kind, (count, size) in want.items():
        assert found[kind][0] == count and found[kind][1] == pytest.approx(size, rel=0.05), kind


if __name__ == "__main__":
    written = {"sharding": lies("mixed"), "collectives": {n: travels(n) for n in ("data", "fsdp", "mixed")}}
    GOLDEN.write_text(json.dumps(written, indent=1, sort_keys=True) + "\n")
