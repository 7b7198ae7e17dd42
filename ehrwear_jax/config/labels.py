"""Declares the options of labels: outcomes from events, and physiology from signals."""

import dataclasses

from ehrwear_jax.config import options
from ehrwear_jax.config.data import FOLLOWUP_END

# What can be labelled from signals, and the unit.
MEASURES = {
    "sleep_efficiency": "share, 0 to 1: mean over the nights, see rest_activity.sleep_efficiency",
    "hrv_rmssd": "ms: mean over the days of each day's median",
    "activity_regularity": "0 to 1: interdaily stability of hourly activity",
    "intradaily_variability": "about 0 to 2",
    "relative_amplitude": "0 to 1",
    "activity_entropy": "0 to 1: of the average day's hours",
    "resting_heart_rate": "beats a minute",
}
HRV_KINDS = ("rmssd", "pulse", "ecg", "intervals")
# What is assumed of a person of whom nobody says how long they were observed.
FOLLOWUPS = ("last_record", "extraction_date")


@dataclasses.dataclass(frozen=True)
class PhysiologyConfig:
    """Labels of the days after a prediction time, from the device (data/labels/signal_outcomes.py).

    What depends on the device or the study is an option; published thresholds of sleep, rest and heart beats are
    constants beside the code that uses them (data/signals/rest_activity.py, rhythm.py, pulse.py).
    """

    measures: tuple = ()
    """What is labelled: names of MEASURES in config/labels.py. A task is called MEASURE_<days>d."""
    period_days: tuple = (7,)
    """Lengths of the period after the prediction time, days."""
    per_subject: int = options.within(2, 1)
    """Prediction times drawn for each person, at midnights of the clock of start_time."""
    min_history_days: float = options.within(1.0, 0.0)
    """Least days from the beginning of wear to a prediction time."""
    min_days: int = options.within(4, 1)
    """Fewest usable days (for sleep: nights with both ends seen) in a period."""
    min_day_share: float = options.within(0.6, 0.0, 1.0)
    """Share of a day that must be observed for it to be usable for the rhythm."""
    activity_channel: str = "activity"
    """Channel of activity, counts per minute, not negative."""
    heart_rate_channel: str = "heart_rate"
    """Channel of the heart rate, beats per minute; empty if there is none."""
    counts_scale: float = options.within(0.01, options.ABOVE_0)
    """Factor that brings the counts to those of Cole and Kripke; depends on the device, see
    rest_activity.asleep_counts."""
    counts_cap: float = options.within(300.0, 0.0)
    """Highest scaled count; depends on the device."""
    non_wear_minutes: int = options.within(90, 0)
    """Minutes of zero counts in a row, without a heart rate, that count as time not worn (signals/non_wear.py); 0:
    zeros are taken as they are."""
    still_counts: float = options.within(0.0, 0.0)
    """Most counts of a minute at rest, in the channel's unit, see rest_activity.resting_heart_rate."""
    hrv_channel: str = ""
    """Channel of the heart rate variability; empty if there is none."""
    hrv_kind: str = "rmssd"
    """What the channel holds. rmssd: RMSSD in ms; pulse, ecg or intervals: a value per hrv_minutes is computed from
    it."""
    hrv_minutes: int = 60
    """Length of the pieces of which a value of the heart rate variability is computed, minutes; must divide a day."""
    min_hrv_values: int = options.within(1, 1)
    """Fewest values of the heart rate variability that make a day usable."""

    def __post_init__(self) -> None:
        where = "config.labels.physiology"
        for name in self.measures:
            if name not in MEASURES:
                raise ValueError(f"{where}.measures holds {name!r}; there are {', '.join(MEASURES)}")
        options.require_choice(where, "hrv_kind", self.hrv_kind, HRV_KINDS)
        if "hrv_rmssd" in self.measures and not self.hrv_channel:
            raise ValueError(f"{where}.measures holds 'hrv_rmssd': name the channel in {where}.hrv_channel")
        if self.hrv_minutes < 1 or (24 * 60) % self.hrv_minutes:
            raise ValueError(f"{where}.hrv_minutes is {self.hrv_minutes}, must divide a day")
        options.require_within(where, self)
        for days in self.period_days:
            if days < self.min_days:
                raise ValueError(f"{where}.period_days holds {days}, less than min_days {self.min_days}")

    def tasks(self) -> list[str]:
        """Names of the label tables."""
        return [f"{measure}_{days}d" for measure in self.measures for days in self.period_days]

    def channels(self) -> tuple[str, ...]:
        """Channels that the measures read."""
        of_activity = set(self.measures) - {"hrv_rmssd"}
        names = [self.activity_channel, self.heart_rate_channel] if of_activity else []
        names += [self.hrv_channel] if "hrv_rmssd" in self.measures else []
        return tuple(dict.fromkeys(n for n in names if n))


