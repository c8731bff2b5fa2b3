"""PredMI and ExpMI: the networks that reconstruct an image from a prediction and an explanation (Zhao et al., ICCV 2021)."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sides(first: int, last: int) -> list[int]:
    """The powers of two from `first` to `last`, both included, none below 4: sides(4, 16) is [4, 8, 16]."""
    return [side for k in range(2, 16) if first <= (side := 2**k) <= last]


def initialise(network: nn.Module) -> None:
    """Glorot-uniform weights, zero biases (METHOD "Inversion networks")."""
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)


class Encoder(nn.ModuleList):
    """Convolutions 3x3, each followed by ReLU and 2x2 max pooling."""

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """x (N, C, S, S). Returns the last pooling (N, C', 2, 2), and the map before each pooling: the skips, largest first."""
        skips = []
        for layer in self:
            x = F.relu(layer(x))  # (N, w/k, k, k)
            skips.append(x)
            x = F.max_pool2d(x, 2)  # (N, w/k, k/2, k/2)
        return x, skips


class Decoder(nn.ModuleList):
    """Convolutions 3x3, each after nearest upsampling (x4 the first time, then x2) and, where there is one, a skip's
    concatenation. ReLU follows each but the last."""

    def forward(self, x: Tensor, skips: Iterable[Tensor] = ()) -> Tensor:
        """x (N, C, 1, 1); skips (N, C', k, k), largest first, the last with k = 4. Returns (N, channels, T, T), linear."""
        skips = list(skips)
        for i, layer in enumerate(self):
            x = F.interpolate(x, scale_factor=2 if i else 4)  # (N, C, k, k)
            x = torch.cat([x, skips.pop()], 1) if skips else x  # (N, C + C', k, k)
            x = layer(x)  # (N, w/2k, k, k)
            x = x if i == len(self) - 1 else F.relu(x)
        return x


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
        self.decoder = Decoder()
        for side in sides(4, size):
            above = channels if side == size else 2 * width // side
            self.decoder.append(nn.Conv2d(below, above, 3, padding=1))
            below = above
        initialise(self)

    def forward(self, explanation: Tensor | None, prediction: Tensor) -> Tensor:
        """prediction (N, classes); the explanation is ignored. Returns (N, channels, size, size), linear."""
        x = F.relu(self.dense(prediction))  # (N, w/2)
        return self.decoder(x[:, :, None, None])  # (N, C, T, T)


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
        self.encoder, self.decoder = Encoder(), Decoder()
        below, skips = explanation_channels, {}
        for side in reversed(sides(4, explanation_size)):
            self.encoder.append(nn.Conv2d(below, width // side, 3, padding=1))
            below = skips[side] = width // side
        self.code = nn.Linear(below * 4, 64)
        self.bottleneck = nn.Linear(64 + explanation_channels * explanation_size**2 + classes, width // 4)
        below = width // 4
        for side in sides(4, size):
            above = channels if side == size else width // (2 * side)
            self.decoder.append(nn.Conv2d(below + skips.get(side, 0), above, 3, padding=1))
            below = above
        initialise(self)

    def forward(self, explanation: Tensor, prediction: Tensor) -> Tensor:
        """explanation (N, K, S, S), prediction (N, classes). Returns (N, channels, size, size), linear."""
        x, skips = self.encoder(explanation)  # (N, w/4, 2, 2)
        code = F.relu(self.code(x.flatten(1)))  # (N, 64)
        together = torch.cat([code, explanation.flatten(1), prediction], 1)  # (N, 64 + K S S + classes)
        x = F.relu(self.bottleneck(together))  # (N, w/4)
        return self.decoder(x[:, :, None, None], skips)  # (N, C, T, T)


class DenseExpMI(ExpMI):
    """ExpMI behind a dense layer from every pixel to every pixel, one for all channels.

    A convolution cannot undo a permutation of the pixels, although it is invertible; this dense layer can. Ours, not the
    paper's. Arguments as ExpMI's.
    """

    def __init__(self, explanation_channels: int, explanation_size: int, *rest: int, **named: int):
        super().__init__(explanation_channels, explanation_size, *rest, **named)
        self.front = nn.Linear(explanation_size**2, explanation_size**2)
        initialise(self.front)

    def forward(self, explanation: Tensor, prediction: Tensor) -> Tensor:
        """Shapes as ExpMI's."""
        sorted_pixels = self.front(explanation.flatten(2)).view(explanation.shape)  # (N, K, S, S)
        return super().forward(sorted_pixels, prediction)


class CentredExpMI(ExpMI):
    """ExpMI that subtracts the explanations' mean from its input. Ours, not the paper's.

    The paper's attacker takes explanations as they are, and learns slowly where most of their values are far from zero.
    `1 - e` then looks like a defence. For this attacker `1 - e` is e with its sign changed.

    Args:
        mean: scalar, of the explanations it is trained on; other arguments as ExpMI's.
    """

    def __init__(self, *shapes: int, mean: float = 0.0, **named: int):
        super().__init__(*shapes, **named)
        self.register_buffer("mean", torch.tensor(float(mean)))

    def forward(self, explanation: Tensor, prediction: Tensor) -> Tensor:
        """Shapes as ExpMI's."""
        return super().forward(explanation - self.mean, prediction)
