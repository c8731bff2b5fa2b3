"""Gradient of the largest logit (Simonyan et al., 2014)."""

import torch
from torch import Tensor, nn

from .stack import apply, layers, minmax, pool_first


@torch.inference_mode(False)  # inference mode would record nothing to differentiate
def grad(model: nn.Module, images: Tensor) -> Tensor:
    """|d s / d x| with s the largest logit, scaled to [0, 1] per image and channel.

    images: (N, C, H, W) in [0, 1]. Returns (N, C, H, W) in [0, 1].

    Raises:
        TypeError: the model has a layer that `stack.layers` does not take.
    """
    stack = pool_first(layers(model))
    with torch.enable_grad():
        x = images.detach().clone().requires_grad_()  # a clone, because autograd refuses tensors made in inference mode
        score = apply(stack, x).amax(1).sum()  # an image's logits depend on no other image
        (gradient,) = torch.autograd.grad(score, x)
    return minmax(gradient)
