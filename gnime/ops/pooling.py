"""ReLU and its 2x2 max pooling, where both results are needed."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .sizes import CACHED


def relu_and_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """relu(x) and max_pool2d(relu(x), 2). x (N, C, H, W) -> (N, C, H, W), (N, C, H/2, W/2). Overwrites x."""
    if x.requires_grad and x.device.type == "cpu":
        return ReluAndPool.apply(x)
    x = F.relu(x, inplace=True)
    return x, F.max_pool2d(x, 2)


class ReluAndPool(torch.autograd.Function):
    """`relu_and_pool` with a faster backward pass.

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
