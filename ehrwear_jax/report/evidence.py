"""What a report shows beside its records: curves, subgroups, robustness, the latent space, the cohort, compute."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class PatientMap:
    """Two principal components of a row's latents at held-out reads, with the outcome of a task."""

    row: str
    task: str
    xy_Nx2: np.ndarray
    share_2: tuple[float, float]
    y_N: np.ndarray


@dataclass(frozen=True)
class Kernels:
    """A row's learned time kernels K(d) / K(0), [layers, heads, K] at days_K."""

    row: str
    days_K: np.ndarray
    value_LxHxK: np.ndarray


@dataclass(frozen=True)
class Evidence:
    """All of it may be empty; the page then says so.

    Attributes:
      subgroups, curves, fractions, prevalence, demographics: as in evaluate/details.json (stages/evaluate_score.py,
        evaluate_curves.py, evaluate_subgroups.py).
      robustness, geometry, retrieval, uncertainty: as in interpret/*.json (stages/interpret.py).
      kernels, maps: to draw.
      individuals: draw every read of the maps; else hexagons of ten reads or more.
      compute: one {column: text} per pretrained row.
      main_task: the binary task that tables 6 to 9 are of; "" chooses the longest horizon.
      absent: table number -> why this run cannot fill it, where the general reason does not say it.
    """

    subgroups: Sequence[Entry] = ()
    curves: Sequence[Entry] = ()
    fractions: Sequence[Entry] = ()
    prevalence: Sequence[Entry] = ()
    demographics: Sequence[Entry] = ()
    robustness: Sequence[Entry] = ()
    geometry: Sequence[Entry] = ()
    retrieval: Sequence[Entry] = ()
    uncertainty: Sequence[Entry] = ()
    kernels: Sequence[Kernels] = ()
    maps: Sequence[PatientMap] = ()
    individuals: bool = False
    compute: Sequence[Mapping[str, str]] = ()
    main_task: str = ""
    absent: Mapping[str, str] = field(default_factory=dict)
