"""Defences: an explanation in, what the service sends out instead. Deterministic for given rows, so that a service
cannot be asked twice for another draw."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .injector import Injector
from .runtime import generator

Defence = Callable[[Tensor, Tensor, range], Tensor]  # explanations, predictions, their rows -> explanations


@dataclass
class Means:
    """What defences are built from.

    Attributes:
        seed: of the noise.
        injector: the trained noise injector, or None.
        variance: mean squared distortion of GNIME on the test set; the noise of RND has it.
    """

    seed: int
    injector: Injector | None = None
    variance: float | None = None
    extra: dict = field(default_factory=dict)


def none(means: Means) -> Defence:
    """The explanation as it is."""
    return lambda explanation, prediction, rows: explanation


def rnd(means: Means) -> Defence:
    """Gaussian noise of GNIME's distortion, one draw per image, not clipped (paper, section 4)."""

    def protect(explanation: Tensor, prediction: Tensor, rows: range) -> Tensor:
        noise = torch.randn(explanation.shape, generator=generator(means.seed, "rnd", rows.start))
        return explanation + means.variance**0.5 * noise.to(explanation.device)

    return protect


def gnime(means: Means) -> Defence:
    """The noise injector's explanation (paper, section 3)."""
    return lambda explanation, prediction, rows: means.injector(explanation, prediction)


DEFENCES = {"none": none, "rnd": rnd, "gnime": gnime}
