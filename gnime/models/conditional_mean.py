"""E[explanation | prediction]: the class's mean map and a kernel regression on the logits (docs/method.md "Defences
whose leak is bounded")."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ConditionalMean(nn.Module):
    """g(y) = clip(m[argmax y] + sum_j k(z, z_j) a_j, 0, 1), with k(z, z') = exp(-|z - z'|^2 / 2 h^2).

    z is y standardised and divided by the square root of the number of classes. `gnime.defences.cond_mean` fits the buffers:
    m `means`, z_j `centres`, a_j `coefficients`, h `width`. The sum is float64, because its terms can be a thousand times as
    large as it is.

    Args:
        shape: of one map, (K, S, S).
        classes: length of the prediction (logits).
        centres: number of z_j.
    """

    needs_explanation = False

    def __init__(self, shape: Sequence[int], classes: int, centres: int):
        super().__init__()
        self.shape = tuple(shape)
        self.register_buffer("means", torch.zeros(classes, *shape))
        self.register_buffer("offset", torch.zeros(classes))
        self.register_buffer("scale", torch.ones(classes))
        self.register_buffer("width", torch.ones(()))
        self.register_buffer("centres", torch.zeros(centres, classes))
        self.register_buffer("coefficients", torch.zeros(centres, self.means[0].numel(), dtype=torch.float64))

    def forward(self, explanation: Tensor | None, prediction: Tensor) -> Tensor:
        """prediction (N, classes) logits; the explanation is ignored. Returns g(y) (N, K, S, S) in [0, 1]."""
        z = (prediction.double() - self.offset) / self.scale  # (N, classes)
        weights = gaussian(z, self.centres.double(), self.width.double())  # (N, centres)
        rest = weights @ self.coefficients.double()  # (N, K S S)
        return (self.means[prediction.argmax(1)] + rest.to(self.means).view(-1, *self.shape)).clamp(0, 1)


def gaussian(one: Tensor, other: Tensor, width: Tensor | float) -> Tensor:
    """exp(-|a - b|^2 / 2 width^2) of every row of `one` (N, D) with every row of `other` (M, D), (N, M)."""
    squares = one.square().sum(1, keepdim=True) + other.square().sum(1) - 2 * one @ other.T
    return torch.exp(squares / (-2 * width**2))
