"""NAFLD: 17,549 people of Olmsted County (R package survival), laboratory values and first diagnoses; no wearable.

    python -m ehrwear_jax.main --config=configs/nafld.py --config.data.source_dir=DIR

The model is ours (base extended; nafld.py:paper is the paper's). DIR holds nafld1.csv, nafld2.csv, nafld3.csv. A
diagnosis (other than NAFLD) that the person never had, within 30, 90, 180, 365 days: 1,696, 2,821, 4,184, 6,661 of
78,391, 76,621, 74,234, 69,578 lab days. Forty minutes on two CPU cores without label
efficiency (--config.evaluate.label_fractions='()'). Seen on the held-out tenth, frozen probe
(gradient boosting on hand-made features): AUROC .732/.720/.712/.695 (.768/.755/.733/.714), AUPRC .133/.152/.179/.226
(.144/.149/.183/.251); every difference in AUROC lies below zero. z holds values (R2 .98 and above), and less of how
often (.63) and when last (.82) a code was seen, and of slopes (.21). Without value_inputs AUROC was
.721/.705/.698/.685. A linear model on the same features: .750/.722/.705/.690; age and sex: .559/.523/.523/.535.
"""

from ehrwear_jax import config as config_lib


def get_config(variant=""):
    variants = config_lib.variants(variant, "nafld.py")
    config = config_lib.base()
    config.name = "nafld"
    config.data.source = "nafld"
    config.models = {
        "ehr_only": {"family": "joint", "modalities": ("ehr",)},
        "gradient_boosting": {"family": "tabular", "estimator": "boosting"},
        "boosting_counts": {"family": "tabular", "estimator": "boosting", "features": "counts"},
        "linear_table": {"family": "tabular", "estimator": "linear"},
        "age_sex": {"family": "tabular", "estimator": "linear", "features": "demographics"},
    }
    config_lib.add_kernel_probes(config, "ehr_only")
    config.prepare.update({"min_subjects": 20, "value_bins": 5})
    config.joint.context.update(
        {
            "tokens": 128,
            "context_tokens": 128,
            "queries": 48,
            "queries_behind": 0.3,
            "value_codes": 16,
            "value_spans": (365.0, 1826.0),
            "events": 12,
            "future_codes": 32,
            "history_tokens": 128,
            "masked_contexts": 0.3,
        }
    )
    config.joint.network.update(
        {
            "width": 128,
            "n_layers": 3,
            "n_heads": 4,
            "mlp_width": 384,
            "token_width": 64,
            "time_features": 64,
            "shortest_period_days": 1000.0,
            "value_inputs": True,
        }
    )
    config.train.update(
        {
            "steps": 1200,
            "batch_size": 32,
            "weight_decay": 0.1,
            "peak_learning_rate": 2e-3,
            "warmup_steps": 100,
            "log_every": 50,
            "validate_every": 300,
            "checkpoint_every": 300,
        }
    )
    config.joint.weights.update(
        {
            "ehr_masked": (0.3, 0.3, 0),
            "future_event": (0.5, 0.5, 0),
            "future_codes": (3.0, 3.0, 0),
            "ehr_history": (1.0, 1.0, 0),
            "ehr_values": (2.0, 2.0, 0),
        }
    )
    config.evaluate.update(
        {
            "tasks": tuple(f"new_diagnosis_{h}d" for h in (30, 90, 180, 365)),
            "reference_model": "ehr_only",
            "label_models": ("ehr_only", "gradient_boosting", "linear_table"),
        }
    )
    config.report.update({"title": "NAFLD: new diagnoses in Olmsted County", "reliability_task": "new_diagnosis_365d"})
    config_lib.apply_variants(config, variants)
    return config
