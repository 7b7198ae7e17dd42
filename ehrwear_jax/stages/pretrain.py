"""Runs the pretrain stage: every network of the config, on each fold, with each seed. All processes of a job do it."""

import json
import logging
import os
from pathlib import Path

from ehrwear_jax.data.store import RecordStore
from ehrwear_jax.runtime import checkpoint_manifest, distributed, run_dir, status
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
        if distributed.is_first():
            one(plan, trained)
        else:
            _train(plan, folder, trained, data)


def one(plan: Plan, trained: Trained) -> None:
    """Trains one network, to its last step or to config.train.stop_after."""
    logging.info("  %s", trained.key)
    artifact = plan.pretrained(trained)
    _warn_of_others(artifact)
    with artifact.making() as folder:
        _, step = _train(plan, folder, trained, [plan.records.folder, plan.fit(trained.fold).folder])
        train = plan.model(trained).train
        if train.stop_after is not None and train.stop_after <= step < train.steps:
            raise Paused


def folder_of(plan: Plan, trained: Trained) -> Path:
    """Where a network is trained."""
    return plan.pretrained(trained).folder


def where(plan: Plan, trained: Trained) -> str:
    """Where a training stands, in words: step, loss, rate and what is left; "" before its first word."""
    made = folder_of(plan, trained)
    return status.training_lines(made)[0] if (made / run_dir.HEARTBEAT).exists() else ""


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
    if workdir_lib.read_about(artifact.folder):
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
