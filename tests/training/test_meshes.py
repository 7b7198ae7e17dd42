"""Training on meshes of eight devices: losses of one device, where every parameter lies, what travels."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from random_rows import EVERY_TERM
from repo import REPO

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.config.training import MeshConfig, TrainConfig
from ehrwear_jax.models.joint import family
from ehrwear_jax.models.joint.config import WEIGHTS, Config, ContextConfig, NetworkConfig
from ehrwear_jax.training import hlo, sharding, step
from ehrwear_jax.training.optimizer import make_optimizer
from ehrwear_jax.training.pretrain import Model, make_task

GOLDEN = REPO / "tests" / "training" / "golden_sharding.json"  # written anew by this file as a program
MESHES = {
    "data": (8, 1, 1, 1),
    "fsdp": (1, 8, 1, 1),
    "tensor": (4, 1, 2, 1),
    "context": (4, 1, 1, 2),
    "mixed": (1, 2, 2, 2),
}
ROWS, STEPS = 8, 20
CONTEXT = ContextConfig(tokens=4, context_tokens=4, windows=4, queries=3, events=3, future_windows=2, horizons=(30, 90),
                        future_codes=4, history_tokens=2, patch_steps=2)  # fmt: skip
PREPARE = PrepareConfig(channels=("a", "b"), window_hours=6, step_minutes=90)
NETWORK = NetworkConfig(width=16, n_layers=2, n_heads=2, mlp_width=32, token_width=8, time_features=8, wear_width=8,
                        wear_layers=1, wear_heads=2, wear_span_days=1.0, source_width=2, count_width=8,
                        stochastic_depth=0.1, attention="reference")  # fmt: skip
# one for each way of reading z
TERMS = ("ehr_masked", "future_event", "future_codes", "wear_masked", "wear_to_ehr")
CONFIG = Config(context=CONTEXT, network=NETWORK, weights={t: [float(t in TERMS)] * 2 + [0] for t in WEIGHTS})
TRAIN = TrainConfig(steps=STEPS, batch_size=ROWS, peak_learning_rate=3e-3, warmup_steps=2)
OPTIMIZER = make_optimizer(TRAIN)
SPEC, _ = family.assumed(CONFIG, PREPARE, 12)

# every parameter that a joint model can have, in two models whose options exclude each other
ALL_NETWORK = dataclasses.replace(NETWORK, raw_width=8, align_width=8, posterior="normal")
ALL_PREPARE = dataclasses.replace(PREPARE, segments={"ppg": {"channels": ("ppg",), "rate_hz": 4.0}}, quality=True)
ALL_CONTEXT = dataclasses.replace(CONTEXT, pairs=4, raw_segments="ppg", raw_windows=8)
ALL_OPTIONS = [
    Config(context=ALL_CONTEXT, weights=EVERY_TERM, network=dataclasses.replace(ALL_NETWORK, **options))
    for options in (
        {"qk_norm": True, "adapter_width": 8},
        {"kernel": "rational_quadratic", "pool": "temporal", "wear_encoder": "tcn"},
    )
]


def mesh_of(name):
    return sharding.make_mesh(config=MeshConfig(*MESHES[name]))


def task_on(mesh, config=CONFIG, spec=SPEC):
    return make_task(Model("joint", "joint", config), spec, mesh)


def batches():
    """STEPS of them: two contexts a row of alternating events and windows, with random contents and targets."""
    for seed in range(STEPS):
        rng = np.random.default_rng(seed)
        batch = SPEC.empty(ROWS)
        for name, field in SPEC.fields.items():
            size = batch[name].shape
            values = rng.normal(size=size) if field.dtype == np.float32 else rng.integers(0, 3, size)
            batch[name] = values.astype(field.dtype)
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
        SPEC.check(batch, ROWS)
        yield batch


def run(mesh, start=None):
    """(losses of STEPS steps, last state, collectives of a step); start: the first state, on the host."""
    task = task_on(mesh)
    if start is None:
        state = step.init_state(task, OPTIMIZER, TRAIN, mesh, 0)
    else:
        like = step.abstract_state(task, OPTIMIZER, TRAIN, mesh)
        state = jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), start, like)
    before = jax.tree.map(lambda x: x.sharding, state)
    placed = [sharding.device_batch(batch, mesh) for batch in batches()]
    compiled = step.jit_step(task, OPTIMIZER, TRAIN, 0, state).lower(state, {}, placed[0]).compile()
    found = []
    for batch in placed:
        state, metrics = compiled(state, {}, batch)
        found.append(float(metrics["loss/total"]))
    assert jax.tree.map(lambda x: x.sharding, state) == before
    travelled = {kind: list(count) for kind, count in hlo.collectives(compiled.as_text()).items()}
    return np.array(found), jax.device_get(state), travelled


@pytest.fixture(scope="module")
def start():
    """The first state, made by eight devices that each make their part."""
    return jax.device_get(step.init_state(task_on(mesh_of("mixed")), OPTIMIZER, TRAIN, mesh_of("mixed"), 0))


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


def lies(name, config=CONFIG, spec=SPEC):
    """{path: the mesh axes of each dimension} of every leaf of the training state, on a mesh."""
    state = step.abstract_state(task_on(mesh_of(name), config, spec), OPTIMIZER, TRAIN, mesh_of(name))
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {sharding.path_name(p): [str(a) if a else "" for a in (*x.sharding.spec,)] for p, x in leaves}


def parameters_lie():
    """{path: the same} of the parameters of models with all options, where they are split."""
    out = {}
    for config in ALL_OPTIONS:
        found = lies("mixed", config, family.assumed(config, ALL_PREPARE, 12)[0])
        out |= {p: spec for p, spec in found.items() if p.startswith("params/") and any(spec)}
    return out


def golden():
    return json.loads(GOLDEN.read_text())


@pytest.fixture(scope="module")
def mixed():
    return lies("mixed")


def test_every_leaf_of_the_state_lies_where_the_golden_file_says(mixed):
    assert mixed == golden()["sharding"]


def test_every_parameter_of_any_model_lies_where_the_golden_file_says():
    """Derived from the names of the parameters' axes, which their modules give them."""
    assert parameters_lie() == golden()["parameters"]


def test_without_split_parameters_all_are_whole():
    assert all(not any(spec) for spec in lies("data").values())


def test_every_matrix_of_the_layers_is_split_and_moments_lie_with_their_parameters(mixed):
    matrices = [p for p in mixed if "blocks/" in p and p.endswith(("kernel", "beta", "gamma"))]
    assert matrices and all(any(mixed[p]) for p in matrices)
    for path, spec in mixed.items():
        if path.startswith("params/"):
            moments = [p for p in mixed if p.startswith("optimizer/") and p.endswith(path.removeprefix("params"))]
            assert len(moments) == 2 and all(mixed[p] == spec for p in moments), path


if __name__ == "__main__":  # python tests/training/test_meshes.py, with tests/helpers and the repository on PYTHONPATH
    jax.config.update("jax_num_cpu_devices", 8)
    written = {"sharding": lies("mixed"), "parameters": parameters_lie(), "collectives": run(mesh_of("mixed"))[2]}
    GOLDEN.write_text(json.dumps(written, indent=1, sort_keys=True) + "\n")
