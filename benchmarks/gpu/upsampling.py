"""`nearest x2, convolution 3x3` five ways at the decoders' shapes, and other thin convolutions: forward and backward."""

import env
import torch
import torch.nn.functional as F
from timing import milliseconds
from torch import Tensor

from gnime.ops.upsampling import folded_conv

# images, input channels, output channels, side
SHAPES = [(128, 1024, 512, 4), (128, 512, 256, 8), (128, 256, 1, 16), (2048, 256, 128, 4), (2048, 128, 64, 8),
          (2048, 64, 1, 16), (1024, 64, 1, 16), (2048, 64, 3, 16)]
CONVOLUTIONS = [(2048, 64, 1, 32), (1024, 64, 1, 32), (128, 64, 1, 32), (1024, 1, 64, 32), (256, 1, 128, 32), (256, 3, 128, 32),
                (256, 128, 256, 16), (2048, 64, 128, 16)]  # without upsampling


def written(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As the method states it. x (N, I, H, W), weight (O, I, 3, 3), bias (O,) -> (N, O, 2H, 2W), like all below."""
    return F.conv2d(F.interpolate(x, scale_factor=2.0), weight, bias, padding=1)


def _two_taps(weight: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Along an axis, the taps that even and odd outputs see: (.., 2, ..) each."""
    first, second, third = weight.unbind(axis)
    return torch.stack([first, second + third], axis), torch.stack([first + second, third], axis)


def subpixel(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One 2x2 convolution of four times the outputs over the padded map, cut and interleaved."""
    outputs, (h, w) = len(weight), x.shape[2:]
    four = torch.cat([column for row in _two_taps(weight, 2) for column in _two_taps(row, 3)])
    y = F.conv2d(x, four, bias.repeat(4), padding=1)
    parts = [y[:, (2 * i + j) * outputs : (2 * i + j + 1) * outputs, i : i + h, j : j + w] for i in (0, 1) for j in (0, 1)]
    even, odd = torch.stack(parts[:2], 4), torch.stack(parts[2:], 4)  # (N, O, H, W, 2)
    return torch.stack([even, odd], 3).reshape(len(x), outputs, 2 * h, 2 * w)


def shuffled(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One 3x3 convolution of four times the outputs, with zeros where a phase has no tap."""
    outputs, inputs = weight.shape[:2]
    four = []
    for row, above in zip(_two_taps(weight, 2), ((0, 1), (1, 0)), strict=True):
        for column, beside in zip(_two_taps(row, 3), ((0, 1), (1, 0)), strict=True):
            four.append(F.pad(column, (*beside, *above)))
    y = F.conv2d(x, torch.stack(four, 1).reshape(4 * outputs, inputs, 3, 3), bias.repeat_interleave(4), padding=1)
    return F.pixel_shuffle(y, 2)


def taps(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One product with nine taps, then additions of shifted maps."""
    n, inputs, h, w = x.shape
    products = x.permute(0, 2, 3, 1).reshape(-1, inputs) @ weight.permute(2, 3, 0, 1).reshape(-1, inputs).T
    rows = _add_up(products.view(n, h, w, 3, 3, len(weight)), 1, 3)
    return (_add_up(rows, 2, 3) + bias).permute(0, 3, 1, 2)


def _add_up(products: Tensor, axis: int, tap: int) -> Tensor:
    first, second, third = products.unbind(tap)
    zero, rest = first.narrow(axis, 0, 1) * 0, first.shape[axis] - 1
    even = second + third + torch.cat([zero, first.narrow(axis, 0, rest)], axis)
    odd = first + second + torch.cat([third.narrow(axis, 1, rest), zero], axis)
    return torch.stack([even, odd], axis + 1).flatten(axis, axis + 1)


def _convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x, weight, bias, padding=1)


WAYS = {"written": written, "folded": folded_conv, "subpixel": subpixel, "shuffled": shuffled, "taps": taps}


def measure(note) -> None:
    """Calls `note` with a name and, for each way, milliseconds of forward and of both, until 30 s before the deadline."""
    upsampling, others = ([(2, 16, 8, 4)], [(2, 8, 1, 32)]) if env.TINY else (SHAPES, CONVOLUTIONS)
    for precision in ("tf32", "bf16"):
        device = env.open_device(precision)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        for shape in upsampling + others:
            if env.left() < 30:
                return
            ways = WAYS if shape in upsampling else {"convolution": _convolution}
            figures = {name: _measure(way, shape, device.torch, dtype) for name, way in ways.items()}
            n, inputs, outputs, side = shape
            note(f"{precision} {n}x{inputs}->{outputs} at {side}: ms forward, both", figures)


def _measure(way, shape: tuple[int, int, int, int], where: torch.device, dtype: torch.dtype) -> list[float] | str:
    n, inputs, outputs, side = shape
    x, weight = (torch.randn(size, device=where, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()
                 for size in ((n, inputs, side, side), (outputs, inputs, 3, 3)))
    bias = torch.randn(outputs, device=where, dtype=dtype, requires_grad=True)
    try:
        cotangent = torch.randn_like(way(x, weight, bias))
        with torch.no_grad():
            forward = milliseconds(lambda: way(x, weight, bias), 0.05)
        both = milliseconds(lambda: torch.autograd.grad(way(x, weight, bias), (x, weight, bias), cotangent), 0.08)
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200]
    return [round(forward, 4), round(both, 4)]
