"""Sources of images: MNIST, CIFAR-10, scikit-learn's digits, folders of pictures or of arrays. All images are uint8."""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from . import originals, records
from .config import Run, Target
from .errors import GnimeError
from .filenames import LABELS
from .folders import Listing, list_pictures
from .pictures import decode, decoders, resize
from .system import warn


@dataclass
class Source:
    """The images of a target before the shuffle.

    Attributes:
        labels: (n,) int64, the class of each image.
        classes: names of the classes.
        read: k indices -> (k, C, S, S) uint8. Raises `GnimeError` if a file cannot be decoded.
        fingerprint: see `fingerprint`.
        files: the path of each image in `folder`, if each image is a file.
        labelled: whether the classes are known. Those of a record without labels are predicted.
    """

    labels: np.ndarray
    classes: list[str]
    read: Callable[[Sequence[int]], np.ndarray]
    fingerprint: dict | None = None
    files: list[Path] | None = None
    folder: Path | None = None
    labelled: bool = True

    def origin(self, index: int) -> str:
        """Where an image comes from: its file in `folder`, or its number in the source."""
        return str(self.files[index].relative_to(self.folder)) if self.files else str(index)


def open_source(run: Run) -> Source:
    """The images of the run's target. MNIST and CIFAR-10 are downloaded if they are missing.

    Raises:
        GnimeError: the data are missing or damaged, a class folder is empty, or there are fewer than two classes.
    """
    target = run.target
    if target.source == "digits":
        return _digits(target)
    if target.source == "mnist":
        return _mnist(run)
    if target.source in ("arrays", "record"):
        return _arrays(run)
    if target.source == "cifar10" and not _as_folders(run):
        originals.check_place_of_cifar10(run.datasets)
        return _cifar10(run)
    return _pictures(run)


def fingerprint(run: Run) -> dict | None:
    """What can be told of the run's source without decoding it. None: it is not there, or is a part of a library.

    A dict of "classes", "images" and "names", the digest of the classes' and files' names with the files' sizes.
    """
    source = run.target.source
    if source == "digits":
        return None
    if source == "mnist":
        heads = originals.heads_of_mnist(run.datasets)
        return heads and _fingerprint(10, sum(int.from_bytes(head[4:8], "big") for head in heads[::2]), heads)
    if source == "cifar10" and not _as_folders(run):
        return _CIFAR10 if (run.datasets / originals.CIFAR10_FOLDER).exists() else None
    if source in ("arrays", "record"):
        return _of_arrays(records.Folder(run.datasets / run.target.folder))
    try:
        return _of_listing(list_pictures(run.datasets / run.target.folder))
    except GnimeError:
        return None


def _fingerprint(classes: int, images: int, parts: list[bytes]) -> dict:
    return {"classes": classes, "images": images, "names": hashlib.sha256(b"\0".join(parts)).hexdigest()}


_CIFAR10 = _fingerprint(10, 60_000, [b"cifar-10-python"])  # torchvision verifies the checksums of all its files


def _of_listing(listing: Listing) -> dict:
    files = (os.fsencode(path.relative_to(listing.folder)) for path in listing.files)
    return _fingerprint(len(listing.classes), len(listing.files),
                        [b"%s %d" % pair for pair in zip(files, listing.sizes, strict=True)])


def _of_arrays(folder: records.Folder) -> dict:
    return _fingerprint(len(folder.classes), len(folder.images), folder.digests())


def _as_folders(run: Run) -> bool:
    """Whether CIFAR-10 lies there as folders of pictures. Neither an empty folder nor the original files are."""
    folder = run.datasets / run.target.folder
    return folder.is_dir() and any(path.is_dir() and path.name != originals.CIFAR10_FOLDER for path in folder.iterdir())


def _digits(target: Target) -> Source:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy((bunch.images * (255 / 16)).round().astype(np.uint8))[:, None]  # (1797, 1, 8, 8)
    images = resize(images, target.size).numpy()
    return Source(bunch.target.astype(np.int64), [str(i) for i in range(10)], lambda indices: images[np.asarray(indices)])


def _mnist(run: Run) -> Source:
    from torchvision.datasets import MNIST  # here, because it is slow to import and other targets do not need it

    images, labels = originals.read_mnist(run.datasets)
    return Source(labels.astype(np.int64), list(MNIST.classes), _resized(torch.from_numpy(images)[:, None], run.target.size),
                  fingerprint(run))


def _cifar10(run: Run) -> Source:
    parts = originals.read_cifar10(run.datasets)
    pixels = torch.from_numpy(np.concatenate([np.asarray(part.data) for part in parts]))
    labels = np.concatenate([np.asarray(part.targets, np.int64) for part in parts])
    read = _resized(pixels.permute(0, 3, 1, 2), run.target.size)
    return Source(labels, [str(c) for c in parts[0].classes], read, fingerprint(run))


def _resized(images: torch.Tensor, size: int) -> Callable[[Sequence[int]], np.ndarray]:
    return lambda indices: resize(images[torch.as_tensor(indices)], size).contiguous().numpy()


def _arrays(run: Run) -> Source:
    folder, size = records.Folder(run.datasets / run.target.folder), run.target.size
    folder.check_images()
    printed = _of_arrays(folder)
    if run.target.source == "arrays" and not run.victim:  # a --victim may know more classes than there are images
        records.count_classes(folder.path / LABELS, folder.labels)
    return Source(folder.known_or_predicted(), folder.classes, lambda indices: folder.read_images(indices, size), printed,
                  labelled=folder.labels is not None)


def _pictures(run: Run) -> Source:
    listing = list_pictures(run.datasets / run.target.folder, run.target.name)
    if passed_over := listing.describe_passed_over():
        warn(passed_over)
    number = {name: i for i, name in enumerate(listing.classes)}
    labels = np.asarray([number[name] for name in listing.names], np.int64)
    target, files = run.target, listing.files

    def read(indices: Sequence[int]) -> np.ndarray:
        with decoders() as pool:
            return np.stack(list(pool.map(lambda i: decode(files[i], target.channels, target.size), indices)))

    return Source(labels, listing.classes, read, _of_listing(listing), files, listing.folder)
