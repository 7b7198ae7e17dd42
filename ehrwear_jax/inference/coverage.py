"""Tells how well a bundled model knows new data: codes, units, channels, prediction times, and what z came out."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

KNOWN, ANCESTOR, UNKNOWN = "known", "ancestor", "unknown"
CODES = pl.Schema(
    {
        "code": pl.String(),
        "known_as": pl.String(),
        "stands_for": pl.String(),
        "n_events": pl.Int64(),
        "n_people": pl.Int64(),
    }
)
LOW_COVERAGE = 0.5  # share of events of known codes, below which it is told
SMALLEST_SPREAD = 0.01  # of z between people, in its standard deviations over the training people
FAR, FAR_SHARE = 3.0, 0.5  # standard deviations that a person's median is off; share of people of whom that is told
OTHER_RATE = 2.0  # factor between sampling rates
_SAME = 1e-4  # likewise: z that are as near as this are the same


@dataclasses.dataclass(frozen=True)
class Report:
    """What a model knows of a data set.

    Attributes:
      codes: CODES of every code: known_as is "known", "ancestor" (stands_for says which) or "unknown" (left out).
      units: [{what, from, to, factor, offset}] of the codes and channels that were converted.
      unstated_units: codes with values whose unit is not stated here or in the training data: not compared.
      missing_channels: channels of the training data that these have not.
      people, windows: how many. steps: what prepare kept and dropped, [{step, n, dropped, reason}].
      warnings: sentences.
    """

    codes: pl.DataFrame
    units: list[dict]
    unstated_units: list[str]
    missing_channels: list[str]
    people: int
    windows: int
    steps: list[dict]
    warnings: list[str]

    @property
    def shares(self) -> dict[str, float]:
        """Share of all events by known_as; zeros without events."""
        n = dict(self.codes.group_by("known_as").agg(pl.col("n_events").sum()).iter_rows())
        total = max(sum(n.values()), 1)
        return {kind: n.get(kind, 0) / total for kind in (KNOWN, ANCESTOR, UNKNOWN)}

    def as_dict(self, most_codes: int = 100) -> dict[str, Any]:
        """As JSON holds it; of the codes that are not known those with the most events."""
        other = self.codes.filter(pl.col("known_as") != KNOWN).sort("n_events", "code", descending=[True, False])
        counted = self.codes.group_by("known_as").agg(pl.len().alias("codes"), pl.col("n_events").sum())
        return {
            "people": self.people,
            "windows": self.windows,
            "share_of_events": self.shares,
            "codes": {kind: {"codes": n, "events": events} for kind, n, events in counted.sort("known_as").iter_rows()},
            "not_known": other.head(most_codes).to_dicts(),
            "units_converted": self.units,
            "units_not_compared": self.unstated_units,
            "missing_channels": self.missing_channels,
            "steps": self.steps,
            "warnings": self.warnings,
        }

    def __str__(self) -> str:
        told = ", ".join(f"{100 * share:.1f}% {kind}" for kind, share in self.shares.items())
        lines = [f"{self.people:,} people, {self.windows:,} wearable windows; events by their code: {told}"]
        if self.unstated_units:
            lines.append(f"units of {len(self.unstated_units)} codes with values could not be compared: not stated")
        lines += [f"{u['what']}: converted from {u['from']} to {u['to']}" for u in self.units]
        return "\n".join(lines + [f"warning: {w}" for w in self.warnings])


def of_data(codes: pl.DataFrame, missing_channels: list[str], index: pl.DataFrame, modalities: list[str]) -> list[str]:
    """Warnings about data, before anything is computed.

    Args:
      codes: CODES. index: of the RecordStore. modalities: that the model reads.
    """
    out: list[str] = []
    total = int(codes["n_events"].sum())
    known = int(codes.filter(pl.col("known_as") != UNKNOWN)["n_events"].sum())
    if "ehr" in modalities and total and known < LOW_COVERAGE * total:
        out.append(
            f"{100 * (1 - known / total):.0f}% of the events are of codes that the model does not know, and left out"
        )
    if "wear" in modalities and missing_channels:
        out.append(f"no {' and no '.join(missing_channels)} in the wearable data: as if it had not been worn")
    if (empty := index.filter(pl.col("known_events") + pl.col("n_windows") == 0).height) and index.height:
        out.append(f"{empty:,} of {index.height:,} people have nothing that the model knows")
    return out


def of_channels(
    windows: pl.DataFrame, channels: Mapping[str, str], trained: Mapping[str, Sequence[float]], logs: Collection[str]
) -> list[str]:
    """Warnings about the range of signals: people whose median lies far from what was trained on.

    Args:
      windows: subject_id and <channel>__mean of each window. channels: {channel: unit} in the order of `trained`, the
        {"mean", "std"} of the training split's samples (signal_statistics.json). logs: channels of which both are of
        log(1 + x).
    """
    out = []
    for i, (channel, unit) in enumerate(channels.items()):
        mean, std = trained["mean"][i], max(trained["std"][i], 1e-12)
        if f"{channel}__mean" not in windows.columns:
            continue
        value = pl.col(f"{channel}__mean").cast(pl.Float64).fill_nan(None)
        median_P = windows.group_by("subject_id").agg(value.median().alias("median"))["median"].drop_nulls().to_numpy()
        z_P = (median_P - mean) / std
        far = int((np.abs(z_P) > FAR).sum())
        if len(z_P) and far >= FAR_SHARE * len(z_P):
            told = (mean - FAR * std, mean + FAR * std, float(np.median(median_P)))
            low, high, here = np.expm1(told) if channel in logs else told
            out.append(
                f"{channel}: the median of {far:,} of {len(z_P):,} people lies outside {low:.3g} to {high:.3g} "
                f"{unit}, {FAR:g} standard deviations about the training data's mean (median of all here: "
                f"{here:.3g})"
            )
    return out


def of_rates(here: Mapping[str, Sequence[float]], trained: Mapping[str, Sequence[float]]) -> list[str]:
    """Warnings about sampling rates beyond those of the training data by more than a factor OTHER_RATE.

    Args:
      here, trained: {channel: (lowest, highest) Hz}; channels of which one says nothing are not compared.
    """
    return [
        f"{channel}: recorded at {_range(here[channel])} Hz, and at {_range(known)} Hz in the training data"
        for channel, known in trained.items()
        if channel in here and (here[channel][0] * OTHER_RATE < known[0] or here[channel][1] > known[1] * OTHER_RATE)
    ]


def _range(ends):
    low, high = ends
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def of_times(times: pl.DataFrame, index: pl.DataFrame) -> list[str]:
    """Warnings about prediction times; times: subject_id, prediction_time. index: of the RecordStore."""
    first = index.select("subject_id", "first_us", "end_us")
    both = times.join(first, on="subject_id", how="left")
    before = both.filter(pl.col("prediction_time").dt.timestamp("us") < pl.col("first_us")).height
    return [f"{before:,} of {times.height:,} prediction times lie before any data of the person"] if before else []


def of_latents(subject_N: np.ndarray, z_NxD: np.ndarray, std_D: np.ndarray | None) -> list[str]:
    """Warnings about z: nothing to read, and collapse, where different people have the same.

    Args:
      std_D: of z over the training people, None where it is not known.
    """
    out, finite_N = [], np.isfinite(z_NxD).all(axis=1)
    if n := int((~finite_N).sum()):
        out.append(f"at {n:,} of {len(z_NxD):,} prediction times there is nothing to read: z is missing there")
    people, at = np.unique(subject_N[finite_N][::-1], return_index=True)  # the last time of each
    z_PxD = z_NxD[finite_N][::-1][at].astype(np.float64)
    if len(people) < 2:
        return out
    scaled_PxD = z_PxD / np.maximum(z_PxD.std(axis=0) if std_D is None else std_D, 1e-12)
    spread = float(np.sqrt(np.mean(scaled_PxD.var(axis=0))))
    alike = len(people) - len(np.unique(np.round(scaled_PxD / _SAME).astype(np.int64), axis=0))
    if std_D is not None and spread < SMALLEST_SPREAD:
        out.append(f"different people have nearly the same z (spread {spread:.2g} of that of the training people)")
    elif alike > len(people) // 2:
        out.append(f"{alike:,} of {len(people):,} people have the same z as another one")
    return out
