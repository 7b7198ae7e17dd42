"""Simulated days and nights whose sleep is known."""

import numpy as np

DAY = 1440


def simulated_days(seed, n_days=4, wakings=6, step_minutes=1.0):
    """Per step from noon on: (asleep [T] bool, true ends of each night's sleep [D, 2] steps)."""
    rng = np.random.default_rng(seed)
    asleep, ends = np.zeros(n_days * DAY, bool), []
    for day in range(n_days):
        first = day * DAY + int(rng.integers(600, 720))
        last = first + int(rng.integers(400, 520))
        asleep[first:last] = True
        for at in rng.integers(first + 40, last - 60, wakings):
            asleep[at : at + int(rng.integers(5, 20))] = False
        ends.append((first, last))
    per_step = int(round(1 / step_minutes))
    return np.repeat(asleep, per_step), np.array(ends) * per_step


def simulated_counts(asleep, seed):
    """Counts a minute: busy while awake, nothing while asleep but for a few movements."""
    rng = np.random.default_rng(seed)
    counts = np.where(asleep, 0.0, rng.lognormal(6.8, 0.6, len(asleep)))
    stir = asleep & (rng.random(len(asleep)) < 0.03)
    counts[stir] = rng.integers(5, 120, stir.sum())
    return counts


def true_efficiency(asleep, ends):
    return np.array([asleep[a:b].mean() for a, b in ends])
