"""The images of a run, shuffled, and their split into the halves of defender and attacker."""

from dataclasses import dataclass

import numpy as np

from . import arrays
from .batches import Rows
from .checkpoints import require
from .config import TEST_FRACTION, VALIDATION_FRACTION, Run
from .errors import GnimeError, Unfinished
from .making import MINIMUM, enough, identity_of_images, make_images
from .paths import Paths
from .records import MAXIMUM_CLASSES
from .sources import Source, fingerprint, open_source
from .store import artifact_lock, exists
from .system import say_once, warn
from .words import counted


@dataclass(frozen=True)
class Splits:
    """Disjoint row ranges of the shuffled images (docs/method.md "Data").

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
        source: the fingerprint of what they were made of (see `sources.fingerprint`); None where it is not known.
        shuffled: whether GNIME shuffled the rows. One's own arrays are used in the order that they have.
        labels_digest: of the file of one's own labels; of GNIME's, which belong to the images, None.
        labelled: whether the labels are known. Those of a record without labels are the predicted classes.
        dropped: which copies of pictures were left out; see `Run.drop_duplicates`.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: list[str]
    digest: str
    splits: Splits
    source: dict | None = None
    shuffled: bool = True
    labels_digest: str | None = None
    labelled: bool = True
    dropped: str | None = None

    @property
    def labels_identity(self) -> dict:
        """The part of an identity that tells apart what was trained on other labels of one's own."""
        return {"labels": self.labels_digest} if self.labels_digest else {}


def load_images(run: Run, paths: Paths, source: Source | None = None, quiet: bool = False) -> Data:
    """The run's images and labels from `aux/`. If they are missing, they are written there from `source` first.

    quiet: this process has checked and told about them already.

    Raises:
        GnimeError: they are missing and there is no source; or the files are damaged, belong to another run or source, or
            hold wrong shapes or values.
    """
    with artifact_lock(paths.images, paths.root), artifact_lock(paths.labels, paths.root):
        if _exist(paths):
            if not quiet:
                say_once(f"images        {paths.images}: found")
        elif source:
            make_images(run, paths, source)
        else:
            _check_half(run, paths)
            missing = paths.labels if paths.images.exists() else paths.images
            raise Unfinished(f"{missing} is missing; make it with: {run.command('prepare')}")
    target, labels = run.target, arrays.load(paths.labels)
    folder = run.datasets / target.folder
    if (labels.record or {}).get("arrays") and target.source == "folder":  # which says their shape, and what they are
        raise GnimeError(f"{folder}: {paths.images} was made of .npy files in it, and they are not there now; put them back, "
                         "or give the --datasets that has them")
    loaded = arrays.load(paths.images)
    images = arrays.channels_first(loaded, (target.channels, target.size, target.size))
    if images is not loaded and not quiet:
        say_once(f"images        {paths.images}: {loaded.rows.shape}, channels last; turned")
    _check(run, images, labels)
    record = labels.record or {}
    splits = Splits.from_count(len(images.rows), bool(run.repeats("validation")))
    if not quiet:
        for array in (images, labels):
            if array.record is None:
                warn(f"{array.path} has no record of how it was made; it is used as it is")
        if source is None:
            _check_source(run, paths, record.get("source"))
    own = labels.record is None or run.target.source in ("arrays", "record")  # then other labels may belong to the same images
    classes = record.get("classes") or [str(i) for i in range(int(labels.rows.max()) + 1)]
    return Data(images.rows, np.array(labels.rows, np.int64), classes, images.digest, splits, record.get("source"),
                labels.record is not None, labels.digest if own else None, record.get("labelled", True),
                (images.record or {}).get("drop_duplicates"))


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
                                 f"{missing.name} beside it, or choose another --root")
            require(there, record, identity_of_images(run))


