"""Holds the model families, what they share, and the seam between them and everything else."""
