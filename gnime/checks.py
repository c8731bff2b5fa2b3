"""Questions that the data and the victim must answer before their numbers mean anything."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from .batches import Rows, iter_batches, rows_at_once, slices
from .data import Data
from .device import Device
from .duplicates import count_across, find_copies
from .errors import printable
from .system import permutation

BURST = 1.5  # an injector's distortion near the end, in lower quartiles of the second half of its epochs
HARDLY = 1 / 255  # standard deviation over images, averaged over pixels: a grey level
COMPARED, ORDERS = 600, 199  # rows and random orders of `unrelated`: answers in a random order pass with a chance of 1 / 200
FEWEST = 10  # rows that have another answer than most; with 5, a fifth of sound records would be warned of
COMPARED_SIDE = 32  # of the pictures that are compared


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
    """Whether an injector's training had a burst in its last tenth.

    history: [distortion, inversion, inverter's loss] per epoch. In a burst, injector and inverter jump away from each other,
    and take up to tens of epochs to come back.
    """
    distortion = np.asarray(history, np.float64)[:, 0]
    usual = np.quantile(distortion[len(distortion) // 2 :], 0.25)  # bursts may take half of these epochs
    largest = distortion[-max(len(distortion) // 10, 1) :].max()
    if largest <= BURST * usual:
        return []
    return [f"{name}: its training was not steady at its end: in the last tenth of the epochs the distortion reaches "
            f"{largest:.2g}, and in a quarter of the second half of the epochs it is below {usual:.2g}, so another number of "
            f"epochs gives other results"]


def unrelated(images: Rows, answers: Rows) -> bool:
    """Whether images and answers have a distance covariance no larger than in any of `ORDERS` random orders of the rows.

    It is 0 where the two are independent, and positive otherwise (Szekely, Rizzo & Bakirov, 2007). The covariance of the
    distances alone (Mantel, 1967) is negative where one of two answers is that of a class amid the others.

    At most `COMPARED` rows, of pictures in small. False where fewer than `FEWEST` have another answer than most.
    """
    rows = np.arange(0, len(images), -(-len(images) // COMPARED))
    one, other = (_in_small(array, rows) for array in (images, answers))
    if len(rows) - np.unique(other, axis=0, return_counts=True)[1].max() < FEWEST:
        return False
    one, other = _centred_distances(one), _centred_distances(other)
    orders = (permutation(len(rows), 0, "order", i) for i in range(ORDERS))
    return bool((one * other).sum() <= max((one * other[order][:, order]).sum() for order in orders))


def _in_small(array: Rows, rows: np.ndarray) -> np.ndarray:
    """(k, values) float64. Pictures are averaged to a side of at most `COMPARED_SIDE`."""
    found = []
    for part in slices(range(len(rows)), rows_at_once(array.shape[1:])):
        values = torch.from_numpy(np.asarray(array[rows[part.start : part.stop]], np.float64))
        if values.ndim == 4:
            values = adaptive_avg_pool2d(values, min(COMPARED_SIDE, values.shape[-1]))
        found.append(values.flatten(1))
    return torch.cat(found).numpy()


def _centred_distances(rows: np.ndarray) -> Tensor:
    """(k, k): Euclidean distances between rows, less the means of their row and column, plus the mean of all."""
    found = torch.from_numpy(rows - rows.mean(0))  # an offset that all rows share would cost digits
    found = torch.cdist(found, found)
    return found - found.mean(0) - found.mean(1, keepdim=True) + found.mean()


def _copies(data: Data) -> list[str]:
    parts = slices(range(len(data.images)), rows_at_once(data.images.shape[1:]))
    found = find_copies(data.images[part.start : part.stop] for part in parts)
    splits = {name: getattr(data.splits, name) for name in ("defender", "train", "validation", "test")}
    exact, near = (count_across(first, splits) for first in (found.exact, found.near))
    names = {"train": "attacker's training images", "validation": "validation images", "defender": "defender's half"}
    warnings, guess = [], "(a guess, by a perceptual hash)"
    for counts, one, several in (
            (exact, "is an exact copy of another", "are exact copies of others"),
            (near, f"looks like another {guess}", f"are copies of others or look alike {guess}")):
        if (n := counts["copies"]) > (0 if counts is exact else exact["copies"]):
            inside = ", ".join(f"{counts[name]} in the {title}" for name, title in names.items())
            flag = "--drop-duplicates" if counts is exact else "--drop-duplicates near"
            warnings.append(f"{n} of {len(data.images)} images {one if n == 1 else several}; of the "
                            f"{len(splits['test'])} test images, so many have one: {inside}. They are easier to "
                            f"recover; prepare.py {flag} drops them")
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
