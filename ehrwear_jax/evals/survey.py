"""Weighs people by the design of a survey, and resamples its sampling units within strata.

People of a survey stand for different numbers of people of the population, and those of one sampling unit (of NHANES a
county or a few) are more alike than others. Metrics under the weights are the population's. Resamples are those of Rao,
Wu and Yue (Survey Methodology 18, 1992): of the n units of a stratum n - 1 are drawn with replacement, and a person
weighs their own weight, times n / (n - 1), times how often their unit was drawn. The variance over resamples is then
that of the design, of linear statistics exactly that of the stratified estimator of variance between units.

Axes: G groups of people, N rows, B resamples.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from ehrwear_jax.evals.weighting import LANES, lanes_of


@dataclasses.dataclass(frozen=True)
class Design:
    """The design of a survey, of all groups that are resampled.

    Attributes:
      weight_G: float64, not negative. stratum_G, unit_G: int64 numbers; a unit lies in one stratum.
    """

    weight_G: np.ndarray
    stratum_G: np.ndarray
    unit_G: np.ndarray

    @property
    def n_single(self) -> int:
        """How many strata have one unit, of which no resample can tell how much it varies: its people always weigh the
        same, and intervals are as if they were the whole of their stratum.
        """
        return int((np.bincount(self._stratum_of_units) == 1).sum())

    @property
    def _stratum_of_units(self):
        stratum_U = np.zeros(int(self.unit_G.max()) + 1, np.int64)
        stratum_U[self.unit_G] = self.stratum_G
        return stratum_U

    def blocks(self, index_N: np.ndarray, n_resamples: int, seed: int) -> Iterator[np.ndarray]:
        """Yields weights float64 [N, b] of resamples, as bootstrap.weight_blocks does.

        index_N: the group of each row.
        """
        stratum_U = self._stratum_of_units
        order_U = np.argsort(stratum_U, kind="stable")
        _, first_S, n_S = np.unique(stratum_U[order_U], return_index=True, return_counts=True)
        weight_Nx1, unit_N = self.weight_G[index_N, None], self.unit_G[index_N]
        lanes = lanes_of(max(len(index_N), len(stratum_U)))
        for block in range(-(-n_resamples // LANES)):
            rng = np.random.default_rng([seed, block])
            wanted = min(LANES, n_resamples - block * LANES)
            factor_UxB = np.ones((len(stratum_U), wanted))
            for first, n in zip(first_S.tolist(), n_S.tolist(), strict=True):
                if n > 1:
                    drawn_BxU = rng.multinomial(n - 1, np.full(n, 1 / n), size=LANES)[:wanted]
                    factor_UxB[order_U[first : first + n]] = drawn_BxU.T * (n / (n - 1))
            for at in range(0, wanted, lanes):
                yield weight_Nx1 * factor_UxB[:, at : at + lanes][unit_N]


def read(
    path: Path, subject_P: np.ndarray, group_P: np.ndarray, columns: tuple[str, Sequence[str], Sequence[str]]
) -> Design:
    """The Design of groups of people.

    Args:
      path: of a table with a row per person: subject_id and the columns.
      subject_P, group_P: int64, people and their groups. columns: (weight, those that tell strata apart, those that
        tell the units of a stratum apart); without any a stratum is everybody, and a unit a group.

    Returns:
      of the groups, sorted.

    Raises:
      ValueError: a column is missing; a person has no row, or no weight, or a negative one; a group has people of
        different units or weights; nobody has weight.
    """
    weight, strata, units = columns
    table = pl.read_parquet(path)
    if missing := [c for c in (weight, *strata, *units) if c not in table.columns]:
        raise ValueError(f"{path} has no column {missing[0]!r}; it has {', '.join(table.columns)}")
    people = pl.DataFrame({"subject_id": subject_P, "group": group_P})
    table = people.join(table.with_columns(pl.col("subject_id").cast(pl.Int64)), on="subject_id", how="left")
    known = pl.col(weight).cast(pl.Float64)
    usable = known.is_finite() & (known >= 0)
    unknown = table.filter(pl.any_horizontal(pl.col(weight, *strata, *units).is_null()) | ~usable)
    if unknown.height:
        raise ValueError(
            f"{path}: {unknown.height} of {table.height} people have no {weight} (or it is negative), no stratum or no "
            f"unit, e.g. subject {unknown['subject_id'][0]}"
        )
    stratum = pl.struct(strata).rank("dense") if strata else pl.lit(1)
    table = table.with_columns(stratum.cast(pl.Int64).alias("_stratum") - 1)
    unit = pl.struct("_stratum", *(units or ["group"])).rank("dense")
    table = table.with_columns(unit.cast(pl.Int64).alias("_unit") - 1)
    groups = table.group_by("group").agg(
        pl.col(weight).cast(pl.Float64).first().alias("weight"), pl.col("_stratum", "_unit").first(),
        pl.struct("_unit", weight).n_unique().alias("n"),
    ).sort("group")  # fmt: skip
    if groups["n"].max() != 1:
        raise ValueError(
            f"{path}: group {groups.filter(pl.col('n') > 1)['group'][0]} has people of several units or weights"
        )
    if not groups["weight"].sum() > 0:
        raise ValueError(f"{path}: nobody has a {weight} above 0")
    return Design(*(groups[c].to_numpy() for c in ("weight", "_stratum", "_unit")))
