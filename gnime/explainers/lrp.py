"""Layer-wise relevance propagation by the z+ rule (Montavon et al., 2017, "deep Taylor") as the paper uses it."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..products import product
from .entry import evaluation, explainer
from .graph import check_logits
from .relevance import Relevance, descend
from .rules import RULES
from .stack import layers, minmax, unflatten
from .zplus import EPS, Geometry, average_pool, transposed

Positive = Callable[[nn.Module], Tensor]  # a layer's W+


@explainer
def lrp(model: nn.Module, images: Tensor) -> Tensor:
    """The relevance of the pixels for the whole vector of logits, scaled to [0, 1] per image and channel.

    Dense layer and convolution: R_in = a * W+^T (R_out / (W+ a + eps)), W+ = max(W, 0), no bias. In the first convolution a
    is replaced by ones. Max pooling is treated as average pooling. ReLU and dropout do not change the relevance.

    What the paper's networks do not have (ours): where a layer's input has negative entries, negative weights pass relevance
    to them likewise. BatchNorm is folded into the layer before it, or passes relevance. A sum shares it by what each positive
    part contributed, a concatenation and a change of shape return each entry's. A tensor that is used several times receives
    the sum.

    images: (N, C, H, W) in [0, 1]. Returns (N, C, H, W) in [0, 1], differentiable where images require gradients.

    Raises:
        TypeError: an operation of the model has no rule; the message names it and its layer. Or the images are float16, where
            EPS is zero.
    """
    if images.dtype == torch.float16:
        raise TypeError("LRP adds 1e-9, which is zero in float16; give model and images as float32")
    stack = layers(model)
    if stack is not None and _is_plain(stack):
        with torch.set_grad_enabled(images.requires_grad):
            return minmax(_of_stack(stack, images, _positive), EPS)
    with torch.set_grad_enabled(images.requires_grad), evaluation(model):
        tape = Relevance(model, RULES)
        logits, last = tape.run(images.contiguous(memory_format=torch.channels_last))  # in which convolutions are faster
        return minmax(descend(tape.steps, last, logits.clone()), EPS)


def of_frozen(model: nn.Module) -> Callable[[nn.Module, Tensor], Tensor]:
    """`lrp` for this network alone, whose weights stay as they are: its layers are examined once, and W+ is computed once.

    Returns a function (model, images) -> maps, for 32-bit images outside of autocast and inference mode. It ignores the model
    where that is a plain stack, and is `lrp` where not.
    """
    stack = layers(model)
    if stack is None or not _is_plain(stack):
        return lrp
    kept = {layer: _positive(layer).detach() for layer in stack if isinstance(layer, (nn.Conv2d, nn.Linear))}
    return partial(_of_frozen, stack, kept)


def _of_frozen(stack: list[nn.Module], positive: dict[nn.Module, Tensor], model: nn.Module, images: Tensor) -> Tensor:
    if not len(images):
        return lrp(model, images)
    return minmax(_of_stack(stack, images, positive.__getitem__), EPS)


def _positive(layer: nn.Module) -> Tensor:
    return layer.weight.clamp(min=0)


def _is_plain(stack: list[nn.Module]) -> bool:
    """Whether `_of_stack` has the rules: each layer with weights or windows sees the image or what a ReLU left, at least 0."""
    positive = True
    for layer in stack:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            if not positive or getattr(layer, "padding_mode", "zeros") != "zeros":
                return False
            positive = False
        elif isinstance(layer, nn.ReLU):
            positive = True
        elif not positive or getattr(layer, "dilation", 1) not in (1, (1, 1)):
            return False
    return True


def _of_stack(stack: list[nn.Module], images: Tensor, positive: Positive) -> Tensor:
    """The relevance of the pixels, of any range. A layer at a time, with less to do than for a network of any form."""
    first = next((i for i, layer in enumerate(stack) if isinstance(layer, nn.Conv2d)), None)
    inputs, x = [], images.clone()  # a clone, because the first layer may work in place
    for layer in stack:
        inputs.append(None if isinstance(layer, nn.ReLU) else x)  # relevance passes a ReLU whatever its input
        x = _up(layer, x)
    check_logits(x, images)
    relevance = x
    for i in range(len(stack) - 1, -1, -1):
        # popped, because the layers below do not need a layer's input
        relevance = _down(stack[i], positive, inputs.pop(), relevance, first=i == first)
    return relevance


def _up(layer: nn.Module, x: Tensor) -> Tensor:
    if not isinstance(layer, nn.Linear) or layer.bias is None or x.ndim != 2:
        return layer(x)
    return product(x, layer.weight.T).add_(layer.bias)


def _down(layer: nn.Module, positive: Positive, a: Tensor | None, relevance: Tensor, first: bool) -> Tensor:
    """The relevance of a layer's input `a` from the relevance of its output, by the z+ rule. May overwrite `relevance`.

    `rules._zplus` is the same rule for networks of any form, whose inputs may be negative.

    first: whether the layer is the first convolution.
    """
    if isinstance(layer, nn.Linear):
        weight = positive(layer)
        return product(relevance.div_(product(a, weight.T).add_(EPS)), weight).mul_(a)
    if isinstance(layer, nn.Conv2d):
        weight = positive(layer)
        geometry = Geometry(layer.stride, layer.padding, layer.dilation, layer.groups)
        inputs = torch.ones_like(a[:1]) if first else a  # one image of ones serves the whole batch
        share = relevance.div_(F.conv2d(inputs, weight, None, *geometry).add_(EPS))
        back = transposed(share, weight, geometry, a.shape)
        return back if first else back.mul_(a)
    if isinstance(layer, (nn.MaxPool2d, nn.AvgPool2d)):
        return average_pool(a, relevance, layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode)
    if isinstance(layer, nn.Flatten):
        return unflatten(a.shape, a.stride(), relevance)
    return relevance  # ReLU
