"""Draws lines with bands, grouped dots and bars, and the map of patients."""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes

from ehrwear_jax.report.figures import DASHES, SERIES, canvas, color, model_colors, svg_dash

MAP_CELLS = 24
MIN_CELL = 10  # prediction times; a hexagon of fewer is not drawn


@dataclass(frozen=True)
class LineOptions:
    """How the lines of a panel are drawn.

    Attributes:
      steps: as step functions. markers: dots with vertical intervals instead of bands.
      zero: draw the line at 0. limits: of the y axis. size: inches.
    """

    steps: bool = False
    markers: bool = False
    zero: bool = False
    limits: tuple[float, float] | None = None
    size: tuple[float, float] = (4.3, 2.9)


@dataclass(frozen=True)
class Line:
    """A series: x and value [K], with lo and hi [K] or None; NaN where undefined."""

    label: str
    x: Sequence[float] | np.ndarray
    value: Sequence[float | None] | np.ndarray
    lo: Sequence[float | None] | np.ndarray | None = None
    hi: Sequence[float | None] | np.ndarray | None = None


@dataclass(frozen=True)
class Axis:
    """Label with its unit; ticks as (position, text) where not chosen by the plot."""

    label: str
    log: bool = False
    ticks: tuple[tuple[float, str], ...] = ()


def _floats(values):
    return np.array([np.nan if v is None else v for v in values], np.float64)


def series_style(names: Sequence[str], by_model: bool = True) -> dict[str, tuple[str, int]]:
    """name -> (colour name, index of the dash): lines differ by more than their colour."""
    colors = model_colors(names) if by_model else {n: SERIES[i % len(SERIES)] for i, n in enumerate(names)}
    return {n: (colors[n], i) for i, n in enumerate(names)}


def legend(names: Sequence[str], labels: Sequence[str], by_model: bool = True) -> tuple[tuple[str, str, str], ...]:
    """For a FigureGrid: (label, colour name, dash)."""
    style = series_style(names, by_model)
    return tuple((label, style[n][0], svg_dash(style[n][1])) for n, label in zip(names, labels, strict=True))


def line_panel(
    lines: dict[str, Line],
    style: dict[str, tuple[str, int]],
    title: str,
    axes: tuple[Axis, Axis],
    identifier: str,
    options: LineOptions | None = None,
) -> str:
    """Lines with bands.

    Args:
      lines: name -> series.
      style: of `series_style`, shared by the panels of a figure.
      title: of the panel.
      axes: x and y.
      identifier: unique within the page.
      options: by default lines with bands, no limits.
    """
    options, (x, y) = options or LineOptions(), axes
    with canvas(*options.size, identifier) as (figure, out):
        ax = figure.add_subplot()
        if options.zero:
            ax.axhline(0, color=color("muted"), linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        for name, line in lines.items():
            _draw_line(ax, line, color(style[name][0]), DASHES[style[name][1] % len(DASHES)], options)
        ax.set_title(title)
        ax.set_ylabel(y.label)
        _scale_x(ax, x)
        if options.limits:
            ax.set_ylim(*options.limits)
        ax.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5))
        ax.grid(axis="y")
    return out[0]


def _draw_line(ax: Axes, line: Line, hue: str, dash, options: LineOptions) -> None:
    at, value = _floats(line.x), _floats(line.value)
    drawstyle = "steps-post" if options.steps else "default"
    if line.lo is not None and options.markers:
        ax.vlines(at, _floats(line.lo), _floats(line.hi), color=hue, linewidth=1.2)
    elif line.lo is not None:
        ax.fill_between(at, _floats(line.lo), _floats(line.hi), color=hue, alpha=0.13, linewidth=0,
                        step="post" if options.steps else None)  # fmt: skip
    marker = "o" if options.markers else None
    ax.plot(at, value, color=hue, linestyle=dash, marker=marker, markersize=4, drawstyle=drawstyle)


def _scale_x(ax: Axes, x: Axis) -> None:
    ax.set_xlabel(x.label)
    if x.log:
        ax.set_xscale("log")
        ax.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    if x.ticks:
        ax.set_xticks([t for t, _ in x.ticks], [text for _, text in x.ticks])
        ax.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        return
    ax.xaxis.set_major_locator(matplotlib.ticker.LogLocator(numticks=6) if x.log else matplotlib.ticker.MaxNLocator(5))
    if x.log:
        ax.xaxis.set_major_formatter("{x:g}")


@dataclass(frozen=True)
class Dot:
    """A model's value with its interval."""

    model: str
    value: float
    lo: float | None
    hi: float | None


