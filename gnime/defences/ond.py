"""OND: adversarial noise. It is in the paper's table, but no definition of it was found. This one is ours."""

import torch
from torch import Tensor

from . import DefenceInputs, Protect
from .noise import row_noise


def ond(inputs: DefenceInputs, steps: int = 10) -> Protect:
    """Noise with GNIME's distortion that maximises the error of a frozen inverter, per image. Not clipped to [0, 1].

    It is found by `steps` steps of projected gradient ascent on the sphere of that distortion (Madry et al., 2018).
    """

    def protect(explanation: Tensor, prediction: Tensor, image: Tensor, rows: range) -> Tensor:
        radius = (inputs.variance * explanation[0].numel()) ** 0.5
        noise = _on_sphere(row_noise(inputs.seed, "ond", explanation, rows), radius)
        for _ in range(steps):
            with torch.enable_grad():
                noise.requires_grad_()
                reconstruction = inputs.frozen_inverter(explanation + noise, prediction)
                (ascent,) = torch.autograd.grad((reconstruction - image).square().sum(), noise)
            noise = _on_sphere(noise.detach() + _on_sphere(ascent, radius / 2), radius)
        return explanation + noise

    return protect


def _on_sphere(noise: Tensor, radius: float) -> Tensor:
    norm = noise.flatten(1).norm(dim=1).clamp(min=1e-12)
    return noise * (radius / norm).view(-1, 1, 1, 1)
