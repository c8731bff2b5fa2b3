"""Prototypes against scikit-learn, the twin in 64 bits, and by hand."""

import numpy as np
import pytest
import torch
from bounded import DEVICE, defender, made_up, network, twin
from sklearn.cluster import KMeans

from gnime.defences import prototypes
from gnime.defences.class_mean import class_means
from gnime.networks import build


@pytest.mark.parametrize("clusters", [2, 5, 12])
@pytest.mark.parametrize("seed", range(3))
def test_k_means_is_as_good_as_scikit_learns(clusters, seed):
    rng = np.random.default_rng(seed)
    points = torch.from_numpy(rng.normal(size=(8, 20))[rng.integers(0, 8, 300)] + 0.5 * rng.normal(size=(300, 20)))
    tries = [prototypes.k_means(points, clusters, seed, start) for start in range(prototypes.STARTS)]
    ours = min(prototypes.inertia(points, cells) for cells in tries)
    theirs = KMeans(clusters, n_init=3, max_iter=30, random_state=seed).fit(points.numpy()).inertia_
    assert ours <= 1.05 * theirs
    for cells in tries:
        centres = np.stack([points[cells == cell].mean(0) for cell in range(clusters)])
        assert prototypes.inertia(points, cells) == pytest.approx(
            sum(((points[cells == cell].numpy() - centres[cell]) ** 2).sum() for cell in range(clusters)))


def test_small_cells_join_their_neighbours_by_hand():
    """On a line: 6 at 0, 2 at 1, 3 at 10, 1 at 12, 5 at 20, and a cell number that nobody has."""
    points = torch.tensor([0.0] * 6 + [1.0] * 2 + [10.0] * 3 + [12.0] + [20.0] * 5)[:, None]
    cells = torch.tensor([0] * 6 + [1] * 2 + [3] * 3 + [4] + [5] * 5)
    found = prototypes.merge_small(points, cells)
    # 12 joins 10: mean 10.5; the two at 1 join 0: mean 0.25; the four at 10.5 are 9.5 from 20, 10.25 from 0.25
    assert found.tolist() == [0] * 8 + [1] * 9
    assert prototypes.merge_small(points[:4], torch.arange(4)).tolist() == [0] * 4, "four are too few for any cell"
    assert prototypes.merge_small(points, torch.zeros(17).long()).tolist() == [0] * 17


def test_prototypes_are_means_of_at_least_five_of_a_classs_maps():
    data = made_up(150)
    fit = prototypes.fit(data, 6)
    maps, logits = defender(data)
    made, kinds = network(fit), logits.argmax(1)
    assert (made.images >= 5).all() and made.owner.bincount().amax() <= 6
    sent = made(maps, logits)
    for kind in range(3):
        own = made.prototypes[made.owner == kind]
        assert made.images[made.owner == kind].sum() == (kinds == kind).sum()
        away = ((maps[kinds == kind][:, None].double() - own[None]) ** 2).flatten(2).sum(2)
        assert sent[kinds == kind].equal(own[away.argmin(1)]), "the nearest of its class"
        means = (made.images[made.owner == kind, None] * own.flatten(1)).sum(0) / (kinds == kind).sum()
        torch.testing.assert_close(means, data.class_means[kind].flatten())
    assert "warning" not in fit.report or (kinds.bincount() < 30).any()


def test_a_loaded_network_sends_the_nearest_of_the_class_and_its_file_stays():
    """By the twin in 64 bits, the classes' prototypes in any order, twice into the same network."""
    made, rng = build({"network": "prototypes", "shape": [1, 3, 3], "prototypes": 12}), np.random.default_rng(0)
    for _ in range(2):
        points, owner = rng.random((12, 1, 3, 3), np.float32), rng.permutation(np.arange(12) % 4)
        tensors = {"prototypes": points, "owner": owner, "images": np.full(12, 5)}
        made.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.items()})
        assert made.state_dict().keys() == tensors.keys(), "what is derived is in no file"
        maps, logits = rng.random((50, 1, 3, 3), np.float32), rng.normal(size=(50, 4)).astype(np.float32)
        away = ((maps[:, None].astype(float) - points[None]) ** 2).sum((2, 3, 4))
        away[owner[None] != logits.argmax(1)[:, None]] = np.inf
        sent = made(torch.from_numpy(maps), torch.from_numpy(logits))
        np.testing.assert_array_equal(sent, points[away.argmin(1)])
    assert made.squares.shape == (12,), "no memory for classes times prototypes"


