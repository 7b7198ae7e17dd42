"""Declares the options of ContextClues: language models of EHR codes that read long records.

Wornow et al., "Context clues: evaluating long context models for clinical prediction tasks on EHRs" (ICLR 2025). The
defaults are the published sizes of Llama; `llama_base` and `mamba_tiny` name both.
"""

import dataclasses
from typing import Any, ClassVar

from ehrwear_jax.config import options

VOCABULARY = 39_811  # tokens of the published models
CHOICES = {
    "backbone": ("llama", "mamba"),
    "dtype": ("float32", "bfloat16"),
    "remat": ("none", "full", "attention", "products"),
}


# Entries of config.models with the published sizes: 123 and 121 million parameters with VOCABULARY tokens
PUBLISHED: dict[str, dict[str, Any]] = {
    "context_clues": {"family": "context_clues", "train": {"peak_learning_rate": 2e-4}},
    "context_clues_mamba": {
        "family": "context_clues",
        "backbone": "mamba",
        "n_layers": 24,
        "tied_head": True,
        "train": {"peak_learning_rate": 2e-4},
    },
}


@dataclasses.dataclass(frozen=True)
class Config:
    """A language model of EHR events, read at the last of them before a prediction time."""

    # how fast it is computed, and not what
    NOT_RESULTS: ClassVar[tuple[str, ...]] = ("attention", "remat", "unroll", "loss_chunk", "scan_chunk")

    backbone: str = "llama"
    """What joins tokens: llama (attention to all earlier ones) or mamba (a selective state space)."""
    width: int = 768
    """Of tokens and of z."""
    n_layers: int = 8
    """Blocks."""
    n_heads: int = 12
    """Heads of attention of llama; width / n_heads is even, for pairs of features are turned by positions."""
    n_kv_heads: int = 4
    """Heads of llama's keys and values, each shared by as many heads of queries."""
    mlp_width: int = 2688
    """Hidden units of llama's feed-forward part."""
    rotary_theta: float = 500_000.0
    """Base of llama's turns by position: pair f of F is turned by theta^(-f / F) radians a token."""
    state: int = 16
    """Numbers that mamba remembers for each of its hidden units."""
    expand: int = 2
    """Hidden units of mamba, in multiples of the width."""
    conv_width: int = 4
    """Latest tokens that mamba's convolution adds up."""
    step_rank: int = 0
    """Rank of the projection to mamba's step sizes; 0: width / 16, rounded up."""
    tied_head: bool = False
    """Whether the scores of tokens are products with the vectors by which they are read."""
    tokens: int = 4096
    """Capacity of a row for tokens."""
    context_tokens: int = 4096
    """Most tokens of one person in a row: the first, static events, and the latest events; at most `tokens`."""
    static_tokens: int = 64
    """Most static events of a person that are tokens."""
    day_tokens: bool = False
    """Whether a token between events of different days says how many days lie between: 1 to 1080, or more."""
    sites: int = 64
    """Capacity of a row for prediction times."""
    dtype: str = "float32"
    """Of the network's products; the loss, norms, mamba's recurrence and parameters are float32."""
    attention: str | None = None
    """Implementation of attention; None: the best available."""
    remat: str = "none"
    """What the backward pass computes again, see models/layers/transformer.py; mamba's recurrence is always computed
    again, and counts as attention otherwise."""
    unroll: int = 1
    """Blocks in a step of the loop over them."""
    loss_chunk: int = 512
    """Targets of a device whose scores over the vocabulary are alive at once."""
    scan_chunk: int = 64
    """Tokens of a row whose states of mamba are alive at once."""
    adapter_width: int = 0
    """Of an adapter behind each block, for fine-tuning; 0: none."""

    def __post_init__(self) -> None:
        path = "config.models"
        for name, choices in CHOICES.items():
            options.require_choice(path, name, getattr(self, name), choices)
        for name in ("width", "n_layers", "n_heads", "n_kv_heads", "mlp_width", "state", "expand", "conv_width",
                     "sites", "loss_chunk", "scan_chunk"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{path}.{name} is {getattr(self, name)}; it must be positive")
        if self.width % (2 * self.n_heads):
            raise ValueError(f"{path}: width {self.width} is no multiple of two for each of n_heads {self.n_heads}")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"{path}: n_heads {self.n_heads} is no multiple of n_kv_heads {self.n_kv_heads}")
        if not 0 <= self.static_tokens <= self.context_tokens - 2 or self.context_tokens > self.tokens:
            raise ValueError(
                f"{path}: context_tokens {self.context_tokens} must hold two tokens beside static_tokens "
                f"{self.static_tokens}, and be at most tokens {self.tokens}"
            )

    @property
    def inner(self) -> int:
        """Hidden units of mamba."""
        return self.expand * self.width

    @property
    def rank(self) -> int:
        """Rank of the projection to mamba's step sizes."""
        return self.step_rank or -(-self.width // 16)
