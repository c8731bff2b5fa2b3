"""The noise injector, and the shared step against two separate passes of autograd."""

import copy

import pytest
import torch
from torch import nn

from gnime.models.injector import Injector, two_player_step
from gnime.models.inversion import ExpMI
from gnime.ops import accelerate, plain

RELATIVE = 1e-5  # of a gradient's largest entry
WEIGHT = 7.0


@pytest.fixture(params=[plain, accelerate], ids=["plain", "accelerated"])
def game(request):
    """Injector and inverter with biases, on explanations of which the clip cuts some at 0 and some at 1."""
    injector, inverter = Injector(2, 8, 5, 64, mean=0.5, std=0.4), ExpMI(2, 8, 5, 3, 16, 64)
    for name, parameter in [*injector.named_parameters(), *inverter.named_parameters()]:
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.3)
    injector.network.decoder[-1].weight.data.mul_(8)
    injector.network.decoder[-1].bias.data.zero_()
    request.param(injector), request.param(inverter)
    return injector, inverter, torch.rand(6, 2, 8, 8), torch.randn(6, 5), torch.rand(6, 3, 16, 16)


def parameters(network):
    return dict(network.named_parameters())


def separately(injector, inverter, e, y, x, official):
    """docs/method.md "Training the injector", as it is written: each player's loss from a forward pass of its own."""
    m, d = injector.mean, injector.std

    def protect():
        z = (e - m) / d
        z_protected = injector.network(z, y)
        return z, z_protected, torch.clamp(z_protected * d + m, 0, 1)

    z, _, protected = protect()
    inverter_loss = ((inverter(protected.detach(), y) - x) ** 2).mean() + ((inverter(z if official else e, y) - x) ** 2).mean()
    of_inverter = torch.autograd.grad(inverter_loss, list(parameters(inverter).values()))

    z, z_protected, protected = protect()
    distortion, inversion = ((z_protected - z) ** 2).mean(), ((inverter(protected, y) - x) ** 2).mean()
    of_injector = torch.autograd.grad(distortion - WEIGHT * inversion, list(parameters(injector).values()))
    return (distortion, inversion, inverter_loss), of_injector, of_inverter


def gradients_close(network, expected, factor=1.0):
    for (name, parameter), gradient in zip(network.named_parameters(), expected, strict=True):
        assert (parameter.grad / factor - gradient).abs().max() <= RELATIVE * gradient.abs().max(), name


@pytest.mark.parametrize("official", [False, True])
def test_step_is_two_separate_steps(game, official):
    injector, inverter, e, y, x = game
    before = copy.deepcopy([injector.state_dict(), inverter.state_dict()])
    expected, of_injector, of_inverter = separately(injector, inverter, e, y, x, official)
    protected = injector(e, y)
    assert 0.05 < (protected == 0).float().mean() < 0.95, "some are cut at 0"
    assert 0.05 < (protected == 1).float().mean() < 0.95, "some are cut at 1"
    losses = two_player_step(injector, inverter, (e, y, x), WEIGHT, official)
    for found, wanted in zip((losses.distortion, losses.inversion, losses.inverter), expected, strict=True):
        torch.testing.assert_close(found, wanted.detach(), atol=0, rtol=1e-6)
        assert not found.requires_grad
    gradients_close(injector, of_injector)
    gradients_close(inverter, of_inverter)
    for network, state in zip((injector, inverter), before, strict=True):
        assert all(value.equal(state[name]) for name, value in network.state_dict().items()), "a step only adds to .grad"


def test_the_modes_differ(game):
    injector, inverter, e, y, x = game
    default = two_player_step(injector, inverter, (e, y, x), WEIGHT, official=False)
    official = two_player_step(injector, inverter, (e, y, x), WEIGHT, official=True)
    assert default.inverter != official.inverter
    assert default.inversion == official.inversion


