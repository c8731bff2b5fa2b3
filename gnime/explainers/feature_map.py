"""The feature map of a network that Grad-CAM explains: which one it is, and the logits as a function of it."""

import threading
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .graph import REMEDY, Step, Tape, check_logits, tensors, values

NORMS = {"batch_norm", "group_norm", "layer_norm", "instance_norm", "local_response_norm"}
RELUS = {"relu", "relu6", "hardtanh", "leaky_relu", "prelu", "elu", "selu", "celu", "silu", "gelu", "hardswish", "mish"}
DENSE = {"linear", "multi_head_attention_forward"}
ALONG = {*NORMS, "dropout", "dropout2d", "feature_dropout", "contiguous", "clone"}
JOINS = {"add", "cat", "concat", "concatenate"}  # between the last convolution and a ReLU: residual and dense connections
KEPT = 20  # names that a message lists


class WrongLayer(ValueError):
    """The network has no module of the name, or that module's output is no feature map that the logits depend on."""


class Watch(Tape):
    """Runs a network of any operations and notes their order, inputs and shapes.

    cut: index of a step whose output is kept as `leaf`, for gradients with respect to it.
    """

    def __init__(self, xai: str, model: nn.Module, cut: int | None = None, through: bool = False):
        super().__init__(xai, model)
        self.cut, self.through, self.leaf, self.count = cut, through, None, 0

    def operate(self, operation: str, function: Callable, args: tuple, kwargs: dict) -> object:
        inputs = [traced.step for traced in tensors((args, kwargs))]

        def step(out: object) -> object:
            if isinstance(out, (tuple, list)):
                return type(out)([step(part) for part in out])
            if not isinstance(out, Tensor):
                return out
            self.count += 1
            if self.count == self.cut:
                self.leaf = leaf_of(out, self.through)
                out = self.leaf.clone()  # what follows may work in place
            return Step(operation, inputs, out)

        return step(function(*values(args), **values(kwargs)))


def leaf_of(out: Tensor, through: bool) -> Tensor:
    """A copy of `out` that has gradients. through: they go on to what `out` was computed from; else nothing before it has."""
    return out.clone() if through and out.requires_grad else out.detach().clone().requires_grad_()


def last_feature_map(model: nn.Module, image: Tensor) -> int:
    """The step that computes the output of the last convolution, after the normalisation and the ReLU that follow it.

    Convolutions count in the order in which they run, and those of a single pixel do not count. If a sum or a concatenation
    lies between the convolution and its ReLU, as in a residual or a dense block, the ReLU is still the one that follows. image:
    (1, C, H, W).

    Raises:
        TypeError: the network turns the image into tokens.
        ValueError: it has no convolution.
    """
    watch = Watch("gradcam", model)
    with torch.no_grad():
        watch.run(image)
    steps = watch.steps
    found = [step for step in steps if step.operation == "conv2d" and max(step.shape[2:]) > 1]
    if not found:
        raise ValueError("Grad-CAM needs a convolution, and the model does not have one")
    last = found[-1]
    dense = [step for step in steps[last.index :] if step.operation in DENSE]
    if len(found) == 1 and any(len(step.inputs[0].shape) > 2 for step in dense):
        raise TypeError("gradcam: the network turns the image into tokens, and its one convolution only embeds patches; "
                        "--layer NAME takes a module that returns maps (N, K, h, w)" + REMEDY)
    cut = step = last
    joined = False
    while step.uses:
        step = steps[step.uses[0]]
        joined = joined or step.operation in JOINS
        if step.operation in RELUS or (step.operation in ALONG and not joined):
            cut = step
        elif step.operation not in ALONG and step.operation not in JOINS:
            break
        if step.operation in RELUS:
            break
    return cut.index


def at_step(model: nn.Module, images: Tensor, index: int) -> tuple[Tensor, Tensor]:
    """Logits (N, classes), and the output of the step with that index, with respect to which they can be differentiated."""
    watch = Watch("gradcam", model, index, through=images.requires_grad)
    with torch.enable_grad():
        logits, _ = watch.run(images)
    return logits, watch.leaf


def at_layer(model: nn.Module, images: Tensor, layer: str) -> tuple[Tensor, Tensor]:
    """As `at_step`, for the output of the module of that name in its last call.

    Raises:
        WrongLayer: no module of that name is called, or its output is no map.
    """
    calls: dict[str, list[object]] = {}
    with torch.no_grad():
        _run(model, images[:1], {name: lambda _, out, name=name: calls.setdefault(name, []).append(out) and None
                                 for name, module in model.named_modules() if name})
    maps = [name for name, found in calls.items() if _is_map(found[-1])]
    if layer not in calls:
        raise WrongLayer(f"--layer {layer}: no module of that name is called; {_listed(maps)}")
    if layer not in maps:
        out = calls[layer][-1]
        what = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise WrongLayer(f"--layer {layer}: its output is {what}, Grad-CAM needs a feature map (N, K, h, w) of more than one "
                         f"pixel; {_listed(maps)}")
    leaves: list[Tensor] = []

    def replace(_: object, out: Tensor) -> Tensor | None:
        leaves.append(leaf_of(out, images.requires_grad))
        return leaves[-1].clone() if len(leaves) == len(calls[layer]) else None

    with torch.enable_grad():
        logits = _run(model, images, {layer: replace})
    return logits, leaves[-1]


def _listed(maps: list[str]) -> str:
    """The modules that return feature maps, of many the last ones: they are nearest the output."""
    if not maps:
        return "no module has a feature map; use --xai grad"
    left_out = f" ({len(maps) - KEPT} before them are left out)" if len(maps) > KEPT else ""
    return f"modules with a feature map, in order, are {', '.join(maps[-KEPT:])}{left_out}"


def _is_map(out: object) -> bool:
    return isinstance(out, Tensor) and out.ndim == 4 and out.is_floating_point() and out.shape[2:].numel() > 1


def _run(model: nn.Module, images: Tensor, hooks: dict[str, Callable]) -> Tensor:
    """The logits, with (inputs, output) hooks of the modules of these names, which are removed afterwards.

    Calls from other threads, which may explain images of their own at the same time, do not reach the hooks.
    """
    modules, ours = dict(model.named_modules()), threading.get_ident()

    def of_this_thread(hook: Callable) -> Callable:
        return lambda _, inputs, out: hook(inputs, out) if threading.get_ident() == ours else None

    handles = []
    try:
        for name, hook in hooks.items():
            handles.append(modules[name].register_forward_hook(of_this_thread(hook)))
        logits = model(images.clone())
    finally:
        for handle in handles:
            handle.remove()
    check_logits(logits, images)
    return logits
