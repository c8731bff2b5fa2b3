"""A classifier as the list of its layers, and the scaling that every explanation ends with."""

import torch
from torch import Tensor, nn

LAYERS = (nn.Conv2d, nn.Linear, nn.ReLU, nn.MaxPool2d, nn.AvgPool2d, nn.Flatten, nn.Dropout)


def layers(model: nn.Module) -> list[nn.Module]:
    """The layers of a feed-forward stack, in order; nested `nn.Sequential`s are opened.

    Raises:
        TypeError: a layer is none of `LAYERS`; the message names it.
    """
    found = []

    def walk(module: nn.Module, name: str) -> None:
        if isinstance(module, nn.Sequential):
            for child_name, child in module.named_children():
                walk(child, f"{name}.{child_name}" if name else child_name)
        elif isinstance(module, LAYERS):
            found.append(module)
        else:
            known = ", ".join(kind.__name__ for kind in LAYERS)
            raise TypeError(f"layer {name or 'model'!r} is a {type(module).__name__}; explainers take nn.Sequential of {known}")

    walk(model, "")
    return found


def apply(stack: list[nn.Module], x: Tensor) -> Tensor:
    """The output of the layers on `x`, in evaluation mode: dropout passes through."""
    for layer in stack:
        x = x if isinstance(layer, nn.Dropout) else layer(x)
    return x


def minmax(e: Tensor, eps: float = 0.0) -> Tensor:
    """|e| scaled to [0, 1] over H, W, per image and per channel; a constant map becomes zeros (paper, section 2).

    e: (N, K, H, W), any range. eps is added to the divisor.
    """
    e = e.abs()
    low, high = e.amin((2, 3), keepdim=True), e.amax((2, 3), keepdim=True)
    spread = high - low
    return (e - low) / torch.where(spread + eps > 0, spread + eps, torch.ones_like(spread))
