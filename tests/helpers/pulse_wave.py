"""Simulated pulse waves and electrocardiograms whose beats are known, and what rate and variability they have."""

import numpy as np


def simulated(rate, seconds, mean_s=0.85, sd_s=0.03, noise=0.0, seed=0):
    """(wave [T], times of systolic peaks [B] s): one shape per beat with a dicrotic wave, breathing, white noise."""
    rng = np.random.default_rng(seed)
    beat_s = np.cumsum(mean_s + sd_s * rng.standard_normal(int(1.3 * seconds / mean_s) + 9)) - 2.0
    t = np.arange(int(rate * seconds)) / rate
    wave = sum(np.exp(-(((t - b) / 0.09) ** 2)) + 0.35 * np.exp(-(((t - b - 0.28) / 0.1) ** 2)) for b in beat_s)
    wave = wave + 0.12 * np.sin(2 * np.pi * 0.25 * t) + noise * rng.standard_normal(len(t))
    return wave, beat_s[(beat_s > 0) & (beat_s < seconds - 1 / rate)]


def harmonic_wave(rate, seconds, hz=1.2, noise=0.0, seed=0):
    """A pulse with two harmonics, breathing underneath, and white noise."""
    t = np.arange(int(rate * seconds)) / rate
    wave = sum(a * np.cos(2 * np.pi * k * hz * t) for k, a in ((1, 1.0), (2, 0.4), (3, 0.15)))
    return wave + 0.3 * np.sin(2 * np.pi * 0.2 * t) + noise * np.random.default_rng(seed).standard_normal(len(t))


def truth(beat_s):
    d = 1000 * np.diff(beat_s)
    return {
        "heart_rate_bpm": 60_000 / d.mean(),
        "sdnn_ms": d.std(ddof=1),
        "rmssd_ms": np.sqrt(np.mean(np.diff(d) ** 2)),
    }


def simulated_ecg(rate, seconds, mean_s=0.85, sd_s=0.03, noise=0.0, seed=0):
    """(ECG [T] mV, times of R peaks [B] s): P, QRS and T waves, a wandering baseline, white noise."""
    rng = np.random.default_rng(seed)
    beat_s = np.cumsum(mean_s + sd_s * rng.standard_normal(int(1.3 * seconds / mean_s) + 9)) - 2.0
    t = np.arange(int(rate * seconds)) / rate
    waves = ((-0.16, 0.12, 0.025), (-0.028, -0.12, 0.01), (0.0, 1.1, 0.011), (0.028, -0.2, 0.01), (0.25, 0.3, 0.04))
    ecg = sum(h * np.exp(-0.5 * ((t - b - at) / width) ** 2) for b in beat_s for at, h, width in waves)
    ecg = ecg + 0.3 * np.sin(2 * np.pi * 0.2 * t) + noise * rng.standard_normal(len(t))
    return ecg, beat_s[(beat_s > 0.05) & (beat_s < seconds - 0.05)]
