"""Measures by simulation whether intervals cover, p-values are uniform and the false discovery rate is held.

`python -m ehrwear_jax.evals.ci_coverage [--studies=1000] [--resamples=1000] [--patients=800] [--json=FILE]`
simulates studies of patients with several rows each, evaluates each as real data are evaluated, and
compares with the true values of the population that they were drawn from.
"""

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy  # its submodules load at first use
from tqdm import tqdm

from ehrwear_jax.evals import bootstrap, calibration, classification, concordance, inference, weighting

# Models beside the reference in the family of tests: as good as it in truth, or worse.
N_EQUAL, N_WORSE = 6, 2
# p is exp(SLOPE) too extreme on the log-odds scale, or calibrated.
SLOPE, OFFSET = 1.6, -1.2


@dataclasses.dataclass(frozen=True)
class Study:
    """Rows of patients: labels, scores of every model, follow-up. Arrays [N], scores [M, N]."""

    group_N: np.ndarray
    y_N: np.ndarray
    score_MxN: np.ndarray  # 0 the reference, then N_EQUAL as good, then N_WORSE worse
    calibrated_N: np.ndarray  # the true probability of y given the calibrated model's input
    distorted_N: np.ndarray
    time_N: np.ndarray
    event_N: np.ndarray


def simulate(rng: np.random.Generator, n_patients: int) -> Study:
    """One to three rows a patient, correlated through the patient's risk; half of them censored."""
    group_N = np.repeat(np.arange(n_patients), rng.integers(1, 4, n_patients))
    n = len(group_N)
    signal_N = 0.8 * rng.normal(size=n_patients)[group_N] + 0.6 * rng.normal(size=n)
    risk_N = 1 / (1 + np.exp(-(OFFSET + signal_N)))
    y_N = rng.random(n) < risk_N
    n_models = 1 + N_EQUAL + N_WORSE
    noise_M = np.r_[np.full(1 + N_EQUAL, 0.8), np.full(N_WORSE, 1.6)]
    shared_N = rng.normal(size=n)
    score_MxN = signal_N + noise_M[:, None] * (0.6 * shared_N + 0.8 * rng.normal(size=(n_models, n)))
    distorted_N = 1 / (1 + np.exp(-(OFFSET + SLOPE * signal_N)))
    died_N, censored_N = rng.exponential(np.exp(-signal_N)), rng.uniform(0, 2, n)
    time_N, event_N = np.minimum(died_N, censored_N), died_N <= censored_N
    return Study(group_N, y_N, score_MxN, risk_N, distorted_N, time_N, event_N)


@dataclasses.dataclass(frozen=True)
class Truth:
    """Metrics of the population; sorted_p and cumulative_gap: name of the predictions -> by predicted probability."""

    auroc_M: np.ndarray
    auprc_M: np.ndarray
    c_index: float
    sorted_p: dict[str, np.ndarray]
    cumulative_gap: dict[str, np.ndarray]

    def ece(self, name: str, edges_K: np.ndarray) -> float:
        """The population's calibration error over given bins."""
        inner = np.searchsorted(self.sorted_p[name], edges_K[1:-1], "left")
        total = self.cumulative_gap[name]
        at = np.concatenate([[0.0], total[inner], [total[-1]]])
        return float(np.abs(np.diff(at)).sum() / (len(total) - 1))


@functools.cache
def truth(n_patients: int = 400_000, seed: int = 2**20) -> Truth:
    """Metrics of a population so large that its sampling error does not matter."""
    people = simulate(np.random.default_rng(seed), n_patients)
    rankings = [classification.BinaryRanking(people.y_N, s) for s in people.score_MxN]
    values = [weighting.evaluate(r, len(people.y_N)) for r in rankings]
    sorted_p, gap = {}, {}
    for name in ("calibrated", "distorted"):
        p_N = getattr(people, f"{name}_N")
        order = np.argsort(p_N)
        sorted_p[name] = p_N[order]
        # Probabilities, not labels: no sampling noise in the gaps.
        gap[name] = np.concatenate([[0.0], np.cumsum((p_N - people.calibrated_N)[order])])
    c_index = concordance.concordance_index(people.time_N, people.event_N, people.score_MxN[0])
    auroc_M, auprc_M = (np.array([v[m] for v in values]) for m in ("auroc", "auprc"))
    return Truth(auroc_M, auprc_M, float(c_index), sorted_p, gap)


