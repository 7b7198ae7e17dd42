"""Holds what uses a trained network away from the data that it was trained on: bundles, new people, predictions.

bundle_files.py says what a bundle is, write_bundle.py writes one from a run, trained_model.py is what users hold.
"""
