"""Feeds training: each process's share of each global batch, read ahead by threads or further processes."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from ehrwear_jax.models.family import Batch, Examples


@dataclasses.dataclass(frozen=True)
class Share:
    """Which rows of a global batch a process reads: some of `count` equal blocks, ascending.

    A row's place in the global batch, and so its dropout, is the same for any number of processes.
    """

    blocks: tuple[int, ...] = (0,)
    count: int = 1


def train_batches(
    examples: Examples,
    batch_size: int,
    share: Share = Share(),
    *,
    start_step: int = 0,
    n_steps: int | None = None,
    threads: int = 2,
    workers: int = 0,
) -> Iterator[Batch]:
    """This process's share of each global batch, from `start_step` on.

    Args:
      batch_size: rows of the global batch. n_steps: batches in all; None: without end.
      threads: that read ahead, in each process.
      workers: further processes that make the batches, each in turn; 0: this one does. They are spawned: a program
        that asks for them keeps its work under `if __name__ == "__main__"` and has its absl flags parsed.

    Raises:
      ValueError: batch_size does not divide into the blocks.
    """
    if batch_size % share.count:
        raise ValueError(f"a global batch of {batch_size} rows does not divide into {share.count} equal blocks")
    import grain  # loaded here: a start that finds everything done does not wait for it

    rows = batch_size // share.count
    n_steps = np.iinfo(np.int64).max // 2 if n_steps is None else n_steps
    places = tuple(block * rows + r for block in share.blocks for r in range(rows))
    make = _Batches(examples, batch_size, places)
    dataset = grain.MapDataset.range(n_steps).map(make)[start_step:]
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * max(threads, 1))
    dataset = dataset.to_iter_dataset(options)
    if workers:
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2))
    return iter(dataset)


@dataclasses.dataclass(frozen=True)
class _Batches:
    """step -> the rows at some places of that step's global batch; a class, since workers unpickle it."""

    examples: Examples
    batch_size: int
    places: tuple[int, ...]

    def __call__(self, step):
        batch = self.examples.spec.empty(len(self.places))
        self.examples.fill_rows(batch, [int(step) * self.batch_size + place for place in self.places])
        return batch
