"""What a config would cost: stand-ins have the sizes of data, and a step compiles for chips that are not there."""

import os
import re
import subprocess
import sys

import pytest
from repo import REPO

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.models.joint.examples import ContextConfig
from ehrwear_jax.training import compile_only as dry_run
from ehrwear_jax.training import cost, train

CONTEXT = ContextConfig(tokens=8, context_tokens=8, windows=4, queries=2, events=2, future_windows=2, horizons=(30, 90),
                        future_codes=4, recalled_tokens=3, patch_steps=3)  # fmt: skip
PREPARE = PrepareConfig(channels=("a", "b"), window_hours=6, step_minutes=30)
SMALL = {"width": 8, "n_layers": 1, "n_heads": 2, "mlp_width": 16, "token_width": 4, "time_features": 8,
         "wear_width": 8, "wear_layers": 1, "wear_heads": 2, "source_width": 2, "count_width": 4}  # fmt: skip


def test_a_stand_in_has_the_sizes_that_are_asked_for():
    patients = dry_run.AssumedPatients(CONTEXT, PREPARE, 50)
    shape = patients.batch_shape()
    assert (shape.tokens, shape.windows, shape.steps, shape.channels, shape.patches) == (8, 4, 12, 2, 4)
    assert (shape.future_codes, shape.recalled_tokens) == (4, 3) and len(patients.later_rates()) == 8
    assert train.make_model(patients, SMALL).config.vocabulary == 50
    alone = dry_run.AssumedPatients(ContextConfig(modalities=("ehr",)), PREPARE, 50)
    assert alone.batch_shape().windows == 0


def test_parameters_grow_with_the_vocabulary_by_its_tables():
    """Two tables of embeddings and a bias per token; nothing else."""
    few, many = (dry_run.parameters(dry_run.AssumedPatients(CONTEXT, PREPARE, v), SMALL) for v in (50, 51))
    assert {k: many[k] - few[k] for k in few if many[k] != few[k]} == {"ehr": 4 + 4 + 1}
    assert few["rho"] == 8 * 8 + 8 and set(few) > {"backbone", "wear", "query"}


def test_full_rows_are_counted_as_a_batch_would_be():
    counts = dry_run.full_counts(dry_run.AssumedPatients(CONTEXT, PREPARE, 50), 3)
    assert counts == {"contexts": 3, "tokens": 24, "queries": 6, "windows": 12, "seen": 3 * (36 + 16)}
    empty = dry_run.batch_lib.empty_batch(dry_run.AssumedPatients(CONTEXT, PREPARE, 50).batch_shape(), 1)
    assert counts.keys() == cost.batch_counts(empty).keys()


def compile_for(config, *arguments):
    """What --stages=compile prints."""
    found = subprocess.run(
        [sys.executable, "-m", "ehrwear_jax.main", f"--config={config}", "--stages=compile", *arguments],
        cwd=REPO, capture_output=True, text=True, timeout=3000, check=False,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-3000:]
    return found.stdout


def _has_libtpu():
    try:
        dry_run.tpu_library()
    except FileNotFoundError:
        return False
    return True


@pytest.mark.long
@pytest.mark.skipif(not _has_libtpu(), reason="libtpu, the TPU compiler, is not installed (launch/setup_env.sh)")
def test_the_full_model_of_two_layers_compiles_for_a_pod():
    text = compile_for("configs/full.py:layers=2", "--config.topology=v5e:16x16")
    assert "on v5e:16x16: 256 x TPU v5 lite; data 1, fsdp 256, tensor 1, context 1" in text
    assert float(re.search(r"memory +([\d.]+) GiB a device: total", text)[1]) < 16.0
    gathered = re.search(r"all-gather +(\d+) a step", text)
    assert gathered and int(gathered[1]) > 2 * 2, "parameters lie on all devices, and each layer gathers its own"


def test_a_topology_that_there_is_not_is_said(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("no such slice")

    monkeypatch.setattr(dry_run, "tpu_library", lambda: "libtpu.so")
    monkeypatch.setattr(dry_run.topologies, "get_topology_desc", refuse)
    for name in ("TPU_LIBRARY_PATH", "TPU_SKIP_MDS_QUERY", "TPU_WORKER_HOSTNAMES", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        monkeypatch.setenv(name, "")
    with pytest.raises(ValueError, match="config.topology is 'v5e:3x3': no such slice"):
        dry_run.tpu_devices("v5e:3x3")