def dots_panel(
    groups: Sequence[tuple[str, Sequence[Dot]]],
    style: dict[str, tuple[str, int]],
    title: str,
    label: str,
    identifier: str,
    *,
    zero: bool = False,
) -> str:
    """Dots with intervals, grouped by lines of text, the models of a group one below the other.

    Args:
      groups: (text, dots) from the top.
      label: of the axis, with its unit.
      zero: draw the line of no difference.
    """
    height = sum(0.17 * len(dots) + 0.16 for _, dots in groups)
    with canvas(4.3, 0.8 + height, identifier) as (figure, out):
        ax = figure.add_subplot()
        at, ticks, edges = 0.0, [], []
        for text, dots in groups:
            ticks.append((at + (len(dots) - 1) / 2, text))
            for dot in dots:
                hue, index = color(style[dot.model][0]), style[dot.model][1]
                if dot.lo is not None and dot.hi is not None:
                    ax.plot([dot.lo, dot.hi], [at, at], color=hue, linewidth=1.8)
                ax.plot([dot.value], [at], "osD^vPX"[index % 7], color=hue, markersize=4.5)
                at += 1
            edges.append(at - 0.1)
            at += 0.8
        if zero:
            ax.axvline(0, color=color("muted"), linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        for edge in edges[:-1]:
            ax.axhline(edge, color=color("grid"), linewidth=0.7)
        ax.set_yticks([t for t, _ in ticks], [text for _, text in ticks])
        ax.tick_params(axis="y", length=0, labelcolor=color("ink"))
        ax.spines["left"].set_visible(False)
        ax.set_ylim(at - 0.8, -0.8)
        ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5))
        ax.grid(axis="x")
        ax.set_xlabel(label)
        figure.suptitle(title, x=0.01, ha="left", fontsize=9, fontweight="bold")
    return out[0]


def bars_panel(
    groups: Sequence[tuple[str, Sequence[tuple[str, float]]]], title: str, label: str, identifier: str
) -> str:
    """Signed bars, one line of text each, below the heading of their group, with the value at the right.

    Args:
      groups: (heading or "", [(text, value)]) from the top.
      label: of the axis, with its unit.
    """
    lines = []
    for heading, bars in groups:
        lines += [(heading, None)] * bool(heading) + list(bars)
    largest = max((abs(v) for _, v in lines if v is not None), default=0.0) or 1.0
    with canvas(4.3, 0.75 + 0.185 * len(lines), identifier) as (figure, out):
        ax = figure.add_subplot()
        ax.axvline(0, color=color("muted"), linewidth=1)
        for y, (_, value) in enumerate(lines):
            if value is not None:
                ax.barh(y, value, height=0.62, color=color("vermilion" if value > 0 else "blue"))
                text = f"{value:+.3f}" if abs(value) < 1 else f"{value:+.2f}"
                ax.annotate(text.replace("-", "\N{MINUS SIGN}"), (1, y), (4, 0), xycoords=("axes fraction", "data"),
                            textcoords="offset points", va="center", fontsize=7.5, color=color("muted"))  # fmt: skip
        ax.set_yticks(range(len(lines)), [text for text, _ in lines])
        for tick, (_, value) in zip(ax.get_yticklabels(), lines, strict=True):
            tick.set_fontweight("bold" if value is None else "normal")
        ax.tick_params(axis="y", length=0, labelcolor=color("ink"))
        ax.spines["left"].set_visible(False)
        ax.set_xlim(-1.06 * largest, 1.06 * largest)
        ax.set_ylim(len(lines) - 0.4, -0.6)
        ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(3, symmetric=True))
        ax.grid(axis="x")
        ax.set_xlabel(label)
        figure.suptitle(title, x=0.01, ha="left", fontsize=9, fontweight="bold")
    return out[0]


def map_panel(
    xy_Nx2: np.ndarray, y_N: np.ndarray, title: str, share_2: tuple[float, float], identifier: str, *, points: bool
) -> str:
    """Prediction times on the first two principal components of z, by outcome.

    Args:
      y_N: bool, the outcome.
      share_2: of the variance, of each component.
      points: draw every prediction time; else the share with the outcome in hexagons of MIN_CELL or more.
    """
    with canvas(4.3, 3.6, identifier) as (figure, out):
        ax = figure.add_subplot()
        if points:
            for outcome, hue, marker, text in ((False, "slate", "o", "without"), (True, "vermilion", "^", "with")):
                mine = xy_Nx2[y_N == outcome]
                ax.plot(mine[:, 0], mine[:, 1], marker, color=color(hue), markersize=4.2 if outcome else 2.4, alpha=0.6,
                        markeredgewidth=0, label=f"{text} the event", linestyle="none")  # fmt: skip
            figure.legend(loc="outside upper right", ncols=2, fontsize=8, handletextpad=0.2, columnspacing=1)
        else:
            cells = ax.hexbin(xy_Nx2[:, 0], xy_Nx2[:, 1], C=y_N.astype(float), gridsize=MAP_CELLS, mincnt=MIN_CELL,
                              cmap="cividis", linewidths=0)  # fmt: skip
            figure.colorbar(cells, ax=ax, label="share with the event", shrink=0.8)
        ax.set_title(title)
        ax.set_xlabel(f"PC1 of z, {100 * share_2[0]:.0f}% of variance")
        ax.set_ylabel(f"PC2 of z, {100 * share_2[1]:.0f}% of variance")
        ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(4))
        ax.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(4))
        ax.grid()
    return out[0]
