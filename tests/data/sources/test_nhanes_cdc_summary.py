"""Sums over a week of minutes, held to plain loops over days."""

import math

import numpy as np
import pytest

from ehrwear_jax.data.sources import nhanes_cdc_summary


def bouts(states):
    lengths, run = [], 0
    for state in [*states, False]:
        if state:
            run += 1
        elif run:
            lengths.append(run)
            run = 0
    return lengths


def reference(counts, worn):
    days = []
    for d in range(len(counts) // 1440):
        day = [(c, w and not math.isnan(c)) for c, w in
               zip(counts[d * 1440 :][:1440], worn[d * 1440 :][:1440], strict=True)]  # fmt: skip
        if sum(w for _, w in day) < 600:
            continue
        value = [c if w else 0.0 for c, w in day]
        active = bouts([w and c >= 100 for c, w in day])
        still = bouts([w and c < 100 for c, w in day])
        days.append({
            "tac": sum(value), "tlac": sum(math.log(1 + v) for v in value), "wt": sum(w for _, w in day),
            "st": sum(v < 100 for v in value), "mvpa": sum(v >= 2020 for v in value),
            "about": np.mean(active), "sbout": np.mean(still), "satp": 1 / np.mean(still), "astp": 1 / np.mean(active),
            "profile": [sum(math.log(1 + v) for v in value[b * 120 : (b + 1) * 120]) for b in range(12)],
        })  # fmt: skip
    return days


def test_sums_of_counts_are_those_of_plain_loops():
    rng = np.random.default_rng(0)
    counts = np.floor(rng.gamma(0.4, 700, 7 * 1440))
    counts[rng.random(len(counts)) < 0.02] = np.nan
    worn = np.repeat(rng.random(7 * 24) < 0.6, 60)
    worn[:1440], worn[1440 : 1440 + 599] = True, True
    worn[1440 + 599 : 2880] = False  # a day one minute short
    days = reference(counts.tolist(), worn.tolist())
    n, means, profile = nhanes_cdc_summary.of_counts(counts.astype(np.float32), worn)
    assert n == len(days) < 7
    for name, value in means.items():
        assert value == pytest.approx(np.mean([day[name] for day in days]), rel=1e-5), name
    assert set(means) == set(days[0]) - {"profile"}
    np.testing.assert_allclose(profile, np.mean([day["profile"] for day in days], axis=0), rtol=1e-5)
    assert nhanes_cdc_summary.of_counts(counts, np.zeros(len(counts), bool)) == (0, {}, [])


def test_sums_of_mims_are_those_of_worn_minutes():
    mims, worn, asleep = np.full(2880, 2.0), np.zeros(2880, bool), np.zeros(2880, bool)
    worn[:700], asleep[100:300], mims[5] = True, True, np.nan
    worn[1440:2039] = True  # too short a day
    n, means, profile = nhanes_cdc_summary.of_mims(mims, worn, asleep)
    assert (n, means) == (1, {"total_mims": 2.0 * 699, "wt": 700.0, "sleep": 200.0})
    assert profile == [238.0, 240.0, 240.0, 240.0, 240.0, 200.0, 0, 0, 0, 0, 0, 0]
