"""Makes the joint family's batches for prediction times: contexts that end there, packed into rows."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from ehrwear_jax.models.family import Batch, BatchSpec, Transform
from ehrwear_jax.models.joint import context, row
from ehrwear_jax.models.joint.patient import Patient

if TYPE_CHECKING:
    from ehrwear_jax.models.joint.examples import People


def batches(
    people: "People",
    spec: BatchSpec,
    position_N: np.ndarray,
    time_us_N: np.ndarray,
    batch_size: int,
    transform: Transform | None = None,
) -> Iterator[tuple[Batch, np.ndarray]]:
    """Batches whose queries are at prediction times, see models/family.py; nothing is hidden, and no targets.

    A person's times share a context where it shows all that is known at each of them: attention is causal, so that each
    sees what it would see of a context of its own.

    Args:
      people, spec: of the examples.
    """
    sizes = spec.sizes

    def empty():
        return spec.empty(batch_size), np.full((batch_size, sizes["Q"]), -1)

    def close(batch, r, open_row):
        row.fill_row({name: array[r] for name, array in batch.items()}, people, open_row.shown, open_row.query_us)
        return r + 1, _Open()

    (batch, where), r, open_row = empty(), 0, _Open()
    for patient, asked in _contexts(people, spec, position_N, time_us_N, transform):
        while asked:
            n = min(len(asked), sizes["Q"] - open_row.queries)
            while n and not open_row.fits(asked[n - 1][1], sizes):  # a context that ends earlier is shorter
                n -= 1
            if not n:
                r, open_row = close(batch, r, open_row)
                if r == batch_size:
                    yield batch, where
                    (batch, where), r = empty(), 0
                continue
            places, span = [k for k, _ in asked[:n]], asked[n - 1][1]
            where[r, open_row.queries : open_row.queries + n] = places
            open_row.add(context.Shown(patient, span), np.array([time_us_N[k] for k in places], np.int64))
            asked = asked[n:]
    if open_row.queries or r:
        while r < batch_size:
            r, open_row = close(batch, r, open_row)
        yield batch, where


@dataclasses.dataclass
class _Open:
    """A row that takes further contexts: those that it has, with the times of their queries, and how much they fill."""

    shown: list[context.Shown] = dataclasses.field(default_factory=list)
    query_us: list[np.ndarray] = dataclasses.field(default_factory=list)
    tokens: int = 0
    windows: int = 0
    queries: int = 0

    def fits(self, span: context.Span, sizes: Mapping[str, int]) -> bool:
        """Whether there is room for a context."""
        return self.tokens + span.n_tokens <= sizes["T"] and self.windows + span.n_windows <= sizes["W"]

    def add(self, shown: context.Shown, query_us: np.ndarray) -> None:
        """Takes a context in."""
        self.shown.append(shown)
        self.query_us.append(query_us)
        self.tokens += shown.span.n_tokens
        self.windows += shown.span.n_windows
        self.queries += len(query_us)


def shown_at(people: "People", spec: BatchSpec, patient: Patient, time_us: int) -> context.Span:
    """What a context of its own shows of a patient at a prediction time."""
    stop = int(np.searchsorted(patient.time_N, time_us, side="right"))
    return context.fit(patient, stop, people.config.context_tokens, spec.sizes["W"])


def _contexts(people, spec, position_N, time_us_N, transform):
    """(patient, [(place of a prediction time, what a context of its own shows)] by time), people as they come.

    The last of a list, or of its first few, shows all that the others would.
    """
    if transform is not None:
        for k, (i, t) in enumerate(zip(position_N, time_us_N, strict=True)):
            patient = people.of(transform(people.record(int(i)), int(t)))
            yield patient, [(k, shown_at(people, spec, patient, int(t)))]
        return
    places: dict[int, list[int]] = {}
    for k, i in enumerate(position_N):
        places.setdefault(int(i), []).append(k)
    for i, of_person in places.items():
        patient = people[i]
        shared: list[tuple[int, context.Span]] = []
        for k in sorted(of_person, key=time_us_N.__getitem__):
            span = shown_at(people, spec, patient, int(time_us_N[k]))
            # A row has room for so many raw windows, the latest ones of a context; and before the first record nothing
            # says when a context begins.
            if span.stop > 0 and not (span.n_events_out or span.n_windows_out or people.config.raw_windows):
                shared.append((k, span))
            else:
                yield patient, [(k, span)]
        if shared:
            yield patient, shared
