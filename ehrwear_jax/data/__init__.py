"""Read, simulate, prepare and serve the data: numpy, polars, pyarrow, scipy, grain; never jax."""
