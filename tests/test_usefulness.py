"""Usefulness of maps against SciPy, hand arithmetic and slow twins in float64."""

import json
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from gnime import references
from gnime.cli import resolve
from gnime.defences.noise import row_noise
from gnime.experiment import Experiment
from gnime.metrics import usefulness
from gnime.registry import METRICS


def maps(n=6, shape=(2, 5, 4), ties=False, seed=0):
    g = torch.Generator().manual_seed(seed)
    clean = torch.rand(n, *shape, generator=g)
    protected = (0.5 * clean + 0.5 * torch.rand(n, *shape, generator=g))
    return [(4 * m).round() / 4 if ties else m for m in (clean, protected)]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 5, 7), (1, 1, 2)])
@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_correlations_are_scipys(name, shape, ties):
    clean, protected = maps(shape=shape, ties=ties)
    found = getattr(usefulness, name)(clean, protected)
    oracle = stats.pearsonr if name == "pearson" else stats.spearmanr
    for value, a, b in zip(found.tolist(), clean.flatten(1).double(), protected.flatten(1).double(), strict=True):
        if a.unique().numel() == 1 or b.unique().numel() == 1:
            assert value == 0
        else:
            assert value == pytest.approx(oracle(a.numpy(), b.numpy()).statistic, abs=1e-12)


def test_correlations_by_hand():
    """Of 1 2 3 4 and 1 3 2 10: covariance 13 / sqrt(5 * 50); ranks 1 2 3 4 and 1 3 2 4: 1 - 6 * 2 / 60."""
    clean = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    protected = torch.tensor([[[[1.0, 3.0], [2.0, 10.0]]]])
    assert usefulness.pearson(clean, protected).item() == pytest.approx(13 / math.sqrt(5 * 50))
    assert usefulness.spearman(clean, protected).item() == pytest.approx(0.8)
    tied = torch.tensor([[[[5.0, 1.0], [5.0, 5.0]]]])  # ranks 3 1 3 3; products 1 of deviations, squares 5 and 3
    assert usefulness.spearman(clean, tied).item() == pytest.approx(1 / math.sqrt(15))


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_correlations_at_their_ends(name):
    correlation, (clean, _) = getattr(usefulness, name), maps()
    torch.testing.assert_close(correlation(clean, 3 * clean + 1), torch.ones(6, dtype=torch.double), atol=1e-6, rtol=0)
    torch.testing.assert_close(correlation(clean, -clean), -torch.ones(6, dtype=torch.double), atol=1e-6, rtol=0)
    assert correlation(clean, clean).max() <= 1
    for value in (0.0, 0.1, 1e-30):  # the mean of 0.1s is not 0.1
        constant = torch.full_like(clean, value)
        assert correlation(clean, constant).tolist() == correlation(constant, constant).tolist() == [0.0] * 6
    assert correlation(clean.half(), clean.half()).tolist() == pytest.approx([1.0] * 6), "of any precision"


def slow_top(values, most):
    """The place that each value takes on average over orders of the tied: by counting."""
    return np.array([1.0 if sum(o >= v for o in values) <= most else
                     max(0.0, (most - sum(o > v for o in values)) / sum(o == v for o in values)) for v in values])


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("shape", "fraction"), [((1, 4, 5), 0.1), ((3, 6, 5), 0.1), ((2, 3, 3), 0.5), ((1, 2, 2), 0.1)])
def test_top_overlap_is_its_slow_twin(shape, fraction, ties):
    clean, protected = maps(shape=shape, ties=ties)
    found = usefulness.top_overlap(clean, protected, fraction)
    most = max(1, round(fraction * shape[1] * shape[2]))
    for value, a, b in zip(found.tolist(), clean, protected, strict=True):
        one, other = (slow_top(m.sum(0).flatten().tolist(), most) for m in (a, b))
        assert value == pytest.approx(np.minimum(one, other).sum() / most, abs=1e-6)
        if not ties:
            top = [set(m.sum(0).flatten().argsort(descending=True)[:most].tolist()) for m in (a, b)]
            assert value == pytest.approx(len(top[0] & top[1]) / most)


