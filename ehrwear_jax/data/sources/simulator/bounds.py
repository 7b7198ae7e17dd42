"""Prints the best that observers of a simulated cohort could do: each modality alone, late fusion, both jointly.

    python -m ehrwear_jax.data.sources.simulator.bounds [--people=8000] [--preset=redundant] [--set NAME=VALUE ...]

Gradient boosting, with a logistic regression of each modality among its features, learns the TRUE risks (each
prediction time counts as that share of an event) from what an observer could know at best, cross-fitted over two halves
of the people; the AUROC is the one that the true risks promise. From the state: the EHR knows age, sex, its component,
heart disease, the beta-blocker and the shock at the last visit; wearables know age, sex, what they show of the
components, and the shock; both free of noise. With --records=PEOPLE also from summaries of the records (views.py),
with their noise and gaps, at the horizon of 90 days, twice: "records" from the true risks; "learned" from what a model
has in reality, one outcome per time, by half of these people at a time (--records=1960: as many as tiny.py trains on).

Late fusion is the best of three, all of which know the truth in training: a sum of a function of the EHR and a function
of the wearable, fitted together (boosting that may not let features of two modalities interact; no fusion of scores by
addition does better); boosting on the two unimodal scores; and a logistic regression on all features of both. Joint is
boosting on all features: what it has above late fusion needs interactions between modalities. The oracle knows the
whole state. With records, "joint, levels only" knows of the wearable the means of all that was recorded: what joint has
above it is in the shape of days and the change since earlier ones. Intervals: 95%, bootstrap over people. A held-out
share of a cohort is resampled from the simulated outcomes for the standard error of a difference in AUROC between two
models scored on the same people.
"""

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression

from ehrwear_jax.config.data import SimulateConfig
from ehrwear_jax.data.sources.simulator import options as options_lib
from ehrwear_jax.data.sources.simulator import views

FUSIONS = ("late fusion, additive", "late fusion, stacked", "late fusion, linear")
ROWS = ("EHR", "wearable", *FUSIONS, "joint", "oracle")
LEVELS_ONLY = "joint, levels only"
_RESAMPLES = 300


@dataclasses.dataclass(frozen=True)
class _Learner:
    """Strength of what learns; outcomes say less than risks and want weaker learners.

    Attributes:
      trees, leaves, rate, columns: of boosting; columns: share that each split may choose from.
      penalty: C of the logistic regression.
    """

    trees: int
    leaves: int
    rate: float
    columns: float
    penalty: float


_OF_RISKS = _Learner(trees=150, leaves=15, rate=0.07, columns=1.0, penalty=1.0)
_OF_OUTCOMES = _Learner(trees=120, leaves=6, rate=0.05, columns=0.2, penalty=0.003)


def expected_auroc(score_N: np.ndarray, risk_N: np.ndarray, weight_N: np.ndarray | None = None) -> float:
    """P(score_i > score_j | i has the event, j has not), ties half, outcomes drawn from the risks, i not j.

    Args:
      score_N: any scores. risk_N: probabilities; outcomes 0 and 1 give the AUROC itself.
      weight_N: how often each row counts; None: once.
    """
    weight_N = np.ones(len(score_N)) if weight_N is None else weight_N
    _, rank_N = np.unique(score_N, return_inverse=True)
    case_R = np.bincount(rank_N, weight_N * risk_N)
    control_R = np.bincount(rank_N, weight_N * (1 - risk_N))
    itself = (weight_N * risk_N * (1 - risk_N)).sum()
    won = (case_R * (np.cumsum(control_R) - control_R / 2)).sum() - itself / 2
    return float(won / (case_R.sum() * control_R.sum() - itself))


