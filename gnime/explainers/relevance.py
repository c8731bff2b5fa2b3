"""LRP over the steps of any network: what a step must know, and the way of the relevance down to the images."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from .graph import Step, Tape

Down = Callable[[Tensor, Tensor | None], Sequence[Tensor]]


@dataclass(eq=False)
class RelevanceStep(Step):
    """
    Attributes:
        down: (relevance of the output, scale) -> relevance of each input. May overwrite the former.
        positive: the output is at least 0, whatever the image.
        raw: no convolution or dense layer lies between the image and the output.
        scalable: `down` takes a scale, the factor of each channel that the output is multiplied with further on.
        border: of padding, its output on an image of ones.
    """

    down: Down = lambda relevance, scale: [relevance]
    positive: bool = False
    raw: bool = False
    scalable: bool = False
    border: Tensor | None = None
    relevance: Tensor | None = None
    scale: Tensor | None = None


class Relevance(Tape):
    """Runs a network and notes LRP's rule for each step.

    Args:
        rules: operation -> (its rule, the names of its arguments in order). A rule takes a `Call` and the arguments.
    """

    def __init__(self, model: nn.Module, rules: dict[str, tuple[Callable, str]]):
        super().__init__("lrp", model)
        self.rules = rules

    def source(self, images: Tensor) -> RelevanceStep:
        return RelevanceStep("images", [], images, raw=True)

    def operate(self, operation: str, function: Callable, args: tuple, kwargs: dict) -> object:
        if operation not in self.rules:
            raise self.refusal(operation, "there is no rule for it")
        rule, names = self.rules[operation]
        names = names.split()
        named = dict(zip(names, args, strict=False)) | {name: value for name, value in kwargs.items() if name != "inplace"}
        try:
            bound = inspect.signature(rule).bind(Call(operation, function), *args[len(names) :], **named)
        except TypeError as why:
            raise self.refusal(operation, f"there is no rule with these arguments ({why})") from None
        try:
            return rule(*bound.args, **bound.kwargs)
        except Unknown as why:
            raise self.refusal(operation, str(why)) from None


class Call(NamedTuple):
    """Of an operation: its name, and PyTorch's function."""

    operation: str
    function: Callable


class Unknown(Exception):
    """There is no rule for these arguments."""


def descend(steps: list[RelevanceStep], last: RelevanceStep, relevance: Tensor) -> Tensor:
    """The relevance of the images, which are the first step, from that of the last step's output. Empties the steps."""
    last.relevance = relevance
    for step in reversed(steps[1 : last.index + 1]):
        above, down, step.relevance, step.down = step.relevance, step.down, None, None
        if above is None:  # nothing that it computed reached the logits
            continue
        for below, part in zip(step.inputs, down(above, step.scale), strict=True):
            below.relevance = part if below.relevance is None else below.relevance + part
    return steps[0].relevance
