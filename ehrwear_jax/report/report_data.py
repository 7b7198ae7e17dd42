"""Declares what a report shows beside its records: curves, subgroups, robustness, latent space, cohort, compute."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class PatientMap:
    """Two principal components of a model's latents at held-out prediction times, with the outcome of a task."""

    model: str
    task: str
    xy_Nx2: np.ndarray
    share_2: tuple[float, float]
    y_N: np.ndarray


@dataclass(frozen=True)
class Kernels:
    """A model's learned time kernels K(d) / K(0), [layers, heads, K] at days_K."""

    model: str
    days_K: np.ndarray
    value_LxHxK: np.ndarray


@dataclass(frozen=True)
class Explained:
    """Attributions of one prediction, as in interpret/people.json and people.npz (stages/interpret_people.py).

    Attributes:
      risk, logit: of the probe. completeness_gap: of the integrated gradients, in the logit.
      groups, channels, histories, counterfactuals: name of a change of the record -> change of the logit.
      tokens: {days, label, gradient, rollout}, in time; days before the prediction time are negative.
      attention: [layers, heads, tokens] of the query at the prediction time.
      wear, wear_days: integrated gradients [windows, signals] and the windows' ends; signals: their names.
    """

    risk: float
    logit: float
    completeness_gap: float
    groups: Mapping[str, float | None]
    channels: Mapping[str, float | None]
    histories: Mapping[str, float | None]
    counterfactuals: Mapping[str, float | None]
    tokens: Sequence[Entry]
    attention: np.ndarray
    wear: np.ndarray
    wear_days: np.ndarray
    signals: Sequence[str]


@dataclass(frozen=True)
class ReportData:
    """Everything may be empty; the page then says so.

    Attributes:
      subgroups, curves, fractions, prevalence, demographics: as in evaluate/details.json (stages/evaluate_score.py,
        evaluate_curves.py, evaluate_subgroups.py).
      robustness, geometry, ledger, posterior, retrieval, uncertainty: as in interpret/*.json (stages/interpret.py).
      mechanisms: as in interpret/mechanisms.json (stages/interpret_people.py).
      trials: {task, kind, competing_known, design, splits, outcomes, steps} of every task (stages/target_trial.py).
      too_few: {task, people, events, others, limit} of tasks without numbers (stages/evaluate_score.py).
      families: {kind, metric, of, tests} of the tests behind q-values (evals/families.py).
      codes: {"event", "drug": prefixes of the codes that the mechanisms are about}.
      kernels, maps, explained: what is drawn of the networks and of single predictions.
      not_interpreted: one sentence on why there is nothing of the interpret stage; "" where there is.
      individuals: draw every prediction time of the maps, and means over few people; else hexagons of ten or more.
      compute: one {column: text} for each pretrained model.
      encounter_codes: what the codes of clinic encounters begin with; (): every day with an event is one.
      main_task: the binary task of tables 6 to 9; "" chooses the longest horizon.
    """

    subgroups: Sequence[Entry] = ()
    curves: Sequence[Entry] = ()
    fractions: Sequence[Entry] = ()
    prevalence: Sequence[Entry] = ()
    demographics: Sequence[Entry] = ()
    robustness: Sequence[Entry] = ()
    geometry: Sequence[Entry] = ()
    ledger: Sequence[Entry] = ()
    posterior: Sequence[Entry] = ()
    retrieval: Sequence[Entry] = ()
    uncertainty: Sequence[Entry] = ()
    mechanisms: Mapping[str, Any] = field(default_factory=dict)
    trials: Sequence[Entry] = ()
    too_few: Sequence[Entry] = ()
    families: Sequence[Entry] = ()
    codes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    kernels: Sequence[Kernels] = ()
    maps: Sequence[PatientMap] = ()
    explained: Sequence[Explained] = ()
    not_interpreted: str = ""
    individuals: bool = False
    compute: Sequence[Mapping[str, str]] = ()
    encounter_codes: Sequence[str] = ()
    main_task: str = ""

    @property
    def encounter(self) -> str:
        """What counts as a clinic encounter, in a sentence."""
        which = f" of a code that begins with {' or '.join(self.encounter_codes)}" if self.encounter_codes else ""
        return f"An encounter is a day with an event{which}."
