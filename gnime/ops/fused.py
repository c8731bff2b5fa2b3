"""ReLU and its 2x2 max pooling as one Triton kernel, and their backward passes as another, for CUDA devices.

Triton comes with PyTorch's builds for CUDA. Import this module only where it is needed, because other builds lack Triton.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

# The kernels take maps (N, H, W, C) in that order of memory. Maps (N, C, H, W) are N * C maps of one channel. A row of windows
# has W/2 * C of them. A program computes some of one row of windows, which lie in two rows of the map.
WINDOWS = tl.constexpr(1024)  # of a program


@triton.jit
def relu_and_pool(x, pooled, codes, channels, row):
    """ReLU of x in place. Of each window, `pooled` and `codes`: which pixels let gradients pass (bits 0-3), and the largest
    one (bits 4-5). NaN passes and is the largest, and of equal pixels the first is, as in PyTorch."""
    line = tl.program_id(0).to(tl.int64)
    window = tl.program_id(1) * WINDOWS + tl.arange(0, WINDOWS)
    inside = window < row
    first = x + 4 * row * line + window + window // channels * channels
    largest = tl.full([WINDOWS], -1, tl.float32)
    passing = tl.full([WINDOWS], 0, tl.int32)
    winner = tl.full([WINDOWS], 0, tl.int32)
    for pixel in tl.static_range(4):
        place = first + pixel // 2 * 2 * row + pixel % 2 * channels
        value = tl.load(place, mask=inside, other=0).to(tl.float32)
        value = tl.where(value <= 0, 0.0, value)
        tl.store(place, value.to(x.dtype.element_ty), mask=inside)
        wins = (value > largest) | (value != value)
        largest = tl.where(wins, value, largest)
        winner = tl.where(wins, pixel, winner)
        passing += tl.where(value != 0, 1 << pixel, 0)
    tl.store(pooled + row * line + window, largest.to(pooled.dtype.element_ty), mask=inside)
    tl.store(codes + row * line + window, (passing + 16 * winner).to(tl.int8), mask=inside)


@triton.jit
def relu_and_pool_backward(total, dx, dpooled, codes, channels, row):
    """`total`: where a pixel passes, its gradient in dx, and that of its window in dpooled if it is the largest; else 0."""
    line = tl.program_id(0).to(tl.int64)
    window = tl.program_id(1) * WINDOWS + tl.arange(0, WINDOWS)
    inside = window < row
    first = 4 * row * line + window + window // channels * channels
    code = tl.load(codes + row * line + window, mask=inside, other=0).to(tl.int32)
    through = tl.load(dpooled + row * line + window, mask=inside, other=0).to(tl.float32)
    for pixel in tl.static_range(4):
        place = first + pixel // 2 * 2 * row + pixel % 2 * channels
        direct = tl.load(dx + place, mask=inside, other=0).to(tl.float32)
        summed = direct + tl.where(code // 16 == pixel, through, 0.0)
        passed = tl.where((code >> pixel) % 2 == 1, summed, 0.0)
        tl.store(total + place, passed.to(total.dtype.element_ty), mask=inside)


class FusedReluAndPool(torch.autograd.Function):
    """`pooling.relu_and_pool` of x (N, C, H, W) with even H and W, dense and contiguous or channels last. Overwrites x.

    Equals the plain form bit for bit, gradients included, apart from the sign of zeros. In place of x and of indices of eight
    bytes it keeps one byte for each window.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> tuple[Tensor, Tensor]:
        n, channels, h, w = x.shape
        last = x.is_contiguous(memory_format=torch.channels_last)
        ctx.layout = torch.channels_last if last else torch.contiguous_format
        pooled = torch.empty((n, channels, h // 2, w // 2), dtype=x.dtype, device=x.device, memory_format=ctx.layout)
        codes = torch.empty_like(pooled, dtype=torch.int8)
        ctx.sizes = (channels, channels * w // 2) if last else (1, w // 2)
        _launch(relu_and_pool, x, pooled, codes, *ctx.sizes)
        ctx.mark_dirty(x)
        ctx.save_for_backward(codes)
        return x, pooled

    @staticmethod
    @once_differentiable
    def backward(ctx, dx: Tensor, dpooled: Tensor) -> Tensor:
        (codes,) = ctx.saved_tensors
        dx, dpooled = (gradient.contiguous(memory_format=ctx.layout) for gradient in (dx, dpooled))
        total = torch.empty_like(dx, memory_format=ctx.layout)
        _launch(relu_and_pool_backward, total, dx, dpooled, codes, *ctx.sizes)
        return total


def _launch(kernel, *arguments: Tensor | int) -> None:
    """Runs a kernel on the device of its first argument, a map, with the length of a row of windows as the last."""
    whole, row = arguments[0], arguments[-1]
    with torch.cuda.device_of(whole):
        kernel[whole.numel() // (4 * row), triton.cdiv(row, WINDOWS.value)](*arguments)
