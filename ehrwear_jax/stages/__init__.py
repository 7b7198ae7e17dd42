"""The stages of the main job, each resumable, each skipping what is done, each usable alone."""

from ehrwear_jax.stages.runner import ORDER, run

__all__ = ["ORDER", "run"]