@pytest.mark.parametrize("clusters", [1, 4, 16])
def test_a_class_sends_at_most_k_maps(clusters):
    """Of fresh images: at most log2 K bits, once the class is known."""
    made, fresh = network(prototypes.fit(made_up(200), clusters)), made_up(1000, noise=0.5, seed=3)
    sent = made(fresh.explanations, fresh.predictions).flatten(1)
    kinds = fresh.predictions.argmax(1)
    found = [len(sent[kinds == kind].unique(dim=0)) for kind in range(3)]
    assert max(found) <= clusters and (clusters == 1 or min(found) > 1)
    if clusters == 1:
        torch.testing.assert_close(sent, made_up(200).class_means[kinds].flatten(1), msg="K = 1 is the class's mean")


def test_classes_of_few_images():
    """22 of the first class, 4 of the second, none of the third."""
    data = made_up(26)
    at = slice(data.rows.start, data.rows.stop)
    data.predictions[at] = torch.eye(3)[torch.tensor([0] * 22 + [1] * 4)]
    data.class_means = class_means(data.explanations, data.predictions, data.rows, DEVICE)
    fit = prototypes.fit(data, 16)
    made = network(fit)
    assert (made.owner == 0).sum() <= 4, "of at least five images each"
    everything = data.explanations[at].mean(0)
    for kind in (1, 2):  # four are too few to publish their mean
        sent = made(torch.rand(5, 2, 4, 4), torch.eye(3)[[kind] * 5])
        torch.testing.assert_close(sent, everything.expand(5, -1, -1, -1))
    assert fit.report["warning"].startswith("2 of 2 predicted classes have fewer than 80 of the defender's images")
    assert "warning" not in prototypes.fit(made_up(150), 1).report


def test_equal_maps_are_one_prototype():
    data = made_up()
    data.explanations[:] = 0.25
    data.class_means = class_means(data.explanations, data.predictions, data.rows, DEVICE)
    made = network(prototypes.fit(data, 4))
    torch.testing.assert_close(made(data.explanations, data.predictions), data.explanations)
    assert (made.images >= 5).all()


def test_conditional_prototypes_by_the_twin():
    data = made_up(60, noise=0.1)
    fit = prototypes.fit_conditional(data, 4)
    _, _, _, residuals, g = twin(data)
    theirs = KMeans(4, n_init=3, max_iter=30, random_state=0).fit(residuals).inertia_
    own = fit.tensors["prototypes"].flatten(1).double().numpy()
    away = ((residuals[:, None] - own[None]) ** 2).sum(2)
    assert away.min(1).sum() <= 1.05 * theirs and (fit.tensors["images"] >= 5).all() and len(own) <= 4
    assert fit.tensors["images"].sum() == 60
    fresh = made_up(40, seed=2)
    mean = g(fresh.predictions)
    rest = (fresh.explanations.numpy() - mean).reshape(len(mean), -1)
    nearest = ((rest[:, None] - own[None]) ** 2).sum(2).argmin(1)
    sent = network(fit)(fresh.explanations, fresh.predictions)
    np.testing.assert_allclose(sent, (mean + own[nearest].reshape(mean.shape)).clip(0, 1), atol=3e-5)
    assert len(set(nearest)) > 1
    assert prototypes.fit_conditional(data, 13).report["warning"].startswith("60 of the defender's images are fewer than 5")
