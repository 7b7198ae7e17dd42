"""Declares the options of the prepare stage: where the data are, how they become records, who is in."""

import dataclasses
import re
from collections.abc import Mapping
from datetime import datetime

from ehrwear_jax.config import options
from ehrwear_jax.config.segment_spec import SegmentSpec

# Adapters of published data: modules of data/sources/, and which of these options each one's `build` takes.
ADAPTERS = {
    "nafld": ("seed",),
    "nhanes": ("seed", "n_folds"),
    "nhanes_cdc": ("seed", "n_folds"),
    "physionet2012": ("seed", "n_folds", "sets", "vitals_as_events"),
    "ukb": ("seed", "ukb_followup"),
}
# Sources whose labels are made from the events, unless the user gives tables.
LABELLED_FROM_EVENTS = ("meds", "ukb")
SOURCES = ("synthetic", "meds", *ADAPTERS)
# A code of our simulator that says how long a person was observed.
FOLLOWUP_END = "FOLLOWUP_END"
PRETRAINED_ON = ("eligible", "everybody")
SPLITS = ("train", "tuning", "held_out")
# What config.prepare.acceleration makes of three axes, and its text for those that the data declare
ACCELERATION_CHANNELS = ("enmo", "arm_angle")
AUTO = "auto"
# The value of prepare.ranges_file that stands for the table of the package.
CLINICAL = "clinical"
_SEGMENT_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the data come from."""

    source: str = "meds"
    """Kind of data. synthetic: simulate a cohort; meds: your own data; nafld, nhanes,
    nhanes_cdc, physionet2012: adapters of public data; ukb: of the files of UK Biobank (docs/uk_biobank.md)."""
    meds_dir: str = ""
    """Folder of a MEDS dataset, which holds data/ and metadata/."""
    wearable_dir: str = ""
    """Folder of wearable tables; empty: none."""
    labels_dir: str = ""
    """Folder of label tables <task>.parquet; empty: hospitalisation labels are made from the events."""
    source_dir: str = ""
    """Folder with the files of nafld, nhanes, physionet2012 or ukb, as published."""
    sets: tuple = ("a",)
    """Sets of physionet2012 that are used, of a, b and c."""
    vitals_as_events: bool = False
    """Whether vital signs of physionet2012 are events too, beside the wearable channels that they are."""
    ukb_followup: str = options.added("hospital")
    """Until when people of ukb are followed. hospital: as hospital records are linked; primary_care: while they are
    registered with a practice that sends records, and only they (data/sources/ukb/linkage.py)."""
    n_folds: int = options.within(0, 0)
    """Number of folds for out-of-fold evaluation: those of metadata/subject_folds.parquet or, where there is none, of
    people or whole groups by hashes of their ids; 0 or 1: one split."""
    split_names: dict = dataclasses.field(default_factory=dict)
    """Name in metadata/subject_splits.parquet -> train, tuning, held_out, or "" for people to leave out; in addition to
    MEDS's own names and to training, val, valid, validation, dev, test and the like."""
    split_fractions: tuple = (0.8, 0.1, 0.1)
    """Shares of train, tuning and held_out where the dataset has no metadata/subject_splits.parquet: people, or whole
    groups, are divided by hashes of their ids."""
    holdout: str = ""
    """What is held out beyond the split of people. Empty: nothing. "temporal:2019-01-01": held-out people are predicted
    from that date on; of the others nothing from that date on is learned from, neither records nor outcomes.
    "site:PREFIX": everybody with a code that begins so is held out, and nobody else; "site:COLUMN=VALUE": with that
    value in a column of metadata/subject_splits.parquet."""
    holdout_gap_days: float = options.within(0.0, 0.0)
    """With a temporal hold-out: days that an outcome takes to be known, for tasks whose name does not end in _<days>d
    and that are not times to an event."""
    seed: int = options.within(0, 0)
    """Seed of everything about the people: simulation, prediction times, folds and splits that are drawn here."""

    def __post_init__(self) -> None:
        options.require_choice("config.data", "source", self.source, SOURCES)
        for name, split in self.split_names.items():
            options.require_choice("config.data.split_names", name, split, (*SPLITS, ""))
        shares = self.split_fractions
        if len(shares) != len(SPLITS) or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"config.data.split_fractions is {shares}; it must be three shares that add up to 1")
        kind, colon, what = self.holdout.partition(":")
        if self.holdout and (kind not in ("temporal", "site") or not colon or not what):
            raise ValueError(
                f"config.data.holdout is {self.holdout!r}; it can be empty, temporal:DATE, site:PREFIX or "
                "site:COLUMN=VALUE"
            )
        _ = self.holdout_time
        if self.holdout_site and self.n_folds > 1:
            raise ValueError("config.data.holdout: a site is held out once; set config.data.n_folds to 0")
        options.require_within("config.data", self)

    @property
    def holdout_time(self) -> datetime | None:
        """From when on everything is held out, None without a temporal hold-out; ValueError if it is no date."""
        kind, _, what = self.holdout.partition(":")
        return _date("config.data.holdout", what) if kind == "temporal" else None

    @property
    def holdout_site(self) -> str:
        """PREFIX or COLUMN=VALUE of a hold-out by site, "" without one."""
        kind, _, what = self.holdout.partition(":")
        return what if kind == "site" else ""