def evaluate_study(study: Study, n_resamples: int, seed: int, expected: Truth) -> tuple[dict, dict]:
    """({interval: did it cover}, {test: number}) of one study."""
    n = len(study.y_N)
    rankings = {str(m): classification.BinaryRanking(study.y_N, s) for m, s in enumerate(study.score_MxN)}
    calibrations = {
        name: calibration.Calibration(study.y_N, getattr(study, f"{name}_N"), gaps=True)
        for name in ("calibrated", "distorted")
    }
    pairs = concordance.Concordance(study.time_N, study.event_N, study.score_MxN[0])
    statistics: dict[str, weighting.Statistic] = {**rankings, "survival": pairs, **calibrations}
    samples = bootstrap.resample(statistics, study.group_N, n_resamples, seed)
    values = {name: weighting.evaluate(s, n) for name, s in statistics.items()}
    skewed = {k: statistics[k] for k in ("0", "survival")}
    jackknife = bootstrap.over_blocks(skewed, bootstrap.jackknife_blocks(study.group_N))

    covered, true = {}, {"c_index": expected.c_index}
    for metric, true_M in (("auroc", expected.auroc_M), ("auprc", expected.auprc_M)):
        true[metric] = true_M[0]
        delta_B = samples["0"][metric] - samples[str(N_EQUAL + N_WORSE)][metric]
        bounds = inference.interval(delta_B)
        covered[f"{metric}_difference"] = bounds.lo <= true_M[0] - true_M[-1] <= bounds.hi
    for name, metric in (("0", "auroc"), ("0", "auprc"), ("survival", "c_index")):
        bounds = inference.interval(samples[name][metric])
        covered[metric] = bounds.lo <= true[metric] <= bounds.hi
        bounds = inference.bca_interval(values[name][metric], samples[name][metric], jackknife[name][metric])
        covered[f"{metric}_bca"] = bounds.lo <= true[metric] <= bounds.hi
    for name in ("calibrated", "distorted"):
        edges = calibrations[name].edges
        gaps = [f"gap_{k}" for k in range(len(edges) - 1)]
        result = calibration.corrected_ece(
            [values[name][g] for g in gaps], np.stack([samples[name][g] for g in gaps], axis=1)
        )
        covered[f"ece_corrected_{name}"] = result.lo - 1e-4 <= expected.ece(name, edges) <= result.hi + 1e-4
        bounds = inference.interval(samples[name]["ece"])
        covered[f"ece_percentile_{name}"] = bounds.lo <= expected.ece(name, edges) <= bounds.hi

    tests = {m: inference.paired_pvalue(samples["0"]["auroc"] - samples[str(m)]["auroc"])
             for m in range(1, 1 + N_EQUAL + N_WORSE)}  # fmt: skip
    adjusted = inference.benjamini_hochberg(tests)
    rejected = [m for m, a in adjusted.items() if a.rejected]
    false = sum(m <= N_EQUAL for m in rejected)
    uncorrected = sum(tests[m] <= 0.05 for m in range(1, 1 + N_EQUAL)) > 0
    return covered, {
        "p_null": tests[1],
        "false_discovery_proportion": false / max(len(rejected), 1),
        "found_of_worse": (len(rejected) - false) / N_WORSE,
        "any_false_uncorrected": float(uncorrected),
    }


def run(
    n_studies: int, n_resamples: int, *, n_patients: int = 800, seed: int = 0, progress: bool = False
) -> dict[str, float]:
    """{name: number}: coverage of each interval, and how p-values and discoveries behave under the null."""
    expected, covered, tests = truth(), [], []
    for i in tqdm(range(n_studies), desc="studies", disable=not progress, file=sys.stderr):
        study = simulate(np.random.default_rng([seed, i]), n_patients)
        hit, numbers = evaluate_study(study, n_resamples, i, expected)
        covered.append(hit)
        tests.append(numbers)
    result = {f"coverage_{k}": float(np.mean([c[k] for c in covered])) for k in covered[0]}
    p_null = np.array([t["p_null"] for t in tests])
    result["null_p_below_0.05"] = float((p_null <= 0.05).mean())
    result["null_p_ks_distance"] = float(scipy.stats.kstest(p_null, "uniform").statistic)
    result["null_p_ks_p"] = float(scipy.stats.kstest(p_null, "uniform").pvalue)
    result["false_discovery_rate"] = float(np.mean([t["false_discovery_proportion"] for t in tests]))
    result["power_of_family"] = float(np.mean([t["found_of_worse"] for t in tests]))
    result["any_false_uncorrected"] = float(np.mean([t["any_false_uncorrected"] for t in tests]))
    return result | {"studies": n_studies, "resamples": n_resamples, "patients": n_patients}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the simulation as the command line says, and prints its numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--patients", type=int, default=800)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    flags = parser.parse_args(argv)
    result = run(flags.studies, flags.resamples, n_patients=flags.patients, seed=flags.seed, progress=True)
    for name, value in result.items():
        print(f"{name:34} {value:.4g}")
    if flags.json:
        flags.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
