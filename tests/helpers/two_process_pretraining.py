"""One process of a pretraining run: python two_process_pretraining.py FOLDER OUT PORT PROCESS_ID N_PROCESSES.

Two devices in all, shared among the processes; writes what train.pretrain writes, and embeddings by the first process.
"""

import sys
from datetime import datetime
from pathlib import Path

import cohort
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

from ehrwear_jax import config as config_lib  # noqa: E402 (after the devices are chosen)
from ehrwear_jax.training import embedding, train  # noqa: E402

assert len(jax.devices()) == 2 and jax.process_count() == n_processes
config = small_run.small_config(folder)
context, options = config_lib.context_config(config, "joint"), config_lib.model_options(config)
people, tuning = (cohort.open_patients(folder, context, split) for split in ("train", "tuning"))
params, step = train.pretrain(out / "joint", people, tuning, options, config_lib.train_config(config))
assert step == config.train.steps

everyone = cohort.open_patients(folder, context)
index = pl.DataFrame(
    {"subject_id": everyone.index["subject_id"], "prediction_time": datetime(2016, 3, 1)}
).with_columns(pl.col("prediction_time").cast(pl.Datetime("us")))
# what all processes saved, read back
restored, _ = embedding.restore_params(out / "joint", everyone, options, config_lib.train_config(config))
z = embedding.embed(embedding.make_encoder(everyone, options, restored), everyone, index, 4)
np.save(out / f"z{process_id}.npy", z)
