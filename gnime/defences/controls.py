"""No defence, and controls that test the evaluation: fake defences that hide nothing, and a map that hides everything."""

import torch
from torch import Tensor

from ..system import permutation as permutation_of
from . import DefenceInputs, Protect


def none(inputs: DefenceInputs) -> Protect:
    """The explanation, unchanged."""
    return lambda explanation, prediction, image, rows: explanation


def negative(inputs: DefenceInputs) -> Protect:
    """1 - e. It distorts much and hides nothing, so in a sound evaluation its residual leakage is 1."""
    return lambda explanation, prediction, image, rows: 1 - explanation


def permutation(inputs: DefenceInputs) -> Protect:
    """The pixels in one fixed, secret order. No information is lost, but convolutions rely on the order of pixels."""

    def protect(explanation: Tensor, prediction: Tensor, image: Tensor, rows: range) -> Tensor:
        pixels = explanation.flatten(2)
        order = permutation_of(pixels.shape[2], inputs.seed, "pixels").to(pixels.device)
        return pixels[:, :, order].view(explanation.shape)

    return protect


def mix(inputs: DefenceInputs, share: float) -> Protect:
    """share e + (1 - share) E[e | class]: little of e is left to see, but the attacker scales it up again."""

    def protect(explanation: Tensor, prediction: Tensor, image: Tensor, rows: range) -> Tensor:
        return share * explanation + (1 - share) * inputs.class_means[prediction.argmax(1)]

    return protect


def blank(inputs: DefenceInputs) -> Protect:
    """Zeros. The attacker, an ExpMI, recovers the image from the prediction only."""
    return lambda explanation, prediction, image, rows: torch.zeros_like(explanation)
