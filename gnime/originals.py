"""The original files of MNIST and CIFAR-10: found under the names that they usually have, or downloaded."""

import contextlib
import gzip
import math
import struct
import tempfile
from pathlib import Path

import numpy as np

from .errors import GnimeError, printable
from .regular import open_regular
from .system import say

MNIST_NAMES = tuple(f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))
MNIST_FOLDERS = ("MNIST/raw", "MNIST", "mnist/raw", "mnist", ".")  # in --datasets
CIFAR10_FOLDER, CIFAR10_ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"
CIFAR10_ELSEWHERE = (".", *(f"{name}{inside}" for name in ("cifar10", "cifar-10", "CIFAR10", "CIFAR-10")
                            for inside in ("", f"/{CIFAR10_FOLDER}")))  # in --datasets, where people put them
MOST = 1 << 30  # bytes of an array in MNIST's format


def find_mnist(datasets: Path) -> dict[str, list[Path]]:
    """The files that there are of each of `MNIST_NAMES`, in the first folder that has any."""
    for folder in MNIST_FOLDERS:
        found = {name: [path for spelt in (name, name.replace("-idx", ".idx")) for ending in ("", ".gz")
                        if (path := datasets / folder / f"{spelt}{ending}").exists()] for name in MNIST_NAMES}
        if any(found.values()):
            return found
    return dict.fromkeys(MNIST_NAMES, [])


def read_mnist(datasets: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 28, 28) and labels (n,) uint8 of MNIST, training and test set joined. Missing files are downloaded.

    Raises:
        GnimeError: files are missing and cannot be downloaded, or damaged.
    """
    found = find_mnist(datasets)
    missing = [name for name, paths in found.items() if not paths]
    if not any(found.values()) and (others := _other_idx_files(datasets)):
        raise GnimeError(f"{others[0].parent}: {', '.join(printable(path.name, 60) for path in others)} are not MNIST's files "
                         f"({', '.join(MNIST_NAMES)}, also as .gz); for MNIST choose another --datasets, and make another data "
                         "set a folder of class folders")
    if missing and _may_download(found):
        _download_mnist(datasets, missing)
        found = find_mnist(datasets)
    elif missing:
        folder = next(paths[0].parent for paths in found.values() if paths)
        there = ", ".join(path.name for paths in found.values() for path in paths)
        raise GnimeError(f"{folder}: {', '.join(missing)} missing; put the original files there, also as .gz. Nothing is "
                         f"downloaded beside {there}: it is not MNIST's original file, or damaged; with an empty "
                         f"{datasets / MNIST_FOLDERS[0]} all files are")
    arrays = {name: _first_good(paths, 3 if "images" in name else 1) for name, paths in found.items()}
    images, labels = ([arrays[name] for name in MNIST_NAMES if kind in name] for kind in ("images", "labels"))
    if [len(part) for part in images] != [len(part) for part in labels]:
        raise GnimeError(f"{found[MNIST_NAMES[0]][0].parent}: MNIST has {list(map(len, images))} images and "
                         f"{list(map(len, labels))} labels; put the original files there")
    if (most := max(part.max(initial=0) for part in labels)) > 9:
        raise GnimeError(f"{found[MNIST_NAMES[1]][0].parent}: there are labels up to {most}, and MNIST has 0 to 9; make a data "
                         "set of more classes a folder of class folders")
    return np.concatenate(images), np.concatenate(labels)


def _other_idx_files(datasets: Path) -> list[Path]:
    """Files in MNIST's format under other names, such as EMNIST's, in the first folder that has any; at most four."""
    for folder in MNIST_FOLDERS:
        if others := sorted((datasets / folder).glob("*-ubyte")) + sorted((datasets / folder).glob("*-ubyte.gz")):
            return others[:4]
    return []


def _first_good(paths: list[Path], dimensions: int) -> np.ndarray:
    faults = []
    for path in paths:
        try:
            return _read_idx(path, dimensions)
        except (OSError, ValueError, EOFError, struct.error) as error:
            faults.append(f"{path}: damaged ({printable(error)})")
    raise GnimeError(f"{'; '.join(faults)}; put the original file there")


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    """An array of bytes in MNIST's format: 0, 0, 8, dimensions, the shape as big-endian 32-bit numbers, the values."""
    with open_regular(path) as raw, gzip.open(raw) if path.suffix == ".gz" else raw as file:
        magic, *shape = struct.unpack(f">{1 + dimensions}I", file.read(4 * (1 + dimensions)))
        if magic != 0x800 + dimensions or (dimensions == 3 and 0 in shape) or math.prod(shape) > MOST:
            raise ValueError(f"no array of {dimensions} dimensions in MNIST's format")
        data = bytearray()  # in pieces, because a damaged header may promise any amount
        while len(data) < math.prod(shape) and (piece := file.read(min(1 << 24, math.prod(shape) - len(data)))):
            data += piece
        if len(data) < math.prod(shape) or file.read(1):
            raise ValueError(f"its size is not that of {shape} bytes")
    return np.frombuffer(data, np.uint8).reshape(shape)