def test_top_overlap_by_hand():
    clean = torch.tensor([[[[4.0, 3.0], [2.0, 1.0]]]])
    assert usefulness.top_overlap(clean, torch.tensor([[[[1.0, 2.0], [0.0, 0.0]]]]), 0.5).item() == 1.0
    assert usefulness.top_overlap(clean, torch.tensor([[[[0.0, 5.0], [5.0, 0.0]]]]), 0.5).item() == 0.5
    assert usefulness.top_overlap(clean, torch.tensor([[[[0.0, 0.0], [5.0, 5.0]]]]), 0.5).item() == 0.0
    tied = torch.tensor([[[[9.0, 1.0], [1.0, 1.0]]]])  # the first is in, each of the others by a third
    assert usefulness.top_overlap(clean, tied, 0.5).item() == pytest.approx((1 + 1 / 3) / 2)
    assert usefulness.top_overlap(tied, tied, 0.5).item() == pytest.approx(1.0)
    two = torch.tensor([[[[4.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 5.0]]]])  # channels are summed: the last, then the first
    assert usefulness.top_overlap(clean, two, 0.25).item() == 0.0
    assert usefulness.top_overlap(clean, two, 0.5).item() == 0.5
    blank = torch.zeros(3, 1, 10, 10)
    torch.testing.assert_close(usefulness.top_overlap(torch.rand(3, 1, 10, 10), blank), torch.full((3,), 0.1))


class Sees(nn.Module):
    """Two logits: ten times the sum of the pixels, weighed, and 0."""

    def __init__(self, weights):
        super().__init__()
        self.weights = torch.tensor(weights)

    def forward(self, image):
        score = 10 * (image * self.weights).sum((1, 2, 3))
        return torch.stack([score, torch.zeros_like(score)], 1)


def test_deletion_and_insertion_by_hand(monkeypatch):
    """A 2x2 image of ones in two steps of two pixels: probabilities sigmoid(10 s) of what is left of the weights' sum s."""
    monkeypatch.setattr(usefulness, "STEPS", 2)
    monkeypatch.setattr(usefulness, "_blurred", torch.zeros_like)
    victim, image = Sees([[0.2, -0.1], [0.05, 0.0]]), torch.ones(2, 1, 2, 2)

    def chance(s):
        return 1 / (1 + math.exp(-10 * s))

    order = torch.tensor([[[[4.0, 1.0], [3.0, 2.0]]], [[[1.0, 4.0], [2.0, 3.0]]]])  # 0.2 and 0.05 first; -0.1 and 0 first
    deleted = [(chance(0.15) / 2 + chance(-0.1) + chance(0) / 2) / 2, (chance(0.15) / 2 + chance(0.25) + chance(0) / 2) / 2]
    inserted = [(chance(0) / 2 + chance(0.25) + chance(0.15) / 2) / 2, (chance(0) / 2 + chance(-0.1) + chance(0.15) / 2) / 2]
    assert usefulness.deletion(victim, image, order).tolist() == pytest.approx(deleted, rel=1e-5)
    assert usefulness.insertion(victim, image, order).tolist() == pytest.approx(inserted, rel=1e-5)
    other = Sees([[-0.2, 0.1], [-0.05, 0.0]])  # the other class is predicted, and its probability is followed
    assert usefulness.deletion(other, image, order).tolist() == pytest.approx(deleted, rel=1e-5)


def slow_area(victim, image, places, before, after):
    """One image, pixel by pixel: the trapezoids under the predicted class's probability."""
    label, pixels, heights = victim(image[None]).argmax().item(), image[0].numel(), []
    for step in range(17):
        mixed = before.clone()
        for pixel, place in enumerate(places):
            if place < round(step * pixels / 16):
                row, column = divmod(pixel, image.shape[2])
                mixed[:, row, column] = after[:, row, column]
        heights.append(victim(mixed[None]).double().softmax(1)[0, label].item())
    return sum((a + b) / 2 for a, b in zip(heights[:-1], heights[1:], strict=True)) / 16


