"""3x3 convolutions, and what follows them, with as few products and as little traffic of memory as shapes allow.

Each function equals the plain formulation that its docstring states, in outputs and gradients (tests/test_formulations.py).
On a GPU most are that formulation: it multiplies faster than it could add up products from memory.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CACHED = 1 << 20  # numbers that stay in a processor's cache
THIN = 32  # outputs of a convolution below which additions cost more than the products they replace
WIDE = 1 << 13  # inputs times outputs from which Winograd's transforms of maps are worth the products they save
MANY = 64  # 4x4 tiles from which his transforms of weights are worth them too
TILES = 256  # that are transformed at once: few enough to take little memory, many enough for a matrix product
# Winograd's points are this and its double, with both signs, zero and infinity. At 1 and 2 the error would be twice as
# large, at worst five times. His transforms below rely on POINT**4 being 1/4.
POINT = 0.5**0.5


def conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """conv2d(x, weight, bias, padding=1). x (N, I, H, W), weight (O, I, 3, 3) -> (N, O, H, W)."""
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


class ThinConv(torch.autograd.Function):
    """`conv` of few outputs as its transpose, which it equals with the taps turned: a matrix product, and a sum of what
    overlaps."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        turned = weight.flip(2, 3).permute(0, 2, 3, 1).flatten(0, 2)  # (O * 9, I)
        ctx.save_for_backward(x, turned)
        products = x.permute(0, 2, 3, 1).flatten(1, 2) @ turned.T  # (N, H * W, O * 9)
        return F.fold(products.transpose(1, 2), x.shape[2:], 3, padding=1)

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, turned = ctx.saved_tensors
        dproducts = F.unfold(dy, 3, padding=1).transpose(1, 2).flatten(0, 1)
        dx = dweight = None
        if ctx.needs_input_grad[0]:
            dx = (dproducts @ turned).view(len(x), *x.shape[2:], x.shape[1]).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[1]:  # in this order: the transposed product, left to autograd, takes many times as long
            dturned = dproducts.T @ x.permute(0, 2, 3, 1).flatten(0, 2)
            dweight = dturned.view(dy.shape[1], 3, 3, x.shape[1]).permute(0, 3, 1, 2).flip(2, 3)
        return dx, dweight


class Winograd(torch.autograd.Function):
    """`conv` of sides that are multiples of four with a quarter of the products, forward and backward: the F(4x4, 3x3) of
    Winograd (1980) and of Lavin and Gray (2016), at points of `POINT`.

    Along an axis, polynomials say what four outputs owe to the three taps and to the six inputs they see. Six points
    decide a polynomial, and at each of them the product is one of numbers. All but that product is linear: the way back
    is the transpose of the way there. What is exactly zero by the direct sum is zero up to rounding.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        outputs, inputs = weight.shape[:2]
        taps = (_taps_to_points(x) @ weight.permute(2, 3, 0, 1).reshape(9, -1)).view(36, outputs, inputs)
        ctx.save_for_backward(x, taps)
        y = torch.empty((len(x), outputs, *x.shape[2:]), dtype=x.dtype, memory_format=torch.channels_last)
        for part, out in _tiles(x, y):
            seen = _to_points(part, _inputs_to_points)
            _from_points(seen @ taps.transpose(1, 2), out, _points_to_outputs)
            if bias is not None:
                out += bias
        return y

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, taps = ctx.saved_tensors
        dx = torch.empty_like(x, memory_format=torch.channels_last) if ctx.needs_input_grad[0] else None
        dtaps = torch.empty_like(taps) if ctx.needs_input_grad[1] else None
        for i, (part, dout, dpart) in enumerate(_tiles(x, dy, x if dx is None else dx)):
            sent = _to_points(dout, _points_to_outputs_transposed)
            if dtaps is not None:
                dtaps.baddbmm_(sent.transpose(1, 2), _to_points(part, _inputs_to_points), beta=min(i, 1))
            if dx is not None:
                _from_points(sent @ taps, dpart, _inputs_to_points_transposed)
        if dtaps is not None:
            dtaps = (_taps_to_points(x).T @ dtaps.flatten(1)).view(3, 3, *taps.shape[1:]).permute(2, 3, 0, 1)
        return dx, dtaps, dy.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None


def _tiles(*maps: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """A few images (k, H, W, C) of each map (N, C, H, W) at a time: TILES of 4x4."""
    h, w = maps[0].shape[2:]
    return zip(*(m.permute(0, 2, 3, 1).split(max(1, 16 * TILES // (h * w))) for m in maps), strict=True)


def _taps_to_points(like: Tensor) -> Tensor:
    """(36, 9): from 3x3 taps to their polynomial's values at the points of both axes, each divided by the product of its
    point's distances from the others, which interpolation asks for."""
    rows = [[1.0, 0.0, 0.0]]
    for point, distances in ((POINT, -1.5), (2 * POINT, 6.0)):
        rows += [[power * sign**i / distances for i, power in enumerate((1.0, point, point**2))] for sign in (1, -1)]
    one_axis = like.new_tensor([*rows, [0.0, 0.0, 1.0]])
    return torch.kron(one_axis, one_axis)


