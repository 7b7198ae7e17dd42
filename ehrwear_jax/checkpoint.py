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
        self._folder = Path(folder).absolute()
        self._folder.mkdir(parents=True, exist_ok=True)
        policy = ocp.training.preservation_policies.LatestN(keep)
        self._checkpointer = ocp.training.Checkpointer(self._folder, preservation_policy=policy)

    def latest_step(self):
        """Step of the newest complete checkpoint, or None."""
        self.wait()
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, step, state):
        """Starts saving a pytree of arrays; waits for the save before it.

        Raises:
          RuntimeError: orbax declined, as it does for a step that is not after the newest one.
        """
        self.wait()  # orbax skips, without a word, a save that is asked for while another one runs
        if self._checkpointer.save_checkpointables_async(step, {"state": state}) is None:
            raise RuntimeError(f"{self._folder}: step {step} was not saved; the newest is {self.latest_step()}")

    def restore(self, step, like):
        """The state saved at `step`, laid out like the pytree `like` of arrays or ShapeDtypeStructs with shardings.

        Raises:
          FileNotFoundError: there is no such checkpoint.
          ValueError: it holds another structure or other shapes.
        """
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        try:
            return self._checkpointer.load_checkpointables(step, {"state": abstract})["state"]
        except KeyError as error:  # orbax's NoEntryError, raised from what did not fit
            reason = str(error.__cause__ or error)
            raise ValueError(f"{self._folder}: checkpoint {step} is of another model: {reason}") from error

    def wait(self):
        """Returns when what was saved is on disk."""
        self._checkpointer.wait()

    def close(self):
        self._checkpointer.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()
