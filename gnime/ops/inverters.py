"""Encoder and decoder of the inverters, by the fast formulations."""

from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor, nn

from ..models.inversion import Decoder, Encoder
from .convolution import conv
from .pooling import relu_and_pool
from .upsampling import spread_conv, upsample_conv


class FastEncoder(Encoder):
    """Computes what `Encoder` computes."""

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Shapes as `Encoder.forward`'s."""
        skips = []
        for layer in self:
            skip, x = relu_and_pool(conv(x, layer.weight, layer.bias))  # (N, w/k, k, k), (N, w/k, k/2, k/2)
            skips.append(skip)
        return x, skips


class FastDecoder(Decoder):
    """Computes what `Decoder` computes, without the upsampled maps and without concatenation."""

    def forward(self, x: Tensor, skips: Iterable[Tensor] = ()) -> Tensor:
        """Shapes as `Decoder.forward`'s."""
        skips = list(skips)
        for i, layer in enumerate(self):
            x = _upsample_merge_conv(layer, x, skips.pop() if skips else None)  # (N, w/2k, k, k)
            x = x if i == len(self) - 1 else F.relu(x, inplace=True)
        return x


def _upsample_merge_conv(layer: nn.Conv2d, x: Tensor, skip: Tensor | None) -> Tensor:
    """layer(cat[nearest upsampling of x, skip]). x (N, C, k/2, k/2), or (N, C, 1, 1) for k = 4; skip (N, C', k, k).

    A convolution is linear: its weight splits into the part for x and the part for the skip, and the two results are added.
    """
    grow = spread_conv if x.shape[2] == 1 else upsample_conv
    if skip is None:
        return grow(x, layer.weight, layer.bias)
    for_x, for_skip = layer.weight.split([x.shape[1], skip.shape[1]], 1)
    return conv(skip, for_skip).add_(grow(x, for_x, layer.bias))
