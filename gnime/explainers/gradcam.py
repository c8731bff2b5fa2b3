"""Grad-CAM (Selvaraju et al., 2017) as the paper uses it, with the absolute value of the map instead of its ReLU."""

import torch
from torch import Tensor, nn

from .entry import evaluation, explainer
from .feature_map import WrongLayer, at_layer, at_step, last_feature_map
from .graph import check_logits
from .stack import apply, layers, minmax, pool_first


@explainer
def gradcam(model: nn.Module, images: Tensor, pool: int | None = None, layer: str | None = None) -> Tensor:
    """|mean over channels of A times the channel's weight|, scaled to [0, 1] per image.

    A (N, K, h, w) is the output of the last convolution, after the normalisation and the ReLU that follow it and before
    pooling; see `feature_map.last_feature_map`. A channel's weight is the mean over h, w of d s / d A, with s the largest
    logit.

    model: any differentiable classifier with a convolution. images: (N, C, H, W) in [0, 1]. pool: the weights are also
    averaged over this many successive images, as in the batches of the authors' release; a map then depends on other images.
    layer: the name of a module whose output is A instead, as "features.7". Returns (N, 1, h, w) in [0, 1], differentiable
    where images require gradients.

    Raises:
        TypeError: the model does not return logits, or they have no gradient with respect to A, or it turns images into
            tokens, as a transformer does.
        ValueError: the model has no convolution.
        WrongLayer: a ValueError. The model has no module of that name, or its output is no map that the logits depend on. The
            message lists the modules that return maps.
    """
    stack = layers(model) if layer is None else None
    if stack is not None:
        activation, gradient = _of_stack(stack, images)
    else:
        with evaluation(model):
            activation, gradient = _of_module(model, images, layer)
    weight = gradient.mean((2, 3))  # (N, K)
    if pool:
        weight = torch.cat([w.mean(0, keepdim=True).expand_as(w) for w in weight.split(pool)])
    activation = activation if images.requires_grad else activation.detach()
    cam = torch.einsum("nk,nkhw->nhw", weight, activation).unsqueeze(1) / weight.shape[1]
    return minmax(cam)


def _of_stack(stack: list[nn.Module], images: Tensor) -> tuple[Tensor, Tensor]:
    """A and d s / d A, (N, K, h, w) each."""
    convolutions = [i for i, layer in enumerate(stack) if isinstance(layer, nn.Conv2d)]
    if not convolutions:
        raise ValueError("Grad-CAM needs a convolution, and the model does not have one")
    cut = convolutions[-1] + 1
    while cut < len(stack) and isinstance(stack[cut], nn.ReLU):
        cut += 1
    differentiable = images.requires_grad
    with torch.set_grad_enabled(differentiable):
        activation = apply(pool_first(stack[:cut]), images.clone())  # a clone, because the first layer may work in place
    with torch.enable_grad():
        activation.requires_grad_()
        in_place = any(getattr(layer, "inplace", False) for layer in stack[cut:])
        logits = apply(stack[cut:], activation.clone() if in_place else activation)
        check_logits(logits, images)
        (gradient,) = torch.autograd.grad(logits.amax(1).sum(), activation, create_graph=differentiable)
    return activation, gradient


def _of_module(model: nn.Module, images: Tensor, layer: str | None) -> tuple[Tensor, Tensor]:
    """A and d s / d A, (N, K, h, w) each, of any network in evaluation mode."""
    if layer is None:
        logits, activation = at_step(model, images, last_feature_map(model, images[:1]))
    else:
        logits, activation = at_layer(model, images, layer)
    if logits.requires_grad:
        with torch.enable_grad():
            score = logits.amax(1).sum()
        (gradient,) = torch.autograd.grad(score, activation, create_graph=images.requires_grad, allow_unused=True)
        if gradient is not None:
            return activation, gradient
    if layer:
        raise WrongLayer(f"--layer {layer}: the logits have no gradient with respect to its output; choose another layer")
    raise TypeError("gradcam: the logits have no gradient with respect to the output of the last convolution; choose another "
                    "layer with --layer NAME")
