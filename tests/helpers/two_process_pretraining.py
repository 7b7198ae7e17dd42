"""One process of a pretraining run: python two_process_pretraining.py FOLDER OUT PORT PROCESS_ID N_PROCESSES.

Two devices in all, shared among the processes; writes what pretrain writes, and embeddings by the first process.
"""

import sys
from datetime import datetime
from pathlib import Path

import jax
import numpy as np
import polars as pl
import small_run
from absl import flags

folder, out = Path(sys.argv[1]), Path(sys.argv[2])
port, process_id, n_processes = map(int, sys.argv[3:])
flags.FLAGS.mark_as_parsed()  # grain reads flags
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2 // n_processes)
if n_processes > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", n_processes, process_id)

from ehrwear_jax.training import embedding  # noqa: E402 (after the devices are chosen)
from ehrwear_jax.training.pretrain import pretrain  # noqa: E402

assert len(jax.devices()) == 2 and jax.process_count() == n_processes
model = small_run.model_of(small_run.small_config(folder))
_, step = pretrain(out / "joint", model, small_run.store(folder))
assert step == model.train.steps

# what all processes saved, read back
examples, network, variables = embedding.restore(out / "joint", model, small_run.store(folder))
index = pl.DataFrame({"subject_id": examples.subject_id, "prediction_time": datetime(2016, 3, 1)}).with_columns(
    pl.col("prediction_time").cast(pl.Datetime("us"))
)
z = embedding.embed(embedding.encoder(network, variables), examples, index, 4)
np.save(out / f"z{process_id}.npy", z)
