"""Rows that test the evaluation itself: no defence, fake defences that hide everything or nothing."""

import torch
from torch import Tensor

from ..system import permutation as permutation_of
from . import DefenceInputs, Protect


def none(inputs: DefenceInputs) -> Protect:
    """The explanation as it is."""
    return lambda explanation, prediction, image, rows: explanation


def negative(inputs: DefenceInputs) -> Protect:
    """1 - e: distorts much and hides nothing. A sound evaluation recovers the whole leak."""
    return lambda explanation, prediction, image, rows: 1 - explanation


def permutation(inputs: DefenceInputs) -> Protect:
    """The pixels in one fixed, secret order: nothing is lost, but neighbours are apart, which a convolution relies on."""

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
    """Zeros. Its attacker recovers what the paper's ExpMI recovers from the prediction alone."""
    return lambda explanation, prediction, image, rows: torch.zeros_like(explanation)
