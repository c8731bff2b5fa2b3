"""Questions that the data and the victim must answer before their numbers mean anything."""

import numpy as np
import torch
from torch import Tensor, nn

from .batches import CHUNK, Rows, iter_batches, slices
from .data import Data
from .device import Device
from .duplicates import count_across, find_copies
from .errors import printable
from .system import permutation

BURST = 1.5  # an injector's last distortion, in medians of the second half of its epochs
HARDLY = 1 / 255  # standard deviation over images, averaged over pixels: a grey level
COMPARED, ORDERS = 300, 199  # rows and random orders of `unrelated`: related answers pass, others do with a chance of 1 / 200


def warnings_about_images(data: Data) -> list[str]:
    """Copies across the splits, halves of other classes, images that hardly differ."""
    warnings = [*([] if data.shuffled else _classes_of_halves(data)), *_copies(data)]
    if hardly_differ(data.images):
        warnings.append("the images hardly differ from each other (by less than a grey level): there is nothing to recover")
    return warnings


def hardly_differ(array: Rows) -> bool:
    """Whether images or maps are nearly the same picture. At most 512 rows are compared."""
    rows = array[:: -(-len(array) // 512)]
    total, squares = (np.zeros(array.shape[1:]) for _ in range(2))
    for row in rows:  # one by one, because together they may take gigabytes
        row = np.asarray(row, np.float64) / (255 if array.dtype == np.uint8 else 1)
        total += row
        squares += np.square(row)
    variance = squares / len(rows) - np.square(total / len(rows))
    return bool(np.sqrt(variance.clip(min=0)).mean() < HARDLY)


def warnings_about_training(name: str, history: list) -> list[str]:
    """Whether an injector's training ended in a burst. history: [distortion, inversion, inverter's loss] per epoch."""
    distortion = np.asarray(history, np.float64)[len(history) // 2 :, 0]
    last, usual = distortion[-1], np.median(distortion)
    if last <= BURST * usual:
        return []
    return [f"{name}: its training was not steady at its end: the last epoch's distortion is {last:.2g}, the median of the "
            f"second half of the epochs {usual:.2g}, so another number of epochs gives other results"]


def unrelated(images: Rows, answers: Rows) -> bool:
    """Whether images that are alike have answers no more alike than in any of `ORDERS` random orders (Mantel, 1967).

    At most `COMPARED` rows. False where all answers are the same.
    """
    rows = np.arange(0, len(images), -(-len(images) // COMPARED))
    one, other = (_distances(array[rows]) for array in (images, answers))
    if not other.any():
        return False
    orders = (permutation(len(rows), 0, "order", i) for i in range(ORDERS))
    return bool((one * other).sum() <= max((one * other[order][:, order]).sum() for order in orders))


def _distances(rows: Rows) -> Tensor:
    """Between all pairs of rows, less their mean; of a row and itself 0."""
    flat = torch.from_numpy(np.asarray(rows, np.float32)).flatten(1)
    found, apart = torch.cdist(flat, flat).double(), ~torch.eye(len(flat), dtype=torch.bool)
    return torch.where(apart, found - found[apart].mean(), 0)


def _copies(data: Data) -> list[str]:
    found = find_copies(data.images[rows.start : rows.stop] for rows in slices(range(len(data.images)), CHUNK))
    splits = {name: getattr(data.splits, name) for name in ("defender", "train", "validation", "test")}
    exact, near = (count_across(first, splits) for first in (found.exact, found.near))
    names = {"train": "attacker's training images", "validation": "validation images", "defender": "defender's half"}
    warnings = []
    for counts, what in ((exact, "exact copies of others"),
                         (near, "copies of others or look alike (a guess, by a perceptual hash)")):
        if counts["copies"] > (0 if counts is exact else exact["copies"]):
            inside = ", ".join(f"{counts[name]} in the {title}" for name, title in names.items())
            flag = "--drop-duplicates" if counts is exact else "--drop-duplicates near"
            warnings.append(f"{counts['copies']} of {len(data.images)} images are {what}; of the {len(splits['test'])} test "
                            f"images, so many have one: {inside}. They are easier to recover; prepare.py {flag} drops them")
    return warnings


def _classes_of_halves(data: Data) -> list[str]:
    """Where classes are spread over two splits by more than chance spreads them: the rows of one's own arrays may be sorted."""
    splits, numbers = data.splits, np.random.default_rng(0)
    shuffled = [numbers.permutation(data.labels) for _ in range(20)]
    pairs = (("defender's half", splits.defender, "attacker's", splits.attacker),
             ("attacker's training images", splits.train, "test images", splits.test))
    return [f"the {one} and the {other} have classes in other shares (they differ by {found:.0%}, by chance {usual:.0%} at "
            f"most): the splits are cut as the rows stand, so shuffle the rows of images and labels alike"
            for one, rows, other, more in pairs
            if (found := _difference(data.labels, rows, more))
            > 1.5 * (usual := max(_difference(labels, rows, more) for labels in shuffled)) + 0.05]


def _difference(labels: np.ndarray, one: range, other: range) -> float:
    """Total variation distance of the classes' shares in two ranges of rows: 0 where they are equal, 1 where none is shared."""
    counts = [np.bincount(labels[rows.start : rows.stop], minlength=labels.max() + 1) / len(rows) for rows in (one, other)]
    return float(np.abs(counts[0] - counts[1]).sum() / 2)


def chance(data: Data) -> float:
    """The accuracy of always naming the most frequent class of the attacker's half."""
    rows = data.splits.attacker
    return float(np.bincount(data.labels[rows.start : rows.stop]).max() / len(rows))


def accuracy(network: nn.Module, images: Rows, labels: Rows, rows: range, device: Device) -> float:
    """The share of these rows whose largest logit is that of their class."""
    right = sum((network(image).argmax(1) == label).sum().item()
                for _, (image, label) in iter_batches([images, labels], rows, device.torch))
    return right / len(rows)


def near_chance(found: float, by_chance: float) -> bool:
    return found < by_chance + 0.2 * (1 - by_chance)


def numbered(classes: list[str]) -> str:
    """The classes as this run numbers them."""
    shown = ", ".join(f"{i}: {printable(name, 40)}" for i, name in enumerate(classes[:12]))
    return shown + (", ..." if len(classes) > 12 else "")
