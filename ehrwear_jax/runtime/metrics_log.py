"""Logs the curves of a run to metrics.jsonl and TensorBoard; detects spikes of the loss."""

import collections
import json
import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, SupportsFloat, TextIO

from ehrwear_jax.runtime import files

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter


class MetricsLog:
    """metrics.jsonl and TensorBoard curves; after a resume, lines of steps that will be repeated are removed.

    Args:
      writes: of several processes the first one writes.
    """

    def __init__(self, folder: Path | str, from_step: int, writes: bool = True) -> None:
        self._file: TextIO | None = None
        self._board: SummaryWriter | None = None
        if not writes:
            return
        self._path = Path(folder) / "metrics.jsonl"
        if self._path.exists():
            lines = [x for x in self._path.read_text().splitlines() if _step(x) <= from_step]
            files.write_text(self._path, "".join(x + "\n" for x in lines))
        self._file = open(self._path, "a")  # noqa: SIM115 (open as long as the loop runs)
        # at first use, for it loads clients of cloud storage where there are any
        import tensorboardX

        self._board = tensorboardX.SummaryWriter(str(Path(folder) / "tensorboard"), purge_step=from_step + 1)

    def write(
        self, step: int, values: Mapping[str, SupportsFloat], board_only: Mapping[str, float] | None = None
    ) -> None:
        """values, board_only: {name: number}; the latter are not the same in two runs of the same steps."""
        if self._file is None or self._board is None:
            return
        numbers = {k: float(v) for k, v in values.items()}
        self._file.write(json.dumps({"step": step, **numbers}) + "\n")
        self._file.flush()
        for name, value in (numbers | dict(board_only or {})).items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Closes both files; nothing can be written after that."""
        if self._file is not None and self._board is not None:
            self._file.close()
            self._board.close()


def _step(line):
    try:
        return json.loads(line)["step"]
    except ValueError:  # torn by a kill
        return math.inf


class SpikeWatch:
    """Tells losses that stand out from those before: more than `factor` robust standard deviations over the median.

    Args:
      window, least: how many losses before are looked at; how many there must be.
    """

    def __init__(self, factor: float, window: int = 200, least: int = 50) -> None:
        self._factor, self._least = factor, least
        self._losses: collections.deque[float] = collections.deque(maxlen=window)

    def __call__(self, loss: float) -> tuple[float, float] | None:
        """The median and the number of deviations over it if this loss is a spike, else None."""
        found = None
        if len(self._losses) >= self._least:
            median = statistics.median(self._losses)
            spread = 1.4826 * statistics.median(abs(x - median) for x in self._losses)
            spread = max(spread, 1e-3 * abs(median), 1e-12)
            if self._factor and loss - median > self._factor * spread:
                found = median, (loss - median) / spread
        if math.isfinite(loss):
            self._losses.append(loss)
        return found
