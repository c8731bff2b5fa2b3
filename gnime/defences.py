"""Defences: an explanation in, what the service sends out instead. Deterministic for given rows, so that a service
cannot be asked twice for another draw."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .models.injector import Injector
from .runtime import generator, permutation

Defence = Callable[[Tensor, Tensor, Tensor, range], Tensor]  # explanations, predictions, images, rows -> explanations

OND_STEPS = 10
BLOCK = 256  # rows whose noise is drawn together


@dataclass
class Means:
    """What defences are built from; a defence uses what it needs.

    Attributes:
        seed: of noise and permutation.
        injector: the trained noise injector.
        variance: mean squared distortion of GNIME on the test set; RND and OND distort as much.
        inverter, inverter_digest: an ExpMI trained on the defender's half, frozen, and its file's identity.
        class_means: (classes, K, S, S) mean explanation of the defender's images by predicted class.
    """

    seed: int
    injector: Injector | None = None
    variance: float | None = None
    inverter: nn.Module | None = None
    inverter_digest: str = ""
    class_means: Tensor | None = None


def none(means: Means) -> Defence:
    """The explanation as it is."""
    return lambda explanation, prediction, image, rows: explanation


def rnd(means: Means) -> Defence:
    """Gaussian noise of GNIME's distortion, one draw per image, not clipped (paper, section 4)."""

    def protect(explanation: Tensor, prediction: Tensor, image: Tensor, rows: range) -> Tensor:
        return explanation + means.variance**0.5 * _noise(means.seed, "rnd", explanation, rows)

    return protect


def _noise(seed: int, purpose: str, like: Tensor, rows: range) -> Tensor:
    """Normal numbers shaped like the explanations of these rows; a row's are the same whatever rows it comes with."""
    first = rows.start - rows.start % BLOCK
    drawn = torch.cat([torch.randn(BLOCK, *like.shape[1:], generator=generator(seed, purpose, start))
                       for start in range(first, max(rows.stop, first + 1), BLOCK)])
    return drawn[rows.start - first : rows.stop - first].to(like.device)


def ond(means: Means) -> Defence:
    """Per image, the perturbation that hurts a frozen inverter most, of GNIME's distortion; not clipped.

    Projected gradient ascent on the sphere of that distortion. The paper's table has an OND but no definition was
    found; this one is ours.
    """

    def protect(explanation: Tensor, prediction: Tensor, image: Tensor, rows: range) -> Tensor:
        radius = (means.variance * explanation[0].numel()) ** 0.5
        noise = _on_sphere(_noise(means.seed, "ond", explanation, rows), radius)
        for _ in range(OND_STEPS):
            with torch.enable_grad():
                noise.requires_grad_()
                found = means.inverter(explanation + noise, prediction)
                (ascent,) = torch.autograd.grad((found - image).square().sum(), noise)
            noise = _on_sphere(noise.detach() + _on_sphere(ascent, radius / 2), radius)
        return explanation + noise

    return protect


def _on_sphere(noise: Tensor, radius: float) -> Tensor:
    norm = noise.flatten(1).norm(dim=1).clamp(min=1e-12)
    return noise * (radius / norm).view(-1, 1, 1, 1)


def gnime(means: Means) -> Defence:
    """The noise injector's explanation (paper, section 3)."""
    return lambda explanation, prediction, image, rows: means.injector(explanation, prediction)


def negative(means: Means) -> Defence:
    """1 - e: distorts much and hides nothing. A sound evaluation finds all of the leak in it."""
    return lambda explanation, prediction, image, rows: 1 - explanation


def permuted(means: Means) -> Defence:
    """The pixels in one fixed, secret order: nothing is lost, but a convolution no longer sees neighbours."""

    def protect(explanation: Tensor, prediction: Tensor, image: Tensor, rows: range) -> Tensor:
        pixels = explanation.flatten(2)
        order = permutation(pixels.shape[2], means.seed, "pixels").to(pixels.device)
        return pixels[:, :, order].view(explanation.shape)

    return protect


def class_mean(means: Means) -> Defence:
    """The mean explanation of the predicted class: adds nothing to the prediction, so leaks no more than PredMI."""
    return lambda explanation, prediction, image, rows: means.class_means[prediction.argmax(1)]


def blank(means: Means) -> Defence:
    """Nothing at all: what its attacker recovers, the paper's attacker recovers from the prediction alone."""
    return lambda explanation, prediction, image, rows: torch.zeros_like(explanation)


DEFENCES = {"none": none, "rnd": rnd, "ond": ond, "gnime": gnime, "negative": negative, "permutation": permuted,
            "class-mean": class_mean, "blank": blank}
