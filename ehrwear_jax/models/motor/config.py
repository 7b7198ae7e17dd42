"""Declares the options of MOTOR: a transformer of EHR events pretrained on the times to later events.

Steinberg, Fries, Xu and Shah, "MOTOR: a time-to-event foundation model for structured medical records" (ICLR 2024).
The defaults are the published sizes: 143 million parameters with a dictionary of 65,536 entries (`DICTIONARY`).
`clmbr` has those of CLMBR, the same network pretrained on the next code (Steinberg et al., "Language models are an
effective representation learning technique for electronic health record data", 2021; CLMBR-T-base of EHRSHOT, 2023).
"""

import dataclasses
from typing import Any, ClassVar

from ehrwear_jax.config import options

DICTIONARY = 65_536  # entries of the published model
CHOICES = {
    "predicts": ("times", "next_code"),
    "dtype": ("float32", "bfloat16"),
    "remat": ("none", "full", "attention", "products"),
}


# Entries of config.models with the published sizes: 143 and 141 million parameters with DICTIONARY entries
PUBLISHED: dict[str, dict[str, Any]] = {
    "motor": {"family": "motor", "train": {"peak_learning_rate": 1e-4}},
    "clmbr": {"family": "motor", "predicts": "next_code", "tasks": 8192, "train": {"peak_learning_rate": 1e-4}},
}


@dataclasses.dataclass(frozen=True)
class Config:
    """A model of EHR events, read at the last of them before a prediction time."""

    # how fast it is computed, and not what
    NOT_RESULTS: ClassVar[tuple[str, ...]] = ("attention", "remat", "unroll")

    width: int = 768
    """Of tokens and of z."""
    n_layers: int = 12
    """Blocks of attention beside a feed-forward part."""
    n_heads: int = 12
    """Heads of attention; width / n_heads is even, for pairs of features are turned by age."""
    mlp_width: int = 3072
    """Hidden units of the feed-forward part."""
    attention_window: int = 496
    """Number of tokens that a token sees: itself and the latest before it, of its own person."""
    normed_ages: bool = True
    """Whether tokens are told their age in standard deviations of training, and its square. Rotation tells differences
    of ages alone."""
    tokens: int = 2048
    """Capacity of a row for tokens."""
    context_tokens: int = 2048
    """Most tokens of one person in a row, the latest; at most `tokens`."""
    features: int = 16
    """Most entries of the dictionary that a token adds up: of an event its value or text, its code and the code's
    ancestors, of which the most general are left out first; of a person's first token those of static events."""
    drop_repeats: bool = True
    """Whether of events with the same token on one day only the first is a token. All of them are predicted."""
    sites: int = 204
    """Capacity of a row for places where times to events are predicted, shared among its people by their tokens; a
    tenth of the tokens in the original."""
    pairs: int = 32_768
    """Capacity of a row for pairs of a place and a code that follows. A place for whose codes there is no room is left
    out with all of them."""
    tasks: int = 8192
    """Number of codes and ancestors of codes whose times are predicted, the most informative, see
    timelines.informative."""
    min_task_share: float = 0.001
    """Share of the training people that have such a code, at least."""
    time_bins: int = 8
    """Pieces of time in which hazards are constant, between quantiles of the times to events."""
    task_width: int = 512
    """Width of what a place and a piece of time say, which all codes read."""
    fit_people: int = 20_000
    """Most training people, spread evenly, on whose records codes, pieces of time and rates are fitted."""
    fit_sites: int = 8
    """Most places of each of these people at which times to events are measured."""
    dtype: str = "float32"
    """Of the network's products; the loss, norms and parameters are float32."""
    attention: str | None = None
    """Implementation of attention; None: the best available."""
    remat: str = "none"
    """What the backward pass computes again, see models/layers/transformer.py."""
    unroll: int = 1
    """Blocks in a step of the loop over them."""
    adapter_width: int = 0
    """Of an adapter behind each block, for fine-tuning; 0: none."""
    predicts: str = options.added("times")
    """What is pretrained on: times, those to later codes (MOTOR), or next_code, the code of each token's next one where
    it is one of the tasks (CLMBR)."""

    def __post_init__(self) -> None:
        path = "config.models"
        for name, choices in CHOICES.items():
            options.require_choice(path, name, getattr(self, name), choices)
        for name in ("width", "n_layers", "n_heads", "mlp_width", "attention_window", "features", "sites", "pairs",
                     "tasks", "time_bins", "task_width", "fit_people", "fit_sites"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{path}.{name} is {getattr(self, name)}; it must be positive")
        if self.width % (2 * self.n_heads):
            raise ValueError(f"{path}: width {self.width} is no multiple of two for each of n_heads {self.n_heads}")
        if not 2 <= self.context_tokens <= self.tokens:
            raise ValueError(
                f"{path}: context_tokens {self.context_tokens} must be at least 2 and at most tokens {self.tokens}"
            )

    @property
    def reach(self) -> int:
        """Number of the latest tokens that z depends on: each layer looks a window further back."""
        return min(self.context_tokens, self.n_layers * (self.attention_window - 1) + 1)