@dataclasses.dataclass(frozen=True)
class _Half:
    """Half of the people, from whom is learned; the others are scored.

    Attributes:
      target_N: risks, or outcomes 0 and 1.
      learn_N, quarter_N: bool; who is learned from, and half of the people of either half.
      learner: how.
    """

    target_N: np.ndarray
    learn_N: np.ndarray
    quarter_N: np.ndarray
    learner: _Learner

    def _fitted(self, model: Any, x_NxF: np.ndarray, learn_N: np.ndarray) -> Any:
        """The classifier, fitted to some times, each of which is as much of an event as its target says."""
        weight = np.concatenate([self.target_N[learn_N], 1 - self.target_N[learn_N]])
        y, used = np.repeat([1, 0], learn_N.sum()), weight > 0
        return model.fit(np.concatenate([x_NxF[learn_N]] * 2)[used], y[used], sample_weight=weight[used])

    def scores(self, model: Any, x_NxF: np.ndarray, *, crossed: bool = False) -> np.ndarray:
        """Log-odds [N] of a scikit-learn classifier, NaN of who is learned from.

        With crossed also theirs, by what was learned from the other quarter: what a second model may learn from.
        """
        first_N, second_N = self.learn_N & self.quarter_N, self.learn_N & ~self.quarter_N
        score_N, quarters = np.full(len(x_NxF), np.nan), ((first_N, second_N), (second_N, first_N))
        for learn_N, asked_N in ((self.learn_N, ~self.learn_N), *(quarters if crossed else ())):
            score_N[asked_N] = self._fitted(model, x_NxF, learn_N).decision_function(x_NxF[asked_N])
        return score_N

    def boosted(self, x_NxF: np.ndarray, *, parts: list[set[int]] | None = None, crossed: bool = False) -> np.ndarray:
        """By boosting; parts: columns that may interact."""
        by = self.learner
        model = HistGradientBoostingClassifier(
            max_iter=by.trees, learning_rate=by.rate, max_leaf_nodes=by.leaves, min_samples_leaf=60,
            l2_regularization=1.0, max_features=by.columns, interaction_cst=parts, random_state=0,
        )  # fmt: skip
        return self.scores(model, x_NxF, crossed=crossed)

    def linear(self, x_NxF: np.ndarray, *, crossed: bool = False) -> np.ndarray:
        """By a logistic regression on standardised features, what is not known at its mean."""
        centred_NxF = x_NxF - np.nanmean(x_NxF, axis=0)
        x_NxF = np.nan_to_num(centred_NxF / np.maximum(np.nanstd(x_NxF, axis=0), 1e-9))
        return self.scores(LogisticRegression(C=self.learner.penalty, max_iter=500), x_NxF, crossed=crossed)

    def observers(self, ehr_NxF: np.ndarray, wearable_NxF: np.ndarray, level_NxF: np.ndarray) -> dict[str, np.ndarray]:
        """{one of ROWS but the oracle, LEVELS_ONLY where there are levels: score [N]}."""
        n_static = views.N_STATIC
        linear_N = self.linear(np.concatenate([ehr_NxF, wearable_NxF[:, n_static:]], axis=1))
        # trees are slow to learn a sum: each modality brings its own logistic regression
        ehr_NxF, wearable_NxF = (np.column_stack([x, self.linear(x, crossed=True)]) for x in (ehr_NxF, wearable_NxF))
        both_NxF = np.concatenate([ehr_NxF, wearable_NxF[:, n_static:]], axis=1)
        static, n_ehr = set(range(n_static)), ehr_NxF.shape[1]
        parts = [set(range(n_ehr)), static | set(range(n_ehr, both_NxF.shape[1]))]
        ehr_N, wearable_N = (self.boosted(x, crossed=True) for x in (ehr_NxF, wearable_NxF))
        scores = (
            ehr_N,
            wearable_N,
            self.boosted(both_NxF, parts=parts),
            self.boosted(np.stack([ehr_N, wearable_N], axis=1)),
            linear_N,
            self.boosted(both_NxF),
        )
        found = dict(zip(ROWS[:-1], scores, strict=True))
        if level_NxF.shape[1]:
            found[LEVELS_ONLY] = self.boosted(np.column_stack([ehr_NxF, level_NxF]))
        return found


