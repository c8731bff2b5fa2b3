"""RND: Gaussian noise (paper, section 4)."""

import torch
from torch import Tensor

from ..system import generator
from . import DefenceInputs, Protect

DRAWN_TOGETHER = 256  # rows whose noise is drawn from one generator


def rnd(inputs: DefenceInputs, level: float = 1.0) -> Protect:
    """Gaussian noise with a variance of `level` times GNIME's distortion. One draw per image, not clipped to [0, 1]."""

    def protect(explanation: Tensor, prediction: Tensor, image: Tensor, rows: range) -> Tensor:
        return explanation + (level * inputs.variance) ** 0.5 * row_noise(inputs.seed, "rnd", explanation, rows)

    return protect


def row_noise(seed: int, purpose: str, like: Tensor, rows: range) -> Tensor:
    """Standard normal numbers of the shape of `like`, the explanations of `rows`. They do not depend on the batch of a row."""
    first = rows.start - rows.start % DRAWN_TOGETHER
    drawn = torch.cat([torch.randn(DRAWN_TOGETHER, *like.shape[1:], generator=generator(seed, purpose, start))
                       for start in range(first, max(rows.stop, first + 1), DRAWN_TOGETHER)])
    return drawn[rows.start - first : rows.stop - first].to(like.device)
