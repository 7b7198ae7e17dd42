"""Makes the ConfigDict that files in configs/ start from; only they and main see a ConfigDict."""

import ml_collections

from ehrwear_jax.config import families, options
from ehrwear_jax.config.run import RunConfig

MODELS = {
    "joint": {"family": "joint"},
    "ehr_only": {"family": "joint", "modalities": ("ehr",)},
    "wear_only": {"family": "joint", "modalities": ("wear",)},
    "late_fusion": {"family": "late_fusion", "members": ("ehr_only", "wear_only")},
    "gradient_boosting": {"family": "tabular", "estimator": "boosting"},
    "gradient_boosting_ehr": {"family": "tabular", "estimator": "boosting", "modalities": ("ehr",)},
    "gradient_boosting_wear": {"family": "tabular", "estimator": "boosting", "modalities": ("wear",)},
    "boosting_counts": {"family": "tabular", "estimator": "boosting", "features": "counts"},
    "linear_table": {"family": "tabular", "estimator": "linear"},
    "age_sex": {"family": "tabular", "estimator": "linear", "features": "demographics"},
}


def base() -> ml_collections.ConfigDict:
    """Everything that a run can set, with the defaults of the paper's appendix A.4 where it has one."""
    values = options.as_dict(RunConfig()) | {"models": MODELS}
    for family in families.SHARED:
        values[family] = options.as_dict(families.config_class(family)())
    config = _open(values)
    config.train.stop_after = ml_collections.config_dict.placeholder(int)
    config.joint.network.attention = ml_collections.config_dict.placeholder(str)
    config.prepare.workers = 0  # one per core
    config.lock()  # a misspelt key is an error, not a new key
    named = (config.models, config.labels.diagnosis_groups, config.prepare.segments, config.data.split_names)
    for part in (*named, config.prepare.ranges_codes, config.evaluate.task_horizons_days):
        part.unlock()
    return config


def add_kernel_probes(config: ml_collections.ConfigDict, *names: str) -> None:
    """Adds models with a Gaussian kernel, and means of them and of the models on the table, to config.models.

    <name>_kernel is a probe on the latents of a model, and kernel_table the same on hand-made features. What the first
    model's z adds to the table: boosting_and_<name>_kernel and tables_and_<name>_kernel, plain means with boosting and
    with both boosting and the linear model; tables_and_kernel_table is what one more model of the table alone adds.

    Args:
      names: networks or late fusion of the config, the one that the run is about first.
    """
    kernel = {"family": "tabular", "estimator": "kernel"}
    for name in names:
        config.models[f"{name}_kernel"] = {**kernel, "features": "none", "latents": (name,)}
    config.models.kernel_table = kernel
    boosting, tables = ("gradient_boosting",), ("gradient_boosting", "linear_table")
    for name, members in (
        (f"boosting_and_{names[0]}_kernel", (*boosting, f"{names[0]}_kernel")),
        (f"tables_and_{names[0]}_kernel", (*tables, f"{names[0]}_kernel")),
        ("tables_and_kernel_table", (*tables, "kernel_table")),
    ):
        config.models[name] = {"family": "stacked", "members": members, "weights": "equal"}


def _open(values):
    """A ConfigDict with nested ones; options that are None get their type from the caller."""
    out = ml_collections.ConfigDict()
    for key, value in values.items():
        if value is not None:
            out[key] = _open(value) if isinstance(value, dict) else value
    return out
