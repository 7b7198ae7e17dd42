"""Runs the stages of the main job; each resumes, skips what is done, and can be run alone."""

from ehrwear_jax.stages.runner import ORDER, run

__all__ = ["ORDER", "run"]
