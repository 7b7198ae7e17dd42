"""Simulated pulse waves whose beats are known, and what rate and variability they have."""

import numpy as np


def simulated(rate, seconds, mean_s=0.85, sd_s=0.03, noise=0.0, seed=0):
    """(wave [T], times of systolic peaks [B] s): one shape per beat with a dicrotic wave, breathing, white noise."""
    rng = np.random.default_rng(seed)
    beat_s = np.cumsum(mean_s + sd_s * rng.standard_normal(int(1.3 * seconds / mean_s) + 9)) - 2.0
    t = np.arange(int(rate * seconds)) / rate
    wave = sum(np.exp(-(((t - b) / 0.09) ** 2)) + 0.35 * np.exp(-(((t - b - 0.28) / 0.1) ** 2)) for b in beat_s)
    wave = wave + 0.12 * np.sin(2 * np.pi * 0.25 * t) + noise * rng.standard_normal(len(t))
    return wave, beat_s[(beat_s > 0) & (beat_s < seconds - 1 / rate)]


def truth(beat_s):
    d = 1000 * np.diff(beat_s)
    return {
        "heart_rate_bpm": 60_000 / d.mean(),
        "sdnn_ms": d.std(ddof=1),
        "rmssd_ms": np.sqrt(np.mean(np.diff(d) ** 2)),
    }
