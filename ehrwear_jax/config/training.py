"""Declares the options of training: optimisation, devices, fine-tuning."""

import dataclasses

from ehrwear_jax.config import options

SCRATCH = "scratch"  # begins without pretraining
DECAYS = ("cosine", "linear")
MODES = ("head", "lora", "adapter", "full", SCRATCH)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Optimisation (paper, section 3.5 and appendix A.4) and how a run is kept whole."""

    steps: int = options.within(500_000, 1)
    """Optimiser steps."""
    batch_size: int = options.within(32, 0)
    """Rows of the global batch."""
    rows_per_device: int = options.within(0, 0)
    """Rows of the global batch for each device that has rows of its own; batch_size is 0 then. 0: batch_size says it. A
    run goes on with as many devices as it began with."""
    accumulate: int = options.within(1, 1)
    """Parts that a batch is cut into and computed one after another; losses and gradients add up to those of the
    whole."""
    peak_learning_rate: float = options.within(1e-4, 0.0)
    """Learning rate of AdamW after the warmup; see rate_rows."""
    rate_rows: int = options.within(0, 0)
    """Rows of the global batch that peak_learning_rate is meant for: of a batch of N rows it is sqrt(N / rate_rows)
    times that, as noise scales with Adam (Malladi et al. 2022). 0: it is what it says, whatever the batch."""
    warmup_steps: int = options.within(10_000, 0)
    """Steps of the linear warmup from peak / warmup_steps; see decay."""
    decay: str = options.added("cosine")
    """How the rate falls from the warmup to zero at `steps`: cosine or linear."""
    weight_decay: float = options.within(0.01, 0.0)
    """Decay of matrices; norms, biases, embeddings and parameters of the attention kernel have none."""
    clip_norm: float = options.within(1.0, options.ABOVE_0)
    """Norm to which the whole gradient is clipped."""
    adam_b2: float = 0.98
    """Decay of Adam's second moment."""
    ema_decay: float = 0.0
    """Decay of the average of the weights that validation and embedding use; 0: they use the weights themselves."""
    init_from: str = ""
    """Folder of a trained model whose parameters a new run starts from; empty: random ones. It has learned from its own
    training people: nobody who is held out here may be one of them."""
    stop_after: int | None = options.within(None, 1)
    """Step at which the process ends its work, which a later one resumes; None: it runs to `steps`."""
    patience: int = options.within(0, 0)
    """Validations without a lower loss after which training ends and the parameters of the lowest one are used; 0: all
    steps are done, and the last parameters are used."""
    log_every: int = options.within(50, 1)
    """Steps from one line of metrics to the next."""
    validate_every: int = options.within(500, 1)
    """Steps from one validation to the next."""
    validate_batches: int = options.within(8, 0)
    """Batches of the tuning split in a validation; 0: no validation, nor the compilation of one."""
    checkpoint_every: int = options.within(500, 1)
    """Steps from one checkpoint to the next."""
    keep: int = options.within(2, 1)
    """Number of newest checkpoints that are kept."""
    keep_every: int = options.within(0, 0)
    """Checkpoints at multiples of this step are kept as well; 0: none."""
    data_threads: int = options.within(2, 0)
    """Threads that read ahead, in each process."""
    data_workers: int = options.within(0, 0)
    """Further processes that make the batches; 0: the training process does."""
    cache_mib: int = options.within(512, 0)
    """Memory, MiB, that each process may take for people whose records it has made ready."""
    file_cache_mib: int = options.within(8192, 0)
    """Size, MiB, up to which each process keeps those beyond cache_mib in a temporary file, in TMPDIR if it is set
    (which is to be a disk, not memory); it stops growing where the disk would have less than 2 GiB left. Those beyond
    it are read and made ready again at every use."""
    gradients_every: int = options.within(500, 0)
    """Steps from one measurement of every loss term's gradient on z to the next: its norm over the step's batch at
    weight 1, without dropout, is logged as gradient/<term>, and what share of the sum its weight gives it as
    share/<term>. Of a family whose network can be read there. 0: none, nor the compilation of it."""
    weights_from_gradients: bool = False
    """Whether the objective's weights say how the gradient on z is shared among the terms, and not what losses are
    multiplied by, whose scales differ a hundredfold. The multipliers follow from the norms that gradients_every
    measures (from the first step on), averaged, and are logged as weight/<term>; see training/loss_weights.py."""
    gradients_decay: float = 0.9
    """Decay, from one measurement to the next, of the average of norms that weights_from_gradients uses."""
    max_skipped: int = options.within(20, 0)
    """Steps in a row with a loss or gradient that is not finite after which the run ends."""
    spike_factor: float = options.within(8.0, 0.0)
    """Robust deviations above the median of the last losses from which on a loss is logged as a spike; 0: none is."""
    step_timeout_s: float = options.within(1800.0, 0.0)
    """Seconds after which a step counts as hung and the process ends; 0: no limit."""
    profile_at: int = options.within(0, 0)
    """Step from which on a few steps are traced; 0: none."""
    profile_steps: int = options.within(5, 1)
    """Number of steps in a trace, also in one that is asked for while training runs."""

    def __post_init__(self) -> None:
        where = "config.train"
        options.require_within(where, self)
        if (self.batch_size > 0) == (self.rows_per_device > 0):
            raise ValueError(
                f"{where}.batch_size is {self.batch_size} and {where}.rows_per_device {self.rows_per_device}: one of "
                "them says how large the batch is, and the other is 0"
            )
        rows = "rows_per_device" if self.rows_per_device else "batch_size"
        if getattr(self, rows) % self.accumulate:
            raise ValueError(
                f"{where}.accumulate is {self.accumulate}; it must divide {where}.{rows}, {getattr(self, rows)}"
            )
        options.require_choice(where, "decay", self.decay, DECAYS)
        for name in ("adam_b2", "ema_decay", "gradients_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{where}.{name} is {getattr(self, name)}; it must lie in [0, 1)")
        if self.weights_from_gradients and not self.gradients_every:
            raise ValueError(f"{where}.weights_from_gradients takes measurements: {where}.gradients_every is 0")


