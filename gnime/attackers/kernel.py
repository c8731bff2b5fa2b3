"""Kernel ridge regression from explanation and prediction to image, in closed form (docs/method.md "Kernel attacker").

It learns in seconds, and recovers more than networks do where images are few. The matrix and the coefficients are float64.
In float32 a wide kernel with the smallest ridge has no Cholesky factor, and rounding its coefficients, which reach 1e5, moves
pixels by up to 1.
"""

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.linalg import vector_norm

from ..batches import CHUNK, Rows, gather_rows, iter_batches
from ..data import AttackerData
from ..device import full_fp32
from ..errors import GnimeError
from ..experiment import Experiment
from ..registry import Row
from ..system import permutation, warn
from . import Fitted

IMAGES = 5000  # training images of the fit, at most: its kernel matrix takes 200 MB [G]
SEARCHED = 1500  # of them, those that the grid is searched with [G]
CHOOSING = 1000  # validation images that choose the grid point, at most [G]
HE = (0.7, 2.0, 6.0, 1e4)
HY = (0.5, 1.5, 5.0)
RIDGE = (1e-5, 1e-3, 0.03, 0.3)
FLOOR = 0.1  # share of the mean variance that is added to a pixel's: pixels that hardly vary are not blown up
COLUMNS = 1024  # of a matrix that are float64 at a time


class Parameters(NamedTuple):
    """Widths of the kernel over maps (None where they are withheld) and over logits; what is added to its diagonal."""

    he: float | None
    hy: float
    ridge: float


class Seen(NamedTuple):
    """Of n images, maps (n, ...), None where they are withheld, and predictions (n, ...); or numbers that belong to each."""

    maps: Tensor | None
    predictions: Tensor

    def rows(self, start: int, stop: int) -> "Seen":
        return Seen(*(None if values is None else values[start:stop] for values in self))


@dataclass(frozen=True)
class Scale:
    """values (n, ...) -> (values - mean) / (sqrt(var_j + floor * mean of var) * sqrt(d)), (n, d). Constants become zeros."""

    mean: Tensor
    divisor: Tensor

    @classmethod
    def fit(cls, values: Tensor, floor: float) -> "Scale":
        variance = values.var(0, correction=0)
        divisor = (values.shape[1] * (variance + floor * variance.mean())).sqrt()
        return cls(values.mean(0), divisor.where(divisor > 0, torch.ones_like(divisor)))

    def __call__(self, values: Tensor) -> Tensor:
        return values.flatten(1).sub(self.mean).div_(self.divisor)


def scales(seen: Seen) -> Callable[[Seen], Seen]:
    """A function that standardises other images as these are."""
    maps = None if seen.maps is None else Scale.fit(seen.maps, FLOOR)
    predictions = Scale.fit(seen.predictions, 0.0)
    return lambda other: Seen(None if maps is None else maps(other.maps), predictions(other.predictions))


def squared_distances(one: Tensor, other: Tensor) -> Tensor:
    """(n, d), (m, d) -> (n, m) float64."""
    found = torch.zeros(len(one), len(other), dtype=torch.double, device=one.device)
    for a, b in zip(one.split(COLUMNS, 1), other.split(COLUMNS, 1), strict=True):
        a, b = a.double(), b.double()
        norm_a, norm_b = (vector_norm(values, dim=1) for values in (a, b))  # no temporary array of squares
        found.addmm_(a, b.T, alpha=-2).add_(norm_a.square()[:, None]).add_(norm_b.square())
    return found.clamp_(min=0)


def distances(one: Seen, other: Seen) -> Seen:
    """Squared distances (n, m) of maps and of predictions."""
    return Seen(*(None if a is None else squared_distances(a, b) for a, b in zip(one, other, strict=True)))


def similarity(squared: Seen, he: float | None, hy: float) -> Tensor:
    """0.5 exp(-dy^2 / 2 hy^2) + exp(-de^2 / 2 he^2 - dy^2 / 2 hy^2), (n, m). Without maps de is 0, as between constant maps.

    So maps that say nothing are worth exactly as much as none. The first term alone, for rows without maps, would meet a ridge
    three times as strong there, and the difference would pass for a leak of the maps.
    """
    alike = torch.exp(squared.predictions / (-2 * hy**2))
    return 1.5 * alike if squared.maps is None else alike * (0.5 + torch.exp(squared.maps / (-2 * he**2)))


def kernel_matrix(one: Seen, other: Seen, wanted: Parameters) -> Tensor:
    """(n, m) float64, in blocks of rows: distances take little memory beside it."""
    n = len(one.predictions)
    made = torch.empty(n, len(other.predictions), dtype=torch.double, device=one.predictions.device)
    for start in range(0, n, CHUNK):
        made[start : start + CHUNK] = similarity(distances(one.rows(start, start + CHUNK), other), wanted.he, wanted.hy)
    return made


