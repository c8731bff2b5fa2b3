"""Metrics of the images that an attacker recovers. Pure functions; images and reconstructions are (N, C, H, W) in [0, 1]."""

import math
from collections.abc import Sequence

import torch
from pytorch_msssim import ssim as _ssim
from torch import Tensor


def mse(image: Tensor, reconstruction: Tensor) -> Tensor:
    """Mean squared error per image, (N,)."""
    return (image - reconstruction).square().flatten(1).mean(1)


def psnr(image: Tensor, reconstruction: Tensor) -> Tensor:
    """Peak signal-to-noise ratio per image in dB, (N,), with a peak of 1. It is infinite for equal images."""
    return -10 * torch.log10(mse(image, reconstruction))


def ssim(image: Tensor, reconstruction: Tensor) -> Tensor:
    """Structural similarity per image, (N,), at most 1 (Wang et al., 2004).

    11x11 Gaussian window of sigma 1.5, valid windows only, mean over channels, as in `tf.image.ssim`. The sides of the images
    are at least 11 pixels.
    """
    return _ssim(image, reconstruction, data_range=1.0, size_average=False)


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """1.0 where the largest logit is that of the label, otherwise 0.0, (N,). logits (N, classes), labels (N,).

    The mean is the reclassification accuracy (victim) or TCA (evaluation classifier).
    """
    return (logits.argmax(1) == labels).float()


def squared_distance(one: Tensor, other: Tensor) -> Tensor:
    """Squared Euclidean distance of each row, (N,) float64. one, other: (N, ...) of the same shape."""
    return (one.double() - other.double()).square().flatten(1).sum(1)


def deepsim(features_image: Tensor, features_reconstruction: Tensor) -> float:
    """DeePSiM = exp(-||F(r) - F(x)||_F / N) in (0, 1], of features (N, F). Compare it only at equal N."""
    return deepsim_of(squared_distance(features_reconstruction, features_image).sum().item(), len(features_image))


def deepsim_of(squared: float, n: int) -> float:
    """DeePSiM from the sum of squared feature differences over n images."""
    return math.exp(-math.sqrt(squared) / n)


NEAR = 0.02  # beyond 0 and 1: a map that says nothing costs its attacker a little, whose networks end by chance [G]
NOTHING = 0.005  # residual leakage that is told as 0 %
CHANCE = 0.12  # residual leakage, which some hundred test images cannot tell from 0 [G]
LEAST_LEAK = 1 / 255**2 / 12  # MSE: the error of rounding to grey levels; shares of a smaller leak mean nothing


def residual_leakage(row: float, predmi: float, expmi: float) -> float | None:
    """(row - predmi) / (expmi - predmi), of mean squared errors: the share of the explanation's leak that a defence leaves.

    1 is the leak of the undefended explanation, 0 that of the prediction. None if the undefended attacker's error is not
    below PredMI's by `LEAST_LEAK`, because then the explanation does not leak.
    """
    return _share(row, predmi, expmi) if predmi - expmi > LEAST_LEAK else None


def _share(row, predmi, expmi):
    """The definition of residual leakage, of numbers or tensors of errors."""
    return (predmi - row) / (predmi - expmi)


def is_possible(residual: float | None, interval: Sequence[float] | None) -> bool:
    """Whether a residual leakage is from 0 to 1, or its interval reaches there, within `NEAR`. If not, attackers have
    not converged."""
    if residual is None:
        return False
    low, high = interval or (residual, residual)
    return low <= 1 + NEAR and high >= -NEAR


def bootstrap_interval(values: Tensor, seed: int = 0, draws: int = 1000, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval (low, high) of the mean of `values` (N,)."""
    return bootstrap_intervals([values], seed, draws, level)[0]


def bootstrap_intervals(parts: list[Tensor], seed: int = 0, draws: int = 1000,
                        level: float = 0.95) -> list[tuple[float, float]]:
    """`bootstrap_interval` of each part (N,): the same images are drawn for all."""
    return [_interval(means, level) for means in _resampled_means(parts, seed, draws)]


def paired_interval(row: Tensor, predmi: Tensor, expmi: Tensor, seed: int = 0, draws: int = 1000) -> list[float] | None:
    """95 % percentile bootstrap interval of `residual_leakage` over images: each draw takes the same images of all three.

    row, predmi, expmi: squared errors per image, (N,). None where the leak is not positive in every draw.
    """
    row, predmi, expmi = _resampled_means([row, predmi, expmi], seed, draws)
    if not (predmi - expmi > LEAST_LEAK).all():
        return None
    return list(_interval(_share(row, predmi, expmi), 0.95))


def _resampled_means(parts: list[Tensor], seed: int, draws: int) -> list[Tensor]:
    """Means (draws,) of each part (N,) over the same images, drawn with replacement."""
    generator, n = torch.Generator().manual_seed(seed), len(parts[0])
    values = torch.stack([part.double().cpu() for part in parts])
    drawn = (torch.randint(n, (n,), generator=generator) for _ in range(draws))
    return list(torch.stack([values.index_select(1, rows).mean(1) for rows in drawn], 1))


def _interval(means: Tensor, level: float) -> tuple[float, float]:
    low, high = torch.quantile(means, torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.double))
    return low.item(), high.item()
