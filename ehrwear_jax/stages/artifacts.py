"""Identifies what a run makes: an artifact is its own part of the config and the digests of what it is made from.

| artifact | per | made from |
| :--- | :--- | :--- |
| raw | dataset | the files of the source, or the options of the simulation |
| tables | dataset | raw inputs, options of prepare |
| records | dataset | tables |
| eligibility | task | tables, labels of the task, inclusion criteria: which prediction times are in |
| fit | fold | records, how people are divided, criteria and cut-off of pretraining |
| labels | task (group) | raw inputs, options of the labels; or the user's files of the task |
| models | model, fold, seed | records and fit of the fold, the model's options, the models that it needs |
| embeddings | model, fold, seed | the model; a file per set of prediction times |
| finetuned | model, mode, task, fold | the model, labels, options of fine-tuning |
| features | fold | tables and fit, prediction times: hand-made features of tabular models |
| attributes | dataset | tables, prediction times: what is known of people beside their records |
| predictions | model, task | embeddings or features, labels, options of the probe |
| scores | task | predictions of all models, options of the protocol |
| interpret | model | the model, labels of the task, options |
| reports | config | scores, interpretation |

Adding a model, a task, a group of labels, a fold or a seed therefore makes what is new and touches nothing else.
Nothing is deleted or moved; what another config made stays where it is.
"""

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ehrwear_jax.runtime import files
from ehrwear_jax.stages import workdir as workdir_lib
from ehrwear_jax.stages.workdir import Workdir


class Paused(Exception):
    """What makes an artifact stops before it is whole, as it was asked to."""


@dataclasses.dataclass(frozen=True)
class Artifact:
    """One thing that a run makes.

    Attributes:
      workdir: where. kind, name: as in the table above.
      of: JSON-able dict of everything that its content depends on.
    """

    workdir: Workdir
    kind: str
    name: str
    of: Any

    @property
    def digest(self) -> str:
        """SHA-256 of its identity."""
        return files.digest([self.kind, self.name, self.of])

    @property
    def folder(self) -> Path:
        """Where it lies or will lie."""
        return self.workdir.artifact(self.kind, self.name, self.digest)

    @property
    def done(self) -> bool:
        """Whether it was made whole, and no file has gone since."""
        about = workdir_lib.read_about(self.folder)
        if not about.get("done") or about.get("digest") != self.digest:
            return False
        there = _counts(self.folder)
        return all(there.get(folder, 0) >= n for folder, n in about.get("files", {}).items())

    @property
    def seconds(self) -> float:
        """How long making it took, over all starts."""
        return workdir_lib.read_about(self.folder).get("seconds", 0.0)

    @contextlib.contextmanager
    def making(self) -> Iterator[Path]:
        """A block that makes it in its folder: done when the block ends, else resumed by a later one.

        A block that raises Paused ends without an exception, and is resumed by a later one too.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        spent, began = self.seconds, time.monotonic()
        about = {"kind": self.kind, "name": self.name, "digest": self.digest, "of": json.loads(_text(self.of))}
        workdir_lib.write_about(self.folder, about | {"done": False, "seconds": spent})
        done = False
        try:
            yield self.folder
            done = True
        except Paused:
            pass
        finally:
            seconds = spent + time.monotonic() - began
            counted = {"files": _counts(self.folder)} if done else {}
            workdir_lib.write_about(self.folder, about | {"done": done, "seconds": seconds} | counted)


def _counts(root):
    """{folder below an artifact's: number of files in it}, of what lasts."""
    found = {}
    for folder, _, names in os.walk(root):
        lasting = [n for n in names if n != workdir_lib.ABOUT and not n.startswith("lease.json")]
        if lasting := [n for n in lasting if ".partial" not in n]:
            found[os.path.relpath(folder, root)] = len(lasting)
    return found


def _text(value):
    return json.dumps(value, default=str)
