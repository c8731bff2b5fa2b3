"""Inverters: networks that reconstruct an image from a prediction and an explanation (Zhao et al., ICCV 2021)."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sides(first: int, last: int) -> list[int]:
    """The powers of two from `first` to `last`, both included, but none below 4. For example, sides(2, 16) is [4, 8, 16]."""
    return [side for k in range(2, 16) if first <= (side := 2**k) <= last]


def working_side(side: int) -> int:
    """The side at which a network works on pictures of `side` x `side`: the next power of two, at least 4."""
    return max(4, 1 << (side - 1).bit_length())


def bring(pictures: Tensor, side: int) -> Tensor:
    """(N, C, H, W) -> (N, C, side, side): bilinear, half-pixel centres. Pictures of that side are returned as they are.

    To a larger side this can be undone, with condition numbers below 17 a side up to 512. So nothing is lost on the way in.
    """
    if pictures.shape[2:] == (side, side):
        return pictures
    return F.interpolate(pictures, (side, side), mode="bilinear", align_corners=False)


def initialise(network: nn.Module) -> None:
    """Sets Glorot-uniform weights and zero biases, in place (docs/method.md "Inversion networks")."""
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)


class Encoder(nn.ModuleList):
    """3x3 convolutions, each followed by ReLU and 2x2 max pooling."""

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """x (N, C, S, S). Returns the last pooling (N, C', 2, 2), and the skips: the map before each pooling, largest first."""
        skips = []
        for layer in self:
            x = F.relu(layer(x))  # (N, w/k, k, k)
            skips.append(x)
            x = F.max_pool2d(x, 2)  # (N, w/k, k/2, k/2)
        return x, skips


class Decoder(nn.ModuleList):
    """3x3 convolutions. Before each one comes nearest upsampling (x4 first, then x2) and, if there is one, the concatenation
    of a skip; after each one but the last comes ReLU."""

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
    """Reconstructs the image from the prediction only.

    Args:
        classes: number of logits of a prediction.
        channels, size: an image is (channels, size, size). The decoder works at the next power of two; see `bring`.
        width: 2048 in the paper; the convolution at side k has 2 * width / k output channels, the last one `channels`.
    """

    def __init__(self, classes: int, channels: int, size: int, width: int = 2048):
        super().__init__()
        below = width // 2
        self.size = size
        self.dense = nn.Linear(classes, below)
        self.decoder = Decoder()
        for side in sides(4, working_side(size)):
            above = channels if side >= size else 2 * width // side
            self.decoder.append(nn.Conv2d(below, above, 3, padding=1))
            below = above
        initialise(self)

    def forward(self, explanation: Tensor | None, prediction: Tensor) -> Tensor:
        """prediction (N, classes); the explanation is ignored. Returns (N, channels, size, size), linear."""
        x = F.relu(self.dense(prediction))  # (N, w/2)
        return bring(self.decoder(x[..., None, None]), self.size)  # (N, C, T, T)


class ExpMI(nn.Module):
    """Reconstructs the image from explanation and prediction: a U-Net with the prediction as an input of its bottleneck.

    Args:
        explanation_channels, explanation_size: an explanation is (explanation_channels, explanation_size, explanation_size).
        classes: number of logits of a prediction.
        channels, size: an image is (channels, size, size). Encoder and decoder work at the next powers of two of both sides;
            see `bring`.
        width: 2048 in the paper; at side k, the encoder's convolution has width / k output channels, the decoder's width / 2k.
    """

    def __init__(self, explanation_channels: int, explanation_size: int, classes: int, channels: int, size: int,
                 width: int = 2048):
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder()
        self.size, self.explanation_side = size, working_side(explanation_size)
        below, skips = explanation_channels, {}
        for side in reversed(sides(4, self.explanation_side)):
            self.encoder.append(nn.Conv2d(below, width // side, 3, padding=1))
            below = skips[side] = width // side
        self.code = nn.Linear(below * 4, 64)
        self.bottleneck = nn.Linear(64 + explanation_channels * explanation_size**2 + classes, width // 4)
        below = width // 4
        for side in sides(4, working_side(size)):
            above = channels if side >= size else width // (2 * side)
            self.decoder.append(nn.Conv2d(below + skips.get(side, 0), above, 3, padding=1))
            below = above
        initialise(self)

    def forward(self, explanation: Tensor, prediction: Tensor) -> Tensor:
        """explanation (N, K, S, S), prediction (N, classes). Returns (N, channels, size, size), linear."""
        x, skips = self.encoder(bring(explanation, self.explanation_side))  # (N, w/4, 2, 2)
        code = F.relu(self.code(x.flatten(1)))  # (N, 64)
        together = torch.cat([code, explanation.flatten(1), prediction], 1)  # (N, 64 + K S S + classes)
        x = F.relu(self.bottleneck(together))  # (N, w/4)
        return bring(self.decoder(x[..., None, None], skips), self.size)  # (N, C, T, T)


class DenseExpMI(ExpMI):
    """ExpMI after a dense layer from all pixels to all pixels, the same for each channel. Ours, not the paper's.

    A convolution cannot undo a permutation of the pixels, although it is invertible. This dense layer can. The arguments are
    those of ExpMI.
    """

    def __init__(self, explanation_channels: int, explanation_size: int, *rest: int, **named: int):
        super().__init__(explanation_channels, explanation_size, *rest, **named)
        self.front = nn.Linear(explanation_size**2, explanation_size**2)
        initialise(self.front)

    def forward(self, explanation: Tensor, prediction: Tensor) -> Tensor:
        """Shapes as in `ExpMI.forward`."""
        sorted_pixels = self.front(explanation.flatten(2)).view(explanation.shape)  # (N, K, S, S)
        return super().forward(sorted_pixels, prediction)


class CentredExpMI(ExpMI):
    """ExpMI that subtracts the mean of the explanations from its input. Ours, not the paper's.

    ExpMI learns slowly if most values of its input are far from zero, so `1 - e` looks like a defence. With the mean
    subtracted, `1 - e` is e with its sign changed.

    Args:
        mean: of all values of the explanations in training, a scalar. The other arguments are those of ExpMI.
    """

    def __init__(self, *shapes: int, mean: float = 0.0, **named: int):
        super().__init__(*shapes, **named)
        self.register_buffer("mean", torch.tensor(float(mean)))

    def forward(self, explanation: Tensor, prediction: Tensor) -> Tensor:
        """Shapes as in `ExpMI.forward`."""
        return super().forward(explanation - self.mean, prediction)
