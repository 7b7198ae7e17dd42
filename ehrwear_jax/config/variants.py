"""Names what the paper compares: ablations as changes of options, for the argument of a config file."""

from typing import Any

import ml_collections

_OFF = (0.0, 0.0, 0)
# {name: {option: value}}, for `apply_variants`
VARIANTS: dict[str, dict[str, Any]] = {
    # Table 4: without the predictions across modalities, and with nothing else that draws the two together; half of
    # each wearable window hidden; time in bins of a day
    "no_wear_to_ehr": {"joint.weights.wear_to_ehr": _OFF},
    "no_ehr_to_wear": {"joint.weights.ehr_to_wear": _OFF},
    "no_cross_modal": {
        **{f"joint.weights.{t}": _OFF for t in ("wear_to_ehr", "ehr_to_wear", "contrast")},
        "joint.context.pairs": 0,
    },
    "half_masked": {"joint.context.wear_mask": 0.5},
    "day_bins": {"joint.network.day_bins": True},
    # appendix A.6: other encodings of time, other time kernels
    "fourier": {"joint.network.time_encoding": "log_linear"},
    "gaussian": {"joint.network.time_encoding": "gaussian"},
    **{f"r{n}": {"joint.network.kernel": "mixture", "joint.network.n_components": n} for n in (1, 2, 4, 8)},
    "single_exponential": {"joint.network.kernel": "mixture", "joint.network.n_components": 1},
    "rational_quadratic": {"joint.network.kernel": "rational_quadratic"},
    "no_time_kernel": {"joint.network.kernel": "none"},
    # section 3.3: the regularisers, and the readout of the wearable window
    "contrast": {"joint.context.pairs": 8, "joint.weights.contrast": (0.05, 0.05, 0)},
    "no_contrast": {"joint.context.pairs": 0, "joint.weights.contrast": _OFF},
    "fixed_temperature": {"joint.network.learn_temperature": False},
    "temporal_readout": {"joint.network.pool": "temporal"},
    # section 3.4; the other terms are means per prediction, where the ELBO sums over the steps of a window
    "elbo": {"joint.network.posterior": "normal", "joint.weights.latent_kl": (0.0, 0.01, 50_000)},
    # the terms of the paper's sections 3.3 and 3.5 only, of those that make z a summary of the record
    "paper_losses": {
        f"joint.weights.{t}": _OFF
        for t in ("future_event", "future_codes", "ehr_history", "wear_history")
        + ("ehr_values", "next_value", "wear_values")
    },
    # no loss across modalities shapes z; their heads are trained all the same
    "detached": {"joint.network.detach_cross_modal": True},
    "averaged": {"train.ema_decay": 0.9999},
}


def variants(argument: str, file: str, own: tuple[str, ...] = ()) -> list[str]:
    """The names in the argument of a config file, joined by "+": its own ones and those of VARIANTS.

    Raises:
      ValueError: another name.
    """
    names = [v for v in argument.split("+") if v]
    if unknown := [v for v in names if v not in own and v not in VARIANTS]:
        known = ", ".join((*own, *VARIANTS))
        raise ValueError(f"configs/{file} has no variant {unknown[0]!r}; there are {known}")
    return names


def apply_variants(config: ml_collections.ConfigDict, names: list[str]) -> None:
    """Sets what VARIANTS says for each name in it, in this order, and appends all names to that of the config.

    Ramps that are longer than the run's first tenth, as in a small experiment, are cut to it.
    """
    for name in names:
        for option, value in VARIANTS.get(name, {}).items():
            part, _, key = option.rpartition(".")
            target = config
            for step in part.split("."):
                target = target[step]
            if part == "joint.weights":
                value = (*value[:2], min(value[2], config.train.steps // 10))
            target[key] = value
    config.name = "-".join([config.name, *names])
