"""Draws figures over the tokens before a prediction time, on an axis of the square root of days."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib.colors
import matplotlib.ticker
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from ehrwear_jax.report.figures import DASHES, canvas, color

BINS = 36
MARKERS = {
    "o": "circles",
    "^": "triangles",
    "s": "squares",
    "D": "diamonds",
    "v": "triangles down",
    "P": "pluses",
    "X": "crosses",
}
TICKS = (0, 1, 3, 7, 14, 30, 90, 180, 365, 730, 1826, 3652, 7305, 14610, 29220)
TIME_LABEL = "days before the prediction time"


@dataclass(frozen=True)
class TimeAxis:
    """An axis of the square root of the days before a prediction time, with BINS bins of one width."""

    reach_days: float

    @property
    def reach(self) -> float:
        """Length of the axis."""
        return float(np.sqrt(max(self.reach_days, 0.1)))

    def position(self, days: npt.ArrayLike) -> np.ndarray:
        """Of days before the prediction time, which are positive."""
        return -np.sqrt(np.maximum(np.asarray(days, np.float64), 0.0))

    @property
    def edges(self) -> np.ndarray:
        """Of the bins, [BINS + 1]."""
        return np.linspace(-self.reach, 0.0, BINS + 1)

    def bins(self, days: npt.ArrayLike) -> np.ndarray:
        """Bin of each day."""
        return np.clip(np.searchsorted(self.edges, self.position(days), side="right") - 1, 0, BINS - 1)

    def share(self, weight: npt.ArrayLike, days: npt.ArrayLike) -> np.ndarray:
        """Sums of weight [..., T] in each bin, [..., BINS]; NaN in bins without a token."""
        inside_TxB = self.bins(days)[:, None] == np.arange(BINS)
        return np.where(inside_TxB.any(0), np.asarray(weight, np.float64) @ inside_TxB, np.nan)

    def ticks(self) -> list[int]:
        """Days whose labels do not overlap."""
        chosen: list[int] = []
        for day in TICKS:
            at = -float(self.position(day))
            if at <= 1.001 * self.reach and (not chosen or at + float(self.position(chosen[-1])) > 0.075 * self.reach):
                chosen.append(day)
        return chosen

    def apply(self, ax: Axes) -> None:
        """Sets the ticks and limits of a matplotlib axis."""
        days = self.ticks()
        ax.set_xticks(list(self.position(days)), [f"{d:,}" for d in days])
        ax.set_xlim(-1.02 * self.reach, 0.02 * self.reach)


@dataclass(frozen=True)
class Points:
    """Values at days before the prediction time [T]; `hue` is a colour name."""

    days: Sequence[float] | np.ndarray
    value: Sequence[float] | np.ndarray
    hue: str


def marker(i: int) -> str:
    """The i-th marker, a key of MARKERS."""
    return list(MARKERS)[i % len(MARKERS)]


def contribution_panel(
    series: Mapping[str, Points], rollout_B: np.ndarray, even_B: np.ndarray, axis: TimeAxis, title: str, identifier: str
) -> str:
    """Parts of the logit by token above; below, the rollout by time beside that of uniform attention.

    Args:
      series: drawn with a marker each, in this order.
      rollout_B, even_B: shares by bin of the axis, NaN where there is no token.
    """
    with canvas(4.3, 3.7, identifier) as (figure, out):
        ax, low = figure.subplots(2, 1, sharex=True, height_ratios=(1.7, 1))
        ax.axhline(0, color=color("muted"), linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        for i, points in enumerate(series.values()):
            at, hue = axis.position(points.days), color(points.hue)
            ax.vlines(at, 0, points.value, color=hue, linewidth=0.7, alpha=0.6)
            ax.plot(at, points.value, marker(i), color=hue, markersize=3, markeredgewidth=0)
        ax.set_title(title)
        ax.set_ylabel("part, log-odds")
        low.bar(axis.edges[:-1], np.nan_to_num(rollout_B), width=0.92 * axis.reach / BINS, align="edge",
                color=color("purple"))  # fmt: skip
        low.step(axis.edges, np.append(np.nan_to_num(even_B), 0.0), where="post", color=color("ink"), linewidth=1,
                 linestyle=DASHES[2])  # fmt: skip
        low.set_ylabel("rollout, share")
        low.set_xlabel(TIME_LABEL)
        axis.apply(low)
        for each in (ax, low):
            each.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(4))
            each.grid(axis="y")
        figure.align_ylabels()
    return out[0]


def attention_panel(share_RxB: np.ndarray, names: Sequence[str], top: float, axis: TimeAxis, title: str,
                    identifier: str) -> str:  # fmt: skip
    """Shares of the attention by line of text and bin of the axis; blank where there is no token.

    Args:
      share_RxB: a line per name, the first one set apart.
      top: the colours' upper end, shared by the panels of a figure.
    """
    with canvas(4.3, 0.85 + 0.16 * max(len(names), 4), identifier) as (figure, out):
        ax = figure.add_subplot()
        below = 1.25 + np.arange(len(names))  # edges of the lines below the first
        spread = np.insert(np.asarray(share_RxB, np.float64), 1, np.nan, axis=0)
        cells = ax.pcolormesh(
            axis.edges, np.concatenate([[0.0, 1.0], below]), np.ma.masked_invalid(spread), cmap="cividis",
            norm=matplotlib.colors.PowerNorm(0.5, 0.0, top), edgecolors="face", linewidth=0.6,
        )  # fmt: skip
        figure.colorbar(cells, ax=ax, label="share of attention", ticks=[0, top / 16, top / 4, top], format="{x:.2g}")
        ax.set_yticks([0.5, *(below[:-1] + 0.5)], names, fontsize=7)
        ax.tick_params(axis="y", length=0, labelcolor=color("ink"))
        ax.set_ylim(len(names) + 0.3, -0.05)
        for side in ("left", "bottom"):
            ax.spines[side].set_visible(False)
        ax.set_title(title)
        ax.set_xlabel(TIME_LABEL)
        axis.apply(ax)
    return out[0]
