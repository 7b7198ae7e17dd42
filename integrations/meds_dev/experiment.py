"""A model of this package as MEDS-DEV trains and probes it: pretrained on a MEDS dataset, frozen, a probe per task.

    python -m ehrwear_jax.main --config=integrations/meds_dev/experiment.py:motor --config.data.meds_dir=MEDS \
        --config.data.labels_dir=LABELS --config.evaluate.tasks="('TASK',)" --stages=prepare,pretrain,embed,evaluate

The argument is motor, context_clues (published sizes) or joint (events alone, 87 million parameters with 32,768 codes);
with ",demo=True" they are small and trained for 40 steps: minutes on two CPU cores over the MIMIC-IV demo. The others
are for a GPU of 80 GB, and have not been trained on MIMIC-IV.
"""

from ehrwear_jax import config as config_lib

EHR_ONLY = {"family": "joint", "modalities": ("ehr",)}
MODELS = {name: config_lib.published()[name] for name in ("motor", "context_clues")} | {"joint": EHR_ONLY}
DEMO = {
    "motor": {
        "family": "motor",
        "width": 64,
        "n_layers": 2,
        "n_heads": 4,
        "mlp_width": 192,
        "attention_window": 128,
        "tokens": 512,
        "context_tokens": 512,
        "features": 8,
        "sites": 48,
        "pairs": 4096,
        "tasks": 64,
        "min_task_share": 0.05,
        "task_width": 32,
    },
    "context_clues": {
        "family": "context_clues",
        "width": 64,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 2,
        "mlp_width": 192,
        "tokens": 512,
        "context_tokens": 512,
        "static_tokens": 16,
        "sites": 48,
    },
    "joint": EHR_ONLY,
}


def _parse(argument):
    """ "motor,demo=True" -> ("motor", True)."""
    name, _, rest = argument.partition(",")
    if name not in MODELS or rest not in ("", "demo=True", "demo=False"):
        raise ValueError(
            f"experiment.py:{argument}: the argument is one of {', '.join(MODELS)}, with ,demo=True or ,demo=False"
        )
    return name, rest == "demo=True"


def get_config(argument=""):
    name, demo = _parse(argument)
    config = config_lib.base()
    config.name = f"meds_dev-{name}"
    config.models = {name: (DEMO if demo else MODELS)[name]}
    config.prepare.update({"implied_parents": True, "workers": 0})
    config.evaluate.update({"reference_model": name, "label_models": (name,), "label_fractions": ()})
    if demo:
        _shrink(config)
        return config
    config.joint.context.update({"tokens": 2048, "context_tokens": 2048, "queries": 64, "events": 128})
    config.joint.network.update(
        {"width": 640, "n_layers": 10, "n_heads": 10, "mlp_width": 2560, "dtype": "bfloat16", "remat": "products"}
    )
    config.train.update(
        {
            "steps": 50_000,
            "batch_size": 32,
            "accumulate": 4,
            "warmup_steps": 1000,
            "peak_learning_rate": 3e-4,
            "log_every": 100,
            "validate_every": 2000,
            "checkpoint_every": 1000,
        }
    )
    return config


def _shrink(config):
    """What runs on a laptop over the records of a hundred people."""
    config.prepare.update({"value_bins": 5, "workers": 1})
    config.joint.context.update(
        {
            "tokens": 256,
            "context_tokens": 256,
            "queries": 16,
            "events": 16,
            "future_codes": 48,
            "history_tokens": 96,
        }
    )
    config.joint.network.update(
        {"width": 64, "n_layers": 2, "n_heads": 4, "mlp_width": 192, "token_width": 48, "time_features": 32}
    )
    config.train.update(
        {
            "steps": 40,
            "batch_size": 4,
            "peak_learning_rate": 2e-3,
            "warmup_steps": 10,
            "log_every": 20,
            "validate_batches": 0,
            "checkpoint_every": 40,
        }
    )
    config.evaluate.n_resamples = 100
