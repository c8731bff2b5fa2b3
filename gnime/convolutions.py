"""3x3 convolutions, and what follows them, with as few products and as little traffic of memory as shapes allow.

Each function equals the plain formulation that its docstring states, in outputs and gradients (tests/test_formulations.py).
On a GPU most are that formulation: it multiplies faster than it could add up products from memory.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CACHED = 1 << 20  # numbers that stay in a processor's cache
THIN = 32  # outputs of a convolution below which additions cost more than the products they replace
WIDE = 1 << 13  # inputs times outputs from which the transforms of Winograd's algorithm are worth the products they save
PATCHES = 512  # that are transformed at once: they stay in cache, and their sum is worth a matrix product


def conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """conv2d(x, weight, bias, padding=1). x (N, I, H, W), weight (O, I, 3, 3) -> (N, O, H, W)."""
    if x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return F.conv2d(x, weight, bias, padding=1)
    outputs, inputs = weight.shape[:2]
    if outputs < THIN < inputs:
        # as its transpose, which it equals with the taps turned: a matrix product, and a sum of what overlaps
        turned = weight.flip(2, 3).transpose(0, 1).flatten(1)
        products = x.permute(0, 2, 3, 1).flatten(1, 2) @ turned  # (N, H * W, O * 9)
        grown = F.fold(products.transpose(1, 2), x.shape[2:], 3, padding=1)
        return grown if bias is None else grown + bias[:, None, None]
    if inputs * outputs >= WIDE and x.shape[2] % 2 == x.shape[3] % 2 == 0:
        return WinogradGradient.apply(x, weight, bias)
    return F.conv2d(x, weight, bias, padding=1)


class WinogradGradient(torch.autograd.Function):
    """`conv` whose gradient of the weight takes 2.25 times fewer products (Winograd, 1980; F(2x2, 3x3) of Lavin and Gray,
    2016, transposed). Where the other two products are concerned, the library's kernels are as fast as the processor."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        dx = dweight = None
        if ctx.needs_input_grad[0]:
            dx = torch.ops.aten.convolution_backward(
                dy, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, False, False])[0]
        if ctx.needs_input_grad[1]:
            dweight = weight_gradient(x, dy)
        return dx, dweight, dy.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None


