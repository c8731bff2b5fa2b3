"""CIFAR-10 small enough to travel: mosaics of its pictures as lossless WebP, in two parts of less than 64 MiB.

`write_parts` reads the folders `<split>/<class>/*.png` from a zip archive. `unpack_part` writes folders again, as PPM files
whose order is that of the originals, so the project finds the same images in the same order.
"""

import io
import json
import tarfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

SIDE = 32
COLUMNS, TILES = 16, 480  # pictures of a row, and of a mosaic


def write_parts(archive: Path, parts: tuple[Path, Path]) -> None:
    """Each of the tar files `parts` gets half of the archive's pictures. Those that exist are kept."""
    with zipfile.ZipFile(archive) as pictures:
        names = sorted((name for name in pictures.namelist() if name.endswith(".png")), key=_order)
        half = -(-len(names) // 2)
        for part, chosen, first in zip(parts, (names[:half], names[half:]), (0, half), strict=True):
            if not part.exists():
                part.parent.mkdir(parents=True, exist_ok=True)
                whole = part.with_name(f".{part.name}")
                with tarfile.open(whole, "w") as tar:
                    _write(tar, pictures, chosen, first)
                whole.replace(part)


def _order(name: str) -> tuple:
    """As the project joins the folders: train before test, then by class, then by file."""
    split, kind, file = PurePosixPath(name).parts[-3:]
    return ("train", "test").index(split), kind, file


def _write(tar: tarfile.TarFile, pictures: zipfile.ZipFile, names: list[str], first: int) -> None:
    folders = [(folder, len(list(group))) for folder, group in groupby("/".join(PurePosixPath(n).parts[-3:-1]) for n in names)]
    _add(tar, "folders.json", json.dumps({"first": first, "folders": folders}).encode())
    for start in range(0, len(names), TILES):
        tiles = np.stack([np.asarray(Image.open(io.BytesIO(pictures.read(name))).convert("RGB"))
                          for name in names[start : start + TILES]])
        picture = io.BytesIO()
        Image.fromarray(join(tiles)).save(picture, "WEBP", lossless=True, method=4, quality=75)
        _add(tar, f"{start // TILES:04d}.webp", picture.getvalue())


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def join(tiles: np.ndarray) -> np.ndarray:
    """(n, 32, 32, 3) -> (rows * 32, COLUMNS * 32, 3); the last row is filled up with black."""
    rows = -(-len(tiles) // COLUMNS)
    full = np.zeros((rows * COLUMNS, SIDE, SIDE, 3), np.uint8)
    full[: len(tiles)] = tiles
    return full.reshape(rows, COLUMNS, SIDE, SIDE, 3).transpose(0, 2, 1, 3, 4).reshape(rows * SIDE, COLUMNS * SIDE, 3)


def cut(mosaic: np.ndarray) -> np.ndarray:
    """The inverse of `join`, with the black ones: (rows * COLUMNS, 32, 32, 3)."""
    rows = len(mosaic) // SIDE
    return mosaic.reshape(rows, SIDE, COLUMNS, SIDE, 3).transpose(0, 2, 1, 3, 4).reshape(-1, SIDE, SIDE, 3)


def unpack_part(part: Path, into: Path) -> None:
    """Writes a part's pictures to `into/<split>/<class>/<number>.ppm`."""
    with tarfile.open(part) as tar, ThreadPoolExecutor() as pool:
        listed = json.load(tar.extractfile("folders.json"))
        mosaics = [tar.extractfile(name).read() for name in sorted(tar.getnames()) if name.endswith(".webp")]
        tiles = (tile for some in pool.map(_read, mosaics) for tile in some)
        named = zip(_folders(listed["folders"]), tiles, strict=False)  # the last mosaic is filled up
        for number, (folder, tile) in enumerate(named, listed["first"]):
            path = into / folder / f"{number:05d}.ppm"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"P6 {SIDE} {SIDE} 255\n".encode() + tile.tobytes())


def _read(mosaic: bytes) -> np.ndarray:
    return cut(np.asarray(Image.open(io.BytesIO(mosaic)).convert("RGB")))


def _folders(listed: list[tuple[str, int]]) -> Iterator[str]:
    for folder, count in listed:
        yield from [folder] * count
