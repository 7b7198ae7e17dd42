"""Reads z of one growing record: each token's keys and values are computed once for as long as its context goes on.

A read at time t gives what `JointExamples.prediction_batches` and `JointNetwork.encode` give: z of a context of its
own, the latest tokens known at t. The row of that context is filled by the code that fills all rows. What is known of
an earlier row is used for the tokens at the beginning whose inputs are the same to the last bit, and for no other: so
nothing has to be told when a late event, an earlier birth or the end of the context's room changes what tokens say.
While a record fits a context, an append costs its own tokens. Once the context slides, its first token, from which
kernel times, spans and counts are told, is another one at each append: the row is then computed in one pass, of at most
the context's size, and further reads before the next append share it.

What is known has room for 256, 1,024, ... places, and new tokens are padded to 4, 32, ..., so that few shapes are
compiled. Networks whose tokens depend on more than the tokens before (wear_span_days, raw windows) are computed anew at
each read.

Letters: T tokens, S places, W windows, D width.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from ehrwear_jax.data.store import Record
from ehrwear_jax.models.family import Batch
from ehrwear_jax.models.joint import context
from ehrwear_jax.models.joint import patient as patient_lib
from ehrwear_jax.models.joint.batch import MODALITY_WEAR, batch_spec
from ehrwear_jax.models.joint.config import Config
from ehrwear_jax.models.joint.examples import JointExamples
from ehrwear_jax.models.joint.network import JointNetwork
from ehrwear_jax.models.joint.patient import Patient
from ehrwear_jax.models.joint.prediction import shown_at
from ehrwear_jax.models.joint.row import fill_rows

_LEAST_PLACES, _MORE_PLACES = 256, 4  # places: so many, and so many times as many
_LEAST_TOKENS, _MORE_TOKENS = 4, 8  # new tokens likewise
_FEW = 32  # new tokens that may as well be windows: one program for both
_TOKENS = ("token", "value", "quantile", "modality", "time", "age", "kv_range")  # a token's inputs, but for its window
_WINDOWS = ("wear", "observed", "patch_mask", "channel_mask", "quality")  # a window's


@dataclasses.dataclass
class Known:
    """What was computed of a record.

    Attributes:
      row: inputs of the context, host arrays [1, T, ...]. n: how many tokens of it are known.
      arrays: of JointNetwork.known_before, on the device; used up by the next read.
    """

    row: Batch
    n: int
    arrays: Any

    @property
    def nbytes(self) -> int:
        """Memory, bytes."""
        return sum(x.nbytes for x in (*self.row.values(), *jax.tree.leaves(self.arrays)))


class Decoder:
    """Reads z of records of which more arrives.

    Attributes:
      is_incremental: whether what is known of earlier tokens is used.

    Args:
      examples, network: of the model. variables: {"params", "collections"}.

    Raises:
      ValueError: posterior=sde, whose path through one context was found up to 6e-3 from that of a batch.
    """

    def __init__(self, examples: JointExamples, network: JointNetwork, variables: dict) -> None:
        config = network.config
        if config.network.posterior == "sde":
            raise ValueError("no state of a network with posterior=sde is kept: its reads were not those of the batch")
        self._people, self._network = examples.people, network
        self._modalities, self._static = config.modalities, config.static
        self._spec = batch_spec(config.context, examples.facts, {})
        of_others = config.network.wear_span_days > 0 or config.context.raw_windows > 0
        self.is_incremental = not of_others
        self._variables = jax.device_put({"params": variables["params"], **variables["collections"]})
        self._extend = jax.jit(lambda v, b, known: network.apply(v, b, known, method="extend"), donate_argnums=2)
        self._encode = jax.jit(lambda v, b: network.apply(v, b, method="encode"))

    @staticmethod
    def n_events(config: Config) -> int | None:
        """How many of the latest timed events of a record a read may depend on; None: on all."""
        return None if config.network.value_inputs else config.context.context_tokens

    def patient(self, record: Record) -> Patient:
        """The stream of a record, made once for any number of reads."""
        return self._people.of(patient_lib.given(record, self._modalities, self._static))

    def latent(
        self, patient: Patient, time_us: int, known: Known | None = None, is_whole: bool = True
    ) -> tuple[np.ndarray, Known | None]:
        """z at a time, from what was known then.

        Args:
          known: what an earlier read of this person returned; it cannot be used a second time.
          is_whole: whether the record holds all events; else it holds the latest n_events at least.

        Returns:
          (float32 [D], what is known now).

        Raises:
          ValueError: a context at this time shows events that the record does not hold any more.
        """
        span = shown_at(self._people, self._spec, patient, time_us)
        if not is_whole and span.n_ehr < self._people.config.context_tokens:
            raise ValueError("the state does not hold the events that a read so far back shows")
        row = self._row(patient, span, time_us)
        if not self.is_incremental:
            return np.asarray(self._encode(self._variables, row))[0, 0], None
        same = 0 if known is None else _same_tokens(known, row, span.n_tokens)
        if known is None or known.arrays["time"].shape[1] < span.n_tokens:
            known, same = Known({}, 0, self._network.known_before(self._places(span.n_tokens))), 0
        n_places = known.arrays["time"].shape[1]
        n_new = _padded(max(span.n_tokens - same, 1), _LEAST_TOKENS, _MORE_TOKENS, n_places)
        first = min(same, n_places - n_new)
        n_tokens = span.n_tokens
        if same == n_tokens < known.n:  # a read further back, of a beginning of the known context, which stays whole
            row, n_tokens = known.row | {name: x for name, x in row.items() if name.startswith("query")}, known.n
        z, arrays = self._extend(self._variables, self._part(row, first, n_new), known.arrays)
        return np.asarray(z)[0, 0], Known(row, n_tokens, arrays)

    def _places(self, n_tokens):
        return _padded(n_tokens, _LEAST_PLACES, _MORE_PLACES, self._spec.sizes["T"])

    def _row(self, patient, span, time_us):
        """The inputs of a context with one query."""
        row = self._spec.empty(1)
        shown = context.Shown(patient, span)
        fill_rows(row, self._people, [context.Contents([shown], [np.array([time_us], np.int64)])])
        return {name: x[:, :1] if name.startswith("query") else x for name, x in row.items()}

    def _part(self, row, first, n):
        """The inputs of n tokens from place `first` on, and of their windows."""
        last = first + n
        part = {name: x for name, x in row.items() if name.startswith("query")} | {"first": np.int32(first)}
        part |= {name: row[name][:, first:last] for name in _TOKENS if name in row}
        window = row["window"][:, first:last]
        slots = window[window >= 0]
        at, size = 0, min(n, self._spec.sizes["W"]) if len(slots) or n <= _FEW else 0
        if len(slots):
            at = min(int(slots.min()), self._spec.sizes["W"] - size)
        part |= {name: row[name][:, at : at + size] for name in _WINDOWS if name in row}
        position = row["window_position"][:, at : at + size]
        part["window_position"] = np.where(position >= 0, position - first, -1).astype(np.int32)
        return part | {"window": np.where(window >= 0, window - at, -1).astype(np.int32)}


def _padded(n, least, factor, most):
    """The first of least, factor * least, ... that holds n, at most `most`."""
    size = least
    while size < n:
        size *= factor
    return min(size, most)


def _same_tokens(known, row, n):
    """How many tokens at the beginning of a row have the inputs of those that are known."""
    n = min(n, known.n)
    if not n:
        return 0
    is_same = np.ones(n, bool)
    for name in _TOKENS:
        if name in row:
            is_same &= (row[name][0, :n] == known.row[name][0, :n]).reshape(n, -1).all(axis=1)
    at = np.flatnonzero(row["modality"][0, :n] == MODALITY_WEAR)
    at = at[is_same[at]]  # of the others, slots may differ
    mine, theirs = (x["window"][0, at] for x in (row, known.row))
    for name in _WINDOWS:
        if name in row and len(at):
            is_same[at] &= (row[name][0, mine] == known.row[name][0, theirs]).reshape(len(at), -1).all(axis=1)
    return n if is_same.all() else int(is_same.argmin())
