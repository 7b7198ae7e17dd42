"""Declares everything that a run can set, and checks what concerns more than one part."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ehrwear_jax.config import families, options
from ehrwear_jax.config.data import ADAPTERS, CLINICAL, CohortConfig, DataConfig, PrepareConfig, SimulateConfig
from ehrwear_jax.config.evaluation import EmbedConfig, EvaluateConfig, InterpretConfig, ReportConfig
from ehrwear_jax.config.labels import LabelsConfig
from ehrwear_jax.config.training import CompileConfig, FinetuneConfig, MeshConfig, TrainConfig

# Names in results that no model may have: the true risk, the mean of a regression's labels, the resampling itself.
RESERVED = ("oracle", "training_mean", "bootstrap")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """One experiment. Each part checks itself; `check` looks at what concerns several."""

    name: str = "base"
    """Name of the experiment: of the default workdir and, in results, of the dataset."""
    seeds: tuple = options.within((0,), 0)
    """Each network is trained once per seed; the first one's is the model that is reported, the others tell how far
    results depend on it."""
    data: DataConfig = DataConfig()
    """Where the data come from."""
    simulate: SimulateConfig = SimulateConfig()
    """The simulated cohort of data.source synthetic."""
    labels: LabelsConfig = LabelsConfig()
    """Label tables that are made here."""
    prepare: PrepareConfig = PrepareConfig()
    """How raw tables become records."""
    cohort: CohortConfig = CohortConfig()
    """Inclusion criteria."""
    joint: dict = dataclasses.field(default_factory=dict)
    """Options of the family `joint` (models/joint/config.py) for all models of the family."""
    models: dict = dataclasses.field(default_factory=dict)
    """name -> {"family": name of a family, or the module of one outside the package, and options that differ}."""
    only: tuple = ()
    """Names of the models of `models` that this run is about; empty: all. A later run about others keeps what is
    made."""
    train: TrainConfig = TrainConfig()
    """Optimisation."""
    mesh: MeshConfig = MeshConfig()
    """Devices along each axis."""
    compile: CompileConfig = CompileConfig()
    """Of --stages=describe and compile."""
    embed: EmbedConfig = EmbedConfig()
    """How z is computed."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """The protocol."""
    finetune: FinetuneConfig = FinetuneConfig()
    """Fine-tuned models beside the frozen ones."""
    interpret: InterpretConfig = InterpretConfig()
    """What is looked into."""
    report: ReportConfig = ReportConfig()
    """The report."""

    def __post_init__(self) -> None:
        options.require_within("config", self)
        if not self.seeds:
            raise ValueError("config.seeds is empty; it must hold at least one seed")

    def family(self, model: str) -> str:
        """The family of a model."""
        return self.models[model].get("family", "joint")

    def model_config(self, model: str) -> Any:
        """The options of a model: its family's Config.

        Raises:
          ValueError: no such family, or an option that it has not.
        """
        given = getattr(self, self.family(model), {}) if self.family(model) in families.SHARED else {}
        own = {k: v for k, v in self.models[model].items() if k not in ("family", "train")}
        return families.config(self.family(model), options.merged(given, own), f"config.models.{model}")

    def model(self, name: str, seed: int) -> dict:
        """What training/pretrain.Model takes, for one of the seeds."""
        config, train = self.model_config(name), self.train_config(name)
        return {"name": name, "family": self.family(name), "config": config, "train": train, "seed": seed}

    def train_config(self, model: str) -> TrainConfig:
        """The options of a model's training: config.train, with what the model's entry says of it."""
        own = self.models[model].get("train", {})
        return options.build(TrainConfig, options.as_dict(self.train) | dict(own), f"config.models.{model}.train")

    @property
    def networks(self) -> list[str]:
        """Names of the models that are pretrained and embed."""
        return [name for name in self.models if families.has_latents(self.family(name))]

    @property
    def pretrained(self) -> list[str]:
        """Names of all models that are pretrained: networks and what they need, which comes before them."""
        out: list[str] = []
        for name in self.models:
            if families.is_network(self.family(name)):
                out += [n for n in (*self.needed(name), name) if n not in out]
        return out

    def needed(self, model: str, of: tuple[str, ...] = ()) -> list[str]:
        """Names of the networks that must be trained before a model: those that it needs, and what they need.

        Args:
          of: who asks, for the error.

        Raises:
          ValueError: a model needs one that is no network of the config, or needs itself.
        """
        out: list[str] = []
        for name in getattr(self.model_config(model), "needs", ()):
            if name not in self.models or not families.is_network(self.family(name)):
                raise ValueError(f"config.models.{model} needs {name!r}, which is no network of config.models")
            if name in (*of, model):
                raise ValueError(f"config.models.{name} needs itself, by way of {model}")
            out += [n for n in (*self.needed(name, (*of, model)), name) if n not in out]
        return out

    @property
    def probed(self) -> list[str]:
        """Names of the models on whose latents probes are fitted: networks and late fusion."""
        return [name for name in self.models if name in self.networks or self.family(name) == "late_fusion"]

    @property
    def stacked(self) -> list[str]:
        """Names of the models that combine the predictions of others."""
        return [name for name in self.models if self.family(name) == "stacked"]

    @property
    def folds(self) -> list[tuple[str, int | None]]:
        """[(name, fold or None)]."""
        n = self.data.n_folds
        return [(f"fold{k}", k) for k in range(n)] if n > 1 else [("all", None)]

    @property
    def user_tables(self) -> list[str]:
        """Paths of the tables that harmonise codes and values."""
        ranges = self.prepare.ranges_file
        return [*self.prepare.mapping_files, *([ranges] if ranges not in ("", CLINICAL) else [])]

    def to_json(self) -> str:
        """JSON of everything; `read` is the inverse."""
        return json.dumps(options.as_dict(self), indent=1)


def parse(values: Mapping[str, Any]) -> RunConfig:
    """A RunConfig from a ConfigDict or a nested dict.

    Raises:
      ValueError: an unknown key, a value of another type, a model that is none, or what a part's own check says.
    """
    values = values.to_dict() if hasattr(values, "to_dict") else values
    config = options.build(RunConfig, values)
    named = {"evaluate.label_models": config.evaluate.label_models, "interpret.models": config.interpret.models}
    for key, names in ({"only": config.only} | named).items():
        if unknown := [name for name in names if name not in config.models]:
            raise ValueError(f"config.{key} names {unknown[0]!r}, which is not in {sorted(config.models)}")
    if not config.only:
        return config
    models = {k: _of_these(v, config.only) for k, v in config.models.items() if k in config.only}
    labelled, seen = (tuple(name for name in names if name in models) for names in named.values())
    return dataclasses.replace(
        config,
        models=models,
        evaluate=dataclasses.replace(config.evaluate, label_models=labelled),
        interpret=dataclasses.replace(config.interpret, models=seen),
    )


def _of_these(entry, names):
    """A model's entry without what its groups have beside these models."""
    groups = [tuple(m for m in group if m in names) for group in entry.get("groups", ())]
    return {**entry, "groups": tuple(g for g in groups if g)} if groups else entry


