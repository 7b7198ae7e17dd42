"""Defines the schedules of the learning rate and of the loss weights: pure functions of the step."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import optax


def learning_rate(peak: float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Linear warmup from peak / warmup_steps, then a cosine to zero at total_steps (paper, section 3.5)."""
    warmup_steps = min(max(warmup_steps, 1), max(total_steps - 1, 1))
    return optax.warmup_cosine_decay_schedule(
        peak / warmup_steps, peak, warmup_steps, max(total_steps, warmup_steps + 1)
    )


@dataclasses.dataclass(frozen=True)
class Ramp:
    """A loss weight: `start` at step 0, linear to `end` at `steps`, constant afterwards."""

    start: float
    end: float
    steps: int = 0

    def __call__(self, step: int | jax.Array) -> float | jax.Array:
        share = jnp.clip(step / self.steps, 0.0, 1.0) if self.steps else 1.0
        return self.start + (self.end - self.start) * share


def curriculum(
    ramps: Mapping[str, Ramp], terms: Iterable[str]
) -> Callable[[int | jax.Array], dict[str, float | jax.Array]]:
    """step -> {term: weight} for the named terms whose ramp is not zero throughout (paper, appendix A.4)."""
    used = {name: ramps[name] for name in terms if ramps[name].start or ramps[name].end}
    return lambda step: {name: ramp(step) for name, ramp in used.items()}
