"""Explainers: functions `(model, images) -> maps`, a file each; `registry.EXPLAINERS` names them."""
