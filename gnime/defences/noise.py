"""RND: Gaussian noise (paper, section 4)."""

import torch
from torch import Tensor, nn

from ..batches import iter_batches
from ..data import AttackerData
from ..device import Device, full_fp32
from ..system import generator
from . import DefenceInputs, Protect

DRAWN_TOGETHER = 256  # rows whose noise is drawn from one generator


def rnd(inputs: DefenceInputs, level: float = 1.0, distortion: float | None = None) -> Protect:
    """Gaussian noise of variance `distortion`, or `level` times that of GNIME. One draw per image, not clipped to [0, 1]."""
    variance = level * inputs.variance if distortion is None else distortion

    def protect(explanation: Tensor, prediction: Tensor, image: Tensor, rows: range) -> Tensor:
        return explanation + variance**0.5 * row_noise(inputs.seed, "rnd", explanation, rows)

    return protect


def mean_distortion(injector: nn.Module, shown: AttackerData, device: Device) -> float:
    """Mean squared distortion of an injector over the test set, in 32-bit arithmetic."""
    total = 0.0
    with full_fp32(), torch.no_grad():
        for _, (clean, prediction) in iter_batches([shown.explanations, shown.predictions], shown.test, device.torch):
            total += (injector(clean, prediction) - clean).square().flatten(1).mean(1).double().sum().item()
    return total / len(shown.test)


def row_noise(seed: int, purpose: str, like: Tensor, rows: range) -> Tensor:
    """Standard normal numbers of the shape of `like`, the explanations of `rows`. They do not depend on the batch of a row."""
    first = rows.start - rows.start % DRAWN_TOGETHER
    drawn = torch.cat([torch.randn(DRAWN_TOGETHER, *like.shape[1:], generator=generator(seed, purpose, start))
                       for start in range(first, max(rows.stop, first + 1), DRAWN_TOGETHER)])
    return drawn[rows.start - first : rows.stop - first].to(like.device)
