"""A configuration of the main job that is small enough for tests, on the cohort of cohort.py."""

import cohort
import numpy as np
import polars as pl

from ehrwear_jax import config as config_lib
from ehrwear_jax.stages import embed
from ehrwear_jax.stages import workdir as workdir_lib
from ehrwear_jax.stages.embed import KEYS
from ehrwear_jax.stages.plan import Plan
from ehrwear_jax.stages.workdir import Workdir
from ehrwear_jax.training.pretrain import Model

N_SUBJECTS = 30
TABLES = ("gradient_boosting", "gradient_boosting_ehr", "gradient_boosting_wear", "boosting_counts", "linear_table",
          "age_sex")  # fmt: skip
EHR_ONLY, WEAR_ONLY = 9, 14  # two held-out people with one modality, given ehr_only=(EHR_ONLY,)

# two folds; every tenth person is held out in neither
FOLDS = pl.DataFrame(
    {"subject_id": range(1, N_SUBJECTS + 1), "fold": [s % 2 if s % 10 else -1 for s in range(1, N_SUBJECTS + 1)]},
    {"subject_id": pl.Int64, "fold": pl.Int32},
)


def write_inputs(root, folds=None):
    """Writes raw/ (MEDS and wearable) and labels/ below root; returns the label tables."""
    cohort.write_cohort(root / "raw", N_SUBJECTS, ehr_only=(EHR_ONLY,), folds=folds)
    return cohort.write_labels(root / "labels", N_SUBJECTS)


def prepare(root, raw=None, options=None):
    """What prepare makes of raw tables, below root for `store`; by default root/raw, and as small_config says."""
    raw, options = raw or root / "raw", options or config_lib.parse(small_config(root)).prepare
    return cohort.prepare(raw, options, out=root)


def store(root, split=None):
    """The records that `prepare`, or cohort.prepare_cohort, made below root."""
    return cohort.open_store(root, split)


def small_config(root):
    """Reads what write_inputs wrote. All three models and late fusion, a binary and a survival task."""
    config = config_lib.base()
    config.name = "small"
    raw = root / "raw"
    config.data.update({"meds_dir": str(raw / "meds"), "wearable_dir": str(raw / "wearable"),
                        "labels_dir": str(root / "labels")})  # fmt: skip
    config.labels.update({"horizons_days": (30, 90), "min_history_days": 30.0,
                          "discharge_codes": ()})  # fmt: skip  # cohort.py has no discharges
    config.prepare.update({"channels": cohort.CHANNELS, "log_channels": ("activity",), "min_subjects": 2,
                           "min_values": 10, "value_bins": 4, "subjects_per_shard": 8, "step_minutes": 60,
                           "workers": 1})  # fmt: skip
    config.joint.context.update({"tokens": 48, "windows": 16, "context_tokens": 40, "queries": 8, "events": 8,
                                 "patch_steps": 3, "future_windows": 2, "future_codes": 5})  # fmt: skip
    config.joint.network.update({"width": 8, "n_layers": 1, "n_heads": 2, "mlp_width": 16, "token_width": 8,
                                 "time_features": 8, "wear_width": 8, "wear_layers": 1, "wear_heads": 2,
                                 "source_width": 4})  # fmt: skip
    config.joint.weights.wear_to_ehr = (0.2, 1.0, 4)
    config.train.update({"steps": 6, "batch_size": 8, "peak_learning_rate": 3e-3, "warmup_steps": 2, "log_every": 1,
                         "validate_every": 3, "validate_batches": 1, "checkpoint_every": 2})  # fmt: skip
    config.embed.update({"batch_size": 4, "trajectories": 2, "trajectory_points": 12})
    config.evaluate.update({"tasks": ("readmission", "relapse"), "n_resamples": 50, "min_horizon_events": 1,
                            "min_task_people": 0, "min_task_events": 0})  # fmt: skip
    for name in TABLES:
        config.models[name].update({"candidates": 2, "max_trees": 20})
    config.interpret.enabled = False  # has tests of its own
    config.report.update({"title": "A small run", "reliability_task": "readmission"})
    return config


def one_model(config, name):
    """One pretrained model instead of three, and no late fusion; the hand-made features stay."""
    for other in {"joint", "ehr_only", "wear_only", "late_fusion"} - {name}:
        del config.models[other]
    config.evaluate.reference_model = name
    return config


def model_of(config, name="joint", seed=0):
    """What training/pretrain.py trains, of a config's models."""
    return Model(**config_lib.parse(config).model(name, seed))


def plan_of(config, workdir):
    """The artifacts of a run of a config in a workdir."""
    return Plan(config_lib.parse(config), Workdir(workdir))


def write_embeddings(plan, latents):
    """Stands for the pretrain and embed stages: every network's z at the prediction times, where it has none yet.

    Args:
      latents: (Trained, prediction times of the fold) -> z [N, D].
    """
    for trained in plan.trained():
        times = embed.prediction_times(plan, trained.fold)
        z = pl.Series("embedding", latents(trained, times).tolist(), dtype=pl.List(pl.Float32))
        folder = plan.embeddings(trained)
        if folder.exists():
            continue
        folder.mkdir(parents=True)
        times.select(embed.KEYS).with_columns(z).write_parquet(folder / "given.parquet")


def interrupted(artifact, *names):
    """Leaves an artifact as a killed run does: not done, without some of its files, and half of each beside."""
    about = workdir_lib.read_about(artifact.folder)
    workdir_lib.write_about(artifact.folder, about | {"done": False})
    for name in names:
        path = artifact.folder / name
        path.unlink()
        path.with_name(f"{path.name}.partial").write_text("half")


def contents(folder):
    """{path: bytes} of all files below a folder, but for artifact.json, which tells how long things took."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != workdir_lib.ABOUT)
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


def written_at(folder):
    """{path: time of modification} of all files below a folder."""
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in sorted(folder.rglob("*")) if p.is_file()}


def written(folder):
    """{path: (bytes, time of modification)} of all files below a folder; links are left out."""
    found = (p for p in sorted(folder.rglob("*")) if p.is_file() and not p.is_symlink())
    return {str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns) for p in found}


def value(records, task, model, metric):
    """The value of the one record of a model's metric."""
    (found,) = [r for r in records if (r["task"], r["model"], r["metric"]) == (task, model, metric)]
    return found["value"]


def telling_latents(labels):
    """Latents, for write_embeddings, that hold the labels of tasks under noise, least of it in the joint model's."""
    rng, noises = np.random.default_rng(0), {"joint": 0.7, "ehr_only": 1.0, "wear_only": 2.0}

    def latents(trained, times):
        signal = []
        for task, table in labels.items():
            label = pl.col(table.columns[2]).cast(pl.Float64).alias(task)
            told = times.join(table.select(*KEYS, label), on=KEYS, how="left", maintain_order="left")[task]
            signal.append((told.log() if task == "relapse" else told).fill_null(0.0).to_numpy())
        signal = np.stack(signal, axis=1)
        return signal + noises[trained.name] * rng.normal(size=signal.shape)

    return latents
