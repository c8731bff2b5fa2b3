"""Winograd's 3x3 convolution on a CPU."""

from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..products import one_call, products
from .sizes import CACHED

TILES = 1024  # 4x4 tiles per matrix product: few enough for little memory, many enough for a high rate
# The six points are 0, +-POINT, +-2 POINT and infinity. With the usual POINT = 1 the rounding error would be twice as large,
# and five times in the worst case. The transforms below use POINT**4 = 1/4.
POINT = 0.5**0.5


class Winograd(torch.autograd.Function):
    """conv2d(x, weight, bias, padding=1) with a quarter of the multiplications, in the forward and the backward pass.

    x (N, I, H, W), H and W multiples of 4; weight (O, I, 3, 3); bias (O,) or None -> (N, O, H, W), channels last.

    This is F(4x4, 3x3) of Winograd (1980) and of Lavin and Gray (2016). Along one axis, four outputs depend on three taps and
    six inputs. Read both as polynomials: evaluate them at six points, multiply, interpolate. Evaluation and interpolation are
    linear, so the backward pass uses their transposes. An output that is exactly zero by the direct sum is zero up to rounding
    here.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        outputs, inputs = weight.shape[:2]
        taps = x.new_empty(36, outputs, inputs)
        _each(_taps_to_points(x), weight.permute(0, 2, 3, 1).reshape(outputs, 9, inputs), taps.transpose(0, 1))
        ctx.save_for_backward(x, taps)
        y = torch.empty((len(x), outputs, *x.shape[2:]), dtype=x.dtype, memory_format=torch.channels_last)
        for part, out in _tiles(x, y):  # (k, H, W, I), (k, H, W, O)
            values = _to_points(part, _inputs_to_points)  # (36, k * H/4 * W/4, I)
            found = values.new_empty(*values.shape[:2], outputs)
            products(values, taps.transpose(1, 2), found)
            _from_points(found, out, _points_to_outputs)
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
            dvalues = _to_points(dout, _points_to_outputs_transposed)  # (36, k * H/4 * W/4, O)
            if dtaps is not None:  # the first part overwrites dtaps, the others add to it
                products(dvalues.transpose(1, 2), _to_points(part, _inputs_to_points), dtaps, add=i > 0)
            if dx is not None:
                found = dvalues.new_empty(*dvalues.shape[:2], taps.shape[2])
                products(dvalues, taps, found)
                _from_points(found, dpart, _inputs_to_points_transposed)
        dweight = None
        if dtaps is not None:
            dweight = dtaps.new_empty(taps.shape[1], 9, taps.shape[2])
            _each(_taps_to_points(x).T, dtaps.transpose(0, 1), dweight)
            dweight = dweight.unflatten(1, (3, 3)).permute(0, 3, 1, 2)
        return dx, dweight, dy.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None


def _tiles(*maps: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Each map (N, C, H, W) as parts (k, H, W, C), with k such that a part has about TILES 4x4 tiles."""
    h, w = maps[0].shape[2:]
    return zip(*(m.permute(0, 2, 3, 1).split(max(1, 16 * TILES // (h * w))) for m in maps), strict=True)


def _taps_to_points(like: Tensor) -> Tensor:
    """The matrix (36, 9) that evaluates the polynomial of the 3x3 taps at the points of both axes. dtype and device of `like`.

    Each row is divided by the product of its point's differences from the other points, as Lagrange interpolation needs it.
    """
    rows = [[1.0, 0.0, 0.0]]
    for point, distances in ((POINT, -1.5), (2 * POINT, 6.0)):
        rows += [[power * sign**i / distances for i, power in enumerate((1.0, point, point**2))] for sign in (1, -1)]
    one_axis = like.new_tensor([*rows, [0.0, 0.0, 1.0]])  # (6, 3)
    return torch.kron(one_axis, one_axis)


def _to_points(maps: Tensor, one_axis: Callable) -> Tensor:
    """maps (k, H, W, C) -> values (36, k * H/4 * W/4, C): `one_axis` applied along H, then along W."""
    k, h, w, c = maps.shape
    if (h, w) != (4, 4) or not one_call():
        return _to_points_by_axis(maps, one_axis)
    values = maps.new_empty(36, k, c)
    _each(_matrix_to_points(one_axis, maps.dtype), maps.reshape(k, 16, c), values.transpose(0, 1))
    return values


def _from_points(values: Tensor, maps: Tensor, one_axis: Callable) -> None:
    """values (36, k * H/4 * W/4, C) -> maps (k, H, W, C), overwritten: `one_axis` applied along W, then along H."""
    k, h, w, c = maps.shape
    if (h, w) == (4, 4) and one_call():
        _each(_matrix_from_points(one_axis, maps.dtype), values.transpose(0, 1), maps.view(k, 16, c))
    else:
        _from_points_by_axis(values, maps, one_axis)


def _each(matrix: Tensor, parts: Tensor, out: Tensor) -> None:
    """out = matrix @ part for each part. matrix (Q, P), parts (k, P, C), out (k, Q, C)."""
    products(matrix.expand(len(parts), *matrix.shape), parts, out)


# Maps of one tile have no neighbours. Then one small product for each image does it, which in training takes a tenth to a half
# less time than additions along the axes for most shapes.
@cache
def _matrix_to_points(one_axis: Callable, dtype: torch.dtype) -> Tensor:
    """The matrix (36, 16) of `_to_points` for one tile."""
    pixels = torch.eye(16, dtype=dtype, device="cpu").view(1, 4, 4, 16)
    return _to_points_by_axis(pixels, one_axis).view(36, 16)


@cache
def _matrix_from_points(one_axis: Callable, dtype: torch.dtype) -> Tensor:
    """The matrix (16, 36) of `_from_points` for one tile."""
    pixels = torch.empty(1, 4, 4, 36, dtype=dtype, device="cpu")
    _from_points_by_axis(torch.eye(36, dtype=dtype, device="cpu").view(36, 1, 36), pixels, one_axis)
    return pixels.view(16, 36)


def _to_points_by_axis(maps: Tensor, one_axis: Callable) -> Tensor:
    k, h, w, c = maps.shape
    values = maps.new_empty(6, 6, k, h // 4, w // 4, c)
    for part, out in _in_cache(maps, values):
        rows = maps.new_empty(6, len(part), h // 4, w, c)
        one_axis(part.unflatten(1, (-1, 4)).unbind(2), rows.unbind(0), 1)
        one_axis(rows.unflatten(3, (-1, 4)).unbind(4), out.unbind(1), 3)
    return values.view(36, -1, c)


def _from_points_by_axis(values: Tensor, maps: Tensor, one_axis: Callable) -> None:
    k, h, w, c = maps.shape
    for out, part in _in_cache(maps, values.view(6, 6, k, h // 4, w // 4, c)):
        rows = maps.new_empty(6, len(out), h // 4, w, c)
        one_axis(part.unbind(1), rows.unflatten(3, (-1, 4)).unbind(4), 3)
        one_axis(rows.unbind(0), out.unflatten(1, (-1, 4)).unbind(2), 1)


def _in_cache(maps: Tensor, values: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Parts of maps (k, H, W, C) and values (6, 6, k, H/4, W/4, C) that fit the cache."""
    few = max(1, CACHED // (2 * maps.shape[1:].numel()))
    return zip(maps.split(few), values.split(few, 2), strict=True)


# The four transforms along one axis. `pixels` are the four pixels of every tile, `values` the six values at 0, POINT, -POINT,
# 2 POINT, -2 POINT, infinity. Each transform overwrites its second argument.
Parts = tuple[Tensor, ...]


def _inputs_to_points(pixels: Parts, values: Parts, axis: int) -> None:
    """A tile's six inputs are its four pixels and one pixel of each neighbouring tile, zero outside the map."""
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
