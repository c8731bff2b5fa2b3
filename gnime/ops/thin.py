"""Convolutions from or to few channels on a CPU. The library's kernels leave most SIMD lanes idle there.

Both are a matrix product of all taps with the pixels and a sum of what overlaps, or the transpose of that. The products of a
tap are a map of their own, (C * k * k, N * H * W), so that the sums are of long rows.
"""

import itertools

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
        return _spread(x, weight, stride)

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        dx = dweight = None
        if ctx.needs_input_grad[0]:
            # `clone`, since with one channel `contiguous` would keep the strides that make the library slow.
            dy_last, weight_last = (t.clone(memory_format=torch.channels_last) for t in (dy, weight))
            dx = F.conv2d(dy_last, weight_last, stride=ctx.stride, padding=1)
        if ctx.needs_input_grad[1]:
            dweight = _taps_gradient(dy, x, ctx.stride)
        return dx, dweight, None


class ThinInputConv(torch.autograd.Function):
    """conv2d(x, weight, bias, padding=1) for few inputs. x (N, I, H, W), weight (O, I, 3, 3), bias (O,) -> (N, O, H, W).

    The library's forward pass is fast. The backward pass is what `ThinTransposed` does forward and for its weight. In 16 bits
    the library's gradient of the weight is fast too.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=1)

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        dx = _spread(dy, weight, 1) if needs_x else None
        if x.dtype == torch.bfloat16:
            return dx, *_library_gradients(x, dy, 1, needs_weight, needs_bias)
        return dx, _taps_gradient(x, dy, 1) if needs_weight else None, dy.sum((0, 2, 3)) if needs_bias else None


def _spread(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """conv_transpose2d(x, weight, stride=stride, padding=1), x and weight as in `ThinTransposed`. Sums of 32 bits or more."""
    n, _, h, w = x.shape
    outputs, k = weight.shape[1], weight.shape[2]
    products = product(weight.flatten(1).T, _pixels(x).T).view(outputs, k, k, n, h, w)
    y = x.new_zeros((outputs, n, stride * h + 2, stride * w + 2), dtype=torch.promote_types(x.dtype, torch.float32))
    for i, j in itertools.product(range(k), repeat=2):
        _met(y, i, j, h, w, stride).add_(products[:, i, j])
    return y[..., 1:-1, 1:-1].transpose(0, 1).to(x.dtype, memory_format=torch.contiguous_format, copy=True)


def _taps_gradient(y: Tensor, x: Tensor, stride: int) -> Tensor:
    """The gradient (I, O, k, k) of the weight of `_spread`, from y (N, O, stride * H, stride * W), the gradient of its output,
    and its input x (N, I, H, W)."""
    (n, inputs, h, w), outputs, k = x.shape, y.shape[1], stride + 2
    if x.dtype == torch.bfloat16:
        return _library_gradients(y, x, stride)[0]
    padded = F.pad(y, (1, 1, 1, 1)).transpose(0, 1)
    met = x.new_empty(outputs, k, k, n, h, w)
    for i, j in itertools.product(range(k), repeat=2):
        met[:, i, j] = _met(padded, i, j, h, w, stride)
    products = product(met.view(outputs * k * k, n * h * w), _pixels(x))
    return products.view(outputs, k, k, inputs).permute(3, 0, 1, 2)


def _library_gradients(x: Tensor, dy: Tensor, stride: int, weight: bool = True, bias: bool = False) -> list[Tensor | None]:
    """The gradients of weight and bias in conv2d(x, weight, bias, stride, padding=1), where wanted, by the library.

    x (N, I, stride * H, stride * W), dy (N, O, H, W). In 16 bits it is fast, provided that x and the weight have the strides of
    channels last even if they have one channel.
    """
    if not weight:
        return [None, dy.sum((0, 2, 3)) if bias else None]
    outputs, inputs, k = dy.shape[1], x.shape[1], stride + 2
    last, like = x.clone(memory_format=torch.channels_last), x.new_empty(outputs, k, k, inputs).permute(0, 3, 1, 2)
    return torch.ops.aten.convolution_backward(
        dy, last, like, [outputs], [stride] * 2, [1, 1], [1, 1], False, [0, 0], 1, [False, True, bias])[1:]


def _met(padded: Tensor, i: int, j: int, h: int, w: int, stride: int) -> Tensor:
    """Of maps (O, N, stride * H + 2, stride * W + 2), the pixels (O, N, H, W) that tap (i, j) of each of H x W pixels meets."""
    return padded[..., i:i + stride * h:stride, j:j + stride * w:stride]


def _pixels(maps: Tensor) -> Tensor:
    """(N, C, H, W) -> (N * H * W, C)."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)
