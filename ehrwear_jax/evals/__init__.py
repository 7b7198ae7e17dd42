"""Evaluation: embeddings, predictions and labels in, numbers out."""
