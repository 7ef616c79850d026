"""Sensitivity metrics: the loss increase of each (site, candidate), one metric a file."""
