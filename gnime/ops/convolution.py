"""A 3x3 convolution, computed by the formulation that is fastest for its shape and device."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .sizes import THIN
from .thin import ThinConv
from .winograd import Winograd

WIDE = 1 << 13  # input channels times output channels; from here on, Winograd's algorithm saves more than its transforms cost
MANY = 64  # 4x4 tiles; from here on, the transform of the weights costs little


def conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """conv2d(x, weight, bias, padding=1). x (N, I, H, W), weight (O, I, 3, 3), bias (O,) or None -> (N, O, H, W).

    The library's kernels are the fastest on a GPU and under autocast.
    """
    if x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return F.conv2d(x, weight, bias, padding=1)
    outputs, inputs = weight.shape[:2]
    if outputs < THIN < inputs:
        y = ThinConv.apply(x, weight)
        return y if bias is None else y + bias[:, None, None]
    n, _, h, w = x.shape
    precise = x.dtype in (torch.float32, torch.float64)
    if precise and inputs * outputs >= WIDE and n * h * w >= 16 * MANY and h % 4 == w % 4 == 0:
        return Winograd.apply(x, weight, bias)
    return F.conv2d(x, weight, bias, padding=1)