def _date(where: str, text: str) -> datetime:
    """A date; ValueError if it is none."""
    try:
        return datetime.fromisoformat(text).replace(tzinfo=None)
    except ValueError:
        raise ValueError(f"{where} is {text!r}, which is no ISO date") from None


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """How raw tables become records (data/prepare)."""

    channels: tuple = ()
    """Wearable channels to use, in order; empty: none."""
    log_channels: tuple = ()
    """Channels of which the model is given log(1 + x)."""
    window_hours: int = options.within(6, 1, 24)
    """Length of a wearable window, hours; must divide a day."""
    step_minutes: int = options.within(5, 1)
    """Length of a step of a window's grid, minutes."""
    min_coverage: float = options.within(0.1, 0.0, 1.0)
    """Least share of a window's steps that must be recorded; windows with less are left out."""
    non_wear: tuple = ("auto",)
    """How time not worn is found and taken out before windows are cut, "channel:rule" with a rule of counts,
    acceleration (of three axes: x,y,z:acceleration) or flag; auto: counts and acceleration for the channels whose units
    say so; empty: what is recorded counts as worn. See signals/non_wear.py."""
    non_wear_minutes: int = options.within(90, 1)
    """Minutes of zero counts in a row, without a heart rate, that are not worn."""
    acceleration: tuple = options.added(())
    """Three axes of raw acceleration, as in ("acc_x", "acc_y", "acc_z"), of which the channels enmo (mg) and arm_angle
    (degrees) are made; they come behind the others of `channels` unless named there. ("auto",): those that the data
    declare as NAME_x, NAME_y, NAME_z, if any. See signals/raw_acceleration.py."""
    artefacts: tuple = options.added(())
    """Heart and breathing rates whose artefacts are taken out before windows are cut; auto: every channel in beats or
    breaths a minute. See signals/rate_artefacts.py."""
    summaries: tuple = ()
    """Derived features of each window, "channel:kind", such as activity:entropy; auto: those that the data's channels
    allow. See signals/derived_features.py."""
    segments: dict = dataclasses.field(default_factory=dict)
    """Sets of segments of sub-second signal, as many as wanted: name -> the options listed below."""
    quality: bool = False
    """Score how well each step of the grid was measured (signals/grid_quality.py); the model is given the score."""
    min_subjects: int = options.within(10, 0)
    """Training patients that a code needs for a token of its own; rarer codes are replaced by an ancestor."""
    value_bins: int = options.within(10, 2)
    """Quantile bins of a code's values, fitted on the training split."""
    min_values: int = options.within(50, 0)
    """Values that a code needs in the training split for its values to be binned and standardised."""
    value_fence: float = options.within(10.0, 0.0)
    """Robust standard deviations from the median beyond which a value, of a code or of a channel, counts as at that
    distance when mean and standard deviation are fitted (data/prepare/code_counts.py, bounds), so that a single
    mistyped one does not make all others alike; 0: all count as they are. What a model is given is clipped at 5
    standard deviations (values) and 10 (signals)."""
    impute_gap_minutes: float = options.added(0.0)
    """Gaps of a channel of at most so many minutes (A.2: 10) count, when its mean and standard deviation are fitted, as
    an autoregressive model fills them (signals/imputation.py). The model's input keeps them missing; 0: no gap is."""
    min_text_subjects: int = options.within(5, 0)
    """Patients of the dataset that must have a text, where it is an event's only result, for it to be kept; of the
    training split, and at least min_subjects of them, for a token of its own."""
    mapping_files: tuple = ()
    """Tables code, target, factor, offset that map local codes and units to common ones; see prepare/harmonise.py."""
    ranges_file: str = ""
    """Table code, low, high of clinical ranges, used as value bins instead of training quantiles; "clinical": the table
    that comes with the package (prepare/clinical_ranges.csv), for codes that name a LOINC code of it, or whose parents
    do; empty: none."""
    ranges_codes: dict = options.added({})
    """With "clinical": code -> row of the table, with the unit of the values where the dataset does not say it, such as
    {"LAB//glu": "glucose [mmol/L]"}."""
    ranges_usual_units: bool = options.added(False)
    """With "clinical": take values whose unit is not known to be in the usual one of their LOINC code; False: they are
    binned by quantiles."""
    implied_parents: bool = False
    """Give ICD-10 and ATC codes the ancestors that they spell out, beside those of codes.parquet."""
    atc_level: int = options.added(0)
    """Level of the classes, 1 to 4, that ATC codes are replaced by: 3 makes A10B, the first four characters, of
    A10BA02; 0: codes stay as they are."""
    max_per_day: int = options.within(0, 0)
    """Most events of one code for a person and day; the first ones are kept; 0: all are."""
    drop_codes: tuple = (FOLLOWUP_END,)
    """Codes that never become input, such as administrative ones."""
    first_date: str = "1900-01-01"
    """ISO date; rows with an earlier time go to quarantine (a birth: earlier by a lifetime of 100 years)."""
    extraction_date: str = ""
    """ISO date on which the data were taken from their source; rows more than a year later go to quarantine. Empty: it
    is looked for as formats/meds.py, extraction_date, says; none known: the limit is the year 2300, since shifted dates
    lie in the future."""
    date_only_at_day_end: bool = True
    """An event at midnight of a code that carries dates without times is known at the day's end. Codes are judged by
    the dataset (prepare/date_only.py)."""
    date_only_share: float = options.within(0.3, options.ABOVE_0, 1.0)
    """Share of a code's events at midnight from which on they are dates without times; a chart that is filled every six
    hours has a quarter of its events there."""
    date_only_min_events: int = options.within(20, 1)
    """Events that a code needs to be judged by itself; rarer ones are judged with others that begin like them."""
    subjects_per_shard: int = options.within(2000, 1)
    """Patients in a record shard."""
    pseudonymise: bool = False
    """Replace ids by keyed pseudonyms; see prepare/deidentify.py."""
    shift_days: int = options.within(0, 0)
    """Most days by which a person's dates are moved, all by the same secret number; 0: dates stay."""
    shift_whole_weeks: bool = False
    """Move dates by whole weeks only, so that weekdays stay."""
    max_age_years: float = options.within(0.0, 0.0)
    """Highest age that is told, such as 90: at a time at which somebody is older, every age is this one, in what models
    are given, in attributes and on pages; 0: no limit. Who is older at the first record gets a birth date of this age
    there. Tables and records keep the birth date of those who reach the age later: do not pass them on."""
    key_file: str = ""
    """File with the secret key of pseudonyms and shifts."""
    tuning_fraction: float = options.within(0.1, 0.0, 1.0)
    """With folds: share of the groups outside a fold that becomes its tuning split."""
    scheduler: str = ""
    """Where shards are worked on. "": local processes; tcp://host:port: a dask scheduler; jobqueue:slurm and the like:
    jobs."""
    workers: int = options.within(1, 0)
    """Local processes or jobs; 1: this process alone; 0: one per core, once there is work for them. The result is the
    same with any number."""
    worker_memory_gb: float = options.within(0.0, 0.0)
    """Memory of a local process above which it is started again, GB; 0: its share of the machine's memory."""
    rows_per_piece: int = options.within(2_000_000, 1)
    """Events above which a shard is read in pieces; a piece has about as many and holds whole subjects."""

    def __post_init__(self) -> None:
        options.require_within("config.prepare", self)
        options.require_range("config.prepare", self, {"impute_gap_minutes": (0.0, float("inf")), "atc_level": (0, 4)})
        if (self.ranges_codes or self.ranges_usual_units) and self.ranges_file != CLINICAL:
            raise ValueError(
                f"config.prepare.ranges_codes and ranges_usual_units are for ranges_file {CLINICAL!r}; it is "
                f"{self.ranges_file!r}"
            )
        if not isinstance(self.segments, Mapping):
            raise ValueError(f"config.prepare.segments is {self.segments!r}; it must be a dict of name -> options")
        if self.acceleration not in ((), (AUTO,)):
            if len(set(self.acceleration)) != 3:
                raise ValueError(
                    f"config.prepare.acceleration is {self.acceleration!r}; it must be three axes, ('auto',) or empty"
                )
            made = tuple(c for c in ACCELERATION_CHANNELS if c not in self.channels)
            object.__setattr__(self, "channels", (*self.channels, *made))
        built = {}
        for name, values in self.segments.items():
            where = f"config.prepare.segments.{name}"
            if not _SEGMENT_NAME.fullmatch(name):
                raise ValueError(f"{where}: a name consists of lower-case letters, digits and _, as in ppg_125hz")
            built[name] = values if isinstance(values, SegmentSpec) else options.build(SegmentSpec, values, where)
        object.__setattr__(self, "segments", built)


