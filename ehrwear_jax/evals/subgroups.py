"""Metrics by subgroup with gaps, on shared resamples, and label fractions for sample efficiency.

A subgroup is a 0/1 factor of the rows (see `weighting`): all cells, their gaps and the whole cohort
are evaluated on the same resamples of patients, so a gap's interval knows what its two cells share.
Cells of few patients are suppressed: their numbers say little and may identify people.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ehrwear_jax.evals import bootstrap, calibration, inference
from ehrwear_jax.evals.weighting import Statistic, binary, evaluate

EVERYONE = ("all", "all")


def age_bands(age_years_N, edges: Sequence[float] = (50, 65)) -> np.ndarray:
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
    return np.where(np.isfinite(age_N), names[band_N], None)


def coverage_groups(
    encounters_prior_year_N, wear_days_N, *, sparse_below: float = 2, short_below: float = 14
) -> dict[str, np.ndarray]:
    """The paper's groups by how much is known of a person (sections 5.3 and 5.7).

    Args:
      encounters_prior_year_N: clinic encounters in the year before the prediction time.
      wear_days_N: days of wear before it.
      sparse_below, short_below: fewer than these count as sparse EHR and as short wear.

    Returns:
      {"ehr": "sparse" / "rich", "wear": "short" / "long", "ehr_and_wear": "sparse and short" /
      "other"} arrays [N], for `score`.
    """
    sparse_N = np.asarray(encounters_prior_year_N, np.float64) < sparse_below
    short_N = np.asarray(wear_days_N, np.float64) < short_below
    return {
        "ehr": np.where(sparse_N, "sparse", "rich"),
        "wear": np.where(short_N, "short", "long"),
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
    attributes: Mapping[str, np.ndarray], y_N, group_N, suppression: Suppression | None = None, *, counted_N=None
) -> dict[tuple[str, str], Cell]:
    """The cells of every attribute, with those that are too small marked.

    Where exactly one cell of an attribute is suppressed, the counts of its smallest other cell are
    hidden too: the total less the rest would give the suppressed one away.

    Args:
      attributes: name -> level of each row [N], None for unknown (in no cell).
      y_N: 0/1: label, or event.
      group_N: patient of each row.
      suppression: limits, by default 20 patients and 10 of each class.
      counted_N: bool, rows that can be scored at all (a horizon's label is known); default all.

    Returns:
      (attribute, level) -> Cell, EVERYONE first.
    """
    rules, y_N, group_N = suppression or Suppression(), binary(y_N, "y"), np.asarray(group_N)
    if len(y_N) != len(group_N):
        raise ValueError(f"group has {len(group_N)} rows, expected {len(y_N)}")
    counted_N = np.ones(len(y_N), bool) if counted_N is None else binary(counted_N, "counted")
    found = {}

    def add(attribute, level, mask_N):
        mask_N = mask_N & counted_N
        patients, positive, negative = (
            len(np.unique(group_N[mask_N & rows])) for rows in (np.ones_like(y_N), y_N, ~y_N)
        )
        small = patients < rules.min_patients or min(positive, negative) < rules.min_per_class
        counts = (None, None) if small else (patients, positive)
        found[attribute, level] = Cell(attribute, level, mask_N, *counts, small)

    add(*EVERYONE, np.ones_like(y_N))
    for attribute, levels in attributes.items():
        levels_N = np.asarray(levels, object)
        if len(levels_N) != len(y_N):
            raise ValueError(f"attribute {attribute} has {len(levels_N)} rows, expected {len(y_N)}")
        known = sorted({str(v) for v in levels_N if v is not None})
        for level in known:
            add(attribute, level, np.array([v is not None and str(v) == level for v in levels_N]))
        of_attribute = [found[attribute, level] for level in known]
        shown = [c for c in of_attribute if not c.suppressed]
        if len(shown) == len(of_attribute) - 1 and shown:
            smallest = min(shown, key=lambda c: c.n_patients)
            hidden = dataclasses.replace(smallest, n_patients=None, n_positive=None)
            found[attribute, smallest.level] = hidden
    return found


def statistics_by_cell(
    build: Mapping[str, Callable[[np.ndarray | None], Statistic]], found: Mapping[tuple[str, str], Cell]
) -> dict[tuple[str, str, str], Statistic]:
    """(row, attribute, level) -> statistic of each shown cell, to be resampled together.

    Args:
      build: row name -> function from `factor_N` (None: all rows) to a statistic, for instance
        `lambda factor_N: BinaryRanking(y_N, p_N, factor_N=factor_N)`.
      found: from `cells`.
    """
    return {
        (row, *key): make(None if cell.mask_N.all() else cell.mask_N.astype(np.float64))
        for key, cell in found.items()
        if not cell.suppressed
        for row, make in build.items()
    }


def score(
    build: Mapping[str, Callable[[np.ndarray | None], Statistic]],
    attributes: Mapping[str, np.ndarray],
    y_N,
    group_N,
    *,
    n_resamples: int = 1000,
    seed: int = 0,
    universe=None,
    reference_row: str | None = None,
    reference_levels: Mapping[str, str] | None = None,
    compared: Sequence[str] = ("auroc",),
    suppression: Suppression | None = None,
    counted_N=None,
) -> list[dict]:
    """Every metric of every row in every cell, with intervals, and the gaps.

    Args:
      build, attributes, y_N, group_N, suppression, counted_N: as in `statistics_by_cell`, `cells`.
      n_resamples, seed, universe: of the patient bootstrap.
      reference_row: adds, per cell, "<metric>_difference" of this row minus each other.
      reference_levels: attribute -> level that gaps refer to; by default the one with most
        rows. A gap "<metric>_gap" is a cell's value minus the reference level's.
      compared: metrics for which gaps and differences are made.

    Returns:
      Records {"row", "attribute", "level", "metric", "value", "lo", "hi", "p", "n_patients",
      "n_positive", "n_degenerate", "suppressed"}. A suppressed cell has one record per row, of
      metric "suppressed" without numbers. Signed gaps of `Calibration(..., gaps=True)` become one
      record "ece_corrected". "p" is given for gaps and differences. Values are NaN
      where a metric is undefined.
    """
    found = cells(attributes, y_N, group_N, suppression, counted_N=counted_N)
    statistics = statistics_by_cell(build, found)
    samples = bootstrap.resample(statistics, group_N, n_resamples, seed, universe=universe)
    values = {key: evaluate(statistic, len(np.asarray(group_N))) for key, statistic in statistics.items()}
    references = _references(found, reference_levels or {})
    records = []

    def add(row, cell, metric, value, samples_B=(), p=None):
        bounds = inference.interval(samples_B)
        records.append(
            {
                "row": row, "attribute": cell.attribute, "level": cell.level, "metric": metric,
                "value": value, "lo": bounds.lo, "hi": bounds.hi, "p": p,
                "n_patients": cell.n_patients, "n_positive": cell.n_positive,
                "n_degenerate": bounds.n_degenerate, "suppressed": cell.suppressed,
            }
        )  # fmt: skip

    def add_difference(row, cell, metric, first, second, name):
        if not (name in values[first] and name in values[second]):
            return  # a row without curves has no Brier score to compare
        delta_B = samples[first][name] - samples[second][name] if samples else ()
        add(row, cell, metric, values[first][name] - values[second][name], delta_B, inference.paired_pvalue(delta_B))

    for key, cell in found.items():
        for row in build:
            if cell.suppressed:
                add(row, cell, "suppressed", float("nan"))
                continue
            mine = (row, *key)
            for metric, value in values[mine].items():
                if not metric.startswith(calibration.GAP):
                    add(row, cell, metric, value, samples[mine][metric] if samples else ())
            gaps = [metric for metric in values[mine] if metric.startswith(calibration.GAP)]
            if gaps and samples:
                gap_BxK = np.stack([samples[mine][metric] for metric in gaps], axis=1)
                corrected = calibration.corrected_ece([values[mine][metric] for metric in gaps], gap_BxK)
                add(row, cell, "ece_corrected", corrected.value)
                records[-1] |= {"lo": corrected.lo, "hi": corrected.hi}
            reference = references.get(cell.attribute)
            for metric in compared:
                if reference is not None and reference != cell.level:
                    add_difference(row, cell, f"{metric}_gap", mine, (row, cell.attribute, reference), metric)
                if reference_row is not None and row != reference_row:
                    pair = f"{reference_row} - {row}"
                    add_difference(pair, cell, f"{metric}_difference", (reference_row, *key), mine, metric)
    return records


def _references(found, wanted: Mapping[str, str]) -> dict[str, str]:
    """attribute -> the level that its gaps refer to."""
    shown: dict[str, list[Cell]] = {}
    for cell in found.values():
        if (cell.attribute, cell.level) != EVERYONE and not cell.suppressed:
            shown.setdefault(cell.attribute, []).append(cell)
    for attribute, level in wanted.items():
        if level not in [c.level for c in shown.get(attribute, [])]:
            raise ValueError(f"reference level {level!r} of {attribute} is absent or suppressed")
    largest = {a: max(c, key=lambda cell: cell.mask_N.sum()).level for a, c in shown.items()}
    return largest | dict(wanted)


def label_fractions(
    y_N, group_N, fractions: Sequence[float] = (0.01, 0.1, 1.0), *, n_draws: int = 5, seed: int = 0
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
    groups, place_N = np.unique(group_N, return_inverse=True)
    positive_G = np.bincount(place_N, y_N, len(groups)) > 0
    chosen = {}
    for draw in range(n_draws):
        rank_G = np.random.default_rng([seed, draw]).permutation(len(groups))
        share_G = np.empty(len(groups))
        for stratum in (positive_G, ~positive_G):
            # Place of each patient in the stratum's random order: the first ones are kept.
            share_G[stratum] = np.argsort(np.argsort(rank_G[stratum]))
        for fraction in fractions:
            keep_G = np.zeros(len(groups), bool)
            for stratum in (positive_G, ~positive_G):
                keep_G |= stratum & (share_G < max(1, round(fraction * stratum.sum())))
            chosen[fraction, draw] = np.flatnonzero(keep_G[place_N])
    return chosen
