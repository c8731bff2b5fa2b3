"""The noise injector and the two-player step that trains it (paper, section 3; docs/method.md "Training the injector")."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .inversion import ExpMI


class Injector(nn.Module):
    """The noise injector. It maps an explanation e to the protected one, e' = clip(N((e - m) / d, y) * d + m, 0, 1).

    Args:
        channels, size: an explanation is (channels, size, size), values in [0, 1].
        classes: number of logits of a prediction.
        width: of N, an ExpMI whose output has the explanation's shape.
        mean, std: m and d, mean and standard deviation of the defender's explanations, scalars; std is not 0.
    """

    def __init__(self, channels: int, size: int, classes: int, width: int = 2048, mean: float = 0.0, std: float = 1.0):
        super().__init__()
        self.network = ExpMI(channels, size, classes, channels, size, width)
        self.register_buffer("mean", torch.tensor(float(mean)))
        self.register_buffer("std", torch.tensor(float(std)))

    def standardise(self, explanation: Tensor) -> Tensor:
        """e -> z = (e - m) / d, of any shape."""
        return (explanation - self.mean) / self.std

    def destandardise(self, explanation_std: Tensor) -> Tensor:
        """z' -> e' = clip(z' * d + m, 0, 1), of any shape."""
        return (explanation_std * self.std + self.mean).clamp(0, 1)

    def forward(self, explanation: Tensor, prediction: Tensor) -> Tensor:
        """explanation (N, K, S, S) in [0, 1], prediction (N, classes) logits. Returns e' (N, K, S, S) in [0, 1], float32."""
        return self.destandardise(self.network(self.standardise(explanation), prediction).float())


@dataclass
class Losses:
    """The losses of one step, scalars: D, V and the inverter's loss V + C. C is the inversion loss of clean explanations."""

    distortion: Tensor
    inversion: Tensor
    inverter: Tensor


def two_player_step(injector: Injector, inverter: nn.Module, batch: Sequence[Tensor], inversion_weight: float,
                    official: bool = False, share: float = 1.0) -> Losses:
    """Adds to `.grad`: in the inverter the gradient of V + C, in the injector that of D - inversion_weight * V.

    One backward pass through the inverter is enough. It also computes dV/de', the gradient at the protected explanation, and
    the injector's backward pass starts from -inversion_weight * dV/de'.

    Args:
        batch: explanation (N, K, S, S) in [0, 1], prediction (N, classes) logits, image (N, C, T, T) in [0, 1].
        inversion_weight: a in docs/method.md "Training the injector".
        official: whether the clean explanation enters the inverter standardised, as in the authors' release.
        share: factor of all gradients: the batch's share of the batch of all processes.
    """
    explanation, prediction, image = batch
    clean_std = injector.standardise(explanation)  # z (N, K, S, S)
    protected_std = injector.network(clean_std, prediction).float()  # z' (N, K, S, S)
    protected = injector.destandardise(protected_std)  # e' (N, K, S, S)
    distortion = (protected_std - clean_std).square().mean()  # D

    detached = protected.detach().requires_grad_()
    clean = clean_std if official else explanation
    inverted = inverter(torch.cat([detached, clean]), torch.cat([prediction, prediction])).float()  # (2 N, C, T, T)
    of_protected, of_clean = inverted.chunk(2)  # (N, C, T, T) each
    inversion = (of_protected - image).square().mean()  # V
    inverter_loss = inversion + (of_clean - image).square().mean()  # V + C
    (inverter_loss * share).backward()  # C does not depend on e', so detached.grad is dV/de'
    torch.autograd.backward([distortion * share, protected], [None, -inversion_weight * detached.grad])
    return Losses(distortion.detach(), inversion.detach(), inverter_loss.detach())
