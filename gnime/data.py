"""The images of a run, shuffled, and their split into the halves of defender and attacker."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from . import arrays
from .batches import CHUNK, Rows
from .checkpoints import require
from .config import SHUFFLE_SEED_PURPOSE, TEST_FRACTION, VALIDATION_FRACTION, Run
from .errors import GnimeError, Unfinished, UsageError
from .sources import Source, decode, open_source
from .store import Paths, artifact_lock, exists, write_text
from .system import permutation, say, warn

MINIMUM = 20  # images; with fewer, a split would be empty
MAXIMUM_CLASSES = 100_000


@dataclass(frozen=True)
class Splits:
    """Disjoint row ranges of the shuffled images (METHOD "Data").

    Attributes:
        defender: victim, evaluation classifier and injector are trained on this half.
        attacker: the other half, which consists of the next three.
        train: attackers are trained on these rows.
        validation: attackers are chosen and stopped early on these. With `--official validation` they are the test rows.
        test: the results are measured on these. No attacker trains on them.
    """

    defender: range
    attacker: range
    train: range
    validation: range
    test: range

    @classmethod
    def from_count(cls, n: int, official: bool = False) -> "Splits":
        """The split of n images. official: as with `--official validation`."""
        half = n // 2
        test = n - round(TEST_FRACTION * (n - half))
        validation = test - max(1, round(VALIDATION_FRACTION * (test - half)))
        if official:
            return cls(range(half), range(half, n), range(half, test), range(test, n), range(test, n))
        return cls(range(half), range(half, n), range(half, validation), range(validation, test), range(test, n))


@dataclass
class Data:
    """The images of a run in shuffled order.

    Attributes:
        images: (n, C, S, S) uint8, memory-mapped from `aux/`.
        labels: (n,) int64.
        classes: names of the classes.
        digest: of the images' file.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: list[str]
    digest: str
    splits: Splits


def load_images(run: Run, paths: Paths, source: Source | None = None, quiet: bool = False) -> Data:
    """The run's images and labels from `aux/`. If they are missing, they are written there from `source` first.

    Raises:
        GnimeError: they are missing and there is no source; or the files are damaged, belong to another run, or hold wrong
            shapes or values.
    """
    with artifact_lock(paths.images, paths.root), artifact_lock(paths.labels, paths.root):
        if _exist(paths):
            if not quiet:
                say(f"images        {paths.images}: found")
        elif source:
            _make(run, paths, source)
        else:
            _check_half(run, paths)
            missing = paths.labels if paths.images.exists() else paths.images
            raise Unfinished(f"{missing} is missing; make it with: {run.command('prepare')}")
    images, labels = arrays.load(paths.images), arrays.load(paths.labels)
    _check(run, images, labels)
    record = labels.record or {}
    classes = record.get("classes") or [str(i) for i in range(int(labels.rows.max()) + 1)]
    return Data(images.rows, np.array(labels.rows, np.int64), classes, images.digest,
                Splits.from_count(len(images.rows), bool(run.repeats("validation"))))


def _exist(paths: Paths) -> bool:
    return exists(paths.images, paths.root) and exists(paths.labels, paths.root)


def _check_half(run: Run, paths: Paths) -> None:
    """Images without labels, or labels without images, are replaced only where their file says that this run made them.

    Raises:
        GnimeError: it does not.
    """
    for there, missing in ((paths.images, paths.labels), (paths.labels, paths.images)):
        if exists(there, paths.root) and not exists(missing, paths.root):
            record = arrays.load(there).record
            if record is None:
                raise GnimeError(f"{missing} is missing, and {there} has no record that GNIME made it, so it is kept; put "
                                 f"{missing.name} beside it, or move it away")
            require(there, record, _identity(run))


def _identity(run: Run) -> dict:
    return {"target": run.target.name, "image_size": run.target.size, "seed": run.seed}


