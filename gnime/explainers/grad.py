"""Gradient of the largest logit (Simonyan et al., 2014)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .entry import evaluation, explainer
from .feature_map import Watch
from .graph import REMEDY, check_logits
from .stack import apply, layers, minmax, pool_first

BEND = 5.0  # of 1, 2.5, 5, 10 and 20 the one that helped the white-box attacker most on the digits [G]


@explainer
def grad(model: nn.Module, images: Tensor) -> Tensor:
    """|d s / d x| with s the largest logit, scaled to [0, 1] per image and channel.

    model: any differentiable classifier, (N, C, H, W) -> (N, classes). images: (N, C, H, W) in [0, 1]. Returns (N, C, H, W) in
    [0, 1], differentiable where images require gradients; then each ReLU has the second derivative of a softplus; see
    `BentReLU`.

    Raises:
        TypeError: the model does not return logits, or they have no gradient with respect to the images.
    """
    stack, differentiable = layers(model), images.requires_grad
    with torch.enable_grad():
        # a clone, because autograd refuses tensors made in inference mode; x.clone(), because first layers may work in place
        x = images if differentiable else images.detach().clone().requires_grad_()
        if stack is not None:
            stack = pool_first(stack)
            stack = [BentReLU.apply if differentiable and isinstance(layer, nn.ReLU) else layer for layer in stack]
            logits = apply(stack, x.clone())
        else:
            with evaluation(model):
                logits = Bent("grad", model).run(x)[0] if differentiable else model(x.clone())
        check_logits(logits, images)
        gradient = None
        if logits.requires_grad:
            score = logits.amax(1).sum()  # an image's logits depend on no other image
            (gradient,) = torch.autograd.grad(score, x, create_graph=differentiable, allow_unused=True)
    if gradient is None:
        raise TypeError(f"grad: the model's logits have no gradient with respect to the images{REMEDY}")
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


class Bent(Watch):
    """Runs any network with `BentReLU` in place of its ReLUs."""

    def operate(self, operation: str, function: Callable, args: tuple, kwargs: dict) -> object:
        function = (lambda x, **_: BentReLU.apply(x)) if operation == "relu" else function
        return super().operate(operation, function, args, kwargs)
