"""Makes the training rows of a model from prepared records and a fit, for benchmarks."""

import dataclasses
from pathlib import Path

from ehrwear_jax.data.store import RecordStore
from ehrwear_jax.models.family import Batch, BatchSpec, Examples
from ehrwear_jax.training import feed
from ehrwear_jax.training.pretrain import Model


def examples(records: Path, fit: Path, model: Model, vocabulary: int = 0) -> tuple[Examples, BatchSpec]:
    """A model's examples of the training split, and the batches that its network is made for.

    Args:
      records, fit: folders that prepare wrote.
      vocabulary: tokens that the network has, as if the dataset had so many; 0: those of the records.
    """
    made = model.module.examples(RecordStore(records, fit, "train"), model.config, model.seed)
    spec = made.spec
    if vocabulary:
        spec = dataclasses.replace(spec, facts=dataclasses.replace(spec.facts, vocabulary=vocabulary))
    return made, spec


def batches(made: Examples, batch_size: int, n: int) -> list[Batch]:
    """The first n training batches."""
    return list(feed.train_batches(made, batch_size, n_steps=n))
