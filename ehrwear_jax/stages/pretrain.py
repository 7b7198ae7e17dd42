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
from ehrwear_jax.training import embedding
from ehrwear_jax.training.pretrain import Needed, pretrain


def missing(plan: Plan) -> list[str]:
    """Names of the networks that are not trained."""
    return [t.key for t in plan.trained() if not plan.pretrained(t).done]


def run(plan: Plan) -> None:
    """Trains what is missing, each to its last step or to config.train.stop_after."""
    # What is there, and where it lies, is decided by one process: another may see a file system that is behind, and
    # would look at every raw file, or read it, for the digests that folders are called by.
    work = distributed.from_first("networks", _work(plan) if distributed.is_first() else None)
    for trained in (t for t in plan.trained() if t.key in work):
        folder, records, fit, *needed = (plan.workdir.root / path for path in work[trained.key])
        if distributed.is_first():
            one(plan, trained)
        else:
            _train(plan, folder, trained, (records, fit), needed)


def one(plan: Plan, trained: Trained) -> None:
    """Trains one network, to its last step or to config.train.stop_after."""
    logging.info("  %s", trained.key)
    artifact = plan.pretrained(trained)
    _warn_of_others(artifact)
    with artifact.making() as folder:
        data = plan.records.folder, plan.fit(trained.fold).folder
        _, step = _train(plan, folder, trained, data, _needed_folders(plan, trained))
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
    """{network: [its folder, those of the records, of their fit, of what it needs], below the workdir}.

    Of the networks that are missing, but for those that need one that this run leaves unfinished.
    """
    folders, unfinished = dict[str, tuple[Path, ...]](), set[Trained]()
    for t in (t for t in plan.trained() if not plan.pretrained(t).done):
        train = plan.model(t).train
        waits = unfinished.intersection(plan.needed(t).values())
        if waits:
            logging.info("  %s waits for %s", t.key, min(other.key for other in waits))
        else:
            made = plan.pretrained(t).folder, plan.records.folder, plan.fit(t.fold).folder
            folders[t.key] = (*made, *_needed_folders(plan, t))
        if waits or (train.stop_after is not None and train.stop_after < train.steps):
            unfinished.add(t)
    return {key: [os.path.relpath(f, plan.workdir.root) for f in found] for key, found in folders.items()}


def _needed_folders(plan, trained):
    return [plan.pretrained(other).folder for other in plan.needed(trained).values()]


def _train(plan, folder, trained: Trained, data, needed_folders):
    train = plan.model(trained).train
    records, fit = data
    sizes = {"cache_bytes": train.cache_mib * 2**20, "file_cache_bytes": train.file_cache_mib * 2**20}
    store, needed = RecordStore(records, fit, **sizes), {}
    for (name, other), made in zip(plan.needed(trained).items(), needed_folders, strict=True):
        _, network, variables = embedding.restore(made, plan.model(other), store)
        needed[name] = Needed(network, variables)
    return pretrain(folder, plan.model(trained), store, plan.config.mesh, needed)


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
