"""Training on meshes of eight devices: losses of one device, where every parameter lies, what travels."""

import json

import jax
import numpy as np
import pytest
from repo import REPO

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.models.joint import batch as batch_lib
from ehrwear_jax.models.joint import losses
from ehrwear_jax.models.joint.examples import ContextConfig
from ehrwear_jax.training import compile_only as dry_run
from ehrwear_jax.training import hlo, schedules, sharding, train

GOLDEN = REPO / "tests" / "training" / "golden_sharding.json"  # written anew by this file as a program
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


def run(mesh, start=None):
    """(losses of STEPS steps, last state, collectives of a step); start: the first state, on the host."""
    model, optimizer = train.make_model(PATIENTS, MODEL, mesh), train.make_optimizer(CONFIG)
    curriculum = schedules.curriculum(CONFIG.weights, train.active_terms(model, PATIENTS))
    if start is None:
        state = train.init_state(model, optimizer, PATIENTS, CONFIG.seed, mesh)
    else:
        like = train.abstract_state(model, optimizer, PATIENTS, mesh)
        state = jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), start, like)
    before = jax.tree.map(lambda x: x.sharding, state)
    placed = [sharding.device_batch(batch, mesh) for batch in batches()]
    step = train.jit_step(model, optimizer, curriculum, CONFIG, state).lower(state, placed[0]).compile()
    found = []
    for batch in placed:
        state, metrics = step(state, batch)
        found.append(float(metrics["loss/total"]))
    assert jax.tree.map(lambda x: x.sharding, state) == before
    travelled = {kind: list(count) for kind, count in hlo.collectives(step.as_text()).items()}
    return np.array(found), jax.device_get(state), travelled


@pytest.fixture(scope="module")
def start():
    """The first state, made by eight devices that each make their part."""
    model, optimizer = train.make_model(PATIENTS, MODEL), train.make_optimizer(CONFIG)
    return jax.device_get(train.init_state(model, optimizer, PATIENTS, CONFIG.seed, mesh_of("mixed")))


@pytest.fixture(scope="module")
def on_one_device(start):
    return run(sharding.make_mesh(jax.devices()[:1]), start)


@pytest.mark.slow
@pytest.mark.parametrize("name", MESHES)
def test_losses_of_twenty_steps_are_those_of_one_device(name, start, on_one_device):
    """With dropout and stochastic depth: what is dropped does not depend on the mesh either.

    Collectives, of the mesh that has all axes: counts to the one; bytes to a twentieth, as versions of the compiler
    differ in what they combine.
    """
    want, state, alone = on_one_device
    got, state_there, travelled = run(mesh_of(name), start)
    assert np.all(np.isfinite(want)) and len(set(want)) == STEPS and not alone
    np.testing.assert_allclose(got, want, rtol=1e-4)
    gap = jax.tree.map(lambda a, b: np.abs(a - b).max(), state_there["params"], state["params"])
    # Adam's steps of 3e-3 go by the sign of gradients that rounding makes of either sign
    assert max(jax.tree.leaves(gap)) < 5e-3
    if name == "mixed":
        want_travelled = golden()["collectives"]
        assert travelled.keys() == want_travelled.keys()
        for kind, (count, size) in want_travelled.items():
            assert travelled[kind][0] == count and travelled[kind][1] == pytest.approx(size, rel=0.05), kind


def lies(name):
    """{path: PartitionSpec as text} of every leaf of the training state that is split, on a mesh."""
    state = train.abstract_state(
        train.make_model(PATIENTS, MODEL), train.make_optimizer(CONFIG), PATIENTS, mesh_of(name)
    )
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {sharding.path_name(p): [str(a) if a else "" for a in (*x.sharding.spec,)] for p, x in leaves}


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


if __name__ == "__main__":  # python tests/training/test_meshes.py, with tests/ and the repository on PYTHONPATH
    written = {"sharding": lies("mixed"), "collectives": run(mesh_of("mixed"))[2]}
    GOLDEN.write_text(json.dumps(written, indent=1, sort_keys=True) + "\n")
