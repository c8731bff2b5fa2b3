"""Copies among the images of a run: exact ones, and near ones by a cheap perceptual hash.

An attacker's training image that is also a test image is recovered by memory alone, so copies across the splits make errors
too small.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import adaptive_avg_pool2d

SIDE = 16  # of the small grey pictures that are compared
ALIKE = 0.995  # correlation of two such pictures, from which they count as near copies
BANDS = 4  # parts of the hash: near copies agree in one of them at least


@dataclass
class Copies:
    """For each of n images, the first image that it is a copy of; its own number where it is not.

    Attributes:
        exact: (n,) int64, of equal pixels.
        near: (n,) int64, of equal or similar pixels. It is a guess: different pictures can look alike.
    """

    exact: np.ndarray
    near: np.ndarray

    def kept(self, kind: str) -> np.ndarray:
        """Numbers of the images that are left without copies; kind: "exact", or "near" (both)."""
        return np.flatnonzero(getattr(self, kind) == np.arange(len(self.exact)))


def find_copies(chunks: Iterable[np.ndarray]) -> Copies:
    """chunks: the images in order, (k, C, S, S) uint8 or float in [0, 1], S at least 16."""
    digests, small = [], []
    for images in chunks:
        digests += [hashlib.blake2b(np.ascontiguousarray(image), digest_size=16).digest() for image in images]
        small.append(_small(images))
    first: dict[bytes, int] = {}
    exact = np.array([first.setdefault(digest, i) for i, digest in enumerate(digests)], np.int64)
    return Copies(exact, _near(np.concatenate(small), exact))


def _small(images: np.ndarray) -> np.ndarray:
    """(k, 256) float16: grey pictures of 16 x 16 pixels, of mean 0 and length 1; zeros where all pixels are equal."""
    grey = torch.from_numpy(images.astype(np.float32).mean(1))
    grey = adaptive_avg_pool2d(grey, SIDE).flatten(1).numpy()
    grey -= grey.mean(1, keepdims=True)
    return (grey / np.maximum(np.linalg.norm(grey, axis=1, keepdims=True), 1e-3)).astype(np.float16)


def _near(small: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Neighbours in four orders of the hash are compared, so the time grows as n log n. Some near copies are missed."""
    blocks = small.reshape(-1, 8, 2, 8, 2).astype(np.float32).mean((2, 4)).reshape(-1, BANDS, 16)  # 64 blocks, mean 0
    words = np.packbits(blocks > 0, axis=2).view(">u2")[..., 0].astype(np.uint64)  # (n, 4): a hash of 64 bits in four bands
    first = exact.copy()
    distinct = np.flatnonzero(exact == np.arange(len(exact)))
    for band in range(BANDS):
        key = np.zeros(len(distinct), np.uint64)
        for i in range(BANDS):  # this band decides the order, the others follow
            key = key << np.uint64(16) | words[distinct, (band + i) % BANDS]
        order = distinct[np.argsort(key, kind="stable")]
        for one, other in _alike(small, words[:, band], order):
            _join(first, one, other)
    return np.array([_root(first, i) for i in range(len(first))], np.int64)


def _alike(small: np.ndarray, band: np.ndarray, order: np.ndarray) -> Iterable[tuple[int, int]]:
    """Pairs of neighbours in the order that agree in the band and correlate."""
    for start in range(0, len(order) - 1, 4096):
        here, after = order[start : start + 4096], order[start + 1 : start + 4097]
        here = here[: len(after)]
        correlation = (small[here].astype(np.float32) * small[after].astype(np.float32)).sum(1)
        found = (band[here] == band[after]) & (correlation >= ALIKE)
        yield from zip(here[found].tolist(), after[found].tolist(), strict=True)


def _root(first: np.ndarray, i: int) -> int:
    while first[i] != i:
        i = first[i]
    return i


def _join(first: np.ndarray, one: int, other: int) -> None:
    one, other = sorted((_root(first, one), _root(first, other)))
    first[other] = one


def count_across(first: np.ndarray, splits: dict[str, range]) -> dict[str, int]:
    """first: `Copies.exact` or `.near`. How many images are copies of others, and how many of the test images have a copy in
    each of the other splits."""
    counts = {"copies": int((first != np.arange(len(first))).sum())}
    test = first[splits["test"].start : splits["test"].stop]
    for name, rows in splits.items():
        if rows != splits["test"]:  # with --official validation, the validation images are the test images
            counts[name] = int(np.isin(test, first[rows.start : rows.stop]).sum())
    return counts
