"""METHOD word for word in PyTorch: what the fast formulations are measured against."""

import torch
import torch.nn.functional as F
from torch import nn

from gnime.classifiers import Classifier
from gnime.inversion import ExpMI, PredMI


def plain_conv(layer, x):
    """Not `layer(x)`: in training that is ours."""
    return F.conv2d(x, layer.weight, layer.bias, padding=1)


class PlainPredMI(PredMI):
    """Nearest upsampling followed by a convolution."""

    def forward(self, explanation, prediction):
        x = F.relu(self.dense(prediction))[:, :, None, None]
        for i, layer in enumerate(self.decoder):
            x = plain_conv(layer, F.interpolate(x, scale_factor=2 if i else 4))
            x = x if i == len(self.decoder) - 1 else F.relu(x)
        return x


class PlainExpMI(ExpMI):
    """The same, with skips concatenated."""

    def forward(self, explanation, prediction):
        x, skips = explanation, []
        for layer in self.encoder:
            x = F.relu(plain_conv(layer, x))
            skips.append(x)
            x = F.max_pool2d(x, 2)
        code = F.relu(self.code(x.flatten(1)))
        x = F.relu(self.bottleneck(torch.cat([code, explanation.flatten(1), prediction], 1)))[:, :, None, None]
        for i, layer in enumerate(self.decoder):
            x = F.interpolate(x, scale_factor=2 if i else 4)
            x = plain_conv(layer, torch.cat([x, skips.pop()], 1) if skips else x)
            x = x if i == len(self.decoder) - 1 else F.relu(x)
        return x


class PlainClassifier(Classifier):
    """Layer after layer."""

    def forward(self, images):
        for layer in self:
            images = plain_conv(layer, images) if isinstance(layer, nn.Conv2d) else layer(images)
        return images


def plain_two_player_step(injector, inverter, e, y, x, weight):
    """One backward pass for each player's loss."""
    z = injector.standardise(e)
    z_ = injector.network(z, y)
    e_ = injector.destandardise(z_)
    inversion = (inverter(e_, y) - x).square().mean()
    inverter_loss = inversion + (inverter(e, y) - x).square().mean()
    injector_loss = (z_ - z).square().mean() - weight * inversion
    for network, loss in ((inverter, inverter_loss), (injector, injector_loss)):
        parameters = list(network.parameters())
        for p, g in zip(parameters, torch.autograd.grad(loss, parameters, retain_graph=network is inverter), strict=True):
            p.grad = g