def slow_blur(image):
    """Every pixel a weighted mean of its neighbours; outside, the nearest pixel of the border."""
    c, h, w = image.shape
    sy, sx = h / 8, w / 8
    made = torch.zeros(c, h, w, dtype=torch.double)
    for i in range(h):
        for j in range(w):
            total = 0.0
            for dy in range(-int(2 * sy), int(2 * sy) + 1):
                for dx in range(-int(2 * sx), int(2 * sx) + 1):
                    weight = math.exp(-(dy**2) / (2 * sy**2) - dx**2 / (2 * sx**2))
                    total += weight
                    made[:, i, j] += weight * image[:, min(max(i + dy, 0), h - 1), min(max(j + dx, 0), w - 1)].double()
            made[:, i, j] /= total
    return made


@pytest.mark.parametrize("channels", [1, 3])
def test_deletion_and_insertion_are_their_slow_twins(channels):
    torch.manual_seed(1)
    victim = nn.Sequential(nn.Flatten(), nn.Linear(channels * 64, 12), nn.ReLU(), nn.Linear(12, 5))
    nn.init.normal_(victim[3].weight, std=2.0)
    image, explanation = torch.rand(5, channels, 8, 8), torch.rand(5, 2, 8, 8)
    with torch.no_grad():
        found = {"deletion": usefulness.deletion(victim, image, explanation),
                 "insertion": usefulness.insertion(victim, image, explanation)}
        for i in range(5):
            values = explanation[i].sum(0).flatten().tolist()
            places = [sorted(values, reverse=True).index(value) for value in values]
            blurred = slow_blur(image[i]).float()
            deleted = slow_area(victim, image[i], places, image[i], torch.zeros_like(image[i]))
            inserted = slow_area(victim, image[i], places, blurred, image[i])
            assert found["deletion"][i].item() == pytest.approx(deleted, abs=1e-5)
            assert found["insertion"][i].item() == pytest.approx(inserted, abs=1e-5)
    assert found["deletion"].std() > 0.01 and found["insertion"].std() > 0.01, "they can differ"


def test_maps_of_another_size_are_interpolated():
    """2x1 -> 4x1, half-pixel centres: 0 and 1 become 0, 0.25, 0.75, 1. Equal pixels: the upper left one first."""
    small = torch.tensor([[[[0.0], [1.0]]]])
    assert usefulness._order(small, torch.Size((4, 2))).tolist() == [[[[6, 7], [4, 5], [2, 3], [0, 1]]]]
    large = torch.tensor([[[[0.0, 0.0, 9.0, 0.0], [0.0, 0.0, 0.0, 9.0], [8.0, 8.0, 1.0, 1.0], [8.0, 8.0, 1.0, 1.0]]]])
    assert usefulness._order(large, torch.Size((2, 2))).flatten().tolist() == [3, 1, 0, 2]  # no pixel is skipped
    same = torch.rand(4, 1, 6, 6)
    expected = same.flatten(1).argsort(1, descending=True)
    assert usefulness._order(same, torch.Size((6, 6))).flatten(1).argsort(1).equal(expected)


def test_a_map_that_knows_scores_better_than_one_that_does_not():
    weights = torch.rand(1, 8, 8) ** 4
    victim, image = Sees((weights - weights.mean()).tolist()), torch.rand(20, 1, 8, 8)
    knows = (image * victim.weights)[victim(image).argmax(1) == 0]
    image = image[victim(image).argmax(1) == 0]
    assert len(image) > 3
    random = torch.rand(image.shape)
    assert usefulness.deletion(victim, image, knows).mean() < usefulness.deletion(victim, image, random).mean()
    assert usefulness.insertion(victim, image, knows).mean() > usefulness.insertion(victim, image, random).mean()


