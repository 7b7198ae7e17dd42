"""Draws patients over time: latent state, events and signals of a patient on one time axis."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from sklearn.decomposition import PCA

from ehrwear_jax.report.figures import DASHES, SERIES, block_means, canvas, color, svg_dash

N_COMPONENTS = 3
MAX_SIGNALS = 3
MAX_POINTS = 1200
WIDTH_INCHES = 9.0
LABEL_POINTS = 7.0
LABEL_LENGTH = 24

# A code's vocabulary (the part before `//`) to the lane in which its events are drawn.
LANES = {
    "ICD10": "diagnoses", "ICD10CM": "diagnoses", "ICD9": "diagnoses", "ICD9CM": "diagnoses",
    "DIAGNOSIS": "diagnoses", "SNOMED": "diagnoses", "ATC": "drugs", "RXNORM": "drugs",
    "MEDICATION": "drugs", "LOINC": "labs", "LAB": "labs", "PROC": "procedures",
    "PROCEDURE": "procedures", "CPT4": "procedures", "HCPCS": "procedures",
    "HOSPITAL_ADMISSION": "hospital", "HOSPITAL_DISCHARGE": "hospital", "MEDS_DEATH": "death",
}  # fmt: skip
LANE_ORDER = ("hospital", "diagnoses", "procedures", "drugs", "labs", "events", "death")


@dataclass(frozen=True)
class Trajectory:
    """One patient to draw. Times are days since the first plotted time, shared by all fields.

    Attributes:
      number: of the person on the page; not an identifier.
      time_days_N: [N] float64, at which the latent state was computed.
      z_NxD: [N, D] latent state.
      event_time_E: [E] float64.
      event_label_E: E labels; the part before `//` determines the lane (ICD10//I10: diagnoses).
      signal_time_M: [M] float64, increasing; M = 0 or None for no wearable signal.
      signal_MxC: [M, C], NaN where missing.
      signal_names: C names with units, such as "heart rate (bpm)".
      prediction_time: where the task predicts, or None.
      outcome: what happened after it, in words.
    """

    number: int
    time_days_N: np.ndarray
    z_NxD: np.ndarray
    event_time_E: np.ndarray
    event_label_E: Sequence[str]
    signal_time_M: np.ndarray | None
    signal_MxC: np.ndarray | None
    signal_names: Sequence[str]
    prediction_time: float | None
    outcome: str

    def __post_init__(self) -> None:
        n, n_events = len(self.time_days_N), len(self.event_time_E)
        times = [self.time_days_N, self.event_time_E]
        if np.ndim(self.z_NxD) != 2 or len(self.z_NxD) != n or not n:
            self._fail(f"z_NxD has shape {np.shape(self.z_NxD)}, expected ({n}, D) with N > 0")
        if not np.all(np.isfinite(self.z_NxD)):
            self._fail("z_NxD holds a value that is not finite")
        if len(self.event_label_E) != n_events:
            self._fail(f"{len(self.event_label_E)} event labels for {n_events} event times")
        time_M, shape = self.signal_time_M, () if self.signal_MxC is None else np.shape(self.signal_MxC)
        if time_M is not None and len(time_M):
            expected = (len(time_M), len(self.signal_names))
            if shape != expected:
                self._fail(f"signal_MxC has shape {shape}, expected {expected}")
            if np.any(np.diff(time_M) <= 0):
                self._fail("signal_time_M does not increase")
            times.append(time_M)
        if self.prediction_time is not None:
            times.append(np.array([self.prediction_time]))
        if not all(np.all(np.isfinite(t)) for t in times):
            self._fail("a time is not finite")

    def _fail(self, reason: str):
        raise ValueError(f"trajectory of person {self.number}: {reason}")

    @property
    def has_signal(self) -> bool:
        """Whether there is a wearable signal to draw."""
        return self.signal_time_M is not None and len(self.signal_time_M) > 0

    @property
    def signal(self) -> tuple[np.ndarray, np.ndarray]:
        """(signal_time_M, signal_MxC); ValueError where there is none."""
        if self.signal_time_M is None or self.signal_MxC is None:
            raise ValueError(f"patient {self.number} has no wearable signal")
        return self.signal_time_M, self.signal_MxC


def principal_components(z_list: Sequence[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
    """Up to three principal components, fitted on all arrays together.

    Args:
      z_list: arrays [N_i, D] of one D.

    Returns:
      Scores [N_i, K] per array, with K at most 3, D and the rank, and the share of the variance
      that each component explains, [K]. Signs are chosen so that each component's largest loading
      is positive. K = 0 where z does not vary.
    """
    z_NxD = np.concatenate([np.asarray(z, dtype=np.float64) for z in z_list])
    floor = max(1e-9 * np.linalg.norm(z_NxD), np.finfo(np.float64).tiny)
    if np.linalg.norm(z_NxD - z_NxD.mean(axis=0)) <= floor:
        return [np.empty((len(z), 0)) for z in z_list], np.empty(0)
    pca = PCA(min(N_COMPONENTS, *z_NxD.shape), svd_solver="full").fit(z_NxD)
    k = int(np.sum(pca.singular_values_ > floor))
    largest_K = np.argmax(np.abs(pca.components_[:k]), axis=1)
    sign_K = np.sign(pca.components_[np.arange(k), largest_K])
    scores = [pca.transform(np.asarray(z, np.float64))[:, :k] * sign_K for z in z_list]
    return scores, pca.explained_variance_ratio_[:k]


def shows_daily_mean(t: Trajectory) -> bool:
    """Whether there are several samples a day over weeks, where the daily rhythm would hide the trend."""
    if not t.has_signal:
        return False
    time_M, _ = t.signal
    days = len(np.unique(np.floor(time_M)))
    return days > 14 and len(time_M) >= 4 * days


def daily_means(time_M: np.ndarray, value_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Middle and mean of each day from the first to the last; NaN for a day without values."""
    finite = np.isfinite(value_M)
    day_M = np.floor(time_M).astype(int)
    first = day_M.min()
    count = np.bincount(day_M[finite] - first, minlength=int(np.ptp(day_M)) + 1)
    total = np.bincount(day_M[finite] - first, weights=value_M[finite], minlength=len(count))
    mean = np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)
    return first + np.arange(len(count)) + 0.5, mean