def read(path: str | Path) -> RunConfig:
    """The config of a run from the JSON in its workdir."""
    return parse(json.loads(Path(path).read_text()))


# ------------------------------------------------------------------------------------------------ more than one part


def check(config: RunConfig) -> None:
    """Raises ValueError or FileNotFoundError with one sentence for a configuration that cannot run."""
    config.report.check_folders()
    _check_data(config)
    _check_cohort(config)
    for model in config.models:
        own = config.model_config(model)
        if model in config.pretrained:
            config.train_config(model)
        if hasattr(own, "check_prepared"):
            own.check_prepared(config.prepare)
    _check_names(config)


def _check_data(config):
    data = config.data
    if data.source == "meds" and not data.meds_dir and not config.report.predictions_dir:
        raise ValueError(
            "no data: set --config.data.meds_dir to a MEDS dataset (and --config.data.wearable_dir to wearable "
            "tables), or simulate a cohort with --config.data.source=synthetic"
        )
    if data.source != "meds" and (data.meds_dir or data.wearable_dir):
        raise ValueError(
            f"config.data.meds_dir or wearable_dir is set, and config.data.source is {data.source!r}, which makes its "
            "own: set --config.data.source=meds, or use configs/own.py"
        )
    if data.source in ADAPTERS and not data.source_dir:
        raise ValueError(
            f"no data: set --config.data.source_dir to the folder with the {data.source} files "
            f"(which, and where to get them: ehrwear_jax/data/sources/{data.source}.py or {data.source}/)"
        )
    for key in ("meds_dir", "wearable_dir", "labels_dir", "source_dir"):
        if getattr(data, key) and not os.path.isdir(getattr(data, key)):
            raise FileNotFoundError(f"config.data.{key}: there is no folder {getattr(data, key)}")
    changes_people = config.prepare.pseudonymise or config.prepare.shift_days or config.prepare.max_age_years
    if changes_people and data.source != "meds":
        raise ValueError(
            f"config.prepare asks for de-identification, which config.data.source {data.source!r} does not have: its "
            "raw tables would lie beside the result"
        )
    for path in config.user_tables:
        if not os.path.isfile(path):
            raise FileNotFoundError(f"config.prepare.mapping_files or ranges_file: there is no table {path}")


