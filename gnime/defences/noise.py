"""RND: Gaussian noise (paper, section 4)."""

import torch
from torch import Tensor

from ..system import generator
from . import DefenceInputs, Protect

DRAWN_TOGETHER = 256  # rows whose noise comes from one generator


def rnd(inputs: DefenceInputs, level: float = 1.0) -> Protect:
    """Noise of `level` times GNIME's distortion, one draw per image, not clipped."""

    def protect(explanation: Tensor, prediction: Tensor, image: Tensor, rows: range) -> Tensor:
        return explanation + (level * inputs.variance) ** 0.5 * row_noise(inputs.seed, "rnd", explanation, rows)

    return protect


def row_noise(seed: int, purpose: str, like: Tensor, rows: range) -> Tensor:
    """Normal numbers shaped like the explanations of these rows. A row's numbers do not depend on the rows beside it."""
    first = rows.start - rows.start % DRAWN_TOGETHER
    drawn = torch.cat([torch.randn(DRAWN_TOGETHER, *like.shape[1:], generator=generator(seed, purpose, start))
                       for start in range(first, max(rows.stop, first + 1), DRAWN_TOGETHER)])
    return drawn[rows.start - first : rows.stop - first].to(like.device)
