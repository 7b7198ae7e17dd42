"""The default configuration and its translation into the frozen dataclasses that the rest of the package takes.

configs/*.py start from `base()` and change what their experiment needs; only `stages` and `main` see a ConfigDict.
"""

import dataclasses
import os

import ml_collections

from ehrwear_jax.data.cohort import CohortConfig
from ehrwear_jax.data.pipeline import ContextConfig
from ehrwear_jax.data.prepare import PrepareConfig
from ehrwear_jax.data.synthetic import SimulatorConfig
from ehrwear_jax.models.multimodal import ModelConfig
from ehrwear_jax.schedules import Ramp
from ehrwear_jax.sharding import MeshConfig
from ehrwear_jax.train import TrainConfig

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
)


def _defaults(cls, leave_out=()):
    """ConfigDict of a dataclass's defaults."""
    out = ml_collections.ConfigDict()
    for field in dataclasses.fields(cls):
        if field.name not in leave_out and field.default is not dataclasses.MISSING:
            # a placeholder keeps the type of an optional value open
            out[field.name] = field.default
    return out


def base():
    """Everything that a run can set, with the defaults of the paper's appendix A.4 where it has one."""
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
    config.simulate = _defaults(SimulatorConfig)
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
    config.prepare = _defaults(PrepareConfig)
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
        }
    )
    config.mesh = _defaults(MeshConfig)  # devices along each axis; -1: the rest
    config.topology = "v5e:16x16"  # the TPU slice that --stages=compile compiles for
    config.compile = ml_collections.ConfigDict(
        {
            "rows_per_device": 0,  # 0: rows of the batch as in train.batch_size
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
        }
    )
    config.report = ml_collections.ConfigDict({"title": "ehrwear_jax", "reliability_task": ""})
    config.lock()  # a misspelt key is an error, not a new key
    config.rows.unlock()
    config.labels.diagnosis_groups.unlock()
    return config


def prepare_config(config):
    return PrepareConfig(**config.prepare)


def cohort_config(config):
    return CohortConfig(**config.cohort)


def user_tables(config):
    """Paths of the tables that harmonise codes and values."""
    return [*config.prepare.mapping_files, *([config.prepare.ranges_file] if config.prepare.ranges_file else [])]


def simulator_config(config):
    return SimulatorConfig(**config.simulate)


def context_config(config, row):
    return ContextConfig(modalities=tuple(config.rows[row]), **config.context)


def model_options(config):
    return dict(config.model)


def train_config(config):
    options = {k: v for k, v in config.train.items() if k != "weights"}
    weights = {k: Ramp(*v) for k, v in config.train.weights.items()}
    return TrainConfig(seed=config.seed, weights=weights, **options)


def mesh_config(config):
    return MeshConfig(**config.mesh)


def folds(config):
    """[(folder name, fold or None)]."""
    n = config.data.n_folds
    return [(f"fold{k}", k) for k in range(n)] if n > 1 else [("all", None)]


def check(config):
    """Raises ValueError or FileNotFoundError with one sentence for a configuration that cannot run."""
    data = config.data
    if data.source not in SOURCES:
        raise ValueError(f"config.data.source is {data.source!r}; it can be {', '.join(SOURCES)}")
    if data.source == "meds" and not data.meds_dir:
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
    for path in user_tables(config):
        if not os.path.isfile(path):
            raise FileNotFoundError(f"config.prepare.mapping_files or ranges_file: there is no table {path}")
    for row in (
        *config.evaluate.late_fusion,
        *([config.evaluate.reference_row] if config.evaluate.reference_row else []),
    ):
        if row not in config.rows and row not in ("late_fusion",):
            raise ValueError(
                f"config.evaluate names the row {row!r}, which is not in config.rows {sorted(config.rows)}"
            )
    if (task := config.report.reliability_task) and task not in config.evaluate.tasks:
        raise ValueError(f"config.report.reliability_task is {task!r}, which is not in config.evaluate.tasks")
