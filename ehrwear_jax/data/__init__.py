"""Reads, simulates, prepares and serves the data: numpy, polars, pyarrow, scipy, grain; never jax."""
