"""What both forms of the z+ rule share: R_in = a * W+^T (R_out / (W+ a + eps)), W+ = max(W, 0).

`lrp._down` has the rule for the layers of a plain stack, `rules._zplus` for those of any other network.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..products import product

EPS = 1e-9
THIN = 8  # a convolution with fewer input channels leaves the library's transposed kernel idle SIMD lanes


class Geometry(NamedTuple):
    """Of a convolution, in the order of F.conv2d. padding may be "same" or "valid"."""

    stride: tuple[int, int]
    padding: tuple[int, int] | str
    dilation: tuple[int, int]
    groups: int


def shared_by(linear: Callable[[Tensor], Tensor], a: Tensor, relevance: Tensor) -> Tensor:
    """The rule for any linear map without negative weights, as pooling, by differentiating it. a: at least 0."""
    with torch.enable_grad():
        x = a.detach().requires_grad_()
        z = linear(x)
    share = relevance / ((linear(a) if a.requires_grad else z.detach()) + EPS)
    return torch.autograd.grad(z, x, share, create_graph=share.requires_grad)[0] * a


def average_pool(a: Tensor, relevance: Tensor, kernel: int | tuple, stride: int | tuple, padding: int | tuple,
                 ceil_mode: bool) -> Tensor:
    """a * unpool(R / (avgpool(a) + eps)). Unpooling, the gradient of average pooling, spreads an output over its window.

    May overwrite `relevance`.
    """
    if kernel in (2, (2, 2)) and stride in (2, (2, 2)) and padding in (0, (0, 0)) and a.shape[2] % 2 == a.shape[3] % 2 == 0:
        share = relevance.div_(F.avg_pool2d(a, 2).add_(EPS).mul_(4))
        windows = a.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # (N, C, H/2, 2, W/2, 2)
        return (windows * share[:, :, :, None, :, None]).flatten(4).flatten(2, 3)
    return shared_by(lambda x: F.avg_pool2d(x, kernel, stride, padding, ceil_mode), a, relevance)


def transposed(share: Tensor, weight: Tensor, geometry: Geometry, shape: torch.Size) -> Tensor:
    """W^T share, which is the gradient of the convolution with respect to its input. shape: of the input."""
    stride, padding, dilation, groups = geometry
    if isinstance(padding, str):  # "same" may pad the two sides differently
        with torch.enable_grad():
            x = share.new_zeros(shape, requires_grad=True)
            z = F.conv2d(x, weight, None, *geometry)
        return torch.autograd.grad(z, x, share, create_graph=share.requires_grad)[0]
    if shape[1] < THIN and groups == 1:
        products = product(weight.flatten(1).T, share.transpose(0, 1).flatten(1))  # (C * taps, N * outputs' pixels)
        products = products.view(len(products), len(share), share.shape[2:].numel()).transpose(0, 1)  # (N, C * taps, pixels)
        return F.fold(products, shape[2:], weight.shape[2:], dilation, padding, stride)
    axes = zip(shape[2:], share.shape[2:], stride, padding, dilation, weight.shape[2:], strict=True)
    rest = [size - ((out - 1) * step - 2 * pad + gap * (kernel - 1) + 1) for size, out, step, pad, gap, kernel in axes]
    return F.conv_transpose2d(share, weight, None, stride, padding, rest, groups, dilation)