def _check(run: Run, images: arrays.Array, labels: arrays.Array) -> None:
    target = run.target
    n = len(images.rows)
    if images.rows.shape[1:] != (target.channels, target.size, target.size):
        raise GnimeError(f"{images.path}: shape {images.rows.shape}, this run needs "
                         f"(n, {target.channels}, {target.size}, {target.size}); move it away, or choose another --root")
    if labels.rows.shape != (n,) or labels.rows.dtype.kind not in "ui":
        raise GnimeError(f"{labels.path}: {labels.rows.dtype} {labels.rows.shape}, {images.path.name} needs integers "
                         f"({n},); move both away, or choose another --root")
    if n < MINIMUM:
        raise GnimeError(f"{images.path}: {counted(n, 'image')}; the splits need at least {MINIMUM}")
    if labels.rows.min() < 0 or labels.rows.max() >= MAXIMUM_CLASSES:
        raise GnimeError(f"{labels.path}: labels from {labels.rows.min()} to {labels.rows.max()}; classes are numbered from 0 "
                         f"to {MAXIMUM_CLASSES - 1} at most")
    if labels.rows.min() == labels.rows.max() and (labels.record or {}).get("labelled", True):
        raise GnimeError(f"{labels.path}: every image is of class {labels.rows.min()}; at least two classes are needed")
    in_range = images.rows.dtype.kind == "f" and 0 <= images.rows.min() <= images.rows.max() <= 1
    if images.rows.dtype != np.uint8 and not in_range:
        raise GnimeError(f"{images.path}: {images.rows.dtype}; images are uint8, or floating-point numbers in [0, 1]")
    if images.record is None:
        _check_foreign(run, images, labels)
    for array in (images, labels):
        if array.record is not None:
            _check_record(run, array, n)
    if labels.record is not None and labels.record.get("images") != images.digest:
        raise GnimeError(f"{labels.path}: not the labels of the images in {images.path.name}; move both away and run "
                         f"prepare.py again")


def _check_record(run: Run, array: arrays.Array, n: int) -> None:
    wanted = identity_of_images(run)
    if run.script == "prepare" and not run.drop_duplicates and array.record.get("drop_duplicates"):
        raise GnimeError(f"{array.path}: made with --drop-duplicates {array.record['drop_duplicates']}; give it too, or choose "
                         f"another --root")
    require(array.path, array.record, wanted)
    available = array.record.get("available", n)
    asked = min(run.limit or available, available)
    if n != asked:
        flag = f"--limit {n}" if n < available else "no --limit"
        raise GnimeError(f"{array.path}: made with {flag}, this run asks for {counted(asked, 'image')}; pass {flag}, "
                         f"or move it away, or choose another --root")


def _check_foreign(run: Run, images: arrays.Array, labels: arrays.Array) -> None:
    """Refuses flags that cannot act on one's own arrays, and halves of which one never saw the other's classes."""
    n = len(images.rows)
    given = {f"--limit {run.limit}": run.limit not in (None, n), "--skip-bad": run.skip_bad,
             "--drop-duplicates": run.drop_duplicates, "--datasets": run.datasets != run.root / "datasets"}
    for flag, acts in given.items():
        if acts:
            raise GnimeError(f"{flag} cannot act on {images.path}: GNIME did not write it, and all of its {n} images are used "
                             f"as they are; leave the flag out, or choose another --root")
    splits = Splits.from_count(n)
    defender, attacker = (set(labels.rows[rows.start : rows.stop].tolist()) for rows in (splits.defender, splits.attacker))
    if not defender & attacker:
        raise GnimeError(f"{labels.path}: the first half of the rows, the defender's, has classes {_few(defender)}, the "
                         f"attacker's {_few(attacker)}; the halves are cut as the rows stand, so shuffle the rows of "
                         f"images and labels alike")


def _few(classes: set[int]) -> str:
    shown = sorted(classes)[:6]
    return ", ".join(map(str, shown)) + (", ..." if len(classes) > len(shown) else "")


def _check_source(run: Run, paths: Paths, recorded: dict | None) -> None:
    """Refuses arrays whose source is there and is another one now. Arrays of version 1 record no source."""
    now = fingerprint(run) if recorded else None
    if now and now != recorded:
        what = [f"{one['images']} images in {one['classes']} classes" for one in (recorded, now)]
        if what[0] == what[1]:
            arrays_too = run.target.source in ("arrays", "record")
            what[1] = "as many in other files" if arrays_too else "as many under other names or of other sizes"
        raise GnimeError(f"{paths.images}: made of {what[0]}; {run.datasets} now has {what[1]}; give the --datasets that it "
                         f"was made of, or choose another --root for these")


def missing_source(run: Run, paths: Paths) -> Source | None:
    """The source from which `load_images` will write the run's images; None if they are in `aux/` already. Writes nothing.

    Raises:
        GnimeError: the source is missing, damaged or empty, or one of the two arrays is there and is not ours.
        UsageError: the source or --limit has too few images for the splits.
    """
    if _exist(paths):
        return None
    _check_half(run, paths)
    source = open_source(run)
    enough(run, len(source.labels))
    return source


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
