"""Rates from a clock that the test turns."""

import types

import jax
import numpy as np
import pytest

from ehrwear_jax.training import sharding
from ehrwear_jax.training import throughput as throughput_lib

COUNTS = {"tokens": 24, "patient_days": 24, "seen": 32}  # of a batch
FLOPS = 6 * 1000 * 24 + 12 * 10 * 2 * 32


def flops(counts):
    return 6 * 1000 * counts["tokens"] + 12 * 10 * 2 * counts["seen"]


@pytest.fixture
def clock(monkeypatch):
    now = types.SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(throughput_lib.time, "perf_counter", lambda: now.seconds)
    return now


def throughput(step=0, mesh=None):
    return throughput_lib.Throughput(lambda batch: dict(batch), flops, mesh or sharding.make_mesh(), step)


def test_rates_are_over_the_time_since_they_were_last_read(clock):
    rates = throughput(5)
    for _ in range(2):
        rates.add(COUNTS, 0.5)
    clock.seconds += 4.0
    got = rates.read(7)
    assert got == pytest.approx({
        "steps_per_second": 0.5, "tokens_per_second": 12.0, "patient_days_per_second": 12.0,
        "model_tflops_per_second": 2 * FLOPS / 4.0 / 1e12, "waiting_share": 0.25,
    })  # fmt: skip
    rates.add(COUNTS, 0.0)
    clock.seconds += 1.0
    assert rates.read(8)["tokens_per_second"] == pytest.approx(24.0)
    assert "mfu" not in got, "a CPU has no known peak, and none is made up"
    assert got.keys() | {"mfu"} == set(throughput_lib.TIMINGS)


def test_utilisation_is_of_the_peak_of_all_devices(clock, monkeypatch):
    monkeypatch.setattr(throughput_lib.cost, "peak_flops", lambda kind: {"cpu": 1e6}[kind])
    rates = throughput()
    rates.add(COUNTS, 0.0)
    clock.seconds += 2.0
    got = rates.read(1)
    assert got["mfu"] == pytest.approx(FLOPS / 2.0 / (1e6 * len(jax.devices())))
    assert np.isfinite(list(got.values())).all()


def test_other_processes_are_taken_to_hold_as_much(clock, monkeypatch):
    monkeypatch.setattr(throughput_lib.sharding, "row_share", lambda mesh: ((2, 5), 8))
    rates = throughput()
    rates.add(COUNTS, 0.0)
    clock.seconds += 2.0
    got = rates.read(1)
    assert got["tokens_per_second"] == pytest.approx(4 * 12.0) and got["waiting_share"] == 0.0
    assert got["model_tflops_per_second"] == pytest.approx(4 * FLOPS / 2.0 / 1e12)
