"""A victim of the user's own, FILE.py:NAME: a function that returns the model. It is checked and never trained.

The model takes images (N, C, H, W) in [0, 1], normalises them itself, and returns logits (N, classes), float32.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .config import Run
from .device import Device, full_fp32
from .entries import load
from .errors import GnimeError, brief, place
from .explanations import trial_images, try_explainer
from .models.classifier import Classifier
from .networks import TrainedModel
from .ownfiles import call, digest
from .store import digest_of
from .system import derive_seed, say, warn
from .words import counted

SAME = 1e-3  # of the largest logit: answers that differ less are the same up to rounding


def load_victim(run: Run, device: Device, classes: Callable[[], list[str]]) -> TrainedModel:
    """The run's own victim in evaluation mode, frozen and checked on one batch of noise. Before `classes` is called nothing
    was written.

    classes: the names of the classes that the logits are of.

    Raises:
        GnimeError: the file or the model is not as it should be.
    """
    torch.manual_seed(derive_seed(run.seed, "own victim"))  # a model that draws its weights draws the same in every script
    model = call(run.victim, load(run.victim))
    if not isinstance(model, nn.Module):
        raise GnimeError(f"--victim {run.victim}: returns {type(model).__name__}, not an nn.Module; it is a function without "
                         "arguments that returns the model")
    model = model.to(device.torch).eval().requires_grad_(False)
    model.register_forward_pre_hook(_in_one_piece)
    images = trial_images(run, device)
    with full_fp32():
        logits = check_model(model, images, f"--victim {run.victim}:")
        if run.script == "prepare":
            try_explainer(run, model, images)
    names = classes()
    if logits.shape[1] != len(names):
        known = f"{counted(len(names), 'class', 'classes')} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"
        raise GnimeError(f"--victim {run.victim}: returns {counted(logits.shape[1], 'logit')}, target {run.target.name} has "
                         f"{known}; return the logits of these alone, in this order")
    say(f"victim        {run.victim}: {sum(p.numel() for p in model.parameters()):,} parameters, not trained")
    return TrainedModel(model, digest_of(["own victim", run.victim.rpartition(":")[2], digest(run.victim), _state(model)]),
                        {"own": run.victim}, {})


def _in_one_piece(model: nn.Module, inputs: tuple) -> tuple:
    """Images in channels-last order, which the paper's classifier is fast in, cannot be viewed as rows, as a model may want."""
    return tuple(part.contiguous() if isinstance(part, Tensor) else part for part in inputs)


def check_model(model: nn.Module, images: Tensor, name: str) -> Tensor:
    """The logits of the images (N, C, H, W), after a model in evaluation mode has shown that it can be audited.

    Raises:
        GnimeError: it raises, returns no logits, answers for the same images differently, for an image as the others of its
            batch are, or changes its images, its weights or its mode. `name` starts the message.
    """
    before, given = digest_of(_state(model)), images.clone()
    logits = _logits(model, given, name)
    size = logits.abs().max().item()
    fault = ""
    if not torch.equal(given, images):
        fault = "changes the images that it is given; let it work on a copy"
    elif model.training:
        fault = "puts itself into training mode; leave its mode alone"
    elif digest_of(_state(model)) != before:
        fault = "changes its own weights or buffers when it answers; it must stay as it is"
    elif (far := (_logits(model, images.clone(), name) - logits).abs().max().item()) > SAME * size:
        fault = (f"answers for the same images differently, by {far:.3g} of {size:.3g}: chance is at work, such as dropout in "
                 "evaluation mode")
    elif (far := (_logits(model, images[:1].clone(), name) - logits[:1]).abs().max().item()) > SAME * size:
        fault = (f"answers for an image differently, by {far:.3g} of {size:.3g}, when it is alone in its batch; an answer must "
                 "not depend on other images")
    if fault:
        raise GnimeError(f"{name} {fault}")
    if logits.min() >= 0 and (logits.sum(1) - 1).abs().max() < 1e-3:
        warn(f"{name} its answers look like probabilities, because they are positive and their sums are 1; leave the softmax "
             "out where you can, because prediction and attackers are meant for logits")
    return logits


def _logits(model: nn.Module, images: Tensor, name: str) -> Tensor:
    """The model's answer, or an error that says why it is none."""
    shape = tuple(images.shape)
    try:
        with torch.no_grad():
            logits = model(images)
    except Exception as error:
        where = f" in {place(error)}" if place(error) else ""
        raise GnimeError(f"{name} raises{where} on images {shape}: {brief(error)}; --image-size sets their side") from None
    if not isinstance(logits, Tensor):
        raise GnimeError(f"{name} returns {type(logits).__name__}, not a tensor of logits (N, classes)")
    if logits.ndim != 2 or len(logits) != len(images) or logits.shape[1] < 2:
        raise GnimeError(f"{name} returns {tuple(logits.shape)} for images {shape}; logits are (N, classes)")
    if logits.dtype != torch.float32:
        raise GnimeError(f"{name} returns {logits.dtype}; return logits.float()")
    if not logits.isfinite().all():
        raise GnimeError(f"{name} returns numbers that are not finite")
    return logits


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}


def features(network: nn.Module, images: Tensor) -> Tensor:
    """The features that DeePSiM compares, (N, F): those of the paper's classifier, or of another network the input of the last
    nn.Linear that runs. Where none runs they are the logits."""
    if isinstance(network, Classifier):
        return network.features(images)
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple) -> None:
        seen[:] = inputs[:1]

    hooks = [part.register_forward_pre_hook(keep) for part in network.modules() if isinstance(part, nn.Linear)]
    try:
        logits = network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return (seen[0] if seen and len(seen[0]) == len(images) else logits).flatten(1)
