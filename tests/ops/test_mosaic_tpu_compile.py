"""The TPU kernels compiled for real chips, which libtpu does without one: Mosaic rejects what the interpreter takes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ehrwear_jax.training import compile_only as dry_run

try:
    LIBRARY = dry_run.tpu_library()
except FileNotFoundError:
    LIBRARY = None
N_KEY = 2048
ROWS, HEADS = 2, 16  # on each chip
PROGRAM = """
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ehrwear_jax.ops.kernel_attention import ExponentialMixture, RationalQuadratic, mosaic_tpu, target

topology, kind, dtype, dropout, skip, n_key, rows, heads, depth, n_component, n_modality = sys.argv[1:]
n_key, rows, heads, depth, n, m = (int(x) for x in (n_key, rows, heads, depth, n_component, n_modality))
devices = topologies.get_topology_desc(topology, platform="tpu").devices
mesh = Mesh(np.array(devices), ("batch",))


def loss(q, k, v, bias, first, second, q_time, k_time, kv_range, modality):
    kernel = {
        "mixture": lambda: ExponentialMixture(first, second),
        "quadratic": lambda: RationalQuadratic(first[:, 0], second[:, 0]),
        "none": lambda: None,
    }[kind]()
    out, _ = mosaic_tpu.kernel_attention_mosaic_tpu(
        q, k, v, q_time_BxT=q_time, k_time_BxS=k_time, kv_range_BxTx2=kv_range, kernel=kernel,
        source_bias_BxHxMxS=bias, q_modality_BxT=modality, scale=None, dropout_rate=float(dropout), bit_causal=False,
        dropout_key=jax.random.key(0), skip_tolerance=float(skip), newest_time_BxT=None, first_index=(0, 0, 0, 0),
    )
    return jnp.mean(out.astype(jnp.float32) ** 2)


def gradients(*arguments):
    of_rows, of_kernel = jax.grad(lambda x: loss(*x, *arguments[6:]))(arguments[:6]), ()
    return of_rows[:4], jax.lax.psum(of_rows[4:], "batch")


sharded, replicated = PartitionSpec("batch"), PartitionSpec()
specs = (*[sharded] * 4, replicated, replicated, *[sharded] * 4)
batch = rows * len(devices)
shapes = (
    *[((batch, n_key, heads, depth), dtype)] * 3, ((batch, heads, m, n_key), "float32"), *[((heads, n), "float32")] * 2,
    *[((batch, n_key), "float32")] * 2, ((batch, n_key, 2), "int32"), ((batch, n_key), "int32"),
)
arguments = [
    jax.ShapeDtypeStruct(*shape, sharding=NamedSharding(mesh, spec)) for shape, spec in zip(shapes, specs, strict=True)
]
step = jax.shard_map(gradients, mesh=mesh, in_specs=specs, out_specs=(sharded, replicated), check_vma=False)
with target.compiling_for("tpu"):  # there is none
    compiled = jax.jit(step).lower(*arguments).compile()
memory = compiled.memory_analysis()
print(devices[0].device_kind, memory)
print("flops", compiled.cost_analysis()["flops"])
kernels = compiled.as_text().count('custom_call_target="tpu_custom_call"')
print("temporary", memory.temp_size_in_bytes, "kernels", kernels)
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(LIBRARY is None, reason="libtpu, the TPU compiler, is not installed (launch/setup_env.sh)"),
]


@pytest.mark.parametrize(
    ("topology", "kind", "dtype", "dropout", "skip", "depth", "n_component"),
    [
        ("v5e:4x4", "mixture", "bfloat16", 0.0, 0.0, 64, 4),
        ("v6e:4x4", "mixture", "bfloat16", 0.1, 0.0, 64, 4),
        ("v6e:4x4", "mixture", "float32", 0.0, 1e-4, 128, 8),
        ("v5e:4x4", "quadratic", "float32", 0.1, 1e-4, 64, 1),
        ("v5e:4x4", "none", "bfloat16", 0.0, 1e-4, 16, 1),
    ],
)
def test_compiles_for_a_chip_in_memory_linear_in_the_keys(topology, kind, dtype, dropout, skip, depth, n_component):
    values = (topology, kind, dtype, dropout, skip, N_KEY, ROWS, HEADS, depth, n_component, 4)
    # libtpu looks for the chips of a cloud machine unless told otherwise; the flags of conftest are for the CPU
    settings = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "XLA_FLAGS": ""}
    settings["TPU_LIBRARY_PATH"] = str(LIBRARY)
    # and one process at a time has it unless told that it may be loaded beside another
    settings |= {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    repo = str(Path(__file__).resolve().parents[2])
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, values)],
        env=os.environ | settings | {"PYTHONPATH": os.pathsep.join([repo, os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-4000:]
    print(found.stdout)
    temporary, kernels = (int(re.search(rf"{name} (\d+)", found.stdout)[1]) for name in ("temporary", "kernels"))
    # forward, twice where there are factors that may underflow, and two for the gradients
    assert kernels == (4 if kind == "mixture" else 3)
    one_score_matrix = 4 * ROWS * HEADS * N_KEY**2
    assert temporary < one_score_matrix / 2
