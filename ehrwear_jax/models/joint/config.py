"""Declares the options of the joint family: the paper's model of linked EHR events and wearable signals."""

import dataclasses
from typing import ClassVar

from ehrwear_jax.config import options
from ehrwear_jax.config.data import PrepareConfig

MODALITIES = ("ehr", "wear")
WEAR_MASKS = ("contiguous", "random", "window", "channel")
MAX_STATIC = 16  # room for static tokens in a row of a model without EHR, all but one of a patient's
MAX_WARP = 0.1  # up to 1 / (3 pi) = 0.106 time runs forward everywhere, see augmentation.warp_positions
# of options of the network; the modules that take them know the same names
NETWORK_CHOICES = {
    "time_encoding": ("log_linear", "gaussian"),
    "wear_encoder": ("transformer", "tcn"),
    "kernel": ("mixture", "rational_quadratic", "none"),
    "pool": ("attention", "temporal"),
    "posterior": ("point", "normal", "sde"),
    "residual_init": ("fan_in", "depth"),
    "query": ("learned", "hidden"),
    "remat": ("none", "full", "attention", "products"),
    "wear_remat": ("none", "full", "attention", "products"),
    "dtype": ("float32", "bfloat16"),
}
LIKELIHOODS = ("event_likelihood", "signal_likelihood")  # with latent_kl, the terms of the ELBO
_MANY = float("inf")


