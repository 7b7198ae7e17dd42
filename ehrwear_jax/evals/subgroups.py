"""Computes metrics by subgroup and their gaps on shared resamples, and draws label fractions.

A subgroup is a 0/1 factor of the rows (see `weighting`): all cells, their gaps and the whole cohort
are evaluated on the same resamples of patients, so a gap's interval knows what its two cells share.
Cells of few patients are suppressed: their numbers are imprecise and may identify people.
"""

import dataclasses
import functools
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ehrwear_jax.evals import calibration, disclosure, inference
from ehrwear_jax.evals.builders import Build
from ehrwear_jax.evals.estimates import NO_SAMPLES, Estimates, Resampling, estimate
from ehrwear_jax.evals.weighting import Deferred, Statistic, binary

CellKey = tuple[str, str]  # attribute, level
WHOLE_COHORT: CellKey = ("all", "all")


def age_bands(age_years_N: npt.ArrayLike, edges: Sequence[float] = (50, 65)) -> np.ndarray:
    """Labels "<50", "50-65", ">65" [N] as in the paper's Table 8; NaN gives None.

    The first band ends below its edge and the last begins above its own: 50 and 65 are "50-65". An
    inner edge between two middle bands belongs to the upper one.
    """
    age_N, edges = np.asarray(age_years_N, np.float64), [float(e) for e in edges]
    if len(edges) < 2 or edges != sorted(set(edges)):
        raise ValueError(f"age bands need two edges or more that increase, got {edges}")
    middle = [f"{a:g}-{b:g}" for a, b in zip(edges, edges[1:], strict=False)]
    names = np.array([f"<{edges[0]:g}", *middle, f">{edges[-1]:g}"], object)
    band_N = (age_N[:, None] >= edges[:-1]).sum(1) + (age_N > edges[-1])
    return np.where(np.isfinite(age_N), names[band_N], np.array(None, object))


def coverage_groups(
    encounters_prior_year_N: npt.ArrayLike,
    wear_days_N: npt.ArrayLike,
    *,
    sparse_below: float = 2,
    short_below: float = 14,
    month_below: float = 30,
) -> dict[str, np.ndarray]:
    """The paper's groups by how much is known of a person (sections 5.2, 5.3 and 5.7).

    Args:
      encounters_prior_year_N: clinic encounters in the year before the prediction time.
      wear_days_N: days of wear before it.
      sparse_below, short_below, month_below: fewer than these count as sparse EHR, as short wear, as under a month.

    Returns:
      {"ehr": "sparse" / "rich", "wear": "short" / "long", "wear_month": "under a month" / "a month or more",
      "ehr_and_wear": "sparse and short" / "other"} arrays [N], for `cells`.
    """
    sparse_N = np.asarray(encounters_prior_year_N, np.float64) < sparse_below
    short_N = np.asarray(wear_days_N, np.float64) < short_below
    return {
        "ehr": np.where(sparse_N, "sparse", "rich"),
        "wear": np.where(short_N, "short", "long"),
        "wear_month": np.where(np.asarray(wear_days_N, np.float64) < month_below, "under a month", "a month or more"),
        "ehr_and_wear": np.where(sparse_N & short_N, "sparse and short", "other"),
    }


@dataclasses.dataclass(frozen=True)
class Suppression:
    """Which cells are too small to show; patients, not rows, are counted."""

    min_patients: int = 20
    min_per_class: int = 10  # patients with a positive row, and patients with a negative one


@dataclasses.dataclass(frozen=True)
class Cell:
    """One level of one attribute; counts are None where they are suppressed."""

    attribute: str
    level: str
    mask_N: np.ndarray
    n_patients: int | None
    n_positive: int | None  # patients with a positive row
    suppressed: bool


