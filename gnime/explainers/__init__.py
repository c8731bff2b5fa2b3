"""Explainers: functions `(model, images) -> maps`, one file each; `registry.EXPLAINERS` names them."""
