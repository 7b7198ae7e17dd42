"""NHANES 2003-2006: one examination and a week of wear, followed for mortality; out-of-fold over five folds.

    python -m ehrwear_jax.main --config=configs/nhanes.py --config.data.source_dir=DIR

The model is ours (base extended; nhanes.py:paper is the paper's). nhanes.py:transfer learns from 2003-2004, labels
and all, and is scored on 2005-2006; :wide has a network with room for what some hundred values say, a loss that asks z
who the person is, and three times the steps. DIR holds the files listed in
ehrwear_jax/data/sources/nhanes_files.py. C-index of all-cause mortality. About an hour on two CPU cores without label
efficiency (--config.evaluate.label_fractions='()'). Seen, frozen probes: joint .800 [.787, .814], late fusion .812, EHR
only .797, wearable only .738 (with age and sex .802). On hand-made features: boosting .837 [.825, .848] (EHR alone
.832, wearable alone .756, counts of codes .761), Cox .833, age and sex .789.

Seen of nhanes.py:transfer+wide (joint alone, some 25 processor minutes a seed): Cox probe on z .820 [.800, .842] over
four seeds, less Cox on the table -.009 [-.016, -.003]; of seed 0 .823, kernel machine on z .816; Cox on z and, as they
are, age and sex (joint_demographics) .824. Without the loss that asks who the person is: .809, .806, .818. On
hand-made features Cox .829 [.810, .850], boosting .828, kernel machine .813; z adds nothing to them (Cox on table and
z, latents joint, .829; boosting on both .826; the mean of Cox and joint .829). With a tenth of the labels: probe on z
.790, Cox on the table .783, boosting .789.

nhanes.py:cdc is for the files as the CDC publishes them, 2003-2006 and 2011-2014 or some of these cycles
(launch/nhanes_download.sh, docs/nhanes.md): all minute counts, more of the examination. nhanes.py:cdc+smirnova asks
what Smirnova et al. (2019) did of 2003-2006, on a folder that holds those two cycles: 50 to 84 years, three days with
ten hours of wear, death within five years; their 2,978 people had 297 deaths, and an AUC of .798 without activity and
.838 with it. Neither has been run on the real files. nhanes.py:weighted (with any of them) has metrics of the
population and intervals of the survey's design (docs/nhanes.md).
"""

from ehrwear_jax import config as config_lib

# beside the minute streams, what the published table gives per person and week, known at the week's end
CHANNELS = (
    "wear_flag",
    "activity_count",
    "activity_profile",
    "total_activity",
    "total_log_activity",
    "wear_time",
    "sedentary_time",
    "mvpa_time",
    "active_bout_length",
    "sedentary_bout_length",
    "sedentary_to_active",
    "active_to_sedentary",
)

# what the monitors of four cycles recorded, as the CDC publishes it: counts and steps until 2006, MIMS units since 2011
CDC_CHANNELS = (
    *CHANNELS,
    "step_count",
    "mims",
    "sleep_flag",
    "mims_profile",
    "total_mims",
    "sleep_time",
)

# room for what some hundred examination values say
WIDE = {
    "width": 192,
    "mlp_width": 512,
    "token_width": 96,
    "time_features": 64,
    "wear_width": 64,
    "value_features": 8,
    "value_inputs": True,
    "embedding_scale": 50.0,
}


def get_config(variant=""):
    variants = config_lib.variants(variant, "nhanes.py", ("transfer", "wide", "cdc", "smirnova", "weighted"))
    config = config_lib.base()
    config.name = "nhanes"
    config.data.update({"source": "nhanes", "n_folds": 5})
    if "transfer" in variants:
        config.data.update({"n_folds": 0, "holdout": "site:cycle=2005-2006"})
    # the wearable with and without the facts that the other models know beside it
    config.models.wear_only_static = {"family": "joint", "modalities": ("wear",), "static": True}
    config.models.stacked = {"family": "stacked", "members": ("ehr_only", "wear_only")}
    config_lib.add_kernel_probes(config, "joint", "ehr_only", "wear_only", "late_fusion")
    # what z adds to the table
    config.models.boosting_table_z = {"family": "tabular", "latents": ("joint",)}
    # z beside age and sex as they are
    demographics = {"family": "tabular", "estimator": "linear", "features": "demographics"}
    config.models.joint_demographics = {**demographics, "latents": ("joint",)}
    config.prepare.update(
        {
            "channels": CHANNELS,
            "log_channels": ("activity_count",),
            "non_wear": ("auto", "wear_flag:flag"),
            "step_minutes": 30,
            "min_subjects": 20,
            "value_bins": 8,
        }
    )
    config.joint.context.update(
        {
            "tokens": 128,
            "context_tokens": 128,
            "windows": 64,
            "queries": 12,
            "events": 12,
            "patch_steps": 4,
            "future_codes": 16,
            # most of what is known was measured on one day
            "value_spans": (30.0,),
        }
    )
    config.joint.network.update(
        {
            "width": 64,
            "n_layers": 2,
            "n_heads": 4,
            "mlp_width": 256,
            "token_width": 64,
            "time_features": 32,
            "wear_width": 48,
            "wear_layers": 1,
            "wear_heads": 2,
        }
    )
    config.train.update(
        {
            "steps": 250,
            "batch_size": 16,
            "peak_learning_rate": 2e-3,
            "warmup_steps": 25,
            "log_every": 50,
            "validate_every": 125,
            "checkpoint_every": 125,
        }
    )
    if "wide" in variants:
        config.joint.context.value_codes = 96
        config.joint.network.update(WIDE)
        config.train.update({"steps": 800, "warmup_steps": 80, "weight_decay": 0.1, "ema_decay": 0.995})
        config.train.update({"validate_every": 200, "checkpoint_every": 200})
        config.joint.weights.person = (2.0, 2.0, 0)
    config.joint.weights.wear_to_ehr = (0.2, 1.0, 100)
    config.joint.weights.update({"ehr_values": (2.0, 2.0, 0), "wear_values": (1.0, 1.0, 0)})
    # 1, 3, 5 and 10 years: follow-up is of years, and 2 of the people die in the first 30 days
    config.evaluate.update({"tasks": ("all_cause_mortality",)})
    config.evaluate.label_models = ("joint", "joint_kernel", "joint_demographics", "gradient_boosting", "linear_table")
    config.evaluate.task_horizons_days = {"all_cause_mortality": (365.0, 1096.0, 1826.0, 3652.0)}
    config.report.update({"title": "NHANES 2003-2006: all-cause mortality"})
    if "cdc" in variants:
        config.data.source = "nhanes_cdc"
        config.prepare.channels = CDC_CHANNELS
        config.report.title = "NHANES: all-cause mortality"
    if "smirnova" in variants:
        config.cohort.update({"min_age_years": 50.0, "max_age_years": 84.0, "pretraining": "everybody"})
        config.cohort.update({"min_wear_days": 3, "min_wear_hours": 10.0})
        config.evaluate.task_horizons_days = {"all_cause_mortality": (1826.0,)}
    if "weighted" in variants:
        config.evaluate.update({"survey_weight": "WTMEC2YR", "survey_strata": ("SDMVSTRA",)})
        config.evaluate.survey_units = ("SDMVPSU",)
    config_lib.apply_variants(config, variants)
    return config
