"""Declares the options of what follows training: embedding, evaluation, interpretation, the report."""

import dataclasses
import os

from ehrwear_jax.config import options


@dataclasses.dataclass(frozen=True)
class EmbedConfig:
    """How z is computed at prediction times."""

    batch_size: int = 32
    """Rows of a batch."""
    trajectories: int = 3
    """Held-out people whose z(t) is drawn."""
    trajectory_points: int = 120
    """Times at which it is computed."""


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """The protocol of evaluation."""

    tasks: tuple = ()
    """Label tables to evaluate."""
    n_resamples: int = 1000
    """Of patients, for the intervals."""
    reference_model: str = "joint"
    """The model that the others are compared with; empty: none."""
    probe: str = "exact"
    """exact: solved to the optimum; adam: trained as in appendix A.4, over probe_seeds."""
    probe_hidden: int = 0
    """adam: units of a hidden layer, 0 for a linear probe."""
    probe_seeds: tuple = (0, 1, 2, 3, 4)
    """adam: seeds of the probes."""
    sensitivity: float = 0.8
    """Of the confusion matrix; its threshold is chosen on the tuning split."""
    horizons_days: tuple = (30.0, 90.0, 180.0, 365.0)
    """Of time-to-event tasks: AUC(t), Brier(t)."""
    age_edges: tuple = (50.0, 65.0)
    """Bounds of the age bands, years."""
    sex_prefixes: tuple = ("GENDER//", "SEX//")
    """What codes of a sex start with."""
    min_patients: int = 20
    """Subgroups of fewer are suppressed."""
    min_per_class: int = 10
    """Subgroups with fewer patients of a class are suppressed."""
    label_fractions: tuple = (0.01, 0.1, 1.0)
    """Of the training patients; empty: no label efficiency."""
    label_draws: int = 5
    """Draws of each fraction."""
    label_tasks: tuple = ()
    """Binary tasks that are fitted on fractions; empty: the last one of `tasks`."""

    def __post_init__(self) -> None:
        options.require_choice("config.evaluate", "probe", self.probe, ("exact", "adam"))


@dataclasses.dataclass(frozen=True)
class InterpretConfig:
    """Geometry, robustness and mechanisms of what was trained; 0 or an empty tuple leaves a part out."""

    enabled: bool = True
    """False: nothing is computed."""
    task: str = ""
    """A binary task; empty: report.reliability_task, else the first binary one."""
    max_times: int = 0
    """Held-out prediction times that are embedded again under every perturbation; 0: all."""
    histories_days: tuple = (7.0, 30.0, 90.0)
    """Lengths that histories are cut to."""
    noise_db: float = 6.0
    """By which the signal-to-noise ratio falls."""
    missing_share: float = 0.5
    """Share of the signal that is missing."""
    slice_days: float = 30.0
    """Length of the slices whose latents are compared."""
    slices: int = 6
    """How many."""
    geometry_people: int = 500
    """At most so many."""
    n_permutations: int = 200
    """Of the tests of MMD."""
    dropout_samples: int = 10
    """Of Monte Carlo dropout."""
    mechanism_people: int = 2000
    """At most so many."""
    event_prefixes: tuple = ("HOSPITAL_ADMISSION",)
    """What codes of events start with, around which latents are followed."""
    drug_prefixes: tuple = ("ATC//", "RX//", "MEDICATION//")
    """What codes of drugs start with."""
    raised_channel: str = "heart_rate"
    """Channel that is raised."""
    raised_sd: float = 1.0
    """By so many training standard deviations."""
    precursor_channels: tuple = ("rmssd", "hrv", "heart_rate", "activity")
    """Channels that are hidden before events."""
    response_channels: tuple = ("rmssd", "hrv", "heart_rate")
    """The first that there is stands for heart rate variability after the start of a drug."""
    people: int = 3
    """Single people whose predictions are explained."""
    gradient_steps: int = 32
    """Nodes of integrated gradients."""
    individuals: bool = False
    """Explain single people of cohorts that are not simulated."""


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """The report."""

    title: str = "ehrwear_jax"
    """Of the page."""
    reliability_task: str = ""
    """The main task."""
    predictions_dir: str = ""
    """<task>/<model>.parquet in the MEDS prediction schema, of any model: --stages=report needs nothing else."""
    tuning_dir: str = ""
    """The same of the tuning split: chooses the thresholds of the confusion matrices."""
    individuals: bool = False
    """Draw single people of cohorts that are not simulated."""

    def check_folders(self) -> None:
        """Raises FileNotFoundError for a folder of predictions that is not there."""
        for key in ("predictions_dir", "tuning_dir"):
            if getattr(self, key) and not os.path.isdir(getattr(self, key)):
                raise FileNotFoundError(f"config.report.{key}: there is no folder {getattr(self, key)}")
