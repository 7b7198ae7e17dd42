"""Names what the paper compares: ablations as changes of options, for the argument of a config file.

An ablation changes one thing of one base, `paper` or `extended` (bases.py). What the extended base has beside the
paper's and what would stand in for the thing taken away, goes with it: `ON_EXTENDED`.
"""

from typing import Any

import ml_collections

from ehrwear_jax.config import bases

_OFF = bases.OFF
# The bound in place of the reconstruction of hidden content, which it contains. Its divergence has its weight after the
# ramp, as the states of a random network cost much.
_ELBO: dict[str, Any] = {
    "joint.network.posterior": "normal",
    "joint.weights.latent_kl": (0.0, 1.0, 50_000),
    **{f"joint.weights.{t}": (1.0, 1.0, 0) for t in ("event_likelihood", "signal_likelihood")},
    **{f"joint.weights.{t}": _OFF for t in ("ehr_masked", "wear_masked")},
}
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
    # sections 3.4 and 7
    "elbo": _ELBO,
    "latent_sde": {**_ELBO, "joint.network.posterior": "sde"},
    # the losses of the paper alone, with all inputs of the base
    "paper_losses": {
        f"joint.{option}": value
        for addition in bases.ADDITIONS
        for option, value in addition.absent.items()
        if option.startswith("weights.")
    },
    # no loss across modalities shapes z; their heads are trained all the same
    "detached": {"joint.network.detach_cross_modal": True},
    "averaged": {"train.ema_decay": 0.9999},
    # weights are shares of the gradient on z, as it is measured; see training/loss_weights.py
    "balanced": {"train.weights_from_gradients": True, "train.gradients_every": 100},
}
# what z is asked about the other modality's future, beside the paper's two losses
_CROSS = {f"joint.weights.{t}": _OFF for t in ("future_event", "future_codes", "next_value")}
# Further options of an ablation of the extended base: losses through which one modality is predicted from the other all
# the same; decay rates of the counts, which are exponentials of the elapsed time like those of the kernel.
ON_EXTENDED: dict[str, dict[str, Any]] = {
    "no_cross_modal": _CROSS,
    **{f"r{n}": {"joint.network.count_rates": n + 1} for n in (1, 2, 4, 8)},
    "single_exponential": {"joint.network.count_rates": 2},
    "rational_quadratic": {"joint.network.count_rates": 1},
    "no_time_kernel": {"joint.network.count_rates": 1},
}
# {name: ablations}, each of which becomes a model of its own beside the others
TABLES: dict[str, tuple[str, ...]] = {
    "table4": ("no_wear_to_ehr", "no_ehr_to_wear", "no_cross_modal", "day_bins", "half_masked"),
    "a6": ("r1", "r2", "r8", "rational_quadratic", "gaussian", "elbo", "no_contrast"),
}


def variants(argument: str, file: str, own: tuple[str, ...] = ()) -> list[str]:
    """The names in the argument of a config file, joined by "+": its own, the bases, those of TABLES and of VARIANTS.

    Raises:
      ValueError: another name.
    """
    names = [v for v in argument.split("+") if v]
    known = (*own, *bases.NAMES, *TABLES, *VARIANTS)
    if unknown := [v for v in names if v not in known]:
        raise ValueError(f"configs/{file} has no variant {unknown[0]!r}; there are {', '.join(known)}")
    return names


def chosen_base(names: list[str], default: str = "extended") -> str:
    """The base that variants name; of two, the extended one (`paper` stands beside it); else the default."""
    named = [n for n in bases.NAMES if n in names]
    return named[-1] if named else default


def options_of(name: str, base: str) -> dict[str, Any]:
    """{option: value} of an ablation of a base; {} of another variant."""
    return VARIANTS.get(name, {}) | (ON_EXTENDED.get(name, {}) if base == "extended" else {})


def model_of(name: str, base: str, steps: int) -> dict[str, Any]:
    """The entry of config.models for a joint model that is an ablation of the config's.

    Args:
      steps: of the training, whose first tenth no ramp outlasts.
    """
    entry: dict[str, Any] = {"family": "joint"}
    for option, value in options_of(name, base).items():
        *path, key = option.removeprefix("joint.").split(".")
        part = entry
        for step in path:
            part = part.setdefault(step, {})
        part[key] = _cut(option, value, steps)
    return entry


def apply_variants(config: ml_collections.ConfigDict, names: list[str], default: str = "extended") -> None:
    """Makes the config's models those of the base, then sets what each ablation says, in this order.

    "paper+extended" compares the two: a model joint_paper stands beside the others, which are extended. Of a name in
    TABLES each ablation is trained as a model beside the joint one. The name of the config gets all names, and that of
    the base where there are ablations. Ramps that are longer than the run's first tenth, as in a small experiment, are
    cut to it.

    Args:
      default: the file's base where names have none.

    Raises:
      ValueError: a table of ablations of a config without a joint model.
    """
    base, both = chosen_base(names, default), set(bases.NAMES) <= set(names)
    if base == "paper":
        _update(config.joint, bases.paper_options())
    if both:
        config.models.joint_paper = {"family": "joint", **bases.paper_options()}
    for name in (n for n in names if n in VARIANTS):
        for option, value in options_of(name, base).items():
            part, _, key = option.rpartition(".")
            target = config
            for step in part.split("."):
                target = target[step]
            target[key] = _cut(option, value, config.train.steps)
    for table in (n for n in names if n in TABLES):
        if "joint" not in config.models:
            raise ValueError(f"variant {table!r}: the config has no joint model, of which there could be ablations")
        config.models.update({name: model_of(name, base, config.train.steps) for name in TABLES[table]})
    told = [base] if base not in names and {*VARIANTS, *TABLES} & set(names) else []
    config.name = "-".join([config.name, *told, *names])


def _cut(option, value, steps):
    """An option's value; the ramp of a weight no longer than a tenth of the training."""
    return (*value[:2], min(value[2], steps // 10)) if option.startswith("joint.weights.") else value


def _update(part, values):
    for key, value in values.items():
        if isinstance(value, dict):
            _update(part[key], value)
        else:
            part[key] = value
