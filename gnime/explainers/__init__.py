"""Explainers: functions `(model, images) -> maps`, one file each; `registry.EXPLAINERS` names them.

Where `images` require gradients, the maps of the built-in ones can be differentiated with respect to them.
"""
