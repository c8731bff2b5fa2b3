"""Asks a service that draws noise for each answer several times, and inverts the mean map (docs/method.md "Averaging")."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from ..arrays import scratch
from ..batches import iter_batches
from ..data import AttackerData
from ..defences import Protect, load_defence
from ..device import full_fp32
from ..experiment import Experiment
from ..registry import Row
from ..system import derive_seed
from . import Reconstruct, Trial
from .kernel import kernel

ANSWERS = (1, 4, 16, 64)  # to one image


def averaging(experiment: Experiment, row: Row, shown: AttackerData, best: Reconstruct) -> Iterator[Trial]:
    """The kernel attacker on the mean of k answers to each image, its own images too, for k in `ANSWERS`.

    The first answer is the row's map. The others are what a service would send that draws anew for each answer. Each trial's
    maps are overwritten by the next one.
    """
    inputs = experiment.defence_inputs(row)
    maps = scratch(tuple(shown.explanations.shape), np.float32, experiment.paths.aux)
    maps[:] = torch.as_tensor(shown.explanations).cpu().numpy()
    seen = replace(shown, explanations=maps)
    for answers in range(1, ANSWERS[-1] + 1):
        if answers > 1:
            again = load_defence(row, replace(inputs, seed=derive_seed(inputs.seed, "answer", answers)))
            add_to_mean(experiment, again, maps, answers)
        if answers in ANSWERS:
            fitted = kernel(experiment, row, seen)
            yield Trial(f"averaging {answers}", fitted.reconstruct, seen, fitted.summary | {"answers": answers})


def add_to_mean(experiment: Experiment, protect: Protect, maps: np.ndarray, count: int) -> None:
    """Makes the mean of count - 1 maps of each image that of count, with the maps of `protect`."""
    clean = experiment.attacker_data
    sources = [clean.explanations, clean.predictions, clean.images]
    with torch.no_grad(), full_fp32():
        for rows, (explanation, prediction, image) in iter_batches(sources, range(len(maps)), experiment.device.torch):
            part = maps[rows.start : rows.stop]
            part += (protect(explanation, prediction, image, rows).float().cpu().numpy() - part) / count
