"""Begins fine-tuning from a network that nobody trained: the supervised model that pretraining is compared with.

The same network with its initial parameters, all of which then learn the task. The head starts from the probe on what
the untrained network makes of the records, so that step 0 is a model like the others' and early stopping on the tuning
split decides as for them. No checkpoint is read: the result depends on the model's options, its seed, the data and the
labels. Statistics that follow batches stay as they begin, as in the other modes.
"""

import dataclasses
from collections.abc import Mapping

import jax
import polars as pl

from ehrwear_jax.config.training import SCRATCH, FinetuneConfig, TrainConfig
from ehrwear_jax.data.store import RecordStore
from ehrwear_jax.training import embedding, sharding
from ehrwear_jax.training.finetune import Source
from ehrwear_jax.training.pretrain import Model, make_task


def untrained(model: Model) -> Model:
    """The model without the options of a pretraining that it never has."""
    return dataclasses.replace(model, train=TrainConfig())


def source(model: Model, store: RecordStore, times: Mapping[str, pl.DataFrame], batch_size: int) -> Source:
    """What fine-tuning starts from.

    Args:
      model: its seed draws the parameters, as pretraining would have. times: {"train", "tuning", ...: subject_id,
        prediction_time and labels}, see finetune.Source.
    """
    model = untrained(model)
    examples = model.module.examples(store.view(None), model.config, model.seed, train=False)
    task = make_task(model, examples.spec, sharding.make_mesh(jax.local_devices()[:1]))
    params, collections = jax.device_get(jax.jit(task.init)(jax.random.key(model.seed)))
    variables = {"params": params, "collections": collections}
    encode = embedding.encoder(task.network, variables)
    z_by_split = {s: embedding.embed(encode, examples, times[s], batch_size) for s in ("train", "tuning")}
    return Source(model, examples, variables, times, z_by_split)


def options_of(config: FinetuneConfig, mode: str) -> FinetuneConfig:
    """The options of a mode: from scratch there are more steps, larger ones, and more patience with them."""
    if mode != SCRATCH:
        return config
    return dataclasses.replace(config, steps=config.scratch_steps, full_learning_rate=config.scratch_learning_rate,
                               patience=config.scratch_patience)  # fmt: skip