def best_scores(
    ehr_NxF: np.ndarray,
    wearable_NxF: np.ndarray,
    risk_N: np.ndarray,
    person_N: np.ndarray,
    *,
    event_N: np.ndarray | None = None,
    n_levels: int = 0,
) -> dict[str, np.ndarray]:
    """{one of ROWS: score [N]} of the observers of two views; see the module.

    Args:
      ehr_NxF, wearable_NxF: what each modality knows; the first views.N_STATIC columns are the same in both.
      risk_N: true risks.
      person_N: people; nobody is scored by what was learned from the same half of the people.
      event_N: bool, outcomes to learn from; None: from the risks.
      n_levels: with LEVELS_ONLY, which knows this many columns of wearable_NxF after the static ones; 0: without.
    """
    quarters = np.array_split(np.random.default_rng(0).permutation(np.unique(person_N)), 4)
    half_N = np.isin(person_N, np.concatenate(quarters[:2]))
    quarter_N = np.isin(person_N, np.concatenate(quarters[::2]))
    target_N, learner = (risk_N, _OF_RISKS) if event_N is None else (event_N.astype(float), _OF_OUTCOMES)
    level_NxF = wearable_NxF[:, views.N_STATIC : views.N_STATIC + n_levels]
    ehr_NxF, wearable_NxF = (x[:, _varies(x)] for x in (ehr_NxF, wearable_NxF))
    found: dict[str, np.ndarray] = {}
    for learn_N in (half_N, ~half_N):
        half = _Half(target_N, learn_N, quarter_N, learner)
        for name, score_N in half.observers(ehr_NxF, wearable_NxF, level_NxF).items():
            found[name] = np.where(learn_N, found.get(name, np.nan), score_N)
    return found | {"oracle": risk_N}


def _varies(x_NxF: np.ndarray) -> np.ndarray:
    """Columns with more than one value; the static ones always."""
    filled = np.where(np.isnan(x_NxF), -1e9, x_NxF)
    varies = (filled != filled[:1]).any(axis=0)
    varies[: views.N_STATIC] = True
    return varies


def _resampled(score: dict, outcome_N: np.ndarray, person_N: np.ndarray, n_people: int) -> dict[str, np.ndarray]:
    """{row: AUROC [resamples]} over resamples of n_people people with all of their times."""
    people, index_N = np.unique(person_N, return_inverse=True)
    rng = np.random.default_rng(1)
    out = {name: np.empty(_RESAMPLES) for name in score}
    for k in range(_RESAMPLES):
        times_N = np.bincount(rng.integers(0, len(people), n_people), minlength=len(people))[index_N]
        for name, score_N in score.items():
            out[name][k] = expected_auroc(score_N, outcome_N, times_N)
    return out


def summarise(score: dict, risk_N: np.ndarray, person_N: np.ndarray) -> dict[str, tuple[float, float, float]]:
    """{row or difference: (value, low, high)} of expected AUROC, with 95% intervals over people."""
    value = {name: expected_auroc(score_N, risk_N) for name, score_N in score.items()}
    drawn = _resampled(score, risk_N, person_N, len(np.unique(person_N)))
    fusion, single = max(FUSIONS, key=value.__getitem__), max(ROWS[:2], key=value.__getitem__)
    less = {"joint - late fusion": fusion, "joint - best single": single, "joint - EHR": "EHR"}
    if LEVELS_ONLY in score:
        less["joint - levels only"] = LEVELS_ONLY
    for label, other in less.items():
        value[label], drawn[label] = value["joint"] - value[other], drawn["joint"] - drawn[other]
    return {k: (value[k], *np.quantile(drawn[k], (0.025, 0.975)).tolist()) for k in value}


def held_out_error(score: dict, event_N: np.ndarray, person_N: np.ndarray, n_people: int) -> tuple[float, float]:
    """Standard errors of AUROC, joint less late fusion and joint less EHR, on n_people people by simulated outcomes."""
    drawn = _resampled({k: score[k] for k in ("joint", FUSIONS[0], "EHR")}, event_N.astype(float), person_N, n_people)
    return float((drawn["joint"] - drawn[FUSIONS[0]]).std()), float((drawn["joint"] - drawn["EHR"]).std())


