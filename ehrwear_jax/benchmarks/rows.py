"""Makes the training rows of a model from prepared records and a fit, for benchmarks."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ehrwear_jax.data.store import RecordStore
from ehrwear_jax.models.family import Batch, BatchSpec, Examples
from ehrwear_jax.models.joint.batch import slot_sizes
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


def slots_filled(made: Sequence[Batch], n_parts: int) -> float:
    """Share of the slots for windows that the joint model encodes in which there is a window; see slot_sizes."""
    used = encoded = 0
    for batch in made:
        windows_B = np.count_nonzero(batch["window_position"] >= 0, axis=1)
        n_rows, n_slots = batch["window_position"].shape
        used += windows_B.sum()
        encoded += n_rows * next(size for size in slot_sizes(n_slots, n_parts) if size >= windows_B.max())
    return used / max(encoded, 1)


def batches(made: Examples, batch_size: int, n: int) -> list[Batch]:
    """The first n training batches."""
    return list(feed.train_batches(made, batch_size, n_steps=n))
