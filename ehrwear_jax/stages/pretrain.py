"""Runs the pretrain stage: every network of the config, on each fold, with each seed. All processes of a job do it."""

import json
import logging
import os
from pathlib import Path

from ehrwear_jax.data.store import RecordStore
from ehrwear_jax.runtime import checkpoint_manifest, distributed, run_dir
from ehrwear_jax.stages import workdir as workdir_lib
from ehrwear_jax.stages.artifacts import Artifact, Paused
from ehrwear_jax.stages.plan import Plan, Trained
from ehrwear_jax.training.pretrain import pretrain


def missing(plan: Plan) -> list[str]:
    """Names of the networks that are not trained."""
    return [t.key for t in plan.trained() if not plan.pretrained(t).done]


def run(plan: Plan) -> None:
    """Trains what is missing, each to its last step or to config.train.stop_after."""
    # What is there, and where it lies, is decided by one process: another may see a file system that is behind, and
    # would look at every raw file, or read it, for the digests that folders are called by.
    work = distributed.from_first("networks", _work(plan) if distributed.is_first() else None)
    for trained in (t for t in plan.trained() if t.key in work):
        folder, *data = (plan.workdir.root / path for path in work[trained.key])
        if not distributed.is_first():
            _train(plan, folder, trained, data)
            continue
        logging.info("  %s", trained.key)
        artifact = plan.pretrained(trained)
        _warn_of_others(artifact)
        with artifact.making() as folder:
            _, step = _train(plan, folder, trained, data)
            train = plan.model(trained).train
            if train.stop_after is not None and train.stop_after <= step < train.steps:
                raise Paused


def _work(plan):
    """{network that is missing: [its folder, that of the records, that of their fit], below the workdir}."""
    folders = {
        t.key: (plan.pretrained(t).folder, plan.records.folder, plan.fit(t.fold).folder)
        for t in plan.trained()
        if not plan.pretrained(t).done
    }
    return {key: [os.path.relpath(f, plan.workdir.root) for f in found] for key, found in folders.items()}


def _train(plan, folder, trained: Trained, data):
    return pretrain(folder, plan.model(trained), RecordStore(*data), plan.config.mesh)


def _warn_of_others(artifact: Artifact) -> None:
    """Says where a pretraining of the same name was begun with other settings, and not finished; it stays there."""
    if artifact.folder.exists():
        return
    for folder in sorted(artifact.folder.parent.glob(f"{Path(artifact.name).name}-*")):
        about = workdir_lib.read_about(folder)
        step = max(checkpoint_manifest.steps(folder / "checkpoints"), default=0)
        if step and about and not about["done"] and about["name"] == artifact.name:
            changed = run_dir.difference(about["of"], json.loads(json.dumps(artifact.of, default=str)))[:8]
            logging.warning(
                "  %s was begun before with other settings or data (%s) and stopped at step %d; it is kept in %s, and "
                "this config's starts anew",
                artifact.name,
                "; ".join(changed),
                step,
                folder,
            )