# Options that change how prepare reaches its result, and not the result.
PREPARE_NOT_RESULTS = ("scheduler", "workers", "worker_memory_gb", "rows_per_piece")
# Options that say which events are dates without times.
DATE_ONLY_OPTIONS = ("date_only_at_day_end", "date_only_share", "date_only_min_events")
# Options that the tables do not depend on, but the records; and those that only what is fitted per fold depends on.
RECORD_OPTIONS = ("implied_parents", "subjects_per_shard")
DEIDENTIFY_OPTIONS = ("pseudonymise", "shift_days", "shift_whole_weeks", "max_age_years", "key_file")
FIT_OPTIONS = ("min_subjects", "value_bins", "min_values", "value_fence", "ranges_file", "ranges_codes",
               "ranges_usual_units", "tuning_fraction", "impute_gap_minutes")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class CohortConfig:
    """Eligibility; the defaults let everybody in. The paper's (A.2): 365 days of EHR, 14 of wear, age 18 to 89.

    Each criterion is judged at a time zero, by what is known then and by nothing later. For evaluation time zero is
    every prediction time of a task; for pretraining it is `cutoff`, at which the records that are learned from end.
    """

    cutoff: str = ""
    """ISO date at which the records of training and tuning people end in pretraining, and at which the criteria say who
    is pretrained on. Empty: records are not cut."""
    pretraining: str = "eligible"
    """Who of the training and tuning people is pretrained on. eligible: those who meet the criteria at `cutoff`, which
    must then be set if there are criteria; everybody: all of them, the criteria concern prediction times alone."""
    min_ehr_days: float = 0.0
    """Least days from the beginning of the EHR to time zero."""
    max_gap_days: float = 0.0
    """Most days between two events, and from the last one to time zero, for the EHR to be continuous: what lies before
    a longer gap is no history for min_ehr_days; 0: any gap."""
    min_wear_days: int = 0
    """Least number of days with usable wear up to time zero."""
    min_wear_hours: float = 12.0
    """Usable hours of wear that make such a day."""
    min_age_years: float = 0.0
    """Least age at time zero, completed years; 0: no limit. A person without a birth date fails any limit."""
    max_age_years: float = 0.0
    """Highest age at time zero, completed years, included; 0: no limit."""
    excluded_codes: tuple = ()
    """Prefixes of codes, such as flags of bad data; time zeros from the first one on are left out, all of them if it is
    static. Codes are as mapping tables leave them; those of config.prepare.drop_codes are not seen."""

    def __post_init__(self) -> None:
        _ = self.cutoff_time  # a ValueError if it is none
        options.require_choice("config.cohort", "pretraining", self.pretraining, PRETRAINED_ON)
        limits = ("min_ehr_days", "max_gap_days", "min_wear_days", "min_wear_hours", "min_age_years", "max_age_years")
        options.require_range("config.cohort", self, dict.fromkeys(limits, (0.0, float("inf"))))

    @property
    def cutoff_time(self) -> datetime | None:
        """The cut-off, None without one; ValueError if it is no date."""
        return _date("config.cohort.cutoff", self.cutoff) if self.cutoff else None

    @property
    def criteria(self) -> dict:
        """The options that say who is eligible at a time zero."""
        return {k: v for k, v in options.as_dict(self).items() if k not in ("cutoff", "pretraining")}

    @property
    def is_open(self) -> bool:
        """Whether nobody can be left out."""
        return dataclasses.replace(self, cutoff="", pretraining="eligible", min_wear_hours=12.0) == CohortConfig()

    @property
    def selects_pretraining(self) -> bool:
        """Whether somebody may be left out of pretraining."""
        return not self.is_open and self.pretraining == "eligible"


