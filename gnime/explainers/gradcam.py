"""Grad-CAM (Selvaraju et al., 2017) as the paper uses it, with the absolute value of the map instead of its ReLU."""

import torch
from torch import Tensor, nn

from .stack import apply, layers, minmax, pool_first


@torch.inference_mode(False)  # inference mode would record nothing to differentiate
def gradcam(model: nn.Module, images: Tensor, pool: int | None = None) -> Tensor:
    """|mean over channels of A times the channel's weight|, scaled to [0, 1] per image.

    A (N, K, h, w) is the output of the last convolution, after its ReLU and before pooling. A channel's weight is the mean
    over h, w of d s / d A, with s the largest logit.

    images: (N, C, H, W) in [0, 1]. pool: the weights are also averaged over this many successive images, as in the batches of
    the authors' release; a map then depends on other images. Returns (N, 1, h, w) in [0, 1], differentiable where images
    require gradients.

    Raises:
        TypeError: the model has a layer that `stack.layers` does not take.
        ValueError: the model has no convolution.
    """
    stack = layers(model)
    convolutions = [i for i, layer in enumerate(stack) if isinstance(layer, nn.Conv2d)]
    if not convolutions:
        raise ValueError("Grad-CAM needs a convolution, and the model does not have one")
    cut = convolutions[-1] + 1
    while cut < len(stack) and isinstance(stack[cut], nn.ReLU):
        cut += 1
    differentiable = images.requires_grad
    with torch.set_grad_enabled(differentiable):
        activation = apply(pool_first(stack[:cut]), images)
    with torch.enable_grad():
        activation.requires_grad_()
        score = apply(stack[cut:], activation).amax(1).sum()
        (gradient,) = torch.autograd.grad(score, activation, create_graph=differentiable)
    weight = gradient.mean((2, 3))  # (N, K)
    if pool:
        weight = torch.cat([w.mean(0, keepdim=True).expand_as(w) for w in weight.split(pool)])
    activation = activation if differentiable else activation.detach()
    cam = torch.einsum("nk,nkhw->nhw", weight, activation).unsqueeze(1) / weight.shape[1]
    return minmax(cam)
