"""ehrwear_jax.main with the toy model and a fault of one process: FAULT=<kind>:<step>:<process> python faulty_main.py.

Kinds, when the batch of the step is asked for: nan (a value of it is not finite), hang, kill (as the kernel's out of
memory killer does), term (somebody stops this process). Kind shard: killed when its shard of that number, from 1, is
embedded and about to be written. Kind unsaved: this process's part of the checkpoint of the step fails, after the
others' parts were written.
"""

import os
import signal
import time

import jax
import numpy as np
import toy_training
from absl import app

from ehrwear_jax import main
from ehrwear_jax.runtime import checkpoint
from ehrwear_jax.training import embedding, feed, sharding

kind, step, process = (os.environ.get("FAULT") or "none:0:0").split(":")
batches = feed.train_batches


def the_batch_that_never_comes():
    time.sleep(1000)


def with_fault(*arguments, start_step=0, n_steps=None, **options):
    for i, batch in enumerate(batches(*arguments, start_step=start_step, n_steps=n_steps, **options)):
        if n_steps is None and (start_step + i + 1, jax.process_index()) == (int(step), int(process)):
            if kind == "nan":
                batch["value"][0, 0] = np.nan
            elif kind == "hang":
                the_batch_that_never_comes()
            elif kind in ("kill", "term"):
                os.kill(os.getpid(), {"kill": signal.SIGKILL, "term": signal.SIGTERM}[kind])
        yield batch


def write_until_killed(*arguments):
    shards.append(1)
    if (len(shards), jax.process_index()) == (int(step), int(process)):
        os.kill(os.getpid(), signal.SIGKILL)
    write(*arguments)


shards, write = [], embedding.write
if kind == "shard":
    embedding.write = write_until_killed


class Failing:
    """What orbax returns of a save that will fail."""

    def __init__(self, response):
        self._response = response

    def result(self):
        self._response.result()
        raise OSError("the disk of this process is gone")


save = checkpoint.orbax().save_checkpointables_async


def save_with_fault(target, *arguments, **options):
    mine = (target.name, jax.process_index()) == (step, int(process)) and kind == "unsaved"
    response = save(target, *arguments, **options)
    return Failing(response) if mine else response


checkpoint.orbax().save_checkpointables_async = save_with_fault
if os.environ.get("PERMUTED"):  # a mesh in which the devices of a process are not neighbours
    make_mesh = sharding.make_mesh
    sharding.make_mesh = lambda config=None: make_mesh([*jax.devices()[::2], *jax.devices()[1::2]], config)
feed.train_batches = with_fault
toy_training.install(setattr)
app.run(main.main, flags_parser=main._parse)
