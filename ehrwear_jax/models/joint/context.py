"""Says what a context shows of a patient, how much of a row's predictions it gets, and by which draws it is made."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ehrwear_jax.models.joint.patient import Patient


class Span(NamedTuple):
    """What of a patient a context shows: its first static tokens, its latest events and its latest windows.

    Attributes:
      n_static, n_events, n_windows: how many it shows.
      n_events_out, n_windows_out: how many older ones there are that it does not show.
      start, stop: the shown events and windows lie among these merged tokens, the first of which is shown.
    """

    n_static: int
    n_events: int
    n_windows: int
    n_events_out: int
    n_windows_out: int
    start: int
    stop: int

    @property
    def n_ehr(self) -> int:
        """How many EHR tokens it shows, static ones included."""
        return self.n_static + self.n_events

    @property
    def n_tokens(self) -> int:
        """How many tokens it shows."""
        return self.n_ehr + self.n_windows

    def positions(self, patient: Patient) -> slice | np.ndarray:
        """The merged tokens that are shown: a slice, or int64 indices where some in between are left out."""
        if self.stop - self.start == self.n_events + self.n_windows:
            return slice(self.start, self.stop)
        parts = zip((patient.event_at, patient.window_at), (self.n_events_out, self.n_windows_out),
                    (self.n_events, self.n_windows), strict=True)  # fmt: skip
        return np.sort(np.concatenate([at[first : first + n] for at, first, n in parts]))


def fit(patient: Patient, stop: int, max_ehr: int, max_windows: int) -> Span:
    """The longest context that ends before merged token `stop` within two budgets that do not know of each other.

    So a model of both modalities is shown the events that a model of the EHR alone is shown, and the windows that a
    model of the wearable alone is shown, whatever there is of the other.

    Args:
      max_ehr: most EHR tokens, static ones included, which come first; the latest events take the others, one at
        least. max_windows: the latest windows.
    """
    n_static = min(len(patient.static_token_S), max(max_ehr - 1, 0))
    before = [len(patient.event_at), len(patient.window_at)]
    if stop < sum(before):
        before = [int(at.searchsorted(stop)) for at in (patient.event_at, patient.window_at)]
    n_events, n_windows = min(before[0], max(max_ehr - n_static, 0)), min(before[1], max(max_windows, 0))
    out = before[0] - n_events, before[1] - n_windows
    start = stop
    if n_events:
        start = int(patient.event_at[out[0]])
    if n_windows:
        start = min(start, int(patient.window_at[out[1]]))
    return Span(n_static, n_events, n_windows, *out, start, stop)


class Shown(NamedTuple):
    """A patient, what of them a context shows (see fit), and their position in the split."""

    patient: Patient
    span: Span
    position: int = -1


class Draws(NamedTuple):
    """Generators of a training context: of masks and of where predictions are made; of changes of the signal.

    The second is None where the signal stays as recorded.
    """

    rng: np.random.Generator
    augment_rng: np.random.Generator | None = None


class Contents(NamedTuple):
    """The contexts of a row in order, and what they are made by.

    Attributes:
      shown: patients and what their contexts show. query_us: int64 sorted times of the queries of each, absolute.
      draws: of each; None at inference: nothing is hidden, and there are no targets. phase: in [0, 1), see quotas.
    """

    shown: Sequence[Shown]
    query_us: Sequence[np.ndarray]
    draws: Sequence[Draws] | None = None
    phase: float = 0.0


def quotas(
    capacity: int, begin_C: np.ndarray, end_C: np.ndarray, max_tokens: int, phase: float | np.ndarray
) -> np.ndarray:
    """How many of their row's predictions contexts get: by their length, rounded at random; int64 [C].

    Every token has the same expected number of predictions, and a row full of tokens uses the whole capacity.

    Args:
      capacity: predictions of a row of max_tokens tokens.
      begin_C, end_C: int64, where the tokens of each context begin in its row, and where they end.
      phase: of the row, or of that of each context: in [0, 1).
    """
    begin, end = ((capacity * at_C / max_tokens + phase).astype(np.int64) for at_C in (begin_C, end_C))
    return end - begin
