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
several of them joined by "+": motor, cehr_bert, behrt, med_bert and context_clues, which have a small model of that
name beside the others; himae, papagei and pulse_ppg, small ones of raw pulse waves, which every wearer then has, and
the distance that pulse_ppg learns from; the negative controls redundant, where one modality suffices, and noise, where
the wearable says nothing; and the ablations of ehrwear_jax.config.VARIANTS, as in tiny.py:no_cross_modal+r1. The best
possible in a control:

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
CONTEXT_CLUES = {
    "family": "context_clues",
    "width": 64,
    "n_layers": 3,
    "n_heads": 4,
    "n_kv_heads": 2,
    "mlp_width": 192,
    "tokens": 320,
    "context_tokens": 320,
    "static_tokens": 16,
    "sites": 48,
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
EHR_MODELS = {
    "motor": MOTOR,
    "cehr_bert": CEHR_BERT,
    "behrt": BEHRT,
    "med_bert": MED_BERT,
    "context_clues": CONTEXT_CLUES,
}

# raw pulse waves of 30 s; the simulated sensor has 25 samples a second
PPG = {"channels": ("ppg",), "rate_hz": 25.0, "seconds": 30.0, "filter": "bandpass:0.5-8"}
WAVES = {"rate_hz": 25.0, "per_person": 3}
HIMAE = {
    "family": "himae",
    "signal": WAVES,
    "widths": (8, 16, 24, 32),
    "train": {"adam_b2": 0.999, "decay": "linear"},
}
PAPAGEI = {
    "family": "papagei",
    "signal": WAVES,
    "width": 8,
    "n_blocks": 6,
    "out_width": 32,
    "dropout": 0.1,
    "train": {"adam_b2": 0.999, "weight_decay": 0.0},
}
ADAM = {"adam_b2": 0.999, "weight_decay": 0.0}
# as a whole: pieces of one segment would be of the same half minute
PULSE_PPG = {
    "family": "pulse_ppg",
    "signal": {"rate_hz": 25.0, "seconds": 30.0},
    "width": 16,
    "kernel": 7,
    "n_blocks": 6,
    "widen_every": 2,
    "dropout": 0.1,
    "within_person": 2,
    "train": {"batch_size": 16, **ADAM},
}
MOTIF_DISTANCE = {
    "family": "motif_distance",
    "signal": {"rate_hz": 25.0, "seconds": 30.0, "per_person": 4, "per_row": 2},
    "width": 16,
    "n_layers": 4,
    "hidden_samples": 50,
    "train": ADAM,
}
ON_WAVES = {"himae": HIMAE, "papagei": PAPAGEI, "pulse_ppg": PULSE_PPG}  # models of raw pulse waves


def add_others(config, names, larger=None):
    """Adds models of other papers by name, with the segments that they need; larger: {name: options} of their own."""
    for name in names:
        config.models[name] = {**EHR_MODELS, **ON_WAVES}[name] | (larger or {}).get(name, {})
        if name in ON_WAVES:
            config.prepare.segments = {"ppg": PPG}
            config.simulate.ppg_subjects_fraction = 1.0
    if "pulse_ppg" in names:
        config.models.motif_distance = MOTIF_DISTANCE


def get_config(variant=""):
    variants = config_lib.variants(variant, "tiny.py", (*EHR_MODELS, *ON_WAVES, *config_lib.SIMULATED))
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
    add_others(config, [v for v in variants if v in EHR_MODELS or v in ON_WAVES])
    for name in variants:
        config.simulate.update(config_lib.SIMULATED.get(name, {}))
    config_lib.apply_variants(config, variants)
    return config