# Options that change how a trained model is reached, and not the model. What rows_per_device gives is in batch_size;
# what init_from holds is identified by stages/plan.py.
TRAIN_NOT_RESULTS = (
    "rows_per_device", "init_from", "log_every", "validate_every", "validate_batches", "checkpoint_every", "keep",
    "keep_every", "data_threads", "data_workers", "cache_mib", "file_cache_mib", "stop_after", "max_skipped",
    "spike_factor", "step_timeout_s", "profile_at", "profile_steps", "gradients_every", "weights_from_gradients",
    "gradients_decay",
)  # fmt: skip
# Of these, what decides the model after all where an option is on.
TRAIN_RESULTS_WITH = {
    "patience": ("validate_every", "validate_batches"),  # how often and on what is looked decides which are kept
    "rows_per_device": ("rows_per_device",),  # batch_size does not say it yet
    "weights_from_gradients": ("weights_from_gradients", "gradients_every", "gradients_decay"),
}


# Options of fine-tuning that choose what is fine-tuned, and not how, or that stand for others in mode scratch.
FINETUNE_CHOICES = ("models", "modes", "tasks", "scratch_steps", "scratch_learning_rate", "scratch_patience")


# of attention over a row that lies over several devices; ops/kernel_attention/sharded.py knows the same names
CONTEXT_CHOICES = {"context_attention": ("gather", "ring"), "context_layout": ("contiguous", "zigzag")}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh; -1, at one axis, takes the rest."""

    data: int = options.within(-1, -1)
    """Copies of the model, each with rows of its own."""
    fsdp: int = options.within(1, -1)
    """Devices that share one copy of the parameters and of the optimiser's state, each with rows of its own."""
    tensor: int = options.within(1, -1)
    """Devices that share heads and hidden units."""
    context: int = options.within(1, -1)
    """Devices that share the positions of a row."""
    context_attention: str = "gather"
    """How a device comes by the keys of a row that lies over `context`. gather: all at once, which takes room for a
    whole row's keys and values in each layer. ring: part by part, passed around the devices, which takes room for one
    part and as many messages as there are devices."""
    context_layout: str = "contiguous"
    """Which positions of a row a device computes attention for. contiguous: one after the other, for rows of many
    contexts. zigzag: an early and a late part, for rows of one long context, of which late positions see the most: all
    devices of `context` have alike much to do, and half of the queries travel there and back in each layer. What twice
    `context` does not divide stays contiguous."""

    def __post_init__(self) -> None:
        options.require_within("config.mesh", self)
        for name, choices in CONTEXT_CHOICES.items():
            options.require_choice("config.mesh", name, getattr(self, name), choices)


