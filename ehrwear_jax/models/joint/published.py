"""Sets a config of the joint family beside the paper's: each number of appendix A.4, each loss of section 3.3."""

from typing import NamedTuple

from ehrwear_jax.config import bases, options
from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.config.training import TrainConfig
from ehrwear_jax.models.joint.config import Config


class Published(NamedTuple):
    """One thing that the paper says of its model.

    Attributes:
      what: in words. paper: what the paper says. here: the same of a config.
    """

    what: str
    paper: str
    here: str


# term -> what the paper calls it; those of the extended base are in config/bases.py
TERMS = {
    "ehr_masked": "masked EHR tokens",
    "wear_masked": "masked wearable signal, reconstructed",
    "future_signal": "windows ahead, predicted",
    "wear_to_ehr": "wearable to EHR",
    "ehr_to_wear": "EHR to wearable",
    "contrast": "contrastive alignment",
    "content_norm": "embedding norm penalty",
}
_WEIGHTS = {
    "ehr_masked": "1 throughout",
    "wear_masked": "1 throughout",
    "future_signal": "1 throughout",
    "wear_to_ehr": "0.2 to 1 over 50,000 steps",
    "ehr_to_wear": "0.1 throughout",
    "contrast": "small",
    "content_norm": "small",
}
_SMALL = 0.1  # the largest weight that is called small


def published(config: Config, train: TrainConfig, prepare: PrepareConfig) -> list[Published]:
    """What the paper says of its model, and what a config has in its place; first appendix A.4, then the losses.

    docs/reading_the_paper.md says why windows differ, and what a patient-day is taken to be.
    """
    n, c = config.network, config.context
    whole = [
        ("backbone: layers", "24", n.n_layers),
        ("backbone: width", "1024", n.width),
        ("backbone: feed-forward units", "4096", n.mlp_width),
        ("backbone: heads", "16", n.n_heads),
        ("backbone: dropout", "0.1", n.dropout),
        ("wearable encoder: layers", "6", n.wear_layers),
        ("wearable encoder: width", "512", n.wear_width),
        ("wearable encoder: windows", "30 s", _windows(config, prepare)),
        ("EHR embedding: token width", "512", n.token_width),
        ("EHR embedding: time features", "128", n.time_features),
        ("time encoding", "log-linear frequencies", {"log_linear": "log-linear frequencies"}.get(n.time_encoding)),
        ("time kernel", "mixture of exponentials", {"mixture": "mixture of exponentials"}.get(n.kernel)),
        ("time kernel: components", "4", n.n_components),
        ("masked EHR tokens", "15%", f"{100 * c.ehr_mask * c.masked_contexts:g}%"),
        ("masked wearable signal", "25%", f"{100 * c.wear_mask * c.masked_contexts:g}%"),
        ("masked wearable signal lies", "contiguous", c.wear_mask_kind),
        ("contexts a device", "32", train.rows_per_device or train.batch_size),
        ("contexts that end with a patient-day", "100%", f"{100 * c.patient_days:g}%"),
        ("optimiser: rate", "0.0001", "scaled by rows" if train.rate_rows else f"{train.peak_learning_rate:g}"),
        ("optimiser: weight decay", "0.01", f"{train.weight_decay:g}"),
        ("optimiser: gradient norm", "1", f"{train.clip_norm:g}"),
        ("steps of warmup", "10000", train.warmup_steps),
        ("steps", "500000", train.steps),
    ]
    found = [Published(what, paper, str(here)) for what, paper, here in whole]
    found += [Published(f"loss: {words}", _WEIGHTS[t], _weight(config, t)) for t, words in TERMS.items()]
    return found


def _windows(config, prepare):
    raw = prepare.segments.get(config.context.raw_segments)
    parts = f"{prepare.window_hours} h of {prepare.step_minutes} min"
    return parts if raw is None else f"{parts}, {raw.seconds:g} s of raw signal in them"


def additions(config: Config) -> list[str]:
    """What the config has beside the paper's model, in words; empty where it is the paper's."""
    return bases.added(options.as_dict(config))


def _weight(config, term):
    """The weight of a loss in words."""
    start, end, steps = config.weights[term]
    if not start and not end:
        return "none"
    if _WEIGHTS[term] == "small":
        return "small" if start == end <= _SMALL else f"{start:g} to {end:g}"
    return f"{start:g} throughout" if start == end else f"{start:g} to {end:g} over {steps:,} steps"
