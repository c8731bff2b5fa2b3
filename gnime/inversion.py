"""PredMI and ExpMI: the networks that invert predictions and explanations (Zhao et al., ICCV 2021).

Both grow an image from one pixel by "nearest x2, convolution 3x3". The pixels of an upsampled map are copies, so that
pair makes most of its products several times over. `convolutions` makes each once; parameters and results are the pair's.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .convolutions import Conv, conv, relu_and_pool, spread_conv, upsample_conv


def sides(first: int, last: int) -> list[int]:
    """[4, 8, 16] for (4, 16): powers of two between the two, both included."""
    return [side for k in range(2, 16) if first <= (side := 2**k) <= last]


class PredMI(nn.Module):
    """Image from the prediction alone.

    Args:
        classes: length of the prediction (logits).
        channels, size: of the image, (channels, size, size); size a power of two of at least 16.
        width: 2048 in the paper; the convolution at side k has 2 * width / k channels.
    """

    def __init__(self, classes: int, channels: int, size: int, width: int = 2048):
        super().__init__()
        below = width // 2
        self.dense = nn.Linear(classes, below)
        self.decoder = nn.ModuleList()
        for side in sides(4, size):
            above = channels if side == size else 2 * width // side
            self.decoder.append(Conv(below, above))
            below = above
        initialise(self)

    def forward(self, explanation: Tensor | None, prediction: Tensor) -> Tensor:
        """prediction (N, classes); the explanation is not looked at. Returns (N, channels, size, size), linear."""
        x = F.relu(self.dense(prediction))  # (N, w/2)
        return _grow(x[:, :, None, None], self.decoder, _predmi_conv)


def _predmi_conv(layer: Conv, x: Tensor) -> Tensor:
    grow = spread_conv if x.shape[2] == 1 else upsample_conv
    return grow(x, layer.weight, layer.bias)


def _grow(x: Tensor, decoder: nn.ModuleList, grow: Callable[[Conv, Tensor], Tensor]) -> Tensor:
    for layer in decoder[:-1]:
        x = F.relu(grow(layer, x), inplace=True)
    return grow(decoder[-1], x)


class ExpMI(nn.Module):
    """Image from explanation and prediction: a U-Net whose bottleneck sees the prediction.

    Args:
        explanation_channels, explanation_size: of the explanation, (channels, side, side); side a power of two >= 4.
        classes: length of the prediction (logits).
        channels, size: of the image; size a power of two, at least the explanation's side.
        width: 2048 in the paper; encoder width / k, decoder width / 2k channels at side k.
    """

    def __init__(self, explanation_channels: int, explanation_size: int, classes: int, channels: int, size: int,
                 width: int = 2048):
        super().__init__()
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        below, skips = explanation_channels, {}
        for side in reversed(sides(4, explanation_size)):
            self.encoder.append(Conv(below, width // side))
            below = skips[side] = width // side
        self.code = nn.Linear(below * 4, 64)
        self.bottleneck = nn.Linear(64 + explanation_channels * explanation_size**2 + classes, width // 4)
        below = width // 4
        for side in sides(4, size):
            above = channels if side == size else width // (2 * side)
            self.decoder.append(Conv(below + skips.get(side, 0), above))
            below = above
        initialise(self)

    def forward(self, explanation: Tensor, prediction: Tensor) -> Tensor:
        """explanation (N, K, S, S), prediction (N, classes). Returns (N, channels, size, size), linear."""
        x, skips = explanation, []
        for layer in self.encoder:
            skip, x = relu_and_pool(layer(x), self.training)
            skips.append(skip)
        code = F.relu(self.code(x.flatten(1)))
        x = F.relu(self.bottleneck(torch.cat([code, explanation.flatten(1), prediction], 1)))
        return _grow(x[:, :, None, None], self.decoder, lambda layer, x: self._merge(layer, x, skips))

    @staticmethod
    def _merge(layer: Conv, x: Tensor, skips: list[Tensor]) -> Tensor:
        """The convolution over [upsampled x, skip]: the weight splits into the part that sees each."""
        grow = spread_conv if x.shape[2] == 1 else upsample_conv
        if not skips:
            return grow(x, layer.weight, layer.bias)
        below, beside = layer.weight.split([x.shape[1], layer.in_channels - x.shape[1]], 1)
        return conv(skips.pop(), beside).add_(grow(x, below, layer.bias))


class DenseExpMI(ExpMI):
    """ExpMI behind a dense layer from every pixel to every pixel, one for all channels.

    A convolutional attacker fails on shuffled pixels for want of skill, not of information; this one can sort them.
    Arguments as ExpMI's.
    """

    def __init__(self, explanation_channels: int, explanation_size: int, *rest: int, **named: int):
        super().__init__(explanation_channels, explanation_size, *rest, **named)
        self.front = nn.Linear(explanation_size**2, explanation_size**2)
        initialise(self.front)

    def forward(self, explanation: Tensor, prediction: Tensor) -> Tensor:
        sorted_pixels = self.front(explanation.flatten(2)).view(explanation.shape)
        return super().forward(sorted_pixels, prediction)


class CentredExpMI(ExpMI):
    """ExpMI that sees explanations of mean 0.

    The paper's attacker takes explanations as they are and learns slowly where most of their numbers are far from zero:
    `1 - e` looks like a defence to it. To this one it is e with the sign turned. `mean`: of the explanations that it is
    trained on, a scalar; other arguments as ExpMI's.
    """

    def __init__(self, *shapes: int, mean: float = 0.0, **named: int):
        super().__init__(*shapes, **named)
        self.register_buffer("mean", torch.tensor(float(mean)))

    def forward(self, explanation: Tensor, prediction: Tensor) -> Tensor:
        return super().forward(explanation - self.mean, prediction)


def initialise(network: nn.Module) -> None:
    """Glorot-uniform weights, zero biases (METHOD)."""
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
