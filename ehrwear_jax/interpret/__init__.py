"""Interprets trained models: attribution, attention, geometry, retrieval, mechanisms and uncertainty."""