def factorise(matrix: Tensor, ridge: float) -> tuple[Tensor, float]:
    """Cholesky factor of matrix + ridge I, and that ridge: ten times larger as often as it takes."""
    while True:
        ridged = matrix.clone()
        ridged.diagonal().add_(ridge)
        factor, failed = torch.linalg.cholesky_ex(ridged)
        if not failed:
            return factor, ridge
        ridge *= 10


def search(train: Seen, images: Tensor, held: Seen, truth: Tensor) -> Parameters:
    """The grid point whose fit to `train` has the lowest clipped error on `held`; of equals the first."""
    between, across, mean = distances(train, train), distances(held, train), images.mean(0)
    errors = {}
    for he, hy in itertools.product((None,) if train.maps is None else HE, HY):
        matrix, similar = similarity(between, he, hy), similarity(across, he, hy)
        for ridge in RIDGE:
            factor, _ = factorise(matrix, ridge)
            weights = torch.cholesky_solve(similar.T, factor).T.float()  # of the training images in each reconstruction
            found = (weights @ (images - mean) + mean).clamp_(0, 1)
            errors[Parameters(he, hy, ridge)] = (found - truth).square().mean().item()
    return min(errors, key=errors.get)


@dataclass(frozen=True)
class KernelRidge:
    """images = mean + k(seen, train) @ coefficients, where coefficients = (k(train, train) + ridge I)^-1 (images - mean).

    Attributes:
        parameters: the grid point, with the ridge that the factorisation took.
        coefficients: (n, values) float64.
    """

    train: Seen
    parameters: Parameters
    mean: Tensor
    coefficients: Tensor

    @classmethod
    def fit(cls, train: Seen, images: Tensor, wanted: Parameters) -> "KernelRidge":
        """train: standardised. images (n, values)."""
        factor, ridge = factorise(kernel_matrix(train, train, wanted), wanted.ridge)
        mean = images.mean(0)
        coefficients = torch.empty(images.shape, dtype=torch.double, device=images.device)
        for start in range(0, images.shape[1], COLUMNS):
            columns = slice(start, start + COLUMNS)
            coefficients[:, columns] = torch.cholesky_solve((images[:, columns] - mean[columns]).double(), factor)
        return cls(train, wanted._replace(ridge=ridge), mean, coefficients)

    def predict(self, seen: Seen) -> Tensor:
        """(n, values) in [0, 1], float32. seen: standardised as `train` was."""
        return (kernel_matrix(seen, self.train, self.parameters) @ self.coefficients + self.mean).clamp_(0, 1).float()


def kernel(experiment: Experiment, row: Row, shown: AttackerData) -> Fitted:
    """The grid is searched with some training images and judged on validation images; the fit is to up to `IMAGES`.

    Raises:
        GnimeError: a map or a prediction is not a finite number.
    """
    began, device = time.monotonic(), experiment.device.torch
    sources = [shown.explanations, shown.predictions, shown.images]
    with torch.no_grad(), full_fp32():
        rows = shown.train.start + permutation(len(shown.train), experiment.run.seed, "kernel")[:IMAGES]
        maps, predictions, images = (_read(source, rows, device) for source in sources)
        if not all(values.isfinite().all() for values in (maps, predictions) if values is not None):
            raise GnimeError(f"{row.name}: its maps or predictions are not all finite; make them again, from prepare.py on")
        standardise = scales(Seen(maps, predictions))
        train = standardise(Seen(maps, predictions))
        del maps, predictions
        *held, truth = (_read(source, torch.tensor(shown.validation[:CHOOSING]), device) for source in sources)
        wanted = search(train.rows(0, SEARCHED), images[:SEARCHED], standardise(Seen(*held)), truth)
        model = KernelRidge.fit(train, images, wanted)
        if model.parameters.ridge > wanted.ridge:
            warn(f"{row.name}: the kernel matrix has no Cholesky factor with ridge {wanted.ridge:g}; it is "
                 f"{model.parameters.ridge:g} instead")
    shape = shown.images.shape[1:]

    def reconstruct(explanation: Tensor | None, prediction: Tensor) -> Tensor:
        return model.predict(standardise(Seen(explanation, prediction))).view(-1, *shape)

    with torch.no_grad():
        score = sum((reconstruct(explanation, prediction) - image).square().sum().item() for _, (explanation, prediction, image)
                    in iter_batches(sources, shown.validation, device)) / (len(shown.validation) * math.prod(shape))
    parameters = model.parameters._asdict() | {"images": len(rows)}
    return Fitted(reconstruct, {"score": score, "seconds": time.monotonic() - began, "parameters": parameters})


def _read(source: Rows | None, rows: Tensor, device: torch.device) -> Tensor | None:
    """These rows as float32, (n, values), on the device."""
    if source is None:
        return None
    found = torch.empty(len(rows), math.prod(source.shape[1:]), device=device)
    for start in range(0, len(rows), CHUNK):
        found[start : start + CHUNK] = gather_rows(source, rows[start : start + CHUNK], device).flatten(1)
    return found
