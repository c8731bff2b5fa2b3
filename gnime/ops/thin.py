"""Convolutions from or to few channels on a CPU. The library's kernels leave most SIMD lanes idle there.

Both are a matrix product of pixels with all taps and a sum of what overlaps (`F.fold`), or the transpose of that.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..products import product


def thin_conv(x: Tensor, weight: Tensor) -> Tensor:
    """conv2d(x, weight, padding=1) for few outputs. x (N, I, H, W), weight (O, I, 3, 3) -> (N, O, H, W).

    A convolution gathers from neighbours. A transposed one spreads to them, so the taps are flipped.
    """
    return ThinTransposed.apply(x, weight.flip(2, 3).transpose(0, 1), 1)


class ThinTransposed(torch.autograd.Function):
    """conv_transpose2d(x, weight, stride=stride, padding=1) for few outputs.

    x (N, I, H, W), weight (I, O, k, k), k = stride + 2 -> (N, O, stride * H, stride * W).
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)
    def forward(ctx, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return _spread(product(_pixels(x), weight.flatten(1)), x.shape, stride)

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        dproducts = _gather(dy, ctx.stride)  # (N * H * W, O * k * k)
        dx = dweight = None
        if ctx.needs_input_grad[0]:
            dx = product(dproducts, weight.flatten(1).T).view(len(x), *x.shape[2:], x.shape[1]).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[1]:
            # Autograd would compute the transpose of this product, which takes many times as long.
            dweight = product(dproducts.T, _pixels(x)).T.reshape(weight.shape)  # (I, O, k, k)
        return dx, dweight, None


class ThinInputConv(torch.autograd.Function):
    """conv2d(x, weight, bias, padding=1) for few inputs. x (N, I, H, W), weight (O, I, 3, 3), bias (O,) -> (N, O, H, W).

    The library's forward pass is fast. The backward pass is what `ThinTransposed` does forward and for its weight.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=1)

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        dx = dweight = dbias = None
        if ctx.needs_input_grad[0]:
            dx = _spread(product(_pixels(dy), weight.flatten(1)), dy.shape, 1)  # (N, I, H, W)
        if ctx.needs_input_grad[1]:
            dweight = product(_gather(x, 1).T, _pixels(dy)).T.reshape(weight.shape)  # (O, I, 3, 3)
        if ctx.needs_input_grad[2]:
            dbias = dy.sum((0, 2, 3))
        return dx, dweight, dbias


def _pixels(maps: Tensor) -> Tensor:
    """(N, C, H, W) -> (N * H * W, C)."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)


def _spread(products: Tensor, shape: torch.Size, stride: int) -> Tensor:
    """(N * H * W, C * k * k) -> (N, C, stride * H, stride * W), with N, H, W of `shape`. Added up in 32 bits or more."""
    wide = products.to(torch.promote_types(products.dtype, torch.float32))
    wide = wide.view(shape[0], shape[2] * shape[3], products.shape[1]).transpose(1, 2)
    return F.fold(wide, (stride * shape[2], stride * shape[3]), stride + 2, padding=1, stride=stride).to(products.dtype)


def _gather(maps: Tensor, stride: int) -> Tensor:
    """The transpose of `_spread`: (N, C, stride * H, stride * W) -> (N * H * W, C * k * k)."""
    return F.unfold(maps, stride + 2, padding=1, stride=stride).transpose(1, 2).flatten(0, 1)