def lane_of(label: str) -> str:
    """The lane of an event by its vocabulary, one of LANE_ORDER."""
    vocabulary = label.split("//")[0].strip()
    return LANES.get(vocabulary.upper(), "events")


def event_text(label: str) -> str:
    """A label without its vocabulary, at most LABEL_LENGTH characters."""
    vocabulary, _, rest = label.partition("//")
    if vocabulary in ("HOSPITAL_ADMISSION", "HOSPITAL_DISCHARGE", "MEDS_DEATH") or not rest:
        rest = vocabulary.removeprefix("MEDS_").removeprefix("HOSPITAL_").lower()
        rest = label if "//" not in label and lane_of(label) == "events" else rest
    return rest if len(rest) <= LABEL_LENGTH else rest[: LABEL_LENGTH - 1].rstrip() + "…"


def place_labels(time_E: np.ndarray, text_E: Sequence[str], span: tuple[float, float],
                 points_wide: float) -> list[tuple[float, str, str]]:  # fmt: skip
    """Labels of one lane that fit without overlap: (time, alignment, text), in order of time.

    Rare labels have precedence over frequent ones, and early over late ones; an event whose label does not fit keeps
    its tick.
    """
    count = Counter(text_E)
    per_point = (span[1] - span[0]) / points_wide
    order = sorted(range(len(text_E)), key=lambda e: (count[text_E[e]], time_E[e], text_E[e]))
    placed: list[tuple[float, float]] = []
    out = []
    for e in order:
        # 0.62 em: mean width of a character in the widest of the usual sans-serif fonts.
        width = (len(text_E[e]) * 0.62 + 1.2) * LABEL_POINTS * per_point
        at_right = time_E[e] + width > span[1]
        start = time_E[e] - width if at_right else time_E[e]
        if all(start >= hi or start + width <= lo for lo, hi in placed):
            placed.append((start, start + width))
            out.append((float(time_E[e]), "right" if at_right else "left", text_E[e]))
    return sorted(out)


def component_legend(share_K: np.ndarray) -> tuple[tuple[str, str, str], ...]:
    """(label, colour name, dash) of each component, with its share of the variance."""
    return tuple(
        (f"PC{k + 1} of z, {100 * share:.0f}% of variance", SERIES[k], svg_dash(k)) for k, share in enumerate(share_K)
    )


