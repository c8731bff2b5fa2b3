"""A 3x3 convolution by the formulation that is fastest for its shape and device."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .sizes import THIN
from .stacked import StackedConv, stack_serves
from .thin import ThinInputConv, thin_conv
from .winograd import Winograd

THIN_INPUT = 8  # input channels below which the library's backward pass is slow; in 16 bits, only where it goes to the input
WIDE = 1 << 13  # inputs times outputs from which Winograd's transforms of maps cost less than the products they save
MANY = 64  # 4x4 tiles from which his transforms of weights do


def conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """conv2d(x, weight, bias, padding=1). x (N, I, H, W), weight (O, I, 3, 3) -> (N, O, H, W).

    On a GPU the library's kernels are the fastest. Winograd's transforms need more than the digits of 16 bits.
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
    if autocast and stack_serves(x):
        return StackedConv.apply(x, weight, bias)
    tiles = not autocast and not (h % 4 or w % 4) and n * h * w >= 16 * MANY
    if tiles and inputs * outputs >= WIDE and weight.dtype in (torch.float32, torch.float64):
        return Winograd.apply(x, weight, bias)
    return F.conv2d(x, weight, bias, padding=1)
