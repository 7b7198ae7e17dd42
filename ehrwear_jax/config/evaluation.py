"""Declares the options of what follows training: embedding, evaluation, interpretation, the report."""

import dataclasses
import os

from ehrwear_jax.config import options


@dataclasses.dataclass(frozen=True)
class EmbedConfig:
    """How z is computed at prediction times."""

    batch_size: int = options.within(32, 1)
    """Rows of a batch of prediction times."""
    shard_people: int = options.within(1024, 1)
    """People whose embeddings are computed one after the other and written as a file: at most so much is done anew
    after an interruption, and lies in memory. The processes of a job share the files."""
    times: str = options.added("")
    """Parquet table of subject_id and prediction_time at which z is computed beside the tasks' prediction times; no
    label is needed, and no task where only z is wanted. Empty: none."""
    trajectories: int = options.within(3, 0)
    """Number of held-out people whose z(t) is drawn in the report."""
    trajectory_points: int = options.within(120, 2)
    """Number of times at which z of such a person is computed."""

    def __post_init__(self) -> None:
        options.require_within("config.embed", self)


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """The protocol of evaluation."""

    tasks: tuple = ()
    """Names of the label tables that are evaluated."""
    n_resamples: int = options.within(1000, 0)
    """Number of resamples of patients, for the intervals."""
    reference_model: str = "joint"
    """The model that the others are compared with; empty: none."""
    probe: str = "exact"
    """How probes are fitted. exact: solved to the optimum; adam: trained as in appendix A.4, with each of
    probe_seeds."""
    probe_hidden: int = options.within(0, 0)
    """Units of the hidden layer of a probe that is trained by adam; 0: a linear probe."""
    probe_seeds: tuple = options.within((0, 1, 2, 3, 4), 0)
    """Seeds of probes that are trained by adam."""
    sensitivity: float = options.within(0.8, 0.0, 1.0)
    """Sensitivity of the confusion matrix; its threshold is chosen on the tuning split."""
    horizons_days: tuple = options.within((30.0, 90.0, 180.0, 365.0), options.ABOVE_0)
    """Horizons of AUC(t) and Brier(t) of time-to-event tasks, days; the last one that can be evaluated is tau of Uno's
    C, and the span of the integrated Brier score."""
    task_horizons_days: dict = dataclasses.field(default_factory=dict)
    """Horizons of single time-to-event tasks, where the follow-up asks for others: task -> days."""
    feature_ranges_days: tuple = options.within((), options.ABOVE_0)
    """Ranges before a prediction time, days, that hand-made features are computed over, beside everything so far.
    Empty: a month, half a year and a year for events, a day, a week, a month and three for wearables."""
    min_horizon_events: int = options.within(10, 0)
    """Fewest held-out people with the event by a horizon; a horizon with fewer is left out."""
    age_edges: tuple = options.within((50.0, 65.0), 0.0)
    """Bounds of the age bands, years."""
    sex_prefixes: tuple = ("GENDER//", "SEX//")
    """Prefixes of the codes of a person's sex."""
    encounter_prefixes: tuple = options.added(())
    """Prefixes of the codes of clinic encounters, whose days in the year before a prediction time say how sparse an EHR
    is: visits, admissions. Empty: every day with an event counts as one."""
    min_patients: int = options.within(20, 0)
    """Fewest patients of a subgroup, or of a quartile of risk, that is shown."""
    min_per_class: int = options.within(10, 0)
    """Fewest patients of each class of a subgroup that is shown. Also the smallest count of people on the page:
    smaller ones are hidden in the flow of the cohort, demographics, prevalence and confusion matrices, with the others
    and the rates that would tell them; 1 shows all."""
    survey_weight: str = options.added("")
    """Column of metadata/subject_survey.parquet of the dataset: how many people of the population each person of a
    survey stands for. Metrics are then the population's, and intervals those of the survey's design. Empty: people
    count alike."""
    survey_strata: tuple = options.added(())
    """Columns that tell the strata of the survey apart, from which sampling units were drawn."""
    survey_units: tuple = options.added(())
    """Columns that tell the sampling units of a stratum apart, whose people were drawn together; empty: each person (or
    group by which the data are split) is one."""
    min_task_people: int = options.within(10, 0)
    """Fewest held-out people of a task of which numbers are told; of fewer, the page says how few they are."""
    min_task_events: int = options.within(5, 0)
    """Fewest held-out people with the event, and of a binary task without it, likewise."""
    label_fractions: tuple = options.within((0.01, 0.1, 1.0), 0.0, 1.0)
    """Shares of the training patients on whose labels models are fitted for label efficiency; empty: none."""
    label_models: tuple = ()
    """Models that are fitted so; empty: those on whose latents probes are fitted. Boosting takes long over many
    draws."""
    label_draws: int = options.within(5, 1)
    """Number of draws of patients for each of label_fractions."""
    label_tasks: tuple = ()
    """Tasks whose label efficiency is measured; empty: the last binary one of `tasks`, else the last time to an
    event."""

    def __post_init__(self) -> None:
        options.require_choice("config.evaluate", "probe", self.probe, ("exact", "adam"))
        options.require_within("config.evaluate", self)
        if (self.survey_strata or self.survey_units) and not self.survey_weight:
            raise ValueError("config.evaluate.survey_weight is empty, but strata or units of a survey are named")
        for task, days in self.task_horizons_days.items():
            if not isinstance(days, tuple) or not days or not all(isinstance(d, (int, float)) and d > 0 for d in days):
                raise ValueError(
                    f"config.evaluate.task_horizons_days.{task} is {days!r}; it must be days, as in (365.0, 730.0)"
                )

    def horizons_of(self, task: str) -> tuple[float, ...]:
        """Horizons of a time-to-event task, days, whether they can be evaluated or not."""
        return tuple(float(d) for d in self.task_horizons_days.get(task, self.horizons_days))


