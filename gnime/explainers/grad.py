"""Gradient of the largest logit (Simonyan et al., 2014)."""

import torch
from torch import Tensor, nn

from .stack import apply, layers, minmax, pool_first

BEND = 5.0  # of 1, 2.5, 5, 10 and 20 the one that helped the white-box attacker most on the digits [G]


@torch.inference_mode(False)  # inference mode would record nothing to differentiate
def grad(model: nn.Module, images: Tensor) -> Tensor:
    """|d s / d x| with s the largest logit, scaled to [0, 1] per image and channel.

    images: (N, C, H, W) in [0, 1]. Returns (N, C, H, W) in [0, 1], differentiable where images require gradients; then each
    ReLU has the second derivative of a softplus; see `BentReLU`.

    Raises:
        TypeError: the model has a layer that `stack.layers` does not take.
    """
    stack, differentiable = pool_first(layers(model)), images.requires_grad
    with torch.enable_grad():
        # a clone, because autograd refuses tensors made in inference mode
        x = images if differentiable else images.detach().clone().requires_grad_()
        stack = [BentReLU.apply if differentiable and isinstance(layer, nn.ReLU) else layer for layer in stack]
        score = apply(stack, x).amax(1).sum()  # an image's logits depend on no other image
        (gradient,) = torch.autograd.grad(score, x, create_graph=differentiable)
    return minmax(gradient)


class BentReLU(torch.autograd.Function):
    """ReLU with the second derivative of softplus(BEND x) / BEND. Values and first derivatives are those of ReLU.

    Between the kinks of a network of ReLUs its gradient is constant, so the derivative of a gradient map would be zero and
    would give no direction. A softplus gives one (Dombrowski et al., "Explanations can be manipulated", 2019).
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.relu()

    @staticmethod
    def backward(ctx, dy: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        slope = torch.sigmoid(BEND * x)
        return dy * ((x > 0) + slope - slope.detach())  # the difference is zero, its derivative is not