def trajectory_figure(t: Trajectory, score_NxK: np.ndarray, limits: tuple[float, float], identifier: str) -> str:
    """Components of z above, events in the middle, signals below, on one axis of days.

    Args:
      score_NxK: principal components at `t.time_days_N`.
      limits: range of the components, shared by the patients shown.
      identifier: unique within the page.
    """
    lanes: dict[str, list[int]] = {x: [] for x in LANE_ORDER}
    for e, label in enumerate(t.event_label_E):
        lanes[lane_of(label)].append(e)
    lanes = {name: events for name, events in lanes.items() if events}
    n_signals = min(MAX_SIGNALS, len(t.signal_names)) if t.has_signal else 0
    heights = [1.7, max(0.45, 0.34 * len(lanes))] + [1.0] * n_signals
    with canvas(WIDTH_INCHES, sum(heights) + 0.7, identifier) as (figure, out):
        axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
        span = _span(t)
        _draw_components(axes[0], t, score_NxK, limits)
        _draw_events(axes[1], t, lanes, span)
        for c in range(n_signals):
            _draw_signal(axes[2 + c], t, c)
        for ax in axes:
            ax.set_xlim(*span)
            ax.grid(axis="x")
            if t.prediction_time is not None:
                ax.axvspan(t.prediction_time, span[1], color=color("shade"), zorder=-2, linewidth=0)
                ax.axvline(t.prediction_time, color=color("ink"), linewidth=1, linestyle=(0, (4, 2)))
        if t.prediction_time is not None:
            nearer_right = t.prediction_time > (span[0] + span[1]) / 2
            axes[0].annotate("prediction", (t.prediction_time, 1), (-4 if nearer_right else 4, -1),
                             xycoords=("data", "axes fraction"), textcoords="offset points",
                             ha="right" if nearer_right else "left", va="top",
                             fontsize=LABEL_POINTS + 0.5)  # fmt: skip
        axes[0].set_title(t.outcome, loc="right", fontweight="normal", fontsize=8.5)
        axes[0].set_title(f"Person {t.number}")
        axes[-1].set_xlabel("days since the first time shown")
        axes[-1].xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(10))
        figure.align_ylabels()
    return out[0]


def _span(t: Trajectory) -> tuple[float, float]:
    times = [t.time_days_N, t.event_time_E, t.signal[0] if t.has_signal else np.zeros(0)]
    if t.prediction_time is not None:
        times.append(np.array([t.prediction_time]))
    every = np.concatenate([np.asarray(x, np.float64) for x in times])
    lo, hi = float(every.min()), float(every.max())
    margin = 0.01 * (hi - lo) or 0.5
    return lo - margin, hi + margin


def _draw_components(ax: Axes, t: Trajectory, score_NxK, limits) -> None:
    marker = "o" if len(t.time_days_N) <= 60 else None
    for k in range(score_NxK.shape[1]):
        ax.plot(t.time_days_N, score_NxK[:, k], color=color(SERIES[k]), linestyle=DASHES[k],
                marker=marker, markersize=2.5)  # fmt: skip
    ax.set_ylim(*limits)
    ax.set_ylabel("latent state z")


def _draw_events(ax: Axes, t: Trajectory, lanes: dict[str, list[int]], span) -> None:
    time_E = np.asarray(t.event_time_E, np.float64)
    for y, (name, events) in enumerate(lanes.items()):
        shade = color(SERIES[LANE_ORDER.index(name) % len(SERIES)])
        # Ticks closer than a pixel cannot be distinguished and are drawn once.
        pixel = np.round((time_E[events] - span[0]) / (span[1] - span[0]) * 2000)
        _, first = np.unique(pixel, return_index=True)
        ticks = time_E[events][first]
        ax.vlines(ticks, y + 0.05, y + 0.42, color=shade, linewidth=1.1)
        texts = [event_text(t.event_label_E[e]) for e in events]
        for time, side, text in place_labels(time_E[events], texts, span, 62 * WIDTH_INCHES):
            ax.text(time, y - 0.18, text, ha=side, va="center", fontsize=LABEL_POINTS)
    ax.set_ylim(len(lanes) - 0.5 if lanes else 0.5, -0.5)
    ax.set_yticks(range(len(lanes)), list(lanes))
    ax.tick_params(axis="y", length=0, labelcolor=color("ink"))
    if not lanes:
        ax.text(0.5, 0.5, "no events in this span", transform=ax.transAxes, ha="center", va="center")


def _draw_signal(ax: Axes, t: Trajectory, c: int) -> None:
    time_M, value_M = t.signal[0], t.signal[1][:, c]
    time, value = block_means(np.asarray(time_M, np.float64), np.asarray(value_M, np.float64), MAX_POINTS)
    if len(time) > 1:
        # A line across a gap in wear would suggest a measurement.
        step = np.diff(time)
        gap = np.flatnonzero(step > 3 * np.median(step)) + 1
        time, value = np.insert(time, gap, time[gap - 1]), np.insert(value, gap, np.nan)
    isolated = np.isfinite(value) & np.r_[True, np.isnan(value[:-1])] & np.r_[np.isnan(value[1:]), True]
    shade = color(SERIES[c])
    if shows_daily_mean(t):
        ax.plot(time, value, color=shade, linewidth=0.5, alpha=0.4)
        ax.plot(*daily_means(time_M, value_M), color=shade)
    else:
        ax.plot(time, value, color=shade, linewidth=0.8)
    ax.plot(time[isolated], value[isolated], ".", color=shade, markersize=2.5)
    name, _, unit = t.signal_names[c].partition(" (")
    ax.set_ylabel(f"{name}\n({unit}" if unit else name)
    ax.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(4))
    if not np.any(np.isfinite(value)):
        ax.text(0.5, 0.5, "no values in this span", transform=ax.transAxes, ha="center", va="center")
