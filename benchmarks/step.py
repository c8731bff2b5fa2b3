"""Training steps of the injector, PredMI and the victim at the paper's width: the plain formulation against ours."""

import torch
import torch.nn.functional as F
from common import Report, compare, parser
from torch import nn

from gnime.classifiers import Classifier
from gnime.config import target
from gnime.injector import Injector, two_player_step
from gnime.inversion import ExpMI, PredMI
from gnime.networks import classifier_spec

ADAM = {"lr": 1e-4}


class PlainPredMI(PredMI):
    """Nearest upsampling followed by a convolution, as METHOD words it."""

    def forward(self, explanation, prediction):
        x = F.relu(self.dense(prediction))[:, :, None, None]
        for i, layer in enumerate(self.decoder):
            x = layer(F.interpolate(x, scale_factor=2 if i else 4))
            x = x if i == len(self.decoder) - 1 else F.relu(x)
        return x


class PlainExpMI(ExpMI):
    def forward(self, explanation, prediction):
        x, skips = explanation, []
        for layer in self.encoder:
            x = F.relu(layer(x))
            skips.append(x)
            x = F.max_pool2d(x, 2)
        code = F.relu(self.code(x.flatten(1)))
        x = F.relu(self.bottleneck(torch.cat([code, explanation.flatten(1), prediction], 1)))[:, :, None, None]
        for i, layer in enumerate(self.decoder):
            x = F.interpolate(x, scale_factor=2 if i else 4)
            x = layer(torch.cat([x, skips.pop()], 1) if skips else x)
            x = x if i == len(self.decoder) - 1 else F.relu(x)
        return x


def plain_game(injector, inverter, e, y, x, weight, optimisers):
    """One backward pass for each player's loss."""
    z = injector.standardise(e)
    z_ = injector.network(z, y)
    e_ = injector.destandardise(z_)
    inversion = (inverter(e_, y) - x).square().mean()
    inverter_loss = inversion + (inverter(e, y) - x).square().mean()
    injector_loss = (z_ - z).square().mean() - weight * inversion
    gradients = [torch.autograd.grad(loss, list(network.parameters()), retain_graph=loss is inverter_loss)
                 for loss, network in ((inverter_loss, inverter), (injector_loss, injector))]
    for optimiser, network, grads in zip(optimisers, (inverter, injector), gradients, strict=True):
        for p, g in zip(network.parameters(), grads, strict=True):
            p.grad = g
        optimiser.step()


def autocast(on):
    return torch.autocast("cpu", torch.bfloat16, enabled=on)


def game(batch, bf16):
    """(plain, ours): closures of one step each; plain is always fp32, the reference of the claim."""
    e, y, x = torch.rand(batch, 1, 32, 32), torch.randn(batch, 10), torch.rand(batch, 1, 32, 32)
    networks = Injector(1, 32, 10), PlainExpMI(1, 32, 10, 1, 32)
    networks[0].network.__class__ = PlainExpMI
    optimisers = [torch.optim.Adam(n.parameters(), **ADAM) for n in reversed(networks)]
    fast = [n.to(memory_format=torch.channels_last) for n in (Injector(1, 32, 10), ExpMI(1, 32, 10, 1, 32))]
    fused = [torch.optim.Adam(n.parameters(), **ADAM, fused=True) for n in fast]

    def ours():
        for optimiser in fused:
            optimiser.zero_grad()
        with autocast(bf16):
            two_player_step(*fast, e, y, x, 100.0)
        for optimiser in fused:
            optimiser.step()

    return lambda: plain_game(*networks, e, y, x, 100.0, optimisers), ours


def supervised(plain, fast, loss, inputs, bf16):
    slow_adam = torch.optim.Adam(plain.parameters(), **ADAM)
    fast = fast.to(memory_format=torch.channels_last)
    fused = torch.optim.Adam(fast.parameters(), **ADAM, fused=True)
    near = [i.contiguous(memory_format=torch.channels_last) if i is not None and i.ndim == 4 else i for i in inputs]

    def step(network, optimiser, batch, on):
        optimiser.zero_grad()
        with autocast(on):
            value = loss(network, *batch)
        value.backward()
        optimiser.step()

    return lambda: step(plain, slow_adam, inputs, False), lambda: step(fast, fused, near, bf16)


def inversion_loss(network, y, x):
    return (network(None, y).float() - x).square().mean()


def classification_loss(network, x, label):
    return nn.functional.cross_entropy(network(x).float(), label)


def main():
    options = parser(__doc__).parse_args()
    batch, rounds = (32, 2) if options.quick else (128, 5)
    report = Report()
    print(f"batch {batch}, mnist, width 2048")
    y, x, label = torch.randn(batch, 10), torch.rand(batch, 1, 32, 32), torch.randint(0, 10, (batch,))
    arguments = {k: v for k, v in classifier_spec(target("mnist"), 10).items() if k != "network"}
    for name, bf16, goals in (("fp32", False, (2.8, 2.2, 1.3)), ("bf16", True, (5.5, 4.0, 2.5))):
        report.ratio(f"injector step {name}", *compare(*game(batch, bf16), rounds), goals[0])
        pair = supervised(PlainPredMI(10, 1, 32), PredMI(10, 1, 32), inversion_loss, (y, x), bf16)
        report.ratio(f"PredMI step {name}", *compare(*pair, rounds), goals[1])
        pair = supervised(Classifier(**arguments), Classifier(**arguments), classification_loss, (x, label), bf16)
        report.ratio(f"victim step {name}", *compare(*pair, rounds), goals[2])
    report.finish(options.json)


if __name__ == "__main__":
    main()
