"""Fast formulations of the networks' layers, and the two functions that put them in place and remove them.

The fast ones compute what the plain networks of `gnime.models` compute, outputs and gradients, up to rounding
(tests/test_formulations.py). Most are for CPUs; each one chooses by the device of its input.
"""

from torch import nn

from ..models.classifier import Classifier
from ..models.inversion import Decoder, Encoder
from .classifier import FastClassifier
from .inverters import FastDecoder, FastEncoder

FAST: dict[type, type] = {Encoder: FastEncoder, Decoder: FastDecoder, Classifier: FastClassifier}


def accelerate(network: nn.Module) -> nn.Module:
    """Replaces, in place, the network's encoders, decoders and classifiers by fast ones. Returns it.

    Parameters, state-dict keys and values stay; a module's class becomes a subclass of what it was. Modules of other classes
    stay as they are. An accelerated network calls no forward hooks of its convolutions and of a classifier's dense layers, and
    has no second derivatives. Explainers refuse an accelerated classifier: see `plain`.
    """
    return _replace(network, FAST)


def plain(network: nn.Module) -> nn.Module:
    """Undoes `accelerate`, in place. Returns the network."""
    return _replace(network, {fast: slow for slow, fast in FAST.items()})


def _replace(network: nn.Module, classes: dict[type, type]) -> nn.Module:
    for module in network.modules():
        if type(module) in classes:
            module.__class__ = classes[type(module)]
    return network