def weight_gradient(x: Tensor, dy: Tensor) -> Tensor:
    """Gradient (O, I, 3, 3) of the weight of `conv`, from x (N, I, H, W) and the outputs' gradient dy (N, O, H, W).

    Every 2x2 patch of outputs sees 4x4 inputs. Both are mapped to 16 numbers a channel, whose products, summed over
    patches, map back to the nine taps. H and W even.
    """
    n, inputs, h, w = x.shape
    outputs = dy.shape[1]
    total = x.new_zeros(16, inputs, outputs)
    images = max(1, 4 * PATCHES // (h * w))
    for part, dpart in zip(*(m.permute(0, 2, 3, 1).split(images) for m in (x, dy)), strict=True):
        seen, sent = (part.new_empty(4, 4, len(part), h // 2, w // 2, m.shape[3]) for m in (part, dpart))
        _map_inputs(part, seen)
        _map_outputs(dpart, sent)
        total.baddbmm_(seen.view(16, -1, inputs).transpose(1, 2), sent.view(16, -1, outputs))
    taps = x.new_tensor([[1, 0.5, 0.5, 0], [0, 0.5, -0.5, 0], [0, 0.5, 0.5, 1]])
    return (torch.kron(taps, taps) @ total.flatten(1)).view(3, 3, inputs, outputs).permute(3, 2, 0, 1)


def _map_inputs(x: Tensor, out: Tensor) -> None:
    """x (k, H, W, C) -> out (4, 4, k, H/2, W/2, C): along each axis d0 - d2, d1 + d2, d2 - d1, d1 - d3 of every four
    inputs, the first of them at an even place of the padded map."""
    padded = F.pad(x, (0, 0, 1, 1, 1, 1))
    rows = x.new_empty(4, len(x), out.shape[3], padded.shape[2], x.shape[3])
    for source, axis, target in ((padded, 1, rows), (rows, 3, out.transpose(0, 1))):
        half = target.shape[axis + 1]
        even, odd = (source.unflatten(axis, (-1, 2)).select(axis + 1, i) for i in range(2))
        (d0, d2), (d1, d3) = ((m.narrow(axis, 0, half), m.narrow(axis, 1, half)) for m in (even, odd))
        for place, (one, other, sign) in enumerate(((d0, d2, -1), (d1, d2, 1), (d2, d1, -1), (d1, d3, -1))):
            torch.add(one, other, alpha=sign, out=target[place])


def _map_outputs(dy: Tensor, out: Tensor) -> None:
    """dy (k, H, W, O) -> out (4, 4, k, H/2, W/2, O): along each axis y0, y0 + y1, y0 - y1, -y1 of every two."""
    rows = dy.new_empty(4, len(dy), out.shape[3], dy.shape[2], dy.shape[3])
    for source, axis, target in ((dy, 1, rows), (rows, 3, out.transpose(0, 1))):
        first, second = (source.unflatten(axis, (-1, 2)).select(axis + 1, i) for i in range(2))
        target[0] = first
        torch.add(first, second, out=target[1])
        torch.sub(first, second, out=target[2])
        torch.neg(second, out=target[3])


def relu_and_pool(x: Tensor, training: bool) -> tuple[Tensor, Tensor]:
    """relu(x), written over x, and its 2x2 max pooling. x (N, C, H, W) -> (N, C, H, W), (N, C, H/2, W/2)."""
    if training and x.device.type == "cpu":
        return ReluAndPool.apply(x)
    x = F.relu(x, inplace=True)
    return x, F.max_pool2d(x, 2)


class ReluAndPool(torch.autograd.Function):
    """`relu_and_pool` whose backward pass goes through pooling, sum and ReLU a few images at a time, in cache: they cost
    a write and a read of the whole map each."""

    @staticmethod
    def forward(ctx, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.mark_dirty(x.relu_())
        pooled, places = torch.ops.aten.max_pool2d_with_indices(x, [2, 2], [2, 2])
        ctx.save_for_backward(x, places)
        return x, pooled

    @staticmethod
    @once_differentiable
    def backward(ctx, dx: Tensor, dpooled: Tensor) -> Tensor:
        x, places = ctx.saved_tensors
        total = torch.empty_like(x)
        images = max(1, CACHED * len(x) // max(1, x.numel()))
        parts = zip(*(m.split(images) for m in (x, places, dx, dpooled, total)), strict=True)
        for part, where, direct, through, out in parts:
            summed = torch.ops.aten.max_pool2d_with_indices_backward(
                through, part, [2, 2], [2, 2], [0, 0], [1, 1], False, where).add_(direct)
            torch.ops.aten.threshold_backward.grad_input(summed, part, 0, grad_input=out)
        return total


class Conv(nn.Conv2d):
    """3x3, padding 1; in training `conv`."""

    same_function = True  # as nn.Conv2d's

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return conv(x, self.weight, self.bias) if self.training else super().forward(x)


def spread_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """conv2d(nearest x4 of x, weight, bias, padding=1). x (N, I, 1, 1), weight (O, I, 3, 3) -> (N, O, 4, 4).

    The pixel meets each of nine taps once; an output adds up the taps that fall inside the map.
    """
    products = F.linear(x.flatten(1), _taps(weight)).unflatten(1, (9, -1))  # (N, 9, O)
    inside = products.new_ones(4, 3)  # row of the output, tap
    inside[0, 0] = inside[3, 2] = 0
    grown = torch.kron(inside, inside) @ products  # (N, 16, O)
    return (grown + bias.to(grown.dtype)).unflatten(1, (4, 4)).permute(0, 3, 1, 2)


def upsample_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """conv2d(nearest x2 of x, weight, bias, padding=1). x (N, I, H, W), weight (O, I, 3, 3) -> (N, O, 2H, 2W).

    Few outputs fill no vector of a CPU's.
    """
    if x.device.type != "cpu" or len(weight) < THIN:
        return folded_conv(x, weight, bias)
    return TapProducts.apply(x, _taps(weight), bias)


def folded_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`upsample_conv` as the transposed 4x4 convolution of stride 2 that it equals: taps that fall on the same pixel
    are added beforehand, which leaves 16 products a pixel."""
    for axis in (2, 3):
        first, second, third = weight.unbind(axis)
        weight = torch.stack([third, second + third, first + second, first], axis)
    return F.conv_transpose2d(x, weight.transpose(0, 1), bias, stride=2, padding=1)


def _taps(weight: Tensor) -> Tensor:
    """(O, I, 3, 3) -> (9 * O, I)."""
    return weight.permute(2, 3, 0, 1).reshape(-1, weight.shape[1])


class TapProducts(torch.autograd.Function):
    """`upsample_conv` with nine products a pixel: one matrix product, then additions.

    Along an axis, with u, v, w a pixel's products with the three taps, output 2i is u[i-1] + v[i] + w[i] and output
    2i + 1 is u[i] + v[i] + w[i+1]. A few images at a time, so that the products stay in cache.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)
    def forward(ctx, x: Tensor, taps: Tensor, bias: Tensor) -> Tensor:
        n, _, h, w = x.shape
        o = len(bias)
        ctx.save_for_backward(x, taps)
        y = torch.empty((n, o, 2 * h, 2 * w), dtype=x.dtype, memory_format=torch.channels_last)
        for pixels, out in _images(taps, x, y):
            k = len(out)
            products = (pixels.reshape(k * h * w, -1) @ taps.T).view(k, h, w, 3, 3 * o)
            rows = x.new_empty(k, h, 2, w, 3 * o)
            _add_up(products.unbind(3), rows.unbind(2), 1)
            _add_up(rows.view(k, 2 * h, w, 3, o).unbind(3), out.view(k, 2 * h, w, 2, o).unbind(3), 2)
            out += bias
        return y

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, taps = ctx.saved_tensors
        h, w, o = *x.shape[2:], dy.shape[1]
        dx = torch.empty_like(x, memory_format=torch.channels_last)
        dtaps = torch.zeros_like(taps, dtype=torch.promote_types(taps.dtype, torch.float32))
        for pixels, dout, dpixels in _images(taps, x, dy, dx):
            k = len(dout)
            drows = x.new_empty(k, h, 2, w, 3 * o)
            _add_up_backward(dout.reshape(k, 2 * h, w, 2, o).unbind(3), drows.view(k, 2 * h, w, 3, o).unbind(3), 2)
            dproducts = x.new_empty(k, h, w, 3, 3 * o)
            _add_up_backward(drows.unbind(2), dproducts.unbind(3), 1)
            dproducts = dproducts.view(k * h * w, -1)
            torch.mm(dproducts, taps, out=dpixels.view(k * h * w, -1))
            dtaps += dproducts.T @ pixels.reshape(k * h * w, -1)
        return dx, dtaps, dy.sum((0, 2, 3), dtype=dtaps.dtype)


def _images(taps: Tensor, *maps: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """A few images of each map at a time, channels last."""
    _, inputs, h, w = maps[0].shape
    pixels = max(CACHED // len(taps), 2 * inputs)  # enough of them that the sum over parts of dtaps costs little
    return zip(*(m.permute(0, 2, 3, 1).split(max(1, pixels // (h * w))) for m in maps), strict=True)


def _add_up(products: tuple[Tensor, ...], outputs: tuple[Tensor, ...], axis: int) -> None:
    (u, v, w), (even, odd), rest = products, outputs, products[0].shape[axis] - 1
    torch.add(v, w, out=even)
    even.narrow(axis, 1, rest).add_(u.narrow(axis, 0, rest))
    torch.add(u, v, out=odd)
    odd.narrow(axis, 0, rest).add_(w.narrow(axis, 1, rest))


def _add_up_backward(outputs: tuple[Tensor, ...], products: tuple[Tensor, ...], axis: int) -> None:
    (even, odd), (u, v, w), rest = outputs, products, outputs[0].shape[axis] - 1
    torch.add(even, odd, out=v)
    u.copy_(odd).narrow(axis, 0, rest).add_(even.narrow(axis, 1, rest))
    w.copy_(even).narrow(axis, 1, rest).add_(odd.narrow(axis, 0, rest))
