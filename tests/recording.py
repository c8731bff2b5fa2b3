"""A service's record, written as its files and read as `prepare.py` reads it."""

import numpy as np

from gnime.cli import resolve
from gnime.recorded import Recorded
from gnime.system import permutation

N = 60
ORDER = permutation(N, 0, "shuffle").numpy()  # row i of aux/ is row ORDER[i] of the record
FILES = "images", "labels", "predictions", "explanations_ig"


def unshuffled(rows):
    found = np.empty_like(rows)
    found[ORDER] = rows
    return found


def flags(datasets, root, *more, xai="ig"):
    return ["--target", "service", "--xai", xai, "--gpu", "-1", "--width", "64", "--datasets", str(datasets),
            "--root", str(root), *map(str, more)]


def save(folder, **arrays):
    """A record's folder, `datasets/service` in `folder`; None leaves a file out."""
    service = folder / "datasets/service"
    service.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        if array is not None:
            np.save(service / f"{name}.npy", array)
    return service.parent


def found(folder, **arrays):
    """Images, labels, predictions and maps of `aux/` after prepare.py's reading, in the order of the record."""
    run = Recorded(resolve("prepare", flags(save(folder, **arrays), folder / "root")))
    rows = run.data.images, run.data.labels, run.predictions, run.explanations.rows
    return run, [unshuffled(np.array(array)) for array in rows]
