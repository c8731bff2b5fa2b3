"""Images and labels written to `aux/`: which pictures are used, their shuffle, and the list of where each row comes from."""

from collections.abc import Iterator

import numpy as np

from . import arrays
from .batches import rows_at_once, slices
from .config import SHUFFLE_SEED_PURPOSE, Run
from .duplicates import find_copies
from .errors import GnimeError, UsageError, printable
from .paths import Paths
from .pictures import decode, decoders
from .sources import Source
from .store import write_text
from .system import permutation, say, warn
from .words import counted

MINIMUM = 20  # images; with fewer, a split would be empty


def identity_of_images(run: Run) -> dict:
    """The flags that decide the images. Those that only prepare.py has are in the record where they are given."""
    identity = {"target": run.target.name, "image_size": run.target.size, "seed": run.seed}
    return identity | ({"drop_duplicates": run.drop_duplicates} if run.drop_duplicates else {})


def enough(run: Run, available: int) -> int:
    """The number of images that the run uses of those available.

    Raises:
        UsageError: there are too few for the splits.
    """
    n = min(run.limit or available, available)
    if n < MINIMUM:
        flag = f"--limit {run.limit}" if run.limit is not None and run.limit < MINIMUM else f"target {run.target.name}"
        raise UsageError(f"{flag}: {counted(n, 'image')}; the splits of defender and attacker need at least {MINIMUM}")
    return n


def make_images(run: Run, paths: Paths, source: Source) -> None:
    """Writes images, labels and the list of files.

    Raises:
        GnimeError: a picture cannot be decoded, or a file cannot be written.
    """
    order, available = shuffled(run, source, _readable(run, paths, source))
    n, target = len(order), run.target
    record = identity_of_images(run) | {"available": available}
    with arrays.create(paths.images, (n, target.channels, target.size, target.size), "uint8",
                       record | {"kind": "images"}) as writer:
        for images in _read(run, source, order):
            writer.write(images)
    write_text(paths.files, "".join(f"{printable(source.origin(i), 10_000)}\n" for i in order))
    images = arrays.load(paths.images)
    # the fingerprint stands here, because networks record the digest of the images' file: it follows from the images alone
    record |= {"kind": "labels", "classes": source.classes, "images": images.digest, "source": source.fingerprint}
    record |= {} if source.labelled else {"labelled": False}
    record |= {"arrays": True} if target.source in ("arrays", "record") else {}
    with arrays.create(paths.labels, (n,), "int64", record) as writer:
        writer.write(source.labels[order])
    say(f"images        {paths.images}: made, {n} of {available}, {len(source.classes)} classes, shuffled with seed {run.seed}")


def shuffled(run: Run, source: Source, indices: np.ndarray) -> tuple[np.ndarray, int]:
    """Which of the source's images `indices` each row is, and of how many they were chosen.

    Raises:
        UsageError: there are too few for the splits.
    """
    usable = _without_copies(run, source, indices)
    n = enough(run, len(usable))
    return usable[permutation(len(usable), run.seed, SHUFFLE_SEED_PURPOSE).numpy()[:n]], len(usable)


def _read(run: Run, source: Source, indices: np.ndarray) -> Iterator[np.ndarray]:
    target = run.target
    for part in slices(range(len(indices)), rows_at_once((target.channels, target.size, target.size))):
        yield source.read(indices[part.start : part.stop])


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

    with decoders() as pool:
        faults = list(pool.map(fault, source.files))
    lines = [text for text in faults if text]
    if lines:
        write_text(paths.skipped, "\n".join(lines) + "\n")
        warn(f"{counted(len(lines), 'damaged picture')} left out, listed in {paths.skipped}")
    return indices[[text is None for text in faults]]


def _without_copies(run: Run, source: Source, indices: np.ndarray) -> np.ndarray:
    """With --drop-duplicates, the first picture of equal ones alone."""
    if not run.drop_duplicates:
        return indices
    copies = find_copies(_read(run, source, indices))
    kept = copies.kept(run.drop_duplicates)
    say(f"images        {len(indices) - len(kept)} of {len(indices)} left out as copies of others")
    labels = source.labels[indices]
    differing = int((labels != labels[copies.exact]).sum())
    if differing:
        word = "copy lies" if differing == 1 else "copies lie"
        warn(f"{differing} exact {word} in another class than the picture copied")
    return indices[kept]
