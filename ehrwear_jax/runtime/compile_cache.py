"""Keeps compiled programs on disk, so that a program that was compiled once is not compiled again."""

import os
from pathlib import Path


def use() -> None:
    """Makes JAX keep them in the folder that JAX_COMPILATION_CACHE_DIR names, by default one of the user's."""
    import jax

    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") or Path.home() / ".cache" / "ehrwear_jax" / "jax"
    jax.config.update("jax_compilation_cache_dir", str(folder))
