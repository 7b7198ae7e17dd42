"""Evaluates predictions and frozen embeddings against labels; takes and returns arrays and knows no model."""
