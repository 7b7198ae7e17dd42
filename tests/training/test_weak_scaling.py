"""As many rows a device on four times the devices: what a device holds and what it is sent do not grow."""

import json
import os
import subprocess
import sys

import pytest
from needs_libtpu import needs_libtpu
from repo import REPO

# Compiles the training step of a small joint model for a slice of a TPU, its parameters over all chips. "loose": the
# network says nothing of where activations lie, and the compiler decides.
SCRIPT = """
import json, sys
from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.config.training import MeshConfig, TrainConfig
from ehrwear_jax.models.joint.config import Config, ContextConfig, NetworkConfig
from ehrwear_jax.models.layers.mesh_ops import MeshOps
from ehrwear_jax.training import compile_only, hlo, sharding
from ehrwear_jax.training.pretrain import Model

context = ContextConfig(tokens=256, windows=8, context_tokens=256, queries=8, events=16, future_codes=64,
                        history_tokens=64)
network = NetworkConfig(width=256, n_layers=2, n_heads=4, mlp_width=512, token_width=64, wear_width=64, wear_layers=1,
                        wear_heads=2, count_width=16, dtype="bfloat16")
model = Model("joint", "joint", Config(context=context, network=network), TrainConfig(batch_size=0, rows_per_device=2))
prepare = PrepareConfig(channels=("a", "b"), window_hours=6, step_minutes=30)
spec, counts = compile_only.assumed(model, prepare, 1024)
mesh = sharding.make_mesh(compile_only.tpu_devices(sys.argv[1]), MeshConfig(data=1, fsdp=-1))
if sys.argv[2] == "loose":
    ops = sharding.mesh_ops(mesh)
    sharding.mesh_ops = lambda mesh, config: MeshOps(attend=ops.attend, row_groups=ops.row_groups)
done = compile_only.compile_step(model, spec, counts, mesh, "tpu")
sent = sum(size for _, size in done.collectives.values())
print(json.dumps({"rows": done.rows, "largest": hlo.largest(done.text), "temporary": done.memory["temporary"],
                  "state": done.memory["state and batch"], "sent": sent}))
"""


def of_chips(topology, how):
    """{what: rows of the batch; bytes of a device} of the compiled step."""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    command = [sys.executable, "-c", SCRIPT, topology, how]
    found = subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True, timeout=1200, check=False)
    assert found.returncode == 0, found.stderr[-3000:]
    return json.loads(found.stdout.splitlines()[-1])


@pytest.mark.slow
@needs_libtpu
def test_on_four_times_the_chips_a_chip_holds_and_is_sent_no_more():
    """Largest array, activations, state, and the bytes of all collectives together: kinds are the compiler's choice."""
    few, many = (of_chips(topology, "as it is") for topology in ("v5e:4x4", "v5e:8x8"))
    assert (few["rows"], many["rows"]) == (32, 128)
    for what in ("largest", "temporary", "state", "sent"):
        assert many[what] <= 1.02 * few[what], what


@pytest.mark.long
@needs_libtpu
def test_left_to_the_compiler_arrays_of_the_whole_batch_lie_on_every_chip():
    """What the test above would find: embeddings of all rows, four times as large on four times the chips."""
    few, many = (of_chips(topology, "loose") for topology in ("v5e:4x4", "v5e:8x8"))
    assert many["largest"] > 3 * few["largest"]
