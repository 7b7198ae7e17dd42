"""Schedules the learning rate: a pure function of the step, and of the batch's size."""

import math

import optax


def peak_rate(peak: float, batch_rows: int, rate_rows: int) -> float:
    """The peak of a batch of batch_rows rows if `peak` is that of rate_rows; 0 rate_rows: of any batch."""
    return peak * math.sqrt(batch_rows / rate_rows) if rate_rows else peak


def learning_rate(peak: float, warmup_steps: int, total_steps: int, decay: str = "cosine") -> optax.Schedule:
    """Linear warmup from peak / warmup_steps, then a cosine to zero at total_steps (paper, section 3.5), or a line."""
    warmup_steps = min(max(warmup_steps, 1), max(total_steps - 1, 1))
    if decay == "linear":
        up = optax.linear_schedule(peak / warmup_steps, peak, warmup_steps)
        down = optax.linear_schedule(peak, 0.0, max(total_steps - warmup_steps, 1))
        return optax.join_schedules([up, down], [warmup_steps])
    return optax.warmup_cosine_decay_schedule(
        peak / warmup_steps, peak, warmup_steps, max(total_steps, warmup_steps + 1)
    )
