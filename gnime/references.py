"""The usefulness of clean and of random maps, beside which that of protected ones is read (docs/method.md "Usefulness")."""

import torch

from .batches import iter_batches
from .defences.noise import row_noise
from .device import full_fp32
from .experiment import Experiment
from .metrics.usefulness import relative
from .registry import METRICS

CLEAN, RANDOM = "clean map", "random map"


def references(experiment: Experiment) -> dict[str, dict[str, float]]:
    """Means over the test images, of the clean explanation and of a map of uniform noise in [0, 1], one draw per image.

    Of each metric of a protected map that takes nothing of a reconstruction: it needs no attacker.
    """
    shown, seed = experiment.attacker_data, experiment.run.seed
    found = {kind: {} for kind in (RANDOM, CLEAN)}
    sources = [shown.explanations, shown.images, shown.predictions, shown.labels]
    with torch.no_grad(), full_fp32():
        for rows, (clean, image, prediction, label) in iter_batches(sources, shown.test, experiment.device.torch):
            inputs = {"clean": clean, "image": image, "prediction": prediction, "label": label}
            if "victim" not in experiment.lacking:
                inputs["victim"] = experiment.victim.network
            uniform = torch.special.ndtr(row_noise(seed, RANDOM, clean, rows))
            for kind, protected in ((RANDOM, uniform), (CLEAN, clean)):
                inputs["protected"] = protected
                for name, metric in METRICS.items():
                    if "protected" in metric.takes and inputs.keys() >= {*metric.takes}:
                        total = metric.load()(*(inputs[what] for what in metric.takes)).double().sum().item()
                        found[kind][name] = found[kind].get(name, 0.0) + total / len(shown.test)
    return found


def scale(numbers: dict, found: dict[str, dict[str, float]]) -> dict:
    """The numbers of a row, those of scaled metrics relative to `references`; None where these are too close."""
    return numbers | {name: relative(numbers[name], found[RANDOM][name], found[CLEAN][name])
                      for name, metric in METRICS.items() if metric.scaled and numbers.get(name) is not None}
