"""Prototypes: the nearest of K mean maps is published, so a map says at most log2 K bits beyond the prediction."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..batches import CHUNK, gather_rows, iter_batches
from ..models.prototypes import distances
from ..system import generator, release_freed_memory
from . import DefenderData, Fit
from .cond_mean import choose, fit_with_residuals

STARTS, ITERATIONS = 3, 30
CANDIDATES = 4  # drawn for each first centre; the one that leaves the least inertia is it
LEAST = 5  # images whose mean may be published, so that nobody's own map is
MOST = 2000  # images of a class that k-means sees: 0.4 GB of maps of 3x128x128


def fit(data: DefenderData, clusters: int) -> Fit:
    """`Prototypes`: k-means of each predicted class's maps, cells of fewer than `LEAST` images merged. See `class_mean`.

    A class of n images gets at most n / LEAST prototypes; one of fewer than LEAST images sends the mean of all.
    """
    kinds = torch.cat([prediction.argmax(1).cpu() for _, (prediction,) in
                       iter_batches([data.predictions], data.rows, data.device.torch)])
    classes = data.predictions.shape[1]
    counts = torch.bincount(kinds, minlength=classes)
    share = (counts / len(kinds)).to(data.class_means)
    overall = torch.tensordot(share, data.class_means, 1)  # (K, S, S)
    found, owner, images = [], [], []
    for kind in range(classes):
        if counts[kind] < LEAST:
            means, sizes = overall[None], torch.tensor([len(kinds)])
        else:
            rows = (kinds == kind).nonzero().flatten() + data.rows.start
            maps = gather_rows(data.explanations, choose(rows, MOST, data.seed, "images of", kind), data.device.torch)
            means, sizes = prototypes_of(maps.flatten(1), clusters, data.seed, kind)
            means = means.view(-1, *maps.shape[1:])
            del maps  # before those of the next class are read
            release_freed_memory()
        found, owner, images = [*found, means], [*owner, torch.full_like(sizes, kind)], [*images, sizes]
    tensors = {"prototypes": torch.cat(found), "owner": torch.cat(owner), "images": torch.cat(images)}
    spec = {"network": "prototypes", "shape": list(overall.shape), "prototypes": len(tensors["owner"])}
    report = {"prototypes": len(tensors["owner"])}
    predicted = counts[counts > 0]  # where nothing of the prediction is published, all images are of one class
    if few := int((predicted < LEAST * clusters).sum()):
        report["warning"] = (f"{few} of {len(predicted)} predicted classes have fewer than {LEAST * clusters} of the "
                             f"defender's images, {LEAST} for each of {clusters} prototypes; they get fewer prototypes")
    return Fit(spec, tensors, report)


def fit_conditional(data: DefenderData, clusters: int) -> Fit:
    """`ConditionalPrototypes`: g(y) and k-means of the maps less g(y), over all classes together.

    The residuals are those of a regression without the image itself, whose own would be smaller than a new image's. The class
    means are those of all images, so a residual is still a little smaller, in a class of n images by about 1 / n.
    All classes share the prototypes, so classes of few images have K of them too.
    """
    mean, residuals = fit_with_residuals(data)
    prototypes, images = prototypes_of(residuals, clusters, data.seed, "residuals")
    tensors = {f"mean.{name}": tensor for name, tensor in mean.tensors.items()}
    tensors |= {"prototypes": prototypes.view(-1, *mean.spec["shape"]), "images": images}
    spec = mean.spec | {"network": "cond-prototypes", "prototypes": len(prototypes)}
    report = mean.report | {"prototypes": len(prototypes)}
    if len(residuals) < LEAST * clusters:
        report["warning"] = (f"{len(residuals)} of the defender's images are fewer than {LEAST} for each of {clusters} "
                             "prototypes; there are fewer prototypes")
    return Fit(spec, tensors, report)


def prototypes_of(points: Tensor, clusters: int, seed: int, *purpose: object) -> tuple[Tensor, Tensor]:
    """Means and sizes of at most `clusters` cells of `points` (n, D), each of at least LEAST points if n is: (k, D), (k,)."""
    clusters = max(1, min(clusters, len(points) // LEAST))
    middle = points.mean(0)
    centred = points - middle  # distances lose fewer digits
    tries = [k_means(centred, clusters, seed, *purpose, start) for start in range(STARTS)]
    cells = merge_small(centred, min(tries, key=lambda cells: inertia(centred, cells)))
    means, sizes = cell_means(centred, cells)
    return means + middle, sizes.cpu()


def k_means(points: Tensor, clusters: int, seed: int, *purpose: object) -> Tensor:
    """Each point's cell, (n,): Lloyd's iterations from greedy k-means++ (Arthur and Vassilvitskii, 2007). It may be empty."""
    release_freed_memory()
    chance = generator(seed, "k-means", *purpose)
    centres = points[torch.randint(len(points), (1,), generator=chance).to(points.device)]
    squares = points.square().sum(1)
    for _ in range(clusters - 1):
        away = (squares[:, None] + distances(points, centres)).amin(1, keepdim=True).clamp(min=0)  # (n, 1)
        weights = away[:, 0].double().cpu() + 1e-12  # of equal points too, some are drawn
        drawn = points[torch.multinomial(weights, CANDIDATES, replacement=True, generator=chance).to(points.device)]
        left = torch.minimum(away, squares[:, None] + distances(points, drawn)).sum(0)  # with each of the drawn points
        centres = torch.cat([centres, drawn[left.argmin()][None]])
    cells = distances(points, centres).argmin(1)
    for _ in range(ITERATIONS):
        means, sizes = cell_means(points, cells, clusters)
        centres = torch.where(sizes[:, None] > 0, means, centres)
        before, cells = cells, distances(points, centres).argmin(1)
        if cells.equal(before):
            break
    return cells


def merge_small(points: Tensor, cells: Tensor) -> Tensor:
    """The smallest cell joins the one with the nearest mean, until each has LEAST points or one is left. Cells renumbered."""
    while True:
        cells = cells.unique(return_inverse=True)[1]  # none is empty
        means, sizes = cell_means(points, cells)
        smallest = int(sizes.argmin())
        if sizes[smallest] >= LEAST or len(sizes) == 1:
            return cells
        away = distances(means[smallest][None], means)[0]
        away[smallest] = torch.inf
        cells = torch.where(cells == smallest, away.argmin(), cells)


def cell_means(points: Tensor, cells: Tensor, clusters: int = -1) -> tuple[Tensor, Tensor]:
    """Mean and number of the points of each cell, (k, D) and (k,); zeros where it is empty."""
    members = F.one_hot(cells, clusters).to(points)  # (n, k)
    sizes = members.sum(0)
    return members.T @ points / sizes.clamp(min=1)[:, None], sizes.long()


def inertia(points: Tensor, cells: Tensor) -> float:
    """Sum of squared distances from the points to the means of their cells."""
    means = cell_means(points, cells)[0]
    parts = zip(points.split(CHUNK), cells.split(CHUNK), strict=True)  # three arrays of the points' size would be 1.2 GB
    return sum((some - means[of]).square().sum().item() for some, of in parts)
