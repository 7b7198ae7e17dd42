"""Declares the options of CEHR-BERT: a bidirectional transformer of EHR events with tokens of the time between visits.

Pang et al., "CEHR-BERT: incorporating temporal information from structured EHR data to improve prediction tasks" (ML4H
2021). The defaults are the sizes of its published PyTorch implementation, with the visit types of the paper; `original`
has those of the implementation alone. `behrt` and `med_bert` are further models of the same parts:

    BEHRT     Li et al., "BEHRT: transformer for electronic health records" (Scientific Reports 2020)
    Med-BERT  Rasmy et al., "Med-BERT: pretrained contextualized embeddings on large-scale structured electronic health
              records for disease prediction" (npj Digital Medicine 2021)
"""

import dataclasses
from typing import Any, ClassVar

from ehrwear_jax.config import options

TOKENS = 20_000  # concepts of the published implementation's defaults
CHOICES = {
    "inputs": ("cehr_bert", "behrt", "med_bert"),
    "visit_tokens": ("both", "end", "none"),
    "time_tokens": ("weeks", "day", "mix", "none"),
    "readout": ("mean", "cls"),
    "dtype": ("float32", "bfloat16"),
    "remat": ("none", "full", "attention", "products"),
}


# Entries of config.models with the sizes and rates of the published implementations. CEHR-BERT's has no static events
# and no visit types. BEHRT's visits end with a token and their time is told by age alone. Med-BERT has no tokens beside
# codes, but long stays, and 64 hidden units.
PUBLISHED: dict[str, dict[str, Any]] = {
    "cehr_bert": {
        "family": "cehr_bert",
        "static_tokens": 0,
        "visit_weight": 0.0,
        "train": {"peak_learning_rate": 5e-5},
    },
    "behrt": {
        "family": "cehr_bert",
        "width": 288,
        "n_layers": 6,
        "n_heads": 12,
        "mlp_width": 512,
        "tokens": 64,
        "context_tokens": 64,
        "static_tokens": 0,
        "inputs": "behrt",
        "visit_tokens": "end",
        "time_tokens": "none",
        "visit_weight": 0.0,
        "train": {"peak_learning_rate": 3e-5},
    },
    "med_bert": {
        "family": "cehr_bert",
        "width": 192,
        "n_layers": 6,
        "n_heads": 6,
        "mlp_width": 64,
        "static_tokens": 0,
        "inputs": "med_bert",
        "visit_tokens": "none",
        "time_tokens": "none",
        "visit_weight": 0.0,
        "long_stay_weight": 1.0,
        "train": {"peak_learning_rate": 5e-5},
    },
}


