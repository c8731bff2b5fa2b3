"""Metrics: pure functions of images, reconstructions, explanations and logits; `registry.METRICS` names them."""
