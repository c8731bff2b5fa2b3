"""A dense layer on a CPU, with the matrix products of `gnime.products`."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..products import product


def dense(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """linear(x, weight, bias). x (N, I), weight (O, I), bias (O,) -> (N, O)."""
    if x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    return Dense.apply(x, weight, bias)


class Dense(torch.autograd.Function):
    """`dense` in the precision of its inputs."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight.T).add_(bias)

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        dx, dweight, dbias = ctx.needs_input_grad
        return (product(dy, weight) if dx else None, product(dy.T, x) if dweight else None, dy.sum(0) if dbias else None)
