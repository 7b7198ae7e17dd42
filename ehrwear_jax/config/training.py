"""Declares the options of training: optimisation, devices, fine-tuning."""

import dataclasses

from ehrwear_jax.config import options

MODES = ("head", "lora", "adapter", "full")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Optimisation (paper, section 3.5 and appendix A.4) and how a run is kept whole."""

    steps: int = 500_000
    """Optimiser steps."""
    batch_size: int = 32
    """Rows of the global batch."""
    rows_per_device: int = 0
    """If positive, the global batch has so many rows for each device that has rows of its own, and batch_size is 0. A
    run goes on with as many devices as it began with."""
    accumulate: int = 1
    """Micro-batches per step: as many fewer rows at a time, the same sums."""
    peak_learning_rate: float = 1e-4
    """Of AdamW, after the warmup."""
    warmup_steps: int = 10_000
    """Linear, from peak / warmup_steps; then a cosine to zero at `steps`."""
    weight_decay: float = 0.01
    """Of matrices; norms, biases, embeddings and parameters of the attention kernel have none."""
    clip_norm: float = 1.0
    """Of the whole gradient."""
    adam_b2: float = 0.98
    """Decay of Adam's second moment."""
    ema_decay: float = 0.0
    """Of the average of the weights that validation and embedding use; 0: they use the weights themselves."""
    init_from: str = ""
    """A trained model's folder whose parameters a new run starts from; empty: from random ones."""
    stop_after: int | None = None
    """End the process's work at this step (the run can be resumed); None runs to `steps`."""
    patience: int = 0
    """Validations without a lower loss before the end, and the parameters of the lowest one are used; 0: all steps are
    done, and the last parameters are used."""
    log_every: int = 50
    """In steps."""
    validate_every: int = 500
    """In steps."""
    validate_batches: int = 8
    """Batches of the tuning split."""
    checkpoint_every: int = 500
    """In steps."""
    keep: int = 2
    """Newest checkpoints that are kept."""
    keep_every: int = 0
    """Checkpoints at multiples of this step are kept for good; 0: none."""
    data_threads: int = 2
    """That read ahead, in each process."""
    data_workers: int = 0
    """Further processes that make the batches; 0: the training process does."""
    max_skipped: int = 20
    """So many steps in a row that are not finite end the run."""
    spike_factor: float = 8.0
    """A loss so many robust deviations over the median of the last ones is noted; 0: none is."""
    step_timeout_s: float = 1800.0
    """A step that takes longer has hung and ends the process; 0: may take forever."""
    profile_at: int = 0
    """Trace steps from this one on; 0: none."""
    profile_steps: int = 5
    """How many steps a trace covers, also one that is asked for."""

    def __post_init__(self) -> None:
        where = "config.train"
        if (self.batch_size > 0) == (self.rows_per_device > 0):
            raise ValueError(
                f"{where}.batch_size is {self.batch_size} and {where}.rows_per_device {self.rows_per_device}: one of "
                "them says how large the batch is, and the other is 0"
            )
        rows = "rows_per_device" if self.rows_per_device else "batch_size"
        if self.accumulate < 1 or getattr(self, rows) % self.accumulate:
            raise ValueError(
                f"{where}.accumulate is {self.accumulate}; it must divide {where}.{rows}, {getattr(self, rows)}"
            )
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"{where}.ema_decay is {self.ema_decay}; it must lie in [0, 1)")


# Options that change how a trained model is reached, and not the model; what rows_per_device gives is in batch_size.
TRAIN_NOT_RESULTS = (
    "rows_per_device", "log_every", "validate_every", "validate_batches", "checkpoint_every", "keep", "keep_every",
    "data_threads", "data_workers", "stop_after", "max_skipped", "spike_factor", "step_timeout_s", "profile_at",
    "profile_steps",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh; -1, at one axis, takes the rest."""

    data: int = -1
    """Copies of the model, each with rows of its own."""
    fsdp: int = 1
    """Devices that share one copy of the parameters and of the optimiser's state, each with rows of its own."""
    tensor: int = 1
    """Devices that share heads and hidden units."""
    context: int = 1
    """Devices that share the positions of a row."""


@dataclasses.dataclass(frozen=True)
class CompileConfig:
    """What --stages=describe and compile assume where data would decide."""

    topology: str = "v5e:16x16"
    """The TPU slice that is compiled for."""
    vocabulary: int = 32_768
    """Number of tokens."""


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """How models are fine-tuned for a task beside their frozen probes (training/finetune.py)."""

    modes: tuple = ()
    """Of head, lora, adapter, full; empty: nothing is fine-tuned. A model is called <model>_<mode>."""
    models: tuple = ()
    """Which models; empty: all that are pretrained."""
    tasks: tuple = ()
    """For which tasks; empty: all that are evaluated."""
    steps: int = 400
    """At most so many."""
    warmup_steps: int = 20
    """Linear, then a cosine."""
    batch_size: int = 16
    """Rows of a batch, each of which holds as many prediction times as its contexts leave room for."""
    learning_rate: float = 3e-4
    """Peak, of low-rank updates and adapters, which are new."""
    full_learning_rate: float = 1e-5
    """Peak, of pretrained parameters."""
    head_learning_rate: float = 1e-3
    """Peak, of the head, in units of its standardised features."""
    weight_decay: float = 0.01
    """Of kernels, as in pretraining; low-rank updates have none."""
    clip_norm: float = 1.0
    """Of the whole gradient."""
    dropout: bool = True
    """As in pretraining; never in mode head, whose model is frozen."""
    validate_every: int = 20
    """Steps between looks at the tuning split."""
    patience: int = 5
    """Looks without a better loss before the end."""
    rank: int = 8
    """Of low-rank updates."""
    alpha: float = 16.0
    """Low-rank updates are scaled by alpha / rank."""
    kernels: str = "backbone/blocks/(query|key|value|out|up|down)/kernel"
    """Which kernels have low-rank updates, by their whole path."""
    adapter_width: int = 32
    """Hidden units of an adapter."""

    def __post_init__(self) -> None:
        for mode in self.modes:
            options.require_choice("config.finetune", "modes", mode, MODES)
        sizes = (self.steps, self.batch_size, self.validate_every, self.patience, self.rank, self.adapter_width)
        if min(sizes) < 1:
            raise ValueError(f"config.finetune: steps, sizes and patience must be positive: {self}")
