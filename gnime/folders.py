"""A folder of class folders: its pictures, and everything in it that is passed over."""

import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from .errors import GnimeError, printable
from .filenames import IMAGES, LABELS
from .pictures import suffixes

# names of parts of a data set, in which the class folders lie
PARTS = ("train", "training", "val", "valid", "validation", "dev", "test", "testing")
SHOWN = 5  # names in a message


@dataclass
class Listing:
    """What a folder of class folders holds, in a fixed order.

    Attributes:
        files: the path of each picture.
        names: the class of each picture.
        sizes: the bytes of each picture.
        classes: in order; see `in_order`.
        passed_over: what is not used, as "kind in place" -> number.
    """

    folder: Path
    files: list[Path] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    passed_over: Counter = field(default_factory=Counter)

    @property
    def classes(self) -> list[str]:
        return in_order(set(self.names))

    def describe_passed_over(self) -> str:
        """One line; empty where everything is used."""
        most = [f"{count} {_one(what) if count == 1 else what}" for what, count in self.passed_over.most_common(SHOWN)]
        rest = len(self.passed_over) - len(most)
        more = f", and more in {rest} other place{'s' * (rest > 1)}" if rest else ""
        return f"{printable(self.folder, 1000)}: passed over {', '.join(most)}{more}" if most else ""


def _one(what: str) -> str:
    """A kind of what is passed over, in the singular."""
    return re.sub(r"(pictures|files)(?= )", lambda kind: kind[0].removesuffix("s"), what, count=1)


def in_order(names: set[str]) -> list[str]:
    """Names of classes in order: by their value if all of them are whole numbers, otherwise as text."""
    numbers = all(name.isascii() and name.isdigit() for name in names)
    return sorted(names, key=(lambda name: (int(name), name)) if numbers else None)


def list_pictures(folder: Path, target: str = "") -> Listing:
    """The pictures `<folder>/<class>/<picture>`. Parts as `<folder>/train/<class>/` and `<folder>/val/<class>/` are joined.

    target: its name, for messages, where it is not the folder's.

    Raises:
        GnimeError: the folder is missing or cannot be read, a class has no pictures, or there are fewer than two classes.
    """
    if not folder.is_dir():
        raise GnimeError(_missing(folder, target or folder.name))
    listing = Listing(folder)
    try:
        for part in _parts(folder):
            loose, folders = _entries(part)
            for entry in loose:
                kind = "pictures" if _is_picture(entry) else _kind(entry)
                listing.passed_over[f"{kind} beside the class folders of {_shown(part.name)}"] += 1
            for name in in_order({entry.name for entry in folders}):
                _add_class(part / name, listing)
    except OSError as error:
        raise GnimeError(f"{printable(error.filename or folder, 1000)}: cannot be read ({error.strerror})") from None
    _check_classes(listing)
    return listing


def _missing(folder: Path, target: str) -> str:
    """What a user can do about a target's folder that is not there, beside those that are."""
    datasets, there = folder.parent, "does not exist either"
    if datasets.is_dir():
        names = [_shown(entry.name) for entry in _entries(datasets)[1]]
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        there = f"has the folders {', '.join(names[:SHOWN])}{more}" if names else "has no folders"
    return (f"--target {target}: the folder {folder} does not exist, and --datasets {datasets} {there}; put the pictures there "
            f"as {folder}/<class>/<picture>, or {IMAGES} and {LABELS}, or give --datasets the folder that contains "
            f"{folder.name}")


def _parts(folder: Path) -> list[Path]:
    """The folders in which class folders lie: parts of the data set in the order of `PARTS`, or the folder itself."""
    _, folders = _entries(folder)
    names = {entry.name.lower(): folder / entry.name for entry in folders}
    if not names or not names.keys() <= set(PARTS):
        return [folder]
    inside = {name: _entries(path) for name, path in names.items()}
    if not any(below for _, below in inside.values()):
        raise GnimeError(f"{folder}: its folders are parts of a data set by their names ({', '.join(names)}), and there are no "
                         f"class folders in them; sort the pictures by identity, a folder each")
    return [names[name] for name in PARTS if name in names]


def _entries(folder: Path) -> tuple[list[os.DirEntry], list[os.DirEntry]]:
    """Files and folders in a folder, by name, without hidden ones."""
    with os.scandir(folder) as found:
        entries = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
    return [entry for entry in entries if not _is_folder(entry)], [entry for entry in entries if _is_folder(entry)]


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _add_class(path: Path, listing: Listing) -> None:
    files, folders = _entries(path)
    pictures = [entry for entry in files if _is_picture(entry)]
    for entry in files:
        if not _is_picture(entry):
            listing.passed_over[f"{_kind(entry)} in class folders"] += 1
    for entry in folders:
        listing.passed_over[f"pictures deeper than the class folder {_shown(path.name)}"] += _count_below(Path(entry.path))
    listing.passed_over = +listing.passed_over  # without zeros
    if not pictures:
        deeper = " (there are some in folders inside it)" if folders else ""
        raise GnimeError(f"{printable(path, 1000)}: a class folder without pictures{deeper}; put them directly into it, or "
                         f"keep the folder elsewhere. Endings of pictures: {' '.join(sorted(suffixes()))}")
    listing.files += [path / entry.name for entry in pictures]
    listing.names += [path.name] * len(pictures)
    listing.sizes += [_size(entry) for entry in pictures]


def _is_picture(entry: os.DirEntry) -> bool:
    return Path(entry.name).suffix.lower() in suffixes()


def _kind(entry: os.DirEntry) -> str:
    return f"{_shown(Path(entry.name).suffix)} files" if Path(entry.name).suffix else "files without an ending"


def _shown(name: str) -> str:
    return printable(name, 40)


def _size(entry: os.DirEntry) -> int:
    try:
        return entry.stat().st_size
    except OSError:  # a link to nothing: reading it names it
        return -1


def _count_below(folder: Path) -> int:
    """Pictures in a folder and in the folders below it. Links to folders are not followed, so they cannot run in circles."""
    return sum(Path(name).suffix.lower() in suffixes() for _, _, names in os.walk(folder) for name in names)


def _check_classes(listing: Listing) -> None:
    classes = listing.classes
    if not classes:
        raise GnimeError(f"{listing.folder}: no class folders in it; put the images there as <class>/<image>: "
                         f"sort the pictures by identity, a folder each")
    if len(classes) < 2:
        raise GnimeError(f"{listing.folder}: one class alone ({_shown(classes[0])}); at least two are needed: sort the "
                         f"pictures by identity, a folder each")
