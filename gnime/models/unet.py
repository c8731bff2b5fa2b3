"""An inverter of another architecture than the one that GNIME spars with: a U-Net of residual blocks. Ours, not the paper's."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .inversion import bring, initialise, sides, working_side

CODE = 128  # numbers that the prediction becomes
LEAST = 8  # channels of a block


class Block(nn.Module):
    """x + conv(silu(a(y) conv(silu(x)) + b(y))): residual (He et al., 2016), with FiLM (Perez et al., 2018).

    Without normalisation, which would take away how large the values are.
    """

    def __init__(self, below: int, above: int):
        super().__init__()
        self.first, self.second = (nn.Conv2d(inputs, above, 3, padding=1) for inputs in (below, above))
        self.film = nn.Linear(CODE, 2 * above)
        self.short = nn.Conv2d(below, above, 1) if below != above else nn.Identity()

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """x (N, below, k, k), code (N, CODE). Returns (N, above, k, k)."""
        scale, offset = self.film(code)[..., None, None].chunk(2, 1)  # (N, above, 1, 1) each
        inside = self.first(F.silu(x)) * (1 + scale) + offset
        return self.short(x) + self.second(F.silu(inside))


class UNet(nn.Module):
    """Reconstructs the image from explanation and prediction.

    The map is resized to the image's side. The prediction modulates every block and is a picture of 4x4 at the bottom, so that
    the network is a generator where the map says nothing.

    Args:
        explanation_channels: of a map, which is square and of any side.
        classes: length of the prediction.
        channels, size: an image is (channels, size, size). The blocks work at the next power of two; see `inversion.bring`.
        width: at side k, blocks have width / k channels, but at least 8.
        scales: mean and standard deviation of all numbers of the maps in training, then those of the predictions.
    """

    draws = True  # its loss draws shifts

    def __init__(self, explanation_channels: int, classes: int, channels: int, size: int, width: int = 2048,
                 scales: Sequence[float] = (0.0, 1.0, 0.0, 1.0)):
        super().__init__()
        self.explanation_channels, self.size, self.scales = explanation_channels, size, scales
        self.side = working_side(size)
        self.wide = {side: max(LEAST, width // side) for side in sides(4, self.side)}
        upwards = list(self.wide)[1:]  # 8, ..., T
        self.embed = nn.Linear(classes, CODE)
        self.stem = nn.Conv2d(explanation_channels + 1, self.wide[self.side], 3, padding=1)
        self.down = nn.ModuleList(Block(self.wide[side], self.wide[side // 2]) for side in reversed(upwards))
        self.picture = nn.Linear(CODE, self.wide[4] * 16)
        self.middle = Block(self.wide[4], self.wide[4])
        self.up = nn.ModuleList(Block(self.wide[side // 2] + self.wide[side // 2], self.wide[side]) for side in upwards)
        self.last = nn.Conv2d(self.wide[self.side], channels, 3, padding=1)
        initialise(self)

    def seen(self, explanation: Tensor | None, count: int) -> Tensor:
        """Standardised maps of the image's side, zeros where they are withheld, and a channel of ones, (N, K + 1, T, T).

        The ones show where there is a picture, after `seen` and the image were shifted.
        """
        ones = torch.ones(count, 1, self.size, self.size, device=self.last.weight.device)
        if explanation is None:
            return torch.cat([torch.zeros_like(ones).expand(-1, self.explanation_channels, -1, -1), ones], 1)
        mean, std = self.scales[:2]
        large = F.interpolate(explanation, ones.shape[2:], mode="bilinear", align_corners=False)
        return torch.cat([(large - mean) / (std or 1.0), ones], 1)

    def reconstruct(self, seen: Tensor, prediction: Tensor) -> Tensor:
        """seen (N, K + 1, T, T), prediction (N, classes). Returns (N, channels, T, T), linear."""
        mean, std = self.scales[2:]
        code = F.silu(self.embed((prediction - mean) / (std or 1.0)))  # (N, CODE)
        x, skips = self.stem(bring(seen, self.side)), []  # (N, w/T, T, T)
        for block in self.down:
            x = block(x, code)  # (N, 2w/k, k, k)
            skips.append(x)
            x = F.avg_pool2d(x, 2)  # (N, 2w/k, k/2, k/2)
        x = self.middle(x + self.picture(code).view(-1, self.wide[4], 4, 4), code)  # (N, w/4, 4, 4)
        for block in self.up:
            x = block(torch.cat([F.interpolate(x, scale_factor=2.0), skips.pop()], 1), code)  # (N, w/k, k, k)
        return bring(self.last(F.silu(x)), self.size)  # (N, C, T, T)

    def forward(self, explanation: Tensor | None, prediction: Tensor) -> Tensor:
        """explanation (N, K, S, S) or None, prediction (N, classes). Returns (N, channels, size, size), linear."""
        return self.reconstruct(self.seen(explanation, len(prediction)), prediction)