def test_relative_by_hand():
    assert usefulness.relative(0.5, random=0.5, clean=0.1) == 0
    assert usefulness.relative(0.1, random=0.5, clean=0.1) == 1
    assert usefulness.relative(0.4, random=0.5, clean=0.1) == pytest.approx(0.25)
    assert usefulness.relative(0.4, random=0.5, clean=0.5) is None
    assert usefulness.relative(0.9, random=0.933, clean=0.94) is None, "noise, as of insertion on digits"


def test_references_are_those_of_clean_and_random_maps(small_root, scripts, monkeypatch):
    """Of the test images alone, in whatever batches; the undefended row's maps are the clean ones."""
    experiment = Experiment(resolve("eval", [*scripts.flags, "--root", str(small_root)]))
    found = references.references(experiment)
    half = experiment.attacker_data
    image = torch.from_numpy(half.images[24:30] / np.float32(255))
    clean, victim = torch.from_numpy(np.array(half.explanations[24:30])), experiment.victim.network
    assert found[references.CLEAN] == {
        "distortion": 0, "pearson": pytest.approx(1), "spearman": pytest.approx(1), "top_overlap": pytest.approx(1),
        "deletion": pytest.approx(usefulness.deletion(victim, image, clean).mean().item(), rel=1e-4),
        "insertion": pytest.approx(usefulness.insertion(victim, image, clean).mean().item(), rel=1e-4)}
    noise = torch.from_numpy(stats.norm.cdf(row_noise(0, references.RANDOM, clean, range(24, 30)))).float()
    assert found[references.RANDOM] == {
        name: pytest.approx(oracle.mean().item(), rel=1e-3, abs=1e-4) for name, oracle in [
            ("distortion", (noise - clean).square()), ("pearson", usefulness.pearson(clean, noise)),
            ("spearman", usefulness.spearman(clean, noise)), ("top_overlap", usefulness.top_overlap(clean, noise)),
            ("deletion", usefulness.deletion(victim, image, noise)), ("insertion", usefulness.insertion(victim, image, noise))]}
    monkeypatch.setattr("gnime.batches.AT_ONCE", {"cpu": 4})
    again = references.references(experiment)
    assert all(again[kind] == pytest.approx(numbers, rel=1e-4, abs=1e-6) for kind, numbers in found.items())

    results = json.loads((small_root / "figures/digits_lrp/results.json").read_text())
    for kind, numbers in results["references"].items():
        assert numbers == pytest.approx(found[kind], rel=1e-4, abs=1e-6)
    rows = results["settings"]
    for name in ("deletion", "insertion"):
        random, clean = (found[kind][name] for kind in (references.RANDOM, references.CLEAN))
        expected = None if abs(clean - random) < 0.05 else pytest.approx(1, abs=1e-3)
        assert rows["expmi"][name] == expected and name not in rows["predmi"]
        assert rows["gnime"][name] is None if expected is None else abs(rows["gnime"][name] - 1) > 1e-3


def test_scaled_by_hand():
    found = {references.RANDOM: {"deletion": 0.5, "insertion": 0.4}, references.CLEAN: {"deletion": 0.1, "insertion": 0.4}}
    numbers = {"mse": 0.3, "deletion": 0.2, "insertion": 0.7}
    assert references.scale(numbers, found) == {"mse": 0.3, "deletion": pytest.approx(0.75), "insertion": None}
    assert references.scale({"mse": 0.3, "deletion": None}, found) == {"mse": 0.3, "deletion": None}
    assert numbers["deletion"] == 0.2, "a copy"


def test_registered():
    clean, protected = maps()
    for name in ("pearson", "spearman", "top_overlap"):
        found = METRICS[name].load()(clean, protected)
        assert METRICS[name].takes == ("clean", "protected") and found.shape == (6,) and found.isfinite().all()
