"""Rates from a clock that the test turns."""

import types

import jax
import numpy as np
import pytest

from ehrwear_jax.models.joint import batch as batch_lib
from ehrwear_jax.training import sharding
from ehrwear_jax.training import throughput as monitor

SHAPE = batch_lib.BatchShape(tokens=4, windows=0, steps=4, channels=0, patches=2, masked=1, events=1, queries=1,
                             future_windows=1, future_codes=1, recalled_tokens=1)  # fmt: skip


@pytest.fixture
def clock(monkeypatch):
    now = types.SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(monitor.time, "perf_counter", lambda: now.seconds)
    return now


def batch():
    batch = batch_lib.empty_batch(SHAPE, 8)
    batch["segment"][:] = 1, 1, 2, 0
    batch["time"][:] = 0.0, 1.5, 0.0, 0.0  # three days of two people
    batch["kv_range"][:, :3] = (0, 1), (0, 2), (2, 3)
    return batch


def test_rates_are_over_the_time_since_they_were_last_read(clock):
    model = types.SimpleNamespace(config=types.SimpleNamespace(width=10, n_layers=2, channels=0))
    throughput = monitor.Throughput(model, {"backbone": 1000}, sharding.make_mesh(), 5)
    for _ in range(2):
        throughput.add(batch(), 0.5)
    clock.seconds += 4.0
    got = throughput.read(7)
    flops = 2 * (6 * 1000 * 24 + 12 * 10 * 2 * 8 * 4)
    assert got == pytest.approx({
        "steps_per_second": 0.5, "tokens_per_second": 12.0, "patient_days_per_second": 12.0,
        "model_tflops_per_second": flops / 4.0 / 1e12, "waiting_share": 0.25,
    })  # fmt: skip
    throughput.add(batch(), 0.0)
    clock.seconds += 1.0
    assert throughput.read(8)["tokens_per_second"] == pytest.approx(24.0)
    assert "mfu" not in got, "a CPU has no known peak, and none is made up"


def test_utilisation_is_of_the_peak_of_all_devices(clock, monkeypatch):
    monkeypatch.setattr(monitor.cost, "peak_flops", lambda kind: {"cpu": 1e6}[kind])
    model = types.SimpleNamespace(config=types.SimpleNamespace(width=10, n_layers=2, channels=0))
    mesh = sharding.make_mesh()
    throughput = monitor.Throughput(model, {"backbone": 1000}, mesh, 0)
    throughput.add(batch(), 0.0)
    clock.seconds += 2.0
    got = throughput.read(1)
    assert got["mfu"] == pytest.approx((6 * 1000 * 24 + 12 * 10 * 2 * 8 * 4) / 2.0 / (1e6 * len(jax.devices())))
    assert np.isfinite(list(got.values())).all()
