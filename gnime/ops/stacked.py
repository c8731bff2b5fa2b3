"""A convolution of small maps in 16 bits on a CPU."""

from functools import cache

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..processor import capabilities

FEW = 32  # images below which a stack is slower than the library's convolution of maps

# Of a convolution of maps (H, W, N): stride, padding, dilation, transposed, output padding, groups.
GEOMETRY = [1, 1, 1], [1, 1, 0], [1, 1, 1], False, [0, 0, 0], 1


def stack_serves(x: Tensor) -> bool:
    """Whether maps x (N, C, H, W) are small enough, and many enough, for `StackedConv` to be right and fast.

    oneDNN's gradient of the weight is wrong where H is 2: it reads memory that nobody wrote (oneDNN 3.7 and 3.12). Thousands of
    random cases with H from 1 to 16, except 2, are exact, on a processor with bf16 instructions and without AMX. So a stack is
    used for maps of 4x4 pixels alone, which are the networks' smallest, and on processors of that kind.
    """
    return x.shape[2:] == (4, 4) and len(x) >= FEW and _is_tried()


@cache
def _is_tried() -> bool:
    found = capabilities()
    return bool(found.get("avx512_bf16")) and not found["amx"]


class StackedConv(torch.autograd.Function):
    """conv2d(x, weight, bias, padding=1) in 16 bits, for x where `stack_serves`.

    x (N, I, H, W), weight (O, I, 3, 3), bias (O,) or None -> (N, O, H, W), channels last.

    The library's kernels take a row of pixels at a time, and multiply the padding at its ends too. A small map has short rows.
    Here the images are a third axis of one map (H, W, N), and the kernel is one image long there. So rows are of N pixels, and
    taps beside the map are left out: of 144 taps on a map of 4x4 pixels, 100 are inside.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        stack = _stack(x)
        kernel = weight.permute(0, 2, 3, 1).contiguous()[:, :, :, None].permute(0, 4, 1, 2, 3)  # (O, I, 3, 3, 1)
        ctx.save_for_backward(stack, kernel)
        return _unstack(torch.ops.aten.convolution(stack, kernel, bias, *GEOMETRY))

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        wanted = [*ctx.needs_input_grad[:2], False]
        dstack, dkernel, _ = torch.ops.aten.convolution_backward(_stack(dy), *ctx.saved_tensors, None, *GEOMETRY, wanted)
        dx = None if dstack is None else _unstack(dstack)
        dweight = None if dkernel is None else dkernel[..., 0]
        return dx, dweight, dy.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None


def _stack(maps: Tensor) -> Tensor:
    """(N, C, H, W) -> (1, C, H, W, N), channels last in memory."""
    return maps.permute(2, 3, 0, 1).contiguous()[None].permute(0, 4, 1, 2, 3)


def _unstack(stack: Tensor) -> Tensor:
    """(1, C, H, W, N) -> (N, C, H, W), channels last in memory."""
    return stack[0].permute(3, 0, 1, 2).contiguous(memory_format=torch.channels_last)
