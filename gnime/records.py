"""Images, labels, and a service's predictions and maps of them, as .npy files in one folder, rows in one order."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from . import npy
from .batches import rows_at_once, slices
from .errors import GnimeError
from .filenames import IMAGES, LABELS, PREDICTIONS, maps_file
from .npy import Pictures
from .pictures import resize
from .store import open_artifact
from .words import counted

MAXIMUM_CLASSES = 100_000
SUMS = 0.01  # by which the sum of rounded probabilities may differ from 1


@dataclass(frozen=True)
class Predictions:
    """What a service answers beside its maps.

    Attributes:
        form: a name in `config.PUBLISHED`, by the values. "logits" may be any scores.
        classes: their number.
    """

    path: Path
    array: np.ndarray
    form: str
    classes: int

    @property
    def shape(self) -> tuple[int]:
        """Of one."""
        return (self.classes,)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """Rows in memory, (k, classes) float32. A label is 1 at its class and 0 elsewhere."""
        found = np.array(self.array[rows])
        if found.ndim > 1:
            return _float32(found)
        rows = np.zeros((len(found), self.classes), np.float32)
        rows[np.arange(len(found)), found] = 1
        return rows


class Folder:
    """The files of a data set of arrays, or of a record.

    Raises:
        GnimeError: a property does where its file is missing, damaged, of another shape than the images', or has other values
            than it may have.
    """

    def __init__(self, folder: Path):
        self.path = folder

    @cached_property
    def images(self) -> Pictures:
        """Of 1 or 3 channels, uint8 or floating-point. See `check_images` for their values."""
        found = npy.pictures(self.path / IMAGES)
        if found.shape[0] not in (1, 3):
            raise GnimeError(f"{found.path}: shape {found.array.shape}: {counted(found.shape[0], 'channel')} ({found.order}); "
                             "images have 1 or 3")
        if found.array.dtype != np.uint8 and found.array.dtype.kind != "f":
            raise GnimeError(f"{found.path}: {found.array.dtype}; images are uint8, or floating-point numbers in [0, 1]")
        return found

    def check_images(self) -> None:
        """Raises where an image of floating-point numbers leaves [0, 1]."""
        for first, rows in _parts(self.images) if self.images.array.dtype.kind == "f" else ():
            within = (rows >= 0) & (rows <= 1)
            if not within.all():
                raise GnimeError(f"{self.images.path}: row {first + _first(~within)} has numbers outside [0, 1], or that are "
                                 "not finite; images are uint8, or floating-point numbers in [0, 1]")

    def read_images(self, indices: Sequence[int], size: int) -> np.ndarray:
        """(k, C, size, size) uint8; see `pictures.resize`."""
        indices, shape = np.asarray(indices), self.images.shape
        found = np.empty((len(indices), shape[0], size, size), np.uint8)
        for part in slices(range(len(indices)), rows_at_once(shape)):
            rows = self.images[indices[part.start : part.stop]]
            rows = rows if rows.dtype == np.uint8 else np.rint(rows.astype(np.float32) * 255).astype(np.uint8)
            found[part.start : part.stop] = resize(torch.from_numpy(np.ascontiguousarray(rows)), size).numpy()
        return found

    @cached_property
    def labels(self) -> np.ndarray | None:
        """(N,) int64; None where there is no such file."""
        path = self.path / LABELS
        if not path.exists():
            return None
        found = self._whole_numbers(path, self._as_many(path, npy.load(path)))
        if len(found) and found.min() == found.max():
            raise GnimeError(f"{path}: every image is of class {found[0]}; at least two classes are needed; a record can do "
                             "without labels")
        return found

    @cached_property
    def predictions(self) -> Predictions:
        path = self.path / PREDICTIONS
        array = self._as_many(path, npy.load(path))
        if array.ndim == 1:
            numbers = self._whole_numbers(path, array)
            known = [] if self.labels is None else [count_classes(self.path / LABELS, self.labels)]
            return Predictions(path, numbers, "label", max([2, count_classes(path, numbers), *known]))
        if array.ndim != 2 or array.shape[1] < 2:
            raise GnimeError(f"{path}: shape {array.shape}; predictions are (N, classes), of two classes or more, or (N,) "
                             "whole numbers; of one score p save (1 - p, p)")
        found = Predictions(path, array, _form(path, array), array.shape[1])
        if self.labels is not None and self.labels.max(initial=0) >= found.classes:
            raise GnimeError(f"{self.path / LABELS}: labels up to {self.labels.max()}, but {PREDICTIONS} has {found.classes} "
                             "columns; label i is column i, from 0")
        return found

    def maps(self, xai: str) -> Pictures:
        """The maps, as the file has them. Their values are not looked at; see `check_maps`."""
        path = maps_file(self.path, xai)
        if not path.exists():
            there = sorted(other.name for other in self.path.glob(maps_file(self.path, "*").name))
            found = f"there: {', '.join(there[:10])}" if there else "there is none of any other --xai"
            raise GnimeError(f"{path}: no such file; {found}")
        found = npy.pictures(path)
        self._as_many(path, found.array)
        if found.shape[1] < 2:
            raise GnimeError(f"{path}: shape {found.array.shape}; maps are at least 2 x 2")
        return found

    def check_maps(self, xai: str) -> None:
        """Raises where a map has numbers that are not finite."""
        found = self.maps(xai)
        for first, rows in _parts(found):
            _check_finite(found.path, first, _float32(rows))

    @cached_property
    def classes(self) -> list[str]:
        """Their numbers."""
        record = (self.path / PREDICTIONS).exists()
        if not record and self.labels is None:
            raise GnimeError(f"{self.path / LABELS}: no such file; a data set has {IMAGES} and {LABELS}, and a record "
                             f"{PREDICTIONS} too, which can do without labels")
        return [str(i) for i in range(self.predictions.classes if record else int(self.labels.max(initial=0)) + 1)]

    def known_or_predicted(self) -> np.ndarray:
        """(N,) int64: the labels, or the predicted classes of a record where they are not known."""
        if self.labels is not None:
            return self.labels
        rows = slices(range(len(self.images)), rows_at_once(self.predictions.shape))
        return np.concatenate([self.predictions[part.start : part.stop].argmax(1) for part in rows] or [np.zeros(0, np.int64)])

    def digests(self) -> list[bytes]:
        """Of the files of images and labels."""
        files = (self.path / name for name in (IMAGES, LABELS))
        return [f"{file.name} {digest(file)}".encode() for file in files if file.exists()]

    def _as_many(self, path: Path, array: np.ndarray) -> np.ndarray:
        count = len(array) if array.ndim else 0
        if count != len(self.images):
            raise GnimeError(f"{path}: {counted(count, 'row')}, {IMAGES} has {len(self.images)}; row i of every file is of "
                             "image i")
        return array

    def _whole_numbers(self, path: Path, array: np.ndarray) -> np.ndarray:
        if array.ndim != 1 or array.dtype.kind not in "ui":
            raise GnimeError(f"{path}: {array.dtype} {array.shape}; labels are whole numbers ({len(self.images)},)")
        if array.size and not 0 <= array.min() <= array.max() < MAXIMUM_CLASSES:
            raise GnimeError(f"{path}: labels from {array.min()} to {array.max()}; classes are numbered from 0 to "
                             f"{MAXIMUM_CLASSES - 1} at most")
        return np.array(array, np.int64)


def count_classes(path: Path, numbers: np.ndarray) -> int:
    """How many classes whole numbers name, from 0 to the largest. Raises where these are more than the rows."""
    found = int(numbers.max(initial=-1)) + 1
    if found > len(numbers):
        raise GnimeError(f"{path}: a class {found - 1} makes {counted(found, 'class', 'classes')}, and there are "
                         f"only {counted(len(numbers), 'row')}; number the classes that occur from 0 on")
    return found


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    hasher = hashlib.sha256()
    with open_artifact(path) as file:
        while block := file.read(1 << 20):
            hasher.update(block)
    return hasher.hexdigest()


def _form(path: Path, array: np.ndarray) -> str:
    """The form of predictions (N, classes), by their values."""
    nothing = label = probabilities = True
    for first, rows in _parts(array):
        rows = _float32(rows)
        _check_finite(path, first, rows)
        nothing = nothing and not rows.any()
        label = label and bool(np.isin(rows, (0, 1)).all() and (rows.sum(1) == 1).all())
        probabilities = probabilities and bool(rows.min() >= 0 and (np.abs(rows.sum(1) - 1) < SUMS).all())
    return "nothing" if nothing else "label" if label else "probabilities" if probabilities else "logits"


def _parts(array: np.ndarray | Pictures):
    """Pairs of a row's number and the rows from there."""
    for part in slices(range(len(array)), rows_at_once(array[:0].shape[1:])):
        yield part.start, np.asarray(array[part.start : part.stop])


def _float32(rows: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # what is too large becomes infinite, which is then refused
        return rows.astype(np.float32)


def _check_finite(path: Path, first: int, rows: np.ndarray) -> None:
    finite = np.isfinite(rows)
    if not finite.all():
        raise GnimeError(f"{path}: row {first + _first(~finite)} has numbers that are not finite in 32 bits")


def _first(wrong: np.ndarray) -> int:
    """The first row with a wrong number."""
    return int(wrong.reshape(len(wrong), -1).any(1).argmax())