def test_weight_turns_the_injector_alone(game):
    """At weight 0 it imitates; the inverter's gradient does not depend on the weight."""
    injector, inverter, e, y, x = game
    found = {}
    for weight in (0.0, 100.0):
        injector.zero_grad()
        inverter.zero_grad()
        two_player_step(injector, inverter, (e, y, x), weight)
        found[weight] = [[p.grad.clone() for p in network.parameters()] for network in (injector, inverter)]
    assert all(a.equal(b) for a, b in zip(found[0.0][1], found[100.0][1], strict=True))
    z = injector.standardise(e)
    imitation = torch.autograd.grad((injector.network(z, y) - z).square().mean(), list(injector.parameters()))
    for ours, wanted, other in zip(found[0.0][0], imitation, found[100.0][0], strict=True):
        assert (ours - wanted).abs().max() <= RELATIVE * wanted.abs().max()
        assert not torch.allclose(ours, other)


@pytest.mark.parametrize("official", [False, True])
def test_share_scales_gradients_alone(game, official):
    injector, inverter, e, y, x = game
    expected, of_injector, of_inverter = separately(injector, inverter, e, y, x, official)
    losses = two_player_step(injector, inverter, (e, y, x), WEIGHT, official, share=0.25)
    torch.testing.assert_close(losses.inverter, expected[2].detach())
    gradients_close(injector, of_injector, 0.25)
    gradients_close(inverter, of_inverter, 0.25)


def test_parts_of_a_batch_add_up_to_it(game):
    """What several processes rely on: shares of 4 and 2 of 6."""
    injector, inverter, e, y, x = game
    _, of_injector, of_inverter = separately(injector, inverter, e, y, x, False)
    for rows in (slice(0, 4), slice(4, 6)):
        two_player_step(injector, inverter, (e[rows], y[rows], x[rows]), WEIGHT, share=(rows.stop - rows.start) / 6)
    gradients_close(injector, of_injector)
    gradients_close(inverter, of_inverter)


def test_protected_explanation_by_hand():
    """A network that gives one constant: e' = clip(c * d + m, 0, 1), whatever e."""
    injector = Injector(1, 8, 3, 64, mean=0.5, std=0.25)
    for parameter in injector.parameters():
        nn.init.zeros_(parameter)
    e, y = torch.rand(2, 1, 8, 8), torch.randn(2, 3)
    for constant, expected in ((0.0, 0.5), (1.0, 0.75), (2.0, 1.0), (9.0, 1.0), (-2.0, 0.0), (-9.0, 0.0)):
        nn.init.constant_(injector.network.decoder[-1].bias, constant)
        assert injector(e, y).equal(torch.full_like(e, expected))
    torch.testing.assert_close(injector.standardise(e), (e - 0.5) / 0.25)


@pytest.mark.parametrize("beyond", [-9.0, 9.0])
def test_where_everything_is_clipped_only_distortion_teaches(beyond):
    """The clip passes no gradient: D alone moves the injector, and brings it back."""
    injector, inverter = Injector(1, 8, 3, 64, mean=0.5, std=0.25), ExpMI(1, 8, 3, 1, 16, 64)
    nn.init.constant_(injector.network.decoder[-1].bias, beyond)
    e, y, x = torch.rand(4, 1, 8, 8), torch.randn(4, 3), torch.rand(4, 1, 16, 16)
    assert injector(e, y).unique().tolist() == [0.0 if beyond < 0 else 1.0]
    two_player_step(injector, inverter, (e, y, x), inversion_weight=1e6)
    z = injector.standardise(e)
    expected = torch.autograd.grad((injector.network(z, y) - z).square().mean(), list(injector.parameters()))
    gradients_close(injector, expected)
    assert torch.sign(injector.network.decoder[-1].bias.grad) == torch.sign(torch.tensor(beyond))


def test_mean_and_deviation_travel_with_the_weights():
    source, other = Injector(1, 8, 3, 64, mean=0.3, std=0.2), Injector(1, 8, 3, 64)
    other.load_state_dict(source.state_dict())
    e, y = torch.rand(2, 1, 8, 8), torch.randn(2, 3)
    assert other(e, y).equal(source(e, y))
    assert not any(name in ("mean", "std") for name, _ in source.named_parameters()), "they are not learnt"
