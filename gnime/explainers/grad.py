"""Gradient of the largest logit (Simonyan et al., 2014)."""

import torch
from torch import Tensor, nn

from .stack import apply, layers, minmax, pool_first


@torch.inference_mode(False)  # which would record nothing to differentiate
def grad(model: nn.Module, images: Tensor) -> Tensor:
    """|d s / d x| with s the largest logit, scaled to [0, 1] per image and channel.

    images: (N, C, H, W) in [0, 1]. Returns (N, C, H, W) in [0, 1].

    Raises:
        TypeError: the model has a layer that `stack.layers` does not take.
    """
    stack = pool_first(layers(model))
    with torch.enable_grad():
        x = images.detach().clone().requires_grad_()  # cloned: images made in inference mode cannot be tracked
        score = apply(stack, x).amax(1).sum()  # images do not mix: one sum, one gradient for each
        (gradient,) = torch.autograd.grad(score, x)
    return minmax(gradient)