@dataclasses.dataclass(frozen=True)
class LabelsConfig:
    """Label tables that are made from the events where the user gives none (data/labels/).

    Events after a person's death, or after the end of their follow-up, do not count; a death before the event is a
    competing event. A label at a horizon is unknown, and there is no row, if follow-up ends before it without an event.
    """

    horizons_days: tuple = options.within((30, 90, 180, 365), options.ABOVE_0)
    """Horizons of hospitalisation, death and first diagnoses, days."""
    per_subject: int = options.within(2, 1)
    """Prediction times drawn for each person."""
    min_history_days: float = options.within(180.0, 0.0)
    """Least days from the first record, or from the start of follow-up where that is known, to a prediction time."""
    after_wearable: bool = True
    """Draw prediction times only after the first day of wear, where there are wearables."""
    admission_codes: tuple = ("HOSPITAL_ADMISSION",)
    """Codes of admissions, or what they start with before "//". Empty: hospitalisation is not labelled."""
    discharge_codes: tuple = ("HOSPITAL_DISCHARGE",)
    """Codes of discharges, the same way. Empty: the dataset has none, and an admission is a stay of no length."""
    transfer_codes: tuple = ()
    """Codes of moves between hospitals or departments, the same way: a stay that begins with one is no new
    admission."""
    stay_gap_hours: float = options.within(24.0, 0.0)
    """Longest time from a discharge to an admission that goes on with the same stay (data/labels/episodes.py)."""
    longest_stay_days: float = options.within(365.0, 0.0)
    """Longest time from an admission to a discharge that belongs to it."""
    death: bool = False
    """Whether death is labelled as a task: death_<days>d and time_to_death."""
    composite: bool = False
    """Whether a death before the event counts as the event in hospitalisation and first diagnoses."""
    followup_file: str = ""
    """Parquet or CSV table subject_id, start (optional), end of who was observed when; people who are not in it get no
    label. Empty: metadata/subject_followup.parquet of the dataset, if it is there."""
    followup_start_codes: tuple = ()
    """Codes that say that a person is observed from then on, or what they start with before "//"; the first counts."""
    followup_end_codes: tuple = (FOLLOWUP_END,)
    """Codes that say until when a person was observed, the same way; the last counts. By default the simulator's.
    Name them in config.prepare.drop_codes too."""
    followup: str = "last_record"
    """Until when a person is taken as observed of whom neither table nor code says it. last_record: their last record
    that is no future booking; extraction_date: the day of extraction, which is right where nobody can leave unseen, as
    in a national register."""
    shifted_dates: str = "auto"
    """Whether dates are shifted per person, so that there is no common calendar: yes, no, or auto (as
    data/labels/followup.py says)."""
    diagnosis_groups: dict = dataclasses.field(default_factory=dict)
    """Diagnosis groups whose first onset is labelled: name -> prefixes of the group's codes."""
    physiology: PhysiologyConfig = PhysiologyConfig()
    """Labels from signals."""

    def __post_init__(self) -> None:
        where = "config.labels"
        options.require_choice(where, "followup", self.followup, FOLLOWUPS)
        options.require_choice(where, "shifted_dates", self.shifted_dates, ("auto", "yes", "no"))
        options.require_within(where, self)
        if not self.horizons_days:
            raise ValueError(f"{where}.horizons_days is empty; it must hold days")
        for name, prefixes in self.diagnosis_groups.items():
            if not isinstance(prefixes, tuple | list) or not prefixes or "" in prefixes:
                raise ValueError(
                    f"{where}.diagnosis_groups.{name} is {prefixes!r}; it must name what the group's codes start with, "
                    "as in ('ICD10CM/I21',)"
                )