def _check_cohort(config):
    """Nobody may be selected, or ranked by age, by what is not known at time zero."""
    cohort, prepare, cuts = config.cohort, config.prepare, bool(config.cohort.cutoff or config.data.holdout_time)
    if cohort.selects_pretraining and not cuts and not config.report.predictions_dir:
        raise ValueError(
            "config.cohort has criteria but no date at which they are judged for pretraining: set "
            "--config.cohort.cutoff to a date, at which the records of training people end, or "
            "--config.cohort.pretraining=everybody to judge prediction times alone"
        )
    if cuts and prepare.shift_days:
        raise ValueError(
            "config.cohort.cutoff and config.data.holdout=temporal need true dates, which config.prepare.shift_days "
            "moves for every person by another number of days"
        )
    top = prepare.max_age_years
    if top and max(cohort.max_age_years, cohort.min_age_years) >= top:
        raise ValueError(
            f"config.prepare.max_age_years is {top:g}: older people cannot be told from people of that age, so "
            "config.cohort.min_age_years and max_age_years must lie below it"
        )


def _check_names(config):
    reference = config.evaluate.reference_model
    if reference and reference not in config.models:
        raise ValueError(f"config.evaluate names the model {reference!r}, which is not in {sorted(config.models)}")
    # others combine predictions themselves, or make none
    without = {*config.stacked, *config.pretrained}.difference(config.networks)
    unstacked = [name for name in config.models if name not in without]
    for model in config.models:
        known = unstacked if model in config.stacked else config.networks
        own = config.model_config(model)
        for member in getattr(own, "networks", getattr(own, "members", ())):
            if model in config.stacked and member in config.stacked:
                raise ValueError(f"config.models.{model} names {member!r}, which is stacked itself: name its members")
            if member not in known:
                raise ValueError(f"config.models.{model} names {member!r}, which is not in {sorted(known)}")
        for other in getattr(own, "latents", ()):
            if other not in config.probed:
                raise ValueError(f"config.models.{model} names {other!r}, which is not in {sorted(config.probed)}")
    for key, known in (("models", config.networks), ("tasks", config.evaluate.tasks)):
        if unknown := set(getattr(config.finetune, key)) - set(known):
            raise ValueError(f"config.finetune.{key} names {min(unknown)!r}, which is not in {sorted(known)}")
    tuned = {f"{model}_{mode}" for model in config.finetune.models or config.networks for mode in config.finetune.modes}
    if taken := sorted(set(config.models) & (tuned | set(RESERVED))):
        raise ValueError(f"config.models: {taken[0]!r} is the name of something else in results; choose another one")
    task = config.report.reliability_task
    if task and task not in config.evaluate.tasks and not config.report.predictions_dir:
        raise ValueError(f"config.report.reliability_task is {task!r}, which is not in config.evaluate.tasks")
