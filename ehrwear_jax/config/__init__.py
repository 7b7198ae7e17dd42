"""The default configuration and its translation into the frozen dataclasses that the rest of the package takes.

configs/*.py start from `base()` and change what their experiment needs; only `stages` and `main` see a ConfigDict.
"""

import dataclasses
import json
import os

import ml_collections

from ehrwear_jax.config.data import CohortConfig, PrepareConfig, SimulateConfig
from ehrwear_jax.config.labels import PhysiologyConfig

# Parts above this one are imported where they are needed: data imports config.data, and must not import them with it.

SOURCES = ("synthetic", "meds", "nafld", "nhanes")
_MODEL_FROM_DATA = (
    "vocabulary",
    "steps",
    "channels",
    "patch_steps",
    "future_windows",
    "future_codes",
    "horizons",
    "later_rates",
    "recalled_tokens",
    "further_summaries",
    "pairs",
    "adapter_width",  # which fine-tuning adds to a pretrained model
)


_OFF = (0.0, 0.0, 0)
# what the paper compares: {name: {option: value}}, for `apply_variants`
VARIANTS = {
    # Table 4: without the predictions across modalities, and with nothing else that draws the two together; half of
    # each wearable window hidden; time in bins of a day
    "no_wear_to_ehr": {"train.weights.wear_to_ehr": _OFF},
    "no_ehr_to_wear": {"train.weights.ehr_to_wear": _OFF},
    "no_cross_modal": {
        **{f"train.weights.{t}": _OFF for t in ("wear_to_ehr", "ehr_to_wear", "contrast")},
        "context.pairs": 0,
    },
    "half_masked": {"context.wear_mask": 0.5},
    "day_bins": {"model.day_bins": True},
    # appendix A.6: other encodings of time, other time kernels
    "fourier": {"model.time_encoding": "log_linear"},
    "gaussian": {"model.time_encoding": "gaussian"},
    **{f"r{n}": {"model.kernel": "mixture", "model.n_components": n} for n in (1, 2, 4, 8)},
    "single_exponential": {"model.kernel": "mixture", "model.n_components": 1},
    "rational_quadratic": {"model.kernel": "rational_quadratic"},
    "no_time_kernel": {"model.kernel": "none"},
    # section 3.3: the regularisers, and the readout of the wearable window
    "contrast": {"context.pairs": 8, "train.weights.contrast": (0.05, 0.05, 0)},
    "no_contrast": {"context.pairs": 0, "train.weights.contrast": _OFF},
    "fixed_temperature": {"model.learn_temperature": False},
    "temporal_readout": {"model.pool": "temporal"},
    # section 3.4; the other terms are means per prediction, where the ELBO sums over the steps of a window
    "elbo": {"model.posterior": "normal", "train.weights.latent_kl": (0.0, 0.01, 50_000)},
    # the terms of the paper's sections 3.3 and 3.5 only, of those that make z a summary of the record
    "paper_losses": {f"train.weights.{t}": _OFF for t in ("ehr_next", "ehr_later", "ehr_recall", "wear_recall")},
    # no loss across modalities shapes z; their heads are trained all the same
    "detached": {"model.detach_cross_modal": True},
    "averaged": {"train.ema_decay": 0.9999},
}


def variants(argument, file, own=()):
    """The names in the argument of a config file, joined by "+": its own ones and those of VARIANTS.

    Raises:
      ValueError: another name.
    """
    names = [v for v in argument.split("+") if v]
    if unknown := [v for v in names if v not in own and v not in VARIANTS]:
        known = ", ".join((*own, *VARIANTS))
        raise ValueError(f"configs/{file} has no variant {unknown[0]!r}; there are {known}")
    return names


