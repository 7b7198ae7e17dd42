"""Measures how fast a run is, from what its batches hold beside padding."""

import time
from collections.abc import Callable

import jax

from ehrwear_jax.models.family import Batch
from ehrwear_jax.training import cost, sharding

# what `Throughput.read` returns; of all that is logged, only these differ between a run and its repetition
TIMINGS = ("steps_per_second", "tokens_per_second", "patient_days_per_second", "model_tflops_per_second",
           "waiting_share", "mfu")  # fmt: skip


class Throughput:
    """Rates since the last time that they were read, from what each batch holds beside padding.

    Of several processes each counts its own rows and takes the others' to hold as much.
    """

    def __init__(
        self, counts: Callable[[Batch], dict], flops: Callable[[dict], float], mesh: jax.sharding.Mesh, step: int
    ) -> None:
        """counts: of a batch, with "tokens" and "patient_days". flops: model flops by these counts."""
        self._count, self._flops = counts, flops
        blocks, count = sharding.row_share(mesh)
        self._parts, self._devices = count / len(blocks), mesh.size
        self._peak = cost.peak_flops(mesh.devices.flat[0].device_kind)
        self._start(step)

    def _start(self, step):
        self._began, self._step, self._waited = time.perf_counter(), step, 0.0
        self._counts = dict.fromkeys(("patient_days", "tokens", "flops"), 0.0)

    def add(self, batch: Batch, waited: float) -> None:
        """A batch of this process's rows, and the seconds that were spent waiting for it."""
        counts = self._count(batch)
        counts["flops"] = self._flops(counts)
        self._counts = {k: v + self._parts * counts[k] for k, v in self._counts.items()}
        self._waited += waited

    def read(self, step: int) -> dict[str, float]:
        """{name: value}; mfu, the share of the devices' peak, only where that is known."""
        elapsed = time.perf_counter() - self._began
        rate = {k: v / elapsed for k, v in self._counts.items()}
        out = {
            "steps_per_second": (step - self._step) / elapsed,
            "tokens_per_second": rate["tokens"],
            "patient_days_per_second": rate["patient_days"],
            "model_tflops_per_second": rate["flops"] / 1e12,
            "waiting_share": self._waited / elapsed,
        }
        if self._peak:
            out["mfu"] = rate["flops"] / (self._peak * self._devices)
        self._start(step)
        return out