def _check(run: Run, images: arrays.Array, labels: arrays.Array) -> None:
    target = run.target
    n = len(images.rows)
    if images.rows.shape[1:] != (target.channels, target.size, target.size):
        raise GnimeError(f"{images.path}: shape {images.rows.shape}, this run needs "
                         f"(n, {target.channels}, {target.size}, {target.size}); move it away, or choose another --root")
    if labels.rows.shape != (n,) or labels.rows.dtype.kind not in "ui":
        raise GnimeError(f"{labels.path}: {labels.rows.dtype} {labels.rows.shape}, {images.path.name} needs integers "
                         f"({n},); move both away")
    if n < MINIMUM:
        raise GnimeError(f"{images.path}: {n} images; the splits need at least {MINIMUM}; move it away")
    if labels.rows.min() < 0 or labels.rows.max() >= MAXIMUM_CLASSES:
        raise GnimeError(f"{labels.path}: labels from {labels.rows.min()} to {labels.rows.max()}; classes are numbered from 0 "
                         f"to {MAXIMUM_CLASSES - 1} at most; move it away")
    in_range = images.rows.dtype.kind == "f" and 0 <= images.rows.min() <= images.rows.max() <= 1
    if images.rows.dtype != np.uint8 and not in_range:
        raise GnimeError(f"{images.path}: {images.rows.dtype}; images are uint8, or numbers in [0, 1]; move it away")
    for array in (images, labels):
        if array.record is None:
            warn(f"{array.path} has no record of how it was made; it is used as it is")
            continue
        require(array.path, array.record, _identity(run))
        wanted = min(run.limit or array.record["available"], array.record["available"])
        if n != wanted:
            flag = f"--limit {n}" if n < array.record["available"] else "no --limit"
            raise GnimeError(f"{array.path}: made with {flag}, this run asks for {wanted} images; pass {flag}, "
                             f"or move it away, or choose another --root")
    if labels.record is not None and labels.record["images"] != images.digest:
        raise GnimeError(f"{labels.path}: not the labels of the images in {images.path.name}; move both away and run "
                         f"prepare.py again")


def missing_source(run: Run, paths: Paths) -> Source | None:
    """The source from which `load_images` will write the run's images; None if they are in `aux/` already. Writes nothing.

    Raises:
        GnimeError: the source is missing, damaged or empty.
        UsageError: the source or --limit has too few images for the splits.
    """
    if _exist(paths):
        return None
    _check_half(run, paths)
    source = open_source(run)
    _enough(run, len(source.labels))
    return source


def _enough(run: Run, available: int) -> int:
    n = min(run.limit or available, available)
    if n < MINIMUM:
        flag = f"--limit {run.limit}" if run.limit is not None and run.limit < MINIMUM else f"target {run.target.name}"
        raise UsageError(f"{flag}: {n} images; the splits of defender and attacker need at least {MINIMUM}")
    return n


def _make(run: Run, paths: Paths, source: Source) -> None:
    readable = _readable(run, paths, source)
    available = len(readable)
    n = _enough(run, available)
    order = readable[permutation(available, run.seed, SHUFFLE_SEED_PURPOSE).numpy()[:n]]
    target = run.target
    record = _identity(run) | {"available": available}
    shape = (n, target.channels, target.size, target.size)
    with arrays.create(paths.images, shape, "uint8", record | {"kind": "images"}) as writer:
        for start in range(0, n, CHUNK):
            writer.write(source.read(order[start : start + CHUNK]))
    images = arrays.load(paths.images)
    record |= {"kind": "labels", "classes": source.classes, "images": images.digest}
    with arrays.create(paths.labels, (n,), "int64", record) as writer:
        writer.write(source.labels[order])
    say(f"images        {paths.images}: made, {n} of {available}, {len(source.classes)} classes, shuffled with seed {run.seed}")


def _readable(run: Run, paths: Paths, source: Source) -> np.ndarray:
    """Indices of the images to use. With --skip-bad, images that cannot be decoded are left out and listed in a file."""
    indices = np.arange(len(source.labels))
    if not (run.skip_bad and source.files):
        return indices

    def fault(path) -> str | None:
        try:
            decode(path, run.target.channels, run.target.size)
        except GnimeError as error:
            return str(error).split("; ")[0]
        return None

    with ThreadPoolExecutor() as pool:
        faults = list(pool.map(fault, source.files))
    lines = [text for text in faults if text]
    if lines:
        write_text(paths.skipped, "\n".join(lines) + "\n")
        warn(f"{len(lines)} damaged pictures left out, listed in {paths.skipped}")
    return indices[[text is None for text in faults]]


@dataclass
class AttackerData:
    """n images that an attacker holds, and the answers that the service gives for them.

    Attributes:
        images: (n, C, T, T).
        labels: (n,).
        predictions: (n, classes), as the service publishes them: logits by default.
        explanations: (n, K, S, S), as the service publishes them; None if it withholds them.
        train, validation, test: ranges of rows of these arrays; see `Splits`.
    """

    images: Rows
    labels: Rows
    predictions: Rows
    explanations: Rows | None
    train: range
    validation: range
    test: range

    @classmethod
    def from_splits(cls, splits: Splits, arrays: list[Rows]) -> "AttackerData":
        """The attacker's half of `arrays`: images, labels, predictions and explanations of all rows."""
        half = splits.attacker
        local = [range(part.start - half.start, part.stop - half.start)
                 for part in (splits.train, splits.validation, splits.test)]
        return cls(*(array[half.start : half.stop] for array in arrays), *local)
