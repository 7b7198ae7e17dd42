"""What a config would cost: sizes without data, and a step that compiles for chips that are not there."""

import os
import re
import subprocess
import sys

import jax
import pytest
from needs_libtpu import needs_libtpu
from repo import REPO
from toy_families import pooled

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.config.training import TrainConfig
from ehrwear_jax.models.joint.config import Config, ContextConfig, NetworkConfig
from ehrwear_jax.training import compile_only, sharding
from ehrwear_jax.training.feed import Share
from ehrwear_jax.training.pretrain import Model

CONTEXT = ContextConfig(tokens=4, context_tokens=4, windows=4, queries=2, events=2, future_windows=2, horizons=(30, 90),
                        future_codes=4, history_tokens=3, patch_steps=3)  # fmt: skip
PREPARE = PrepareConfig(channels=("a", "b"), window_hours=6, step_minutes=30)
SMALL = NetworkConfig(width=8, n_layers=1, n_heads=2, mlp_width=16, token_width=4, time_features=8, wear_width=8,
                      wear_layers=1, wear_heads=2, source_width=2, count_width=4)  # fmt: skip
JOINT = Model("joint", "joint", Config(context=CONTEXT, network=SMALL))


def test_parameters_grow_with_the_vocabulary_by_its_tables():
    """Two tables of embeddings, and a bias per token where they are scored; nothing else."""
    few, many = (
        compile_only.parameters(JOINT, compile_only.assumed(JOINT, PREPARE, vocabulary)[0]) for vocabulary in (50, 51)
    )
    assert {k: many[k] - few[k] for k in few if many[k] != few[k]} == {"ehr": 4 + 4, "code_head": 1}
    assert few["rho"] == 8 * 8 + 8 and set(few) > {"backbone", "wear", "query"}


def test_a_family_that_cannot_say_its_sizes_is_named():
    toy = Model("toy", "toy_families.pooled", pooled.Config())
    with pytest.raises(ValueError, match="the family toy_families.pooled cannot say what its batches would be"):
        compile_only.assumed(toy, PREPARE, 50)


def test_a_step_is_compiled_on_shapes_alone():
    """Of a family that is no other's: its rows, its memory, what travels, and the flops of full rows."""
    model = Model("toy", "toy_families.pooled", pooled.Config(), TrainConfig(batch_size=0, rows_per_device=2))
    spec, mesh = pooled.examples(pooled.Store(), pooled.Config()).spec, sharding.make_mesh()
    found = compile_only.compile_step(model, spec, {"tokens": 3}, mesh)
    sizes = compile_only.parameters(model, spec)
    assert found.rows == 16 and found.model_flops == 6 * sum(sizes.values()) * 16 * 3
    assert found.memory["total"] == sum(v for k, v in found.memory.items() if k != "total")
    assert found.memory["state and batch"] >= 3 * 4 * sum(sizes.values()), "parameters and two moments"
    assert "all-reduce" in found.collectives and found.flops > 0 and found.seconds > 0
    with pytest.raises(ValueError, match="config.train.accumulate=2 leaves 8 rows"):
        halves = Model("toy", "toy_families.pooled", pooled.Config(), TrainConfig(batch_size=16, accumulate=2))
        compile_only.compile_step(halves, spec, {"tokens": 3}, sharding.make_mesh(jax.devices()[:3]))


def compile_for(config, *arguments):
    """What --stages=compile prints."""
    found = subprocess.run(
        [sys.executable, "-m", "ehrwear_jax.main", f"--config={config}", "--stages=compile", *arguments],
        cwd=REPO, capture_output=True, text=True, timeout=3000, check=False,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-3000:]
    return found.stdout


@pytest.mark.long
@needs_libtpu
def test_the_full_model_of_two_layers_compiles_for_a_pod():
    text = compile_for("configs/full.py:layers=2", "--config.compile.topology=v5e:16x16")
    assert "on v5e:16x16: 256 x TPU v5 lite; data 1, fsdp 256, tensor 1, context 1" in text
    assert float(re.search(r"memory +([\d.]+) GiB a device: total", text)[1]) < 16.0
    state = re.search(r"memory +([\d.]+) GiB a device: state and batch", text)
    assert state and float(state[1]) < 0.2, "a 256th of the state; all of it would be more than a GiB"
    gathered = re.search(r"all-gather +(\d+) a step", text)  # layers are one loop: their number does not tell
    assert gathered and int(gathered[1]) >= 1, "what a device does not hold is sent to it"


WALK = """
import sys
from ehrwear_jax.config.training import MeshConfig
from ehrwear_jax.training import compile_only, sharding
for name in sys.argv[1:]:
    for sizes in ((1, -1, 1, 1), (-1, 1, 4, 1), (-1, 1, 2, 2)):
        mesh = sharding.make_mesh(compile_only.tpu_devices(name), MeshConfig(*sizes))
        found = compile_only.shares(mesh)
        print(name, len(found), found[0].count, sorted({len(s.blocks) for s in found.values()}))
"""


@pytest.mark.slow
@needs_libtpu
def test_every_process_of_a_slice_finds_its_rows():
    """Hosts hold squares of chips, and the mesh goes along rows of them: one or two rows' blocks, not neighbours."""
    chips = {"v5e:4x4": 16, "v5e:8x8": 64, "v5e:16x16": 256, "v6e:8x8": 64, "v5p:2x2x4": 16}
    found = subprocess.run([sys.executable, "-c", WALK, *chips], cwd=REPO, capture_output=True, text=True, timeout=300,
                           check=False, env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""})  # fmt: skip
    assert found.returncode == 0, found.stderr[-3000:]
    lines = [line.split(maxsplit=3) for line in found.stdout.splitlines() if line.split()[0] in chips]
    assert [(name, n, count) for name, n, count, _ in lines] == [
        (name, str(n // 4), str(count)) for name, n in chips.items() for count in (n, n // 4, n // 4)
    ]
    assert {blocks for *_, blocks in lines[::3]} == {"[4]"}, "the four chips of a host hold four parts of the rows"


def test_a_block_of_rows_that_no_process_holds_is_said(monkeypatch):
    mesh = sharding.make_mesh()
    assert compile_only.shares(mesh) == {0: Share(tuple(range(8)), 8)}
    monkeypatch.setattr(sharding, "row_share", lambda mesh, devices: ((0, 1), 8))
    with pytest.raises(ValueError, match="no process holds block 2 of a batch's rows"):
        compile_only.shares(mesh)


def test_a_topology_that_there_is_not_is_said(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("no such slice")

    monkeypatch.setattr(compile_only, "tpu_library", lambda: "libtpu.so")
    monkeypatch.setattr(compile_only.topologies, "get_topology_desc", refuse)
    for name in ("TPU_LIBRARY_PATH", "TPU_SKIP_MDS_QUERY", "TPU_WORKER_HOSTNAMES", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        monkeypatch.setenv(name, "")
    with pytest.raises(ValueError, match="config.compile.topology is 'v5e:3x3': no such slice"):
        compile_only.tpu_devices("v5e:3x3")