def heads_of_mnist(datasets: Path) -> list[bytes] | None:
    """The first 4096 bytes of each of MNIST's files, which tell data sets of this format apart; None: not all are there."""
    heads = []
    for paths in find_mnist(datasets).values():
        if not paths:
            return None
        try:
            with open_regular(paths[0]) as raw, gzip.open(raw) if paths[0].suffix == ".gz" else raw as file:
                heads.append(file.read(4096))
        except (OSError, ValueError, EOFError):
            return None
    return heads


def _may_download(found: dict[str, list[Path]]) -> bool:
    """Whether what is there is of the same download: nothing, or compressed originals. The rest may be another data set."""
    from torchvision.datasets import MNIST
    from torchvision.datasets.utils import check_integrity

    sums = {name.removesuffix(".gz"): md5 for name, md5 in MNIST.resources}
    return all(not paths or any(path.suffix == ".gz" and check_integrity(path, sums[name]) for path in paths)
               for name, paths in found.items())


def _download_mnist(datasets: Path, missing: list[str]) -> None:
    """A file appears under its name when it is whole. So an interrupted download is tried again."""
    from torchvision.datasets import MNIST

    folder = datasets / MNIST_FOLDERS[0]
    say(f"{folder}: {', '.join(missing)} not found: downloading MNIST")
    sums = dict(MNIST.resources)
    for name in missing:
        _download(folder / f"{name}.gz", [f"{mirror}{name}.gz" for mirror in MNIST.mirrors], sums[f"{name}.gz"],
                  f"{', '.join(MNIST_NAMES)}, also as .gz")


def _download(path: Path, urls: list[str], md5: str, files: str) -> None:
    from torchvision.datasets.utils import download_url

    reason, made = "", []
    try:
        made = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=path.parent) as part:
            for url in urls:
                try:
                    download_url(url, part, path.name, md5)
                except Exception as error:  # errors of the network have many types
                    reason = reason or printable((str(error).splitlines() or [type(error).__name__])[0])
                else:
                    (Path(part) / path.name).rename(path)
                    return
    except OSError as error:
        reason = error.strerror
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # it is not empty: the download is there
                folder.rmdir()
    raise GnimeError(f"{path}: missing, and cannot be downloaded ({reason}); try again, or put the original files into "
                     f"{path.parent} ({files}), or give --datasets the folder that has them so")


def read_cifar10(datasets: Path) -> list:
    """Training and test set as torchvision gives them: `data` (n, 32, 32, 3) uint8, `targets`, `classes`.

    Missing data are unpacked from the archive in --datasets, which is downloaded if it is missing too.

    Raises:
        GnimeError: they are missing and cannot be downloaded, or damaged.
    """
    from torchvision.datasets import CIFAR10

    folder = datasets / CIFAR10_FOLDER
    if not folder.exists():
        _unpack_cifar10(datasets)
    try:  # torchvision compares the checksums before it unpickles
        return [CIFAR10(datasets, train=train, download=False) for train in (True, False)]
    except Exception:  # damaged files raise anything
        raise GnimeError(f"{folder}: CIFAR-10 is damaged or incomplete there (data_batch_1 to data_batch_5, test_batch and "
                         f"batches.meta have fixed checksums); move the folder away and run the command again, or put "
                         f"the original files there") from None


def check_place_of_cifar10(datasets: Path) -> None:
    """Raises GnimeError where CIFAR-10's files are not in their folder, and are in another one in --datasets."""
    wanted = datasets / CIFAR10_FOLDER
    if wanted.exists() or (datasets / CIFAR10_ARCHIVE).exists():
        return
    for found in (datasets / name for name in CIFAR10_ELSEWHERE):
        one = next((name for name in (CIFAR10_ARCHIVE, "data_batch_1") if (found / name).exists()), None)
        if one:
            whole = one == CIFAR10_ARCHIVE or found.name == CIFAR10_FOLDER
            parent = found if one == CIFAR10_ARCHIVE else found.parent
            remedy = f"give --datasets {parent}" if whole else f"put data_batch_1 and the files beside it into {wanted}"
            raise GnimeError(f"--target cifar10: CIFAR-10 is expected in {wanted}, and {one} is in {found}; {remedy}")


def _unpack_cifar10(datasets: Path) -> None:
    """The folder appears when it is whole."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity, extract_archive

    archive = datasets / CIFAR10_ARCHIVE
    if not archive.exists():
        say(f"{datasets / CIFAR10_FOLDER} not found: downloading CIFAR-10")
        _download(archive, [CIFAR10.url], CIFAR10.tgz_md5, f"{CIFAR10_ARCHIVE}, or the folder {CIFAR10_FOLDER}")
    elif not check_integrity(archive, CIFAR10.tgz_md5):
        raise GnimeError(f"{archive}: damaged or incomplete (its checksum does not fit); put the original file there, or "
                         f"move it away and run the command again")
    try:
        with tempfile.TemporaryDirectory(prefix=".unpacked-", dir=datasets) as part:
            extract_archive(str(archive), part)
            (Path(part) / CIFAR10_FOLDER).rename(datasets / CIFAR10_FOLDER)
    except OSError as error:
        raise GnimeError(f"{datasets / CIFAR10_FOLDER}: cannot be written ({error.strerror or error})") from None