@dataclasses.dataclass(frozen=True)
class Config:
    """A bidirectional model of EHR events, which is given at a prediction time what is known by then."""

    # how fast it is computed, and not what
    NOT_RESULTS: ClassVar[tuple[str, ...]] = ("attention", "remat", "unroll", "target_chunk")

    width: int = 128
    """Of tokens and of z."""
    n_layers: int = 12
    """Blocks of attention and a feed-forward part."""
    n_heads: int = 8
    """Heads of attention."""
    mlp_width: int = 2048
    """Hidden units of the feed-forward part."""
    time_features: int = 16
    """Sines of calendar time, of age, and numbers that tell a visit's place among the visits; each so many."""
    dropout: float = 0.1
    """Of what blocks add to their input."""
    attention_dropout: float = 0.1
    """Of attention weights."""
    tokens: int = 512
    """Capacity of a row for tokens."""
    context_tokens: int = 512
    """Most tokens of one person in a row, with those that are no events; at most `tokens`."""
    visits: int = 128
    """Capacity of a row for visits whose types are predicted; of more, the earliest have none."""
    sites: int = 32
    """Capacity of a row for prediction times at which z is read."""
    static_tokens: int = 8
    """Most static events that are tokens behind a context's first one, in their order; 0: none, as in the original."""
    inputs: str = "cehr_bert"
    """What tokens are told beside what they are. cehr_bert: values, time, age and visits, joined by a product; behrt:
    age in months, the visit's number and its turn, added up; med_bert: the visit's number and the place, added up."""
    visit_tokens: str = "both"
    """Which tokens stand around a visit's: of its begin and end, of its end, or none."""
    time_tokens: str = "weeks"
    """How the time between visits is said: weeks, months and a long time; day: in days; mix: in days, weeks, months;
    none: not by tokens, nor is the time inside a visit. See models/cehr_bert/time_tokens.py."""
    value_bins: bool = False
    """Whether bins of values are tokens of their own; False: values are merged into the token of their code alone."""
    admission_codes: tuple = ("HOSPITAL_ADMISSION",)
    """Codes of admissions, or what they start with before "//": each is a type of visits, of several days if there are
    discharges."""
    discharge_codes: tuple = ("HOSPITAL_DISCHARGE",)
    """Codes of discharges, the same way. Where the data have none, or no admissions, a visit is the events of a day."""
    longest_stay_days: float = 365.0
    """Longest time from an admission to a discharge that ends its visit."""
    encounter_codes: tuple = ()
    """Codes that say the type of a visit of one day, the same way, such as one of each kind of clinic."""
    masked: float = 0.15
    """Share of tokens that are predicted: 80% of them hidden, 10% replaced by another token, 10% left as they are."""
    visits_masked: float = 0.5
    """Share of visits whose type is hidden and predicted."""
    visit_weight: float = 1.0
    """Of the loss of visit types; 0: no decoder. It is left out too where all visits are of one type."""
    visit_mlp_width: int = 512
    """Hidden units of the decoder of visit types."""
    long_stay_weight: float = 0.0
    """Of the loss of whether a context holds a stay longer than long_stay_days, by its first token; 0: none."""
    long_stay_days: float = 7.0
    """Length of a long stay."""
    value_weight: float = 0.0
    """Of the squared error of the values of masked tokens, in standard deviations; 0: not predicted."""
    readout: str = "mean"
    """What z is: the mean of the states of a context's tokens, or the state of its first one."""
    fit_people: int = 2_000
    """Most training people, spread evenly, on whose records it is measured how many tokens an event takes."""
    dtype: str = "float32"
    """Of the network's products; the losses, norms and parameters are float32."""
    target_chunk: int = 512
    """Predicted tokens of a device whose scores over all tokens are alive at once."""
    attention: str | None = None
    """Implementation of attention; None: the best available."""
    remat: str = "none"
    """What the backward pass computes again, see models/layers/transformer.py."""
    unroll: int = 1
    """Blocks in a step of the loop over them."""
    adapter_width: int = 0
    """Of an adapter behind each part of a block, for fine-tuning; 0: none."""

    def __post_init__(self) -> None:
        path = "config.models"
        for name, choices in CHOICES.items():
            options.require_choice(path, name, getattr(self, name), choices)
        for name in ("width", "n_layers", "n_heads", "mlp_width", "visits", "sites", "visit_mlp_width", "fit_people",
                     "target_chunk"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{path}.{name} is {getattr(self, name)}; it must be positive")
        unit, many = (0.0, 1.0), float("inf")
        limits = {"masked": (1e-9, 1.0), "visits_masked": unit, "dropout": (0.0, 0.99)}
        limits |= {"attention_dropout": (0.0, 0.99), "visit_weight": (0.0, many), "value_weight": (0.0, many)}
        limits |= {"static_tokens": (0, many), "longest_stay_days": (0.0, many), "long_stay_weight": (0.0, many)}
        options.require_range(path, self, limits)
        if self.width % self.n_heads:
            raise ValueError(f"{path}: width {self.width} is no multiple of n_heads {self.n_heads}")
        if self.time_features < 2 or self.time_features % 2:
            raise ValueError(f"{path}.time_features is {self.time_features}; it must be even and positive")
        if max(self.value_weight, self.visit_weight) > 0 and self.inputs != "cehr_bert":
            raise ValueError(
                f"{path}: visit_weight {self.visit_weight} and value_weight {self.value_weight} must be 0 with inputs "
                f"{self.inputs!r}, which tell neither values nor dates"
            )
        if not self.static_tokens + 2 <= self.context_tokens <= self.tokens:
            raise ValueError(
                f"{path}: context_tokens {self.context_tokens} must be above static_tokens {self.static_tokens} + 1 "
                f"and at most tokens {self.tokens}"
            )
