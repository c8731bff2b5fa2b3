"""What every explainer promises its callers, whatever the model."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Explain = Callable[..., Tensor]


def explainer(function: Explain) -> Explain:
    """An explainer that runs in 32 bits under autocast, in inference mode, and for no images.

    The explainer raises TypeError for images that are no floating-point (N, C, H, W), and for an accelerated network.
    """

    @functools.wraps(function)
    @torch.inference_mode(False)  # inference mode would record nothing to differentiate
    def explain(model: nn.Module, images: Tensor, *args, **kwargs) -> Tensor:
        if images.ndim != 4 or not images.is_floating_point():
            raise TypeError(f"images are {images.dtype} {tuple(images.shape)}; explainers need floating point (N, C, H, W)")
        model = unwrapped(model)
        for name, module in model.named_modules():
            if getattr(type(module), "accelerated", False):  # of a module, a name that is missing takes long to miss
                raise TypeError(f"layer {name or 'model'!r} is a {type(module).__name__}, whose operations explainers do not "
                                "know; make an accelerated network plain first")
        if not len(images):  # a network may not know what to do with no images
            return explain(model, images.new_zeros(1, *images.shape[1:]), *args, **kwargs)[:0]
        with torch.autocast(images.device.type, enabled=False):
            return function(model, images, *args, **kwargs)

    return explain


def unwrapped(model: nn.Module) -> nn.Module:
    """The network itself of one that is compiled, or spread over devices."""
    inner = model.module if isinstance(model, nn.DataParallel) else getattr(model, "_orig_mod", model)
    return model if inner is model else unwrapped(inner)


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, in which an image's logits depend on no other image. Every module's mode is restored."""
    modes = {module: module.training for module in model.modules()}
    try:
        for module in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
