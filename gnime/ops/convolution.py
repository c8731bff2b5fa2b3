"""A 3x3 convolution by the formulation that is fastest for its shape and device."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .sizes import THIN
from .thin import ThinInputConv, thin_conv
from .winograd import Winograd

THIN_INPUT = 8  # input channels below which the library's backward pass is slow; in 16 bits, only where it goes to the input
WIDE = 1 << 13  # inputs times outputs from which Winograd's transforms of maps cost less than the products they save
WIDE_BF16 = 1 << 17  # the same under autocast, where the library's products are twice as fast and Winograd's stay as they are
MANY = 64  # 4x4 tiles from which his transforms of weights do


def conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """conv2d(x, weight, bias, padding=1). x (N, I, H, W), weight (O, I, 3, 3) -> (N, O, H, W).

    On a GPU the library's kernels are the fastest. Under autocast on a CPU, Winograd's transforms and products are still of
    32-bit numbers, since half the digits are too few for them.
    """
    if x.device.type != "cpu":
        return F.conv2d(x, weight, bias, padding=1)
    outputs, inputs = weight.shape[:2]
    if outputs < THIN < inputs:
        y = thin_conv(x, weight)
        return y if bias is None else y + bias.to(y.dtype)[:, None, None]
    autocast = torch.is_autocast_enabled("cpu")
    if inputs < THIN_INPUT and bias is not None and (x.requires_grad or not autocast):
        return ThinInputConv.apply(x, weight, bias)
    n, _, h, w = x.shape
    wide = inputs * outputs >= (WIDE_BF16 if autocast else WIDE) and n * h * w >= 16 * MANY
    if not wide or h % 4 or w % 4 or weight.dtype not in (torch.float32, torch.float64):
        return F.conv2d(x, weight, bias, padding=1)
    with torch.autocast("cpu", enabled=False):
        y = Winograd.apply(x.to(weight.dtype), weight, bias)
    return y.to(torch.bfloat16) if autocast else y
