"""The whole path on a larger simulated cohort with a model of a few million parameters.

    python -m ehrwear_jax.main --config=configs/small.py

For one GPU, or hours on two CPU cores; it can be interrupted and goes on where it was (--config.train.stop_after ends
a call at that step). `--stages=describe` prints the size of the model. The 3,600 people held out resolve a difference
in AUROC of .02 at 90 days (three standard errors between the best models of both modalities and of the EHR); tiny.py
says what can be expected of the cohort. The model is ours (base extended). Variants as in tiny.py: the negative
controls redundant and noise, models of other papers, of the size of ours, and the ablations of
ehrwear_jax.config.VARIANTS.
"""

import runpy
from pathlib import Path

from ehrwear_jax import config as config_lib

TINY = runpy.run_path(str(Path(__file__).with_name("tiny.py")))
_TRANSFORMER = {"width": 192, "n_layers": 6, "n_heads": 6, "mlp_width": 768, "tokens": 512, "context_tokens": 256}
# what is larger than in tiny.py
LARGER = {
    "motor": {**_TRANSFORMER, "sites": 80, "pairs": 4096, "tasks": 128, "time_bins": 8, "task_width": 64},
    "cehr_bert": {**_TRANSFORMER, "sites": 40, "visits": 160, "visit_mlp_width": 256},
    "behrt": {**_TRANSFORMER, "sites": 40, "visits": 160},
    "med_bert": {**_TRANSFORMER, "sites": 40, "visits": 160},
    "context_clues": {**_TRANSFORMER, "n_kv_heads": 3, "context_tokens": 512, "sites": 80},
    "himae": {"widths": (64, 128, 256, 320)},
    "papagei": {"width": 96, "n_blocks": 10, "out_width": 128},
    "pulse_ppg": {"width": 48, "n_blocks": 8},
}


def get_config(variant=""):
    variants = config_lib.variants(variant, "small.py", (*LARGER, *config_lib.SIMULATED))
    config = config_lib.base()
    config.name = "small"
    config.data.source = "synthetic"
    config.simulate.update({"n_subjects": 12000, "train_fraction": 0.65, "tuning_fraction": 0.05})
    for name in variants:
        config.simulate.update(config_lib.SIMULATED.get(name, {}))
    # the wearable with and without the facts that the other models know beside it
    config.models.wear_only_static = {"family": "joint", "modalities": ("wear",), "static": True}
    config.prepare.update(
        {
            "channels": ("heart_rate", "activity"),
            "log_channels": ("activity",),
            "step_minutes": 15,
            "min_subjects": 20,
            "value_bins": 5,
        }
    )
    config.joint.context.update(
        {
            "tokens": 256,
            "context_tokens": 256,
            "windows": 64,
            "queries": 24,
            "events": 16,
            "patch_steps": 4,
            "future_codes": 64,
            "history_tokens": 128,
            "queries_behind": 0.2,
            "value_spans": (90.0, 365.0),
        }
    )
    config.joint.network.update(
        {
            "width": 192,
            "n_layers": 6,
            "n_heads": 6,
            "mlp_width": 768,
            "token_width": 96,
            "time_features": 64,
            "wear_width": 64,
            "wear_layers": 2,
            "wear_heads": 4,
            "wear_span_days": 1.0,
            "count_width": 32,
        }
    )
    config.train.update(
        {
            "steps": 1200,
            "batch_size": 16,
            "peak_learning_rate": 1e-3,
            "warmup_steps": 100,
            "log_every": 25,
            "validate_every": 300,
            "checkpoint_every": 300,
        }
    )
    config.joint.weights.wear_to_ehr = (0.2, 1.0, 400)
    config.joint.weights.update({"ehr_values": (2.0, 2.0, 0), "wear_values": (1.0, 1.0, 0)})
    config.compile.vocabulary = 512
    for name, model in config.models.items():
        if model.get("estimator") == "boosting":
            config.models[name].candidates = 6
    config.labels.physiology.measures = ("sleep_efficiency", "activity_regularity")
    forecast = [f"hospitalization_{h}d" for h in (30, 90, 180, 365)]
    config.evaluate.tasks = (*forecast, "sleep_efficiency_7d", "activity_regularity_7d")
    config.report.update({"title": "Simulated cohort, small model", "reliability_task": "hospitalization_365d"})
    TINY["add_others"](config, [v for v in variants if v in LARGER], LARGER)
    config_lib.apply_variants(config, variants)
    return config