@dataclasses.dataclass(frozen=True)
class ContextConfig:
    """How patients become rows of a batch, what is hidden, and what is predicted; times in days."""

    tokens: int = options.within(128, 1)
    """Capacity of a row for EHR tokens. A row of a model of both modalities has room for `windows` more: what it is
    given of one does not depend on how much there is of the other, so that it sees all that models of one modality
    see. What a row's windows leave free, more EHR tokens take."""
    windows: int = options.within(64, 0)
    """Capacity of a row for wearable windows, and most windows of one patient: the latest."""
    window_parts: int = 1
    """Equal parts of a row's slots for windows that are left out where a batch does not need them: the encoder is
    compiled for each number of parts, a batch takes that which its fullest row needs, and without windows skips it.
    Training rows of several patients are packed into as many parts as rows fill on average, see packing.row_limits.
    What a window says depends on the number by rounding alone. Each number keeps what its own backward pass needs,
    zeros where another is taken: 2 take half as much memory again, and skipping costs the least with wear_remat=full.
    1: all slots are encoded, empty or not."""
    context_tokens: int = options.within(128, 1)
    """Most EHR tokens of one patient in a row, static ones included, then the latest events; at most `tokens`."""
    queries: int = options.within(8, 0)
    """Capacity of a row for queries at free times, shared among its contexts by their length."""
    queries_behind: float = options.within(0.0, 0, 1)
    """Share of queries that are moved behind the last token of their context, to any time before the next token or the
    end of follow-up, where labels are read."""
    events: int = options.within(16, 0)
    """Capacity of a row for predictions at events, shared among its contexts by their length."""
    every_time: bool = False
    """Whether predictions are made at every distinct time of a context's events, and not at so many as `events` says.
    Tokens are scored over the vocabulary only where there is a target; what terms compare at each event (pooled
    windows, next values) takes memory by the row's tokens."""
    future_windows: int = options.within(4, 0)
    """Number of windows ahead that are predicted (multi-step prediction of the signal)."""
    horizons: tuple = (30, 90, 180, 365)
    """Horizons of the prediction of future codes and of the reconstruction of past ones, days."""
    future_codes: int = options.within(128, 0)
    """Number of codes and ancestors of codes, the most frequent ones, that are predicted."""
    history_tokens: int = 256
    """Number of tokens, the most frequent ones, that are reconstructed."""
    value_codes: int = options.within(64, 0)
    """Number of numeric codes, those with the most values, whose state of values is predicted (ehr_values)."""
    value_spans: tuple = (365.0,)
    """Spans back from a query, days, over which the state of values has a mean, maximum, minimum, trend and count."""
    next_values: int = 8
    """Most values of the next time of measurement that are predicted at a place, given their codes (next_value)."""
    wear_spans: tuple = (1.0, 7.0)
    """Spans back from a query, days, over which the state of each channel has a mean, spread and trend (wear_values);
    the windows that end within one count."""
    pairs: int = 0
    """Capacity of a row for pairs of a wearable window and the EHR events within colocated_days of its end, which
    contrastive alignment compares (paper, section 3.3: temporally co-located); 0 leaves it out."""
    colocated_days: float = 7.0
    """Days from the end of a window within which EHR events form a pair with it; see pairs."""
    pool_days: float = 30.0
    """Days of signal before an event that the wearable-to-EHR term pools (tau in the paper)."""
    summary_days: float = 7.0
    """Days of signal after an event that the EHR-to-wearable term predicts the statistics of, and before a query that
    are reconstructed (tau' in the paper)."""
    raw_segments: str = ""
    """Name of the set of config.prepare.segments that the model is given as raw windows; "": none."""
    raw_windows: int = 0
    """Capacity of a row for raw windows of sub-second signal, shared among its wearable windows; 0: none."""
    raw_parts: int = options.added(30)
    """Equal parts of a raw window, of which the share wear_mask is hidden and rebuilt (raw_masked)."""
    patch_steps: int = options.within(6, 1)
    """Steps in a patch of the wearable encoder."""
    ehr_mask: float = options.within(0.15, 0.0, 1.0)
    """Share of events that are hidden in a context with masks."""
    wear_mask: float = options.within(0.25, 0.0, 1.0)
    """Share of the signal that is hidden in a context with masks."""
    mask_temperature: float = 0.3
    """How much more often rare codes are hidden: weight count ** -temperature; 0: all alike. See
    masking.token_weights."""
    masked_contexts: float = 0.5
    """Share of contexts in which anything is hidden; the others look as they do at inference."""
    wear_mask_kind: str = "contiguous"
    """How the hidden signal lies: contiguous, random, window (see masking.mask_patches) or channel
    (masking.mask_channels)."""
    interest_codes: tuple = ()
    """Prefixes of codes of interest. Events near such an event are hidden more often and the others of the context
    less, see masking.mask_chances. Many hidden events hint to a causal model that such an event follows; contexts
    without masks, as at inference, have no such hint."""
    interest_factor: float = 3.0
    """Factor by which events near one of interest are hidden more often."""
    interest_days: float = 7.0
    """Days before or after an event of interest that count as near."""
    administrative_codes: tuple = ()
    """Prefixes of administrative codes, which are hidden, and whose days are sampled, less often."""
    administrative_weight: float = 0.1
    """Factor of the chance that such a code is hidden or its day sampled."""
    patient_days: float = options.within(0.0, 0, 1)
    """Share of contexts that end with a sampled patient-day. The others end with the record where it fits into a
    context, else at a token that has a full context before it."""
    day_temperature: float = 0.3
    """How much more often patient-days with rare codes are sampled, as mask_temperature."""
    patient_temperature: float = 0.0
    """How much more often patients with rare codes are sampled, see packing.patient_weights; 0: all once an epoch."""
    time_warp: float = 0.0
    """Most that a step of the signal is moved, share of a window (appendix A.3); 0: not at all. In training only."""
    noise: float = 0.0
    """Standard deviation of the noise added to the signal, relative to the signal's local one. In training only."""
    noise_steps: int = 8
    """Steps over which the signal's local standard deviation is taken."""
    channel_dropout: float = options.within(0.0, 0, 1)
    """Chance that a channel of a window loses the whole window or a run of its steps. In training only."""
    drop_ehr: float = options.within(0.0, 0, 1)
    """Chance that a context of both modalities is given without its EHR. In training only."""
    drop_wear: float = 0.0
    """Chance that a context of both modalities is given without its wearables. In training only."""

    def __post_init__(self) -> None:
        where = "config.joint.context"
        options.require_within(where, self)
        options.require_choice(where, "wear_mask_kind", self.wear_mask_kind, WEAR_MASKS)
        for name in ("interest_codes", "administrative_codes"):
            if isinstance(getattr(self, name), str):
                raise ValueError(f"{where}.{name} is a string; it must be a tuple of strings, as in ('DX//I10',)")
        if self.context_tokens > self.tokens:
            raise ValueError(
                f"{where}.context_tokens is {self.context_tokens}; it must be at most {where}.tokens, {self.tokens}"
            )
        positive = ("raw_windows", "interest_days", "administrative_weight", "patient_temperature", "noise")
        limits = dict.fromkeys(positive, (0, _MANY))
        limits |= {
            "interest_factor": (1, _MANY),
            "time_warp": (0, MAX_WARP),
            "noise_steps": (2, _MANY),
            **dict.fromkeys(("window_parts", "raw_parts"), (1, _MANY)),
            "drop_wear": (0, 1 - self.drop_ehr),
        }
        options.require_range(where, self, limits)

    @property
    def augments_signal(self) -> bool:
        """Whether training changes the signal."""
        return bool(self.time_warp or self.noise or self.channel_dropout)


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """Sizes of the network; the defaults are those of appendix A.4."""

    width: int = options.within(1024, 1)
    """Width of the backbone and of z."""
    n_layers: int = options.within(24, 1)
    """Layers of the backbone."""
    n_heads: int = options.within(16, 1)
    """Attention heads of the backbone."""
    mlp_width: int = options.within(4096, 1)
    """Hidden units of the backbone's feed-forward blocks."""
    token_width: int = options.within(512, 1)
    """Width of the table of token embeddings."""
    value_channel: bool = options.added(True)
    """Whether a token carries its numeric value, and not only the range that it names."""
    value_inputs: bool = False
    """Whether a query is told the state of values (ehr_values, wear_values) as it is told how much record there is: z
    need not find the last value of each code among many tokens by attention."""
    value_features: int = 0
    """Curves of a value's quantile within its code, mixed by a vector per token, beside the value itself; 0: none."""
    time_features: int = options.within(128, 1)
    """Number of features of the encoding of age, rho (q in the paper)."""
    time_unit_days: float = 1.0
    """Days of the unit in which the network counts time. Time kernels, decayed counts and what a position knows of its
    distance from other tokens begin at scales that fit records of years; 1/24 makes them fit records of days."""
    shortest_period_days: float = 0.25
    """Shortest period of the encoding of age, days. Data by the day need months: fine phases of an age tell people."""
    cycles_days: tuple = ()
    """Exact periods beside those of the encoding of age, days: 1, 7 and 365.25 tell the time of day, the weekday and
    the season, all relative to the origin of ages (midnight of birth, else the first record)."""
    time_encoding: str = "log_linear"
    """Frequencies of the encoding of age: log_linear or gaussian."""
    gaussian_period_days: float = 365.25
    """Days; one over them is the standard deviation of the gaussian encoding's frequencies, see
    layers/time_encoding.py."""
    day_bins: bool = False
    """Whether all times are rounded to days (Table 4)."""
    wear_encoder: str = "transformer"
    """Encoder of wearable windows: transformer or tcn (a temporal convolutional network)."""
    wear_span_days: float = 0.0
    """Days of earlier windows that a window's patches see; 0: their own window only."""
    raw_width: int = 0
    """Width of the encoder of raw windows, for batches that hold them; 0: none."""
    wear_width: int = options.within(512, 1)
    """Width of the wearable encoder."""
    wear_layers: int = options.within(6, 1)
    """Layers of the wearable encoder."""
    wear_heads: int = options.within(8, 1)
    """Attention heads of the wearable encoder."""
    kernel: str = "mixture"
    """Time kernel: mixture, rational_quadratic or none."""
    n_components: int = options.within(4, 1)
    """Exponentials of the mixture (R in the paper); 1: a single exponential."""
    source_width: int = options.within(16, 1)
    """Width of the projection of source tokens in the modality bias."""
    count_width: int = 64
    """Number of features that decayed counts sum over the record; 0: no decayed counts."""
    count_rates: int = options.added(8)
    """Learned decay rates of decayed counts and, among them, the rate zero, which counts; 1: that alone."""
    stream: bool = options.added(True)
    """Whether tokens and queries are told, before any attention, how much record lies behind them and how long ago its
    last token was."""
    query: str = options.added("learned")
    """What a query is before it has attended to anything. learned: a vector of its own; hidden: what a hidden event is,
    so that z(t) is the state from which masked modelling predicts an event at t (paper, section 3.3)."""
    pool: str = "attention"
    """How the wearable-to-EHR term pools latents: attention or temporal."""
    align_width: int = 128
    """Width of the space in which contrastive alignment compares the two modalities."""
    temperature: float = 0.1
    """Temperature of the contrastive term, where it starts."""
    learn_temperature: bool = True
    """Whether the temperature is learned."""
    posterior: str = "point"
    """What z is. point: a vector; normal: a normal distribution; sde: a path of a stochastic differential equation;
    outside of training their mean, and the path without noise (paper, sections 3.4 and 7; latent_sde.py)."""
    sde_steps: int = options.added(4)
    """Steps of the solver between two tokens, for posterior=sde."""
    detach_cross_modal: bool = False
    """Whether the cross-modal terms train their heads alone and leave z as it is: a comparison for what they add."""
    dropout: float = options.within(0.1, 0.0, 0.99)
    """Dropout rate of the backbone."""
    encoder_dropout: float = options.added(0.0)
    """Dropout rate of what an EHR token says and of what each sublayer of the wearable encoder adds."""
    attention_dropout: float = options.within(0.0, 0.0, 0.99)
    """Dropout rate of attention weights."""
    stochastic_depth: float = options.within(0.0, 0.0, 0.99)
    """Chance that a row skips the last layer's update; smaller in earlier layers, in proportion to their depth."""
    qk_norm: bool = False
    """Whether queries and keys of each head are normalised."""
    residual_init: str = "fan_in"
    """How the products start whose results the backbone adds to its stream: fan_in (variance one over the number of
    inputs), or depth: 1 / sqrt(2 n_layers) of that, so that the sum of all starts as large as one (Radford et al.
    2019)."""
    embedding_scale: float = 1.0
    """Factor of what an EHR token says (code and value) where it is read, and not where tokens are scored by the same
    table. It starts at 0.02 beside a time of about 0.7 and a stream and counts of about 1.5: 50 lets all begin alike;
    sqrt(token_width) in Vaswani et al. (2017)."""
    attention: str | None = None
    """Implementation of the attention op; None: the best available."""
    skip_tolerance: float = 0.0
    """Share of a query's attention weight that the backbone may leave out where keys provably carry no more, those that
    are old under a short time kernel above all; outputs move by at most twice that of the largest value. 0: none is
    left out. mosaic_tpu and xla leave keys out; triton does not, and is not taken then."""
    remat: str = "none"
    """What the backward pass computes of the backbone again, to save memory: none, full, attention or products; see
    layers/transformer.py."""
    wear_remat: str = "none"
    """What the backward pass computes of the wearable encoder again, as remat."""
    wear_unroll: int = 1
    """Layers of the wearable encoder in one step of the scan over them, as unroll. All of them spare the copies of what
    the backward pass needs into and out of a stack of layers; they may take the memory of wear_remat=none, since a
    compiler that sees all layers finds what is computed twice."""
    unroll: int = 1
    """Layers in one step of the scan over layers; more compile longer and may run faster."""
    target_chunk: int = 512
    """Tokens to be predicted whose scores over the vocabulary a device holds at once."""
    dtype: str = "float32"
    """Type of activations: float32 or bfloat16."""
    adapter_width: int = 0
    """Hidden units of adapters, which fine-tuning adds to a pretrained model; 0: none."""

    def __post_init__(self) -> None:
        for name, choices in NETWORK_CHOICES.items():
            options.require_choice("config.joint.network", name, getattr(self, name), choices)
        limits = dict.fromkeys(("wear_unroll", "count_rates", "sde_steps"), (1.0, _MANY))
        limits |= {"time_unit_days": (1e-9, _MANY), "skip_tolerance": (0, 0.5), "encoder_dropout": (0, 0.99)}
        options.require_range("config.joint.network", self, limits)
        options.require_within("config.joint.network", self)


