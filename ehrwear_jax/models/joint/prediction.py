"""Makes the joint family's batches for prediction times: contexts that end there, packed into rows."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from ehrwear_jax.models.family import Batch, BatchSpec, Transform, places_by_person
from ehrwear_jax.models.joint import context
from ehrwear_jax.models.joint.patient import Patient
from ehrwear_jax.models.joint.row import blocks, fill_rows

if TYPE_CHECKING:
    from ehrwear_jax.models.joint.examples import People

_Asked = list[tuple[int, context.Span]]  # places of prediction times, and what a context of its own shows at each


class _OpenRow:
    """A row that takes further contexts: those that it has, with the times of their queries, and how much they fill."""

    def __init__(self) -> None:
        self.shown: list[context.Shown] = []
        self.query_us: list[np.ndarray] = []
        self.tokens = self.windows = self.queries = 0

    def n_fit(self, asked: _Asked, sizes: Mapping[str, int]) -> int:
        """How many of the times, the first of them, it has room for: a context that ends earlier is shorter."""
        n = min(len(asked), sizes["Q"] - self.queries)
        free_tokens, free_windows = sizes["T"] - self.tokens, sizes["W"] - self.windows
        while n and (asked[n - 1][1].n_tokens > free_tokens or asked[n - 1][1].n_windows > free_windows):
            n -= 1
        return n

    def add(self, shown: context.Shown, query_us: np.ndarray) -> None:
        """Takes a context in."""
        self.shown.append(shown)
        self.query_us.append(query_us)
        self.tokens += shown.span.n_tokens
        self.windows += shown.span.n_windows
        self.queries += len(query_us)


class _OpenBatch:
    """A batch whose rows still take contexts."""

    def __init__(self, people: "People", spec: BatchSpec, batch_size: int) -> None:
        self._people, self._spec = people, spec
        self._where = np.full((batch_size, spec.sizes["Q"]), -1)
        self._rows = [_OpenRow() for _ in range(batch_size)]

    @property
    def is_empty(self) -> bool:
        """Whether no row holds a context."""
        return not any(row.queries for row in self._rows)

    def take(self, patient: Patient, asked: _Asked, time_us_N: np.ndarray, in_parts: bool = False) -> _Asked:
        """Puts a context into the fullest row that has room for it; returns the prediction times that found none.

        Args:
          in_parts: where no row takes all that it could, some of the times go into one row and others into further
            ones, each with a context of its own.
        """
        sizes = self._spec.sizes
        while asked:
            n_R = [row.n_fit(asked, sizes) for row in self._rows]
            most = max(n_R)
            if not most or not (in_parts or most == min(len(asked), sizes["Q"])):
                break
            r = max((r for r, n in enumerate(n_R) if n == most), key=lambda r: self._rows[r].tokens)
            places, row = [k for k, _ in asked[:most]], self._rows[r]
            self._where[r, row.queries : row.queries + most] = places
            row.add(context.Shown(patient, asked[most - 1][1]), time_us_N[places])
            asked = asked[most:]
        return asked

    def close(self) -> tuple[Batch, np.ndarray]:
        """(batch, where), see models/family.py."""
        batch = self._spec.empty(len(self._rows))
        for some, part in blocks(batch):
            fill_rows(part, self._people, [context.Contents(row.shown, row.query_us) for row in self._rows[some]])
        return batch, self._where


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
    sees what it would see of a context of its own. A context goes into the row that it fills best; one for which no
    row has room is divided among the rows with slots for queries left, before it begins a further batch.

    Args:
      people, spec: of the examples.
    """
    time_us_N, rows = np.asarray(time_us_N, np.int64), _OpenBatch(people, spec, batch_size)
    for patient, asked in _contexts(people, spec, position_N, time_us_N, transform):
        while asked := rows.take(patient, asked, time_us_N):
            if asked := rows.take(patient, asked, time_us_N, in_parts=True):
                yield rows.close()
                rows = _OpenBatch(people, spec, batch_size)
    if not rows.is_empty:
        yield rows.close()


def shown_at(people: "People", spec: BatchSpec, patient: Patient, time_us: int) -> context.Span:
    """What a context of its own shows of a patient at a prediction time."""
    stop = int(np.searchsorted(patient.time_N, time_us, side="right"))
    return context.fit(patient, stop, people.config.context_tokens, spec.sizes["W"])


def shown_at_all(
    people: "People", spec: BatchSpec, position_N: np.ndarray, time_us_N: np.ndarray
) -> list[context.Span]:
    """`shown_at` of each prediction time."""
    found: dict[int, context.Span] = {}
    for i, places in places_by_person(position_N).items():
        patient = people[i]
        found |= {k: shown_at(people, spec, patient, int(time_us_N[k])) for k in places}
    return [found[k] for k in range(len(found))]


def _contexts(people, spec, position_N, time_us_N, transform):
    """(patient, [(place of a prediction time, what a context of its own shows)] by time), people as they come.

    The last of a list, or of its first few, shows all that the others would.
    """
    if transform is not None:
        for k, (i, t) in enumerate(zip(position_N, time_us_N, strict=True)):
            patient = people.of(transform(people.record(int(i)), int(t)))
            yield patient, [(k, shown_at(people, spec, patient, int(t)))]
        return
    for i, of_person in places_by_person(position_N).items():
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
