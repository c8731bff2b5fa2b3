"""The noise injector and the two-player step that trains it (paper, section 3; METHOD "Training the injector")."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .inversion import ExpMI


class Injector(nn.Module):
    """Explanation in, protected explanation out: e' = clip(N((e - m) / d, y) * d + m, 0, 1).

    Args:
        channels, size: of the explanation, (channels, size, size), values in [0, 1].
        classes: length of the prediction (logits).
        width: of the ExpMI-shaped network N.
        mean, std: m and d, scalars of the defender's explanations.
    """

    def __init__(self, channels: int, size: int, classes: int, width: int = 2048, mean: float = 0.0, std: float = 1.0):
        super().__init__()
        self.network = ExpMI(channels, size, classes, channels, size, width)
        self.register_buffer("mean", torch.tensor(float(mean)))
        self.register_buffer("std", torch.tensor(float(std)))

    def standardise(self, explanation: Tensor) -> Tensor:
        return (explanation - self.mean) / self.std

    def destandardise(self, explanation_std: Tensor) -> Tensor:
        return (explanation_std * self.std + self.mean).clamp(0, 1)

    def forward(self, explanation: Tensor, prediction: Tensor) -> Tensor:
        """explanation (N, K, S, S) in [0, 1], prediction (N, classes) logits. Returns e', shaped and ranged alike."""
        return self.destandardise(self.network(self.standardise(explanation), prediction).float())


@dataclass
class Losses:
    """Scalars of one step: D, V and the inverter's loss V + C, C the inversion of clean explanations."""

    distortion: Tensor
    inversion: Tensor
    inverter: Tensor


def two_player_step(injector: Injector, inverter: nn.Module, explanation: Tensor, prediction: Tensor, image: Tensor,
                    weight: float, official: bool = False, share: float = 1.0) -> Losses:
    """Adds to `.grad`: of the inverter, the gradient of V + C; of the injector, of D - weight * V.

    One backward pass through the inverter serves both players: it leaves dV/de' on the protected explanation, and the
    injector goes on from there with the sign turned.

    Args:
        explanation (N, K, S, S) and image (N, C, T, T) in [0, 1]; prediction (N, classes) logits.
        weight: a, what the injector gives for the attacker's error.
        official: the clean explanation enters the inverter standardised, as in the authors' release.
        share: factor on every loss, for batches that are parts of a larger one.
    """
    clean_std = injector.standardise(explanation)
    protected_std = injector.network(clean_std, prediction).float()
    protected = injector.destandardise(protected_std)
    distortion = (protected_std - clean_std).square().mean()  # D

    seen = protected.detach().requires_grad_()
    n = len(image)
    clean = clean_std if official else explanation
    inverted = inverter(torch.cat([seen, clean]), torch.cat([prediction, prediction])).float()
    inversion = (inverted[:n] - image).square().mean()  # V
    inverter_loss = inversion + (inverted[n:] - image).square().mean()  # V + C
    (inverter_loss * share).backward()  # C does not depend on e': seen.grad is dV/de'
    torch.autograd.backward([distortion * share, protected], [None, -weight * seen.grad])
    return Losses(distortion.detach(), inversion.detach(), inverter_loss.detach())
