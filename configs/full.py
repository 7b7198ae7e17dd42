"""The paper's model (appendix A.4) on linked EHR and wearable data.

    python -m ehrwear_jax.main --config=configs/full.py --config.data.meds_dir=MEDS --config.data.wearable_dir=WEARABLE

Variant 220m: 16 backbone layers. Needs accelerators: 500,000 steps of 32 contexts.

The signal is changed as in appendix A.3, and contexts end with sampled patient-days (section 3.5). Which codes are
administrative, and which events of interest, is named differently in every dataset: set
--config.context.administrative_codes and --config.context.interest_codes to tuples of code prefixes.
"""

from ehrwear_jax import config as config_lib


def get_config(variant=""):
    if variant not in ("", "220m"):
        raise ValueError(f"configs/full.py has no variant {variant!r}; there is 220m")
    config = config_lib.base()
    config.name = "full" + (f"-{variant}" if variant else "")
    config.prepare.update(
        {
            "channels": ("heart_rate", "activity"),
            "log_channels": ("activity",),
            "step_minutes": 1,
            "min_subjects": 100,
            "min_values": 1000,
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
            "remat": True,
            "count_width": 128,
        }
    )
    if variant == "220m":
        config.model.n_layers = 16
    config.train.update({"log_every": 100, "validate_every": 5000, "checkpoint_every": 1000, "data_threads": 16})
    config.evaluate.update({"tasks": tuple(f"hospitalization_{h}d" for h in (30, 90, 180, 365)), "n_resamples": 5000})
    config.report.update({"title": "Joint EHR and wearable model", "reliability_task": "hospitalization_365d"})
    return config
