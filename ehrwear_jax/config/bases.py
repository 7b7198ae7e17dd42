"""Names the two models that experiments start from: `paper`, sections 3.2 to 3.5 and A.4 alone, and `extended`, ours.

`ADDITIONS` says, one by one, what `extended` may have and `paper` has not: configs, the report and `describe` read it.
A variant of a config file chooses the base (tiny.py:paper, full.py:extended); each file says which is its default.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

OFF = (0.0, 0.0, 0)
NAMES = ("paper", "extended")


@dataclasses.dataclass(frozen=True)
class Addition:
    """Something that the paper's model has not.

    Attributes:
      what: in words, as a noun phrase.
      absent: {option of the joint family: its value where the addition is left out}.
    """

    what: str
    absent: Mapping[str, Any]


ADDITIONS = (
    Addition(
        "losses that predict the next event, and later codes within horizons, from z at events and free times",
        {"weights.future_event": OFF, "weights.future_codes": OFF},
    ),
    Addition(
        "losses that rebuild from z which codes, and what signal, the record held of late",
        {"weights.ehr_history": OFF, "weights.wear_history": OFF},
    ),
    Addition(
        "losses that ask z for the state of values, and for the next values",
        {"weights.ehr_values": OFF, "weights.wear_values": OFF, "weights.next_value": OFF},
    ),
    Addition("a loss that asks z for age and what never changes", {"weights.person": OFF}),
    Addition("the state of values as an input of queries", {"network.value_inputs": False}),
    Addition(
        "numeric values beside the ranges that tokens name",
        {"network.value_channel": False, "network.value_features": 0},
    ),
    Addition("decayed counts of the whole record as an input of tokens and queries", {"network.count_width": 0}),
    Addition("length of the record, and gaps in it, as an input of tokens and queries", {"network.stream": False}),
    Addition("exact cycles beside the encoding of time", {"network.cycles_days": ()}),
    Addition("a learned vector for queries, where z(t) is else that of a hidden event", {"network.query": "hidden"}),
    Addition(
        "queries behind the last event, predictions at every distinct time",
        {"context.queries_behind": 0.0, "context.every_time": False},
    ),
    Addition("a penalty on the scale of scores over the vocabulary", {"z_loss": 0.0}),
)
# What the paper has and small experiments leave out: the regularisers of sections 3.3 and 3.5, "a small weight"
REGULARISERS = {
    "weights.contrast": (0.05, 0.05, 0),
    "weights.content_norm": (0.001, 0.001, 0),
    "context.pairs": 8,
}


def paper_options() -> dict[str, Any]:
    """Nested options of the joint family that make a model the paper's, whatever a config says of it."""
    out: dict[str, Any] = {}
    for option, value in [pair for a in ADDITIONS for pair in a.absent.items()] + list(REGULARISERS.items()):
        *path, key = option.split(".")
        part = out
        for step in path:
            part = part.setdefault(step, {})
        part[key] = value
    return out


def added(options: Mapping[str, Any]) -> list[str]:
    """What a model of the joint family adds to the paper's, in the words of ADDITIONS; empty: the paper's.

    Args:
      options: nested, of models/joint/config.py; z_loss, weights, network, context.
    """

    def value(option):
        found: Any = options
        for step in option.split("."):
            found = found[step]
        return tuple(found) if isinstance(found, list) else found

    return [a.what for a in ADDITIONS if any(value(option) != absent for option, absent in a.absent.items())]
