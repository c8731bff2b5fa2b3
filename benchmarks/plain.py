"""The two-player step as docs/method.md states it, which the step in one backward pass is measured against."""

import torch


def plain_two_player_step(injector, inverter, batch, inversion_weight):
    """One backward pass for each player's loss. batch: explanation, prediction, image; sets `.grad`."""
    e, y, x = batch
    z = injector.standardise(e)
    z_ = injector.network(z, y)
    e_ = injector.destandardise(z_)
    inversion = (inverter(e_, y) - x).square().mean()
    inverter_loss = inversion + (inverter(e, y) - x).square().mean()
    injector_loss = (z_ - z).square().mean() - inversion_weight * inversion
    for network, loss in ((inverter, inverter_loss), (injector, injector_loss)):
        parameters = list(network.parameters())
        for p, g in zip(parameters, torch.autograd.grad(loss, parameters, retain_graph=network is inverter), strict=True):
            p.grad = g
