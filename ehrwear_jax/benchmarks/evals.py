"""Times the evaluation: `python -m ehrwear_jax.benchmarks.evals [--json=FILE]`.

Wall-clock seconds of 5,000 patient resamples at the size of the paper's test fold, of a whole
evaluation, and time and memory at half a million patients. Data are simulated. Each figure has
`_cpu` beside it, the processor time of this process (long evaluations start others): on a machine
that is shared, wall-clock time says what the neighbours did.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from ehrwear_jax.evals import bootstrap, builders, classification, concordance, subgroups, survival
from ehrwear_jax.evals.estimates import Resampling

N_PATIENTS, N_RESAMPLES = 4873, 5000
HORIZONS = (30.0, 90.0, 180.0, 365.0)


def cohort(n: int, n_models: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Follow-up in whole days (21% events), risks of the models, probabilities by horizon."""
    rng = np.random.default_rng(seed)
    signal_N = rng.normal(size=n)
    died_N, censored_N = np.ceil(rng.exponential(2600 * np.exp(-signal_N))), np.ceil(rng.uniform(200, 1200, n))
    risk = {f"model {m}": signal_N + (0.5 + 0.1 * m) * rng.normal(size=n) for m in range(n_models)}
    return np.minimum(died_N, censored_N), died_N <= censored_N, risk


def _probability(risk_N, horizon: float):
    return 1 - np.exp(-np.exp(risk_N) * horizon / 2600)


def timed(name: str, function: Callable[[], object], into: dict, repeat: int = 3) -> None:
    """Median wall-clock and processor seconds of `repeat` calls."""
    walls, cpus = [], []
    for _ in range(repeat):
        wall, cpu = time.perf_counter(), time.process_time()
        function()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    into[name], into[f"{name}_cpu"] = float(np.median(walls)), float(np.median(cpus))
    print(f"{name:44} {into[name]:9.2f} s   processor {into[f'{name}_cpu']:9.2f} s", flush=True)


def resampling(n: int, n_resamples: int, into: dict) -> None:
    """One model, 28 score vectors, and concordance; each with its own weights."""
    time_N, event_N, risk = cohort(n, 28)
    y_N = event_N & (time_N <= 365)
    group_N, risks = np.arange(n), list(risk.values())
    rankings = {r: classification.BinaryRanking(y_N, v) for r, v in risk.items()}
    first = {"one": rankings["model 0"]}
    timed("weights_seconds", lambda: [None for _ in bootstrap.weight_blocks(group_N, n_resamples, 0)], into)
    timed("auroc_auprc_one_model_seconds", lambda: bootstrap.resample(first, group_N, n_resamples, 0), into)
    timed("auroc_auprc_28_vectors_seconds", lambda: bootstrap.resample(rankings, group_N, n_resamples, 0), into)
    pairs = {"c": concordance.Concordance(time_N, event_N, risks[0])}
    timed("c_index_seconds", lambda: bootstrap.resample(pairs, group_N, n_resamples, 0), into)

    few = bootstrap.patient_weights(group_N, min(50, n_resamples), 0)

    def loop():
        for w in few:
            roc_auc_score(y_N, risks[0], sample_weight=w)
            average_precision_score(y_N, risks[0], sample_weight=w)

    timed("scikit_learn_loop_seconds", loop, into, repeat=1)
    for name in ("scikit_learn_loop_seconds", "scikit_learn_loop_seconds_cpu"):
        into[f"{name}_extrapolated"] = into.pop(name) * n_resamples / len(few)


def complete(n: int, n_resamples: int, into: dict, *, n_models: int = 8, n_tasks: int = 3) -> None:
    """Every metric: models x horizons (binary), models x survival tasks, each whole and in six splits."""
    rng = np.random.default_rng(1)
    attributes = {
        "age": subgroups.age_bands(rng.uniform(40, 75, n)),
        "sex": rng.choice(["female", "male"], n),
        "device": rng.choice(["wrist", "watch", "mixed"], n),
        **subgroups.coverage_groups(rng.poisson(2, n), rng.uniform(0, 200, n)),
    }
    group_N, resampling = np.arange(n), Resampling(n_resamples)
    counts = []

    def score(build, y_N, compared, counted_N=None):
        found = subgroups.cells(attributes, y_N, group_N, counted_N=counted_N)
        comparison = subgroups.Comparison(compared, reference_model="model 0")
        counts.append(len(subgroups.score(build, found, group_N, resampling, comparison)))

    def run():
        for task in range(n_tasks):
            time_N, event_N, risk = cohort(n, n_models, seed=task)
            follow_up = survival.FollowUp(time_N, event_N)
            times_T = np.linspace(30, 365, 20)
            curves = {r: 1 - np.stack([_probability(v, t) for t in times_T], 1) for r, v in risk.items()}
            build = builders.time_to_event(
                survival.TrainingCurves.fit(follow_up), follow_up, risk, horizons=HORIZONS, tau=400,
                curves=builders.PredictedCurves(times_T, curves),
            )  # fmt: skip
            score(build, event_N, ("c_index", "uno_c", "auc_365", "ibs"))
            if task:
                continue
            for horizon in HORIZONS:
                y_N, known_N = survival.horizon_labels(time_N, event_N, horizon)
                predictions = {r: _probability(v, horizon) for r, v in risk.items()}
                points = {
                    r: classification.sensitivity_threshold(y_N[known_N], p[known_N], 0.8)
                    for r, p in predictions.items()
                }
                build = builders.binary(
                    y_N, predictions, operating_points=points, factor_N=known_N.astype(np.float64)
                )  # fmt: skip
                score(build, y_N, ("auroc", "auprc"), known_N)

    timed("complete_evaluation_seconds", run, into, repeat=1)
    into["complete_evaluation_records"] = sum(counts)


def large(n: int, n_resamples: int, into: dict) -> None:
    """AUROC, AUPRC and concordance of half a million patients, and the memory that they take."""
    time_N, event_N, risk = cohort(n, 1)
    y_N, group_N = event_N & (time_N <= 365), np.arange(n)
    risk_N = risk["model 0"]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    for name, make in (
        ("auroc_auprc", lambda: classification.BinaryRanking(y_N, risk_N)),
        ("c_index", lambda: concordance.Concordance(time_N, event_N, risk_N)),
    ):
        run = lambda make=make: bootstrap.resample({"": make()}, group_N, n_resamples, 0)  # noqa: E731
        timed(f"large_{name}_seconds", run, into, repeat=1)
    into |= {
        "large_patients": n,
        "large_resamples": n_resamples,
        "large_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "memory_before_large_mb": before,
    }
    print(f"{'large_memory_mb':44} {into['large_memory_mb']:9.0f} MB  before {before:9.0f} MB")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patients", type=int, default=N_PATIENTS)
    parser.add_argument("--resamples", type=int, default=N_RESAMPLES)
    parser.add_argument("--large-patients", type=int, default=500_000, help="0 leaves this part out")
    parser.add_argument("--large-resamples", type=int, default=100)
    parser.add_argument("--models", type=int, default=8, help="of the whole evaluation")
    parser.add_argument("--no-complete", action="store_true", help="leave the whole evaluation out")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    flags = parser.parse_args(argv)
    result = {"patients": flags.patients, "resamples": flags.resamples}
    resampling(flags.patients, flags.resamples, result)
    if flags.large_patients:
        large(flags.large_patients, flags.large_resamples, result)
    if not flags.no_complete:
        complete(flags.patients, flags.resamples, result, n_models=flags.models)
    if flags.json:
        flags.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