@dataclasses.dataclass(frozen=True)
class SimulateConfig:
    """What to simulate (data/sources/simulator)."""

    n_subjects: int = 1500
    """Number of people; their ids are 1 to n_subjects."""
    years: float = 3.0
    """Longest observation, years; the share `dropout` of people is observed for less."""
    dropout: float = 0.25
    """Share of people who leave early, at a uniform time in the last three quarters of the observation."""
    wear_days: int = 27
    """Days recorded per wearer, all stretches together."""
    wear_stretches: int = 3
    """Stretches of wear, at random between the least history and the longest horizon before the end."""
    shared: float = 0.2
    """Share, 0 to 1, of the variance of what wearables show of health that the EHR measures too."""
    complementary: float = 0.5
    """Effect on admissions, 0 to 1, of what wearables alone show (component, shocks), the same in everybody."""
    interaction: float = 0.5
    """Effect of the same, 0 to 1, that heart disease adds; without it the component's is this much lower instead, and
    turns round where that is more than `complementary`. Only the EHR knows who has heart disease."""
    drug_heart_rate: float = 12.0
    """Fall of the heart rate, beats per minute, under a beta-blocker, of which only the EHR knows."""
    noise: float = 1.0
    """Factor of measurement noise and artefacts of both modalities (1: as designed; 0: none)."""
    missingness: float = 1.0
    """Factor of the chance of unmeasured labs, time not worn, lost samples and gaps."""
    ehr_information: float = 1.0
    """Factor, 0 to 1, of every effect of the hidden state on the EHR, except on admissions and death."""
    wearable_information: float = 1.0
    """Factor, 0 to 1, of every effect of the hidden state on wearables."""
    wearable_subjects_fraction: float = 0.95
    """Share of people with a wearable."""
    temperature: bool = False
    """Whether wearables also record skin temperature, once a minute."""
    ppg_subjects_fraction: float = 0.2
    """Share of wearers who also have raw PPG."""
    ppg_stretches: int = 3
    """Raw PPG recordings of 60 s in each stretch of wear."""
    first_year: int = 2015
    """Observation starts on a random day from this year on."""
    last_year: int = 2016
    """Last year in which observation starts."""
    admission_per_year: float = 0.085
    """Admission hazard of a woman of 60 in average health and without heart disease, per year."""
    horizons_days: tuple = (30, 90, 180, 365)
    """Horizons of the label tables and of the oracle, days."""
    predictions_per_subject: int = 3
    """Prediction times per person in the label tables, spread evenly over the stretches of wear."""
    min_history_days: int = 180
    """Least days from the start of observation to a prediction time."""
    subjects_per_shard: int = 125
    """Most people in one file."""
    train_fraction: float = 0.7
    """Share of the people in the training split."""
    tuning_fraction: float = 0.1
    """Share of the people in the tuning split; the rest is held out."""
    seed: int = 0
    """Seed of everything simulated; a run sets it to config.data.seed."""

    def __post_init__(self) -> None:
        where, many = "config.simulate", float("inf")
        object.__setattr__(self, "horizons_days", tuple(int(h) for h in self.horizons_days))
        shares = ("shared", "complementary", "interaction", "dropout", "ehr_information", "wearable_information",
                  "wearable_subjects_fraction", "ppg_subjects_fraction",
                  "train_fraction", "tuning_fraction")  # fmt: skip
        at_least_0 = ("noise", "missingness", "wear_days", "ppg_stretches", "min_history_days", "drug_heart_rate")
        at_least_1 = ("n_subjects", "subjects_per_shard", "predictions_per_subject", "wear_stretches")
        limits = dict.fromkeys(shares, (0.0, 1.0)) | dict.fromkeys(at_least_0, (0.0, many))
        limits |= dict.fromkeys(at_least_1, (1.0, many))
        options.require_range(where, self, limits | {"years": (60 / 365.25, many), "admission_per_year": (1e-9, many)})
        if self.train_fraction + self.tuning_fraction > 1:
            raise ValueError(f"{where}: train_fraction and tuning_fraction add up to more than 1")
        if self.last_year < self.first_year:
            raise ValueError(f"{where}.last_year is before first_year")

    @property
    def control(self) -> str:
        """What the cohort is for: the name in SIMULATED of its options, "positive", or "changed" (neither)."""
        default = {f.name: f.default for f in dataclasses.fields(self)}
        for name, chosen in {**SIMULATED, "positive": {}}.items():
            if all(getattr(self, k) == chosen.get(k, default[k]) for k in CONTROL_OPTIONS):
                return name
        return "changed"


# Options that say how much each modality tells, and how they act together
CONTROL_OPTIONS = ("shared", "complementary", "interaction", "drug_heart_rate", "ehr_information",
                   "wearable_information")  # fmt: skip
# {name: options of config.simulate}: the negative controls beside the default, which is a positive one
SIMULATED: dict[str, dict[str, float]] = {
    # one modality suffices: wearables show a part of what the EHR measures, and nothing else that matters
    "redundant": {"shared": 0.5, "complementary": 0.0, "interaction": 0.0},
    # wearables say nothing of the state
    "noise": {"wearable_information": 0.0},
}
