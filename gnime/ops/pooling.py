"""ReLU and its 2x2 max pooling, where both results are needed."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..system import warn
from .sizes import CACHED

_equals_plain: dict[tuple, bool] = {}  # whether the kernels of `fused` do, by kind of map; after a first False none is used


def relu_and_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """relu(x) and max_pool2d(relu(x), 2). x (N, C, H, W) -> (N, C, H, W), (N, C, H/2, W/2). Overwrites x."""
    if x.requires_grad and x.device.type == "cpu":
        return ReluAndPool.apply(x)
    if x.requires_grad and x.device.type == "cuda" and fused_serves(x):
        from .fused import FusedReluAndPool

        return FusedReluAndPool.apply(x)
    return plain_relu_and_pool(x)


def plain_relu_and_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """`relu_and_pool` by PyTorch's operations."""
    x = F.relu(x, inplace=True)
    return x, F.max_pool2d(x, 2)


def fused_serves(x: Tensor) -> bool:
    """Whether the kernels of `fused` are used for x (N, C, H, W).

    For the first map of its kind they are compared with the plain form. If they fail or differ, a warning says so, and the
    process uses the plain form from then on. The comparison waits for the device, so it is not made while a graph is captured.
    """
    if torch.compiler.is_compiling() or not all(_equals_plain.values()):  # a compiler fuses the plain form itself
        return False
    dense = x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)
    if not dense or x.shape[2] % 2 or x.shape[3] % 2 or x.dtype not in (torch.float32, torch.bfloat16):
        return False
    kind = x.dtype, x.is_contiguous(), x.shape[1:]
    if kind not in _equals_plain:
        if torch.cuda.is_current_stream_capturing():
            return False
        problem = _problem(x)
        _equals_plain[kind] = problem is None
        if problem:
            warn(f"ReLU and pooling run without their fused kernel, which is slower: {problem}")
    return _equals_plain[kind]


def _problem(x: Tensor) -> str | None:
    """The reason why `fused` cannot replace the plain form for maps like x; None: it can."""
    layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
    numbers, (channels, h, w) = torch.Generator().manual_seed(0), x.shape[1:]

    def draw(*shape: int) -> Tensor:  # small integers: many are equal, and some windows have none above zero
        drawn = torch.randint(-3, 4, shape, generator=numbers)
        return drawn.to(x.device, x.dtype).contiguous(memory_format=layout)

    values, dx, dpooled = draw(2, channels, h, w), draw(2, channels, h, w), draw(2, channels, h // 2, w // 2)

    def measured(function) -> list[Tensor]:
        start = values.clone().requires_grad_()
        outputs = function(start.clone())
        return [*outputs, *torch.autograd.grad(outputs, start, [dx, dpooled])]

    try:
        from .fused import FusedReluAndPool

        pairs = zip(measured(FusedReluAndPool.apply), measured(plain_relu_and_pool), strict=True)
        return None if all(torch.equal(found, expected) for found, expected in pairs) else "its results differ"
    except Exception as error:  # no Triton, no compiler, an unknown device: nothing of that ends a training
        return f"{type(error).__name__}: {error}".partition("\n")[0]


class ReluAndPool(torch.autograd.Function):
    """`relu_and_pool` with a faster backward pass, on a CPU.

    It takes three passes over a map: the gradient of pooling, the sum of both outputs' gradients, the gradient of ReLU. They
    are done for a few images at a time, so that the map stays in cache between them.
    """

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