@dataclasses.dataclass(frozen=True)
class InterpretConfig:
    """Geometry, robustness and mechanisms of what was trained; 0 or an empty tuple leaves a part out."""

    enabled: bool = True
    """Whether the stage computes anything."""
    models: tuple = options.added(())
    """Models that are looked into; empty: all on whose latents probes are fitted."""
    task: str = ""
    """Binary task whose predictions are looked into; empty: report.reliability_task, else the first binary one."""
    max_times: int = options.within(0, 0)
    """Most held-out prediction times that are embedded again under every perturbation; 0: all."""
    histories_days: tuple = options.within((7.0, 30.0, 90.0), 0.0)
    """Lengths that histories are cut to, days."""
    noise_db: float = 6.0
    """Decibels by which added noise lowers the signal-to-noise ratio."""
    missing_share: float = options.within(0.5, 0.0, 1.0)
    """Share of the signal that is removed."""
    slice_days: float = options.within(30.0, options.ABOVE_0)
    """Length of the slices of a record whose latents are compared, days."""
    slices: int = options.within(6, 0)
    """Number of slices, counted back from the last prediction time."""
    geometry_people: int = options.within(500, 0)
    """Most held-out people whose latents are compared."""
    ledger_codes: int = options.within(40, 0)
    """Codes, those that most prediction times know, whose features the ledger of what z holds is about; 0: none."""
    ledger_times: int = options.within(20_000, 0)
    """Most prediction times of a split that the ledger is fitted and scored on; 0: all."""
    n_permutations: int = options.within(200, 0)
    """Permutations of the tests of MMD."""
    dropout_samples: int = options.within(10, 0)
    """Samples of Monte Carlo dropout."""
    mechanism_people: int = options.within(2000, 0)
    """Most people whose mechanisms are measured."""
    event_prefixes: tuple = ("HOSPITAL_ADMISSION",)
    """Prefixes of the codes of events around which latents are followed."""
    drug_prefixes: tuple = ("ATC//", "RX//", "MEDICATION//")
    """Prefixes of the codes of drugs."""
    raised_channel: str = "heart_rate"
    """Channel that is raised in counterfactual records."""
    raised_sd: float = 1.0
    """Amount by which it is raised, in standard deviations of the training windows."""
    precursor_channels: tuple = ("rmssd", "hrv", "heart_rate", "activity")
    """Channels that are hidden before events, to see what predictions owe to them."""
    response_channels: tuple = ("rmssd", "hrv", "heart_rate")
    """Channels of heart rate variability after the start of a drug; the first that there is stands for it."""
    people: int = options.within(3, 0)
    """Number of people whose predictions are explained one by one."""
    gradient_steps: int = options.within(32, 1)
    """Steps of integrated gradients."""
    individuals: bool = False
    """Whether to explain single people of cohorts that are not simulated."""

    def __post_init__(self) -> None:
        options.require_within("config.interpret", self)


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """The report."""

    title: str = ""
    """Title of the page; empty: the name of the data."""
    reliability_task: str = ""
    """The main task: tables 6 to 9 of the paper, the open decision curve and interpretation are of it."""
    predictions_dir: str = ""
    """Folder of saved predictions <task>/<model>.parquet in the MEDS prediction schema, of any model, that
    --stages=report shows without any other stage; empty: those of this run."""
    tuning_dir: str = ""
    """Folder of the same models' predictions for the tuning split, on which the thresholds of confusion matrices are
    chosen."""
    individuals: bool = False
    """Whether to draw single people of cohorts that are not simulated."""

    def check_folders(self) -> None:
        """Raises FileNotFoundError for a folder of predictions that is not there."""
        for key in ("predictions_dir", "tuning_dir"):
            if getattr(self, key) and not os.path.isdir(getattr(self, key)):
                raise FileNotFoundError(f"config.report.{key}: there is no folder {getattr(self, key)}")
