"""The whole path on a simulated cohort, in minutes on two CPU cores.

    python -m ehrwear_jax.main --config=configs/tiny.py

Seven and a half minutes; README has the numbers. The cohort is a positive control: both modalities together tell more
than either. Boosting on tables of records of as many people as are trained on here has an AUROC at 90 days of .745
from the EHR, .722 from the wearable and .784 from both (with levels of the wearable only: .758); the true risk has
.857:

    python -m ehrwear_jax.data.sources.simulator.bounds --people=3000 --records=1960 --horizons 90

Networks as small and as shortly trained as these do not find it: among the 239 people held out here the joint model
has .724, EHR only .714 and boosting on both .744 at 90 days, and .701, .715 and .734 at 365 days.

The model is ours (base extended); tiny.py:paper is the paper's, tiny.py:paper+extended has both. Other variants,
several of them joined by "+": motor, cehr_bert, behrt and med_bert, which have a small model of that name beside the
others; the negative controls redundant, where one modality suffices, and noise, where the wearable says nothing; and
the ablations of ehrwear_jax.config.VARIANTS, as in tiny.py:no_cross_modal+r1. The best possible in a control:

    python -m ehrwear_jax.data.sources.simulator.bounds --preset=redundant
"""

from ehrwear_jax import config as config_lib

# models of the EHR alone with about as many parameters as the others
MOTOR = {
    "family": "motor",
    "width": 64,
    "n_layers": 3,
    "n_heads": 4,
    "mlp_width": 192,
    "attention_window": 64,
    "tokens": 320,
    "context_tokens": 160,
    "features": 8,
    "sites": 48,
    "pairs": 2048,
    "tasks": 64,
    "time_bins": 6,
    "task_width": 32,
}
CEHR_BERT = {
    "family": "cehr_bert",
    "width": 64,
    "n_layers": 3,
    "n_heads": 4,
    "mlp_width": 192,
    "attention_dropout": 0.0,
    "tokens": 320,
    "context_tokens": 160,
    "visits": 96,
    "sites": 24,
    "visit_mlp_width": 128,
    "encounter_codes": ("PROC//CPT4//99213",),
}
# the same network as BEHRT and as Med-BERT, which are not told types of visits
BEHRT = CEHR_BERT | {"inputs": "behrt", "visit_tokens": "end", "time_tokens": "none", "visit_weight": 0.0}
MED_BERT = BEHRT | {"inputs": "med_bert", "visit_tokens": "none", "long_stay_weight": 1.0}
EHR_MODELS = {"motor": MOTOR, "cehr_bert": CEHR_BERT, "behrt": BEHRT, "med_bert": MED_BERT}


def get_config(variant=""):
    variants = config_lib.variants(variant, "tiny.py", (*EHR_MODELS, *config_lib.SIMULATED))
    config = config_lib.base()
    config.name = "tiny"
    config.data.source = "synthetic"
    config.prepare.update(
        {
            "channels": ("heart_rate", "activity"),
            "log_channels": ("activity",),
            "step_minutes": 15,
            "min_subjects": 15,
            "value_bins": 5,
        }
    )
    config.joint.context.update(
        {
            "tokens": 160,
            "context_tokens": 160,
            "windows": 84,
            "queries": 16,
            "events": 8,
            "patch_steps": 4,
            "future_codes": 48,
            "history_tokens": 96,
        }
    )
    config.joint.network.update(
        {
            "width": 64,
            "n_layers": 2,
            "n_heads": 4,
            "mlp_width": 192,
            "token_width": 48,
            "time_features": 32,
            "wear_width": 32,
            "wear_layers": 1,
            "wear_heads": 2,
        }
    )
    config.train.update(
        {
            "steps": 250,
            "batch_size": 8,
            "peak_learning_rate": 3e-3,
            "warmup_steps": 25,
            "log_every": 10,
            "validate_every": 125,
            "validate_batches": 4,
            "checkpoint_every": 125,
        }
    )
    for name in ("ehr_only", "wear_only"):  # the validation losses of one model show how it is done
        config.models[name].train = {"validate_batches": 0}
    config.joint.weights.wear_to_ehr = (0.2, 1.0, 100)
    config.simulate.update({"n_subjects": 1400, "predictions_per_subject": 3})
    for name in ("gradient_boosting_ehr", "gradient_boosting_wear", "boosting_counts"):
        del config.models[name]
    config.models.gradient_boosting.candidates = 4
    config.evaluate.tasks = tuple(f"hospitalization_{h}d" for h in (90, 365))
    config.interpret.update({"max_times": 100, "geometry_people": 30, "mechanism_people": 100, "dropout_samples": 4})
    config.report.update({"title": "Simulated cohort, small model", "reliability_task": "hospitalization_365d"})
    for name in variants:
        if name in EHR_MODELS:
            config.models[name] = EHR_MODELS[name]
        config.simulate.update(config_lib.SIMULATED.get(name, {}))
    config_lib.apply_variants(config, variants)
    return config
