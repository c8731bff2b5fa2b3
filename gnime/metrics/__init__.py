"""Metrics: pure functions of images and reconstructions (leakage), of maps (usefulness); `registry.METRICS` names them."""
