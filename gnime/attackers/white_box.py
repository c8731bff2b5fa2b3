"""Optimises the image until victim, explainer and defence give the published answer (docs/method.md "White-box attacker")."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim.lr_scheduler import PolynomialLR

from ..batches import gather_rows
from ..data import AttackerData
from ..defences import load_defence
from ..device import full_fp32
from ..experiment import Experiment
from ..explanations import explainer, publish
from ..metrics.leakage import mse
from ..registry import DEFENCES, Row
from . import NotApplicable, Reconstruct, Trial

IMAGES = 60  # of the test images, the first: they are in random order
CHOOSING = 24  # validation images that choose the weights, the first
STEPS, RATE = 120, 0.02
MAPS = (0.3, 5.0, 100.0)  # w_e
START = (0.3, 1.5, 8.0)  # w_x
PREDICTION = 0.02
TOGETHER = 32  # images at a time: the graph of an explanation takes several times the memory of its maps [G]

Answer = Callable[[Tensor], tuple[Tensor | None, Tensor]]  # images -> maps, None where they are withheld, and predictions


class Weights(NamedTuple):
    """Of the squared differences of maps (w_e) and of the image from its start (w_x)."""

    maps: float
    start: float


def white_box(experiment: Experiment, row: Row, shown: AttackerData, best: Reconstruct) -> list[Trial]:
    """Starts at the reconstruction of `best`. Attacks the first `IMAGES` test images.

    The weights have the lowest error on `CHOOSING` validation images. If no weights lower the error of the start, the start is
    the result.

    Raises:
        NotApplicable: the maps have no derivative with respect to the image, or depend on other images.
    """
    answer, errors = answer_of(experiment, row), {}

    def reconstruct(explanation: Tensor | None, prediction: Tensor, weights: Weights | None) -> Tensor:
        start = best(explanation, prediction).float().clamp(0, 1)
        return start if weights is None else optimise(answer, start, (explanation, prediction), weights)

    sources = [shown.explanations, shown.predictions, shown.images]
    explanation, prediction, image = (None if source is None else gather_rows(
        source, shown.validation[:CHOOSING], experiment.device.torch) for source in sources)
    with torch.no_grad(), full_fp32():
        for weights in (None, *itertools.starmap(Weights, itertools.product(MAPS if row.defence else (0.0,), START))):
            errors[weights] = mse(image, reconstruct(explanation, prediction, weights)).mean().item()
    chosen = min(errors, key=errors.get)
    summary = {"weights": chosen and chosen._asdict(), "validation": errors[chosen], "start_validation": errors[None]}
    return [Trial("white-box", lambda explanation, prediction: reconstruct(explanation, prediction, chosen),
                  replace(shown, test=shown.test[:IMAGES]), summary)]


def answer_of(experiment: Experiment, row: Row) -> Answer:
    """What the row's service answers, as a differentiable function of the images.

    A defence that draws noise is replaced by its mean, and one that sends the nearest of some maps by a map that it takes for
    such. Both are the explanation itself. A published label has no derivative, and guides nothing.

    Raises:
        NotApplicable: see `white_box`; the function raises it too.
    """
    victim, form = experiment.victim.network, experiment.run.published
    if row.defence is None:
        return lambda images: (None, publish(victim(images), form))
    explain, pool = explainer(experiment.run)
    if pool:
        raise NotApplicable("with --official gradcam a map depends on the other images of its batch")
    defence = DEFENCES[row.defence]
    protect = None if defence.draws or defence.quantises else load_defence(row, experiment.defence_inputs(row))

    def answer(images: Tensor) -> tuple[Tensor, Tensor]:
        prediction, maps = publish(victim(images), form), explain(victim, images)
        if not maps.requires_grad:
            raise NotApplicable(f"the maps of {experiment.run.xai} have no derivative with respect to the image")
        return protect(maps, prediction, images, range(len(images))) if protect else maps, prediction

    return answer


def optimise(answer: Answer, start: Tensor, seen: tuple[Tensor | None, Tensor], weights: Weights) -> Tensor:
    """Images that minimise w_e |e'(x) - e'|^2 + 0.02 |f(x) - y|^2 + w_x |x - start|^2 in [0, 1], by Adam from the start.

    start: (n, C, T, T) in [0, 1]. seen: maps e' (n, K, S, S) or None, predictions y (n, classes). An image does not depend on
    the others. Returns (n, C, T, T) in [0, 1].
    """
    found = []
    for begin in range(0, len(start), TOGETHER):
        part = slice(begin, begin + TOGETHER)
        found.append(_optimise(answer, start[part], [None if s is None else s[part] for s in seen], weights))
    return torch.cat(found)


@torch.enable_grad()
def _optimise(answer: Answer, start: Tensor, seen: list[Tensor | None], weights: Weights) -> Tensor:
    x, (explanation, prediction) = start.clone().requires_grad_(), seen
    adam = torch.optim.Adam([x], RATE)
    schedule = PolynomialLR(adam, STEPS)  # falls to 0 in a straight line
    for _ in range(STEPS):
        loss = objective(answer(x), (explanation, prediction), x - start, weights)
        (x.grad,) = torch.autograd.grad(loss, x)
        adam.step()
        schedule.step()
        with torch.no_grad():
            x.clamp_(0, 1)
    return x.detach()


def objective(answered: tuple[Tensor | None, Tensor], seen: tuple[Tensor | None, Tensor], moved: Tensor,
              weights: Weights) -> Tensor:
    """The sum over images of what `optimise` minimises. answered, seen: maps and predictions. moved: x - start."""
    loss = PREDICTION * (answered[1] - seen[1]).square().sum() + weights.start * moved.square().sum()
    return loss if seen[0] is None else loss + weights.maps * (answered[0] - seen[0]).square().sum()
