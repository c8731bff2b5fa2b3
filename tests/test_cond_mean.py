"""The conditional mean against refitting in NumPy in 64 bits, and the mix by hand."""

import numpy as np
import pytest
import torch
from bounded import defender, made_up, network, twin

from gnime.defences import DefenceInputs, cond_mean
from gnime.registry import DEFENCES, find_row


@pytest.mark.parametrize("noise", [0.02, 0.2])
def test_conditional_mean_is_its_slow_twin(noise):
    """Explicit refitting without each image, at each point of the grid, is the oracle of the closed form."""
    data = made_up(48, noise=noise)
    fit, left_out = cond_mean.fit_with_residuals(data)
    width, ridge, error, residuals, g = twin(data)
    assert (fit.report["h"], fit.report["ridge"]) == (width, ridge)
    assert fit.report["leave_one_out"] == pytest.approx(error, rel=1e-6)
    np.testing.assert_allclose(left_out, residuals, atol=1e-5)
    fresh = torch.randn(50, 3) * torch.tensor([3.0, 1.0, 0.5])
    np.testing.assert_allclose(network(fit)(None, fresh), g(fresh), atol=2e-5)


def test_noise_asks_for_more_smoothing():
    """The twin's grid has more than one winner, so the choice is tested, too."""
    reports = [cond_mean.fit(made_up(48, noise=noise)).report for noise in (0.02, 0.2)]
    assert (reports[0]["h"], reports[0]["ridge"]) != (reports[1]["h"], reports[1]["ridge"])


def test_conditional_mean_sees_the_defenders_half_alone_and_says_more_than_the_class():
    data = made_up()
    before = cond_mean.fit(data)
    data.explanations[: data.rows.start] = data.explanations[data.rows.stop :] = 9.0
    data.predictions[: data.rows.start] = data.predictions[data.rows.stop :] = 9.0
    after = cond_mean.fit(data)
    assert all(before.tensors[name].equal(after.tensors[name]) for name in before.tensors)
    maps, logits = defender(made_up(seed=1))
    means = network(before)(None, logits), data.class_means[logits.argmax(1)]
    errors = [(mean - maps).square().mean().item() for mean in means]
    assert errors[0] < 0.5 * errors[1]


def test_more_images_than_centres(monkeypatch):
    """The class means still see all of them; the centres are a seeded choice of the half."""
    monkeypatch.setattr(cond_mean, "CENTRES", 30)
    data = made_up()
    fit = cond_mean.fit(data)
    again = cond_mean.fit(data)
    assert all(fit.tensors[name].equal(again.tensors[name]) for name in fit.tensors)
    assert fit.tensors["coefficients"].shape == (30, 32) and fit.tensors["means"] is data.class_means
    logits = defender(data)[1]
    raw = fit.tensors["centres"] * fit.tensors["scale"] + fit.tensors["offset"]
    nearest = torch.cdist(raw, logits).min(1)
    assert nearest.values.max() < 1e-3 and len(nearest.indices.unique()) == 30
    data.seed += 1
    assert not cond_mean.fit(data).tensors["centres"].equal(fit.tensors["centres"])


def test_a_logit_that_never_changes():
    data = made_up()
    data.predictions[:, 2] = -4.0
    assert network(cond_mean.fit(data))(None, data.predictions).isfinite().all()


def test_mix_by_hand():
    e, y = torch.rand(6, 1, 4, 4), torch.eye(3)[torch.tensor([0, 1, 2, 2, 1, 0])]
    means = torch.rand(3, 1, 4, 4)
    row = find_row("mix-0.25")
    protect = DEFENCES[row.defence].load()(DefenceInputs(0, class_means=means), **row.parameters)
    torch.testing.assert_close(protect(e, y, None, range(6))[3], 0.25 * e[3] + 0.75 * means[2])
