"""One training step of each kind at the paper's sizes: its networks, a batch of random numbers, losses and gradients."""

import contextlib
import os

import torch
from torch import Tensor, nn

from gnime.batches import channels_last
from gnime.config import Target
from gnime.models.classifier import Classifier
from gnime.models.injector import Injector, two_player_step
from gnime.networks import build, classifier_spec, injector_spec, inverter_spec
from gnime.ops import accelerate
from gnime.training import cross_entropy, mean_squared_error

CLASSES = 10
BATCH = {"injector": 1024, "expmi": 128, "predmi": 128, "victim": 256}
PLAIN = os.environ.get("PLAIN") == "1"  # networks as the method states them


def sides(target: Target) -> dict[str, tuple[int, int]]:
    """Channels and side of the maps, by the explainers that make them."""
    return {"": (target.channels, target.size), " of Grad-CAM": (1, target.size // 2)}


def specs(kind: str, target: Target, shape: tuple[int, int]) -> list[dict]:
    """The networks that a step of this kind trains together, for explanations of `shape` (channels, side)."""
    if kind == "victim":
        return [classifier_spec(target, CLASSES)]
    if kind == "injector":
        return [injector_spec(target, shape, CLASSES, 0.4, 0.3), inverter_spec("expmi", target, shape, CLASSES)]
    return [inverter_spec(kind, target, shape, CLASSES)]


def networks(kind: str, target: Target, shape: tuple[int, int], where: torch.device, plain: bool = False) -> list[nn.Module]:
    """The same weights each time, on the device; accelerated, unless `plain` or `PLAIN`."""
    made = [build(spec, 0, str(i)) for i, spec in enumerate(specs(kind, target, shape))]
    made = made if plain or PLAIN else [accelerate(network) for network in made]
    return [network.to(where, memory_format=torch.channels_last).train() for network in made]


def batch(target: Target, shape: tuple[int, int], n: int, where: torch.device) -> list[Tensor]:
    """Explanation (n, K, S, S), prediction (n, 10), image (n, C, T, T), label (n,); the same numbers on every device."""
    numbers = torch.Generator().manual_seed(1)
    explanation = torch.rand(n, shape[0], shape[1], shape[1], generator=numbers)
    prediction = torch.randn(n, CLASSES, generator=numbers)
    image = torch.rand(n, target.channels, target.size, target.size, generator=numbers)
    label = torch.randint(0, CLASSES, (n,), generator=numbers)
    return [channels_last(values.to(where)) if values.ndim == 4 else values.to(where)
            for values in (explanation, prediction, image, label)]


def step(nets: list[nn.Module], values: list[Tensor], autocast: contextlib.AbstractContextManager) -> Tensor:
    """Losses and gradients, into `.grad`. Returns the loss of the last network."""
    explanation, prediction, image, label = values
    with autocast:
        if isinstance(nets[0], Injector):
            return two_player_step(*nets, [explanation, prediction, image], 100.0).inverter
        loss = (cross_entropy(nets[0], [image, label]) if isinstance(nets[0], Classifier)
                else mean_squared_error(nets[0], [explanation, prediction, image]))
    loss.backward()
    return loss.detach()


def gradient(nets: list[nn.Module]) -> Tensor:
    """All gradients as one vector on the CPU, float64."""
    return torch.cat([p.grad.detach().double().cpu().flatten() for net in nets for p in net.parameters()])


def relative(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference, relative to the norm of `expected`."""
    found, expected = found.double().cpu(), expected.double().cpu()
    return ((found - expected).norm() / expected.norm().clamp(min=1e-30)).item()
