"""Checkpoints of the training state; the only file that imports orbax."""

from pathlib import Path

import jax

try:
    from orbax.checkpoint import v1 as ocp
except ImportError:  # where the v1 API still lives before orbax 1.0
    from orbax.checkpoint.experimental import v1 as ocp


class Checkpoints:
    """Numbered checkpoints in a folder, saved in the background, the newest `keep` kept."""

    def __init__(self, folder, keep=2):
        Path(folder).mkdir(parents=True, exist_ok=True)
        policy = ocp.training.preservation_policies.LatestN(keep)
        self._checkpointer = ocp.training.Checkpointer(Path(folder).absolute(), preservation_policy=policy)

    def latest_step(self):
        """Step of the newest complete checkpoint, or None."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, step, state):
        """Starts saving a pytree of arrays; waits for the save before it."""
        self._checkpointer.save_checkpointables_async(step, {"state": state})

    def restore(self, step, like):
        """The state saved at `step`, laid out like the pytree `like` of arrays or ShapeDtypeStructs with shardings."""
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        return self._checkpointer.load_checkpointables(step, {"state": abstract})["state"]

    def wait(self):
        """Returns when what was saved is on disk."""
        self._checkpointer.wait()

    def close(self):
        self._checkpointer.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()