def _to_points(maps: Tensor, one_axis: Callable) -> Tensor:
    """maps (k, H, W, C) -> (36, k * H/4 * W/4, C), at the points of both axes."""
    k, h, w, c = maps.shape
    values = maps.new_empty(6, 6, k, h // 4, w // 4, c)
    for part, out in _in_cache(maps, values):
        rows = maps.new_empty(6, len(part), h // 4, w, c)
        one_axis(part.unflatten(1, (-1, 4)).unbind(2), rows.unbind(0), 1)
        one_axis(rows.unflatten(3, (-1, 4)).unbind(4), out.unbind(1), 3)
    return values.view(36, -1, c)


def _from_points(values: Tensor, maps: Tensor, one_axis: Callable) -> None:
    """values (36, k * H/4 * W/4, C) -> maps (k, H, W, C)."""
    k, h, w, c = maps.shape
    for out, part in _in_cache(maps, values.view(6, 6, k, h // 4, w // 4, c)):
        rows = maps.new_empty(6, len(out), h // 4, w, c)
        one_axis(part.unbind(1), rows.unflatten(3, (-1, 4)).unbind(4), 3)
        one_axis(rows.unbind(0), out.unflatten(1, (-1, 4)).unbind(2), 1)


def _in_cache(maps: Tensor, values: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    few = max(1, CACHED // (2 * maps.shape[1:].numel()))
    return zip(maps.split(few), values.split(few, 2), strict=True)


Parts = tuple[Tensor, ...]  # of tiles along an axis: their four pixels, or their values at six points


def _inputs_to_points(pixels: Parts, values: Parts, axis: int) -> None:
    """A tile sees a pixel of each neighbour too, which is zero beyond the map."""
    (x1, x2, x3, x4), rest = pixels, pixels[0].shape[axis] - 1
    for point, plus, minus in ((POINT, *values[1:3]), (2 * POINT, *values[3:5])):
        even, odd = torch.sub(x4, x2, alpha=1 / point**2), torch.sub(x3, x1, alpha=1 / point**2)
        torch.add(even, odd, alpha=point, out=plus)
        torch.sub(even, odd, alpha=point, out=minus)
    torch.sub(x4, x2, alpha=2.5, out=values[0]).narrow(axis, 1, rest).add_(x4.narrow(axis, 0, rest))
    torch.sub(x1, x3, alpha=2.5, out=values[5]).narrow(axis, 0, rest).add_(x1.narrow(axis, 1, rest))


def _inputs_to_points_transposed(values: Parts, pixels: Parts, axis: int) -> None:
    (v0, v1, v2, v3, v4, v5), (x1, x2, x3, x4), rest = values, pixels, pixels[0].shape[axis] - 1
    even, odd, far_even, far_odd = v1 + v2, (v1 - v2).mul_(POINT), v3 + v4, (v3 - v4).mul_(2 * POINT)
    torch.sub(v5, odd, alpha=2, out=x1).sub_(far_odd, alpha=0.5).narrow(axis, 1, rest).add_(v5.narrow(axis, 0, rest))
    torch.add(v0, even, alpha=0.8, out=x2).add_(far_even, alpha=0.2).mul_(-2.5)
    torch.add(odd, far_odd, out=x3).sub_(v5, alpha=2.5)
    torch.add(v0, even, out=x4).add_(far_even).narrow(axis, 0, rest).add_(v0.narrow(axis, 1, rest))


def _points_to_outputs(values: Parts, pixels: Parts, axis: int) -> None:
    (v0, v1, v2, v3, v4, v5), (y0, y1, y2, y3) = values, pixels
    even, odd, far_even, far_odd = v1 + v2, v1 - v2, v3 + v4, v3 - v4
    torch.add(v0, even, out=y0).add_(far_even)
    torch.add(odd, far_odd, alpha=2, out=y1).mul_(POINT)
    torch.add(even, far_even, alpha=4, out=y2).mul_(POINT**2)
    torch.add(v5, odd.add_(far_odd, alpha=8), alpha=POINT**3, out=y3)


def _points_to_outputs_transposed(pixels: Parts, values: Parts, axis: int) -> None:
    y0, y1, y2, y3 = pixels
    values[0].copy_(y0)
    for point, plus, minus in ((POINT, *values[1:3]), (2 * POINT, *values[3:5])):
        even, odd = torch.add(y0, y2, alpha=point**2), torch.add(y1, y3, alpha=point**2)
        torch.add(even, odd, alpha=point, out=plus)
        torch.sub(even, odd, alpha=point, out=minus)
    values[5].copy_(y3)


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
    place = torch.arange(4, device=x.device)[:, None] + torch.arange(3, device=x.device)  # row of the output + tap
    inside = ((place > 0) & (place < 5)).to(products.dtype)
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
