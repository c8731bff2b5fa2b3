"""Metrics against hand arithmetic and slow twins in float64."""

import math

import pytest
import torch

from gnime.metrics import leakage


def test_mse_and_psnr_by_hand():
    image = torch.tensor([[[[0.0, 1.0]]], [[[0.5, 0.5]]], [[[0.2, 0.2]]]])
    found = torch.tensor([[[[1.0, 0.0]]], [[[0.6, 0.3]]], [[[0.2, 0.2]]]])
    torch.testing.assert_close(leakage.mse(image, found), torch.tensor([1.0, 0.025, 0.0]))
    psnr = leakage.psnr(image, found)
    torch.testing.assert_close(psnr[:2], torch.tensor([0.0, -10 * math.log10(0.025)]))
    assert psnr[2] == math.inf


def test_mse_is_per_image_over_channels():
    image = torch.zeros(2, 3, 2, 2)
    found = image.clone()
    found[1, 2] = 1.0
    assert leakage.mse(image, found).tolist() == [0.0, pytest.approx(1 / 3)]


def slow_ssim(one, other):
    """Wang et al., 2004: an 11x11 Gaussian window of sigma 1.5, window by window, over those that lie inside."""
    line = [math.exp(-((i - 5) ** 2) / (2 * 1.5**2)) for i in range(11)]
    window = torch.tensor([[a * b for b in line] for a in line], dtype=torch.double)
    window /= window.sum()
    c1, c2 = 0.01**2, 0.03**2
    one, other = one.double(), other.double()
    values = []
    for i in range(one.shape[1] - 10):
        for j in range(one.shape[2] - 10):
            for c in range(one.shape[0]):
                x, y = one[c, i : i + 11, j : j + 11], other[c, i : i + 11, j : j + 11]
                mx, my = (window * x).sum(), (window * y).sum()
                vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
                cov = (window * (x - mx) * (y - my)).sum()
                values.append(((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).item())
    return sum(values) / len(values)


@pytest.mark.parametrize("shape", [(1, 11, 11), (1, 16, 16), (3, 14, 17)])
def test_ssim_is_its_slow_twin(shape):
    image = torch.rand(4, *shape)
    found = torch.stack([image[0], (image[1] + 0.1 * torch.randn(shape)).clamp(0, 1), 1 - image[2], torch.full(shape, 0.5)])
    ours = leakage.ssim(image, found)
    expected = [slow_ssim(a, b) for a, b in zip(image, found, strict=True)]
    assert ours.tolist() == pytest.approx(expected, abs=1e-5)
    assert expected[0] == pytest.approx(1) and expected[2] < 0


def test_correct_by_hand():
    logits = torch.tensor([[1.0, 2.0, 0.0], [5.0, 2.0, 0.0], [0.0, 0.0, 1e-3]])
    assert leakage.correct(logits, torch.tensor([1, 1, 2])).tolist() == [1.0, 0.0, 1.0]


def test_deepsim_by_hand():
    """||F(r) - F(x)||_F = sqrt(9 + 16) = 5 over N = 2: exp(-2.5)."""
    one, other = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[4.0, 2.0], [3.0, 0.0]])
    assert leakage.deepsim(one, other) == pytest.approx(math.exp(-2.5))
    assert leakage.deepsim(one, one) == 1.0
    assert leakage.deepsim_of(25.0, 2) == pytest.approx(math.exp(-2.5))


def test_deepsim_in_parts():
    """The evaluation adds up squares part by part."""
    one, other = torch.rand(50, 300), torch.rand(50, 300)
    squared = sum((a.double() - b.double()).square().sum().item() for a, b in zip(one.split(7), other.split(7), strict=True))
    assert leakage.deepsim_of(squared, 50) == pytest.approx(leakage.deepsim(one, other), rel=1e-12)


@pytest.mark.parametrize(("setting", "expected"), [(0.08, 0.0), (0.02, 1.0), (0.05, 0.5), (0.01, 7 / 6), (0.09, -1 / 6)])
def test_residual_leakage_by_hand(setting, expected):
    assert leakage.residual_leakage(setting, predmi=0.08, expmi=0.02) == pytest.approx(expected)


@pytest.mark.parametrize("expmi", [0.08, 0.09])
def test_no_leak_no_residue(expmi):
    assert leakage.residual_leakage(0.05, predmi=0.08, expmi=expmi) is None


def test_bootstrap_interval_covers_the_mean():
    """95 % intervals of skewed samples whose mean is 1: about 95 of 100 hold it (skewness costs a few)."""
    generator = torch.Generator().manual_seed(5)
    samples = torch.empty(120, 60).exponential_(generator=generator)
    intervals = [leakage.bootstrap_interval(sample, seed=i, draws=200) for i, sample in enumerate(samples)]
    held = sum(low <= 1 <= high for low, high in intervals) / len(intervals)
    assert 0.86 <= held <= 0.99
    widths = torch.tensor([high - low for low, high in intervals])
    assert widths.mean().item() == pytest.approx(2 * 1.96 / 60**0.5, rel=0.1)


def test_bootstrap_interval_is_reproducible_and_ordered():
    values = torch.rand(40)
    low, high = leakage.bootstrap_interval(values)
    assert low < values.double().mean().item() < high
    assert leakage.bootstrap_interval(values) == (low, high)
    assert leakage.bootstrap_interval(values, seed=1) != (low, high)
    narrow = leakage.bootstrap_interval(values, level=0.5)
    assert low < narrow[0] < narrow[1] < high
    assert leakage.bootstrap_interval(torch.full((7,), 0.25)) == (0.25, 0.25)
