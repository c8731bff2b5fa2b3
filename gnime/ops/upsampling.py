"""Nearest upsampling followed by a 3x3 convolution, in one.

The pixels of an upsampled map are copies, so the plain pair computes most of its products several times.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..products import product
from .sizes import CACHED, THIN
from .thin import ThinTransposed


def spread_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """conv2d(nearest x4 of x, weight, bias, padding=1). x (N, I, 1, 1), weight (O, I, 3, 3) -> (N, O, 4, 4).

    All 16 pixels are equal, so nine products are enough: one for each tap. An output adds up the taps that lie inside the map.
    """
    products = F.linear(x.flatten(1), _taps(weight.to(x.dtype))).unflatten(1, (9, -1))  # (N, 9, O)
    place = torch.arange(4, device=x.device)[:, None] + torch.arange(3, device=x.device)  # (4, 3): row of output + tap
    inside = ((place > 0) & (place < 5)).to(products.dtype)  # (4, 3)
    summed = torch.kron(inside, inside) @ products  # (N, 16, O)
    return (summed + bias.to(summed.dtype)).unflatten(1, (4, 4)).permute(0, 3, 1, 2)


def upsample_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """conv2d(nearest x2 of x, weight, bias, padding=1). x (N, I, H, W), weight (O, I, 3, 3) -> (N, O, 2H, 2W).

    Nine products a pixel on a CPU; 16 with few output channels, and on a GPU, where the library's kernel is faster.
    """
    if x.device.type != "cpu":
        return folded_conv(x, weight, bias)
    if len(weight) < THIN:
        y = ThinTransposed.apply(x, _folded(weight), 2)
        return y + bias.to(y.dtype)[:, None, None]
    return TapProducts.apply(x, _taps(weight.to(x.dtype)), bias)


def folded_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`upsample_conv` as one transposed 4x4 convolution of stride 2: 16 products a pixel instead of 36."""
    return F.conv_transpose2d(x, _folded(weight), bias, stride=2, padding=1)


def _folded(weight: Tensor) -> Tensor:
    """(O, I, 3, 3) -> (I, O, 4, 4): taps that meet copies of the same pixel are added up."""
    for axis in (2, 3):
        first, second, third = weight.unbind(axis)
        weight = torch.stack([third, second + third, first + second, first], axis)
    return weight.transpose(0, 1)


def _taps(weight: Tensor) -> Tensor:
    """(O, I, 3, 3) -> (9 * O, I)."""
    return weight.permute(2, 3, 0, 1).reshape(-1, weight.shape[1])


class TapProducts(torch.autograd.Function):
    """`upsample_conv` as one matrix product with the nine taps, then additions.

    x (N, I, H, W), taps (9 * O, I), bias (O,) -> (N, O, 2H, 2W), channels last. Along an axis, let u, v, w be the products of
    a pixel with the three taps: output 2i is u[i-1] + v[i] + w[i], output 2i + 1 is u[i] + v[i] + w[i+1]. A few images are
    computed at a time, so that the products stay in cache.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)
    def forward(ctx, x: Tensor, taps: Tensor, bias: Tensor) -> Tensor:
        n, _, h, w = x.shape
        o = len(bias)
        ctx.save_for_backward(x, taps)
        y = torch.empty((n, o, 2 * h, 2 * w), dtype=x.dtype, memory_format=torch.channels_last)
        for pixels, out in _images(taps, x, y):  # (k, H, W, I), (k, 2H, 2W, O)
            k = len(out)
            products = product(pixels.flatten(0, 2), taps.T).view(k, h, w, 3, 3 * o)
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
        for pixels, dout, dpixels in _images(taps, x, dy, dx):  # (k, H, W, I), (k, 2H, 2W, O), (k, H, W, I)
            k = len(dout)
            drows = x.new_empty(k, h, 2, w, 3 * o)
            _add_up_backward(dout.reshape(k, 2 * h, w, 2, o).unbind(3), drows.view(k, 2 * h, w, 3, o).unbind(3), 2)
            dproducts = x.new_empty(k, h, w, 3, 3 * o)
            _add_up_backward(drows.unbind(2), dproducts.unbind(3), 1)
            dproducts = dproducts.flatten(0, 2).flatten(1)
            dpixels.copy_(product(dproducts, taps).view(dpixels.shape))
            dtaps += product(dproducts.T, pixels.flatten(0, 2))
        return dx, dtaps, dy.sum((0, 2, 3), dtype=dtaps.dtype)


def _images(taps: Tensor, *maps: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Each map (N, C, H, W) as parts (k, H, W, C), with k such that the products of a part fit the cache.

    A part has at least 2 * I pixels, so that adding its gradient of the taps to the sum costs little.
    """
    _, inputs, h, w = maps[0].shape
    pixels = max(CACHED // len(taps), 2 * inputs)
    return zip(*(m.permute(0, 2, 3, 1).split(max(1, pixels // (h * w))) for m in maps), strict=True)


def _add_up(products: tuple[Tensor, ...], outputs: tuple[Tensor, ...], axis: int) -> None:
    """The sums of `TapProducts` along an axis. products: u, v, w; outputs, written: even, odd."""
    (u, v, w), (even, odd), rest = products, outputs, products[0].shape[axis] - 1
    torch.add(v, w, out=even)
    even.narrow(axis, 1, rest).add_(u.narrow(axis, 0, rest))
    torch.add(u, v, out=odd)
    odd.narrow(axis, 0, rest).add_(w.narrow(axis, 1, rest))


def _add_up_backward(outputs: tuple[Tensor, ...], products: tuple[Tensor, ...], axis: int) -> None:
    """The transpose of `_add_up`: gradients of even, odd -> gradients of u, v, w, written."""
    (even, odd), (u, v, w), rest = outputs, products, outputs[0].shape[axis] - 1
    torch.add(even, odd, out=v)
    u.copy_(odd).narrow(axis, 0, rest).add_(even.narrow(axis, 1, rest))
    w.copy_(even).narrow(axis, 1, rest).add_(odd.narrow(axis, 0, rest))
