"""A defender's half that is made up, and METHOD's conditional mean written out slowly, for tests of bounded defences."""

import math

import numpy as np
import torch

from gnime.cli import resolve
from gnime.defences import DefenderData
from gnime.defences.class_mean import class_means
from gnime.device import Device
from gnime.networks import build

DEVICE = Device(resolve("eval", ["--gpu", "-1"]))


def made_up(n=120, first=7, noise=0.05, seed=0):
    """A defender's half, rows `first` to `first + n` of more: maps (2, 4, 4) that follow from the logits, and noise."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(first + n + 5, 3)).astype(np.float32) * [3.0, 1.0, 0.5]
    waves = np.sin(logits @ np.random.default_rng(99).normal(scale=0.5, size=(3, 32)))  # the same for all seeds
    maps = (0.5 + 0.3 * waves + noise * rng.normal(size=waves.shape)).clip(0, 1).astype(np.float32).reshape(-1, 2, 4, 4)
    maps, logits, rows = torch.from_numpy(maps), torch.from_numpy(logits.astype(np.float32)), range(first, first + n)
    return DefenderData(maps, logits, rows, class_means(maps, logits, rows, DEVICE), 5, DEVICE)


def network(fit):
    """As it is loaded: every buffer has the shape that the specification gives it."""
    made = build(fit.spec)
    made.load_state_dict(fit.tensors)
    return made


def defender(data):
    at = slice(data.rows.start, data.rows.stop)
    return data.explanations[at], data.predictions[at]


def twin(data):
    """docs/method.md's formula and grid, every image left out by fitting the others. Returns width, ridge, its error, and g."""
    maps, logits = (np.asarray(a, np.float64).reshape(len(data.rows), -1) for a in defender(data))
    kinds = logits.argmax(1)
    means = np.stack([maps[kinds == kind].mean(0) for kind in range(logits.shape[1])])
    rest, mean, std = maps - means[kinds], logits.mean(0), logits.std(0)

    def kernel(one, other, width):
        z, w = ((y - mean) / std / math.sqrt(len(mean)) for y in (one, other))
        return np.exp(-((z[:, None] - w[None]) ** 2).sum(2) / (2 * width**2))

    def regression(seen, width, ridge):
        matrix = kernel(logits[seen], logits[seen], width) + ridge * np.eye(len(seen))
        coefficients = np.linalg.solve(matrix, rest[seen])
        return lambda y: kernel(y, logits[seen], width) @ coefficients

    found = {}
    for width in (0.3, 0.5, 1, 1.5, 3):
        for ridge in (0.01, 0.1, 0.3, 1):
            left = [rest[i] - regression(np.delete(np.arange(len(rest)), i), width, ridge)(logits[i : i + 1])[0]
                    for i in range(len(rest))]
            found[width, ridge] = np.square(left).mean(), np.array(left)
    width, ridge = min(found, key=lambda grid: found[grid][0])
    whole = regression(np.arange(len(rest)), width, ridge)

    def g(y):
        y = np.asarray(y, np.float64)
        return (means[y.argmax(1)] + whole(y)).clip(0, 1).reshape(-1, *data.explanations.shape[1:])

    return width, ridge, *found[width, ridge], g
