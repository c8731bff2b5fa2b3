"""The layers of a classifier as a list, and the last step of every explanation, its scaling to [0, 1]."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

LAYERS = (nn.Conv2d, nn.Linear, nn.ReLU, nn.MaxPool2d, nn.AvgPool2d, nn.Flatten, nn.Dropout)
KINDS = (nn.Sequential, *LAYERS)
FORWARD = {kind.forward: kind for kind in KINDS}


def layers(model: nn.Module) -> list[nn.Module] | None:
    """The layers of a sequential network, in order. Nested `nn.Sequential`s are flattened, dropout is left out.

    None: it has a module that is not one of `LAYERS`, has a forward of its own, or has hooks. An object that stands in several
    places is listed for each of them.
    """
    if not _is_as_pytorch_wrote_it(model) or vars(model).get("return_indices"):
        return None
    if not isinstance(model, nn.Sequential):
        return [] if isinstance(model, nn.Dropout) else [model]
    found: list[nn.Module] = []
    for part in model:
        if (inner := layers(part)) is None:
            return None
        found += inner
    return found


def _is_as_pytorch_wrote_it(module: nn.Module) -> bool:
    """Whether the module computes what the one of `LAYERS` computes from which it is derived, and that alone."""
    inherited = isinstance(module, KINDS) and isinstance(module, FORWARD.get(type(module).forward, ()))
    return inherited and not ("forward" in vars(module) or module._forward_pre_hooks or module._forward_hooks)


def pool_first(stack: Iterable[nn.Module]) -> list[nn.Module]:
    """The layers with each max pooling before the ReLU that precedes it. They commute, and ReLU then has fewer values."""
    stack = list(stack)
    for i in range(1, len(stack)):
        if isinstance(stack[i], nn.MaxPool2d) and isinstance(stack[i - 1], nn.ReLU):
            stack[i - 1], stack[i] = stack[i], stack[i - 1]
    return stack


def apply(stack: Iterable[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
    """The output of the layers on `x`, one after the other."""
    for layer in stack:
        if isinstance(layer, nn.Flatten) and x.requires_grad:
            x.register_hook(partial(unflatten, x.shape, x.stride()))
        x = layer(x)
    return x


def unflatten(shape: Sequence[int], strides: Sequence[int], values: Tensor) -> Tensor:
    """The inverse of nn.Flatten for gradients and relevance: `values` with the shape and the strides of the layer's input.

    With contiguous strides, the backward pass of a channels-last network would be slower.
    """
    if 0 in strides:  # the input was an expanded tensor, whose values overlap in memory
        return values.reshape(shape)
    return values.new_empty_strided(shape, strides).copy_(values.reshape(shape))


def minmax(e: Tensor, eps: float = 0.0) -> Tensor:
    """|e| scaled to [0, 1] over H, W, per image and per channel. A constant map becomes zeros (paper, section 2).

    e: (N, K, H, W), any range. eps: added to the divisor. Returns (N, K, H, W) in [0, 1], in 32 bits or more.
    """
    e = (e.float() if e.element_size() < 4 else e).abs()
    low, high = e.amin((2, 3), keepdim=True), e.amax((2, 3), keepdim=True)
    spread = high - low
    return (e - low) / torch.where(spread + eps > 0, spread + eps, torch.ones_like(spread))


def signed(e: Tensor) -> Tensor:
    """e / (2 max |e|) + 1/2, per image and per channel: the sign stays, zero becomes 1/2.

    e: (N, K, H, W), any range. Returns (N, K, H, W) in [0, 1].
    """
    high = e.abs().amax((2, 3), keepdim=True)
    return e / torch.where(high > 0, 2 * high, torch.ones_like(high)) + 0.5
