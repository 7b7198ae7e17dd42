"""PhysioNet/CinC Challenge 2012: death in hospital, of the first 24 and 48 hours of ICU stays; out of fold over five.

    python -m ehrwear_jax.main --config=configs/physionet2012.py --config.data.source_dir=DIR

DIR holds set-a.tar.gz and Outcomes-a.txt as published (Open Data Commons Attribution License v1.0): see
ehrwear_jax/data/sources/physionet2012_files.py. 4,000 stays of set a, 554 deaths. Nine vital signs are the wearable
channels, everything else is events.

The model is ours (base extended; physionet2012.py:paper is the paper's). Other variants, joined by "+": b trains on
set a and scores set b (also set-b.tar.gz and Outcomes-b.txt); vitals makes vital signs events too; tables has the
models on hand-made features only, which need no training; ehrwear_jax.config.VARIANTS has the ablations.

The tables take some twenty minutes on two CPU cores without label efficiency
(--config.evaluate.label_fractions='()'). Seen, AUROC and AUPRC at 48 hours (at 24): boosting on hand-made features of
both .860, .522 (.823, .447), on events alone .854, .505 (.816, .424), on vital signs alone .772, .359 (.720, .276); a
linear model .855, .507 (.809, .431); the mean of boosting and linear model .865, .529 (.825, .454). A network takes
some 45 processor minutes a fold. The joint model (one seed, frozen), 48 hours: linear probe .845
[.830, .862], .492, less boosting -.015 [-.024, -.006]; kernel machine on z .856, .508, less boosting -.004
[-.013, +.005]; on the table .843, .478. What z adds: boosting on table and z .860, .519, nothing; the mean of boosting
and kernel machine on z .866, .532, more than boosting by .0069 [.0025, .0111]; with the linear model, too, .869, .535,
more than the mean without z by .0040 [.0013, .0070] (with the kernel machine on the table instead: .863, .525).
"""

from ehrwear_jax import config as config_lib

CHANNELS = (
    "heart_rate",
    "respiratory_rate",
    "temperature",
    "systolic_bp",
    "diastolic_bp",
    "mean_bp",
    "systolic_bp_cuff",
    "diastolic_bp_cuff",
    "mean_bp_cuff",
)
HOUR = 1 / 24  # days
LABEL_MODELS = ("joint", "joint_kernel", "gradient_boosting", "linear_table", "average_table")


def get_config(variant=""):
    variants = config_lib.variants(variant, "physionet2012.py", ("b", "vitals", "tables"))
    config = config_lib.base()
    config.name = "physionet2012"
    config.data.update({"source": "physionet2012", "n_folds": 5, "vitals_as_events": "vitals" in variants})
    if "b" in variants:
        config.data.update({"sets": ("a", "b"), "n_folds": 0, "holdout": "site:set=b"})
    config.models.wear_only_static = {"family": "joint", "modalities": ("wear",), "static": True}
    config.models.stacked = {"family": "stacked", "members": ("ehr_only", "wear_only")}
    config.models.average_table = {"family": "tabular", "estimator": "average"}
    config_lib.add_kernel_probes(config, "joint", "ehr_only", "wear_only", "late_fusion")
    # what z adds to the table
    for name, tables in (("boosting", ("gradient_boosting",)), ("tables", ("gradient_boosting", "linear_table"))):
        mean = {"family": "stacked", "members": (*tables, "joint_kernel"), "weights": "equal"}
        config.models[f"{name}_and_joint_kernel"] = mean
    config.models.boosting_table_z = {"family": "tabular", "latents": ("joint",)}
    config.models.average_table_z = {"family": "tabular", "estimator": "average", "latents": ("joint",)}
    if "tables" in variants:
        tables = {name: dict(model) for name, model in config.models.items() if model.family == "tabular"}
        config.models = {name: model for name, model in tables.items() if not model.get("latents")}
        config.evaluate.reference_model = "gradient_boosting"
    config.prepare.update(
        {
            "channels": CHANNELS,
            "min_coverage": 0.01,  # one reading is a window
            "date_only_at_day_end": False,  # everybody is admitted at midnight, and what is dated then is known then
            "min_subjects": 20,
            "subjects_per_shard": 1000,
        }
    )
    spans = tuple(hours * HOUR for hours in (2, 6, 12, 24))
    config_lib.set_time_scale(config, HOUR, window_hours=2, step_minutes=5, spans_days=spans)
    config.joint.context.update(
        {
            "tokens": 320,  # 9 of the 4,000 stays have more events
            "context_tokens": 320,
            "windows": 64,  # two stays of at most 25: the first one ends at admission
            "queries": 24,
            "events": 24,
            "future_windows": 4,
            "patch_steps": 6,
            "future_codes": 64,
            "history_tokens": 256,
            "queries_behind": 0.3,
            "value_codes": 40,
            "value_spans": (0.5, 2.0),
            "wear_spans": (0.25, 2.0),
        }
    )
    config.joint.network.update(
        {
            "width": 192,
            "n_layers": 2,
            "n_heads": 4,
            "mlp_width": 512,
            "token_width": 96,
            "time_features": 64,
            "wear_width": 64,
            "wear_layers": 2,
            "wear_heads": 2,
            "wear_span_days": 6 * HOUR,
            "embedding_scale": 50.0,
            "value_features": 8,
            "value_inputs": True,
        }
    )
    config.train.update(
        {
            "steps": 1000,
            "batch_size": 16,
            "weight_decay": 0.1,
            "peak_learning_rate": 2e-3,
            "warmup_steps": 100,
            "ema_decay": 0.995,
            "log_every": 50,
            "validate_every": 250,
            "checkpoint_every": 250,
        }
    )
    config.joint.weights.update(
        {
            "wear_to_ehr": (0.2, 1.0, 100),
            "ehr_values": (2.0, 2.0, 0),
            "wear_values": (1.0, 1.0, 0),
            "next_value": (0.3, 0.3, 0),
        }
    )
    config.evaluate.tasks = ("in_hospital_death_at_24h", "in_hospital_death_at_48h")
    config.evaluate.label_models = tuple(name for name in LABEL_MODELS if name in config.models)
    config.interpret.event_prefixes = ("VENTILATION//mechanical",)
    config.interpret.precursor_channels = ("heart_rate", "mean_bp", "respiratory_rate", "temperature")
    config.report.update(
        {
            "title": "PhysioNet 2012: death in hospital of ICU patients",
            "reliability_task": "in_hospital_death_at_48h",
        }
    )
    config_lib.apply_variants(config, variants)
    return config
