"""Encoder and decoder of the inverters with fast formulations."""

from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor, nn

from ..models.inversion import Decoder, Encoder
from .convolution import conv
from .pooling import relu_and_pool
from .upsampling import spread_conv, upsample_conv


class FastEncoder(Encoder):
    """Equals `Encoder`."""

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """As `Encoder.forward`."""
        skips = []
        for layer in self:
            skip, x = relu_and_pool(conv(x, layer.weight, layer.bias))  # (N, w/k, k, k), (N, w/k, k/2, k/2)
            skips.append(skip)
        return x, skips


class FastDecoder(Decoder):
    """Equals `Decoder`. Upsampled maps and concatenations are not computed."""

    def forward(self, x: Tensor, skips: Iterable[Tensor] = ()) -> Tensor:
        """As `Decoder.forward`."""
        skips = list(skips)
        for i, layer in enumerate(self):
            x = _upsample_merge_conv(layer, x, skips.pop() if skips else None)  # (N, w/2k, k, k)
            x = x if i == len(self) - 1 else F.relu(x, inplace=True)
        return x


def _upsample_merge_conv(layer: nn.Conv2d, x: Tensor, skip: Tensor | None) -> Tensor:
    """layer(cat[nearest upsampling of x, skip]). x (N, C, k/2, k/2), or (N, C, 1, 1) for k = 4; skip (N, C', k, k).

    A convolution is linear in its input channels, so the results for x and for the skip are computed apart and added.
    """
    upsample = spread_conv if x.shape[2] == 1 else upsample_conv
    if skip is None:
        return upsample(x, layer.weight, layer.bias)
    parts = layer.weight.permute(0, 2, 3, 1).split([x.shape[1], skip.shape[1]], 3)  # so that gradients are channels last, too
    for_x, for_skip = (part.permute(0, 3, 1, 2) for part in parts)
    return conv(skip, for_skip).add_(upsample(x, for_x, layer.bias))
