"""The registry of explainers. Imports nothing heavy: the command line takes its choices from here.

An explainer is a function `(model, images) -> explanations`: images (N, C, H, W) in [0, 1], explanations
(N, K, h, w) in [0, 1], float32. `model` is a stack of the layers that `stack.layers` accepts.
"""

from collections.abc import Callable
from dataclasses import dataclass


def _grad() -> Callable:
    from .grad import grad

    return grad


def _gradcam() -> Callable:
    from .gradcam import gradcam

    return gradcam


def _lrp() -> Callable:
    from .lrp import lrp

    return lrp


@dataclass(frozen=True)
class Explainer:
    name: str
    title: str
    load: Callable[[], Callable]  # imports torch only when the explainer is wanted


EXPLAINERS = {
    explainer.name: explainer
    for explainer in (
        Explainer("grad", "Gradient", _grad),
        Explainer("gradcam", "Grad-CAM", _gradcam),
        Explainer("lrp", "LRP (z+)", _lrp),
    )
}