def cells(
    attributes: Mapping[str, np.ndarray],
    y_N: npt.ArrayLike,
    group_N: npt.ArrayLike,
    suppression: Suppression | None = None,
    *,
    counted_N: npt.ArrayLike | None = None,
) -> dict[CellKey, Cell]:
    """The cells of every attribute, with those that are too small marked.

    Where cells of an attribute are suppressed, the counts of its smallest other cells are hidden too, until no
    suppressed one follows from the total and the rest (`disclosure.complete`).

    Args:
      attributes: name -> level of each row [N], None for unknown (in no cell).
      y_N: 0/1: label, or event.
      group_N: patient of each row.
      suppression: limits, by default 20 patients and 10 of each class.
      counted_N: bool, rows that can be scored at all (a horizon's label is known); default all.

    Returns:
      (attribute, level) -> Cell, WHOLE_COHORT first.
    """
    rules, y_N, group_N = suppression or Suppression(), binary(y_N, "y"), np.asarray(group_N)
    if len(y_N) != len(group_N):
        raise ValueError(f"group has {len(group_N)} rows, expected {len(y_N)}")
    counted_N = np.ones(len(y_N), bool) if counted_N is None else binary(counted_N, "counted")
    found: dict[CellKey, Cell] = {}
    counts: dict[CellKey, tuple[int, int]] = {}

    def add(attribute, level, mask_N):
        mask_N = mask_N & counted_N
        patients, positive, negative = (
            len(np.unique(group_N[mask_N & rows])) for rows in (np.ones_like(y_N), y_N, ~y_N)
        )
        small = patients < rules.min_patients or min(positive, negative) < rules.min_per_class
        n_patients, n_positive = (None if small else n for n in (patients, positive))
        found[attribute, level] = Cell(attribute, level, mask_N, n_patients, n_positive, small)
        counts[attribute, level] = patients, positive

    add(*WHOLE_COHORT, np.ones_like(y_N))
    for attribute, levels in attributes.items():
        levels_N = np.asarray(levels, object)
        if len(levels_N) != len(y_N):
            raise ValueError(f"attribute {attribute} has {len(levels_N)} rows, expected {len(y_N)}")
        known = sorted({str(v) for v in levels_N if v is not None})
        for level in known:
            add(attribute, level, np.array([v is not None and str(v) == level for v in levels_N]))
        keys = [(attribute, level) for level in known]
        hidden = np.array([found[key].suppressed for key in keys], bool)
        for which, limit in enumerate((rules.min_patients, rules.min_per_class)):
            hidden = disclosure.complete([counts[key][which] for key in keys], hidden, limit)
        for key in (key for key, is_hidden in zip(keys, hidden, strict=True) if is_hidden):
            found[key] = dataclasses.replace(found[key], n_patients=None, n_positive=None)
    return found


def statistics_by_cell(
    build: Mapping[str, Build], found: Mapping[CellKey, Cell]
) -> dict[tuple[str, str, str], Statistic]:
    """(model, attribute, level) -> statistic of each shown cell, to be resampled together.

    Args:
      build: model -> function from `factor_N` (None: all rows) to a statistic, as `builders` makes them.
      found: from `cells`.
    """
    return {
        (model, *key): Deferred(functools.partial(_in_cell, make, cell), int(np.count_nonzero(cell.mask_N)))
        for key, cell in found.items()
        if not cell.suppressed
        for model, make in build.items()
    }


