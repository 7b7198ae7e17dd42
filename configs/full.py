"""The paper's model (appendix A.4) on linked EHR and wearable data.

    python -m ehrwear_jax.main --config=configs/full.py --config.data.meds_dir=MEDS --config.data.wearable_dir=WEARABLE

Variants, several of them joined by "+": 220m has 16 backbone layers; cohort applies the inclusion criteria of appendix
A.2; relaxed does so with a month of EHR and three days of wear. Needs accelerators: 500,000 steps of 32 contexts.

The signal is changed as in appendix A.3, and contexts end with sampled patient-days (section 3.5). Which codes are
administrative, and which events of interest, is named differently in every dataset: set
--config.context.administrative_codes and --config.context.interest_codes to tuples of code prefixes.
"""

from ehrwear_jax import config as config_lib

# ICD-10 categories of the paper's two groups of first diagnoses, in the spellings of codes that datasets use
GROUPS = {
    "cardiovascular": ("I20", "I21", "I22", "I24", "I25", "I48", "I50", "I60", "I61", "I63", "I64"),
    "metabolic": ("E10", "E11", "E13", "E14", "E66", "E78"),
}
SPELLINGS = ("ICD10CM/", "ICD10//", "DIAGNOSIS//ICD//10//")
VARIANTS = ("220m", "cohort", "relaxed")


def get_config(variant=""):
    variants = [v for v in variant.split("+") if v]
    if unknown := [v for v in variants if v not in VARIANTS]:
        raise ValueError(f"configs/full.py has no variant {unknown[0]!r}; there are {', '.join(VARIANTS)}")
    config = config_lib.base()
    config.name = "-".join(["full", *variants])
    config.prepare.update(
        {
            "channels": ("heart_rate", "activity"),
            "log_channels": ("activity",),
            "step_minutes": 1,
            "min_subjects": 100,
            "min_values": 1000,
            "implied_parents": True,
        }
    )
    config.context.update(
        {
            "tokens": 2048,
            "context_tokens": 2048,
            "windows": 1024,
            "queries": 64,
            "events": 128,
            "patch_steps": 10,
            "future_codes": 1024,
            "patient_days": 1.0,
            "time_warp": 0.05,
            "noise": 0.1,
            "channel_dropout": 0.1,
        }
    )
    config.model.update(
        {
            "dtype": "bfloat16",
            "attention_dropout": 0.1,
            "stochastic_depth": 0.1,
            "remat": "products",
            "count_width": 128,
        }
    )
    for group, categories in GROUPS.items():
        config.labels.diagnosis_groups[group] = tuple(s + c for s in SPELLINGS for c in categories)
    if "220m" in variants:
        config.model.n_layers = 16
    if "cohort" in variants or "relaxed" in variants:
        config.cohort.update({"min_ehr_days": 365.0, "min_wear_days": 14, "min_age_years": 18.0, "max_age_years": 89.0})
    if "relaxed" in variants:
        config.cohort.update({"min_ehr_days": 30.0, "min_wear_days": 3})
    config.train.update({"log_every": 100, "validate_every": 5000, "checkpoint_every": 1000, "data_threads": 16})
    config.evaluate.update({"tasks": tuple(f"hospitalization_{h}d" for h in (30, 90, 180, 365)), "n_resamples": 5000})
    config.report.update({"title": "Joint EHR and wearable model", "reliability_task": "hospitalization_365d"})
    return config
