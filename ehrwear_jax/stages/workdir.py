"""Knows every path of a workdir.

    inputs.json                     digests of raw inputs, remembered by size and time of modification
    configs/<digest>.json           every config that ran here; config.json is a link to the last one whose command
                                    ended well, or to the first one
    <kind>/<name>-<digest>/         artifacts (artifacts.py): made once, never changed, moved or deleted
        artifact.json               what it is, what it was made of, how long that took; whether it is done
    report                          a link to the last report

Kinds: raw (a simulated or adapted dataset), tables, records, eligibility, fit, labels, models, embeddings, finetuned,
features, attributes, predictions, scores, interpret, reports.
"""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from ehrwear_jax.config import RunConfig, read
from ehrwear_jax.runtime import files

CONFIG, REPORT, INPUTS, ABOUT = "config.json", "report", "inputs.json", "artifact.json"


class Workdir:
    """Paths below a run's folder."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    @property
    def inputs(self) -> Path:
        """Digests of raw inputs."""
        return self.root / INPUTS

    def artifact(self, kind: str, name: str, digest: str) -> Path:
        """The folder of an artifact; a name may have parts, such as joint/all."""
        return self.root / kind / f"{name}-{digest[:8]}"

    @property
    def config(self) -> Path:
        """The last config."""
        return self.root / CONFIG

    @property
    def learning_rates(self) -> Path:
        """What a search for learning rates found (learning_rates.py)."""
        return self.root / "learning_rates.json"

    @property
    def report(self) -> Path:
        """The last report."""
        return self.root / REPORT

    def config_file(self, config: RunConfig) -> Path:
        """Where a config is kept."""
        return self.root / "configs" / f"{files.digest(config.to_json())[:8]}.json"

    def keep_config(self, config: RunConfig) -> None:
        """Keeps a config that begins to run; it is the last one if there was none before it."""
        path = self.config_file(config)
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            files.write_text(path, config.to_json())
        if not self.config.exists():
            link(self.config, path)

    def link_config(self, config: RunConfig) -> None:
        """Links a config that was kept as the last one."""
        link(self.config, self.config_file(config))

    def read_config(self) -> RunConfig:
        """The last config."""
        return read(self.config)


def link(path: Path, target: Path) -> None:
    """Points a link to a target beside or below it, in the place of an older link."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with contextlib.suppress(FileNotFoundError):
        partial.unlink()
    partial.symlink_to(os.path.relpath(target, path.parent), target_is_directory=target.is_dir())
    os.replace(partial, path)


def write_npz(path: Path, **arrays: Any) -> None:
    """Writes an .npz file whole or not at all."""
    with files.replacing(path) as partial, open(partial, "wb") as f:
        np.savez(f, **arrays)


def read_about(folder: Path) -> dict:
    """What an artifact's folder says of itself, {} if there is none."""
    return files.read_json(folder / ABOUT, {})


def write_about(folder: Path, about: dict) -> None:
    """Notes what an artifact is."""
    files.write_text(folder / ABOUT, json.dumps(about, indent=1, default=str))