def bounds(config: SimulateConfig, horizons_days: tuple[int, ...], options: argparse.Namespace) -> dict:
    """What the command prints: {"state 90d": {row: (value, low, high)}, ...} and the sizes behind it.

    Args:
      config: what is simulated.
      horizons_days: some of its horizons.
      options: people, records, held_out, workers of the command.
    """
    seen = views.gather(config, options.people, records=False, workers=options.workers)
    out: dict = {"times": len(seen.person_N), "people": int(len(np.unique(seen.person_N)))}
    for horizon in horizons_days:
        k = config.horizons_days.index(horizon)
        score = best_scores(seen.state_ehr_NxF, seen.state_wearable_NxF, seen.risk_NxH[:, k], seen.person_N)
        out[f"state {horizon}d"] = summarise(score, seen.risk_NxH[:, k], seen.person_N)
        out[f"prevalence {horizon}d"] = float(seen.event_NxH[:, k].mean()), float(seen.risk_NxH[:, k].mean())
        out[f"error {horizon}d"] = held_out_error(score, seen.event_NxH[:, k], seen.person_N, options.held_out)
    if options.records:
        out |= from_records(config, options.records, workers=options.workers)
    return out


def from_records(config: SimulateConfig, n_people: int, *, workers: int = 1) -> dict[str, dict]:
    """{"records 90d", "learned 90d": {row: (value, low, high)}} of models of summaries of records.

    Args:
      config: what is simulated; 90 days is one of its horizons.
      n_people: half of them are learned from at a time.
      workers: processes; changes nothing but the time it takes.
    """
    seen = views.gather(config, n_people, records=True, workers=workers)
    k = config.horizons_days.index(90)
    known = seen.ehr_NxF, seen.wearable_NxF, seen.risk_NxH[:, k], seen.person_N
    out = {}
    for name, event_N in (("records 90d", None), ("learned 90d", seen.event_NxH[:, k])):
        score = best_scores(*known, event_N=event_N, n_levels=views.N_LEVELS)
        out[name] = summarise(score, seen.risk_NxH[:, k], seen.person_N)
    return out


def _print(found: dict, held_out: int) -> None:
    columns = [name for name in found if name.startswith(("state", "records", "learned"))]
    print(f"{found['times']:,} prediction times of {found['people']:,} people; expected AUROC [95% interval]")
    print(f"{'':<24}" + "".join(f"{name:>24}" for name in columns))
    for row in found[columns[-1]]:
        cell = "{:+.3f} [{:+.3f}, {:+.3f}]" if " - " in row else "{:.3f} [{:.3f}, {:.3f}]"
        texts = (cell.format(*found[name][row]) if row in found[name] else "" for name in columns)
        print(f"{row:<24}" + "".join(f"{text:>24}" for text in texts))
    print(f"\nstandard errors of differences in AUROC with {held_out:,} held-out people (simulated outcomes):")
    for name in columns:
        if (days := name.split()[1]) and name.startswith("state"):
            events, risk = found[f"prevalence {days}"]
            fusion, ehr = found[f"error {days}"]
            print(f"{days:>6}: joint less late fusion {fusion:.4f}, joint less EHR {ehr:.4f}; "
                  f"events {events:.3f}, mean true risk {risk:.3f}")  # fmt: skip


def main(argv: list[str]) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=int, default=8000, help="for the bounds from the state; three times each")
    parser.add_argument("--records", type=int, default=0, metavar="PEOPLE", help="for the bounds from the records")
    parser.add_argument("--horizons", nargs="*", type=int, metavar="DAYS", help="of config.simulate; default: all")
    options_lib.add_arguments(parser)
    parser.add_argument("--held-out", type=int, default=3600, help="people, for the standard errors")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what is printed to a file")
    options = parser.parse_args(argv)
    config = options_lib.config_of(options)
    found = bounds(config, tuple(options.horizons or config.horizons_days), options)
    _print(found, options.held_out)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
