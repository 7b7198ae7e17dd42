"""Divides the p-values of an evaluation into named families of tests, and controls the false discovery rate in each.

A family is declared by what its tests are about, never by their results: {"kind", "metric", "of", "tests"}. Kinds are

  primary     paired differences of one metric between models, over all models and tasks of a dataset; a metric at
              several horizons ("auc_90", "auc_365") is one family, of metric "auc_t"
  subgroups   gaps between the levels of an attribute, or differences within them, of one metric
  robustness  changes of one metric under perturbed records
  mechanisms  effects of hidden signals against their control
  geometry    permutation tests of the latents

The oracle and the mean of the training split bound what is possible: nobody asks whether a model differs from them, so
they are in no family. With them, ever smaller p-values would lower the q of all others.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ehrwear_jax.evals import inference

BOUNDS = frozenset({"oracle", "training_mean"})
P_VALUE = "_difference_p"


@dataclasses.dataclass(frozen=True)
class Family:
    """Which tests are corrected together; `metric` is empty where the kind has one family."""

    kind: str
    metric: str
    of: str


FamilyOf = Callable[[Mapping[str, Any]], Family | None]


def is_bound(model: str) -> bool:
    """Whether a model, or a side of a comparison "a - b", is a bound and no candidate."""
    return not BOUNDS.isdisjoint(model.split(" - "))


def adjusted(
    entries: Sequence[Mapping[str, Any]], p: str, family_of: FamilyOf
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The entries with Benjamini and Hochberg's q beside their p-values, and the families.

    Args:
      entries: of one kind of test, all that are reported together.
      p: key of the p-value; q goes under the same key with "q" for its "p" (change_p, change_q; p_value, q_value).
      family_of: the family of an entry, None where it belongs to none.

    Returns:
      (copies of the entries with q: to be called significant where it is at most the false discovery rate, None where p
      is undefined or in no family; the families in order of appearance, with their number of defined tests).
    """
    q = re.sub(r"p(?=_value$|$)", "q", p)
    tests: dict[Family, dict[int, float]] = {}
    for i, entry in enumerate(entries):
        family, value = family_of(entry), entry.get(p)
        if family is not None and value is not None and math.isfinite(value):
            tests.setdefault(family, {})[i] = value
    found: dict[int, float] = {}
    for p_by_entry in tests.values():
        found |= {i: test.q for i, test in inference.benjamini_hochberg(p_by_entry).items()}
    out = [{**entry, q: found.get(i)} for i, entry in enumerate(entries)]
    return out, [{**dataclasses.asdict(family), "tests": len(mine)} for family, mine in tests.items()]


def primary(records: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(a record "<metric>_difference_q" for each "<metric>_difference_p" of a family, the families).

    Args:
      records: of all tasks that are reported together (`protocol.score_binary` and its like).
    """
    tests = [r for r in records if r["metric"].endswith(P_VALUE) and not is_bound(r["model"])]
    found, families = adjusted([{**r, "p": r["value"]} for r in tests], "p", _primary)
    q_records = [
        {**r, "metric": r["metric"].removesuffix("p") + "q", "value": q["q"]} for r, q in zip(tests, found, strict=True)
    ]
    return q_records, families


def _primary(record: Mapping[str, Any]) -> Family:
    metric = re.sub(r"_[\d.]+$", "_t", record["metric"].removesuffix(P_VALUE))
    return Family("primary", metric, f"models x tasks of {record['dataset']}")


def of_subgroups(entries: Sequence[Mapping[str, Any]]) -> tuple[list[dict], list[dict]]:
    """`adjusted` of the records of `subgroups.cell_records`; whole cohorts are tested by the primary comparisons."""

    def family_of(entry):
        if entry["attribute"] == "all" or is_bound(entry["model"]):
            return None
        return Family("subgroups", entry["metric"], f"models x groups x tasks of {entry['dataset']}")

    return adjusted(entries, "p", family_of)


def of_robustness(entries: Sequence[Mapping[str, Any]]) -> tuple[list[dict], list[dict]]:
    """`adjusted` of the records of `perturbed.score_perturbations`.

    A perturbation of what a model is not given changes no prediction of it: that is no test.
    """

    def family_of(entry):
        untouched = entry["change_lo"] == entry["change_hi"] == 0
        return None if untouched else Family("robustness", entry["metric"], "models x perturbations")

    return adjusted(entries, "change_p", family_of)


def of_geometry(entries: Sequence[Mapping[str, Any]]) -> tuple[list[dict], list[dict]]:
    """`adjusted` of the measures of interpret/geometry.json, one family."""
    return adjusted(entries, "p_value", lambda entry: Family("geometry", "", "models x tests of MMD"))


def of_precursors(found: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, dict], list[dict]]:
    """{name: effect with q} of {name: effect} as `mechanisms.precursors` gives them, and their one family."""
    family = Family("mechanisms", "", "hidden signals x periods")
    entries, families = adjusted(list(found.values()), "p_value", lambda entry: family)
    return dict(zip(found, entries, strict=True)), families
