"""Metrics: pure functions of images and their reconstructions; `registry.METRICS` names them."""