@dataclasses.dataclass(frozen=True)
class CompileConfig:
    """What --stages=describe and compile assume where data would decide."""

    topology: str = "v5e:16x16"
    """TPU slice that is compiled for, such as v5e:16x16."""
    vocabulary: int = options.within(32_768, 1)
    """Number of tokens that the model is assumed to have."""

    def __post_init__(self) -> None:
        options.require_within("config.compile", self)


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """How models are fine-tuned for a task beside their frozen probes (training/finetune.py)."""

    modes: tuple = ()
    """Modes, of head, lora, adapter, full and scratch; empty: nothing is fine-tuned. A fine-tuned model is called
    <model>_<mode>. scratch is a supervised transformer of the same size that was not pretrained: all its initial
    parameters learn the task (training/scratch.py); it needs no pretrained model and does not depend on one."""
    models: tuple = ()
    """Models that are fine-tuned; empty: all that are pretrained."""
    tasks: tuple = ()
    """Tasks that they are fine-tuned for; empty: all that are evaluated."""
    steps: int = options.within(400, 1)
    """Most optimiser steps."""
    warmup_steps: int = options.within(20, 0)
    """Steps of the linear warmup; a cosine follows."""
    batch_size: int = options.within(16, 1)
    """Rows of a batch, each of which holds as many prediction times as its contexts leave room for."""
    learning_rate: float = options.within(3e-4, 0.0)
    """Peak learning rate of low-rank updates and adapters, which are new."""
    full_learning_rate: float = options.within(1e-5, 0.0)
    """Peak learning rate of pretrained parameters."""
    head_learning_rate: float = options.within(1e-3, 0.0)
    """Peak learning rate of the head, in units of its standardised features."""
    weight_decay: float = options.within(0.01, 0.0)
    """Decay of matrices, as in pretraining; low-rank updates have none."""
    clip_norm: float = options.within(1.0, options.ABOVE_0)
    """Norm to which the whole gradient is clipped."""
    dropout: bool = True
    """Whether dropout is on, as in pretraining; never in mode head, whose model is frozen."""
    validate_every: int = options.within(20, 1)
    """Steps from one evaluation on the tuning split to the next."""
    patience: int = options.within(5, 1)
    """Evaluations without a lower loss after which fine-tuning ends."""
    rank: int = options.within(8, 1)
    """Rank of low-rank updates."""
    alpha: float = options.within(16.0, 0.0)
    """Scale of low-rank updates: they are multiplied by alpha / rank."""
    kernels: str = "backbone/blocks/(query|key|value|out|up|down)/kernel"
    """Regular expression of the whole paths of the matrices that have low-rank updates."""
    adapter_width: int = options.within(32, 1)
    """Hidden units of an adapter."""
    scratch_steps: int = options.within(2000, 1)
    """Most optimiser steps of mode scratch, which has further to go."""
    scratch_learning_rate: float = options.within(1e-3, 0.0)
    """Peak learning rate of mode scratch, for all but the head."""
    scratch_patience: int = options.within(20, 1)
    """Evaluations without a lower loss after which mode scratch ends."""

    def __post_init__(self) -> None:
        for mode in self.modes:
            options.require_choice("config.finetune", "modes", mode, MODES)
        options.require_within("config.finetune", self)
