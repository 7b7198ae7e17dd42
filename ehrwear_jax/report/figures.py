"""Draws figures as SVG markup that takes its colours from the page, for the light and the dark scheme.

Matplotlib draws with the light colours of COLORS; each is then replaced by the style sheet's
variable of that name. Text is kept as text: it can be selected and searched, and scales with the page.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib
import matplotlib.ticker
import numpy as np
from matplotlib.figure import Figure

# (light, dark). Hues after Okabe and Ito, which people with colour blindness can distinguish; adjusted
# for contrast with both backgrounds.
COLORS = {
    "ink": ("#1b2126", "#e8ebee"),
    "muted": ("#5c6770", "#a3adb6"),
    "grid": ("#dfe3e7", "#343b42"),
    "shade": ("#eef1f4", "#1f252b"),
    "edge": ("#b9c1c9", "#586470"),  # where a wide table goes on beyond the screen
    "surface": ("#fffffe", "#15191d"),
    "blue": ("#0067a8", "#5cb3f0"),
    "vermilion": ("#cc5500", "#ff9352"),
    "green": ("#00805d", "#3fcf9f"),
    "purple": ("#b0518a", "#e39ac6"),
    "slate": ("#454f59", "#c3cbd3"),
    "amber": ("#a87400", "#edc14f"),
    "sky": ("#2f9fd8", "#8ad0f7"),
}
SERIES = ("blue", "vermilion", "green", "purple", "slate", "amber", "sky")
MODEL_COLORS = {
    "joint": "blue",
    "ehr_only": "green",
    "wear_only": "vermilion",
    "late_fusion": "purple",
    "stacked": "sky",
    "gradient_boosting": "slate",
    "gradient_boosting_ehr": "slate",
    "gradient_boosting_wear": "slate",
    "linear_table": "amber",
    "linear_table_ehr": "amber",
    "linear_table_wear": "amber",
    "training_mean": "sky",
    "oracle": "muted",
}
DASHES: tuple[str | tuple[float, tuple[float, ...]], ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))
_VARIABLES = {light: name for name, (light, _) in COLORS.items()}


def color(name: str) -> str:
    """The light variant, which `canvas` replaces by the page's variable."""
    return COLORS[name][0]


def model_colors(models: Sequence[str]) -> dict[str, str]:
    """A colour name per model: fixed for the known ones, the unused ones in turn for others."""
    taken = {MODEL_COLORS[m] for m in models if m in MODEL_COLORS}
    spare = [c for c in SERIES if c not in taken] or list(SERIES)
    unknown = [m for m in models if m not in MODEL_COLORS]
    return {m: MODEL_COLORS.get(m) or spare[unknown.index(m) % len(spare)] for m in models}


@contextmanager
def canvas(width: float, height: float, identifier: str) -> Iterator[tuple[Figure, list[str]]]:
    """A figure of `width` x `height` inches and a list that receives its SVG."""
    out: list[str] = []
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a reader's own matplotlibrc must not change the report
        matplotlib.rcParams.update(
            {
                "svg.fonttype": "none",
                "text.parse_math": False,  # a code may hold a dollar sign
                "svg.hashsalt": "ehrwear_jax",
                "font.size": 8.5,
                "axes.titlesize": 9,
                "axes.titlelocation": "left",
                "axes.titleweight": "bold",
                "axes.labelsize": 8.5,
                "axes.edgecolor": color("muted"),
                "axes.labelcolor": color("ink"),
                "axes.titlecolor": color("ink"),
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.axisbelow": True,
                "text.color": color("ink"),
                "xtick.color": color("muted"),
                "ytick.color": color("muted"),
                "grid.color": color("grid"),
                "grid.linewidth": 0.7,
                "lines.linewidth": 1.6,
                "legend.frameon": False,
                "axes.unicode_minus": True,
            }
        )
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.patch.set_alpha(0)
        yield figure, out
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True)
        out.append(_inline(buffer.getvalue(), identifier))


