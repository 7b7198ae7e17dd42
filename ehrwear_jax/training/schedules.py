"""Schedules the learning rate: a pure function of the step."""

import optax


def learning_rate(peak: float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Linear warmup from peak / warmup_steps, then a cosine to zero at total_steps (paper, section 3.5)."""
    warmup_steps = min(max(warmup_steps, 1), max(total_steps - 1, 1))
    return optax.warmup_cosine_decay_schedule(
        peak / warmup_steps, peak, warmup_steps, max(total_steps, warmup_steps + 1)
    )
