"""Chooses the peak learning rate of every network from a few, by the loss of tuning people.

    python -m ehrwear_jax.main --config=configs/paper.py:demo --learning_rates=0.333,1,3

Each network is trained with every multiple of its rate, with the first seed on the first fold; a network that another
one needs is chosen first, and stands as chosen where that one is trained. What is trained so lies among the other
models of the workdir: main finds it again with the flags that are printed, and a search that was ended goes on. The
rate of the reference model becomes that of all models that were not searched and have none of their own, so that an
ablation differs from it in nothing else: search the models that are compared, by --config.only, and not ablations.
"""

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from ehrwear_jax.config import RunConfig
from ehrwear_jax.runtime import distributed, exit_codes, files, run_dir
from ehrwear_jax.stages import pretrain, runner
from ehrwear_jax.stages.plan import Plan
from ehrwear_jax.stages.workdir import Workdir

LOSS = "validation/loss/total"


def search(config: RunConfig, workdir: str | Path, factors: Sequence[float]) -> dict[str, dict[float, float]]:
    """Trains with every rate, logs what was found with the flags that choose it, and writes both into the workdir.

    Args:
      config: as main takes it; config.only names the models that are searched, if not all.
      workdir: of the run.
      factors: of each network's peak learning rate; rates are rounded to three digits.

    Returns:
      {model: {rate: loss of tuning people that the training ends with, or with patience its lowest}}.

    Raises:
      ValueError: fewer than two factors, one that is not positive, or several processes.
    """
    if len(set(factors)) < 2 or not all(0 < f < math.inf for f in factors):
        raise ValueError(f"--learning_rates={','.join(f'{f:g}' for f in factors)}: at least two positive factors")
    if distributed.several():
        raise ValueError("--learning_rates: a search is done by a job of one process")
    paths, found, chosen = Workdir(workdir), dict[str, dict[float, float]](), dict[str, float]()
    runner.run(config, workdir, ("prepare",))
    with run_dir.Lease(paths.root), runner.interruptible():
        for name in config.pretrained:
            rate = config.train_config(name).peak_learning_rate
            rates = [float(f"{rate * factor:.3g}") for factor in sorted(set(factors))]
            found[name] = {r: _loss(Plan(with_rates(config, chosen | {name: r}), paths), name) for r in rates}
            chosen[name] = best(found[name])
            told = ", ".join(f"{r:g} {loss:.5g}" for r, loss in found[name].items())
            logging.info("%s: loss of tuning people by rate %s; chosen %g", name, told, chosen[name])
            flags = flags_of(config, chosen)
            files.write_json(paths.learning_rates, {"losses": found, "chosen": chosen, "flags": flags}, indent=1)
    logging.info("%s", " ".join(flags))
    return found


def flags_of(config: RunConfig, chosen: Mapping[str, float]) -> list[str]:
    """Flags of main by which models have the chosen rates."""
    flags = [f"--config.models.{name}.train.peak_learning_rate={rate:g}" for name, rate in chosen.items()]
    if (reference := config.evaluate.reference_model) in chosen:
        flags.append(f"--config.train.peak_learning_rate={chosen[reference]:g}")
    return flags


def best(loss_by_rate: Mapping[float, float]) -> float:
    """The rate of the lowest loss, of equal ones the lowest; one that is not finite never is.

    Raises:
      ValueError: none is finite.
    """
    finite = {rate: loss for rate, loss in loss_by_rate.items() if math.isfinite(loss)}
    if not finite:
        raise ValueError(f"no learning rate of {sorted(loss_by_rate)} gives a finite loss of tuning people")
    return min(sorted(finite), key=finite.__getitem__)


def with_rates(config: RunConfig, rates: Mapping[str, float]) -> RunConfig:
    """The config whose models have these peak learning rates, and are validated."""
    models = dict(config.models)
    for name, rate in rates.items():
        own = dict(models[name].get("train", {})) | {"peak_learning_rate": rate}
        if not config.train_config(name).validate_batches:
            own["validate_batches"] = config.train.validate_batches
        models[name] = {**models[name], "train": own}
    return dataclasses.replace(config, models=models)


def _loss(plan, name):
    """The loss of tuning people that a network's training ends with; infinite where it diverged."""
    artifact, train = plan.pretrained(plan.first(name)), plan.config.train_config(name)
    if not artifact.done:
        try:
            pretrain.one(plan, plan.first(name))
        except exit_codes.NonFiniteStep as error:
            logging.warning("  %s with a rate of %g: %s", name, train.peak_learning_rate, error)
            return math.inf
    losses = [x[LOSS] for x in run_dir.read_lines(artifact.folder / "metrics.jsonl") if LOSS in x]
    if not losses:
        raise ValueError(f"{artifact.folder} was never validated: config.train.validate_batches must not be 0")
    return min(losses) if train.patience else losses[-1]
