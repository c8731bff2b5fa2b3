"""Sources of images: MNIST, CIFAR-10, scikit-learn's digits, folders of pictures. All images are uint8."""

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError

from .config import Run, Target
from .errors import GnimeError
from .system import say

SUFFIXES = {".jpg", ".jpeg", ".png", ".pgm", ".ppm", ".pnm", ".bmp", ".gif", ".tif", ".tiff", ".webp"}


@dataclass
class Source:
    """The images of a target before the shuffle.

    Attributes:
        labels: (n,) int64, the class of each image.
        classes: names of the classes.
        read: k indices -> (k, C, S, S) uint8. Raises `GnimeError` if a file cannot be decoded.
        files: the path of each image, if each image is a file.
    """

    labels: np.ndarray
    classes: list[str]
    read: Callable[[Sequence[int]], np.ndarray]
    files: list[Path] | None = None


def open_source(run: Run) -> Source:
    """The images of the run's target. MNIST and CIFAR-10 are downloaded if they are missing.

    Raises:
        GnimeError: the data are missing or damaged, or a class folder is empty.
    """
    target = run.target
    if target.source == "digits":
        return _digits(target)
    if target.source == "mnist":
        return _torchvision(run, "MNIST")
    if target.source == "cifar10":
        folder = run.datasets / target.folder
        return _folders(run, [folder / "train", folder / "test"]) if folder.exists() else _torchvision(run, "CIFAR10")
    return _folders(run, [run.datasets / target.folder])


def resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """(n, C, H, W) uint8 -> (n, C, size, size) uint8: bilinear, half-pixel centres, no antialias (METHOD "Data")."""
    if images.shape[2:] == (size, size):
        return images
    resized = F.interpolate(images.float(), (size, size), mode="bilinear", align_corners=False)
    return resized.round().clamp(0, 255).to(torch.uint8)


def _digits(target: Target) -> Source:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy((bunch.images * (255 / 16)).round().astype(np.uint8))[:, None]  # (1797, 1, 8, 8)
    images = resize(images, target.size).numpy()
    return Source(bunch.target.astype(np.int64), [str(i) for i in range(10)], lambda indices: images[np.asarray(indices)])


def _torchvision(run: Run, name: str) -> Source:
    """MNIST or CIFAR-10, with training and test images joined. Missing data are downloaded."""
    import torchvision  # here, because it is slow to import and other targets do not need it

    kind, folder = getattr(torchvision.datasets, name), {"MNIST": "MNIST/raw", "CIFAR10": "cifar-10-batches-py"}[name]
    try:
        if not (run.datasets / folder).exists():
            say(f"{run.datasets / folder} not found: downloading {name}")
        run.datasets.mkdir(parents=True, exist_ok=True)
        parts = [kind(run.datasets, train=train, download=not (run.datasets / folder).exists()) for train in (True, False)]
        pixels = np.concatenate([np.asarray(part.data) for part in parts])
        labels = np.concatenate([np.asarray(part.targets, np.int64) for part in parts])
    except Exception as error:  # errors of the network, of the disk and of damaged files have many types
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise GnimeError(f"{run.datasets / folder}: {name} is missing or damaged and cannot be downloaded ({reason}); put its "
                         f"original files there, or name their folder with --datasets") from None
    images = torch.from_numpy(pixels)
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)

    def read(indices: Sequence[int]) -> np.ndarray:
        return resize(images[torch.as_tensor(indices)], run.target.size).contiguous().numpy()

    return Source(labels, [str(c) for c in parts[0].classes], read)


def _folders(run: Run, folders: list[Path]) -> Source:
    """`<folder>/<class>/<image>`; several folders (train, test) are joined."""
    files: list[Path] = []
    names: list[str] = []
    for folder in folders:
        if not folder.is_dir():
            raise GnimeError(f"{folder}: no such folder; put the images there as <class>/<image>, or name another --datasets")
        try:
            classes = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
            for path in classes:
                inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
                if not inside:
                    raise GnimeError(f"{path}: a class folder without images ({', '.join(sorted(SUFFIXES))}); "
                                     f"fill or remove it")
                files += inside
                names += [path.name] * len(inside)
        except OSError as error:
            raise GnimeError(f"{error.filename or folder}: cannot be read ({error.strerror})") from None
        if not classes:
            raise GnimeError(f"{folder}: no class folders in it; put the images there as <class>/<image>")
    classes = sorted(set(names))
    number = {name: i for i, name in enumerate(classes)}
    labels = np.asarray([number[name] for name in names], np.int64)
    target = run.target

    def read(indices: Sequence[int]) -> np.ndarray:
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding releases the GIL
            return np.stack(list(pool.map(lambda i: decode(files[i], target.channels, target.size), indices)))

    return Source(labels, classes, read, files)


def decode(path: Path, channels: int, size: int) -> np.ndarray:
    """One picture as (channels, size, size) uint8.

    Grey, palette, CMYK and 16-bit pictures are converted, transparency becomes white, the first frame of an animation counts,
    and the camera's orientation is applied.

    Raises:
        GnimeError: the file is not a picture, is damaged, or has more pixels than any photograph.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)
            with Image.open(path) as opened:
                pixels = _pixels(ImageOps.exif_transpose(opened), channels)
    except UnidentifiedImageError:
        raise GnimeError(f"{path}: not a picture; remove it, or pass --skip-bad") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise GnimeError(f"{path}: too many pixels to be decoded safely; remove it, or pass --skip-bad") from None
    except Exception as error:  # a damaged file can make a decoder raise anything
        reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
        raise GnimeError(f"{path}: a damaged or unreadable picture ({reason}); remove it, or pass --skip-bad") from None
    return resize(torch.from_numpy(pixels)[None], size)[0].numpy()


def _pixels(image: Image.Image, channels: int) -> np.ndarray:
    """(channels, H, W) uint8."""
    if image.mode.startswith("I"):  # 16 bits, which Pillow's own conversion would clip at 255
        values = np.asarray(image).astype(np.int64)
        image = Image.fromarray((values.clip(0, 65535) / 257).round().astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
