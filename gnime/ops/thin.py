"""A 3x3 convolution with few output channels on a CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class ThinConv(torch.autograd.Function):
    """conv2d(x, weight, padding=1) as a matrix product with all nine taps, then a sum of the overlapping results.

    x (N, I, H, W), weight (O, I, 3, 3) -> (N, O, H, W). `F.fold` computes the sum: it adds the products of each pixel to the
    neighbours of that pixel. A convolution sums over the neighbours instead, so the taps are flipped.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        flipped = weight.flip(2, 3).permute(0, 2, 3, 1).flatten(0, 2)  # (O * 9, I)
        ctx.save_for_backward(x, flipped)
        products = x.permute(0, 2, 3, 1).flatten(1, 2) @ flipped.T  # (N, H * W, O * 9)
        return F.fold(products.transpose(1, 2), x.shape[2:], 3, padding=1)  # (N, O, H, W)

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, flipped = ctx.saved_tensors
        dproducts = F.unfold(dy, 3, padding=1).transpose(1, 2).flatten(0, 1)  # (N * H * W, O * 9)
        dx = dweight = None
        if ctx.needs_input_grad[0]:
            dx = (dproducts @ flipped).view(len(x), *x.shape[2:], x.shape[1]).permute(0, 3, 1, 2)  # (N, I, H, W)
        if ctx.needs_input_grad[1]:
            # Autograd would compute the transposed product, which takes many times as long.
            dflipped = dproducts.T @ x.permute(0, 2, 3, 1).flatten(0, 2)  # (O * 9, I)
            dweight = dflipped.view(dy.shape[1], 3, 3, x.shape[1]).permute(0, 3, 1, 2).flip(2, 3)  # (O, I, 3, 3)
        return dx, dweight