def _in_cell(make, cell):
    return make(None if cell.mask_N.all() else cell.mask_N.astype(np.float64))


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What is compared within and between cells.

    Attributes:
      metrics: for which gaps and differences are made.
      reference_model: adds, for each cell, "<metric>_difference" of this model minus each other.
    """

    metrics: tuple[str, ...] = ("auroc",)
    reference_model: str | None = None


def score(
    build: Mapping[str, Build],
    found: Mapping[CellKey, Cell],
    group_N: npt.ArrayLike,
    resampling: Resampling | None = None,
    comparison: Comparison | None = None,
) -> list[dict]:
    """Every metric of every model in every cell, with intervals, and the gaps.

    Args:
      build: as in `statistics_by_cell`.
      found: from `cells`, of the same rows.
      group_N: patient of each row.
      resampling: by default 1,000 resamples.
      comparison: by default the gaps of AUROC.

    Returns:
      As `cell_records`.
    """
    estimates = estimate(statistics_by_cell(build, found), group_N, resampling)
    return cell_records(list(build), found, estimates, comparison)


def cell_records(
    models: Sequence[str],
    found: Mapping[CellKey, Cell],
    estimates: Estimates,
    comparison: Comparison | None = None,
    metrics: Collection[str] | None = None,
) -> list[dict]:
    """Records of every model and cell from the estimates of their statistics.

    A gap "<metric>_gap" is a cell's value minus that of the attribute's level with most rows.

    Args:
      models: in the order of the records.
      found: from `cells`.
      estimates: of `statistics_by_cell`.
      comparison: by default the gaps of AUROC.
      metrics: those to report, by default all; gaps and differences are reported besides.

    Returns:
      Records {"model", "attribute", "level", "metric", "value", "lo", "hi", "p", "n_patients",
      "n_positive", "n_degenerate", "suppressed"}. A suppressed cell has one record for each model, of
      metric "suppressed" without numbers. Signed gaps of `Calibration(..., gaps=True)` become one
      record "ece_corrected". "p" is given for gaps and differences. Values are NaN
      where a metric is undefined.
    """
    comparison, references, records = comparison or Comparison(), _largest_levels(found), []
    for key, cell in found.items():
        for model in models:
            if cell.suppressed:
                records.append(_record(cell, model, "suppressed", float("nan")))
                continue
            own = (model, *key)
            records += _metric_records(cell, model, estimates, own, metrics)
            for metric in comparison.metrics:
                if references.get(cell.attribute, cell.level) != cell.level:
                    largest = model, cell.attribute, references[cell.attribute]
                    records += _difference_record(cell, model, estimates, (own, largest), metric, "gap")
                if comparison.reference_model not in (None, model):
                    pair = f"{comparison.reference_model} - {model}"
                    both = (comparison.reference_model, *key), own
                    records += _difference_record(cell, pair, estimates, both, metric, "difference")
    return records


def _record(cell: Cell, model: str, metric: str, value: float, samples_B=NO_SAMPLES, p: float | None = None) -> dict:
    bounds = inference.interval(samples_B)
    return {
        "model": model, "attribute": cell.attribute, "level": cell.level, "metric": metric,
        "value": value, "lo": bounds.lo, "hi": bounds.hi, "p": p,
        "n_patients": cell.n_patients, "n_positive": cell.n_positive,
        "n_degenerate": bounds.n_degenerate, "suppressed": cell.suppressed,
    }  # fmt: skip


def _metric_records(cell, model, estimates, key, metrics) -> list[dict]:
    values = estimates.values[key]
    gaps = [metric for metric in values if metric.startswith(calibration.GAP)]
    records = [
        _record(cell, model, metric, value, estimates.resampled(key, metric))
        for metric, value in values.items()
        if metric not in gaps and (metrics is None or metric in metrics)
    ]
    if gaps and estimates.samples:
        gap_BxK = np.stack([estimates.resampled(key, metric) for metric in gaps], axis=1)
        corrected = calibration.corrected_ece([values[metric] for metric in gaps], gap_BxK)
        bounds = {"lo": corrected.lo, "hi": corrected.hi}
        records.append(_record(cell, model, "ece_corrected", corrected.value) | bounds)
    return records


def _difference_record(cell, name, estimates, pair, metric, kind) -> list[dict]:
    if not all(metric in estimates.values[key] for key in pair):
        return []  # a model without curves has no Brier score to compare
    value, delta_B = estimates.difference(*pair, metric)
    return [_record(cell, name, f"{metric}_{kind}", value, delta_B, inference.paired_pvalue(delta_B))]


def _largest_levels(found: Mapping[CellKey, Cell]) -> dict[str, str]:
    """attribute -> the shown level with most rows, which gaps refer to."""
    shown: dict[str, list[Cell]] = {}
    for key, cell in found.items():
        if key != WHOLE_COHORT and not cell.suppressed:
            shown.setdefault(cell.attribute, []).append(cell)
    return {a: max(c, key=lambda cell: cell.mask_N.sum()).level for a, c in shown.items()}


def label_fractions(
    y_N: npt.ArrayLike,
    group_N: npt.ArrayLike,
    fractions: Sequence[float] = (0.01, 0.1, 1.0),
    *,
    n_draws: int = 5,
    seed: int = 0,
) -> dict[tuple[float, int], np.ndarray]:
    """Rows to train on when only a fraction of the patients is labelled.

    Patients are drawn, not rows; separately among those with and without a positive row
    (stratified), so that every fraction has the cohort's share of positives up to rounding; and the
    smaller fractions of a draw are subsets of its larger ones (nested).

    Args:
      y_N: 0/1 labels (or events) of the training rows.
      group_N: patient of each row.
      fractions: in (0, 1].
      n_draws: independent draws.
      seed: of the draws; a draw depends on (seed, draw) and the set of patients only.

    Returns:
      (fraction, draw) -> ascending row indices. At least one patient of each stratum is kept.
    """
    y_N, group_N = binary(y_N, "y"), np.asarray(group_N)
    if y_N.shape != group_N.shape:
        raise ValueError(f"group has {len(group_N)} rows, expected {len(y_N)}")
    if not all(0 < f <= 1 for f in fractions):
        raise ValueError(f"fractions must lie in (0, 1], got {list(fractions)}")
    groups, position_N = np.unique(group_N, return_inverse=True)
    positive_G = np.bincount(position_N, y_N, len(groups)) > 0
    chosen = {}
    for draw in range(n_draws):
        rank_G = np.random.default_rng([seed, draw]).permutation(len(groups))
        share_G = np.empty(len(groups))
        for stratum in (positive_G, ~positive_G):
            # Rank of each patient in the stratum's random order: the first ones are kept.
            share_G[stratum] = np.argsort(np.argsort(rank_G[stratum]))
        for fraction in fractions:
            keep_G = np.zeros(len(groups), bool)
            for stratum in (positive_G, ~positive_G):
                keep_G |= stratum & (share_G < max(1, round(fraction * stratum.sum())))
            chosen[fraction, draw] = np.flatnonzero(keep_G[position_N])
    return chosen
