"""Builds a dataset from the files of UK Biobank: bulk text files and exports of the Research Analysis Platform."""

from ehrwear_jax.data.sources.ukb.assembly import build

__all__ = ["build"]
