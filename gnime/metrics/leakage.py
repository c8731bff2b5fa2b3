"""Images against their reconstructions. Pure functions; images (N, C, H, W) in [0, 1]."""

import math

import torch
from pytorch_msssim import ssim as _ssim
from torch import Tensor


def mse(image: Tensor, reconstruction: Tensor) -> Tensor:
    """Mean squared error per image, (N,)."""
    return (image - reconstruction).square().flatten(1).mean(1)


def psnr(image: Tensor, reconstruction: Tensor) -> Tensor:
    """Peak signal-to-noise ratio per image in dB, peak 1, (N,); infinite for equal images."""
    return -10 * torch.log10(mse(image, reconstruction))


def ssim(image: Tensor, reconstruction: Tensor) -> Tensor:
    """Structural similarity per image, (N,): 11x11 Gaussian window of sigma 1.5, valid windows only, mean over channels.

    What `tf.image.ssim` computes. Sides of at least 11 pixels.
    """
    return _ssim(image, reconstruction, data_range=1.0, size_average=False)


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """1.0 where the largest logit is the label's, (N,). Its mean is the reclassification accuracy, or TCA."""
    return (logits.argmax(1) == labels).float()


def squared_distance(one: Tensor, other: Tensor) -> Tensor:
    """Squared Euclidean distance per row, (N,) float64."""
    return (one.double() - other.double()).square().flatten(1).sum(1)


def deepsim(features_image: Tensor, features_reconstruction: Tensor) -> float:
    """DeePSiM = exp(-||F(r) - F(x)||_F / N) over (N, F) features; compare it only at equal N."""
    return deepsim_of(squared_distance(features_reconstruction, features_image).sum().item(), len(features_image))


def deepsim_of(squared: float, n: int) -> float:
    """DeePSiM from the sum of squared feature differences over n images."""
    return math.exp(-math.sqrt(squared) / n)


def residual_leakage(row: float, predmi: float, expmi: float) -> float | None:
    """(row - predmi) / (expmi - predmi), in MSE: the share of the explanation's leak that is left, 1 undefended, 0 none.

    None where the undefended attacker is no better than PredMI: then no leak was found.
    """
    return (predmi - row) / (predmi - expmi) if expmi < predmi else None


def bootstrap_interval(values: Tensor, seed: int = 0, draws: int = 1000, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values` (N,)."""
    (means,) = _resampled_means([values], seed, draws)
    return _interval(means, level)


def paired_interval(row: Tensor, predmi: Tensor, expmi: Tensor, seed: int = 0, draws: int = 1000) -> list[float] | None:
    """95 % percentile bootstrap interval of `residual_leakage` over images: each draw takes the same images of all three.

    row, predmi, expmi: squared errors per image, (N,). None where the leak is not positive in every draw.
    """
    row, predmi, expmi = _resampled_means([row, predmi, expmi], seed, draws)
    if not (expmi < predmi).all():
        return None
    return list(_interval((predmi - row) / (predmi - expmi), 0.95))


def _resampled_means(parts: list[Tensor], seed: int, draws: int) -> list[Tensor]:
    """Means (draws,) of each part (N,) over the same images, drawn with replacement."""
    generator, n = torch.Generator().manual_seed(seed), len(parts[0])
    parts = [part.double().cpu() for part in parts]
    rows = [torch.randint(n, (n,), generator=generator) for _ in range(draws)]
    return [torch.stack([part[drawn].mean() for drawn in rows]) for part in parts]


def _interval(means: Tensor, level: float) -> tuple[float, float]:
    low, high = torch.quantile(means, torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.double))
    return low.item(), high.item()