def apply_variants(config, names):
    """Sets what VARIANTS says for each name in it, in this order, and appends all names to that of the config.

    Ramps that are longer than the run's first tenth, as in a small experiment, are cut to it.
    """
    for name in names:
        for option, value in VARIANTS.get(name, {}).items():
            part, _, key = option.rpartition(".")
            target = config
            for step in part.split("."):
                target = target[step]
            if part == "train.weights":
                value = (*value[:2], min(value[2], config.train.steps // 10))
            target[key] = value
    config.name = "-".join([config.name, *names])


def _defaults(cls, leave_out=()):
    """ConfigDict of a dataclass's defaults."""
    out = ml_collections.ConfigDict()
    for field in dataclasses.fields(cls):
        if field.name not in leave_out and field.default is not dataclasses.MISSING:
            # a placeholder keeps the type of an optional value open
            out[field.name] = field.default
        elif field.name not in leave_out and field.default_factory is not dataclasses.MISSING:
            out[field.name] = ml_collections.ConfigDict(field.default_factory())
    return out


def base():
    """Everything that a run can set, with the defaults of the paper's appendix A.4 where it has one."""
    from ehrwear_jax.models.joint.context import ContextConfig
    from ehrwear_jax.models.joint.network import ModelConfig
    from ehrwear_jax.training.finetune import FinetuneConfig
    from ehrwear_jax.training.sharding import MeshConfig
    from ehrwear_jax.training.train import TrainConfig

    config = ml_collections.ConfigDict()
    config.name = "base"
    config.seed = 0

    config.data = ml_collections.ConfigDict()
    config.data.source = "meds"  # synthetic: simulate; meds: your own data; nafld, nhanes: adapters of public data
    config.data.meds_dir = ""  # MEDS dataset: data/, metadata/
    config.data.wearable_dir = ""  # wearable tables; empty: none
    config.data.labels_dir = ""  # label tables <task>.parquet; empty: hospitalisation labels are made from the events
    config.data.source_dir = ""  # the CSV files of nafld or nhanes
    config.data.n_folds = 0  # > 1: out-of-fold evaluation by metadata/subject_folds.parquet
    config.simulate = _defaults(SimulateConfig)
    config.labels = ml_collections.ConfigDict(
        {
            "horizons_days": (30, 90, 180, 365),
            "per_subject": 2,
            "min_history_days": 180.0,
            "after_wearable": True,
            "admission_code_prefix": "HOSPITAL_ADMISSION",
            # name -> what the codes of a diagnosis group start with; its first onset is labelled
            "diagnosis_groups": {},
        }
    )
    config.labels.physiology = _defaults(PhysiologyConfig)
    config.prepare = _defaults(PrepareConfig)
    config.prepare.workers = 0  # one per core
    config.cohort = _defaults(CohortConfig)
    config.context = _defaults(ContextConfig, leave_out=("modalities",))
    config.model = _defaults(ModelConfig, leave_out=_MODEL_FROM_DATA)
    config.model.attention = ml_collections.config_dict.placeholder(str)
    config.train = _defaults(TrainConfig, leave_out=("seed", "weights", "stop_after"))
    config.train.stop_after = ml_collections.config_dict.placeholder(int)
    config.train.update({"steps": 500_000, "batch_size": 32, "peak_learning_rate": 1e-4, "warmup_steps": 10_000})
    # (start, end, steps of the ramp); the curriculum of appendix A.4
    config.train.weights = ml_collections.ConfigDict(
        {
            "ehr_masked": (1.0, 1.0, 0),
            "ehr_next": (1.0, 1.0, 0),
            "ehr_later": (1.0, 1.0, 0),
            "ehr_recall": (1.0, 1.0, 0),
            "wear_recall": (1.0, 1.0, 0),
            "wear_masked": (1.0, 1.0, 0),
            "wear_ahead": (1.0, 1.0, 0),
            "wear_to_ehr": (0.2, 1.0, 50_000),
            "ehr_to_wear": (0.1, 0.1, 0),
            "contrast": (0.0, 0.0, 0),
            "content_norm": (0.0, 0.0, 0),
            "latent_kl": (0.0, 0.0, 0),
        }
    )
    config.mesh = _defaults(MeshConfig)  # devices along each axis; -1: the rest
    config.topology = "v5e:16x16"  # the TPU slice that --stages=compile compiles for
    config.compile = ml_collections.ConfigDict(
        {
            "vocabulary": 32_768,  # which data decide; assumed by --stages=compile and describe
        }
    )
    # the models to pretrain: row name -> modalities that it is given
    config.rows = ml_collections.ConfigDict({"joint": ("ehr", "wear"), "ehr_only": ("ehr",), "wear_only": ("wear",)})
    config.embed = ml_collections.ConfigDict({"batch_size": 32, "trajectories": 3, "trajectory_points": 120})
    config.evaluate = ml_collections.ConfigDict(
        {
            "tasks": (),
            "n_resamples": 1000,
            "reference_row": "joint",
            "late_fusion": ("ehr_only", "wear_only"),
            "tabular": True,
            "tabular_by_modality": True,
            "tabular_codes": 64,
            "probe": "exact",  # exact: solved to the optimum; adam: trained as in appendix A.4, over probe_seeds
            "probe_hidden": 0,  # adam: units of a hidden layer, 0 for a linear probe
            "probe_seeds": (0, 1, 2, 3, 4),
            "sensitivity": 0.8,  # of the confusion matrix; its threshold is chosen on the tuning split
            "horizons_days": (30.0, 90.0, 180.0, 365.0),  # of time-to-event tasks: AUC(t), Brier(t)
            "age_edges": (50.0, 65.0),
            "sex_prefixes": ("GENDER//", "SEX//"),
            "min_patients": 20,  # smaller subgroups are suppressed, and those with fewer patients of a class than
            "min_per_class": 10,
            "label_fractions": (0.01, 0.1, 1.0),  # of the training patients; empty: no label efficiency
            "label_draws": 5,
            "label_tasks": (),  # binary tasks that are fitted on fractions; empty: the last one of `tasks`
        }
    )
    # rows beside the frozen ones, named <row>_<mode>; no modes, none
    config.finetune = _defaults(FinetuneConfig, leave_out=("mode", "seed"))
    config.finetune.update({"modes": (), "rows": (), "tasks": ()})  # rows, tasks: empty for all that are evaluated
    # geometry, robustness and mechanisms of what was trained; 0 or an empty tuple leaves a part out
    config.interpret = ml_collections.ConfigDict(
        {
            "enabled": True,
            "task": "",  # a binary task; empty: report.reliability_task, else the first binary one
            "max_reads": 0,  # held-out reads that are read again under every condition; 0: all
            "histories_days": (7.0, 30.0, 90.0),
            "noise_db": 6.0,
            "missing_share": 0.5,
            "slice_days": 30.0,
            "slices": 6,
            "geometry_people": 500,
            "n_permutations": 200,
            "dropout_samples": 10,
            "mechanism_people": 2000,
            "event_prefixes": ("HOSPITAL_ADMISSION",),
            "drug_prefixes": ("ATC//", "RX//", "MEDICATION//"),
            "raised_channel": "heart_rate",
            "raised_sd": 1.0,
            "precursor_channels": ("rmssd", "hrv", "heart_rate", "activity"),
            "response_channels": ("rmssd", "hrv", "heart_rate"),  # the first that there is stands for HRV
            "people": 3,
            "gradient_steps": 32,
            "individuals": False,  # explain single people of cohorts that are not simulated
        }
    )
    config.report = ml_collections.ConfigDict(
        {
            "title": "ehrwear_jax",
            "reliability_task": "",
            # <task>/<row>.parquet in the MEDS prediction schema, of any model: --stages=report needs nothing else
            "predictions_dir": "",
            "tuning_dir": "",  # the same of the tuning split: chooses the thresholds of the confusion matrices
            "individuals": False,  # draw single people of cohorts that are not simulated
        }
    )
    config.lock()  # a misspelt key is an error, not a new key
    config.rows.unlock()
    config.labels.diagnosis_groups.unlock()
    config.prepare.segments.unlock()
    return config


def read(path):
    """The config of a run from the config.json in its workdir."""
    with open(path) as f:
        return read_dict(json.load(f))


def read_dict(values):
    """The config of what JSON holds."""
    return ml_collections.ConfigDict(_with_tuples(values))


def _with_tuples(value):
    """JSON knows lists only."""
    if isinstance(value, dict):
        return {k: _with_tuples(v) for k, v in value.items()}
    return tuple(_with_tuples(v) for v in value) if isinstance(value, list) else value


def prepare_config(config):
    return PrepareConfig(**config.prepare.to_dict())


def physiology_config(config):
    return PhysiologyConfig(**config.labels.physiology)


def cohort_config(config):
    return CohortConfig(**config.cohort)


def user_tables(config):
    """Paths of the tables that harmonise codes and values."""
    return [*config.prepare.mapping_files, *([config.prepare.ranges_file] if config.prepare.ranges_file else [])]


def simulator_config(config):
    return SimulateConfig(**config.simulate)


def reference_model(config, modalities=None):
    """The row of reference or, where that is no single model, the first of those with most modalities; None of none.

    modalities: row -> what it is given, where that is not what config.rows says.
    """
    if config.evaluate.reference_row in config.rows:
        return config.evaluate.reference_row
    return max(config.rows, key=lambda r: len(modalities(r) if modalities else config.rows[r]), default=None)


def context_config(config, row):
    """Without EHR a row has room for no more tokens than windows: others would stay empty."""
    from ehrwear_jax.models.joint.context import ContextConfig

    modalities, options = tuple(config.rows[row]), dict(config.context)
    if "ehr" not in modalities:
        options |= {name: min(options[name], options["windows"]) for name in ("tokens", "context_tokens")}
    return ContextConfig(modalities=modalities, **options)


def model_options(config):
    return dict(config.model)


def train_config(config):
    from ehrwear_jax.training.schedules import Ramp
    from ehrwear_jax.training.train import TrainConfig

    options = {k: v for k, v in config.train.items() if k != "weights"}
    weights = {k: Ramp(*v) for k, v in config.train.weights.items()}
    return TrainConfig(seed=config.seed, weights=weights, **options)


def finetune_config(config, mode):
    from ehrwear_jax.training.finetune import FinetuneConfig

    options = {k: v for k, v in config.finetune.items() if k not in ("modes", "rows", "tasks")}
    return FinetuneConfig(mode=mode, seed=config.seed, **options)


def mesh_config(config):
    from ehrwear_jax.training.sharding import MeshConfig

    return MeshConfig(**config.mesh)


def folds(config):
    """[(folder name, fold or None)]."""
    n = config.data.n_folds
    return [(f"fold{k}", k) for k in range(n)] if n > 1 else [("all", None)]


def check(config):
    """Raises ValueError or FileNotFoundError with one sentence for a configuration that cannot run."""
    from ehrwear_jax.data.prepare import deidentify, workers
    from ehrwear_jax.training.finetune import MODES

    data = config.data
    for key in ("predictions_dir", "tuning_dir"):
        if config.report[key] and not os.path.isdir(config.report[key]):
            raise FileNotFoundError(f"config.report.{key}: there is no folder {config.report[key]}")
    if config.evaluate.probe not in ("exact", "adam"):
        raise ValueError(f"config.evaluate.probe is {config.evaluate.probe!r}; it can be exact or adam")
    if data.source not in SOURCES:
        raise ValueError(f"config.data.source is {data.source!r}; it can be {', '.join(SOURCES)}")
    if data.source == "meds" and not data.meds_dir and not config.report.predictions_dir:
        raise ValueError(
            "no data: set --config.data.meds_dir to a MEDS dataset (and --config.data.wearable_dir to wearable "
            "tables), or simulate a cohort with --config.data.source=synthetic"
        )
    if data.source in ("nafld", "nhanes") and not data.source_dir:
        raise ValueError(
            f"no data: set --config.data.source_dir to the folder with the {data.source} CSV files "
            f"(where to get them: ehrwear_jax/data/{data.source}.py)"
        )
    for key in ("meds_dir", "wearable_dir", "labels_dir", "source_dir"):
        if data[key] and not os.path.isdir(data[key]):
            raise FileNotFoundError(f"config.data.{key}: there is no folder {data[key]}")
    if deidentify.of(prepare_config(config)).active and data.source != "meds":
        raise ValueError(
            f"config.prepare asks for de-identification, which config.data.source {data.source!r} does not have: its "
            "raw tables would lie beside the result"
        )
    for path in user_tables(config):
        if not os.path.isfile(path):
            raise FileNotFoundError(f"config.prepare.mapping_files or ranges_file: there is no table {path}")
    workers.check(config.prepare.scheduler)
    _check_raw(config)
    _check_training(config)
    for row in (
        *config.evaluate.late_fusion,
        *([config.evaluate.reference_row] if config.evaluate.reference_row else []),
    ):
        if row not in config.rows and row not in ("late_fusion",):
            raise ValueError(
                f"config.evaluate names the row {row!r}, which is not in config.rows {sorted(config.rows)}"
            )
    for key, known in (("rows", config.rows), ("tasks", config.evaluate.tasks), ("modes", MODES)):
        if unknown := set(config.finetune[key]) - set(known):
            raise ValueError(f"config.finetune.{key} names {min(unknown)!r}, which is not in {sorted(known)}")
    external = config.report.predictions_dir
    if (task := config.report.reliability_task) and task not in config.evaluate.tasks and not external:
        raise ValueError(f"config.report.reliability_task is {task!r}, which is not in config.evaluate.tasks")


def _check_raw(config):
    from ehrwear_jax.data.prepare import specs

    known = specs.segment_specs(prepare_config(config))
    keys = (("context", "raw_segments"), ("context", "raw_windows"), ("model", "raw_width"))
    parts = {f"{part}.{name}": config[part][name] for part, name in keys}
    if any(parts.values()) and not all(parts.values()):
        said = ", ".join(f"config.{name} is {value!r}" for name, value in parts.items())
        raise ValueError(f"{said}: set all three, to have raw windows and their encoder, or none")
    if not any(parts.values()):
        return
    name, options = config.context.raw_segments, config.context
    if name not in known:
        raise ValueError(f"config.context.raw_segments is {name!r}; config.prepare.segments has {sorted(known)}")
    if known[name].seconds > 60 * config.prepare.step_minutes:
        raise ValueError(
            f"config.prepare.segments.{name}.seconds is {known[name].seconds:g}: the joint model's raw windows must "
            f"fit into a step of config.prepare.step_minutes, {config.prepare.step_minutes}"
        )
    if options.raw_windows < options.windows:
        raise ValueError(
            f"config.context.raw_windows is {options.raw_windows}; it must be at least config.context.windows, "
            f"{options.windows}, so that each wearable window has room for one"
        )


def _check_training(config):
    weighted = {name for name, (start, end, _) in config.train.weights.items() if start or end}
    if "contrast" in weighted and not config.context.pairs:
        raise ValueError("config.train.weights.contrast needs pairs to align: set config.context.pairs")
    if ("latent_kl" in weighted) != (config.model.posterior == "normal"):
        raise ValueError(
            f"config.model.posterior is {config.model.posterior!r} and config.train.weights.latent_kl is "
            f"{tuple(config.train.weights.latent_kl)}: a posterior that is normal has a prior, and no other has"
        )
    if (config.train.batch_size > 0) == (config.train.rows_per_device > 0):
        raise ValueError(
            f"config.train.batch_size is {config.train.batch_size} and config.train.rows_per_device "
            f"{config.train.rows_per_device}: one of them says how large the batch is, and the other is 0"
        )
    rows = "rows_per_device" if config.train.rows_per_device else "batch_size"
    if config.train.accumulate < 1 or config.train[rows] % config.train.accumulate:
        raise ValueError(
            f"config.train.accumulate is {config.train.accumulate}; "
            f"it must divide config.train.{rows}, {config.train[rows]}"
        )
    if not 0 <= config.train.ema_decay < 1:
        raise ValueError(f"config.train.ema_decay is {config.train.ema_decay}; it must lie in [0, 1)")
