"""Fine-tuned rows of the evaluate stage: <row>_<mode>, such as joint_lora, beside the frozen <row>."""

import dataclasses
import logging
from pathlib import Path

import numpy as np
import polars as pl

from ehrwear_jax import config as config_lib
from ehrwear_jax.runtime import files
from ehrwear_jax.stages import model
from ehrwear_jax.training import finetune

SPLITS = ("tuning", "held_out")


def predictions(config, workdir, fold, task, rows, features):
    """Predictions of every configured row and mode for one task; those that a stage before left are read.

    Each is kept in evaluate/finetune/<fold>/<task>/<row>_<mode>.npz, with a .json of what training was like.

    Args:
      rows: the task's labelled reads with their split and `at`, their place in the features.
      features: {row: float [N, D]}, as the embed stage wrote them.

    Returns:
      {"<row>_<mode>": {"tuning", "held_out": P(y = 1) or log-hazard, float64 [N] in the order of rows}}.
    """
    if config.finetune.tasks and task not in config.finetune.tasks:
        return {}
    folder, out = Path(workdir) / "evaluate" / "finetune" / fold / task, {}
    for row in config.finetune.rows or config.rows:
        names = {mode: f"{row}_{mode}" for mode in config.finetune.modes}
        missing = [mode for mode, name in names.items() if not (folder / f"{name}.npz").exists()]
        if missing:
            pretrained = model.restored(config, workdir, fold, row)
        for mode in missing:
            logging.info("  %s %s: %s", fold, task, names[mode])
            _finetune(config, folder / names[mode], mode, pretrained, rows, features[row])
        for name in names.values():
            with np.load(folder / f"{name}.npz") as saved:
                out[name] = {split: saved[split] for split in SPLITS}
    return out


def _finetune(config, path, mode, pretrained, rows, z_NxD):
    patients, params = pretrained
    reads = {s: rows.filter(pl.col("split") == s) for s in ("train", *SPLITS)}
    z_by_split = {s: z_NxD[reads[s]["at"].to_numpy()] for s in ("train", "tuning")}
    settings = config_lib.finetune_config(config, mode)
    found = finetune.finetune(patients, params, config_lib.model_options(config), reads, z_by_split, settings)
    about = {k: getattr(found, k) for k in ("n_trained", "best_step", "last_step", "history", "drift")}
    path.parent.mkdir(parents=True, exist_ok=True)
    about |= {"settings": dataclasses.asdict(settings)}
    files.write_json(path.with_name(f"{path.name}.json"), about, indent=1)
    with files.replacing(path.with_name(f"{path.name}.npz")) as partial, open(partial, "wb") as f:
        np.savez(f, **{s: found.predict(patients, reads[s], settings.batch_size) for s in SPLITS})