def _inline(svg: str, identifier: str) -> str:
    """The `<svg>` element alone, with page colours, the page's font and identifiers of its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"\s*<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s(?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r'\bid="([^"]*)"', rf'id="{identifier}-\1"', svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{identifier}-", svg)
    svg = re.sub(r"(font: [^;\"]*?)'[^;\"]*", r"\1var(--font)", svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: var(--font)", svg)

    def variable(match: re.Match) -> str:
        name = _VARIABLES.get(match[0])
        return f"var(--{name}, {match[0]})" if name else match[0]

    return re.sub(r"#[0-9a-f]{6}\b", variable, svg).strip()


# ---------------------------------------------------------------------------------------------
# Results
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bar:
    """One model in an interval panel; `model` determines the colour."""

    model: str
    label: str
    value: float
    lo: float | None
    hi: float | None


def interval_panel(bars: Sequence[Bar], title: str, label: str, limits: tuple[float, float], identifier: str) -> str:
    """Values with intervals, one line for each model; the oracle is a dashed line behind them."""
    shown = [b for b in bars if b.model != "oracle"]
    colors = model_colors([b.model for b in shown])
    with canvas(4.3, 0.75 + 0.24 * len(bars), identifier) as (figure, out):
        ax = figure.add_subplot()
        for y, bar in enumerate(bars):
            is_oracle = bar.model == "oracle"
            shade = color("muted" if is_oracle else colors[bar.model])
            if is_oracle:
                ax.axvline(bar.value, color=shade, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
            if bar.lo is not None and bar.hi is not None:
                ax.plot([bar.lo, bar.hi], [y, y], color=shade, linewidth=2.2, solid_capstyle="round")
            marker = "D" if is_oracle else "o"
            ax.plot([bar.value], [y], marker, color=shade, markersize=5.5)
        ax.set_yticks(range(len(bars)), [b.label for b in bars])
        ax.tick_params(axis="y", length=0, labelcolor=color("ink"))
        ax.spines["left"].set_visible(False)
        ax.set_ylim(len(bars) - 0.5, -0.5)
        ax.set_xlim(*limits)
        ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5))
        ax.grid(axis="x")
        ax.set_xlabel(label)
        figure.suptitle(title, x=0.01, ha="left", fontsize=9, fontweight="bold")
    return out[0]


def loss_panel(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    validation: Mapping[str, tuple[np.ndarray, np.ndarray]],
    title: str,
    identifier: str,
    order: Mapping[str, int],
) -> str:
    """One line for each pretrained model, and circles for its validation.

    Args:
      curves: curves[model] = (step, value), all finite.
      validation: as curves.
      title: the loss term.
      identifier: unique within the page.
      order: position of every model in the legend, which determines its dash and colour.
    """
    colors = model_colors(list(order))
    with canvas(3.3, 2.1, identifier) as (figure, out):
        ax = figure.add_subplot()
        for model, (steps, values) in curves.items():
            marker = "o" if len(steps) < 3 else None
            ax.plot(*block_means(steps, values, 200), color=color(colors[model]), marker=marker,
                    linestyle=DASHES[order[model] % len(DASHES)], markersize=3.5)  # fmt: skip
        for model, (steps, values) in validation.items():
            ax.plot(steps, values, "o", markerfacecolor=color("surface"), markersize=4.5,
                    markeredgecolor=color(colors[model]), markeredgewidth=1.2)  # fmt: skip
        ax.set_title(title)
        ax.set_xlabel("step")
        ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5, integer=True))
        ax.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.grid(axis="y")
    return out[0]


def svg_dash(index: int) -> str:
    """DASHES[index] for a legend's line of width 2.4, in SVG's notation."""
    dash = DASHES[index % len(DASHES)]
    return "none" if isinstance(dash, str) else " ".join(f"{1.6 * x:g}" for x in dash[1])


def block_means(x: np.ndarray, y: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `n` points: means over equal runs of consecutive points, ignoring NaN in `y`.

    Args:
      x: [M] finite.
      y: [M], NaN allowed; a run of NaN alone stays NaN.
      n: largest number of points returned, > 0.
    """
    if len(x) <= n:
        return x, y
    edge = np.linspace(0, len(x), n + 1).astype(int)[:-1]
    finite = np.isfinite(y)
    count = np.add.reduceat(finite.astype(np.float64), edge)
    total = np.add.reduceat(np.where(finite, y, 0.0), edge)
    size = np.diff(np.append(edge, len(x)))
    mean = np.divide(total, count, out=np.full(n, np.nan), where=count > 0)
    return np.add.reduceat(x, edge) / size, mean


