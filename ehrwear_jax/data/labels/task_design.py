"""Says in plain words how label tables were made: the rows of a target-trial table."""

import polars as pl

from ehrwear_jax.config.labels import LabelsConfig, PhysiologyConfig
from ehrwear_jax.data.labels import followup

PARTS = ("time_zero", "eligibility", "outcome", "follow_up", "competing_events", "censoring")


def of(group: str, config: LabelsConfig, limits: followup.Calendar, people: pl.DataFrame) -> dict[str, str]:
    """{part of PARTS: one sentence} of the tasks of a group; see event_tasks.py.

    Args:
      people: as followup.follow_up returns.
    """
    c = config
    if limits.limit is None:
        until = f"the end of each person's follow-up ({limits.how})"
    else:
        until = f"{limits.limit:%Y-%m-%d}, {limits.how}, less {max(c.horizons_days):g} days"
    worn = ", and at least a day of wear where there are wearables" if c.after_wearable else ""
    alive = "Alive, followed, and not in hospital at the prediction time"
    return {
        "time_zero": f"Up to {c.per_subject} random midnights of each person, drawn without regard to what follows, up "
        f"to {until}.",
        "eligibility": f"{alive}, with at least {c.min_history_days:g} days of record before it{worn}{_never(group)}.",
        "outcome": _outcome(group, c),
        "follow_up": f"From the prediction time to {_ends(c, people)}.",
        "competing_events": _competing(group, c),
        "censoring": "Whoever's follow-up ends inside a horizon without the event or a death has no label at that "
        "horizon; time-to-event labels are censored there.",
    }


def of_physiology(c: PhysiologyConfig) -> dict[str, str]:
    """{part of PARTS: one sentence} of the tasks that are labelled from signals; see signal_outcomes.py."""
    periods = ", ".join(f"{d:g}" for d in c.period_days)
    return {
        "time_zero": f"Up to {c.per_subject} random midnights of each wearer's recording.",
        "eligibility": f"At least {c.min_history_days:g} days from the beginning of wear to the prediction time, and "
        f"recordings on {c.min_days} days of the longest period after it.",
        "outcome": f"The measure that the task's name says, over the {periods} days after the prediction time.",
        "follow_up": "From the prediction time to the end of the period.",
        "competing_events": "Not distinguished: whoever dies or takes the device off has fewer usable days.",
        "censoring": f"A period with fewer than {c.min_days} usable days has no label.",
    }


def _ends(c: LabelsConfig, people: pl.DataFrame) -> str:
    """How the ends of follow-up are known, and of how many people."""
    guess = "last record" if c.followup == "last_record" else "day of extraction of the data"
    ends = {
        followup.IN_TABLE: "the end in the follow-up table",
        followup.BY_CODE: f"the code of the end of follow-up ({', '.join(c.followup_end_codes)})",
        followup.BY_DEATH: "the recorded death",
        followup.GUESSED: f"the {guess}, a guess",
    }
    n_known = {how: int((people["known"] == how).sum()) for how in ends}
    found = [f"{what} ({n_known[how]:,} people)" for how, what in ends.items() if n_known[how]]
    return ", ".join(found) or "nowhere: nobody is followed"


def _never(group):
    return f", and no earlier diagnosis of {group.removeprefix('onset_')}" if group.startswith("onset_") else ""


def _outcome(group: str, c: LabelsConfig) -> str:
    either = " or death, whichever comes first" if c.composite and group != "death" else ""
    horizons = ", ".join(f"{h:g}" for h in c.horizons_days)
    if group == "hospitalization":
        what = (
            f"The first new admission ({', '.join(c.admission_codes)}){either}; admissions during a stay or at most "
            f"{c.stay_gap_hours:g} hours after one go on with it and do not count"
        )
    elif group == "death":
        what = "Death (MEDS_DEATH)"
    else:
        name = group.removeprefix("onset_")
        what = f"The first diagnosis ever of {name} ({', '.join(c.diagnosis_groups[name])}){either}"
    return f"{what}; within {horizons} days after the prediction time, and the time to it."


def _competing(group: str, c: LabelsConfig) -> str:
    if group == "death":
        return "None."
    if c.composite:
        return "None: a death before the event counts as the event."
    return "Death: a death before the event is a negative label at every horizon; records after it are no events."