# (start, end, steps of the ramp) of each term's weight; the curriculum of appendix A.4
WEIGHTS = {
    "ehr_masked": (1.0, 1.0, 0),
    "future_event": (1.0, 1.0, 0),
    "future_codes": (1.0, 1.0, 0),
    "ehr_history": (1.0, 1.0, 0),
    "ehr_values": (0.0, 0.0, 0),
    "next_value": (0.0, 0.0, 0),
    "wear_history": (1.0, 1.0, 0),
    "wear_values": (0.0, 0.0, 0),
    "wear_masked": (1.0, 1.0, 0),
    "raw_masked": (0.0, 0.0, 0),
    "future_signal": (1.0, 1.0, 0),
    "wear_to_ehr": (0.2, 1.0, 50_000),
    "ehr_to_wear": (0.1, 0.1, 0),
    **dict.fromkeys(("contrast", "content_norm", "latent_kl", *LIKELIHOODS, "person"), (0.0, 0.0, 0)),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """A model of the joint family."""

    # options that change how a result is computed, and not the result
    NOT_RESULTS: ClassVar[tuple[str, ...]] = (
        "network.remat", "network.wear_remat", "network.unroll", "network.wear_unroll", "network.attention",
        "network.target_chunk",
    )  # fmt: skip

    modalities: tuple = MODALITIES
    """Modalities that the model is given, of "ehr" and "wear"."""
    static: bool = False
    """Whether a model without EHR is given the record's facts that have no time, such as sex, and the birth date, of
    which age follows; a model of EHR always is. With it, what wearables alone say can be told from what they say beside
    age and sex."""
    context: ContextConfig = ContextConfig()
    """Rows and targets."""
    network: NetworkConfig = NetworkConfig()
    """Sizes."""
    weights: dict = options.added_keys(WEIGHTS, "raw_masked", *LIKELIHOODS, "person")
    """(start, end, steps of the ramp) of each term's weight; zero throughout: the term and its head are not built."""
    z_loss: float = 0.0
    """Weight, in the terms that predict tokens, of the squared logarithm of the sum that scores are divided by. It
    keeps the scores of large vocabularies from drifting (Chowdhery et al. 2022: 1e-4); 0: none."""

    def __post_init__(self) -> None:
        where = "config.joint"
        if not self.modalities or set(self.modalities) - set(MODALITIES):
            raise ValueError(f"{where}.modalities is {self.modalities}; it can hold {' and '.join(MODALITIES)}")
        object.__setattr__(self, "weights", WEIGHTS | {k: tuple(v) for k, v in self.weights.items()})
        if unknown := self.weights.keys() - WEIGHTS.keys():
            raise ValueError(f"{where}.weights has no term {min(unknown)!r}; there are {', '.join(WEIGHTS)}")
        weighted = {name for name, (start, end, _) in self.weights.items() if start or end}
        if "contrast" in weighted and not self.context.pairs:
            raise ValueError(f"{where}.weights.contrast needs pairs to align: set {where}.context.pairs")
        if ("latent_kl" in weighted) != (self.network.posterior != "point"):
            raise ValueError(
                f"{where}.network.posterior is {self.network.posterior!r} and {where}.weights.latent_kl is "
                f"{self.weights['latent_kl']}: a distribution has a prior, and a point has none"
            )
        if (parts := weighted & set(LIKELIHOODS)) and "latent_kl" not in weighted:
            raise ValueError(f"{where}.weights.{min(parts)} is part of the ELBO, as latent_kl is: give it a weight too")
        if "ehr" not in self.modalities:  # its identity does not depend on a budget that it has not
            n = MAX_STATIC if self.static else self.context.windows
            object.__setattr__(self, "context", dataclasses.replace(self.context, tokens=n, context_tokens=n))
        else:
            object.__setattr__(self, "static", False)  # it has them anyway

    def __hash__(self) -> int:
        weights = tuple(sorted(self.weights.items()))
        return hash((self.modalities, self.static, self.context, self.network, weights, self.z_loss))

    def check_prepared(self, prepare: PrepareConfig) -> None:
        """Raises ValueError where the records that prepare makes do not fit: segments that are not made, say."""
        if "wear" not in self.modalities:
            return
        where, c = "config.joint.context", self.context
        parts = {f"{where}.raw_segments": c.raw_segments, f"{where}.raw_windows": c.raw_windows,
                 "config.joint.network.raw_width": self.network.raw_width}  # fmt: skip
        if any(parts.values()) and not all(parts.values()):
            said = ", ".join(f"{name} is {value!r}" for name, value in parts.items())
            raise ValueError(f"{said}: set all three, to have raw windows and their encoder, or none")
        if not c.raw_segments:
            return
        if c.raw_windows < c.windows:
            raise ValueError(
                f"{where}.raw_windows is {c.raw_windows}; it must be at least {where}.windows, {c.windows}, so that "
                "each wearable window has room for one"
            )
        if c.raw_segments not in prepare.segments:
            raise ValueError(
                f"{where}.raw_segments is {c.raw_segments!r}; config.prepare.segments has {sorted(prepare.segments)}"
            )
        seconds = prepare.segments[c.raw_segments].seconds
        if seconds > 60 * prepare.step_minutes:
            raise ValueError(
                f"config.prepare.segments.{c.raw_segments}.seconds is {seconds:g}: a raw window must fit into a step "
                f"of config.prepare.step_minutes, {prepare.step_minutes}"
            )