# ---------------------------------------------------------------------------------------------
# Calibration
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReliabilityBins:
    """Per bin: mean prediction, observed share of positives, Wilson's 95% interval, and size."""

    predicted_B: np.ndarray
    observed_B: np.ndarray
    lo_B: np.ndarray
    hi_B: np.ndarray
    count_B: np.ndarray


def reliability_bins(y_N: np.ndarray, p_N: np.ndarray, n_bins: int = 10) -> ReliabilityBins:
    """Bins of equal size by predicted probability; equal predictions share a bin.

    Args:
      y_N: [N] outcomes, 0 or 1.
      p_N: [N] predicted probabilities.
      n_bins: largest number of bins; fewer where predictions tie.

    Returns:
      Bins in increasing order of prediction, none of them empty. The interval is Wilson's (1927).
    """
    edges = np.unique(np.quantile(p_N, np.arange(1, n_bins) / n_bins))
    index_N = np.searchsorted(edges, p_N, side="left")
    count_B = np.bincount(index_N, minlength=len(edges) + 1)
    keep = count_B > 0
    n = count_B[keep].astype(np.float64)
    observed = np.bincount(index_N, weights=y_N, minlength=len(count_B))[keep] / n
    predicted = np.bincount(index_N, weights=p_N, minlength=len(count_B))[keep] / n
    z = 1.959963984540054
    center = (observed + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(observed * (1 - observed) / n + z**2 / (4 * n**2))
    return ReliabilityBins(predicted, observed, center - half, center + half, count_B[keep])


def reliability_limit(bins: Sequence[ReliabilityBins]) -> float:
    """An axis limit shared by the panels of one task that shows all bins of all models."""
    top = max(float(max(b.predicted_B.max(), b.hi_B.max())) for b in bins)
    return min(1.0, 1.05 * top)


def reliability_panel(
    p_N: np.ndarray, bins: ReliabilityBins, limit: float, model: str, title: str, identifier: str
) -> str:
    """Observed share against mean prediction per bin, over a histogram of the predictions."""
    shade = color(model_colors([model])[model])
    with canvas(3.0, 3.5, identifier) as (figure, out):
        ax, low = figure.subplots(2, 1, sharex=True, height_ratios=(3.4, 1))
        ax.plot([0, limit], [0, limit], color=color("muted"), linewidth=1, linestyle=(0, (4, 3)))
        ax.vlines(bins.predicted_B, bins.lo_B, bins.hi_B, color=shade, linewidth=1.6)
        ax.plot(bins.predicted_B, bins.observed_B, "o-", color=shade, markersize=4, linewidth=1)
        ax.set_xlim(0, limit)
        ax.set_ylim(0, limit)
        ax.set_title(title)
        ax.set_ylabel("observed share")
        ax.grid()
        low.hist(p_N[p_N <= limit], bins=np.linspace(0, limit, 26), color=shade)
        low.set_ylabel("count")
        low.set_xlabel("predicted probability")
        low.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(2, integer=True))
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(matplotlib.ticker.MaxNLocator(4))
        figure.align_ylabels()
    return out[0]
